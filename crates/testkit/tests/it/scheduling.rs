//! Where pods go and why nowhere, over the API: predicates, spreading, affinity, gates, limits.

use std::collections::BTreeMap;

use client::{Client, write};
use k8s_openapi::api::core::v1::{LimitRange, Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use testkit::{Cluster, eventually, objects};

/// A pod that requests this much.
pub(crate) fn pod(name: &str, requests: Value, extra: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "pause",
            "resources": {"requests": requests.clone(), "limits": requests}}]},
    });
    for (pointer, value) in extra.as_object().into_iter().flatten() {
        let (parent, key) = pointer.rsplit_once('/').unwrap_or(("", pointer));
        if let Some(parent) = pod.pointer_mut(parent) {
            parent[key] = value.clone();
        }
    }
    pod
}

/// Waits until the pod has a node; answers which.
pub(crate) async fn node_of(client: &Client, name: &str) -> anyhow::Result<String> {
    let pods = write::namespaced::<Pod>(client, "default");
    eventually(&format!("{name} to be bound"), || async {
        let spec = pods.get(name).await?.spec.unwrap_or_default();
        Ok(spec.node_name)
    })
    .await
}

/// Waits until the pod is said to be unschedulable; answers why.
pub(crate) async fn refusal(client: &Client, name: &str) -> anyhow::Result<String> {
    let pods = write::namespaced::<Pod>(client, "default");
    eventually(&format!("{name} to be unschedulable"), || async {
        let status = pods.get(name).await?.status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let found = conditions
            .into_iter()
            .find(|c| c.type_ == "PodScheduled" && c.reason.as_deref() == Some("Unschedulable"));
        let message = found.and_then(|c| c.message);
        // Nodes are tainted until the controllers have seen that they are ready.
        Ok(message.filter(|m| !m.contains("untolerated taint")))
    })
    .await
}

async fn label(client: &Client, node: &str, labels: Value) -> anyhow::Result<()> {
    let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
    let nodes = write::cluster::<Node>(client);
    nodes.patch(node, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Conformance: Scheduler, resource limits
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_takes_only_what_it_has_room_for() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _nodes = [cluster.add_node("n1").await?, cluster.add_node("n2").await?];
    let client = cluster.client();
    let cpu = |amount: &str| json!({"cpu": amount});
    let fill = |name: &str| pod(name, cpu("2800m"), json!({}));
    objects(&client, &[fill("fill-1"), fill("fill-2")]).await?;
    let used = [
        node_of(&client, "fill-1").await?,
        node_of(&client, "fill-2").await?,
    ];
    assert_ne!(used[0], used[1]);
    objects(&client, &[pod("additional", cpu("2"), json!({}))]).await?;
    let why = refusal(&client, "additional").await?;
    assert!(
        why.starts_with("0/2 nodes are available: 2 Insufficient cpu."),
        "{why}"
    );
    let pods = write::namespaced::<Pod>(&client, "default");
    pods.delete("fill-1", &DeleteParams::default()).await?;
    assert_eq!(node_of(&client, "additional").await?, used[0]);
    Ok(())
}

/// Conformance: Scheduler, node selector matching
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_selector_finds_its_node() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _nodes = [cluster.add_node("n1").await?, cluster.add_node("n2").await?];
    let client = cluster.client();
    label(&client, "n2", json!({"example.com/e2e": "42"})).await?;
    let selector = json!({"/spec/nodeSelector": {"example.com/e2e": "42"}});
    objects(&client, &[pod("with-labels", json!({}), selector)]).await?;
    assert_eq!(node_of(&client, "with-labels").await?, "n2");
    Ok(())
}

/// Conformance: Scheduler, node selector not matching
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_selector_without_a_node_waits_for_one() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let selector = json!({"/spec/nodeSelector": {"label": "nonempty"}});
    objects(&client, &[pod("restricted", json!({}), selector)]).await?;
    let why = refusal(&client, "restricted").await?;
    assert_eq!(
        why,
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. no new \
         claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful \
         for scheduling."
    );
    label(&client, "n1", json!({"label": "nonempty"})).await?;
    assert_eq!(node_of(&client, "restricted").await?, "n1");
    Ok(())
}

