//! Custom resources.

use serde_json::{Value, json};

use super::life::Life;
use super::world::*;

pub const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// Group of the custom resources here.
pub const GROUP: &str = "mygroup.example.com";

/// A definition of custom resources.
pub struct Definition {
    pub plural: &'static str,
    pub kind: &'static str,
    pub object: Value,
}

impl Definition {
    /// Of one version, `v1`, that preserves every field.
    pub fn open(plural: &'static str, kind: &'static str, scope: &str) -> Self {
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        Self::with(plural, kind, scope, &[("v1", schema)])
    }

    /// Of these versions; the first is stored.
    pub fn with(
        plural: &'static str,
        kind: &'static str,
        scope: &str,
        versions: &[(&str, Value)],
    ) -> Self {
        let versions: Vec<Value> = versions
            .iter()
            .enumerate()
            .map(|(number, (name, schema))| {
                json!({"name": name, "served": true, "storage": number == 0,
                    "schema": {"openAPIV3Schema": schema}})
            })
            .collect();
        let object = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{GROUP}")},
            "spec": {"group": GROUP, "scope": scope, "versions": versions,
                "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")}},
        });
        Self {
            plural,
            kind,
            object,
        }
    }

    pub fn group_version(&self) -> String {
        format!("{GROUP}/{}", text(&self.object, "/spec/versions/0/name"))
    }

    pub fn path(&self) -> String {
        format!("{DEFINITIONS}/{}", name(&self.object))
    }

    /// Where its objects are.
    pub fn objects(&self) -> String {
        if self.object["spec"]["scope"] == "Namespaced" {
            at(&self.group_version(), self.plural)
        } else {
            format!("{}/{}", root(&self.group_version()), self.plural)
        }
    }

    /// Creates it and waits until its objects are served.
    pub async fn establish(&self, world: &World) -> Value {
        world.create(DEFINITIONS, self.object.clone()).await;
        let established = |d: &Value| {
            let all = d["status"]["conditions"].as_array().into_iter().flatten();
            all.into_iter()
                .any(|c| c["type"] == "Established" && c["status"] == "True")
        };
        let definition = world.until(&self.path(), established).await;
        world
            .until(&self.objects(), |list| list["items"].is_array())
            .await;
        definition
    }

    pub fn instance(&self, called: &str, content: Value) -> Value {
        let mut object = content;
        object["apiVersion"] = self.group_version().into();
        object["kind"] = self.kind.into();
        object["metadata"]["name"] = called.into();
        object
    }
}

/// Conformance: Custom Resource Definition, create
#[tokio::test]
async fn definitions_come_and_go() {
    let world = World::api().await;
    let definition = Definition::open("noxus", "Noxu", "Cluster");
    let made = definition.establish(&world).await;
    assert_eq!(made["status"]["acceptedNames"], made["spec"]["names"]);
    world.delete(&definition.path()).await.ok(200);
    world.until_gone(&definition.path()).await;
    world
        .until(&definition.objects(), |answer| answer["code"] == 404)
        .await;
}

/// Conformance: Custom Resource Definition, list
#[tokio::test]
async fn definitions_are_listed_by_label() {
    const PLURALS: [&str; 10] = ["as", "bs", "cs", "ds", "es", "fs", "gs", "hs", "is", "js"];
    const KINDS: [&str; 10] = ["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"];
    let world = World::api().await;
    let mut specs = Vec::new();
    for (plural, kind) in PLURALS.into_iter().zip(KINDS) {
        let mut definition = Definition::open(plural, kind, "Cluster");
        definition.object["metadata"]["labels"] = json!({"listed": "yes"});
        specs.push(definition.establish(&world).await["spec"].take());
    }
    let other = Definition::open("others", "Other", "Cluster");
    other.establish(&world).await;
    let listed = format!("{DEFINITIONS}?labelSelector=listed%3Dyes");
    let items = world.items(&listed).await;
    let found: Vec<&Value> = items.iter().map(|i| &i["spec"]).collect();
    assert_eq!(found, specs.iter().collect::<Vec<_>>());
    world.delete(&listed).await.ok(200);
    world.until_count(&listed, 0).await;
    world.object(&other.path()).await;
}

