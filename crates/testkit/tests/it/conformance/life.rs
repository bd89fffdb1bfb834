//! The life that every kind of the API leads: found in discovery, created, read, listed, watched,
//! patched, updated, given a status, deleted alone and by collection.

use serde_json::{Value, json};

use super::world::*;

/// Verbs of a kind that can do everything.
const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// A kind and an object of it.
pub struct Life {
    group_version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
    object: Value,
    names: [&'static str; 3],
    status: Option<Value>,
    patch: &'static str,
}

impl Life {
    /// Of a kind without namespaces.
    pub fn cluster(
        group_version: &'static str,
        kind: &'static str,
        plural: &'static str,
        object: Value,
    ) -> Self {
        Self {
            group_version,
            kind,
            plural,
            namespaced: false,
            object,
            names: ["life-a", "life-b", "life-c"],
            status: None,
            patch: STRATEGIC,
        }
    }

    /// Of a kind in namespaces.
    pub fn namespaced(
        group_version: &'static str,
        kind: &'static str,
        plural: &'static str,
        object: Value,
    ) -> Self {
        Self {
            namespaced: true,
            ..Self::cluster(group_version, kind, plural, object)
        }
    }

    /// Of a custom kind, which has no strategic merge patch.
    pub fn custom(self) -> Self {
        Self {
            patch: MERGE,
            ..self
        }
    }