/// Conformance: Scheduling, HostPort and Protocol match, HostIPs different but one is default HostIP (0.0.0.0)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_of_the_node_goes_to_one_pod() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let port = |ip: &str, protocol: &str| {
        json!({"/spec/containers/0/ports": [{"containerPort": 80, "hostPort": 54322,
            "hostIP": ip, "protocol": protocol}]})
    };
    let all = pod("all", json!({}), port("0.0.0.0", "TCP"));
    objects(&client, &[all]).await?;
    node_of(&client, "all").await?;
    let one = pod("one", json!({}), port("10.0.0.1", "TCP"));
    let udp = pod("udp", json!({}), port("10.0.0.1", "UDP"));
    objects(&client, &[one, udp]).await?;
    assert_eq!(node_of(&client, "udp").await?, "n1");
    let why = refusal(&client, "one").await?;
    let expected =
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.";
    assert!(why.starts_with(expected), "{why}");
    Ok(())
}

/// Conformance: LimitRange, resources
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_range_fills_in_and_limits() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let client = cluster.client();
    let amounts = |cpu: &str, memory: &str, disk: &str| json!({"cpu": cpu, "memory": memory, "ephemeral-storage": disk});
    let limits = json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "limits"},
        "spec": {"limits": [{"type": "Container",
            "min": amounts("50m", "100Mi", "100Gi"), "max": amounts("500m", "500Mi", "500Gi"),
            "default": amounts("500m", "500Mi", "500Gi"),
            "defaultRequest": amounts("100m", "200Mi", "200Gi")}]},
    });
    let plain = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "pause"}]}})
    };
    objects(&client, &[limits, plain("none")]).await?;
    let partial = pod(
        "partial",
        json!({}),
        json!({"/spec/containers/0/resources":
        {"limits": {"cpu": "300m"}, "requests": {"memory": "150Mi", "ephemeral-storage": "150Gi"}}}),
    );
    objects(&client, &[partial]).await?;
    let pods = write::namespaced::<Pod>(&client, "default");
    let of = |pod: Pod| {
        let spec = pod.spec.unwrap_or_default();
        let resources = spec.containers[0].resources.clone().unwrap_or_default();
        let text =
            |list: Option<BTreeMap<String, _>>| serde_json::to_value(list).unwrap_or_default();
        (text(resources.requests), text(resources.limits))
    };
    let (requests, limits) = of(pods.get("none").await?);
    assert_eq!(requests, amounts("100m", "200Mi", "200Gi"));
    assert_eq!(limits, amounts("500m", "500Mi", "500Gi"));
    let (requests, limits) = of(pods.get("partial").await?);
    assert_eq!(requests, amounts("300m", "150Mi", "150Gi"));
    assert_eq!(limits, amounts("300m", "500Mi", "500Gi"));
    for (name, cpu) in [("little", "10m"), ("much", "600m")] {
        let refused = objects(&client, &[pod(name, json!({"cpu": cpu}), json!({}))]).await;
        assert!(refused.is_err(), "{name} is out of range");
    }
    let ranges = write::namespaced::<LimitRange>(&client, "default");
    let raised = Patch::Merge(json!({"spec": {"limits": [{"type": "Container",
        "max": amounts("600m", "500Mi", "500Gi")}]}}));
    ranges
        .patch("limits", &PatchParams::default(), &raised)
        .await?;
    objects(&client, &[pod("much", json!({"cpu": "600m"}), json!({}))]).await?;
    ranges.delete("limits", &DeleteParams::default()).await?;
    let left = ranges.list(&ListParams::default()).await?.items;
    assert!(left.is_empty());
    objects(&client, &[pod("more", json!({"cpu": "700m"}), json!({}))]).await
}

