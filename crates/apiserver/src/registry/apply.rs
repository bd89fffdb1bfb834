//! Who owns the fields of an object: what the engine tells server-side apply about a resource and a request.
//!
//! Which fields a request set is found out before hooks and admission run, so that their doing belongs to nobody.

use std::sync::Arc;

use api::{Kind, Schema, Status, meta};
use codec::apply::{self, Context, Reset};
use serde_json::Value;

use super::{Fail, Registry, Resource, Write};

/// Scale is no resource of its own, and so has no descriptor.
const SCALE_SCHEMA: &str = "io.k8s.api.autoscaling.v1.Scale";
/// Its version.
const SCALE_VERSION: &str = "autoscaling/v1";
/// Where managed fields are.
const MANAGED_FIELDS: &[&str] = &["metadata", "managedFields"];
/// Where built-in kinds have their replicas.
const REPLICAS: [&str; 2] = ["spec", "replicas"];

/// How a request owns the fields it sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The field manager: what the client calls itself.
    pub manager: String,
}

impl Owner {
    /// The server itself.
    pub fn server() -> Self {
        Self {
            manager: "kube-apiserver".to_owned(),
        }
    }
}

/// Fields that a subresource (or the object itself) resets to what they were.
fn reset(kind: &Kind, subresource: &str) -> Reset {
    match (subresource, kind.group.as_str(), kind.resource.as_str()) {
        ("", ..) if kind.has_status() => Reset::fields(&[&["status"]]),
        ("status", "", "pods") => Reset::fields(&[
            &["spec"],
            &["metadata", "deletionTimestamp"],
            &["metadata", "ownerReferences"],
        ]),
        ("status", "apps", "deployments") => Reset::fields(&[&["spec"], &["metadata", "labels"]]),
        ("status", ..) if kind.custom.is_some() => Reset::fields(&[&["spec"], &["metadata"]]),
        ("status" | "approval", ..) => Reset::fields(&[&["spec"]]),
        ("finalize", ..) => Reset::fields(&[&["status"]]),
        ("ephemeralcontainers", ..) => Reset::AllBut(&[&["spec", "ephemeralContainers"]]),
        ("resize", ..) => Reset::AllBut(&[
            &["spec", "containers", "*", "resources"],
            &["spec", "containers", "*", "resizePolicy"],
            &["spec", "initContainers", "*", "resources"],
            &["spec", "initContainers", "*", "resizePolicy"],
        ]),
        _ => Reset::Nothing,
    }
}

/// The other served versions of a resource, if an object has owners that speak of them.
fn siblings(registry: &Registry, resource: &Resource, objects: &[&Value]) -> Vec<Arc<Resource>> {
    let own = resource.kind.api_version();
    let mut others: Vec<&str> = Vec::new();
    for entry in objects
        .iter()
        .flat_map(|o| meta::list_at(o, MANAGED_FIELDS))
    {
        let version = meta::str_at(entry, &["apiVersion"]);
        if version != own && !others.contains(&version) {
            others.push(version);
        }
    }
    if others.is_empty() {
        return Vec::new();
    }
    let all = registry.resources();
    let prefix = resource.kind.storage_prefix();
    others
        .into_iter()
        .filter_map(|version| {
            let (group, version) = meta::split_api_version(version);
            all.find(group, version, &resource.kind.resource)
        })
        .filter(|other| other.kind.storage_prefix() == prefix)
        .collect()
}

