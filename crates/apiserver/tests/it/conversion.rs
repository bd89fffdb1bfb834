//! Custom resources of several versions that a webhook converts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::custom::define;
use crate::harness::*;

const ALL: &str = "/apis/shop.example.com/v1/namespaces/default/shirts";

fn second(uri: &str) -> String {
    uri.replace("/v1/", "/v2/")
}

/// `spec.hostPort` of v1 is `spec.host` and `spec.port` of v2.
fn turned(mut object: Value, desired: &str) -> Value {
    let spec = object["spec"].clone();
    object["apiVersion"] = desired.into();
    object["spec"] = if desired.ends_with("/v2") {
        let both = spec["hostPort"].as_str().unwrap_or_default();
        let (host, port) = both.split_once(':').unwrap_or_default();
        json!({"host": host, "port": port})
    } else {
        let text = |f: &str| spec[f].as_str().unwrap_or_default().to_owned();
        json!({"hostPort": format!("{}:{}", text("host"), text("port"))})
    };
    object["metadata"]["labels"]["via"] = desired.rsplit('/').next().unwrap_or_default().into();
    object["metadata"]["generation"] = 77.into();
    object
}

fn review(body: &[u8]) -> Value {
    let asked: Value = serde_json::from_slice(body).unwrap();
    let desired = asked["request"]["desiredAPIVersion"].as_str().unwrap();
    let objects = asked["request"]["objects"].as_array().unwrap();
    let broken = objects
        .iter()
        .any(|o| o["metadata"]["labels"]["break"] == "yes");
    let result = if broken {
        json!({"status": "Failure", "message": "this one cannot be converted"})
    } else {
        json!({"status": "Success"})
    };
    let done: Vec<Value> = objects.iter().map(|o| turned(o.clone(), desired)).collect();
    json!({"kind": "ConversionReview", "apiVersion": asked["apiVersion"],
        "response": {"uid": asked["request"]["uid"], "result": result, "convertedObjects": done}})
}

async fn shop(c: &Cluster) {
    let hook = Backend::start(&["localhost"], None, |request| review(request.body())).await;
    let version = |name: &str, storage: bool, fields: Value| {
        let chosen = fields.as_object().unwrap().keys();
        let chosen: Vec<Value> = chosen
            .map(|f| json!({"jsonPath": format!(".spec.{f}")}))
            .collect();
        json!({"name": name, "served": true, "storage": storage, "selectableFields": chosen, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": {
            "type": "object", "properties": {"spec": {"type": "object", "properties": fields}, "status": {"type": "object", "properties": {"n": {"type": "integer"}}}}}}})
    };
    let text = json!({"type": "string"});
    let definition = json!({
        "metadata": {"name": "shirts.shop.example.com"},
        "spec": {"group": "shop.example.com", "scope": "Namespaced", "names": {"plural": "shirts", "kind": "Shirt"},
            "versions": [version("v1", true, json!({"hostPort": text})), version("v2", false, json!({"host": text, "port": text}))],
            "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1beta9", "v1"], "clientConfig": {
                "url": format!("https://localhost:{}/convert", hook.port), "caBundle": STANDARD.encode(&hook.authority)}}}},
    });
    define(c, &definition).await;
}

