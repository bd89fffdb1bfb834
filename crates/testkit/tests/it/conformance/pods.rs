//! Pods and nodes as the API holds them.

use serde_json::{Value, json};

use super::life::Life;
use super::world::*;

fn pods() -> String {
    at("v1", "pods")
}

fn pod(called: &str, labels: &Value) -> Value {
    let mut pod = template(labels);
    pod["metadata"]["name"] = called.into();
    pod
}

/// Conformance: Pods, delete a collection
#[tokio::test]
async fn pods_are_deleted_as_a_collection() {
    let world = World::api().await;
    for number in 1..=3 {
        world
            .create(
                &pods(),
                pod(&format!("test-pod-{number}"), &json!({"type": "Testing"})),
            )
            .await;
    }
    let testing = format!("{}?labelSelector=type%3DTesting", pods());
    assert_eq!(world.items(&testing).await.len(), 3);
    world
        .delete_with(&testing, json!({"gracePeriodSeconds": 0}))
        .await
        .ok(200);
    world.until_count(&testing, 0).await;
}

/// Conformance: Pods, QOS
#[tokio::test]
async fn pods_have_a_class_of_service() {
    let world = World::api().await;
    let amounts = json!({"cpu": "100m", "memory": "100Mi"});
    for (called, resources, class) in [
        (
            "a",
            json!({"requests": amounts, "limits": amounts}),
            "Guaranteed",
        ),
        ("b", json!({"requests": amounts}), "Burstable"),
        ("c", json!({}), "BestEffort"),
    ] {
        let mut pod = pod(called, &json!({}));
        pod["spec"]["containers"][0]["resources"] = resources;
        world.create(&pods(), pod).await;
        assert_eq!(
            world.object(&format!("{}/{called}", pods())).await["status"]["qosClass"],
            class
        );
    }
}

/// Conformance: Pods, patching status
#[tokio::test]
async fn statuses_of_pods_are_patched() {
    let world = World::api().await;
    world.create(&pods(), pod("p", &json!({}))).await;
    let condition = json!({"type": "Ready", "status": "True", "reason": "E2E"});
    let patch = json!({"status": {"conditions": [condition], "message": "Patched by e2e"}});
    let patched = world
        .patch(&format!("{}/p/status", pods()), STRATEGIC, &patch)
        .await
        .ok(200);
    assert_eq!(patched["status"]["message"], "Patched by e2e");
    assert_eq!(patched["status"]["conditions"][0]["reason"], "E2E");
}

