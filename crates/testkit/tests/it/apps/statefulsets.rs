//! StatefulSets.

use serde_json::{Value, json};

use super::rig::{Rig, image, name, number, ready, text, with_image, workload};

const SETS: &str = "apps/v1/statefulsets";

fn set(replicas: i32, more: Value) -> Value {
    let mut spec = json!({"replicas": replicas, "serviceName": "test"});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    workload("StatefulSet", "ss", "v1", spec)
}

/// A cluster with such a set, settled.
async fn running(replicas: i32, more: Value) -> anyhow::Result<Rig> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(SETS, set(replicas, more)).await?;
    rig.until(SETS, "ss", "to run all", settled(replicas.into()))
        .await?;
    Ok(rig)
}

/// Its status tells this number.
fn status(field: &str, n: i64) -> impl Fn(&Value) -> bool {
    move |s| number(&s["status"], &format!("/{field}")) == n
}

/// Runs this many pods of one revision.
fn settled(n: i64) -> impl Fn(&Value) -> bool {
    move |s| {
        let counts = [
            "replicas",
            "readyReplicas",
            "updatedReplicas",
            "availableReplicas",
        ];
        counts
            .iter()
            .all(|c| number(&s["status"], &format!("/{c}")) == n)
            && s["status"]["currentRevision"] == s["status"]["updateRevision"]
            && number(s, "/status/observedGeneration") == number(s, "/metadata/generation")
    }
}

async fn resize(rig: &Rig, replicas: i32) -> anyhow::Result<()> {
    rig.merge(SETS, "ss", json!({"spec": {"replicas": replicas}}))
        .await?;
    Ok(())
}

/// Lets everything that was going to happen happen.
async fn pause() {
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
}

/// The names of pods in the order in which they came or went.
fn order(seen: &[(String, Value)], what: &str) -> Vec<String> {
    let of = seen.iter().filter(|(kind, _)| kind == what);
    of.map(|(_, pod)| name(pod).to_owned()).collect()
}

/// Conformance: StatefulSet, Scaling
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_come_and_go_in_order_and_wait_for_the_sick() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let made = rig.create(SETS, set(1, json!({}))).await?;
    rig.until(SETS, "ss", "to run one", settled(1)).await?;
    rig.set_ready("ss-0", false).await?;
    rig.until(SETS, "ss", "to see it", status("readyReplicas", 0))
        .await?;
    resize(&rig, 3).await?;
    pause().await;
    assert_eq!(
        rig.list("v1/pods", "app=ss").await?.len(),
        1,
        "it did not wait"
    );
    rig.set_ready("ss-0", true).await?;
    rig.until(SETS, "ss", "to run three", settled(3)).await?;
    let seen = rig.happened("v1/pods", &made).await?;
    assert_eq!(order(&seen, "ADDED"), ["ss-0", "ss-1", "ss-2"]);

    let three = rig.get(SETS, "ss").await?;
    let all_are = async |ready: bool| {
        for pod in ["ss-0", "ss-1", "ss-2"] {
            // Once the first is well, the others may go.
            client::write::tolerate_missing(rig.set_ready(pod, ready).await)?;
        }
        anyhow::Ok(())
    };
    all_are(false).await?;
    rig.until(SETS, "ss", "to see it", status("readyReplicas", 0))
        .await?;
    resize(&rig, 0).await?;
    pause().await;
    assert_eq!(
        rig.list("v1/pods", "app=ss").await?.len(),
        3,
        "it did not wait"
    );
    all_are(true).await?;
    rig.until(SETS, "ss", "to run none", status("replicas", 0))
        .await?;
    let seen = rig.happened("v1/pods", &three).await?;
    assert_eq!(order(&seen, "DELETED"), ["ss-2", "ss-1", "ss-0"]);
    Ok(())
}

