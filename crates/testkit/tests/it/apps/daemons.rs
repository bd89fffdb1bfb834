//! DaemonSets.

use serde_json::{Value, json};

use super::rig::{Rig, image, leaving, name, number, ready, text, with_image, workload};

const SETS: &str = "apps/v1/daemonsets";

fn set(more: Value) -> Value {
    workload("DaemonSet", "agent", "v1", more)
}

fn on_each_of(n: i64) -> impl Fn(&Value) -> bool {
    move |s| {
        let counts = [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "numberAvailable",
        ];
        counts
            .iter()
            .all(|c| number(&s["status"], &format!("/{c}")) == n)
            && number(s, "/status/observedGeneration") == number(s, "/metadata/generation")
            && number(s, "/status/updatedNumberScheduled") == n
    }
}

async fn nodes_of(rig: &Rig) -> anyhow::Result<Vec<String>> {
    let mut pods = rig.list("v1/pods", "app=agent").await?;
    pods.retain(|p| !leaving(p));
    let mut nodes: Vec<_> = pods
        .iter()
        .map(|p| text(p, "/spec/nodeName").to_owned())
        .collect();
    nodes.sort();
    Ok(nodes)
}

/// Conformance: DaemonSet-Creation
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_has_its_daemon_and_keeps_it() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1", "n2"]).await?;
    rig.create(SETS, set(json!({}))).await?;
    rig.until(SETS, "agent", "to be on both", on_each_of(2))
        .await?;
    assert_eq!(nodes_of(&rig).await?, ["n1", "n2"]);
    let pods = rig.list("v1/pods", "app=agent").await?;
    rig.delete("v1/pods", name(&pods[0]), Value::Null).await?;
    rig.until_all("v1/pods", "app=agent", "to be back", |all| {
        all.len() == 2 && all.iter().all(ready) && all.iter().all(|p| name(p) != name(&pods[0]))
    })
    .await?;
    Ok(())
}

/// Conformance: DaemonSet-NodeSelection
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_follow_the_labels_of_nodes() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1", "n2"]).await?;
    let mut chosen = set(json!({}));
    chosen["spec"]["template"]["spec"]["nodeSelector"] = json!({"color": "blue"});
    rig.create(SETS, chosen).await?;
    rig.until(SETS, "agent", "to be nowhere", |s| {
        number(s, "/status/observedGeneration") == 1
            && number(s, "/status/desiredNumberScheduled") == 0
    })
    .await?;
    assert!(nodes_of(&rig).await?.is_empty());
    let paint = |color: &'static str| {
        let patch = json!({"metadata": {"labels": {"color": color}}});
        rig.merge("v1/nodes", "n1", patch)
    };
    paint("blue").await?;
    rig.until(SETS, "agent", "to be on one", on_each_of(1))
        .await?;
    assert_eq!(nodes_of(&rig).await?, ["n1"]);
    paint("green").await?;
    rig.until_all("v1/pods", "app=agent", "to be gone", <[Value]>::is_empty)
        .await?;
    let patch = json!({"spec": {"template": {"spec": {"nodeSelector": {"color": "green"}}},
        "updateStrategy": {"type": "RollingUpdate"}}});
    rig.merge(SETS, "agent", patch).await?;
    rig.until(SETS, "agent", "to be on one again", on_each_of(1))
        .await?;
    assert_eq!(nodes_of(&rig).await?, ["n1"]);
    Ok(())
}

/// Conformance: DaemonSet-FailedPodCreation
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_daemon_is_replaced() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(SETS, set(json!({}))).await?;
    rig.until(SETS, "agent", "to be there", on_each_of(1))
        .await?;
    let pods = rig.list("v1/pods", "app=agent").await?;
    rig.end(name(&pods[0]), 1).await?;
    rig.until_gone("v1/pods", name(&pods[0])).await?;
    rig.until_all("v1/pods", "app=agent", "to be back", |all| {
        all.len() == 1 && ready(&all[0])
    })
    .await?;
    rig.until_all("v1/events", "", "to tell of it", |all| {
        all.iter().any(|e| e["reason"] == "FailedDaemonPod")
    })
    .await?;
    Ok(())
}