/// Conformance: Pods, completes the lifecycle of a Pod and the PodStatus
#[tokio::test]
async fn pods_and_their_statuses_live() {
    let world = World::whole(&["n1"]).await;
    let labels = json!({"test-pod-static": "true"});
    let selected = format!("{}?labelSelector=test-pod-static%3Dtrue", pods());
    let mut events = world.watch(&format!("{selected}&watch=true")).await;
    world.create(&pods(), pod("p", &labels)).await;
    events.expect("ADDED").await;
    events
        .find("MODIFIED", |p| p["status"]["phase"] == "Running")
        .await;
    let one = format!("{}/p", pods());
    let patch = json!({"metadata": {"labels": {"test-pod": "patched"}}, "spec": {"terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "registry.k8s.io/pause:3.9"}]}});
    world.patch(&one, STRATEGIC, &patch).await.refused(422);
    let patch = json!({"metadata": {"labels": {"test-pod": "patched"}}, "spec": {"containers": [{"name": "c", "image": "registry.k8s.io/pause:3.9"}]}});
    world.patch(&one, STRATEGIC, &patch).await.ok(200);
    let changed = events
        .find("MODIFIED", |p| {
            p["metadata"]["labels"]["test-pod"] == "patched"
        })
        .await;
    assert_eq!(
        changed["spec"]["containers"][0]["image"],
        "registry.k8s.io/pause:3.9"
    );
    let unready = |p: &mut Value| {
        for condition in p["status"]["conditions"].as_array_mut().unwrap() {
            if condition["type"] == "Ready" {
                condition["status"] = "False".into();
            }
        }
    };
    let updated = world.update(&format!("{one}/status"), unready).await;
    let conditions = updated["status"]["conditions"].as_array().unwrap();
    assert!(
        conditions
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "False")
    );
    world.delete(&selected).await.ok(200);
    events.find("DELETED", |p| name(p) == "p").await;
}

/// Conformance: Pods, lifecycle
#[tokio::test]
async fn pods_come_and_go_gracefully() {
    let world = World::whole(&["n1"]).await;
    let selected = format!("{}?labelSelector=time%3Dnow", pods());
    let list = world.object(&selected).await;
    let mut events = world
        .watch(&format!(
            "{selected}&watch=true&resourceVersion={}",
            version(&list)
        ))
        .await;
    world
        .create(&pods(), pod("p", &json!({"name": "foo", "time": "now"})))
        .await;
    assert_eq!(world.items(&selected).await.len(), 1);
    events.expect("ADDED").await;
    events
        .find("MODIFIED", |p| p["status"]["phase"] == "Running")
        .await;
    world
        .delete_with(&format!("{}/p", pods()), json!({"gracePeriodSeconds": 30}))
        .await
        .ok(200);
    let last = events.find("DELETED", |_| true).await;
    assert!(last["metadata"]["deletionTimestamp"].is_string());
    assert!(last["spec"]["terminationGracePeriodSeconds"].as_i64() > Some(0));
    assert!(world.items(&selected).await.is_empty());
}

/// Conformance: Pods, update
#[tokio::test]
async fn pods_are_updated() {
    let world = World::whole(&["n1"]).await;
    world
        .create(&pods(), pod("p", &json!({"time": "before"})))
        .await;
    let one = format!("{}/p", pods());
    world
        .until(&one, |p| p["status"]["phase"] == "Running")
        .await;
    world
        .update(&one, |p| p["metadata"]["labels"]["time"] = "after".into())
        .await;
    assert_eq!(
        world
            .items(&format!("{}?labelSelector=time%3Dafter", pods()))
            .await
            .len(),
        1
    );
}

/// Conformance: Pods Generation, updates
#[tokio::test]
async fn generations_of_pods_count_changes_of_the_spec() {
    let world = World::api().await;
    let made = world.create(&pods(), pod("p", &json!({}))).await;
    assert_eq!(made["metadata"]["generation"], 1);
    let one = format!("{}/p", pods());
    for (change, generation) in [
        (json!({"metadata": {"annotations": {"a": "b"}}}), 1),
        (json!({"metadata": {"labels": {"a": "b"}}}), 1),
        (json!({"spec": {"activeDeadlineSeconds": 1000}}), 2),
        (
            json!({"spec": {"containers": [{"name": "c", "image": "registry.k8s.io/pause:3.9"}]}}),
            3,
        ),
        (json!({"spec": {"activeDeadlineSeconds": 1000}}), 3),
        (json!({"metadata": {"finalizers": ["example.com/f"]}}), 3),
    ] {
        let patched = world.patch(&one, STRATEGIC, &change).await.ok(200);
        assert_eq!(patched["metadata"]["generation"], generation, "{change}");
    }
    let toleration =
        json!({"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60});
    let add = json!([{"op": "add", "path": "/spec/tolerations/-", "value": toleration}]);
    let patched = world.patch(&one, JSON, &add).await.ok(200);
    assert_eq!(patched["metadata"]["generation"], 4);
    let debugger =
        json!({"spec": {"ephemeralContainers": [{"name": "debugger", "image": "busybox"}]}});
    let path = format!("{one}/ephemeralcontainers");
    let patched = world.patch(&path, STRATEGIC, &debugger).await.ok(200);
    assert_eq!(patched["metadata"]["generation"], 5);
}

/// Conformance: Pods Generation, 500 updates
#[tokio::test]
async fn five_hundred_updates_are_five_hundred_generations() {
    let world = World::api().await;
    world.create(&pods(), pod("p", &json!({}))).await;
    let one = format!("{}/p", pods());
    for number in 0..499 {
        let image = format!("registry.k8s.io/pause:{number}");
        let patch = json!([{"op": "replace", "path": "/spec/containers/0/image", "value": image}]);
        world.patch(&one, JSON, &patch).await.ok(200);
    }
    assert_eq!(world.object(&one).await["metadata"]["generation"], 500);
}

/// Conformance: Pods Generation, graceful delete
#[tokio::test]
async fn a_graceful_delete_is_a_generation() {
    let world = World::api().await;
    let mut pod = pod("p", &json!({}));
    pod["spec"]["nodeName"] = "nowhere".into();
    world.create(&pods(), pod).await;
    let deleted = world
        .delete_with(&format!("{}/p", pods()), json!({"gracePeriodSeconds": 30}))
        .await
        .ok(200);
    assert_eq!(deleted["metadata"]["generation"], 2);
    assert!(deleted["metadata"]["deletionTimestamp"].is_string());
}

/// Conformance (partly): Ephemeral Container, update ephemeral containers
#[tokio::test]
async fn ephemeral_containers_are_added_and_stay() {
    let world = World::api().await;
    world.create(&pods(), pod("p", &json!({}))).await;
    let path = format!("{}/p/ephemeralcontainers", pods());
    let container =
        |called: &str| json!({"name": called, "image": "busybox", "targetContainerName": "c"});
    let patch = json!({"spec": {"ephemeralContainers": [container("debugger")]}});
    world.patch(&path, STRATEGIC, &patch).await.ok(200);
    let add = |p: &mut Value| {
        p["spec"]["ephemeralContainers"]
            .as_array_mut()
            .unwrap()
            .push(container("debugger2"))
    };
    let updated = world.update(&path, add).await;
    let names: Vec<&str> = updated["spec"]["ephemeralContainers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| text(c, "/name"))
        .collect();
    assert_eq!(names, ["debugger", "debugger2"]);
}

/// Conformance: In-place Pod Resize, read and replace endpoints
#[tokio::test]
async fn pods_are_resized_through_their_endpoint() {
    let world = World::api().await;
    let mut pod = pod("p", &json!({}));
    let amounts = json!({"cpu": "100m", "memory": "100Mi"});
    pod["spec"]["containers"][0]["resources"] = json!({"requests": amounts, "limits": amounts});
    world.create(&pods(), pod).await;
    let path = format!("{}/p/resize", pods());
    let read = world.object(&path).await;
    assert_eq!((&read["kind"], name(&read)), (&json!("Pod"), "p"));
    let more = json!({"cpu": "200m", "memory": "100Mi"});
    let resized = world
        .update(&path, |p| {
            p["spec"]["containers"][0]["resources"] = json!({"requests": more, "limits": more})
        })
        .await;
    assert_eq!(
        resized["spec"]["containers"][0]["resources"]["requests"]["cpu"],
        "200m"
    );
    let mut back = resized;
    back["spec"]["containers"][0]["resources"] = json!({"requests": amounts, "limits": amounts});
    world
        .put(&format!("{}/p", pods()), &back)
        .await
        .refused(422);
}

/// Conformance: Node, resource lifecycle
#[tokio::test]
async fn nodes() {
    let amounts = json!({"cpu": "2", "memory": "4Gi"});
    Life::cluster("v1", "Node", "nodes", json!({}))
        .names(["e2e-fake-node-a", "e2e-fake-node-b", "e2e-fake-node-c"])
        .status(json!({"phase": "Running", "capacity": amounts}))
        .live()
        .await;
}