/// Conformance: StatefulSet, Burst Scaling
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_parallel_the_sick_hold_nobody_up() -> anyhow::Result<()> {
    let rig = running(1, json!({"podManagementPolicy": "Parallel"})).await?;
    rig.set_ready("ss-0", false).await?;
    rig.until(SETS, "ss", "to see it", status("readyReplicas", 0))
        .await?;
    resize(&rig, 3).await?;
    rig.until(SETS, "ss", "to have three", |s| {
        number(s, "/status/replicas") == 3 && number(s, "/status/readyReplicas") == 2
    })
    .await?;
    rig.set_ready("ss-0", true).await?;
    rig.until(SETS, "ss", "to run three", settled(3)).await?;
    rig.set_ready("ss-0", false).await?;
    rig.until(SETS, "ss", "to see it", status("readyReplicas", 2))
        .await?;
    resize(&rig, 0).await?;
    rig.until(SETS, "ss", "to run none", status("replicas", 0))
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_failed_is_made_again() -> anyhow::Result<()> {
    let rig = running(1, json!({})).await?;
    let first = rig.get("v1/pods", "ss-0").await?;
    rig.merge(
        "v1/pods",
        "ss-0/status",
        json!({"status": {"phase": "Failed", "reason": "Evicted"}}),
    )
    .await?;
    rig.until("v1/pods", "ss-0", "to be another", |p| {
        p["metadata"]["uid"] != first["metadata"]["uid"] && ready(p)
    })
    .await?;
    rig.until_all("v1/events", "", "to tell of it", |all| {
        all.iter().any(|e| {
            e["reason"] == "SuccessfulDelete"
                && e["message"] == "Delete Pod ss-0 in StatefulSet ss successful"
        })
    })
    .await?;
    Ok(())
}

/// Conformance: StatefulSet resource Replica scaling
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_scale_is_read_and_written() -> anyhow::Result<()> {
    let rig = running(1, json!({})).await?;
    rig.change_scale(SETS, "ss").await
}

/// Conformance: StatefulSet, list, patch and delete a collection of StatefulSets
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_goes_at_once() -> anyhow::Result<()> {
    let rig = running(1, json!({})).await?;
    let patch = json!({"metadata": {"labels": {"test-ss": "patched"}}, "spec": {"replicas": 2,
        "template": {"spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "v2"}]}}}});
    rig.strategic(SETS, "ss", patch).await?;
    let patched = rig
        .until(SETS, "ss", "to follow the patch", settled(2))
        .await?;
    assert_eq!(
        text(&patched, "/spec/template/spec/containers/0/image"),
        "v2"
    );
    assert_eq!(rig.list(SETS, "test-ss=patched").await?.len(), 1);
    rig.delete_all(SETS, "test-ss=patched").await?;
    rig.until_all(SETS, "app=ss", "to be gone", <[Value]>::is_empty)
        .await?;
    rig.until_all("v1/pods", "app=ss", "to be gone", <[Value]>::is_empty)
        .await?;
    Ok(())
}

async fn images(rig: &Rig) -> anyhow::Result<Vec<String>> {
    let mut pods = rig.list("v1/pods", "app=ss").await?;
    pods.sort_by_key(|p| name(p).to_owned());
    Ok(pods.iter().map(|p| image(p).to_owned()).collect())
}

/// Conformance: StatefulSet, Rolling Update
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_rolls_from_the_top_and_back() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(SETS, set(3, json!({}))).await?;
    let first = rig.until(SETS, "ss", "to run three", settled(3)).await?;
    rig.set_ready("ss-1", false).await?;
    rig.until(SETS, "ss", "to see it", status("readyReplicas", 2))
        .await?;
    rig.strategic(SETS, "ss", with_image("v2")).await?;
    let rolling = rig
        .until(SETS, "ss", "to have a new revision", |s| {
            s["status"]["updateRevision"] != first["status"]["updateRevision"]
        })
        .await?;
    assert_eq!(
        rolling["status"]["currentRevision"],
        first["status"]["currentRevision"]
    );
    pause().await;
    rig.set_ready("ss-1", true).await?;
    let rolled = rig.until(SETS, "ss", "to have rolled", settled(3)).await?;
    assert_eq!(images(&rig).await?, ["v2", "v2", "v2"]);
    let seen = rig.happened("v1/pods", &rolling).await?;
    assert_eq!(order(&seen, "DELETED"), ["ss-2", "ss-1", "ss-0"]);

    rig.strategic(SETS, "ss", with_image("v1")).await?;
    let back = rig
        .until(SETS, "ss", "to have rolled back", |s| {
            settled(3)(s) && s["status"]["updateRevision"] == first["status"]["updateRevision"]
        })
        .await?;
    assert_ne!(
        back["status"]["updateRevision"],
        rolled["status"]["updateRevision"]
    );
    assert_eq!(images(&rig).await?, ["v1", "v1", "v1"]);
    Ok(())
}

/// Conformance: StatefulSet, Rolling Update with Partition
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_holds_pods_back() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let at = |partition: i32| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}});
    rig.create(SETS, set(3, at(3))).await?;
    let first = rig.until(SETS, "ss", "to run three", settled(3)).await?;
    rig.strategic(SETS, "ss", with_image("v2")).await?;
    rig.until(SETS, "ss", "to have a new revision", |s| {
        s["status"]["updateRevision"] != first["status"]["updateRevision"]
            && number(s, "/status/observedGeneration") == number(s, "/metadata/generation")
    })
    .await?;
    pause().await;
    assert_eq!(
        images(&rig).await?,
        ["v1", "v1", "v1"],
        "the partition did not hold"
    );

    rig.merge(SETS, "ss", json!({"spec": at(2)})).await?;
    let canary = |s: &Value| {
        number(s, "/status/updatedReplicas") == 1
            && number(s, "/status/readyReplicas") == 3
            && number(s, "/status/currentReplicas") == 2
    };
    rig.until(SETS, "ss", "to have a canary", canary).await?;
    assert_eq!(images(&rig).await?, ["v1", "v1", "v2"]);
    // Pods that are lost come back as what they were.
    for pod in ["ss-0", "ss-2"] {
        let lost = rig.delete("v1/pods", pod, Value::Null).await?;
        rig.until("v1/pods", pod, "to come back", |p| {
            p["metadata"]["uid"] != lost["metadata"]["uid"] && ready(p)
        })
        .await?;
    }
    rig.until(SETS, "ss", "to be as before", canary).await?;
    assert_eq!(images(&rig).await?, ["v1", "v1", "v2"]);
    rig.merge(SETS, "ss", json!({"spec": at(0)})).await?;
    rig.until(SETS, "ss", "to have rolled", settled(3)).await?;
    assert_eq!(images(&rig).await?, ["v2", "v2", "v2"]);
    Ok(())
}