/// Conformance: DaemonSet-RollingUpdate
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_template_rolls_through_the_nodes() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1", "n2"]).await?;
    rig.create(SETS, set(json!({}))).await?;
    rig.until(SETS, "agent", "to be on both", on_each_of(2))
        .await?;
    rig.strategic(SETS, "agent", with_image("v2")).await?;
    rig.until(SETS, "agent", "to have rolled", on_each_of(2))
        .await?;
    let pods = rig
        .until_all("v1/pods", "app=agent", "to be of the new image", |all| {
            all.len() == 2 && all.iter().all(|p| image(p) == "v2" && ready(p))
        })
        .await?;
    let revisions = rig.list("apps/v1/controllerrevisions", "app=agent").await?;
    let newest = revisions
        .iter()
        .max_by_key(|r| number(r, "/revision"))
        .unwrap();
    assert_eq!((revisions.len(), number(newest, "/revision")), (2, 2));
    let hash = text(newest, "/metadata/labels/controller-revision-hash");
    assert!(!hash.is_empty());
    for pod in &pods {
        assert_eq!(text(pod, "/metadata/labels/controller-revision-hash"), hash);
    }
    Ok(())
}

/// Conformance: DaemonSet-Rollback
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_back_spares_what_was_not_rolled() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1", "n2", "n3"]).await?;
    rig.create(SETS, set(json!({}))).await?;
    rig.until(SETS, "agent", "to be on all", on_each_of(3))
        .await?;
    rig.strategic(SETS, "agent", with_image("broken")).await?;
    let pods = rig
        .until_all("v1/pods", "app=agent", "to be rolling", |all| {
            all.len() == 3 && all.iter().filter(|p| image(p) == "broken").count() == 1
        })
        .await?;
    rig.until(SETS, "agent", "to be stuck", |s| {
        number(s, "/status/numberUnavailable") == 1
    })
    .await?;
    rig.strategic(SETS, "agent", with_image("v1")).await?;
    let after = rig
        .until_all("v1/pods", "app=agent", "to be as before", |all| {
            all.len() == 3 && all.iter().all(|p| image(p) == "v1" && ready(p))
        })
        .await?;
    for old in pods.iter().filter(|p| image(p) == "v1") {
        assert!(
            after
                .iter()
                .any(|p| p["metadata"]["uid"] == old["metadata"]["uid"])
        );
    }
    Ok(())
}

/// Conformance: DaemonSet, list and delete a collection of DaemonSets
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_goes_at_once() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(SETS, set(json!({}))).await?;
    rig.until(SETS, "agent", "to be there", on_each_of(1))
        .await?;
    assert_eq!(rig.list(SETS, "app=agent").await?.len(), 1);
    rig.delete_all(SETS, "app=agent").await?;
    rig.until_all(SETS, "app=agent", "to be gone", <[Value]>::is_empty)
        .await?;
    rig.until_all("v1/pods", "app=agent", "to be gone", <[Value]>::is_empty)
        .await?;
    Ok(())
}

/// Conformance: DaemonSet, status sub-resource
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_status_is_a_resource_of_its_own() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(SETS, set(json!({}))).await?;
    rig.until(SETS, "agent", "to be there", on_each_of(1))
        .await?;
    rig.change_status(SETS, "agent").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_surge_the_new_daemon_comes_first() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let surge = json!({"updateStrategy": {"type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}});
    rig.create(SETS, set(surge)).await?;
    let before = rig
        .until(SETS, "agent", "to be there", on_each_of(1))
        .await?;
    rig.strategic(SETS, "agent", with_image("broken")).await?;
    rig.until_all("v1/pods", "app=agent", "to be two", |all| all.len() == 2)
        .await?;
    rig.strategic(SETS, "agent", with_image("v2")).await?;
    rig.until_all("v1/pods", "app=agent", "to be the new one", |all| {
        all.len() == 1 && image(&all[0]) == "v2" && ready(&all[0])
    })
    .await?;
    // At no time was there no daemon that works.
    let mut able: Vec<String> = vec!["the first".into()];
    for (kind, pod) in rig.happened("v1/pods", &before).await? {
        able.retain(|n| n != "the first" && n != name(&pod));
        if kind != "DELETED" && ready(&pod) || image(&pod) == "broken" {
            able.push(name(&pod).to_owned());
        }
    }
    assert!(!able.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_delete_nothing_rolls_by_itself() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(SETS, set(json!({"updateStrategy": {"type": "OnDelete"}})))
        .await?;
    rig.until(SETS, "agent", "to be there", on_each_of(1))
        .await?;
    rig.strategic(SETS, "agent", with_image("v2")).await?;
    rig.until(SETS, "agent", "to see the change", |s| {
        number(s, "/status/observedGeneration") == 2
            && number(s, "/status/updatedNumberScheduled") == 0
    })
    .await?;
    let pods = rig.list("v1/pods", "app=agent").await?;
    assert!(pods.len() == 1 && image(&pods[0]) == "v1");
    rig.delete("v1/pods", name(&pods[0]), Value::Null).await?;
    rig.until_all("v1/pods", "app=agent", "to be new", |all| {
        all.len() == 1 && image(&all[0]) == "v2" && ready(&all[0])
    })
    .await?;
    Ok(())
}
