//! What goes with what, and what a namespace takes along.

use http::Method;
use serde_json::{Value, json};
use testkit::eventually;

use crate::apps::rig::{
    Rig, image, is_empty, leaving, name, number, ready, template, text, workload,
};

const CONTROLLERS: &str = "v1/replicationcontrollers";
const PODS: &str = "v1/pods";
const HOLD: &str = "example.com/hold";

fn controller(named: &str, replicas: i32) -> Value {
    json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": named},
        "spec": {"replicas": replicas, "selector": {"app": named}, "template": template(named, "i")}})
}

fn policy(policy: &str) -> Value {
    json!({"propagationPolicy": policy})
}

async fn with_pods(count: usize) -> anyhow::Result<(Rig, Vec<Value>)> {
    let rig = Rig::start(&["n1"]).await?;
    rig.create(CONTROLLERS, controller("web", i32::try_from(count)?))
        .await?;
    let pods = rig
        .until_all(PODS, "app=web", "to be ready", |all| {
            all.len() == count && all.iter().all(ready)
        })
        .await?;
    Ok((rig, pods))
}

/// Conformance: Garbage Collector, delete replication controller, propagation policy background
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_go_after_their_controller() -> anyhow::Result<()> {
    let (rig, _) = with_pods(2).await?;
    rig.delete(CONTROLLERS, "web", policy("Background")).await?;
    rig.until_all(PODS, "app=web", "to be gone", <[Value]>::is_empty)
        .await?;
    rig.until_gone(CONTROLLERS, "web").await
}

/// Conformance: Garbage Collector, delete replication controller, propagation policy orphan
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_stay() -> anyhow::Result<()> {
    let (rig, before) = with_pods(5).await?;
    rig.delete(CONTROLLERS, "web", policy("Orphan")).await?;
    rig.until_gone(CONTROLLERS, "web").await?;
    let pods = rig
        .until_all(PODS, "app=web", "to be free", |all| {
            all.iter()
                .all(|p| is_empty(&p["metadata"]["ownerReferences"]))
        })
        .await?;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let after = rig.list(PODS, "app=web").await?;
    assert_eq!((pods.len(), after.len()), (before.len(), before.len()));
    assert!(!after.iter().any(leaving));
    Ok(())
}

async fn with_set() -> anyhow::Result<Rig> {
    let rig = Rig::start(&["n1"]).await?;
    let web = workload("Deployment", "web", "v1", json!({"replicas": 2}));
    rig.create("apps/v1/deployments", web).await?;
    rig.until_all("apps/v1/replicasets", "app=web", "to be there", |all| {
        all.len() == 1 && number(&all[0], "/status/readyReplicas") == 2
    })
    .await?;
    Ok(rig)
}

/// Conformance: Garbage Collector, delete deployment, propagation policy background
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_set_goes_after_its_deployment() -> anyhow::Result<()> {
    let rig = with_set().await?;
    rig.delete("apps/v1/deployments", "web", policy("Background"))
        .await?;
    for resource in ["apps/v1/replicasets", PODS] {
        rig.until_all(resource, "app=web", "to be gone", <[Value]>::is_empty)
            .await?;
    }
    Ok(())
}

/// Conformance: Garbage Collector, delete deployment, propagation policy orphan
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphaned_replica_set_stays() -> anyhow::Result<()> {
    let rig = with_set().await?;
    rig.delete("apps/v1/deployments", "web", policy("Orphan"))
        .await?;
    rig.until_gone("apps/v1/deployments", "web").await?;
    let sets = rig.list("apps/v1/replicasets", "app=web").await?;
    assert_eq!(sets.len(), 1);
    assert!(
        is_empty(&sets[0]["metadata"]["ownerReferences"]),
        "{}",
        sets[0]
    );
    assert_eq!(rig.list(PODS, "app=web").await?.len(), 2);
    Ok(())
}

async fn hold(rig: &Rig, pod: &str, held: bool) -> anyhow::Result<()> {
    let finalizers = if held { json!([HOLD]) } else { json!([]) };
    let patch = json!({"metadata": {"finalizers": finalizers}});
    client::write::tolerate_missing(rig.merge(PODS, pod, patch).await)?;
    Ok(())
}