/// Conformance: StatefulSet, status sub-resource
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_status_is_a_resource_of_its_own() -> anyhow::Result<()> {
    let rig = running(1, json!({})).await?;
    rig.change_status(SETS, "ss").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ordinals_start_where_it_says() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let names = async || {
        let pods = rig.list("v1/pods", "app=ss").await?;
        let mut names: Vec<_> = pods.iter().map(|p| name(p).to_owned()).collect();
        names.sort();
        anyhow::Ok(names)
    };
    rig.create(SETS, set(2, json!({"ordinals": {"start": 5}})))
        .await?;
    rig.until(SETS, "ss", "to run two", settled(2)).await?;
    assert_eq!(names().await?, ["ss-5", "ss-6"]);
    let pod = rig.get("v1/pods", "ss-6").await?;
    assert_eq!(
        text(&pod, "/metadata/labels/apps.kubernetes.io~1pod-index"),
        "6"
    );
    assert_eq!(
        text(&pod, "/metadata/labels/statefulset.kubernetes.io~1pod-name"),
        "ss-6"
    );
    rig.merge(SETS, "ss", json!({"spec": {"ordinals": {"start": 6}}}))
        .await?;
    rig.until_all("v1/pods", "app=ss", "to have moved up", |all| {
        let mut names: Vec<_> = all.iter().map(name).collect();
        names.sort_unstable();
        names == ["ss-6", "ss-7"] && all.iter().all(ready)
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_pods_may_be_replaced_at_once() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let spec = json!({"podManagementPolicy": "Parallel", "updateStrategy": {"type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 2}}});
    rig.create(SETS, set(4, spec)).await?;
    rig.until(SETS, "ss", "to run four", settled(4)).await?;
    rig.strategic(SETS, "ss", with_image("broken")).await?;
    let stuck = |all: &[Value]| {
        let new = all
            .iter()
            .filter(|p| image(p) == "broken" && !p["metadata"]["deletionTimestamp"].is_string());
        let mut new: Vec<_> = new.map(name).collect();
        new.sort_unstable();
        new == ["ss-2", "ss-3"] && all.len() == 4
    };
    rig.until_all("v1/pods", "app=ss", "to be half new", stuck)
        .await?;
    pause().await;
    let pods = rig.list("v1/pods", "app=ss").await?;
    assert!(stuck(&pods), "more than two are gone");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_delete_nothing_rolls_by_itself() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let spec = json!({"updateStrategy": {"type": "OnDelete"}});
    rig.create(SETS, set(2, spec)).await?;
    rig.until(SETS, "ss", "to run two", settled(2)).await?;
    rig.strategic(SETS, "ss", with_image("v2")).await?;
    rig.until(SETS, "ss", "to know the new revision", |s| {
        s["status"]["currentRevision"] != s["status"]["updateRevision"]
    })
    .await?;
    pause().await;
    assert_eq!(images(&rig).await?, ["v1", "v1"]);
    let old = rig.delete("v1/pods", "ss-0", Value::Null).await?;
    rig.until("v1/pods", "ss-0", "to be new", |p| {
        p["metadata"]["uid"] != old["metadata"]["uid"] && image(p) == "v2"
    })
    .await?;
    Ok(())
}