#[tokio::test]
async fn objects_are_read_and_written_in_every_version() {
    let c = cluster().await;
    shop(&c).await;
    let first = json!({"kind": "Shirt", "apiVersion": "shop.example.com/v1", "metadata": {"name": "a"}, "spec": {"hostPort": "h:1"}});
    c.create(ALL, &first).await;
    let read = c.get(&format!("{}/a", second(ALL))).await.body;
    assert_eq!(read["spec"], json!({"host": "h", "port": "1"}));
    assert_eq!(read["metadata"]["labels"]["via"], "v2");
    assert_eq!(read["metadata"]["generation"], 1);

    let made = json!({"kind": "Shirt", "apiVersion": "shop.example.com/v2", "metadata": {"name": "b"}, "spec": {"host": "i", "port": "2"}});
    let made = c.create(&second(ALL), &made).await;
    assert_eq!(made["spec"]["host"], "i");
    let list = c.get(ALL).await.body;
    assert_eq!(list["items"][1]["spec"], json!({"hostPort": "i:2"}));
    let list = c.get(&second(ALL)).await.body;
    assert_eq!(list["items"][0]["spec"]["host"], "h");

    let change = json!({"spec": {"port": "3"}});
    let changed = c.merge(&format!("{}/b", second(ALL)), &change).await;
    assert_eq!(
        (changed.code, &changed.body["spec"]["port"]),
        (200, &json!("3"))
    );
    assert_eq!(
        c.get(&format!("{ALL}/b")).await.body["spec"]["hostPort"],
        "i:3"
    );
    let status = json!({"status": {"n": 5}});
    let told = c.merge(&format!("{}/b/status", second(ALL)), &status).await;
    assert_eq!(told.code, 200, "{}", told.body);
    assert_eq!(
        c.get(&format!("{ALL}/b")).await.body["spec"]["hostPort"],
        "i:3"
    );

    let mut events = c.watch(&format!("{}?watch=true", second(ALL))).await;
    let seen = events.next().await.unwrap();
    assert_eq!(seen["object"]["spec"]["host"], "h");
    assert_eq!(events.step().await.1, "b");
    c.merge(&format!("{ALL}/a"), &json!({"spec": {"hostPort": "z:9"}}))
        .await;
    let seen = events.next().await.unwrap();
    assert_eq!(
        (&seen["type"], &seen["object"]["spec"]["host"]),
        (&json!("MODIFIED"), &json!("z"))
    );
    assert_eq!(c.delete(&format!("{}/a", second(ALL))).await.code, 200);
    assert_eq!(events.step().await, ("DELETED".into(), "a".into()));
}

#[tokio::test]
async fn what_the_webhook_says_is_passed_on() {
    let c = cluster().await;
    shop(&c).await;
    let bad = json!({"kind": "Shirt", "apiVersion": "shop.example.com/v1", "metadata": {"name": "a", "labels": {"break": "yes"}}, "spec": {"hostPort": "h:1"}});
    c.create(ALL, &bad).await;
    let answer = c.get(&format!("{}/a", second(ALL))).await;
    assert_eq!(answer.code, 500);
    let why = answer.body["message"].as_str().unwrap();
    assert!(
        why.contains("conversion webhook for shop.example.com/v1, Kind=Shirt failed: this one cannot be converted"),
        "{why}"
    );
}

const DEFINITION: &str =
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/shirts.shop.example.com";

fn shirt(version: &str, name: &str, spec: Value) -> Value {
    json!({"kind": "Shirt", "apiVersion": format!("shop.example.com/{version}"), "metadata": {"name": name}, "spec": spec})
}

