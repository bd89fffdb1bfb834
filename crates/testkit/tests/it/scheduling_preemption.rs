//! Important pods get their room: who has to leave, how, and what is said about it.

use client::write;
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{Event, Node, Pod},
    policy::v1::PodDisruptionBudget,
    scheduling::v1::PriorityClass,
};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use testkit::{Cluster, eventually, objects};

use crate::scheduling::{node_of, pod, refusal};

fn class(name: &str, value: i32) -> Value {
    json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": name, "labels": {"e2e": "yes"}}, "value": value})
}

fn of_class(name: &str, class: &str, cpu: &str) -> Value {
    pod(
        name,
        json!({"cpu": cpu}),
        json!({"/spec/priorityClassName": class}),
    )
}

/// Two nodes, which the scheduler knows to be ready: as long as it takes one of them for unready,
/// the more important of two pods would have the other one leave.
async fn cluster() -> anyhow::Result<(Cluster, Vec<testkit::FakeNode>)> {
    let cluster = Cluster::start().await?;
    let client = cluster.client();
    let mut nodes = Vec::new();
    for name in ["n1", "n2"] {
        nodes.push(cluster.add_node(name).await?);
        let there = json!({"/spec/nodeSelector": {"kubernetes.io/hostname": name}});
        let probe = format!("probe-{name}");
        objects(&client, &[pod(&probe, json!({}), there)]).await?;
        node_of(&client, &probe).await?;
        let pods = write::namespaced::<Pod>(&client, "default");
        pods.delete(&probe, &DeleteParams::default().grace_period(0))
            .await?;
        gone(&cluster, &probe).await?;
    }
    let classes = [class("low", 1), class("medium", 100), class("high", 1000)];
    objects(&client, &classes).await?;
    Ok((cluster, nodes))
}

async fn gone(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let pods = write::namespaced::<Pod>(&cluster.client(), "default");
    eventually(&format!("{name} to be gone"), || async {
        Ok(pods.get_opt(name).await?.is_none().then_some(()))
    })
    .await
}

/// Fills both nodes with less important pods.
async fn occupy(client: &client::Client) -> anyhow::Result<()> {
    let first = [
        of_class("first", "low", "3"),
        of_class("second", "medium", "3"),
    ];
    objects(client, &first).await?;
    node_of(client, "first").await?;
    node_of(client, "second").await?;
    Ok(())
}

/// Conformance: Scheduler, Basic Preemption
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_important_pod_makes_room() -> anyhow::Result<()> {
    let (cluster, _nodes) = cluster().await?;
    let client = cluster.client();
    occupy(&client).await?;
    let room = node_of(&client, "first").await?;
    objects(&client, &[of_class("preemptor", "high", "3")]).await?;
    assert_eq!(node_of(&client, "preemptor").await?, room);
    gone(&cluster, "first").await?;
    let pods = write::namespaced::<Pod>(&client, "default");
    assert!(
        pods.get("second")
            .await?
            .metadata
            .deletion_timestamp
            .is_none()
    );
    let events = write::namespaced::<Event>(&client, "default");
    eventually("the event of the victim", || async {
        let all = events.list(&ListParams::default()).await?.items;
        let found = all.iter().any(|e| {
            e.reason.as_deref() == Some("Preempted")
                && e.involved_object.name.as_deref() == Some("first")
        });
        Ok(found.then_some(()))
    })
    .await
}

/// Conformance: Scheduler, Preemption for critical pod
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_critical_pod_of_the_system_gets_room() -> anyhow::Result<()> {
    let (cluster, _nodes) = cluster().await?;
    let client = cluster.client();
    occupy(&client).await?;
    let mut critical = of_class("critical", "system-cluster-critical", "3");
    critical["metadata"]["namespace"] = json!("kube-system");
    eventually("the account of kube-system", || async {
        Ok(objects(&client, std::slice::from_ref(&critical)).await.ok())
    })
    .await?;
    gone(&cluster, "first").await?;
    let pods = write::namespaced::<Pod>(&client, "kube-system");
    eventually("the critical pod to be bound", || async {
        Ok(pods
            .get("critical")
            .await?
            .spec
            .unwrap_or_default()
            .node_name)
    })
    .await?;
    Ok(())
}

