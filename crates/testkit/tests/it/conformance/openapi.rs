//! Custom resources in the published OpenAPI documents.

use serde_json::{Value, json};

use super::definitions::{Definition, GROUP};
use super::world::*;

/// Name of a custom kind's schema.
fn schema_name(version: &str, kind: &str) -> String {
    let reversed: Vec<&str> = GROUP.rsplit('.').collect();
    format!("{}.{version}.{kind}", reversed.join("."))
}

async fn published(world: &World, version: &str, kind: &str, right: impl Fn(&Value) -> bool) {
    let called = schema_name(version, kind);
    world
        .until("/openapi/v2", |document| {
            right(&document["definitions"][&called])
        })
        .await;
}

fn there(schema: &Value) -> bool {
    schema["x-kubernetes-group-version-kind"][0]["group"] == GROUP
}

fn foo() -> Value {
    json!({"type": "object", "description": "Foo CRD for Testing", "properties": {
        "spec": {"type": "object", "description": "Specification of Foo", "properties": {
            "bars": {"type": "array", "description": "List of Bars and their specs.", "items": {
                "type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string", "description": "Name of Bar."}, "age": {"type": "string"},
                    "bazs": {"type": "array", "items": {"type": "string"}}}}}}},
        "status": {"type": "object", "description": "Status of Foo"}}})
}

fn waldo() -> Value {
    json!({"type": "object", "description": "Waldo CRD for Testing", "properties": {"spec": {"type": "object"}}})
}

#[tokio::test]
async fn a_schema_is_published_and_kept_to() {
    let world = World::api().await;
    let definition = Definition::with("foos", "Foo", "Namespaced", &[("v1", foo())]);
    definition.establish(&world).await;
    published(&world, "v1", "Foo", |schema| {
        schema["description"] == "Foo CRD for Testing"
            && schema["properties"]["spec"]["properties"]["bars"]["items"]["required"]
                == json!(["name"])
            && text(schema, "/properties/apiVersion/description").starts_with("APIVersion defines")
    })
    .await;
    let path = format!("{}?fieldValidation=Strict", definition.objects());
    let make = async |spec: Value| {
        world
            .post(&path, &definition.instance("f", json!({"spec": spec})))
            .await
    };
    let message = make(json!({"foo": true})).await.refused(400);
    assert!(message.contains("unknown field \"spec.foo\""), "{message}");
    let message = make(json!({"bars": [{"age": "10"}]})).await.refused(422);
    assert!(
        message.contains("spec.bars[0].name: Required value"),
        "{message}"
    );
    make(json!({"bars": [{"name": "test-bar"}]})).await.ok(201);
}

#[tokio::test]
async fn what_preserves_takes_everything() {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let nested = json!({"type": "object", "description": "preserve-unknown-properties in nested field for Testing",
        "properties": {"spec": open, "a": open}});
    for schema in [open.clone(), nested] {
        let world = World::api().await;
        let definition = Definition::with("opens", "Open", "Namespaced", &[("v1", schema)]);
        definition.establish(&world).await;
        published(&world, "v1", "Open", there).await;
        let path = format!("{}?fieldValidation=Strict", definition.objects());
        let content = json!({"a": {"b": [{"c": "d"}]}, "spec": {"b": [{"c": "d"}]}});
        world
            .post(&path, &definition.instance("o", content))
            .await
            .ok(201);
    }
}

/// Conformance: Custom Resource OpenAPI Publish, varying groups
#[tokio::test]
async fn groups_are_published_side_by_side() {
    let world = World::api().await;
    Definition::with("foos", "Foo", "Namespaced", &[("v1", foo())])
        .establish(&world)
        .await;
    let mut other = Definition::with("waldos", "Waldo", "Namespaced", &[("v1beta1", waldo())]);
    other.object["spec"]["group"] = "other.example.com".into();
    other.object["metadata"]["name"] = "waldos.other.example.com".into();
    world
        .create(super::definitions::DEFINITIONS, other.object)
        .await;
    published(&world, "v1", "Foo", there).await;
    let there = |d: &Value| {
        d["definitions"]["com.example.other.v1beta1.Waldo"]["description"]
            == "Waldo CRD for Testing"
    };
    world.until("/openapi/v2", there).await;
}

/// Conformance: Custom Resource OpenAPI Publish, varying kinds
#[tokio::test]
async fn kinds_are_published_side_by_side() {
    let world = World::api().await;
    Definition::with("foos", "Foo", "Namespaced", &[("v1", foo())])
        .establish(&world)
        .await;
    Definition::with("waldos", "Waldo", "Namespaced", &[("v1", waldo())])
        .establish(&world)
        .await;
    published(&world, "v1", "Foo", there).await;
    published(&world, "v1", "Waldo", there).await;
}

/// Conformance: Custom Resource OpenAPI Publish, varying versions
#[tokio::test]
async fn versions_are_published_side_by_side() {
    let world = World::api().await;
    let both = [("v2", foo()), ("v3", foo())];
    Definition::with("foos", "Foo", "Namespaced", &both)
        .establish(&world)
        .await;
    published(&world, "v2", "Foo", there).await;
    published(&world, "v3", "Foo", there).await;
}

/// Conformance: Custom Resource OpenAPI Publish, version rename
#[tokio::test]
async fn a_renamed_version_is_published_anew() {
    let world = World::api().await;
    let both = [("v2", foo()), ("v3", foo())];
    let definition = Definition::with("foos", "Foo", "Namespaced", &both);
    definition.establish(&world).await;
    published(&world, "v3", "Foo", there).await;
    let patch = json!([{"op": "test", "path": "/spec/versions/1/name", "value": "v3"},
        {"op": "replace", "path": "/spec/versions/1/name", "value": "v4"}]);
    world.patch(&definition.path(), JSON, &patch).await.ok(200);
    published(&world, "v4", "Foo", there).await;
    published(&world, "v3", "Foo", Value::is_null).await;
    published(&world, "v2", "Foo", there).await;
}

/// Conformance: Custom Resource OpenAPI Publish, stop serving version
#[tokio::test]
async fn a_version_that_is_no_longer_served_is_not_published() {
    let world = World::api().await;
    let both = [("v5", foo()), ("v6alpha1", foo())];
    let definition = Definition::with("foos", "Foo", "Namespaced", &both);
    definition.establish(&world).await;
    published(&world, "v6alpha1", "Foo", there).await;
    let patch = json!([{"op": "replace", "path": "/spec/versions/1/served", "value": false}]);
    world.patch(&definition.path(), JSON, &patch).await.ok(200);
    published(&world, "v6alpha1", "Foo", Value::is_null).await;
    published(&world, "v5", "Foo", there).await;
}