/// Conformance: Custom Resource Definition, status sub-resource
#[tokio::test]
async fn definitions_have_a_status() {
    let world = World::api().await;
    let definition = Definition::open("noxus", "Noxu", "Cluster");
    let made = definition.establish(&world).await;
    let path = format!("{}/status", definition.path());
    let status = world.object(&path).await;
    assert_eq!(status["spec"], made["spec"]);
    let condition = |message: &str| json!({"type": "E2E", "status": "True", "reason": "E2E", "message": message});
    let add = |d: &mut Value| {
        d["status"]["conditions"]
            .as_array_mut()
            .unwrap()
            .push(condition("updated"))
    };
    let has = |d: &Value, message: &str| {
        let all = d["status"]["conditions"].as_array().unwrap();
        all.iter().any(|c| c["message"] == message)
    };
    assert!(has(&world.update(&path, add).await, "updated"));
    let patch =
        json!([{"op": "add", "path": "/status/conditions", "value": [condition("patched")]}]);
    let patched = world.patch(&path, JSON, &patch).await.ok(200);
    assert!(has(&patched, "patched") && !has(&patched, "updated"));
}

/// Conformance: Custom Resource Definition, discovery
#[tokio::test]
async fn definitions_are_discovered() {
    let world = World::api().await;
    let all = world.object("/apis").await;
    let groups = all["groups"].as_array().unwrap();
    let group = groups
        .iter()
        .find(|g| g["name"] == "apiextensions.k8s.io")
        .unwrap();
    assert_eq!(
        group["versions"],
        json!([{"groupVersion": "apiextensions.k8s.io/v1", "version": "v1"}])
    );
    let own = world.object("/apis/apiextensions.k8s.io").await;
    assert_eq!(
        (&own["name"], &own["versions"]),
        (&group["name"], &group["versions"])
    );
    let list = world.object("/apis/apiextensions.k8s.io/v1").await;
    assert_eq!(list["groupVersion"], "apiextensions.k8s.io/v1");
    let resources = list["resources"].as_array().unwrap();
    assert!(
        resources
            .iter()
            .any(|r| r["name"] == "customresourcedefinitions")
    );
}

/// Conformance: Custom Resource Definition, defaulting
#[tokio::test]
async fn defaults_come_from_the_definition_of_the_day() {
    let world = World::api().await;
    let text = json!({"type": "string"});
    let schema = json!({"type": "object", "properties": {"a": text, "b": text}});
    let definition = Definition::with("noxus", "Noxu", "Cluster", &[("v1", schema)]);
    definition.establish(&world).await;
    let make = async |called: &str| {
        world
            .create(
                &definition.objects(),
                definition.instance(called, json!({})),
            )
            .await
    };
    assert!(make("cr-1").await.get("a").is_none());
    let at =
        |field: &str| format!("/spec/versions/0/schema/openAPIV3Schema/properties/{field}/default");
    let patch = json!([{"op": "add", "path": at("a"), "value": "A"}]);
    world.patch(&definition.path(), JSON, &patch).await.ok(200);
    let read = |called: &str| format!("{}/{called}", definition.objects());
    world.until(&read("cr-1"), |o| o["a"] == "A").await;
    assert_eq!(make("cr-2").await["a"], "A");
    let patch =
        json!([{"op": "remove", "path": at("a")}, {"op": "add", "path": at("b"), "value": "B"}]);
    world.patch(&definition.path(), JSON, &patch).await.ok(200);
    let second = world.until(&read("cr-2"), |o| o["b"] == "B").await;
    assert_eq!(second["a"], "A", "it was stored");
    assert!(world.object(&read("cr-1")).await.get("a").is_none());
}