/// Waits until new objects are stored in the other version.
async fn stored_as_second(c: &Cluster) {
    let change = json!([{"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true}]);
    let changed = c
        .send("PATCH", DEFINITION, "application/json-patch+json", &change)
        .await;
    assert_eq!(changed.code, 200, "{}", changed.body);
    assert_eq!(
        changed.body["status"]["storedVersions"],
        json!(["v1", "v2"])
    );
}

/// Conformance: Custom Resource Definition Conversion Webhook, conversion custom resource
/// Conformance: Custom Resource Definition Conversion Webhook, convert mixed version list
#[tokio::test]
async fn lists_of_objects_stored_in_several_versions_come_in_one() {
    let c = cluster().await;
    shop(&c).await;
    let spec = json!({"hostPort": "localhost:8080"});
    c.create(ALL, &shirt("v1", "one", spec.clone())).await;
    let converted = c.get(&format!("{}/one", second(ALL))).await.body;
    assert_eq!(converted["apiVersion"], "shop.example.com/v2");
    let parts = json!({"host": "localhost", "port": "8080"});
    assert_eq!(converted["spec"], parts);

    stored_as_second(&c).await;
    c.create(ALL, &shirt("v1", "two", spec.clone())).await;
    for (uri, version, wanted) in [(ALL.to_owned(), "v1", &spec), (second(ALL), "v2", &parts)] {
        let list = c.get(&uri).await.body;
        let items = list["items"].as_array().unwrap();
        assert_eq!(items.len(), 2, "{list}");
        for (item, name) in items.iter().zip(["one", "two"]) {
            assert_eq!(item["apiVersion"], format!("shop.example.com/{version}"));
            assert_eq!(
                (&item["metadata"]["name"], &item["spec"]),
                (&json!(name), wanted)
            );
        }
    }
    // What is written again is stored anew; then the old version can go.
    let same = c.get(&format!("{ALL}/one")).await.body;
    assert_eq!(c.put(&format!("{ALL}/one"), &same).await.code, 200);
    let drop = json!([{"op": "remove", "path": "/spec/versions/0"}]);
    let early = c
        .send("PATCH", DEFINITION, "application/json-patch+json", &drop)
        .await;
    assert_eq!(early.code, 422, "{}", early.body);
    let migrated = json!({"status": {"storedVersions": ["v2"]}});
    let told = c.merge(&format!("{DEFINITION}/status"), &migrated).await;
    assert_eq!(told.code, 200, "{}", told.body);
    let dropped = c
        .send("PATCH", DEFINITION, "application/json-patch+json", &drop)
        .await;
    assert_eq!(dropped.code, 200, "{}", dropped.body);
    assert_eq!(
        c.get(&format!("{}/one", second(ALL))).await.body["spec"],
        parts
    );
}

/// What an informer does: lists, then follows from there.
struct Informer {
    events: Events,
}

impl Informer {
    async fn of(c: &Cluster, uri: &str) -> Self {
        let list = c.get(uri).await.body;
        let version = list["metadata"]["resourceVersion"].as_str().unwrap();
        let rest = "watch=true&allowWatchBookmarks=true&timeoutSeconds=300";
        let uri = format!("{uri}&{rest}&resourceVersion={version}");
        Self {
            events: c.watch(&uri).await,
        }
    }

    /// The next event that is not about an object that stays.
    async fn step(&mut self) -> String {
        loop {
            let (kind, name) = self.events.step().await;
            if matches!(kind.as_str(), "ADDED" | "DELETED") {
                return format!("{kind} {name}");
            }
        }
    }
}

/// Conformance: custom-resource-definition-field-selectors-list-watch-register-informers
#[tokio::test]
async fn fields_of_every_version_select() {
    let c = cluster().await;
    shop(&c).await;
    let all = second(ALL);
    let host = format!("{all}?fieldSelector=spec.host%3Dhost1");
    let both = format!("{host}%2Cspec.port%3D80");
    let first = format!("{ALL}?fieldSelector=spec.hostPort%3Dhost1%3A80");
    let mut informers = Vec::new();
    for uri in [&host, &both, &first] {
        let watch = c.watch(&format!("{uri}&watch=true")).await;
        informers.push([Informer { events: watch }, Informer::of(&c, uri).await]);
    }
    for (name, spec) in [
        ("a", json!({"host": "host1", "port": "80"})),
        ("b", json!({"host": "host1", "port": "8080"})),
        ("c", json!({"host": "host2"})),
    ] {
        c.create(&all, &shirt("v2", name, spec)).await;
    }
    let names = async |uri: &str| {
        let list = c.get(uri).await.body;
        let items = list["items"].as_array().unwrap().clone();
        let name = |i: &Value| i["metadata"]["name"].as_str().unwrap().to_owned();
        items.iter().map(name).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&host).await, "a b");
    assert_eq!(names(&both).await, "a");
    assert_eq!(names(&first).await, "a");
    let other = format!("{ALL}?fieldSelector=spec.hostPort%3Dhost1%3A8080");
    assert_eq!(names(&other).await, "b");
    for (informers, wanted) in informers.iter_mut().zip([&["a", "b"][..], &["a"], &["a"]]) {
        for informer in informers {
            for name in wanted {
                assert_eq!(informer.step().await, format!("ADDED {name}"));
            }
        }
    }
    let now = json!({"gracePeriodSeconds": 0});
    let gone = c.send("DELETE", &both, "application/json", &now).await;
    assert_eq!(gone.code, 200, "{}", gone.body);
    let mut b = c.get(&format!("{all}/b")).await.body;
    b["spec"]["host"] = "host2".into();
    assert_eq!(c.put(&format!("{all}/b"), &b).await.code, 200);
    assert_eq!(names(&host).await + &names(&both).await, "");
    for (informers, wanted) in informers.iter_mut().zip([&["a", "b"][..], &["a"], &["a"]]) {
        for informer in informers {
            for name in wanted {
                assert_eq!(informer.step().await, format!("DELETED {name}"));
            }
        }
    }
    let unknown = c
        .get(&format!("{ALL}?fieldSelector=spec.host%3Dhost1"))
        .await;
    assert_eq!(unknown.code, 400, "{}", unknown.body);
}
