//! Applies and updates one after another, by several managers.

use api::Status;
use api::time::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::typed::is_empty;
use super::{Context, Reset, keep_times};

/// One object and the kind it is of.
struct World {
    kind: &'static str,
    api_version: &'static str,
    object: Option<Value>,
    seconds: i64,
}

impl World {
    fn new(api_version: &'static str, kind: &'static str) -> Self {
        Self {
            kind,
            api_version,
            object: None,
            seconds: 0,
        }
    }

    fn deployment() -> Self {
        Self::new("apps/v1", "Deployment")
    }

    fn with<T>(&mut self, subresource: &str, f: impl FnOnce(&Context<'_>) -> T) -> T {
        self.seconds += 1;
        let (group, version) = api::meta::split_api_version(self.api_version);
        let kind = api::kind_by_gvk(group, version, self.kind).unwrap();
        let reset = Reset::fields(&[if subresource.is_empty() {
            &["status"]
        } else {
            &["spec"]
        }]);
        f(&Context {
            api_version: self.api_version,
            kind: self.kind,
            schema: kind.schema.get().unwrap(),
            subresource,
            reset: &reset,
            versions: &|_, _| None,
            now: Timestamp::from_second(self.seconds).unwrap(),
        })
    }

    fn config(&self, mut fields: Value) -> Value {
        fields["apiVersion"] = self.api_version.into();
        fields["kind"] = self.kind.into();
        fields["metadata"]["name"] = "x".into();
        fields
    }

    fn try_apply(&mut self, manager: &str, fields: Value, force: bool) -> Result<(), Box<Status>> {
        let config = self.config(fields);
        let live = self.object.take();
        let out = self.with("", |c| c.apply(live.as_ref(), &config, manager, force));
        let out = out.map(|object| {
            let mut object = as_stored(object);
            keep_times(live.as_ref().unwrap_or(&Value::Null), &mut object);
            object
        });
        self.object = live;
        self.object = Some(out?);
        Ok(())
    }

    fn apply(&mut self, manager: &str, fields: Value) {
        self.try_apply(manager, fields, false)
            .unwrap_or_else(|s| panic!("{}", s.message));
    }

    fn conflict(&mut self, manager: &str, fields: Value) -> Status {
        *self.try_apply(manager, fields, false).unwrap_err()
    }

    fn update_through(&mut self, subresource: &str, manager: &str, f: impl FnOnce(&mut Value)) {
        let live = self.object.take();
        let mut new = live.clone().unwrap_or_else(|| self.config(json!({})));
        f(&mut new);
        self.with(subresource, |c| c.track(live.as_ref(), &mut new, manager));
        self.object = Some(new);
    }

    fn update(&mut self, manager: &str, f: impl FnOnce(&mut Value)) {
        self.update_through("", manager, f);
    }

    fn object(&self) -> &Value {
        self.object.as_ref().unwrap()
    }

    /// Entries as `manager operation[/subresource]` with their fields.
    fn owners(&self) -> Vec<(String, Value)> {
        let list = self.object()["metadata"]["managedFields"].as_array();
        list.into_iter()
            .flatten()
            .map(|e| {
                let text = |f: &str| e[f].as_str().unwrap_or_default();
                let who = format!(
                    "{} {}/{}",
                    text("manager"),
                    text("operation"),
                    text("subresource")
                );
                (who, e["fieldsV1"].clone())
            })
            .collect()
    }

    fn owned(&self, who: &str) -> Value {
        let all = self.owners();
        let found = all.iter().find(|(name, _)| name == who);
        found.map_or(Value::Null, |(_, fields)| fields.clone())
    }
}

/// As Go's structs keep an object: without what is empty.
fn as_stored(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .map(|(k, v)| match k.as_str() {
                "managedFields" => (k, v),
                _ => (k, as_stored(v)),
            })
            .filter(|(_, v)| !is_empty(v))
            .collect(),
        Value::Array(items) => items.into_iter().map(as_stored).collect(),
        other => other,
    }
}

