//! Custom resources, from their definition to their end.

use serde_json::{Value, json};

use crate::harness::{Answer, Cluster, cluster};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
pub const TABS: &str = "/apis/stable.example.com/v1/namespaces/default/crontabs";

fn spec_schema() -> Value {
    json!({"type": "object", "required": ["cron"], "properties": {
        "cron": {"type": "string", "pattern": "^(\\S+ ){4}\\S+$"},
        "image": {"type": "string", "default": "busybox"},
        "replicas": {"type": "integer", "minimum": 0, "maximum": 10},
        "color": {"type": "string", "enum": ["red", "blue"]},
        "port": {"x-kubernetes-int-or-string": true},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {
            "type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "value": {"type": "string"}}}},
    }})
}

pub fn version(name: &str, storage: bool) -> Value {
    json!({
        "name": name, "served": true, "storage": storage,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": spec_schema(),
            "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}, "phase": {"type": "string"}}},
        }}},
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
        "additionalPrinterColumns": [
            {"name": "Spec", "type": "string", "description": "When it runs.", "jsonPath": ".spec.cron"},
            {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas", "priority": 1},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
        "selectableFields": [{"jsonPath": ".spec.color"}],
    })
}

pub fn definition(versions: &[Value]) -> Value {
    json!({
        "kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"name": "crontabs.stable.example.com"},
        "spec": {"group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "shortNames": ["ct"], "categories": ["all"]},
            "versions": versions},
    })
}

fn tab(name: &str, spec: Value) -> Value {
    json!({"kind": "CronTab", "apiVersion": "stable.example.com/v1", "metadata": {"name": name}, "spec": spec})
}

fn condition(definition: &Value, kind: &str) -> String {
    let all = definition["status"]["conditions"].as_array();
    let found = all.into_iter().flatten().find(|c| c["type"] == kind);
    found.map_or_else(String::new, |c| c["status"].as_str().unwrap().to_owned())
}

/// Waits, by a watch, until the definition satisfies `test`.
async fn until(cluster: &Cluster, name: &str, test: impl Fn(&Value) -> bool) -> Value {
    let mut events = cluster
        .watch(&format!(
            "{DEFINITIONS}?watch=true&fieldSelector=metadata.name={name}"
        ))
        .await;
    loop {
        let event = events.next().await.expect("the watch ended");
        if test(&event["object"]) || (event["type"] == "DELETED" && test(&Value::Null)) {
            return event["object"].clone();
        }
    }
}

pub async fn define(cluster: &Cluster, body: &Value) -> Value {
    let made = cluster.create(DEFINITIONS, body).await;
    let name = made["metadata"]["name"].as_str().unwrap().to_owned();
    let established = until(cluster, &name, |d| condition(d, "Established") == "True").await;
    served(cluster, established).await
}

/// Waits until the server serves what the definition says: conditions are told a moment before.
async fn served(cluster: &Cluster, definition: Value) -> Value {
    let group = definition["spec"]["group"].as_str().unwrap();
    let version = definition["spec"]["versions"][0]["name"].as_str().unwrap();
    for _ in 0..1000 {
        if cluster.get(&format!("/apis/{group}/{version}")).await.code == 200 {
            return definition;
        }
        tokio::task::yield_now().await;
    }
    panic!("not served");
}

