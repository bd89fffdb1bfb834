//! PodDisruptionBudgets.

use http::Method;
use serde_json::{Value, json};

use super::rig::{Rig, name, number, text, workload};

const BUDGETS: &str = "policy/v1/poddisruptionbudgets";

fn budget(name: &str, least: i32) -> Value {
    json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "labels": {"budget": "yes"}},
        "spec": {"minAvailable": least, "selector": {"matchLabels": {"app": "web"}}}})
}

fn processed(b: &Value) -> bool {
    number(b, "/status/observedGeneration") == number(b, "/metadata/generation")
}

async fn with_pods(count: i32) -> anyhow::Result<Rig> {
    let rig = Rig::start(&["n1"]).await?;
    let set = workload("ReplicaSet", "web", "v1", json!({"replicas": count}));
    rig.create("apps/v1/replicasets", set).await?;
    rig.until("apps/v1/replicasets", "web", "to be ready", |s| {
        number(s, "/status/readyReplicas") == i64::from(count)
    })
    .await?;
    Ok(rig)
}

async fn evict(rig: &Rig, pod: &str) -> kube::Result<Value> {
    let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
    let path = format!("/api/v1/namespaces/default/pods/{pod}/eviction");
    rig.raw(Method::POST, &path, body).await
}

/// Conformance: PodDisruptionBudget: list and delete collection
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_goes_at_once() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    for name in ["one", "two", "three"] {
        rig.create(BUDGETS, budget(name, 1)).await?;
    }
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}});
    rig.create("v1/namespaces", namespace).await?;
    let path = "/apis/policy/v1/namespaces/other/poddisruptionbudgets";
    rig.raw(Method::POST, path, budget("four", 1)).await?;
    let count = |all: &Value| all["items"].as_array().map_or(0, Vec::len);
    let all = "/apis/policy/v1/poddisruptionbudgets?labelSelector=budget%3Dyes";
    assert_eq!(count(&rig.raw(Method::GET, all, Value::Null).await?), 4);
    assert_eq!(rig.list(BUDGETS, "budget=yes").await?.len(), 3);
    rig.delete_all(BUDGETS, "budget=yes").await?;
    rig.until_all(BUDGETS, "", "to be gone", <[Value]>::is_empty)
        .await?;
    assert_eq!(count(&rig.raw(Method::GET, all, Value::Null).await?), 1);
    Ok(())
}

/// Conformance: PodDisruptionBudget: create, update, patch, and delete object
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_lives() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    rig.create(BUDGETS, budget("b", 1)).await?;
    rig.until(BUDGETS, "b", "to be processed", processed)
        .await?;
    client::write::retry_on_conflict(|| async {
        let mut b = rig.get(BUDGETS, "b").await?;
        b["spec"]["minAvailable"] = json!(2);
        rig.replace(BUDGETS, "b", b).await
    })
    .await?;
    rig.until(BUDGETS, "b", "to follow the update", |b| {
        processed(b) && number(b, "/spec/minAvailable") == 2
    })
    .await?;
    let patch = json!({"spec": {"minAvailable": "30%"}});
    rig.merge(BUDGETS, "b", patch).await?;
    rig.until(BUDGETS, "b", "to follow the patch", |b| {
        processed(b) && text(b, "/spec/minAvailable") == "30%"
    })
    .await?;
    rig.delete(BUDGETS, "b", Value::Null).await?;
    rig.until_gone(BUDGETS, "b").await
}

/// Conformance: PodDisruptionBudget: Status updates
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_status_tells_what_can_be_spared() -> anyhow::Result<()> {
    let rig = with_pods(3).await?;
    rig.create(BUDGETS, budget("b", 1)).await?;
    let b = rig
        .until(BUDGETS, "b", "to count", |b| {
            number(b, "/status/disruptionsAllowed") == 2
        })
        .await?;
    let counts = ["currentHealthy", "desiredHealthy", "expectedPods"];
    let counts = counts.map(|c| number(&b["status"], &format!("/{c}")));
    assert_eq!(counts, [3, 1, 3]);
    let condition = &b["status"]["conditions"][0];
    assert_eq!(
        [
            text(condition, "/type"),
            text(condition, "/status"),
            text(condition, "/reason")
        ],
        ["DisruptionAllowed", "True", "SufficientPods"]
    );
    Ok(())
}

/// Conformance: PodDisruptionBudget: update and patch status
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_status_is_a_resource_of_its_own() -> anyhow::Result<()> {
    let rig = with_pods(1).await?;
    rig.create(BUDGETS, budget("b", 1)).await?;
    rig.until(BUDGETS, "b", "to count", |b| {
        number(b, "/status/currentHealthy") == 1
    })
    .await?;
    let disrupted = |b: &Value| {
        b["status"]["disruptedPods"]
            .as_object()
            .map_or(0, serde_json::Map::len)
    };
    let updated = client::write::retry_on_conflict(|| async {
        let mut b = rig.get(BUDGETS, "b").await?;
        let now = b["metadata"]["creationTimestamp"].clone();
        b["status"]["disruptedPods"] = json!({"gone": now});
        rig.replace(BUDGETS, "b/status", b).await
    })
    .await?;
    assert_eq!(disrupted(&updated), 1);
    let patch = json!({"status": {"disruptedPods": {"gone": null}}});
    let patched = rig.merge(BUDGETS, "b/status", patch).await?;
    assert_eq!(disrupted(&patched), 0);
    Ok(())
}