fn deployment() -> Value {
    json!({"metadata": {"labels": {"app": "x"}}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [
            {"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}}}})
}

#[test]
fn an_applied_deployment() {
    let mut w = World::deployment();
    w.apply("kubectl", deployment());
    assert_eq!(
        w.owned("kubectl Apply/"),
        json!({"f:metadata": {"f:labels": {"f:app": {}}}, "f:spec": {"f:replicas": {}, "f:selector": {},
            "f:template": {"f:metadata": {"f:labels": {"f:app": {}}}, "f:spec": {"f:containers": {
                "k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}, "f:ports": {
                    "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}})
    );
    let before = w.object().clone();
    w.apply("kubectl", deployment());
    assert_eq!(
        *w.object(),
        before,
        "applying again changes nothing, not even times"
    );
}

#[test]
fn a_created_deployment_is_owned_as_upstream_writes_it() {
    let mut w = World::deployment();
    w.update("kubectl-create", |o| {
        for (key, value) in deployment().as_object().unwrap() {
            o[key] = value.clone();
        }
        o["metadata"]["name"] = "x".into();
        o["spec"]["strategy"] =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}});
        o["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({});
        o["spec"]["template"]["spec"]["containers"][0]["ports"][0]["protocol"] = "TCP".into();
        o["spec"]["template"]["spec"]["securityContext"] = json!({});
        o["status"] = json!({"replicas": 1});
    });
    assert_eq!(
        w.owned("kubectl-create Update/"),
        json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:replicas": {}, "f:selector": {},
            "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
            "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:containers": {
                "k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}, "f:ports": {".": {},
                    "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}},
                    "f:resources": {}}}, "f:securityContext": {}}}}})
    );
}

#[test]
fn conflicts_and_force() {
    let mut w = World::deployment();
    w.apply("one", deployment());
    w.update("scaler/1.0", |o| o["spec"]["replicas"] = 5.into());
    let mut config = deployment();
    config["spec"]["template"]["spec"]["containers"][0]["image"] = "j".into();
    let status = w.conflict("one", config.clone());
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"scaler/1.0\" using apps/v1: .spec.replicas"
    );
    let status = w.conflict("two", config.clone());
    assert_eq!((status.code, &*status.reason), (409, "Conflict"));
    assert_eq!(
        status.message,
        "Apply failed with 2 conflicts: conflicts with \"one\":\n- .spec.template.spec.containers[name=\"c\"].image\nconflicts with \"scaler/1.0\" using apps/v1:\n- .spec.replicas"
    );
    let causes = status.details.unwrap().causes.clone();
    assert_eq!(causes[1].reason, "FieldManagerConflict");
    assert_eq!(
        causes[1].message,
        "conflict with \"scaler/1.0\" using apps/v1"
    );
    assert_eq!(causes[1].field, ".spec.replicas");
    w.try_apply("two", config, true).unwrap();
    assert_eq!(w.object()["spec"]["replicas"], 3);
    assert_eq!(
        w.owned("scaler/1.0 Update/"),
        Value::Null,
        "nothing left to own"
    );
    let one = w.owned("one Apply/").to_string();
    assert!(
        !one.contains("f:image") && !one.contains("f:replicas"),
        "{one}"
    );
}

#[test]
fn what_is_no_longer_applied_goes_unless_shared() {
    let mut w = World::new("v1", "ConfigMap");
    w.apply("a", json!({"data": {"a": "1", "both": "1"}}));
    w.apply("b", json!({"data": {"b": "1", "both": "1"}}));
    w.update("c", |o| o["data"]["c"] = "1".into());
    w.apply("a", json!({"data": {"x": "1"}}));
    assert_eq!(
        w.object()["data"],
        json!({"both": "1", "b": "1", "c": "1", "x": "1"})
    );
    w.apply("b", json!({}));
    assert_eq!(w.object()["data"], json!({"c": "1", "x": "1"}));
    assert_eq!(w.owned("b Apply/"), Value::Null);
    w.apply("a", json!({}));
    assert_eq!(w.object()["data"], json!({"c": "1"}));
    w.update("c", |o| {
        o.as_object_mut().unwrap().remove("data");
    });
    assert_eq!(w.owners(), []);
}

#[test]
fn metadata_stays_without_what_was_applied_to_it() {
    let mut w = World::new("v1", "ConfigMap");
    w.apply(
        "a",
        json!({"metadata": {"labels": {"a": "1"}}, "data": {"a": "1"}}),
    );
    w.update("u", |o| {
        o["metadata"]["uid"] = "id".into();
        o["metadata"]["annotations"] = json!({"u": "1"});
    });
    w.apply("a", json!({"data": {"a": "1"}}));
    let mut metadata = w.object()["metadata"].clone();
    metadata.as_object_mut().unwrap().remove("managedFields");
    assert_eq!(
        metadata,
        json!({"name": "x", "uid": "id", "annotations": {"u": "1"}})
    );
}

#[test]
fn list_items_go_with_their_owner() {
    let mut w = World::deployment();
    w.apply("a", deployment());
    let mut sidecar =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "s", "image": "i"}]}}}});
    w.apply("b", sidecar.clone());
    let names = |w: &World| -> Vec<String> {
        let containers = &w.object()["spec"]["template"]["spec"]["containers"];
        containers
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&w), ["c", "s"]);
    sidecar["spec"]["template"]["spec"]["containers"] = json!([]);
    w.apply("b", sidecar);
    assert_eq!(names(&w), ["c"]);
}