/// Conformance: Garbage Collector, delete replication controller, after owned pods
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_may_wait_for_its_pods() -> anyhow::Result<()> {
    let (rig, pods) = with_pods(3).await?;
    hold(&rig, name(&pods[0]), true).await?;
    rig.delete(CONTROLLERS, "web", policy("Foreground")).await?;
    rig.until_all(PODS, "app=web", "to be the one held", |all| all.len() == 1)
        .await?;
    let waits = rig.get(CONTROLLERS, "web").await?;
    assert!(leaving(&waits));
    assert_eq!(text(&waits, "/metadata/finalizers/0"), "foregroundDeletion");
    hold(&rig, name(&pods[0]), false).await?;
    rig.until_gone(CONTROLLERS, "web").await
}

/// Conformance: Garbage Collector, multiple owners
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_another_owner_stays() -> anyhow::Result<()> {
    let (rig, pods) = with_pods(4).await?;
    let other = rig.create(CONTROLLERS, controller("other", 0)).await?;
    let shared: Vec<&str> = pods[..2].iter().map(name).collect();
    for pod in &shared {
        let mut owners = pods[0]["metadata"]["ownerReferences"].clone();
        if let Some(owners) = owners.as_array_mut() {
            owners.push(
                json!({"apiVersion": "v1", "kind": "ReplicationController", "name": "other",
                "uid": other["metadata"]["uid"]}),
            );
        }
        rig.merge(PODS, pod, json!({"metadata": {"ownerReferences": owners}}))
            .await?;
    }
    rig.delete(CONTROLLERS, "web", policy("Foreground")).await?;
    rig.until_gone(CONTROLLERS, "web").await?;
    let left = rig
        .until_all(PODS, "app=web", "to be two", |all| all.len() == 2)
        .await?;
    for pod in &left {
        assert!(shared.contains(&name(pod)) && !leaving(pod));
        assert_eq!(text(pod, "/metadata/ownerReferences/0/name"), "other");
        assert_eq!(image(pod), "i");
    }
    Ok(())
}

/// Conformance: Garbage Collector, dependency cycle
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circle_does_not_wait_for_itself() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let mut made = Vec::new();
    for named in ["pod1", "pod2", "pod3"] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": named, "labels": {"app": "circle"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        made.push(rig.create(PODS, pod).await?);
    }
    for (owned, owner) in [(0, 2), (1, 0), (2, 1)] {
        let owner: &Value = &made[owner];
        let reference = json!({"apiVersion": "v1", "kind": "Pod", "name": name(owner),
            "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true});
        let patch = json!({"metadata": {"ownerReferences": [reference]}});
        rig.merge(PODS, name(&made[owned]), patch).await?;
    }
    rig.delete(PODS, "pod1", policy("Foreground")).await?;
    rig.until_all(PODS, "app=circle", "to be gone", <[Value]>::is_empty)
        .await?;
    Ok(())
}

async fn namespace(rig: &Rig, named: &str) -> anyhow::Result<Value> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": named}});
    Ok(rig
        .raw(Method::POST, "/api/v1/namespaces", namespace)
        .await?)
}

async fn in_it(rig: &Rig, plural: &str, object: Value) -> anyhow::Result<Value> {
    let path = format!("/api/v1/namespaces/new/{plural}");
    // Pods cannot be made before the namespace has its account.
    eventually("the object to be taken", || async {
        Ok(rig.raw(Method::POST, &path, object.clone()).await.ok())
    })
    .await
}

async fn removes(plural: &str, object: Value) -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    namespace(&rig, "new").await?;
    in_it(&rig, plural, object).await?;
    rig.delete("v1/namespaces", "new", Value::Null).await?;
    rig.until_gone("v1/namespaces", "new").await?;
    namespace(&rig, "new").await?;
    let path = format!("/api/v1/namespaces/new/{plural}");
    let left = rig.raw(Method::GET, &path, Value::Null).await?;
    assert!(is_empty(&left["items"]), "{left}");
    Ok(())
}

/// Conformance: namespace-deletion-removes-pods
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_go_with_their_namespace() -> anyhow::Result<()> {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    removes("pods", pod).await
}

/// Conformance: namespace-deletion-removes-services
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_go_with_their_namespace() -> anyhow::Result<()> {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}});
    removes("services", service).await
}

