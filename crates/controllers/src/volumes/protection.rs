//! Claims that pods use and volumes that are bound do not go until that ends.

use client::{Cache, Entry, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::users::Users;
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
/// Pods asked for at once.
const PAGE_PODS: u32 = 500;

/// What is to be done about a finalizer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Act {
    Nothing,
    Add,
    Remove,
}

pub(super) fn decide(entry: &Entry, finalizer: &str, in_use: impl FnOnce() -> bool) -> Act {
    let has = entry.finalizers.iter().any(|f| &**f == finalizer);
    match (entry.deleting, has) {
        (false, false) => Act::Add,
        (true, true) if !in_use() => Act::Remove,
        _ => Act::Nothing,
    }
}

/// The finalizers as they are to be, guarded by the version they were read at.
pub(super) fn patch(entry: &Entry, finalizer: &str, act: &Act) -> serde_json::Value {
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

pub(super) async fn write_finalizers<K>(
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
    users: Users,
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
        let users = Users::follow(pods, move |claim| {
            if all.entry(&claim).is_some_and(|e| e.deleting) {
                to.add(claim);
            }
        });
        context
            .work(
                Claims {
                    context: context.clone(),
                    claims,
                    users,
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
        let in_use = || self.users.of(key).iter().any(|p| uses(p, &entry));
        let act = decide(&entry, CLAIM_FINALIZER, in_use);
        // The cache may not know yet of a pod that was given its node just now.
        if act == Act::Remove && self.is_used_by_now(key, &entry).await? {
            return Ok(Requeue::OnChange);
        }
        if act != Act::Nothing {
            let api =
                write::namespaced::<PersistentVolumeClaim>(&self.context.client, &key.namespace);
            write_finalizers(&api, &entry, patch(&entry, CLAIM_FINALIZER, &act)).await?;
        }
        Ok(Requeue::OnChange)
    }
}

impl Claims {
    /// Asks the server, page by page, whether a pod uses the claim.
    async fn is_used_by_now(&self, key: &Key, claim: &Entry) -> Result<bool, Error> {
        let api = write::namespaced::<Pod>(&self.context.client, &key.namespace);
        let mut page = ListParams::default().limit(PAGE_PODS);
        loop {
            let pods = api.list(&page).await?;
            if pods.items.iter().any(|pod| uses(pod, claim)) {
                return Ok(true);
            }
            match pods.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(false),
            }
        }
    }
}

/// Pods without a node cannot start any more once the claim is being deleted.
fn uses(pod: &Pod, claim: &Entry) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let meta = &pod.metadata;
    let (name, uid) = (
        meta.name.as_deref().unwrap_or_default(),
        meta.uid.as_deref(),
    );
    // One that is only there until its dependents are gone does not wait for its own claims.
    let over = meta.deletion_timestamp.is_some() && meta.deletion_grace_period_seconds == Some(0);
    let made_for_it = claim.controller().is_some_and(|o| Some(&*o.uid) == uid);
    let claim = &*claim.key.name;
    !pods::node(pod).is_empty()
        && spec.volumes.iter().flatten().any(|v| {
            let direct = v.persistent_volume_claim.as_ref();
            let made =
                || v.ephemeral.is_some() && made_for_it && format!("{name}-{}", v.name) == claim;
            direct.is_some_and(|c| c.claim_name == claim) || !over && made()
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
    use std::{
        convert::Infallible,
        sync::Arc,
        sync::atomic::{AtomicU32, Ordering},
    };

    use http::{Method, Request, Response};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::Value;

    use super::*;

    /// A server whose pods come to be after the first look, and how often it was asked to write.
    fn server() -> (client::Client, Arc<AtomicU32>) {
        let (looks, writes) = (AtomicU32::new(0), Arc::new(AtomicU32::new(0)));
        let written = writes.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let watches = request.uri().query().is_some_and(|q| q.contains("watch="));
            let list = |items: Value| json!({"metadata": {"resourceVersion": "5"}, "items": items});
            let body = match (request.method(), request.uri().path()) {
                (&Method::GET, path) if watches || !path.ends_with("/pods") => list(json!([
                    {"metadata": {"name": "c", "namespace": "n", "uid": "u", "resourceVersion": "5",
                        "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [CLAIM_FINALIZER]}}
                ])),
                (&Method::GET, _) if looks.fetch_add(1, Ordering::Relaxed) == 0 => list(json!([])),
                (&Method::GET, _) => list(json!([{
                    "metadata": {"name": "p", "namespace": "n"},
                    "spec": {"containers": [], "nodeName": "m", "volumes": [
                        {"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]}}])),
                _ => {
                    written.fetch_add(1, Ordering::Relaxed);
                    json!({})
                }
            };
            async move {
                if watches {
                    std::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(Response::new(body.to_string()))
            }
        });
        (client::in_process(service), writes)
    }

    #[tokio::test]
    async fn a_claim_stays_for_a_pod_that_the_cache_does_not_know_yet() {
        let (client, writes) = server();
        let context = Context::new(client, Default::default(), Default::default());
        let claims = context.caches.get::<PersistentVolumeClaim>(Scope::all());
        let pods = context.caches.get::<Pod>(Scope::all());
        claims.synced().await;
        pods.synced().await;
        let protection = Claims {
            context,
            claims,
            users: Users::follow(pods, |_| ()),
        };
        protection.reconcile(&Key::new("n", "c")).await.unwrap();
        assert_eq!(writes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn scheduled_pods_use_their_claims() {
        let pod = |node: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p", "uid": "u"},
                "spec": {"containers": [], "nodeName": node, "volumes": [
                    {"name": "d", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "e", "ephemeral": {}}]},
            }))
            .unwrap()
        };
        let claim = |name: &str, owner: &str| {
            let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": owner, "controller": true});
            let claim = json!({"metadata": {"name": name, "namespace": "n", "uid": "c", "ownerReferences": [owner]}});
            client::cache::parse_entry(claim.to_string().as_bytes()).unwrap()
        };
        for (name, owner, expected) in [
            ("c", "", true),
            ("p-e", "u", true),
            ("p-e", "other", false),
            ("d", "", false),
        ] {
            assert_eq!(uses(&pod("n"), &claim(name, owner)), expected, "{name}");
        }
        assert!(!uses(&pod(""), &claim("c", "")));
        let mut over = pod("n");
        over.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        over.metadata.deletion_grace_period_seconds = Some(0);
        assert!(uses(&over, &claim("c", "")) && !uses(&over, &claim("p-e", "u")));
    }
}