#[test]
fn owners_by_subresource() {
    let mut w = World::deployment();
    w.apply("a", deployment());
    w.update_through("status", "controller", |o| {
        o["status"] =
            json!({"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]});
    });
    assert_eq!(
        w.owned("controller Update/status"),
        json!({"f:status": {"f:conditions": {".": {}, "k:{\"type\":\"Available\"}": {".": {}, "f:status": {}, "f:type": {}}}, "f:replicas": {}}})
    );
    let before = w.object()["metadata"]["managedFields"].clone();
    w.update_through("status", "controller", |o| {
        o["metadata"]["managedFields"] = json!([]);
    });
    assert_eq!(
        w.object()["metadata"]["managedFields"],
        before,
        "subresources cannot change the list"
    );
}

#[test]
fn forgetting_and_starting_over() {
    let mut w = World::new("v1", "ConfigMap");
    w.update("c", |o| o["data"] = json!({"a": "1"}));
    assert_eq!(
        w.owned("c Update/"),
        json!({"f:data": {".": {}, "f:a": {}}})
    );
    w.update("c", |o| o["metadata"]["managedFields"] = json!([{}]));
    assert_eq!(w.owners(), []);
    w.update("d", |o| o["data"]["b"] = "1".into());
    assert_eq!(w.owners(), [], "not tracked until the first apply");
    let status = w.conflict("e", json!({"data": {"a": "2"}}));
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.a"
    );
    w.apply("e", json!({"data": {"a": "1", "x": "1"}}));
    assert_eq!(
        w.owned("before-first-apply Update/"),
        json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}})
    );
    // Clients that know nothing of the list do not lose it.
    w.update("d", |o| {
        o["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("managedFields");
    });
    assert_eq!(w.owners().len(), 2);
}

#[test]
fn from_client_side_apply() {
    let annotation = "kubectl.kubernetes.io/last-applied-configuration";
    let mut w = World::new("v1", "ConfigMap");
    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "1", "b": "1"}});
    w.update("kubectl-client-side-apply", |o| {
        *o = applied.clone();
        o["metadata"]["annotations"] = json!({annotation: applied.to_string()});
    });
    w.update("other", |o| o["data"]["b"] = "2".into());
    // What kubectl applied and still is so may be changed; what someone else set since may not.
    let status = w.conflict("kubectl", json!({"data": {"a": "3", "b": "3"}}));
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"other\" using v1: .data.b"
    );
    w.apply("kubectl", json!({"data": {"a": "3"}}));
    assert_eq!(w.object()["data"], json!({"a": "3", "b": "2"}));
    assert_eq!(
        w.object()["metadata"]["annotations"][annotation],
        "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"3\"},\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"x\"}}\n"
    );
}

#[test]
fn refusals() {
    let mut w = World::new("v1", "ConfigMap");
    let mut refuse = |config: Value| {
        let status = w
            .with("", |c| c.apply(None, &config, "m", false))
            .unwrap_err();
        (status.code, status.message)
    };
    assert_eq!(
        refuse(json!({"apiVersion": "v1", "kind": "Pod"})),
        (400, "invalid object type: /v1, Kind=Pod".to_owned())
    );
    let of = |more: Value| {
        let mut config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "n"}});
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    };
    assert_eq!(
        refuse(of(json!({"metadata": {"managedFields": []}}))),
        (400, "metadata.managedFields must be nil".to_owned())
    );
    assert_eq!(
        refuse(of(json!({"spec": 1}))),
        (
            500,
            "failed to create typed patch object (n/x; /v1, Kind=ConfigMap): .spec: field not declared in schema"
                .to_owned()
        )
    );
}

#[test]
fn many_updaters_are_bounded() {
    let mut w = World::new("v1", "ConfigMap");
    for i in 0..30 {
        w.update(&format!("m{i}"), |o| {
            o["data"][format!("k{i}")] = "v".into();
        });
    }
    assert_eq!(w.owners().len(), 10);
    assert!(
        w.owned("ancient-changes Update/")
            .to_string()
            .contains("f:k0")
    );
}

/// Data of a config map over few keys, so that managers meet.
fn data() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-d]", "[01]", 0..4).prop_map(|m| json!({ "data": m }))
}

