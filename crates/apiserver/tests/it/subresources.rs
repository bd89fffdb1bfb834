//! Status, scale, binding, eviction, tokens, reviews, namespaces, discovery.

use serde_json::{Value, json};
use tower::Service;

use crate::harness::*;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn deployment(replicas: i64) -> Value {
    json!({"metadata": {"name": "d"}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let c = cluster().await;
    let made = c.create(DEPLOYMENTS, &deployment(2)).await;
    assert_eq!(made["metadata"]["generation"], 1);
    let mut next = made.clone();
    next["spec"]["replicas"] = 9.into();
    next["status"] = json!({"replicas": 2, "observedGeneration": 1});
    let status = c.put(&format!("{DEPLOYMENTS}/d/status"), &next).await;
    assert_eq!(status.code, 200, "{}", status.body);
    assert_eq!(status.body["spec"]["replicas"], 2);
    assert_eq!(status.body["status"]["replicas"], 2);
    assert_eq!(status.body["metadata"]["generation"], 1);
    let spec = c
        .merge(
            &format!("{DEPLOYMENTS}/d"),
            &json!({"spec": {"replicas": 3}, "status": {"replicas": 7}}),
        )
        .await;
    assert_eq!(
        (
            &spec.body["spec"]["replicas"],
            &spec.body["status"]["replicas"]
        ),
        (&json!(3), &json!(2))
    );
    assert_eq!(spec.body["metadata"]["generation"], 2);
}

#[tokio::test]
async fn scales() {
    let c = cluster().await;
    c.create(DEPLOYMENTS, &deployment(2)).await;
    let uri = format!("{DEPLOYMENTS}/d/scale");
    let mut scale = c.get(&uri).await.body;
    assert_eq!(
        (scale["kind"].as_str(), &scale["spec"]["replicas"]),
        (Some("Scale"), &json!(2))
    );
    scale["spec"]["replicas"] = 5.into();
    assert_eq!(c.put(&uri, &scale).await.body["spec"]["replicas"], 5);
    assert_eq!(c.put(&uri, &scale).await.code, 409);
    assert_eq!(
        c.merge(&uri, &json!({"spec": {"replicas": 1}})).await.body["spec"]["replicas"],
        1
    );
    assert_eq!(
        c.merge(&uri, &json!({"spec": {"replicas": -1}})).await.code,
        422
    );
    let d = c.get(&format!("{DEPLOYMENTS}/d")).await.body;
    assert_eq!(
        (&d["spec"]["replicas"], &d["metadata"]["generation"]),
        (&json!(1), &json!(3))
    );
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let c = cluster().await;
    with_account(&c).await;
    c.create(PODS, &pod("p")).await;
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    let bound = c.post(&format!("{PODS}/p/binding"), &binding).await;
    assert_eq!(
        (bound.code, bound.body["status"].as_str()),
        (201, Some("Success"))
    );
    let p = c.get(&format!("{PODS}/p")).await.body;
    assert_eq!(p["spec"]["nodeName"], "n1");
    assert_eq!(p["status"]["conditions"][0]["type"], "PodScheduled");
    let again = c.post(&format!("{PODS}/p/binding"), &binding).await;
    assert_eq!(again.code, 409);
    assert_eq!(
        again.body["message"],
        "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
    );
}

#[tokio::test]
async fn a_pod_learns_where_its_node_is() {
    let c = cluster().await;
    with_account(&c).await;
    let zone = "topology.kubernetes.io/zone";
    let node = json!({"metadata": {"name": "n1", "labels": {(zone): "z", "disk": "ssd"}}});
    c.create("/api/v1/nodes", &node).await;
    let mut p = pod("p");
    p["metadata"]["labels"] = json!({"a": "b", (zone): "elsewhere", "c": "d"});
    c.create(PODS, &p).await;
    let nominated = json!({"status": {"nominatedNodeName": "n2"}});
    let one = format!("{PODS}/p");
    c.merge(&format!("{one}/status"), &nominated).await;
    let binding = json!({"metadata": {"name": "p", "labels": {"c": "e"}, "annotations": {"f": "g"}},
        "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(c.post(&format!("{one}/binding"), &binding).await.code, 201);
    let bound = c.get(&one).await.body;
    assert_eq!(
        bound["metadata"]["labels"],
        json!({"a": "b", (zone): "z", "c": "e"})
    );
    assert_eq!(bound["metadata"]["annotations"], json!({"f": "g"}));
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert!(bound["status"].get("nominatedNodeName").is_none());
    // One that is made with its node gets them at once, and one with a node that nobody knows none.
    for (name, node, expected) in [("q", "n1", json!({(zone): "z"})), ("r", "n2", Value::Null)] {
        let mut placed = pod(name);
        placed["spec"]["nodeName"] = node.into();
        let made = c.create(PODS, &placed).await;
        assert_eq!(made["metadata"]["labels"], expected, "{name}");
    }
}

#[tokio::test]
async fn tokens_are_issued_and_known_again() {
    let c = cluster().await;
    with_account(&c).await;
    let request = json!({"spec": {"expirationSeconds": 3600}});
    let issued = c
        .post(
            "/api/v1/namespaces/default/serviceaccounts/default/token",
            &request,
        )
        .await;
    assert_eq!(issued.code, 201, "{}", issued.body);
    let token = issued.body["status"]["token"].as_str().unwrap();
    let review = json!({"spec": {"token": token}});
    let review = c
        .post("/apis/authentication.k8s.io/v1/tokenreviews", &review)
        .await
        .body;
    assert_eq!(review["status"]["authenticated"], true);
    assert_eq!(
        review["status"]["user"]["username"],
        "system:serviceaccount:default:default"
    );
    let short = c
        .post(
            "/api/v1/namespaces/default/serviceaccounts/default/token",
            &json!({"spec": {"expirationSeconds": 5}}),
        )
        .await;
    assert_eq!(short.code, 422);
}

#[tokio::test]
async fn who_may_do_what() {
    let c = cluster().await;
    let mut jane = c.user("jane", &[]);
    let request = http::Request::builder()
        .uri(PODS)
        .body(apiserver::http::body::empty())
        .unwrap();
    let refused = read(jane.call(request).await.unwrap()).await;
    assert_eq!(refused.code, 403);
    assert_eq!(
        refused.body["message"],
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let ask = json!({"spec": {"user": "jane", "resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "default"}}});
    let review = c
        .post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &ask)
        .await
        .body;
    assert_eq!(review["status"]["allowed"], false);
    let mine = json!({"spec": {"resourceAttributes": {"verb": "list", "resource": "pods"}}});
    let review = c
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &mine,
        )
        .await
        .body;
    assert_eq!(review["status"]["allowed"], true);
    let me = c
        .post(
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &json!({}),
        )
        .await
        .body;
    assert_eq!(me["status"]["userInfo"]["username"], "admin");
}

#[tokio::test]
async fn a_namespace_goes_in_two_steps() {
    let c = cluster().await;
    c.create("/api/v1/namespaces", &json!({"metadata": {"name": "x"}}))
        .await;
    assert_eq!(
        c.post("/api/v1/namespaces/y/configmaps", &config_map("a"))
            .await
            .body["message"],
        "namespaces \"y\" not found"
    );
    let dying = c.delete("/api/v1/namespaces/x").await;
    assert_eq!(
        dying.body["status"]["phase"], "Terminating",
        "{}",
        dying.body
    );
    let late = c
        .post("/api/v1/namespaces/x/configmaps", &config_map("a"))
        .await;
    assert_eq!(late.code, 403);
    assert_eq!(
        late.body["message"],
        "configmaps \"a\" is forbidden: unable to create new content in namespace x because it is being terminated"
    );
    assert_eq!(
        late.body["details"]["causes"][0]["reason"],
        "NamespaceTerminating"
    );
    assert_eq!(c.delete("/api/v1/namespaces/x").await.code, 409);
    let mut last = dying.body;
    last["spec"]["finalizers"] = json!([]);
    assert_eq!(
        c.put("/api/v1/namespaces/x/finalize", &last).await.code,
        200
    );
    assert_eq!(c.get("/api/v1/namespaces/x").await.code, 404);
    assert_eq!(
        c.delete("/api/v1/namespaces/default").await.body["message"],
        "namespaces \"default\" is forbidden: this namespace may not be deleted"
    );
}

#[tokio::test]
async fn eviction_respects_budgets() {
    let c = cluster().await;
    with_account(&c).await;
    let mut p = pod("p");
    p["metadata"]["labels"] = json!({"a": "b"});
    p["spec"]["nodeName"] = "n".into();
    c.create(PODS, &p).await;
    c.merge(
        &format!("{PODS}/p/status"),
        &json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}),
    )
    .await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}});
    let made = c.create(budgets, &budget).await;
    let status = json!({"status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1, "observedGeneration": made["metadata"]["generation"]}});
    assert_eq!(
        c.merge(&format!("{budgets}/b/status"), &status).await.code,
        200
    );
    let eviction = json!({"metadata": {"name": "p"}});
    let refused = c.post(&format!("{PODS}/p/eviction"), &eviction).await;
    assert_eq!(
        (refused.code, refused.body["reason"].as_str()),
        (429, Some("TooManyRequests"))
    );
    assert_eq!(
        refused.body["details"]["causes"][0]["message"],
        "The disruption budget b needs 1 healthy pods and has 1 currently"
    );
    c.merge(
        &format!("{budgets}/b/status"),
        &json!({"status": {"disruptionsAllowed": 1}}),
    )
    .await;
    assert_eq!(
        c.post(&format!("{PODS}/p/eviction"), &eviction).await.code,
        201
    );
    assert!(c.get(&format!("{PODS}/p")).await.body["metadata"]["deletionTimestamp"].is_string());
}

#[tokio::test]
async fn every_kind_is_served_by_the_same_engine() {
    let c = cluster().await;
    for kind in api::kinds().iter().filter(|k| k.is_stored()) {
        let base = if kind.group.is_empty() {
            format!("/api/{}", kind.version)
        } else {
            format!("/apis/{}/{}", kind.group, kind.version)
        };
        let list = c.get(&format!("{base}/{}", kind.resource)).await;
        assert_eq!(list.code, 200, "{base}/{}", kind.resource);
        assert_eq!(list.body["kind"], kind.list_kind.as_str());
        let scope = if kind.namespaced {
            "/namespaces/default"
        } else {
            ""
        };
        let missing = c
            .get(&format!("{base}{scope}/{}/no-such-object", kind.resource))
            .await;
        assert_eq!(missing.code, 404, "{base}/{}", kind.resource);
        assert_eq!(missing.body["details"]["kind"], kind.resource.as_str());
    }
}

#[tokio::test]
async fn discovery_and_health() {
    let c = cluster().await;
    assert_eq!(c.get("/api").await.body["versions"], json!(["v1"]));
    assert_eq!(
        c.get("/apis/apps").await.body["preferredVersion"]["groupVersion"],
        "apps/v1"
    );
    assert!(
        c.get("/api/v1").await.body["resources"]
            .as_array()
            .unwrap()
            .len()
            > 20
    );
    assert_eq!(c.get("/apis/nothing/v1").await.code, 404);
    let request = http::Request::builder()
        .uri("/apis")
        .header(
            "accept",
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
        )
        .body(Vec::new())
        .unwrap();
    let aggregated = read(c.raw(request).await).await;
    assert_eq!(aggregated.body["kind"], "APIGroupDiscoveryList");
    assert_eq!(
        aggregated.headers["content-type"],
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    assert_eq!(c.get("/readyz").await.body, json!("ok"));
    assert_eq!(c.get("/version").await.body["minor"], "37");
    let metrics = c.get("/metrics").await.body;
    assert!(
        metrics
            .as_str()
            .unwrap()
            .contains("apiserver_request_total{verb=\"GET\"")
    );
    assert_eq!(c.get("/openid/v1/jwks").await.body["keys"][0]["kty"], "EC");
}

#[tokio::test]
async fn running_pods_are_resized_and_debugged() {
    let c = cluster().await;
    with_account(&c).await;
    let mut p = pod("p");
    p["spec"]["containers"][0]["resources"] =
        json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}});
    let made = c.create(PODS, &p).await;
    assert_eq!(made["metadata"]["generation"], 1);
    let patch = |resources: Value| json!({"spec": {"containers": [{"name": "c", "image": "other", "resources": resources}]}});
    let send = async |sub: &str, body: &Value| {
        let media = "application/strategic-merge-patch+json";
        c.send("PATCH", &format!("{PODS}/p/{sub}"), media, body)
            .await
    };
    let resized = send("resize", &patch(json!({"limits": {"cpu": "3"}}))).await;
    assert_eq!(resized.code, 200, "{}", resized.body);
    let container = &resized.body["spec"]["containers"][0];
    assert_eq!(
        container["resources"]["limits"],
        json!({"cpu": "3", "memory": "1Gi"})
    );
    assert_eq!(container["image"], "busybox");
    assert_eq!(resized.body["metadata"]["generation"], 2);
    let refused = send("resize", &patch(json!({"requests": {"cpu": "3"}}))).await;
    assert_eq!(refused.code, 422);
    let why = refused.body["message"].as_str().unwrap();
    assert!(
        why.contains("Pod QOS Class may not change as a result of resizing"),
        "{why}"
    );

    let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "busybox"}]}});
    let debugged = send("ephemeralcontainers", &debug).await;
    assert_eq!(debugged.code, 200, "{}", debugged.body);
    assert_eq!(debugged.body["spec"]["ephemeralContainers"][0]["name"], "d");
    assert_eq!(debugged.body["metadata"]["generation"], 3);
    let change = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "other"}]}});
    let refused = send("ephemeralcontainers", &change).await;
    assert_eq!(refused.code, 422);
    let why = refused.body["message"].as_str().unwrap();
    assert!(
        why.contains("existing ephemeral containers \"d\" may not be changed"),
        "{why}"
    );
}
