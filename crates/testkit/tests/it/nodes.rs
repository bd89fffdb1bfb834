//! Nodes that fall silent, and what becomes of their pods.

use serde_json::{Value, json};
use testkit::{Cluster, Parts, eventually};

use crate::apps::rig::{Hands, Rig, leaving, text};

const BOTH: Parts = Parts {
    controllers: true,
    scheduler: true,
};

fn taints(node: &Value) -> Vec<String> {
    let all = node["spec"]["taints"].as_array();
    let show = |t: &Value| {
        let key = text(t, "/key").rsplit('/').next().unwrap_or_default();
        format!("{key}:{}", text(t, "/effect"))
    };
    let mut all: Vec<_> = all.into_iter().flatten().map(show).collect();
    all.sort();
    all
}

/// A pod that is told to leave at once.
fn pod(node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}],
            "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": 0}]}})
}

/// How long news may take from the server to the controller's caches.
const TOLD: std::time::Duration = std::time::Duration::from_secs(1);

/// Has a node looked at.
async fn poke(rig: &Rig, node: &str, time: &str) -> anyhow::Result<()> {
    let patch = json!({"metadata": {"annotations": {"looked-at": time}}});
    rig.merge("v1/nodes", node, patch).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_leave_a_silent_node_while_others_are_well() -> anyhow::Result<()> {
    let hands = Hands::at("2030-01-01T10:00:00Z")?;
    let cluster = Cluster::at(BOTH, hands.clock()).await?;
    let well = cluster.add_node("n1").await?;
    let silent = cluster.add_node("n2").await?;
    let rig = Rig::on(cluster, &[]).await?;
    rig.create("v1/pods", pod("n2")).await?;
    rig.until("v1/pods", "p", "to run", |p| {
        p["status"]["phase"] == "Running"
    })
    .await?;
    silent.silence();
    for node in ["n1", "n2"] {
        rig.until("v1/nodes", node, "to be free", |n| taints(n).is_empty())
            .await?;
    }
    // The controller may learn of a sign of life long after it was given, and counts from there.
    let lost = eventually("n2 to be unreachable", || async {
        hands.advance(55);
        well.renew().await?;
        tokio::time::sleep(TOLD).await;
        poke(&rig, "n2", &hands.clock().now().to_string()).await?;
        tokio::time::sleep(TOLD).await;
        let node = rig.get("v1/nodes", "n2").await?;
        let lost = taints(&node) == ["unreachable:NoExecute", "unreachable:NoSchedule"];
        Ok(lost.then_some(node))
    })
    .await?;
    poke(&rig, "n1", "after the other").await?;
    let ready = lost["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten();
    let ready = ready
        .clone()
        .find(|c| c["type"] == "Ready")
        .unwrap_or(&Value::Null);
    assert_eq!(
        (text(ready, "/status"), text(ready, "/reason")),
        ("Unknown", "NodeStatusUnknown")
    );
    let evicted = rig
        .until("v1/pods", "p", "to be told to leave", leaving)
        .await?;
    let conditions = evicted["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten();
    assert!(
        conditions.clone().any(|c| {
            c["type"] == "DisruptionTarget" && c["reason"] == "DeletionByTaintManager"
        })
    );
    assert!(taints(&rig.get("v1/nodes", "n1").await?).is_empty());

    // The administrator declares it out of service: the pod is gone without its node's word.
    let taint = json!({"spec": {"taints": [
        {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}]}});
    rig.strategic("v1/nodes", "n2", taint).await?;
    rig.until_gone("v1/pods", "p").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_leaves_when_no_node_is_well() -> anyhow::Result<()> {
    let hands = Hands::at("2030-01-01T10:00:00Z")?;
    let cluster = Cluster::at(BOTH, hands.clock()).await?;
    let only = cluster.add_node("n1").await?;
    let rig = Rig::on(cluster, &[]).await?;
    rig.create("v1/pods", pod("n1")).await?;
    rig.until("v1/pods", "p", "to run", |p| {
        p["status"]["phase"] == "Running"
    })
    .await?;
    rig.until("v1/nodes", "n1", "to be free", |n| taints(n).is_empty())
        .await?;
    // The controller may learn of a sign of life long after it was given, and counts from there.
    eventually("n1 to be unreachable", || async {
        hands.advance(55);
        poke(&rig, "n1", &hands.clock().now().to_string()).await?;
        let node = rig.get("v1/nodes", "n1").await?;
        Ok((taints(&node) == ["unreachable:NoSchedule"]).then_some(()))
    })
    .await?;
    let pod = rig
        .until("v1/pods", "p", "to be marked", |p| {
            let all = p["status"]["conditions"].as_array();
            all.is_some_and(|all| {
                all.iter()
                    .any(|c| c["type"] == "Ready" && c["status"] == "False")
            })
        })
        .await?;
    assert!(!leaving(&pod));
    drop(only);
    Ok(())
}

const KEY: &str = "kubernetes.io/e2e-evict-taint-key";

/// A pod that stays this long on a node with the taint of the tests.
fn tolerant(named: &str, seconds: i32) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": named, "labels": {"app": "t"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}],
            "tolerations": [{"key": KEY, "operator": "Equal", "value": "evict",
                "effect": "NoExecute", "tolerationSeconds": seconds}]}})
}

async fn taint(rig: &Rig, there: bool) -> anyhow::Result<()> {
    let ours = json!([{"key": KEY, "value": "evict", "effect": "NoExecute"}]);
    let taints = if there { ours } else { json!([]) };
    rig.merge("v1/nodes", "n1", json!({"spec": {"taints": taints}}))
        .await?;
    Ok(())
}

async fn with_pods(pods: &[(&str, i32)]) -> anyhow::Result<Rig> {
    let rig = Rig::start(&["n1"]).await?;
    rig.until("v1/nodes", "n1", "to be free", |n| taints(n).is_empty())
        .await?;
    for (named, seconds) in pods {
        rig.create("v1/pods", tolerant(named, *seconds)).await?;
    }
    rig.until_all("v1/pods", "app=t", "to run", |all| {
        all.iter().all(|p| p["status"]["phase"] == "Running")
    })
    .await?;
    Ok(rig)
}

/// Conformance: Pod Eviction, Toleration limits
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_stay_as_long_as_they_tolerate() -> anyhow::Result<()> {
    let rig = with_pods(&[("brief", 1), ("longer", 2)]).await?;
    let start = std::time::Instant::now();
    taint(&rig, true).await?;
    rig.until_gone("v1/pods", "brief").await?;
    assert!(start.elapsed().as_secs() >= 1);
    rig.until_gone("v1/pods", "longer").await?;
    assert!(start.elapsed().as_secs() >= 2);
    Ok(())
}

/// Conformance: Taint, Pod Eviction on taint removal
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taint_that_goes_takes_its_eviction_back() -> anyhow::Result<()> {
    let rig = with_pods(&[("steady", 2)]).await?;
    taint(&rig, true).await?;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(!leaving(&rig.get("v1/pods", "steady").await?));
    taint(&rig, false).await?;
    rig.until_all("v1/events", "", "to tell of it", |all| {
        all.iter().any(|e| {
            e["reason"] == "TaintManagerEviction"
                && e["message"] == "Cancelling deletion of Pod default/steady"
        })
    })
    .await?;
    tokio::time::sleep(std::time::Duration::from_millis(2200)).await;
    assert!(!leaving(&rig.get("v1/pods", "steady").await?));
    Ok(())
}
