//! Strict validation of fields.

use serde_json::{Value, json};

use super::definitions::Definition;
use super::world::*;

const STRICT: &str = "fieldManager=field_validation_mgr&fieldValidation=Strict";

async fn refused(world: &World, body: &str) -> String {
    let path = format!("{}?{STRICT}", at("apps/v1", "deployments"));
    let bytes = body.as_bytes().to_vec();
    world
        .send("POST", &path, "application/json", bytes)
        .await
        .refused(400)
}

fn deployment(metadata: &str, spec: &str) -> String {
    format!(
        r#"{{"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {{"name": "my-dep", {metadata} "labels": {{"app": "nginx"}}}},
        "spec": {{{spec} "selector": {{"matchLabels": {{"app": "nginx"}}}},
            "template": {{"metadata": {{"labels": {{"app": "nginx"}}}},
                "spec": {{"containers": [{{"name": "nginx", "image": "nginx:latest"}}]}}}}}}}}"#
    )
}

/// Conformance: Server side field validation, typed object
#[tokio::test]
async fn unknown_and_duplicate_fields_are_told_together() {
    let world = World::api().await;
    let body = deployment(
        "",
        r#""unknownField": "foo", "replicas": 2, "replicas": 3,"#,
    );
    let message = refused(&world, &body).await;
    let wanted = r#"strict decoding error: unknown field "spec.unknownField", duplicate field "spec.replicas""#;
    assert!(message.contains(wanted), "{message}");
}

/// Conformance: Server side field validation, typed unknown metadata
#[tokio::test]
async fn unknown_metadata_is_told() {
    let world = World::api().await;
    let message = refused(&world, &deployment(r#""unknownMeta": "foo","#, "")).await;
    let wanted = r#"strict decoding error: unknown field "metadata.unknownMeta""#;
    assert!(message.contains(wanted), "{message}");
}

/// Schema of a custom resource; the extras go into its spec.
fn schema(extras: Value) -> Value {
    let port = json!({"type": "object", "required": ["containerPort", "protocol"], "properties": {
        "containerPort": {"type": "integer", "format": "int32"}, "hostIP": {"type": "string"},
        "hostPort": {"type": "integer", "format": "int32"}, "name": {"type": "string"}, "protocol": {"type": "string"}}});
    let mut spec = json!({"type": "object", "properties": {
        "foo": {"type": "string"},
        "cronSpec": {"type": "string", "pattern": "^(\\d+|\\*)(/\\d+)?(\\s+(\\d+|\\*)(/\\d+)?){4}$"},
        "ports": {"type": "array", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["containerPort", "protocol"], "items": port}}});
    for (key, value) in extras.as_object().unwrap() {
        if key == "properties" {
            for (key, value) in value.as_object().unwrap() {
                spec["properties"][key] = value.clone();
            }
        } else {
            spec[key] = value.clone();
        }
    }
    json!({"type": "object", "properties": {"spec": spec}})
}

/// Applies a custom resource of this YAML below `metadata` and in `spec`.
async fn apply(schema: Value, metadata: &str, rest: &str, spec: &str) -> Answer {
    let world = World::api().await;
    let definition = Definition::with("noxus", "Noxu", "Cluster", &[("v1beta1", schema)]);
    definition.establish(&world).await;
    let body = format!(
        "\napiVersion: {}\nkind: Noxu\nmetadata:\n  name: mytest\n{metadata}  finalizers:\n  - test-finalizer\n{rest}spec:\n{spec}  \
         cronSpec: \"* * * * */5\"\n  ports:\n  - name: x\n    containerPort: 80\n    protocol: TCP",
        definition.group_version()
    );
    let path = format!("{}/mytest?{STRICT}", definition.objects());
    world.send("PATCH", &path, APPLY, body.into_bytes()).await
}

/// Conformance: Server side field validation, valid CR with validation schema
#[tokio::test]
async fn a_valid_custom_resource_is_applied() {
    let made = apply(schema(json!({})), "", "", "  foo: foo1\n")
        .await
        .ok(201);
    assert_eq!(made["spec"]["ports"][0]["containerPort"], 80);
}

/// Conformance: Server side field validation, unknown fields CR no validation schema
#[tokio::test]
async fn fields_without_schema_are_applied() {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let made = apply(open, "", "", "  unknown: uk1\n").await.ok(201);
    assert_eq!(made["spec"]["unknown"], "uk1");
}

/// Conformance: Server side field validation, unknown fields CR fails validation
#[tokio::test]
async fn fields_outside_the_schema_are_refused() {
    let answer = apply(
        schema(json!({})),
        "",
        "unknownField: unknown\n",
        "  foo: foo1\n",
    )
    .await;
    assert!(answer.code >= 400);
    let message = text(&answer.body, "/message");
    assert!(
        message.contains(".unknownField: field not declared in schema"),
        "{message}"
    );
}

/// Conformance: Server side field validation, unknown metadata
#[tokio::test]
async fn metadata_outside_the_schema_is_refused() {
    let embedded = json!({"x-kubernetes-preserve-unknown-fields": true, "properties": {"template": {
        "type": "object", "x-kubernetes-embedded-resource": true, "properties": {
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": {"type": "object"}}}}});
    let template = "  template:\n    apiversion: foo/v1\n    kind: Sub\n    metadata:\n        unknownSubMeta: unknown\n        \
                    name: subobject\n        namespace: default\n  foo: foo1\n";
    let answer = apply(schema(embedded), "  unknownMeta: unknown\n", "", template).await;
    assert!(answer.code >= 400);
    let message = text(&answer.body, "/message");
    assert!(
        message.contains(".spec.template.metadata.unknownSubMeta: field not declared in schema")
            || message.contains(".metadata.unknownMeta: field not declared in schema"),
        "{message}"
    );
}

/// Conformance: Server side field validation, CR duplicates
#[tokio::test]
async fn duplicates_in_custom_resources_are_refused() {
    let open = json!({"x-kubernetes-preserve-unknown-fields": true});
    let spec = "  unknown: uk1\n  foo: foo1\n  foo: foo2\n";
    let message = apply(schema(open), "", "", spec).await.refused(400);
    assert!(
        message.contains(r#"line 11: key "foo" already set in map"#),
        "{message}"
    );
}
