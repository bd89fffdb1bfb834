//! Server-side apply over HTTP, and who owns what after any write.

use apiserver::http::body;
use http::Request;
use serde_json::{Value, json};
use tower::Service;

use crate::harness::*;

const APPLY: &str = "application/apply-patch+yaml";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

impl Cluster {
    async fn apply(&self, uri: &str, config: &Value) -> Answer {
        self.send("PATCH", uri, APPLY, config).await
    }
}

fn map(data: &Value) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "m"}, "data": data})
}

fn deployment() -> Value {
    json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53}]}]}}}})
}

/// Managers of an object, as `name operation/subresource`.
fn managers(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array();
    let text = |e: &Value, f: &str| e[f].as_str().unwrap_or_default().to_owned();
    entries
        .into_iter()
        .flatten()
        .map(|e| {
            format!(
                "{} {}/{}",
                text(e, "manager"),
                text(e, "operation"),
                text(e, "subresource")
            )
        })
        .collect()
}

fn fields<'a>(object: &'a Value, manager: &str) -> &'a Value {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let found = entries.iter().find(|e| e["manager"] == manager);
    found.map_or(&Value::Null, |e| &e["fieldsV1"])
}

#[tokio::test]
async fn apply_creates_changes_and_takes_back() {
    let c = cluster().await;
    let uri = format!("{MAPS}/m?fieldManager=one");
    let made = c.apply(&uri, &map(&json!({"a": "1", "b": "1"}))).await;
    assert_eq!(made.code, 201, "{}", made.body);
    assert_eq!(managers(&made.body), ["one Apply/"]);
    assert_eq!(
        *fields(&made.body, "one"),
        json!({"f:data": {"f:a": {}, "f:b": {}}})
    );
    let again = c.apply(&uri, &map(&json!({"a": "1", "b": "1"}))).await;
    assert_eq!(again.code, 200);
    assert_eq!(again.body, made.body);

    let two = format!("{MAPS}/m?fieldManager=two");
    let refused = c.apply(&two, &map(&json!({"a": "2"}))).await;
    assert_eq!(refused.code, 409);
    assert_eq!(
        refused.body["message"],
        "Apply failed with 1 conflict: conflict with \"one\": .data.a"
    );
    assert_eq!(
        refused.body["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".data.a"}])
    );
    let forced = c
        .apply(&format!("{two}&force=true"), &map(&json!({"a": "2"})))
        .await;
    assert_eq!(
        (forced.code, forced.body["data"]["a"].as_str()),
        (200, Some("2"))
    );
    let less = c.apply(&uri, &map(&json!({}))).await;
    assert_eq!(
        less.body["data"],
        json!({"a": "2"}),
        "b went with its owner"
    );

    let yaml =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: '2', c: yes-it-is}\n";
    let request = Request::builder()
        .method("PATCH")
        .uri(&two)
        .header("content-type", APPLY)
        .body(yaml.as_bytes().to_vec())
        .unwrap();
    let answer = read(c.raw(request).await).await;
    assert_eq!(answer.body["data"]["c"], "yes-it-is");
}

#[tokio::test]
async fn refusals_in_upstreams_words() {
    let c = cluster().await;
    let uri = format!("{MAPS}/m");
    let answer = c.apply(&uri, &map(&json!({}))).await;
    assert_eq!(
        (answer.code, answer.body["message"].as_str().unwrap()),
        (
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
        )
    );
    let merge = c.merge(&format!("{uri}?force=true"), &json!({})).await;
    assert_eq!(
        merge.body["message"],
        "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch"
    );
    let uri = format!("{uri}?fieldManager=m");
    let mut other = map(&json!({}));
    other["kind"] = "Secret".into();
    let answer = c.apply(&uri, &other).await;
    assert_eq!(
        (answer.code, answer.body["message"].as_str().unwrap()),
        (400, "invalid object type: /v1, Kind=Secret")
    );
    let mut named = map(&json!({}));
    named["metadata"]["name"] = "n".into();
    let answer = c.apply(&uri, &named).await;
    assert_eq!(
        (answer.code, answer.body["message"].as_str().unwrap()),
        (
            400,
            "the name of the object (n) does not match the name on the URL (m)"
        )
    );
    let mut unknown = map(&json!({}));
    unknown["spec"] = json!({});
    let answer = c.apply(&uri, &unknown).await;
    assert_eq!(
        (answer.code, answer.body["message"].as_str().unwrap()),
        (
            500,
            "failed to create typed patch object (/m; /v1, Kind=ConfigMap): .spec: field not declared in schema"
        )
    );
    let cbor = c
        .send("PATCH", &uri, "application/apply-patch+cbor", &json!({}))
        .await;
    assert_eq!(cbor.code, 415);
    let long = c
        .post(
            &format!("{MAPS}?fieldManager={}", "x".repeat(129)),
            &map(&json!({})),
        )
        .await;
    assert_eq!(long.code, 422);
    let missing = c
        .apply(
            &format!("{DEPLOYMENTS}/d/status?fieldManager=m"),
            &deployment(),
        )
        .await;
    assert_eq!(missing.code, 404, "subresources create nothing");
}

