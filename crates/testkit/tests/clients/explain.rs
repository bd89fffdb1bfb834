//! What kubectl knows of custom resources from the published OpenAPI documents.

use std::path::PathBuf;

use serde_json::{Value, json};
use testkit::{Cluster, Served, eventually, objects};

use crate::tools::*;

const GROUP: &str = "explained.example.com";

/// A definition, its cluster, and a kubectl.
struct Explained {
    _cluster: Cluster,
    served: Served,
    kubectl: PathBuf,
    plural: &'static str,
}

impl Explained {
    /// A kind of that schema, where there is a kubectl.
    async fn new(test: &str, plural: &'static str, kind: &str, schema: Value) -> Option<Self> {
        let Some(kubectl) = find("kubectl") else {
            left_out(test, "there is no kubectl on this machine");
            return None;
        };
        let cluster = Cluster::start().await.unwrap();
        let version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
        let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{GROUP}")}, "spec": {"group": GROUP, "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind}, "versions": [version]}});
        objects(&cluster.client(), &[definition]).await.unwrap();
        let served = cluster.serve().await.unwrap();
        let explained = Self {
            _cluster: cluster,
            served,
            kubectl,
            plural,
        };
        eventually("the kind to be explained", || async {
            Ok(explained.tells(&["explain", plural]).await.ok())
        })
        .await
        .unwrap();
        Some(explained)
    }

    /// What kubectl says; as an error if it fails.
    async fn tells(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = command(&self.kubectl, &self.served);
        command.args(arguments);
        let output = run(command).await;
        if output.status.success() {
            Ok(said(&output))
        } else {
            Err(said(&output))
        }
    }

    /// Checks that an explanation has these words in this order.
    async fn explains(&self, path: &str, words: &[&str]) {
        let path = format!("{}{path}", self.plural);
        let said = self.tells(&["explain", &path]).await.unwrap();
        let mut rest = said.as_str();
        for word in words {
            let at = rest.find(word);
            let at = at.unwrap_or_else(|| panic!("{path}: no {word:?} in order in\n{said}"));
            rest = &rest[at + word.len()..];
        }
    }

    fn file(&self, object: &Value) -> String {
        let path = self.served.folder().join("object.json");
        std::fs::write(&path, object.to_string()).unwrap();
        path.display().to_string()
    }

    /// Creates and applies an object.
    async fn accepts(&self, object: &Value) {
        let file = self.file(object);
        for verb in ["create", "apply"] {
            self.tells(&[verb, "-f", &file]).await.unwrap();
            self.tells(&["delete", "-f", &file]).await.unwrap();
        }
    }

    /// Neither creates nor applies an object.
    async fn refuses(&self, object: &Value, why: &str) {
        let file = self.file(object);
        for verb in ["create", "apply"] {
            let said = self.tells(&[verb, "-f", &file]).await.unwrap_err();
            assert!(said.contains(why), "{verb}: {said}");
        }
    }
}

fn object(kind: &str, content: Value) -> Value {
    let mut object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": {"name": "x", "namespace": "default"}});
    if let (Some(object), Value::Object(content)) = (object.as_object_mut(), content) {
        object.extend(content);
    }
    object
}

