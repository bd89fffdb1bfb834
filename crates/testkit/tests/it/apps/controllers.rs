//! ReplicationControllers.

use serde_json::{Value, json};

use super::rig::{Rig, is_empty, name, number, ready, template, text};

const CONTROLLERS: &str = "v1/replicationcontrollers";

fn controller(app: &str, replicas: i32) -> Value {
    json!({"apiVersion": "v1", "kind": "ReplicationController",
        "metadata": {"name": app, "labels": {"app": app}},
        "spec": {"replicas": replicas, "selector": {"app": app}, "template": template(app, "i")}})
}

fn runs(n: i64) -> impl Fn(&Value) -> bool {
    move |c| number(c, "/status/availableReplicas") == n && number(c, "/status/replicas") == n
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_runs_as_many_pods_as_it_wants() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(CONTROLLERS, controller("web", 2)).await?;
    rig.until_all("v1/pods", "app=web", "to be ready", |all| {
        all.len() == 2 && all.iter().all(ready)
    })
    .await?;
    Ok(())
}

/// Conformance: Replication Controller, adopt matching pods
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_adopts() -> anyhow::Result<()> {
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
    let made = rig.create(CONTROLLERS, controller("web", 1)).await?;
    let pod = rig
        .until("v1/pods", "loose", "to be adopted", |p| {
            text(p, "/metadata/ownerReferences/0/uid") == text(&made, "/metadata/uid")
        })
        .await?;
    assert_eq!(pod["metadata"]["ownerReferences"][0]["controller"], true);
    rig.until(CONTROLLERS, "web", "to have one", runs(1))
        .await?;
    Ok(())
}

/// Conformance: Replication Controller, release pods
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_releases() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(CONTROLLERS, controller("web", 1)).await?;
    rig.until(CONTROLLERS, "web", "to have one", runs(1))
        .await?;
    let pod = name(&rig.list("v1/pods", "app=web").await?[0]).to_owned();
    rig.merge(
        "v1/pods",
        &pod,
        json!({"metadata": {"labels": {"app": "other"}}}),
    )
    .await?;
    rig.until("v1/pods", &pod, "to be released", |p| {
        is_empty(&p["metadata"]["ownerReferences"])
    })
    .await?;
    rig.until_all("v1/pods", "app=web", "to be replaced", |all| all.len() == 1)
        .await?;
    Ok(())
}

/// Conformance: Replication Controller, get and update ReplicationController scale
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_scale_is_read_and_written() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(CONTROLLERS, controller("web", 1)).await?;
    rig.until(CONTROLLERS, "web", "to have one", runs(1))
        .await?;
    rig.change_scale(CONTROLLERS, "web").await
}

/// Conformance: Replication Controller, check for issues like exceeding allocated quota
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_quota_forbids_is_a_condition() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
        "spec": {"hard": {"pods": "2"}}});
    rig.create("v1/resourcequotas", quota).await?;
    rig.until("v1/resourcequotas", "q", "to count", |q| {
        q["status"]["hard"]["pods"] == "2"
    })
    .await?;
    rig.create(CONTROLLERS, controller("web", 3)).await?;
    let failed = |c: &Value| {
        let all = c["status"]["conditions"].as_array();
        all.is_some_and(|all| all.iter().any(|c| c["type"] == "ReplicaFailure"))
    };
    let told = rig
        .until(CONTROLLERS, "web", "to say that it failed", failed)
        .await?;
    let condition = &told["status"]["conditions"][0];
    assert_eq!(
        (text(condition, "/status"), text(condition, "/reason")),
        ("True", "FailedCreate")
    );
    assert!(
        text(condition, "/message").contains("exceeded quota: q"),
        "{condition}"
    );
    rig.merge(CONTROLLERS, "web", json!({"spec": {"replicas": 2}}))
        .await?;
    rig.until(CONTROLLERS, "web", "to be content", |c| {
        !failed(c) && runs(2)(c)
    })
    .await?;
    Ok(())
}

/// Conformance: Replication Controller, lifecycle
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_lives() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let made = rig.create(CONTROLLERS, controller("web", 1)).await?;
    rig.until(CONTROLLERS, "web", "to have one", runs(1))
        .await?;
    let patch = json!({"metadata": {"labels": {"test-rc": "patched"}}, "spec": {"replicas": 2}});
    rig.strategic(CONTROLLERS, "web", patch).await?;
    rig.until(CONTROLLERS, "web", "to have two", runs(2))
        .await?;
    let patched = rig
        .strategic(
            CONTROLLERS,
            "web/status",
            json!({"status": {"readyReplicas": 0, "availableReplicas": 0}}),
        )
        .await?;
    assert_eq!(number(&patched, "/status/readyReplicas"), 0);
    rig.until(CONTROLLERS, "web", "to count again", runs(2))
        .await?;
    let status = rig.get(CONTROLLERS, "web/status").await?;
    assert_eq!(number(&status, "/status/replicas"), 2);
    rig.strategic(CONTROLLERS, "web/scale", json!({"spec": {"replicas": 1}}))
        .await?;
    rig.until(CONTROLLERS, "web", "to have one again", runs(1))
        .await?;
    let mut update = rig.get(CONTROLLERS, "web").await?;
    update["metadata"]["resourceVersion"] = Value::Null;
    update["metadata"]["labels"]["test-rc"] = json!("updated");
    update["spec"]["replicas"] = json!(3);
    rig.replace(CONTROLLERS, "web", update).await?;
    rig.until(CONTROLLERS, "web", "to have three", runs(3))
        .await?;
    assert_eq!(rig.list(CONTROLLERS, "test-rc=updated").await?.len(), 1);
    rig.delete_all(CONTROLLERS, "test-rc=updated").await?;
    rig.until_gone(CONTROLLERS, "web").await?;
    let seen = rig.happened(CONTROLLERS, &made).await?;
    assert!(seen.iter().any(|(kind, _)| kind == "DELETED"));
    rig.until_all("v1/pods", "app=web", "to be gone", <[Value]>::is_empty)
        .await?;
    Ok(())
}