/// Conformance: PodDisruptionBudget: block an eviction until the PDB is updated to allow it
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_blocks_an_eviction_until_it_is_relaxed() -> anyhow::Result<()> {
    let rig = with_pods(3).await?;
    rig.create(BUDGETS, budget("b", 3)).await?;
    rig.until(BUDGETS, "b", "to count", |b| {
        number(b, "/status/currentHealthy") == 3
    })
    .await?;
    let pods = rig.list("v1/pods", "app=web").await?;
    let pod = name(&pods[0]).to_owned();
    let Err(kube::Error::Api(refused)) = evict(&rig, &pod).await else {
        anyhow::bail!("the eviction was not refused");
    };
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (429, "TooManyRequests")
    );
    assert_eq!(
        refused.message,
        "Cannot evict pod as it would violate the pod's disruption budget."
    );
    rig.merge(BUDGETS, "b", json!({"spec": {"minAvailable": 2}}))
        .await?;
    rig.until(BUDGETS, "b", "to allow one", |b| {
        processed(b) && number(b, "/status/disruptionsAllowed") == 1
    })
    .await?;
    evict(&rig, &pod).await?;
    rig.until_gone("v1/pods", &pod).await?;
    rig.delete(BUDGETS, "b", Value::Null).await?;
    let pods = rig.list("v1/pods", "app=web").await?;
    assert!(pods.iter().all(|p| name(p) != pod));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sick_pods_go_as_the_policy_says() -> anyhow::Result<()> {
    let rig = with_pods(2).await?;
    let mut strict = budget("b", 2);
    strict["spec"]["unhealthyPodEvictionPolicy"] = json!("IfHealthyBudget");
    rig.create(BUDGETS, strict).await?;
    let pods = rig.list("v1/pods", "app=web").await?;
    let sick = name(&pods[0]).to_owned();
    rig.set_ready(&sick, false).await?;
    rig.until(BUDGETS, "b", "to see it", |b| {
        number(b, "/status/currentHealthy") == 1
    })
    .await?;
    assert!(
        evict(&rig, &sick).await.is_err(),
        "too few are healthy to spare even a sick one"
    );
    let patch = json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}});
    rig.merge(BUDGETS, "b", patch).await?;
    evict(&rig, &sick).await?;
    rig.until_gone("v1/pods", &sick).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_two_budgets_cannot_be_evicted_and_is_told_so() -> anyhow::Result<()> {
    let rig = with_pods(1).await?;
    for name in ["b", "a"] {
        rig.create(BUDGETS, budget(name, 0)).await?;
    }
    let pods = rig.list("v1/pods", "app=web").await?;
    let pod = name(&pods[0]);
    let Err(kube::Error::Api(refused)) = evict(&rig, pod).await else {
        anyhow::bail!("the eviction was not refused");
    };
    let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
    assert_eq!((refused.code, refused.message.as_str()), (500, why));
    rig.set_ready(pod, false).await?;
    let expected = format!(
        "Pod \"default\"/\"{pod}\" matches multiple PodDisruptionBudgets.  Chose \"a\" arbitrarily."
    );
    rig.until_all("v1/events", "", "to tell of it", |all| {
        let told = |e: &Value| {
            e["reason"] == "MultiplePodDisruptionBudgets" && text(e, "/message") == expected
        };
        all.iter().any(told)
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_a_scale_is_asked_for_it() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}}}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "fleets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "fleets", "singular": "fleet", "kind": "Fleet", "listKind": "FleetList"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
                    "statusReplicasPath": ".status.replicas"}},
                "schema": {"openAPIV3Schema": schema}}]}});
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    rig.raw(Method::POST, path, definition).await?;
    let fleet = json!({"apiVersion": "example.com/v1", "kind": "Fleet", "metadata": {"name": "f"},
        "spec": {"replicas": 4}});
    let made = testkit::eventually("the fleet to be taken", || async {
        Ok(rig
            .create("example.com/v1/fleets", fleet.clone())
            .await
            .ok())
    })
    .await?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "labels": {"app": "web"}, "ownerReferences": [{
            "apiVersion": "example.com/v1", "kind": "Fleet", "name": "f",
            "uid": made["metadata"]["uid"], "controller": true}]},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    rig.create("v1/pods", pod).await?;
    let mut spare = budget("b", 0);
    spare["spec"] = json!({"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}});
    rig.create(BUDGETS, spare).await?;
    rig.until(BUDGETS, "b", "to know how many there should be", |b| {
        number(b, "/status/expectedPods") == 4 && number(b, "/status/desiredHealthy") == 3
    })
    .await?;
    // Whoever has no owner cannot be told about.
    let loose = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "loose", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    rig.create("v1/pods", loose).await?;
    rig.until_all("v1/events", "", "to tell of it", |all| {
        all.iter().any(|e| e["reason"] == "UnmanagedPods")
    })
    .await?;
    Ok(())
}