#[tokio::test]
async fn creating_by_apply_needs_both_permissions() {
    let c = cluster().await;
    let role = json!({"metadata": {"name": "patcher"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]}]});
    c.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", &role)
        .await;
    let binding = json!({"metadata": {"name": "patcher"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "patcher"},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}]});
    c.create(
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        &binding,
    )
    .await;
    // Rules reach the authorizer by a watch.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let request = Request::builder()
        .method("PATCH")
        .uri(format!("{MAPS}/m?fieldManager=m"))
        .header("content-type", APPLY)
        .body(body::full(map(&json!({})).to_string().into_bytes()))
        .unwrap();
    let answer = read(c.user("jane", &[]).call(request).await.unwrap()).await;
    assert_eq!(answer.code, 403);
    let message = answer.body["message"].as_str().unwrap();
    assert!(
        message.contains("User \"jane\" cannot create resource \"configmaps\""),
        "{message}"
    );
}

#[tokio::test]
async fn every_write_is_owned() {
    let c = cluster().await;
    let post = |uri: String, agent: &'static str, body: Value| {
        let request = Request::builder()
            .method("POST")
            .uri(uri)
            .header("user-agent", agent)
            .body(body.to_string().into_bytes())
            .unwrap();
        c.raw(request)
    };
    let made = read(post(DEPLOYMENTS.to_owned(), "tool/1.0 (x)", deployment()).await).await;
    assert_eq!(made.code, 201, "{}", made.body);
    assert_eq!(managers(&made.body), ["tool Update/"]);
    let ports = "/f:spec/f:template/f:spec/f:containers/k:{\"name\":\"c\"}/f:ports";
    let ports = fields(&made.body, "tool").pointer(ports).unwrap();
    assert!(
        ports
            .get("k:{\"containerPort\":53,\"protocol\":\"TCP\"}")
            .is_some()
    );
    assert!(
        ports
            .get("k:{\"containerPort\":53,\"protocol\":\"UDP\"}")
            .is_some()
    );

    let status = json!({"status": {"replicas": 1}});
    let one = c
        .merge(
            &format!("{DEPLOYMENTS}/d/status?fieldManager=controller"),
            &status,
        )
        .await;
    // They are in the order of their times, which have no fractions of a second.
    let mut owners = managers(&one.body);
    owners.sort();
    assert_eq!(owners, ["controller Update/status", "tool Update/"]);
    let scale = c
        .merge(
            &format!("{DEPLOYMENTS}/d/scale?fieldManager=scaler"),
            &json!({"spec": {"replicas": 4}}),
        )
        .await;
    assert_eq!(scale.code, 200, "{}", scale.body);
    assert!(scale.body["metadata"].get("managedFields").is_none());
    let now = c.get(&format!("{DEPLOYMENTS}/d")).await.body;
    assert_eq!(
        *fields(&now, "scaler"),
        json!({"f:spec": {"f:replicas": {}}})
    );
    assert!(fields(&now, "tool").pointer("/f:spec/f:replicas").is_none());

    let refused = c
        .apply(
            &format!("{DEPLOYMENTS}/d?fieldManager=kubectl"),
            &deployment(),
        )
        .await;
    assert_eq!(
        refused.body["message"],
        "Apply failed with 1 conflict: conflict with \"scaler\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
    let applied = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "d"}, "spec": {"replicas": 5}});
    let uri = format!("{DEPLOYMENTS}/d/scale?fieldManager=kubectl");
    assert_eq!(c.apply(&uri, &applied).await.code, 409);
    let forced = c.apply(&format!("{uri}&force=true"), &applied).await;
    assert_eq!(forced.body["spec"]["replicas"], 5);
    let now = c.get(&format!("{DEPLOYMENTS}/d")).await.body;
    assert!(managers(&now).contains(&"kubectl Apply/scale".to_owned()));
    assert!(!managers(&now).iter().any(|m| m.starts_with("scaler")));

    let status = json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"}, "status": {"replicas": 1}});
    let uri = format!("{DEPLOYMENTS}/d/status?fieldManager=watcher");
    let shared = c.apply(&uri, &status).await;
    assert_eq!(shared.code, 200, "{}", shared.body);
    assert_eq!(
        *fields(&shared.body, "watcher"),
        json!({"f:status": {"f:replicas": {}}})
    );
}

#[tokio::test]
async fn dry_runs_leave_nothing() {
    let c = cluster().await;
    let uri = format!("{MAPS}/m?fieldManager=m");
    let dry = format!("{uri}&dryRun=All");
    let would = c.apply(&dry, &map(&json!({"a": "1"}))).await;
    assert_eq!(would.code, 201);
    assert_eq!(would.body["metadata"].get("resourceVersion"), None);
    assert_eq!(c.get(&format!("{MAPS}/m")).await.code, 404);
    let made = c.apply(&uri, &map(&json!({"a": "1"}))).await.body;
    let would = c.apply(&dry, &map(&json!({"a": "2"}))).await;
    assert_eq!(would.body["data"]["a"], "2");
    assert_eq!(c.get(&format!("{MAPS}/m")).await.body, made);
}

