//! Claims that pods use and volumes that are bound do not go until that ends.

use client::{Cache, Entry, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{Context, Controller, pods};

/// Protects claims.
pub const CLAIMS: Controller = Controller {
    name: "pvc-protection-controller",
    run: run_claims,
};
/// Protects volumes.
pub const VOLUMES: Controller = Controller {
    name: "pv-protection-controller",
    run: run_volumes,
};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

/// What is to be done about a finalizer.
#[derive(Debug, PartialEq, Eq)]
enum Act {
    Nothing,
    Add,
    Remove,
}

fn decide(entry: &Entry, finalizer: &str, in_use: impl FnOnce() -> bool) -> Act {
    let has = entry.finalizers.iter().any(|f| &**f == finalizer);
    match (entry.deleting, has) {
        (false, false) => Act::Add,
        (true, true) if !in_use() => Act::Remove,
        _ => Act::Nothing,
    }
}

/// The finalizers as they are to be, guarded by the version they were read at.
fn patch(entry: &Entry, finalizer: &str, act: &Act) -> serde_json::Value {
    let mut all: Vec<&str> = entry.finalizers.iter().map(|f| &**f).collect();
    match act {
        Act::Add => all.push(finalizer),
        Act::Remove => all.retain(|f| *f != finalizer),
        Act::Nothing => {}
    }
    json!({"metadata": {
        "uid": entry.uid,
        "resourceVersion": entry.revision.to_string(),
        "finalizers": all,
    }})
}

async fn write_finalizers<K>(
    api: &Api<K>,
    entry: &Entry,
    patch: serde_json::Value,
) -> Result<(), Error>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let params = PatchParams::default();
    let written = api
        .patch(&entry.key.name, &params, &Patch::Merge(patch))
        .await;
    write::tolerate_missing(written)?;
    Ok(())
}

struct Claims {
    context: Context,
    claims: Cache<PersistentVolumeClaim>,
    pods: Cache<Pod>,
}

fn run_claims(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let claims = context.caches.get::<PersistentVolumeClaim>(Scope::all());
        let pods = context.caches.get::<Pod>(Scope::all());
        pods.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        claims.on_change(move |change| to.add(change.key.clone()));
        let (to, all) = (queue.clone(), claims.clone());
        pods.on_change(move |change| {
            let doomed = all
                .entries_in(&change.key.namespace)
                .into_iter()
                .filter(|e| e.deleting);
            doomed.for_each(|e| to.add(e.key.clone()));
        });
        context
            .work(
                Claims {
                    context: context.clone(),
                    claims,
                    pods,
                },
                queue,
            )
            .await;
    })
}

impl Reconcile for Claims {
    type Key = Key;

    fn name(&self) -> &'static str {
        CLAIMS.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(entry) = self.claims.entry(key) else {
            return Ok(Requeue::OnChange);
        };
        let in_use = || {
            self.pods
                .list_in(&key.namespace)
                .iter()
                .any(|p| uses(p, &key.name))
        };
        let act = decide(&entry, CLAIM_FINALIZER, in_use);
        if act != Act::Nothing {
            let api =
                write::namespaced::<PersistentVolumeClaim>(&self.context.client, &key.namespace);
            write_finalizers(&api, &entry, patch(&entry, CLAIM_FINALIZER, &act)).await?;
        }
        Ok(Requeue::OnChange)
    }
}

/// Pods without a node cannot start any more once the claim is being deleted.
fn uses(pod: &Pod, claim: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    !pods::node(pod).is_empty()
        && spec.volumes.iter().flatten().any(|v| {
            let direct = v
                .persistent_volume_claim
                .as_ref()
                .is_some_and(|c| c.claim_name == claim);
            direct || v.ephemeral.is_some() && format!("{name}-{}", v.name) == claim
        })
}

struct Volumes {
    context: Context,
    volumes: Cache<PersistentVolume>,
}

fn run_volumes(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let volumes = context.caches.get::<PersistentVolume>(Scope::all());
        let queue = Queue::default();
        let to = queue.clone();
        volumes.on_change(move |change| to.add(change.key.clone()));
        context
            .work(
                Volumes {
                    context: context.clone(),
                    volumes,
                },
                queue,
            )
            .await;
    })
}

impl Reconcile for Volumes {
    type Key = Key;

    fn name(&self) -> &'static str {
        VOLUMES.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(entry) = self.volumes.entry(key) else {
            return Ok(Requeue::OnChange);
        };
        let volume = entry.decode::<PersistentVolume>()?;
        let bound = || volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let act = decide(&entry, VOLUME_FINALIZER, bound);
        if act != Act::Nothing {
            let api = write::cluster::<PersistentVolume>(&self.context.client);
            write_finalizers(&api, &entry, patch(&entry, VOLUME_FINALIZER, &act)).await?;
        }
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheduled_pods_use_their_claims() {
        let pod = |node: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p"},
                "spec": {"containers": [], "nodeName": node, "volumes": [
                    {"name": "d", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "e", "ephemeral": {}}]},
            }))
            .unwrap()
        };
        assert!(uses(&pod("n"), "c") && uses(&pod("n"), "p-e"));
        assert!(!uses(&pod("n"), "d") && !uses(&pod(""), "c"));
    }
}