    /// With these names.
    pub fn names(self, names: [&'static str; 3]) -> Self {
        Self { names, ..self }
    }

    /// Also patches and updates the status, with this.
    pub fn status(self, status: Value) -> Self {
        Self {
            status: Some(status),
            ..self
        }
    }

    pub fn path(&self) -> String {
        if self.namespaced {
            at(self.group_version, self.plural)
        } else {
            format!("{}/{}", root(self.group_version), self.plural)
        }
    }

    /// Leads it in an API server of its own.
    pub async fn live(self) {
        let world = World::api().await;
        self.live_in(&world).await;
    }

    pub async fn live_in(&self, world: &World) {
        self.discovered(world).await;
        self.created(world).await;
        let first = format!("{}/{}", self.path(), self.names[0]);
        let list = world.object(&self.selected()).await;
        let from = format!(
            "{}&watch=true&resourceVersion={}",
            self.selected(),
            version(&list)
        );
        let mut events = world.watch(&from).await;
        self.changed(world, &first, &mut events).await;
        if let Some(status) = &self.status {
            self.has_status(world, &first, status).await;
        }
        self.deleted(world, &first, &mut events).await;
    }

    fn selected(&self) -> String {
        format!("{}?labelSelector=life%3Don", self.path())
    }

    fn named(&self, name: &str) -> Value {
        let mut object = self.object.clone();
        object["apiVersion"] = self.group_version.into();
        object["kind"] = self.kind.into();
        object["metadata"]["name"] = name.into();
        object["metadata"]["labels"]["life"] = "on".into();
        object
    }

    async fn discovered(&self, world: &World) {
        if let Some((group, version)) = self.group_version.split_once('/') {
            let serves = |group: &Value| {
                let versions = group["versions"].as_array().unwrap();
                versions.iter().any(|v| v["version"] == version)
            };
            let all = world.object("/apis").await;
            let groups = all["groups"].as_array().unwrap();
            assert!(groups.iter().any(|g| g["name"] == group && serves(g)));
            assert!(serves(&world.object(&format!("/apis/{group}")).await));
        }
        let all = world.object(&root(self.group_version)).await;
        let resources = all["resources"].as_array().unwrap();
        let resource = |name: &str| resources.iter().find(|r| r["name"] == name);
        let found = resource(self.plural).expect("in discovery");
        let verbs = found["verbs"].as_array().unwrap();
        for verb in VERBS {
            assert!(verbs.iter().any(|v| v == verb), "{verb} of {found}");
        }
        assert_eq!(found["namespaced"], self.namespaced);
        if self.status.is_some() {
            let name = format!("{}/status", self.plural);
            let status = resource(&name).expect("its status in discovery");
            assert_eq!(status["verbs"], json!(["get", "patch", "update"]));
        }
    }

    async fn created(&self, world: &World) {
        for name in self.names {
            let made = world.create(&self.path(), self.named(name)).await;
            assert_eq!(
                (made["kind"].as_str(), made["apiVersion"].as_str()),
                (Some(self.kind), Some(self.group_version))
            );
            let got = world.object(&format!("{}/{name}", self.path())).await;
            assert_eq!(got["metadata"]["uid"], made["metadata"]["uid"]);
            let again = world.post(&self.path(), &self.named(name)).await;
            assert_eq!(again.body["reason"], "AlreadyExists", "{:#}", again.body);
            assert_eq!(again.code, 409);
        }
        assert_eq!(world.items(&self.selected()).await.len(), 3);
        if self.namespaced {
            let everywhere = format!(
                "{}/{}?labelSelector=life%3Don",
                root(self.group_version),
                self.plural
            );
            assert_eq!(world.items(&everywhere).await.len(), 3);
        }
    }

    async fn changed(&self, world: &World, first: &str, events: &mut Events) {
        let old = world.object(first).await;
        let patched = world
            .merge(
                first,
                json!({"metadata": {"annotations": {"patched": "true"}}}),
            )
            .await;
        assert_eq!(patched["metadata"]["annotations"]["patched"], "true");
        assert_ne!(version(&old), version(&patched));
        let labels = json!({"metadata": {"labels": {"patched": "too"}}});
        let twice = world.patch(first, self.patch, &labels).await.ok(200);
        assert_eq!(twice["metadata"]["labels"]["patched"], "too");
        let stale = world.put(first, &old).await;
        assert_eq!(stale.body["reason"], "Conflict", "{:#}", stale.body);
        let updated = world
            .update(first, |o| {
                o["metadata"]["annotations"]["updated"] = "true".into()
            })
            .await;
        assert_eq!(updated["metadata"]["annotations"]["updated"], "true");
        assert_eq!(updated["metadata"]["uid"], old["metadata"]["uid"]);
        let annotation = |o: &Value, key: &str| o["metadata"]["annotations"][key] == "true";
        events.find("MODIFIED", |o| annotation(o, "patched")).await;
        events.find("MODIFIED", |o| annotation(o, "updated")).await;
    }

    async fn has_status(&self, world: &World, first: &str, status: &Value) {
        let path = format!("{first}/status");
        let before = world.object(&path).await;
        assert_eq!(before["kind"], self.kind);
        assert_eq!(before["metadata"]["name"], self.names[0]);
        let patch =
            json!({"metadata": {"annotations": {"patchedstatus": "true"}}, "status": status});
        let patched = world.merge(&path, patch).await;
        // Of a custom resource, /status writes the status alone.
        let told = |o: &Value, key: &str| o["metadata"]["annotations"][key] == "true";
        let custom = self.patch == MERGE;
        assert_ne!(told(&patched, "patchedstatus"), custom);
        assert!(
            includes(&patched["status"], status),
            "{:#}",
            patched["status"]
        );
        let mut spoilt = patched.clone();
        spoilt["status"] = json!({});
        let main = world.put(first, &spoilt).await.ok(200);
        assert_eq!(
            main["status"], patched["status"],
            "only /status writes the status"
        );
        let updated = world
            .update(&path, |o| {
                o["metadata"]["annotations"]["updatedstatus"] = "true".into()
            })
            .await;
        assert_ne!(told(&updated, "updatedstatus"), custom);
        assert_eq!(updated["status"], patched["status"]);
        assert_eq!(updated["spec"], before["spec"]);
    }

    async fn deleted(&self, world: &World, first: &str, events: &mut Events) {
        world.delete(first).await.ok(200);
        world.until_gone(first).await;
        events.find("DELETED", |o| name(o) == self.names[0]).await;
        assert_eq!(world.items(&self.selected()).await.len(), 2);
        world.delete(&self.selected()).await.ok(200);
        world.until_count(&self.selected(), 0).await;
    }
}

/// Whether all of `part` is in `whole`; lists must be the same in length.
pub fn includes(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .all(|(key, part)| whole.get(key).is_some_and(|whole| includes(whole, part))),
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(w, p)| includes(w, p))
        }
        _ => whole == part,
    }
}
