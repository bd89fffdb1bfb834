//! Objects that every cluster has, made when the server starts.
//!
//! Level-triggered and safe to repeat: what exists stays, only roles and bindings that may be updated get what they lack.

pub mod events;
mod service;

use std::sync::Arc;

use api::meta;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Value, json};

use crate::auth::{bootstrap_rbac, secret_token};
use crate::call::complete;
use crate::registry::{Fail, Myself, Part, Registry, Resource};

/// Namespaces of every cluster.
const NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "default"];
/// Priority classes of every cluster.
const PRIORITIES: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];
/// Annotation of roles and bindings that the server may complete.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// Objects made at once: their commits share one sync to disk.
const CONCURRENCY: usize = 64;

/// Makes what is missing.
///
/// # Errors
/// When an object cannot be read or written.
pub async fn run(registry: &Arc<Registry>) -> Result<(), Fail> {
    for name in NAMESPACES {
        let labels = json!({"kubernetes.io/metadata.name": name});
        let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "labels": labels}});
        ensure(registry, namespace).await?;
    }
    let classes = PRIORITIES.map(|(name, value, description)| {
        json!({"kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": {"name": name}, "value": value, "description": description})
    });
    let objects = bootstrap_rbac().into_iter().chain(classes);
    stream::iter(objects.map(|o| ensure(registry, o)))
        .buffer_unordered(CONCURRENCY)
        .try_collect::<Vec<()>>()
        .await?;
    ensure(registry, secret_token::tracking(registry.now())).await?;
    service::run(registry).await
}

fn resource_of(registry: &Registry, object: &Value) -> Result<Arc<Resource>, Fail> {
    let (group, version) = meta::split_api_version(meta::str_at(object, &["apiVersion"]));
    let kind = api::kind_by_gvk(group, version, meta::str_at(object, &["kind"]));
    let name = kind.map(|k| k.resource.as_str()).unwrap_or_default();
    registry.resource(group, version, name)
}

/// Creates an object unless it exists; existing roles and bindings get the rules and subjects they lack.
pub(crate) async fn ensure(registry: &Arc<Registry>, mut object: Value) -> Result<(), Fail> {
    let resource = resource_of(registry, &object)?;
    complete(&resource, &mut object);
    let myself = Myself::default();
    let (namespace, name) = (
        meta::namespace(&object).to_owned(),
        meta::name(&object).to_owned(),
    );
    let write = myself.write(registry, &resource, &namespace, &name);
    let Some(existing) = registry.find(&resource, &namespace, &name).await? else {
        write.track(registry, None, &mut object);
        return match registry.create(&write, object).await {
            Err(status) if status.reason != "AlreadyExists" => Err(status),
            _ => Ok(()),
        };
    };
    let existing = existing.value()?;
    let list = match resource.kind.kind.as_str() {
        "Role" | "ClusterRole" => "rules",
        "RoleBinding" | "ClusterRoleBinding" => "subjects",
        _ => return Ok(()),
    };
    if meta::annotation(&existing, AUTOUPDATE) != Some("true")
        || missing(&existing, &object, list).is_empty()
    {
        return Ok(());
    }
    let update = registry.update(&write, Part::Main, |current| {
        let mut all = meta::list_at(current, &[list]).to_vec();
        all.extend(missing(current, &object, list));
        let mut next = current.clone();
        meta::set(&mut next, &[list], all.into());
        Ok(next)
    });
    update.await.map(drop)
}

fn missing(existing: &Value, wanted: &Value, list: &str) -> Vec<Value> {
    let have = meta::list_at(existing, &[list]);
    meta::list_at(wanted, &[list])
        .iter()
        .filter(|item| !have.contains(item))
        .cloned()
        .collect()
}