impl Write<'_> {
    /// Calls `f` with what apply must know about objects of this request's resource, in its version.
    fn context<T>(
        &self,
        registry: &Registry,
        objects: &[&Value],
        f: impl FnOnce(&Context<'_>) -> T,
    ) -> Option<T> {
        let kind = &self.resource.kind;
        let siblings = siblings(registry, self.resource, objects);
        let versions = |value: &Value, version: &str| {
            let other = siblings
                .iter()
                .find(|s| s.kind.api_version() == version)
                .map_or(kind, |s| &s.kind);
            if other.api_version() != version {
                return None;
            }
            let mut value = value.clone();
            kinds::convert(&mut value, other);
            Some((value, other.schema.get()?))
        };
        Some(f(&Context {
            api_version: &kind.api_version(),
            kind: &kind.kind,
            schema: kind.schema.get()?,
            subresource: self.subresource,
            reset: &reset(kind, self.subresource),
            versions: &versions,
            now: self.now,
        }))
    }

    /// Calls `f` with what apply must know about a Scale.
    fn scale_context<T>(&self, f: impl FnOnce(&Context<'_>) -> T) -> Option<T> {
        Some(f(&Context {
            api_version: SCALE_VERSION,
            kind: "Scale",
            schema: api::schema(SCALE_SCHEMA)?,
            subresource: "scale",
            reset: &Reset::Nothing,
            versions: &|_: &Value, _: &str| None::<(Value, &Schema)>,
            now: self.now,
        }))
    }

    /// Writes down who owns what after this request, if it is one that owns: `new` was made of `live`, both in the
    /// version of the request.
    pub fn track(&self, registry: &Registry, live: Option<&Value>, new: &mut Value) {
        let Some(owner) = self.owner else { return };
        let kept = new.clone_managed();
        let objects: Vec<&Value> = live.into_iter().chain(kept.as_ref()).collect();
        self.context(registry, &objects, |c| c.track(live, new, &owner.manager));
    }

    /// The object that an applied configuration makes of `live`, or makes if there is none.
    ///
    /// # Errors
    /// As [`Context::apply`].
    pub fn applied(
        &self,
        registry: &Registry,
        live: Option<&Value>,
        config: &Value,
        (manager, force): (&str, bool),
    ) -> Result<Value, Fail> {
        let objects: Vec<&Value> = live.into_iter().collect();
        let applied = self.context(registry, &objects, |c| {
            c.apply(live, config, manager, force)
        });
        applied.unwrap_or_else(|| Err(unknown_schema(&self.resource.kind.kind)))
    }

    /// The same for a Scale.
    ///
    /// # Errors
    /// As [`Context::apply`].
    pub fn applied_scale(
        &self,
        live: &Value,
        config: &Value,
        (manager, force): (&str, bool),
    ) -> Result<Value, Fail> {
        let applied = self.scale_context(|c| c.apply(Some(live), config, manager, force));
        applied.unwrap_or_else(|| Err(unknown_schema("Scale")))
    }

    /// Gives a Scale the owners of the replicas of the object it scales.
    pub(super) fn own_scale(&self, object: &Value, scale: &mut Value) {
        let managed = meta::get(object, MANAGED_FIELDS);
        if let Ok(Some(list)) = apply::to_scale(managed, &self.replicas()) {
            meta::set(scale, MANAGED_FIELDS, list);
        }
    }

    /// Gives an object the owners that its replicas have after its Scale became `wanted`.
    pub(super) fn disown_scale(&self, scale: &Value, mut wanted: Value, object: &mut Value) {
        if let Some(owner) = self.owner {
            self.scale_context(|c| c.track(Some(scale), &mut wanted, &owner.manager));
        }
        let list = apply::from_scale(
            meta::get(object, MANAGED_FIELDS),
            meta::get(&wanted, MANAGED_FIELDS),
            &self.resource.kind.api_version(),
            &self.replicas(),
        );
        if let Ok(Some(list)) = list {
            meta::set(object, MANAGED_FIELDS, list);
        }
    }

    fn replicas(&self) -> Vec<&str> {
        let custom = self.resource.kind.custom.as_ref();
        match custom.and_then(|c| c.scale.as_ref()) {
            Some(paths) => paths.spec.iter().map(String::as_str).collect(),
            None => REPLICAS.to_vec(),
        }
    }
}

fn unknown_schema(kind: &str) -> Fail {
    Box::new(Status::internal(format!("no schema of {kind}")))
}

/// The owners an object speaks of, without the rest of it.
trait CloneManaged {
    fn clone_managed(&self) -> Option<Value>;
}

impl CloneManaged for Value {
    fn clone_managed(&self) -> Option<Value> {
        let list = meta::get(self, MANAGED_FIELDS)?;
        let versions: Value = list
            .as_array()?
            .iter()
            .map(|e| serde_json::json!({"apiVersion": meta::str_at(e, &["apiVersion"])}))
            .collect();
        Some(serde_json::json!({"metadata": {"managedFields": versions}}))
    }
}