/// Conformance: Custom Resource Definition, watch
#[tokio::test]
async fn custom_resources_are_watched() {
    let world = World::api().await;
    let definition = Definition::open("noxus", "WishIHadChosenNoxu", "Cluster");
    definition.establish(&world).await;
    let path = definition.objects();
    let mut a = world
        .watch(&format!(
            "{path}?watch=true&fieldSelector=metadata.name%3Dname1"
        ))
        .await;
    let mut b = world
        .watch(&format!(
            "{path}?watch=true&fieldSelector=metadata.name%3Dname2"
        ))
        .await;
    for (called, events) in [("name1", &mut a), ("name2", &mut b)] {
        let content =
            json!({"content": {"key": "value"}, "num": {"num1": 1_i64 << 53, "num2": 1_000_000}});
        let made = world
            .create(&path, definition.instance(called, content))
            .await;
        assert_eq!(events.expect("ADDED").await, made);
        let changed = world
            .merge(&format!("{path}/{called}"), json!({"dummy": "test"}))
            .await;
        assert_eq!(events.expect("MODIFIED").await, changed);
        world.delete(&format!("{path}/{called}")).await.ok(200);
        assert_eq!(name(&events.expect("DELETED").await), called);
    }
}

/// Selectors of fields that a definition names choose what is listed, watched and deleted.
#[tokio::test]
async fn custom_resources_are_selected_by_their_fields() {
    let world = World::api().await;
    let schema = json!({"type": "object", "properties": {"host": {"type": "string"}, "port": {"type": "string"}}});
    let mut definition = Definition::with("noxus", "Noxu", "Namespaced", &[("v2", schema)]);
    definition.object["spec"]["versions"][0]["selectableFields"] =
        json!([{"jsonPath": ".host"}, {"jsonPath": ".port"}]);
    definition.establish(&world).await;
    let path = definition.objects();
    let select = |query: &str| format!("{path}?fieldSelector={query}");
    let one = select("host%3Dhost1");
    let two = select("host%3Dhost1%2Cport%3D80");
    let mut of_one = world.watch(&format!("{one}&watch=true")).await;
    let mut of_two = world.watch(&format!("{two}&watch=true")).await;
    let all = [
        ("a", json!({"host": "host1", "port": "80"})),
        ("b", json!({"host": "host1", "port": "8080"})),
        ("c", json!({"host": "host2"})),
    ];
    for (called, content) in all {
        world
            .create(&path, definition.instance(called, content))
            .await;
    }
    let names = async |path: &str| {
        let items = world.items(path).await;
        items.iter().map(|i| name(i).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&one).await, ["a", "b"]);
    assert_eq!(names(&two).await, ["a"]);
    assert_eq!(name(&of_one.expect("ADDED").await), "a");
    assert_eq!(name(&of_one.expect("ADDED").await), "b");
    assert_eq!(name(&of_two.expect("ADDED").await), "a");
    world
        .delete_with(&two, json!({"gracePeriodSeconds": 0}))
        .await
        .ok(200);
    world
        .update(&format!("{path}/b"), |o| o["host"] = "host2".into())
        .await;
    assert!(names(&one).await.is_empty() && names(&two).await.is_empty());
    assert_eq!(name(&of_one.expect("DELETED").await), "a");
    assert_eq!(name(&of_one.expect("DELETED").await), "b");
    assert_eq!(name(&of_two.expect("DELETED").await), "a");
}

/// Custom resources lead the life of built-in ones.
#[tokio::test]
async fn custom_resources_live() {
    let world = World::api().await;
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {"type": "string"}}},
        "status": {"type": "object", "properties": {"phase": {"type": "string"}}}}});
    let mut definition = Definition::with("noxus", "Noxu", "Namespaced", &[("v1", schema)]);
    definition.object["spec"]["versions"][0]["subresources"] = json!({"status": {}});
    definition.establish(&world).await;
    Life::namespaced(
        "mygroup.example.com/v1",
        "Noxu",
        "noxus",
        json!({"spec": {"a": "b"}}),
    )
    .custom()
    .status(json!({"phase": "Ready"}))
    .live_in(&world)
    .await;
}