prop_compose! {
    fn pod_spec()(containers in prop::collection::btree_map("[ab]", ("[ij]", prop::collection::btree_map(1..3, "[xy]", 0..2)), 0..3),
        finalizers in prop::collection::btree_set("[a-c]/x", 0..3), host in prop::option::of("[h]")) -> Value {
        let containers: Vec<Value> = containers
            .into_iter()
            .map(|(name, (image, ports))| {
                let ports: Vec<Value> = ports.into_iter().map(|(p, n)| json!({"containerPort": p, "name": n})).collect();
                json!({"name": name, "image": image, "ports": ports})
            })
            .collect();
        let mut spec = json!({"containers": containers});
        if let Some(host) = host {
            spec["hostname"] = host.into();
        }
        json!({"metadata": {"finalizers": finalizers}, "spec": spec})
    }
}

proptest! {
    #[test]
    fn applying_twice_changes_nothing(a in pod_spec(), b in pod_spec(), c in pod_spec()) {
        let mut w = World::new("v1", "Pod");
        // While nobody owns anything, an apply writes down what was there before it.
        w.update("u", |o| o["metadata"]["labels"] = json!({"k": "v"}));
        for (manager, config) in [("a", &a), ("b", &b), ("a", &c)] {
            w.try_apply(manager, config.clone(), true).unwrap();
            let once = w.object().clone();
            w.try_apply(manager, config.clone(), false).unwrap();
            prop_assert_eq!(w.object(), &once);
        }
    }

    #[test]
    fn forcing_gives_what_was_asked_and_its_ownership(a in data(), b in data()) {
        let mut w = World::new("v1", "ConfigMap");
        w.apply("a", a);
        w.try_apply("b", b.clone(), true).unwrap();
        for (key, value) in b["data"].as_object().unwrap() {
            prop_assert_eq!(&w.object()["data"][key], value);
        }
        // Whoever owns a field alone can change it without asking.
        let mut other = b.clone();
        for value in other["data"].as_object_mut().unwrap().values_mut() {
            *value = "2".into();
        }
        let shared = w.owned("a Apply/");
        let free = b["data"].as_object().unwrap().keys()
            .all(|k| shared.pointer(&format!("/f:data/f:{k}")).is_none());
        prop_assert_eq!(w.try_apply("b", other, false).is_ok(), free);
    }

    #[test]
    fn disjoint_appliers_never_conflict(a in prop::collection::btree_set("a[0-9]", 1..5), b in prop::collection::btree_set("b[0-9]", 1..5)) {
        let of = |keys: &std::collections::BTreeSet<String>| {
            let map: serde_json::Map<String, Value> = keys.iter().map(|k| (k.clone(), "v".into())).collect();
            json!({"data": map})
        };
        let mut w = World::new("v1", "ConfigMap");
        w.apply("a", of(&a));
        w.apply("b", of(&b));
        w.apply("a", of(&a));
        let all = w.object()["data"].as_object().map_or(0, serde_json::Map::len);
        prop_assert_eq!(all, a.len() + b.len());
        w.apply("a", json!({}));
        let left: Vec<String> = w.object().get("data").and_then(Value::as_object).into_iter().flatten().map(|(k, _)| k.clone()).collect();
        prop_assert_eq!(left, b.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn what_one_applied_alone_goes_with_it(a in pod_spec()) {
        let mut w = World::new("v1", "Pod");
        w.update("u", |o| o["metadata"]["labels"] = json!({"k": "v"}));
        let before = w.object().clone();
        w.apply("a", a);
        w.apply("a", json!({}));
        prop_assert_eq!(&w.object()["metadata"]["labels"], &before["metadata"]["labels"]);
        prop_assert!(w.object()["spec"].get("hostname").is_none());
        prop_assert!(w.object()["metadata"].get("finalizers").is_none());
        prop_assert_eq!(w.owners().len(), 1);
    }

    #[test]
    fn every_field_an_update_sets_has_exactly_one_updater(steps in prop::collection::vec(("[uv]", data()), 1..6)) {
        let mut w = World::new("v1", "ConfigMap");
        for (manager, config) in steps {
            w.update(&manager, |o| o["data"] = config["data"].clone());
        }
        let data = w.object()["data"].as_object().unwrap().clone();
        for key in data.keys() {
            let owners = w.owners().iter().filter(|(_, f)| f.pointer(&format!("/f:data/f:{key}")).is_some()).count();
            prop_assert_eq!(owners, 1, "{}", key);
        }
    }
}