/// Conformance: Verify the DisruptionTarget condition is added to the preempted pod
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn victims_are_told_why() -> anyhow::Result<()> {
    let (cluster, _nodes) = cluster().await?;
    let client = cluster.client();
    let keep = json!({"/metadata/finalizers": ["example.com/keep"], "/spec/priorityClassName": "low",
        "/spec/nodeName": "n1"});
    objects(&client, &[pod("victim", json!({"cpu": "3"}), keep)]).await?;
    let mut preemptor = of_class("preemptor", "high", "3");
    preemptor["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "n1"});
    objects(&client, &[preemptor]).await?;
    let pods = write::namespaced::<Pod>(&client, "default");
    let condition = eventually("the condition", || async {
        let status = pods.get("victim").await?.status.unwrap_or_default();
        let all = status.conditions.unwrap_or_default();
        Ok(all.into_iter().find(|c| c.type_ == "DisruptionTarget"))
    })
    .await?;
    assert_eq!(condition.status, "True");
    assert_eq!(condition.reason.as_deref(), Some("PreemptionByScheduler"));
    assert_eq!(
        condition.message.as_deref(),
        Some("default-scheduler: preempting to accommodate a higher priority pod")
    );
    eventually("the nomination", || async {
        let status = pods.get("preemptor").await?.status.unwrap_or_default();
        Ok(status.nominated_node_name.filter(|n| n == "n1"))
    })
    .await?;
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    pods.patch("victim", &PatchParams::default(), &free).await?;
    assert_eq!(node_of(&client, "preemptor").await?, "n1");
    Ok(())
}

/// Conformance: Pod preemption verification
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_sets_of_rising_priority_displace_each_other() -> anyhow::Result<()> {
    const RESOURCE: &str = "example.com/fakecpu";
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let nodes = write::cluster::<Node>(&client);
    let amounts = json!({RESOURCE: "1000"});
    let patch = Patch::Merge(json!({"status": {"capacity": amounts, "allocatable": amounts}}));
    nodes
        .patch_status("n1", &PatchParams::default(), &patch)
        .await?;
    let sets = [
        ("p1", 5, 200, 1),
        ("p2", 4, 300, 2),
        ("p3", 4, 450, 3),
        ("p4", 1, 200, 4),
    ];
    let classes: Vec<Value> = sets
        .iter()
        .map(|(n, _, _, value)| class(n, *value))
        .collect();
    objects(&client, &classes).await?;
    let replica_set = |name: &str, replicas: i32, amount: i32| {
        let amount = json!({RESOURCE: amount.to_string()});
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"name": name}},
                "template": {"metadata": {"labels": {"name": name}}, "spec": {
                    "priorityClassName": name, "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "c", "image": "pause",
                        "resources": {"requests": amount, "limits": amount}}]}}}})
    };
    let api = write::namespaced::<ReplicaSet>(&client, "default");
    let ready = async |name: &str, count: i32| {
        eventually(&format!("{count} of {name}"), || async {
            let status = api.get(name).await?.status.unwrap_or_default();
            Ok((status.ready_replicas.unwrap_or(0) == count).then_some(()))
        })
        .await
    };
    objects(&client, &[replica_set("p1", 5, 200)]).await?;
    ready("p1", 5).await?;
    objects(&client, &[replica_set("p2", 2, 300)]).await?;
    ready("p2", 2).await?;
    ready("p1", 2).await?;
    objects(&client, &[replica_set("p3", 2, 450)]).await?;
    ready("p3", 2).await?;
    ready("p2", 0).await?;
    ready("p1", 0).await?;
    objects(&client, &[replica_set("p4", 1, 200)]).await?;
    ready("p4", 1).await?;
    ready("p3", 1).await
}

/// Conformance: Scheduler, Verify PriorityClass endpoints
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn priority_classes_keep_their_value() -> anyhow::Result<()> {
    let (cluster, _nodes) = cluster().await?;
    let classes = write::cluster::<PriorityClass>(&cluster.client());
    for patch in [json!({"value": 500}), json!({"preemptionPolicy": "Never"})] {
        let refused = classes
            .patch("high", &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        assert!(
            matches!(&refused, Err(kube::Error::Api(s)) if s.code == 422),
            "{patch}: {refused:?}"
        );
    }
    let mut low = classes.get("low").await?;
    low.description = Some("updated".into());
    let updated = classes.replace("low", &Default::default(), &low).await?;
    assert_eq!(updated.description.as_deref(), Some("updated"));
    assert_eq!(updated.value, Some(1));
    let patch = Patch::Strategic(json!({"description": "patched"}));
    let patched = classes
        .patch("low", &PatchParams::default(), &patch)
        .await?;
    assert_eq!(patched.description.as_deref(), Some("patched"));
    let mine = ListParams::default().labels("e2e=yes");
    assert_eq!(classes.list(&mine).await?.items.len(), 3);
    classes
        .delete_collection(&DeleteParams::default(), &mine)
        .await?;
    assert!(classes.list(&mine).await?.items.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_are_kept_where_there_is_a_choice() -> anyhow::Result<()> {
    let (cluster, _nodes) = cluster().await?;
    let client = cluster.client();
    let mut kept = of_class("kept", "low", "3");
    kept["metadata"]["labels"] = json!({"app": "kept"});
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "keep"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "kept"}}}});
    objects(&client, &[budget, kept, of_class("other", "medium", "3")]).await?;
    node_of(&client, "kept").await?;
    let room = node_of(&client, "other").await?;
    let budgets = write::namespaced::<PodDisruptionBudget>(&client, "default");
    eventually("the budget to count its pod", || async {
        let status = budgets.get("keep").await?.status.unwrap_or_default();
        Ok((status.current_healthy == Some(1)).then_some(()))
    })
    .await?;
    objects(&client, &[of_class("preemptor", "high", "3")]).await?;
    assert_eq!(node_of(&client, "preemptor").await?, room);
    gone(&cluster, "other").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_never_preempt_wait() -> anyhow::Result<()> {
    let (cluster, _nodes) = cluster().await?;
    let client = cluster.client();
    let mut polite = class("polite", 5000);
    polite["preemptionPolicy"] = json!("Never");
    objects(
        &client,
        &[polite, of_class("a", "low", "3"), of_class("b", "low", "3")],
    )
    .await?;
    node_of(&client, "a").await?;
    node_of(&client, "b").await?;
    objects(&client, &[of_class("patient", "polite", "3")]).await?;
    assert_eq!(
        refusal(&client, "patient").await?,
        "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, preemption: \
         not eligible due to preemptionPolicy=Never."
    );
    Ok(())
}
