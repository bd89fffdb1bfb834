//! ReplicaSets.

use serde_json::{Value, json};

use super::rig::{Rig, image, is_empty, name, number, ready, text, workload};

const SETS: &str = "apps/v1/replicasets";

fn available(n: i64) -> impl Fn(&Value) -> bool {
    move |s| {
        number(s, "/status/availableReplicas") == n
            && number(s, "/status/replicas") == n
            && number(s, "/status/observedGeneration") == number(s, "/metadata/generation")
    }
}

fn web(replicas: i64) -> Value {
    workload("ReplicaSet", "web", "v1", json!({"replicas": replicas}))
}

/// A cluster with a ReplicaSet of so many pods, all available.
async fn running(replicas: i64) -> anyhow::Result<Rig> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(SETS, web(replicas)).await?;
    rig.until(SETS, "web", "to have all", available(replicas))
        .await?;
    Ok(rig)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_runs_as_many_pods_as_it_wants() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(SETS, web(2)).await?;
    let pods = rig
        .until_all("v1/pods", "app=web", "to be ready", |all| {
            all.len() == 2 && all.iter().all(ready)
        })
        .await?;
    for pod in pods {
        assert_eq!(image(&pod), "v1");
        assert_eq!(text(&pod, "/metadata/ownerReferences/0/name"), "web");
    }
    Ok(())
}

/// Conformance: Replica Set, adopt matching pods and release non matching pods
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_adopts_and_releases() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "loose", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    rig.create("v1/pods", pod).await?;
    // A controller that learns of its owner before it learns of the pod makes one itself, and may keep that one.
    rig.until("v1/pods", "loose", "to run", |p| {
        text(p, "/status/phase") == "Running"
    })
    .await?;
    let set = rig.create(SETS, web(1)).await?;
    let uid = text(&set, "/metadata/uid").to_owned();
    let owned = |uid: String| move |p: &Value| text(p, "/metadata/ownerReferences/0/uid") == uid;
    rig.until("v1/pods", "loose", "to be adopted", owned(uid.clone()))
        .await?;
    rig.until(SETS, "web", "to have one", available(1)).await?;
    assert_eq!(rig.list("v1/pods", "app=web").await?.len(), 1);
    rig.merge(
        "v1/pods",
        "loose",
        json!({"metadata": {"labels": {"app": "other"}}}),
    )
    .await?;
    rig.until("v1/pods", "loose", "to be released", |p| {
        is_empty(&p["metadata"]["ownerReferences"])
    })
    .await?;
    let others = rig
        .until_all("v1/pods", "app=web", "to be replaced", |all| all.len() == 1)
        .await?;
    assert_ne!(name(&others[0]), "loose");
    Ok(())
}

/// Conformance: ReplicaSet, is created, Replaced and Patched
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_replaced_and_patched() -> anyhow::Result<()> {
    let rig = running(1).await?;
    rig.merge(SETS, "web/scale", json!({"spec": {"replicas": 2}}))
        .await?;
    rig.until(SETS, "web", "to have two", available(2)).await?;
    client::write::retry_on_conflict(|| async {
        let mut set = rig.get(SETS, "web").await?;
        set["metadata"]["labels"]["new"] = json!("yes");
        rig.replace(SETS, "web", set).await
    })
    .await?;
    let patch = json!({"metadata": {"labels": {"test-rs": "patched"}}, "spec": {"replicas": 3,
        "template": {"spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "pause"}]}}}});
    rig.strategic(SETS, "web", patch).await?;
    let set = rig
        .until(SETS, "web", "to have three", available(3))
        .await?;
    assert_eq!(
        text(&set, "/spec/template/spec/containers/0/image"),
        "pause"
    );
    assert_eq!(text(&set, "/metadata/labels/test-rs"), "patched");
    assert_eq!(text(&set, "/metadata/labels/new"), "yes");
    Ok(())
}

/// Conformance: ReplicaSet, completes the scaling of a ReplicaSet subresource
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_scale_is_read_and_written() -> anyhow::Result<()> {
    let rig = running(1).await?;
    rig.change_scale(SETS, "web").await
}

/// Conformance: ReplicaSet, list and delete a collection of ReplicaSets
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_goes_at_once() -> anyhow::Result<()> {
    let rig = running(3).await?;
    assert_eq!(rig.list(SETS, "app=web").await?.len(), 1);
    rig.delete_all(SETS, "app=web").await?;
    rig.until_all(SETS, "app=web", "to be gone", <[Value]>::is_empty)
        .await?;
    rig.until_all("v1/pods", "app=web", "to be gone", <[Value]>::is_empty)
        .await?;
    Ok(())
}

/// Conformance: ReplicaSet, status sub-resource
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_status_is_a_resource_of_its_own() -> anyhow::Result<()> {
    let rig = running(1).await?;
    rig.change_status(SETS, "web").await
}