fn message(answer: &Answer) -> &str {
    answer.body["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_definition_is_established_and_discovered() {
    let cluster = cluster().await;
    let made = define(&cluster, &definition(&[version("v1", true)])).await;
    assert_eq!(made["status"]["acceptedNames"], made["spec"]["names"]);
    assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(condition(&made, "NamesAccepted"), "True");
    assert_eq!(made["spec"]["names"]["listKind"], "CronTabList");
    let list = cluster.get("/apis/stable.example.com/v1").await.body;
    let first = &list["resources"][0];
    assert_eq!(
        (
            &first["name"],
            &first["singularName"],
            &first["shortNames"],
            &first["categories"]
        ),
        (
            &json!("crontabs"),
            &json!("crontab"),
            &json!(["ct"]),
            &json!(["all"])
        )
    );
    let names: Vec<&Value> = list["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["name"])
        .collect();
    assert_eq!(names, ["crontabs", "crontabs/status", "crontabs/scale"]);
    assert_eq!(list["resources"][2]["group"], "autoscaling");
    let group = cluster.get("/apis/stable.example.com").await.body;
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let v3 = cluster.get("/openapi/v3").await.body;
    let url = v3["paths"]["apis/stable.example.com/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap()
        .to_owned();
    let document = cluster.get(&url).await.body;
    let schema = &document["components"]["schemas"]["com.example.stable.v1.CronTab"];
    assert_eq!(
        schema["properties"]["spec"]["properties"]["image"]["default"],
        "busybox"
    );
    let v2 = cluster.get("/openapi/v2").await.body;
    assert!(v2["definitions"]["com.example.stable.v1.CronTab"].is_object());
}

#[tokio::test]
async fn objects_are_pruned_filled_in_and_checked() {
    let cluster = cluster().await;
    define(&cluster, &definition(&[version("v1", true)])).await;
    let body = tab(
        "a",
        json!({"cron": "* * * * *", "odd": 1, "free": {"x": 1}, "port": "80%", "color": null}),
    );
    let answer = cluster
        .post(&format!("{TABS}?fieldValidation=Strict"), &body)
        .await;
    assert_eq!(answer.code, 400);
    assert_eq!(
        message(&answer),
        r#"CronTab in version "v1" cannot be handled as a CronTab: strict decoding error: unknown field "spec.odd""#
    );
    let answer = cluster.post(TABS, &body).await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    assert_eq!(
        answer.headers["warning"],
        r#"299 - "unknown field \"spec.odd\"""#
    );
    assert_eq!(
        answer.body["spec"],
        json!({"cron": "* * * * *", "free": {"x": 1}, "port": "80%", "image": "busybox"})
    );
    assert_eq!(answer.body["metadata"]["generation"], 1);
    let bad = tab(
        "b",
        json!({"replicas": 11, "color": "green", "list": [{"name": "x"}, {"name": "x"}]}),
    );
    let answer = cluster.post(TABS, &bad).await;
    assert_eq!(answer.code, 422);
    assert_eq!(
        message(&answer),
        "CronTab.stable.example.com \"b\" is invalid: [spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\", spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10, spec.cron: Required value, spec.list[1]: Duplicate value: {\"name\":\"x\"}]"
    );
    let object = format!("{TABS}/a");
    let answer = cluster
        .merge(&object, &json!({"spec": {"replicas": 3}}))
        .await;
    assert_eq!(
        (answer.code, &answer.body["metadata"]["generation"]),
        (200, &json!(2))
    );
    let answer = cluster
        .send(
            "PATCH",
            &object,
            "application/strategic-merge-patch+json",
            &json!({}),
        )
        .await;
    assert_eq!(answer.code, 415);
    let answer = cluster
        .put(&object, &tab("a", json!({"cron": "* * * * *"})))
        .await;
    assert!(
        message(&answer).contains("must be specified for an update"),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn status_and_scale() {
    let cluster = cluster().await;
    define(&cluster, &definition(&[version("v1", true)])).await;
    let mut body = tab("a", json!({"cron": "* * * * *"}));
    body["status"] = json!({"phase": "x"});
    let made = cluster.create(TABS, &body).await;
    assert!(made.get("status").is_none());
    let scale = format!("{TABS}/a/scale");
    assert_eq!(cluster.get(&scale).await.code, 500);
    let answer = cluster
        .merge(&scale, &json!({"spec": {"replicas": 4}}))
        .await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    let status = json!({"status": {"replicas": 2, "selector": "a=b", "phase": "ok"}, "spec": {"cron": "x"}, "metadata": {"labels": {"a": "b"}}});
    let answer = cluster.merge(&format!("{TABS}/a/status"), &status).await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    assert_eq!(answer.body["spec"]["cron"], "* * * * *");
    assert!(answer.body["metadata"].get("labels").is_none());
    assert_eq!(answer.body["metadata"]["generation"], 2);
    let scale = cluster.get(&scale).await.body;
    assert_eq!(
        (&scale["spec"], &scale["status"]),
        (
            &json!({"replicas": 4}),
            &json!({"replicas": 2, "selector": "a=b"})
        )
    );
}

#[tokio::test]
async fn tables_selectors_and_metadata() {
    let cluster = cluster().await;
    define(&cluster, &definition(&[version("v1", true)])).await;
    for (name, color) in [("a", "red"), ("b", "blue")] {
        let body = tab(
            name,
            json!({"cron": "* * * * *", "color": color, "replicas": 2}),
        );
        cluster.create(TABS, &body).await;
    }
    let accept =
        |kind: &str| format!("application/json;as={kind};v=v1;g=meta.k8s.io,application/json");
    let get = async |uri: &str, kind: &str| {
        let request = http::Request::builder()
            .uri(uri)
            .header("accept", accept(kind))
            .body(Vec::new())
            .unwrap();
        crate::harness::read(cluster.raw(request).await).await.body
    };
    let table = get(TABS, "Table").await;
    let columns: Vec<(&Value, &Value)> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (&c["name"], &c["priority"]))
        .collect();
    assert_eq!(columns.len(), 4);
    assert_eq!(columns[2], (&json!("Replicas"), &json!(1)));
    assert_eq!(
        table["columnDefinitions"][1]["description"],
        "When it runs."
    );
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..3], [json!("a"), json!("* * * * *"), json!(2)]);
    let partial = get(TABS, "PartialObjectMetadataList").await;
    assert_eq!(partial["items"][1]["metadata"]["name"], "b");
    let selected = cluster
        .get(&format!("{TABS}?fieldSelector=spec.color%3Dblue"))
        .await
        .body;
    assert_eq!(selected["items"].as_array().unwrap().len(), 1);
    assert_eq!(selected["kind"], "CronTabList");
    let refused = cluster
        .get(&format!("{TABS}?fieldSelector=spec.cron%3Dx"))
        .await;
    assert_eq!(message(&refused), "field label not supported: spec.cron");
}

#[tokio::test]
async fn versions_are_converted_and_defaults_follow_the_schema() {
    let cluster = cluster().await;
    let old = {
        let mut old = version("v1beta1", false);
        old["deprecated"] = true.into();
        old["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["image"]["default"] =
            "beta".into();
        old
    };
    define(&cluster, &definition(&[version("v1", true), old.clone()])).await;
    let betas = TABS.replace("/v1/", "/v1beta1/");
    let mut body = tab("a", json!({"cron": "* * * * *"}));
    body["apiVersion"] = "stable.example.com/v1beta1".into();
    let answer = cluster.post(&betas, &body).await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    assert_eq!(answer.body["apiVersion"], "stable.example.com/v1beta1");
    assert!(
        answer.headers["warning"]
            .to_str()
            .unwrap()
            .contains("v1beta1 CronTab is deprecated; use stable.example.com/v1 CronTab")
    );
    let stored = store_value(&cluster, "a").await;
    assert_eq!(stored["apiVersion"], "stable.example.com/v1");
    assert_eq!(stored["spec"]["image"], "beta");
    assert_eq!(
        cluster.get(&format!("{TABS}/a")).await.body["apiVersion"],
        "stable.example.com/v1"
    );

    // Another storage version, another default, one field less: objects follow when they are read.
    let mut events = cluster.watch(&format!("{TABS}?watch=true")).await;
    assert_eq!(events.step().await, ("ADDED".to_owned(), "a".to_owned()));
    let mut new = version("v2", true);
    let properties = &mut new["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    properties["size"] = json!({"type": "integer", "default": 7});
    properties.as_object_mut().unwrap().remove("image");
    let uri = format!("{DEFINITIONS}/crontabs.stable.example.com");
    let change = json!({"spec": {"versions": [new, version("v1", false), old]}});
    let answer = cluster.merge(&uri, &change).await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    assert_eq!(answer.body["status"]["storedVersions"], json!(["v1", "v2"]));
    assert!(
        events.next().await.is_none(),
        "watches of the old schema end"
    );
    served(&cluster, answer.body).await;
    let seconds = TABS.replace("/v1/", "/v2/");
    let read = cluster.get(&format!("{seconds}/a")).await.body;
    assert_eq!(read["apiVersion"], "stable.example.com/v2");
    assert_eq!(read["spec"], json!({"cron": "* * * * *", "size": 7}));
    let list = cluster.get(&seconds).await.body;
    assert_eq!(list["items"][0]["spec"]["size"], 7);
    // A write that changes nothing moves the object into the new storage version.
    let answer = cluster.put(&format!("{seconds}/a"), &read).await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    let stored = store_value(&cluster, "a").await;
    assert_eq!(
        (&stored["apiVersion"], &stored["spec"]["size"]),
        (&json!("stable.example.com/v2"), &json!(7))
    );
    let drop = cluster.merge(&uri, &json!({"status": {"storedVersions": ["v1"]}, "spec": {"versions": [version("v2", true)]}})).await;
    assert!(
        message(&drop).contains("v1 was previously a storage version"),
        "{}",
        drop.body
    );
}

async fn store_value(cluster: &Cluster, name: &str) -> Value {
    use store::Store;
    let key = format!("/registry/stable.example.com/crontabs/default/{name}");
    let (kv, _) = cluster.store.get(key.as_bytes(), None).await.unwrap();
    serde_json::from_slice(&kv.unwrap().value).unwrap()
}

#[tokio::test]
async fn a_definition_goes_after_its_objects() {
    let cluster = cluster().await;
    define(&cluster, &definition(&[version("v1", true)])).await;
    cluster
        .create(TABS, &tab("a", json!({"cron": "* * * * *"})))
        .await;
    let mut held = tab("b", json!({"cron": "* * * * *"}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.create(TABS, &held).await;
    let name = "crontabs.stable.example.com";
    let uri = format!("{DEFINITIONS}/{name}");
    let answer = cluster.delete(&uri).await;
    assert_eq!(answer.code, 200);
    let finalizers = &answer.body["metadata"]["finalizers"];
    assert_eq!(
        *finalizers,
        json!(["customresourcecleanup.apiextensions.k8s.io"])
    );
    let mut events = cluster.watch(&format!("{TABS}?watch=true")).await;
    loop {
        // The one without finalizers goes, the other one is marked.
        let Some(event) = events.next().await else {
            events = cluster.watch(&format!("{TABS}?watch=true")).await;
            continue;
        };
        let object = &event["object"]["metadata"];
        if object["name"] == "b" && object.get("deletionTimestamp").is_some() {
            break;
        }
    }
    let answer = cluster
        .post(TABS, &tab("c", json!({"cron": "* * * * *"})))
        .await;
    assert_eq!(answer.code, 403);
    assert!(
        message(&answer)
            .contains("create not allowed while custom resource definition is terminating")
    );
    let answer = cluster
        .merge(
            &format!("{TABS}/b"),
            &json!({"metadata": {"finalizers": null}}),
        )
        .await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    until_gone(&cluster, &uri).await;
    assert_eq!(cluster.get(TABS).await.code, 404);
    assert_eq!(cluster.get("/apis/stable.example.com").await.code, 404);
}

async fn until_gone(cluster: &Cluster, uri: &str) {
    let (folder, name) = uri.rsplit_once('/').unwrap();
    let mut events = cluster
        .watch(&format!(
            "{folder}?watch=true&fieldSelector=metadata.name={name}"
        ))
        .await;
    if cluster.get(uri).await.code == 404 {
        return served_no_more(cluster).await;
    }
    while let Some(event) = events.next().await {
        if event["type"] == "DELETED" {
            return served_no_more(cluster).await;
        }
    }
}

async fn served_no_more(cluster: &Cluster) {
    for _ in 0..1000 {
        if cluster.get(TABS).await.code == 404 {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn names_are_given_once() {
    let cluster = cluster().await;
    define(&cluster, &definition(&[version("v1", true)])).await;
    let mut second = definition(&[version("v1", true)]);
    second["metadata"]["name"] = "others.stable.example.com".into();
    second["spec"]["names"] = json!({"plural": "others", "singular": "other", "kind": "CronTab", "listKind": "OtherList"});
    cluster.create(DEFINITIONS, &second).await;
    let refused = until(&cluster, "others.stable.example.com", |d| {
        condition(d, "NamesAccepted") == "False"
    })
    .await;
    let why = &refused["status"]["conditions"][0];
    assert_eq!(
        (&why["reason"], &why["message"]),
        (
            &json!("KindConflict"),
            &json!("\"CronTab\" is already in use")
        )
    );
    assert_eq!(
        cluster.get("/apis/stable.example.com/v1/others").await.code,
        404
    );
    // When the first one goes, its names are free.
    cluster
        .delete(&format!("{DEFINITIONS}/crontabs.stable.example.com"))
        .await;
    until(&cluster, "others.stable.example.com", |d| {
        condition(d, "Established") == "True"
    })
    .await;
}

#[tokio::test]
async fn a_restart_serves_what_was_defined() {
    let cluster = cluster().await;
    define(&cluster, &definition(&[version("v1", true)])).await;
    cluster
        .create(TABS, &tab("a", json!({"cron": "* * * * *"})))
        .await;
    let again = crate::harness::cluster_over(cluster.store.clone()).await;
    let read = again.get(&format!("{TABS}/a")).await;
    assert_eq!(
        (read.code, &read.body["spec"]["image"]),
        (200, &json!("busybox"))
    );
}

#[tokio::test]
async fn real_definitions_are_established() {
    let cluster = cluster().await;
    let Ok(files) = std::fs::read_dir("/work/shared/api/gateway-api-crds/experimental") else {
        return;
    };
    let mut plurals = Vec::new();
    for file in files.flatten().map(|f| f.path()) {
        let text = std::fs::read_to_string(&file).unwrap();
        if !text.contains("kind: CustomResourceDefinition") {
            continue;
        }
        let request = http::Request::post(format!("{DEFINITIONS}?fieldValidation=Strict"))
            .header("content-type", "application/yaml")
            .body(text.into_bytes())
            .unwrap();
        let answer = crate::harness::read(cluster.raw(request).await).await;
        assert_eq!(
            answer.code,
            201,
            "{} {}",
            file.display(),
            answer.body["message"]
        );
        plurals.push(answer.body["metadata"]["name"].as_str().unwrap().to_owned());
    }
    for name in &plurals {
        let definition = until(&cluster, name, |d| condition(d, "Established") == "True").await;
        assert_eq!(condition(&definition, "NonStructuralSchema"), "");
        served(&cluster, definition).await;
    }
    let gateway = json!({"kind": "Gateway", "apiVersion": "gateway.networking.k8s.io/v1", "metadata": {"name": "g"},
        "spec": {"gatewayClassName": "x", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]}});
    let gateways = "/apis/gateway.networking.k8s.io/v1/namespaces/default/gateways";
    let made = cluster.create(gateways, &gateway).await;
    assert_eq!(
        made["spec"]["listeners"][0]["allowedRoutes"]["namespaces"]["from"],
        "Same"
    );
    let mut wrong = gateway.clone();
    wrong["spec"]["listeners"][0]["port"] = 70000.into();
    wrong["metadata"]["name"] = "h".into();
    let answer = cluster.post(gateways, &wrong).await;
    assert!(
        message(&answer).contains("should be less than or equal to 65535"),
        "{}",
        answer.body
    );
    let mut clash = gateway.clone();
    clash["metadata"]["name"] = "i".into();
    clash["spec"]["listeners"] = json!([{"name": "a", "port": 80, "protocol": "HTTP", "tls": {}}, {"name": "b", "port": 80, "protocol": "HTTP"}]);
    let answer = cluster.post(gateways, &clash).await;
    assert_eq!(answer.code, 422);
    for why in [
        "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']",
        "Combination of port, protocol and hostname must be unique for each listener",
    ] {
        assert!(message(&answer).contains(why), "{}", answer.body["message"]);
    }
}

#[tokio::test]
async fn who_may_do_what() {
    let cluster = cluster().await;
    define(&cluster, &definition(&[version("v1", true)])).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": ["stable.example.com"], "resources": ["crontabs"], "verbs": ["get", "list"]}]});
    cluster.create(&format!("{rbac}/roles"), &role).await;
    let binding = json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}]});
    cluster
        .create(&format!("{rbac}/rolebindings"), &binding)
        .await;
    let jane = cluster.user("jane", &["system:authenticated"]);
    let ask = async |method: &str| {
        use tower::Service;
        let request = http::Request::builder().method(method).uri(TABS);
        let request = request.body(apiserver::http::body::full("{}")).unwrap();
        jane.clone().call(request).await.unwrap().status().as_u16()
    };
    // Roles are followed in the background.
    for _ in 0..1000 {
        if ask("GET").await == 200 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!((ask("GET").await, ask("POST").await), (200, 403));
}