/// No controller watches events, and whoever makes the namespace anew must not find old ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_go_with_their_namespace() -> anyhow::Result<()> {
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "namespace": "new", "name": "p"},
        "reason": "Said", "message": "something", "type": "Normal"});
    removes("events", event).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_forgets_a_token_that_was_deleted() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "bot"}, "secrets": [{"name": "kept"}, {"name": "token"}]});
    rig.create("v1/serviceaccounts", account).await?;
    let secret = json!({"apiVersion": "v1", "kind": "Secret",
        "type": "kubernetes.io/service-account-token", "metadata": {"name": "token",
            "annotations": {"kubernetes.io/service-account.name": "bot"}}});
    rig.create("v1/secrets", secret).await?;
    rig.until("v1/secrets", "token", "to be filled", |s| {
        s["data"]["namespace"].is_string()
    })
    .await?;
    rig.delete("v1/secrets", "token", Value::Null).await?;
    rig.until("v1/serviceaccounts", "bot", "to forget it", |a| {
        a["secrets"] == json!([{"name": "kept"}])
    })
    .await?;
    Ok(())
}

/// Conformance: Ordered Namespace Deletion
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_go_before_all_else() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    namespace(&rig, "new").await?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "finalizers": [HOLD]},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    in_it(&rig, "pods", pod).await?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    in_it(&rig, "configmaps", map).await?;
    rig.delete("v1/namespaces", "new", Value::Null).await?;
    let says = |n: &Value, kind: &str, status: &str| {
        let all = n["status"]["conditions"].as_array();
        all.is_some_and(|all| {
            all.iter()
                .any(|c| c["type"] == kind && c["status"] == status)
        })
    };
    rig.until("v1/namespaces", "new", "to tell what is left", |n| {
        says(n, "NamespaceContentRemaining", "True")
            && says(n, "NamespaceFinalizersRemaining", "True")
    })
    .await?;
    let get = async |path: &str| {
        rig.raw(
            Method::GET,
            &format!("/api/v1/namespaces/new/{path}"),
            Value::Null,
        )
        .await
    };
    assert!(leaving(&get("pods/p").await?));
    assert!(!leaving(&get("configmaps/m").await?));
    let patch = json!({"metadata": {"finalizers": null}});
    let client = &rig.client;
    let request = http::Request::patch("/api/v1/namespaces/new/pods/p")
        .header("content-type", "application/merge-patch+json")
        .body(patch.to_string().into_bytes())?;
    let _: Value = client.request(request).await?;
    rig.until_gone("v1/namespaces", "new").await
}

/// Conformance: Namespace, apply finalizer to a namespace
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finalizer_of_ones_own_holds_a_namespace() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let mut held = namespace(&rig, "new").await?;
    let finalizers = |n: &Value| {
        n["spec"]["finalizers"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(finalizers(&held), ["kubernetes"]);
    held["spec"]["finalizers"] = json!(["kubernetes", "e2e.example.com/fakeFinalizer"]);
    let path = "/api/v1/namespaces/new/finalize";
    let held = rig.raw(Method::PUT, path, held).await?;
    assert_eq!(finalizers(&held).len(), 2);
    rig.delete("v1/namespaces", "new", Value::Null).await?;
    let mut held = rig
        .until("v1/namespaces", "new", "to wait", |n| {
            n["status"]["phase"] == "Terminating"
                && finalizers(n) == ["e2e.example.com/fakeFinalizer"]
        })
        .await?;
    held["spec"]["finalizers"] = json!([]);
    rig.raw(Method::PUT, path, held).await?;
    rig.until_gone("v1/namespaces", "new").await
}

/// Conformance: Namespace, apply changes to a namespace status
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_of_a_namespace_is_a_resource_of_its_own() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    namespace(&rig, "new").await?;
    let condition = |kind: &str| {
        json!({"metadata": {"labels": {"e2e": "testing"}}, "status": {"conditions": [{"type": kind,
            "status": "True", "reason": "E2E", "message": "Patched by an e2e test"}]}})
    };
    let patched = rig
        .merge("v1/namespaces", "new/status", condition("StatusPatch"))
        .await?;
    assert_eq!(text(&patched, "/status/conditions/0/type"), "StatusPatch");
    assert_eq!(text(&patched, "/metadata/labels/e2e"), "testing");
    let updated = client::write::retry_on_conflict(|| async {
        let mut namespace = rig.get("v1/namespaces", "new").await?;
        namespace["status"]["conditions"][0]["type"] = json!("StatusUpdate");
        rig.replace("v1/namespaces", "new/status", namespace).await
    })
    .await?;
    assert_eq!(text(&updated, "/status/conditions/0/type"), "StatusUpdate");
    Ok(())
}