#[tokio::test]
async fn versions_of_a_kind_share_owners() {
    let c = cluster().await;
    let v1 = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let v2 = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let of = |version: &str, max: i64| {
        json!({"kind": "HorizontalPodAutoscaler", "apiVersion": version, "metadata": {"name": "h"}, "spec": {"maxReplicas": max,
            "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}})
    };
    let made = c
        .apply(
            &format!("{v1}/h?fieldManager=one"),
            &of("autoscaling/v1", 3),
        )
        .await;
    assert_eq!(made.code, 201, "{}", made.body);
    let refused = c
        .apply(
            &format!("{v2}/h?fieldManager=two"),
            &of("autoscaling/v2", 4),
        )
        .await;
    assert_eq!(
        refused.body["message"],
        "Apply failed with 1 conflict: conflict with \"one\": .spec.maxReplicas"
    );
    let moved = c
        .apply(
            &format!("{v2}/h?fieldManager=one"),
            &of("autoscaling/v2", 4),
        )
        .await;
    assert_eq!(moved.code, 200, "{}", moved.body);
    assert_eq!(managers(&moved.body), ["one Apply/"]);
    assert_eq!(
        moved.body["metadata"]["managedFields"][0]["apiVersion"],
        "autoscaling/v2"
    );
}

#[tokio::test]
async fn custom_resources_merge_by_their_schema() {
    let c = cluster().await;
    let items = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "zone"], "items": {
        "type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "zone": {"type": "string", "default": "z"}, "v": {"type": "integer"}}}});
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "items": items, "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}});
    let version = |name: &str| json!({"name": name, "served": true, "storage": name == "v1", "schema": schema});
    let definition = json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"}, "versions": [version("v1"), version("v2")]}});
    c.create(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &definition,
    )
    .await;
    let uri = |version: &str, manager: &str| {
        format!("/apis/example.com/{version}/namespaces/default/things/t?fieldManager={manager}")
    };
    let thing = |version: &str, spec: Value| json!({"kind": "Thing", "apiVersion": format!("example.com/{version}"), "metadata": {"name": "t"}, "spec": spec});
    let one = thing(
        "v1",
        json!({"items": [{"name": "a", "v": 1}], "tags": ["x", "y"], "whole": {"k": "1"}, "free": {"deep": {"a": 1}}}),
    );
    // Definitions are followed by a watch.
    let mut made = c.apply(&uri("v1", "one"), &one).await;
    for _ in 0..100 {
        if made.code != 404 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        made = c.apply(&uri("v1", "one"), &one).await;
    }
    assert_eq!(made.code, 201, "{}", made.body);
    assert_eq!(
        *fields(&made.body, "one"),
        json!({"f:spec": {"f:free": {"f:deep": {".": {}, "f:a": {}}}, "f:items": {"k:{\"name\":\"a\",\"zone\":\"z\"}": {".": {}, "f:name": {}, "f:v": {}}},
            "f:tags": {"v:\"x\"": {}, "v:\"y\"": {}}, "f:whole": {}}})
    );
    let two = thing(
        "v2",
        json!({"items": [{"name": "b", "v": 2}], "tags": ["y", "w"], "free": {"deep": {"b": 1}}}),
    );
    let merged = c.apply(&uri("v2", "two"), &two).await;
    assert_eq!(merged.code, 200, "{}", merged.body);
    assert_eq!(
        merged.body["spec"]["items"],
        json!([{"name": "a", "v": 1, "zone": "z"}, {"name": "b", "v": 2, "zone": "z"}])
    );
    assert_eq!(merged.body["spec"]["tags"], json!(["x", "y", "w"]));
    assert_eq!(merged.body["spec"]["free"]["deep"], json!({"a": 1, "b": 1}));
    let taken = thing(
        "v2",
        json!({"whole": {"l": "2"}, "items": [{"name": "a", "v": 5}]}),
    );
    let refused = c.apply(&uri("v2", "three"), &taken).await;
    assert_eq!(
        refused.body["message"],
        "Apply failed with 2 conflicts: conflicts with \"one\":\n- .spec.whole\n- .spec.items[name=\"a\",zone=\"z\"].v"
    );
    let back = c.apply(&uri("v2", "one"), &thing("v2", json!({}))).await;
    assert_eq!(
        back.body["spec"],
        json!({"items": [{"name": "b", "v": 2, "zone": "z"}], "tags": ["y", "w"], "free": {"deep": {"b": 1}}})
    );
    let unknown = c
        .apply(&uri("v1", "one"), &thing("v1", json!({"foo": 1})))
        .await;
    assert_eq!(
        unknown.body["message"],
        "failed to create typed patch object (/t; example.com/v1, Kind=Thing): .spec.foo: field not declared in schema"
    );
}