/// Conformance: Custom Resource OpenAPI Publish, with validation schema
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_is_kept_to_and_explained() {
    let bars = json!({"type": "array", "description": "List of Bars and their specs.", "items": {
        "type": "object", "required": ["name"], "properties": {
            "name": {"type": "string", "description": "Name of Bar."},
            "age": {"type": "string", "description": "Age of Bar."},
            "feeling": {"type": "string", "description": "Feeling of Bar.", "enum": ["Great", "Down"]},
            "bazs": {"type": "array", "description": "List of Bazs.", "items": {"type": "string"}}}}});
    let schema = json!({"type": "object", "description": "Foo CRD for Testing", "properties": {
        "spec": {"type": "object", "description": "Specification of Foo", "properties": {"bars": bars}},
        "status": {"type": "object", "description": "Status of Foo"}}});
    let test = "a_schema_is_kept_to_and_explained";
    let Some(foos) = Explained::new(test, "foos", "Foo", schema).await else {
        return;
    };
    let foo = |spec: Value| object("Foo", json!({"spec": spec}));
    foos.accepts(&foo(json!({"bars": [{"name": "test-bar"}]})))
        .await;
    foos.refuses(
        &foo(json!({"bars": [{"name": "test-bar", "feeling": "NonExistentValue"}]})),
        "Unsupported value: \"NonExistentValue\"",
    )
    .await;
    foos.refuses(&foo(json!({"foo": true})), "unknown field \"spec.foo\"")
        .await;
    foos.refuses(
        &foo(json!({"bars": [{"age": "10"}]})),
        "spec.bars[0].name: Required value",
    )
    .await;
    let head = ["Foo CRD for Testing", "FIELDS:", "apiVersion", "<string>"];
    let tail = [
        "APIVersion defines",
        "spec",
        "<Object>",
        "Specification of Foo",
    ];
    foos.explains("", &[&head[..], &tail[..]].concat()).await;
    let metadata = ["Standard object's metadata", "FIELDS:", "creationTimestamp"];
    let time = ["<string>", "CreationTimestamp is a timestamp"];
    foos.explains(".metadata", &[&metadata[..], &time[..]].concat())
        .await;
    let spec = ["Specification of Foo", "FIELDS:", "bars", "<[]Object>"];
    foos.explains(
        ".spec",
        &[&spec[..], &["List of Bars and their specs"]].concat(),
    )
    .await;
    let bars = [
        "bars",
        "<[]Object>",
        "List of Bars and their specs",
        "FIELDS:",
    ];
    let fields = [
        "bazs",
        "<[]string>",
        "List of Bazs",
        "name",
        "<string>",
        "Name of Bar",
    ];
    foos.explains(".spec.bars", &[&bars[..], &fields[..]].concat())
        .await;
    let missing = foos
        .tells(&["explain", "foos.spec.bars2"])
        .await
        .unwrap_err();
    assert!(
        missing.contains("field \"bars2\" does not exist"),
        "{missing}"
    );
}

/// Conformance: Custom Resource OpenAPI Publish, with x-kubernetes-preserve-unknown-fields in object
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_fields_takes_all_and_has_no_description() {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let test = "what_has_no_fields_takes_all_and_has_no_description";
    let Some(empties) = Explained::new(test, "empties", "Empty", schema).await else {
        return;
    };
    let random = json!({"a": {"b": [{"c": "d"}]}});
    empties.accepts(&object("Empty", random)).await;
    empties.explains("", &["DESCRIPTION:", "<empty>"]).await;
}

/// Conformance: Custom Resource OpenAPI Publish, with x-kubernetes-preserve-unknown-fields at root
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_open_at_its_root_takes_all() {
    let part = json!({"type": "object", "properties": {"dummy": {"type": "string", "description": "Dummy property."}}});
    let schema = json!({"type": "object", "description": "preserve-unknown-properties at root for Testing",
        "x-kubernetes-preserve-unknown-fields": true, "properties": {"spec": part, "status": part}});
    let test = "what_is_open_at_its_root_takes_all";
    let Some(roots) = Explained::new(test, "roots", "Root", schema).await else {
        return;
    };
    let random = json!({"a": {"b": [{"c": "d"}]}});
    roots.accepts(&object("Root", random)).await;
    roots.explains("", &["KIND:", "Root"]).await;
}

/// Conformance: Custom Resource OpenAPI Publish, with x-kubernetes-preserve-unknown-fields in embedded object
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_open_below_takes_all_there() {
    let part = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "description": "Specification of Waldo",
        "properties": {"dummy": {"type": "string", "description": "Dummy property."}}});
    let schema = json!({"type": "object", "description": "preserve-unknown-properties in nested field for Testing",
        "properties": {"spec": part, "status": part}});
    let test = "what_is_open_below_takes_all_there";
    let Some(waldos) = Explained::new(test, "waldos", "Waldo", schema).await else {
        return;
    };
    let random = json!({"spec": {"a": null, "b": [{"c": "d"}]}});
    waldos.accepts(&object("Waldo", random)).await;
    let words = [
        "DESCRIPTION:",
        "preserve-unknown-properties in nested field for Testing",
    ];
    waldos.explains("", &words).await;
}