/// Conformance: LimitRange, list, patch and delete a LimitRange by collection
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limit_ranges_are_listed_patched_and_deleted_together() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let client = cluster.client();
    let other = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}});
    let range = |namespace: &str| {
        json!({"apiVersion": "v1", "kind": "LimitRange",
            "metadata": {"name": "r", "namespace": namespace, "labels": {"e2e": "r"}},
            "spec": {"limits": [{"type": "Container", "max": {"cpu": "500m"}}]}})
    };
    objects(&client, &[other, range("default"), range("other")]).await?;
    let everywhere = kube::Api::<LimitRange>::all(client.clone());
    let mine = ListParams::default().labels("e2e=r");
    assert_eq!(everywhere.list(&mine).await?.items.len(), 2);
    let ranges = write::namespaced::<LimitRange>(&client, "default");
    let patch = Patch::Strategic(json!({"metadata": {"labels": {"r": "patched"}},
        "spec": {"limits": [{"type": "Container", "max": {"cpu": "600m"}}]}}));
    let patched = ranges.patch("r", &PatchParams::default(), &patch).await?;
    assert_eq!(patched.metadata.labels.unwrap_or_default()["r"], "patched");
    let chosen = ListParams::default().labels("r=patched");
    assert_eq!(ranges.list(&chosen).await?.items.len(), 1);
    ranges
        .delete_collection(&DeleteParams::default(), &chosen)
        .await?;
    eventually("one range to be left", || async {
        Ok((everywhere.list(&mine).await?.items.len() == 1).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gated_pods_wait_until_their_gates_are_gone() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let gates = json!({"/spec/schedulingGates": [{"name": "example.com/wait"}]});
    objects(&client, &[pod("gated", json!({}), gates)]).await?;
    objects(&client, &[pod("free", json!({}), json!({}))]).await?;
    node_of(&client, "free").await?;
    let pods = write::namespaced::<Pod>(&client, "default");
    let gated = pods.get("gated").await?;
    assert_eq!(gated.spec.unwrap_or_default().node_name, None);
    let open = Patch::Merge(json!({"spec": {"schedulingGates": null}}));
    pods.patch("gated", &PatchParams::default(), &open).await?;
    assert_eq!(node_of(&client, "gated").await?, "n1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_keep_apart_and_spread() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let mut nodes = Vec::new();
    for (name, zone) in [("n1", "a"), ("n2", "a"), ("n3", "b")] {
        nodes.push(cluster.add_node(name).await?);
        let labels = json!({"topology.kubernetes.io/zone": zone});
        label(&cluster.client(), name, labels).await?;
    }
    let client = cluster.client();
    let apart = |name: &str| {
        pod(
            name,
            json!({}),
            json!({"/metadata/labels": {"app": "db"}, "/spec/affinity":
            {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname",
                 "labelSelector": {"matchLabels": {"app": "db"}}}]}}}),
        )
    };
    objects(&client, &["a", "b", "c"].map(apart)).await?;
    let mut used = Vec::new();
    for name in ["a", "b", "c"] {
        used.push(node_of(&client, name).await?);
    }
    used.sort();
    assert_eq!(used, ["n1", "n2", "n3"]);
    objects(&client, &[apart("d")]).await?;
    let why = refusal(&client, "d").await?;
    let expected = "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules.";
    assert!(why.starts_with(expected), "{why}");
    nodes.push(cluster.add_node("n4").await?);
    assert_eq!(node_of(&client, "d").await?, "n4", "a new node wakes it");

    let spread = |name: &str| {
        pod(
            name,
            json!({}),
            json!({"/metadata/labels": {"app": "web"},
            "/spec/topologySpreadConstraints": [{"maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
                "topologyKey": "topology.kubernetes.io/zone",
                "labelSelector": {"matchLabels": {"app": "web"}}}]}),
        )
    };
    let names = ["w1", "w2", "w3", "w4"];
    objects(&client, &names.map(spread)).await?;
    let mut in_b = 0;
    for name in names {
        in_b += usize::from(node_of(&client, name).await? == "n3");
    }
    assert_eq!(in_b, 2, "two in each zone");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_of_the_users_own_runs_beside() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let mine = json!({"/spec/schedulerName": "mine"});
    objects(&client, &[pod("theirs", json!({}), mine)]).await?;
    objects(&client, &[pod("ours", json!({}), json!({}))]).await?;
    node_of(&client, "ours").await?;
    let pods = write::namespaced::<Pod>(&client, "default");
    let waiting = pods.get("theirs").await?;
    assert_eq!(waiting.spec.unwrap_or_default().node_name, None);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "theirs"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"}});
    let request = kube::core::Request::new("/api/v1/namespaces/default/pods").create_subresource(
        "binding",
        "theirs",
        &Default::default(),
        serde_json::to_vec(&binding)?,
    )?;
    client.request_text(request).await?;
    assert_eq!(node_of(&client, "theirs").await?, "n1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_waits_for_is_explained_over_the_api() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    objects(&client, &[pod("big", json!({"cpu": "5"}), json!({}))]).await?;
    refusal(&client, "big").await?;
    let configuration = scheduler::Configuration::default();
    let why = scheduler::why::why(client, &configuration, "default", "big").await?;
    assert_eq!(
        why.to_string(),
        "None of 1 nodes will do.\n\nn1\n  NodeResourcesFit: Insufficient cpu\n    \
         needs 5 cpu, 4 free: lower the request by 1\n"
    );
    Ok(())
}
