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
        json!({"name": name, "served": true, "storage": storage, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": {
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
