//! Claims that pods use and volumes that are bound do not go until that ends; and claims say whether any pod
//! uses them.

use client::{Cache, Entry, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerState, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition,
        Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
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
/// Condition of a claim that no pod uses.
const UNUSED: &str = "Unused";
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
            if all.contains(&claim) {
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
        if !entry.deleting && self.say_whether_used(key, &entry).await? {
            return Ok(Requeue::OnChange);
        }
        let in_use = || self.users.of(key).iter().any(|p| uses(p, &entry));
        let act = decide(&entry, CLAIM_FINALIZER, in_use);
        // The cache may not know yet of a pod that was given its node just now.
        if act == Act::Remove && self.is_used_by_now(key, |p| uses(p, &entry)).await? {
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
    /// Writes into a claim that is bound whether a pod uses it; answers whether that was news.
    async fn say_whether_used(&self, key: &Key, entry: &Entry) -> Result<bool, Error> {
        let status = entry.decode::<PersistentVolumeClaim>()?.status;
        let status = status.unwrap_or_default();
        if status.phase.as_deref() != Some("Bound") {
            return Ok(false);
        }
        let known = status.conditions.unwrap_or_default();
        let now = self.context.now();
        let mut used = self.users.of(key).iter().any(|p| refers_to(p, entry));
        if !used && said(&known, used, now).is_some() {
            used = self.is_used_by_now(key, |p| refers_to(p, entry)).await?;
        }
        let Some(conditions) = said(&known, used, now) else {
            return Ok(false);
        };
        let body = json!({
            "metadata": {"uid": entry.uid, "resourceVersion": entry.revision.to_string()},
            "status": {"conditions": conditions},
        });
        let api = write::namespaced::<PersistentVolumeClaim>(&self.context.client, &key.namespace);
        let written = write::patch_status(&api, &key.name, &body).await?;
        let revision = written.as_ref().map_or(0, write::revision_of);
        self.claims.caught_up(revision).await?;
        Ok(true)
    }

    /// Asks the server, page by page, whether a pod uses the claim.
    async fn is_used_by_now(&self, key: &Key, uses: impl Fn(&Pod) -> bool) -> Result<bool, Error> {
        let api = write::namespaced::<Pod>(&self.context.client, &key.namespace);
        let mut page = ListParams::default().limit(PAGE_PODS);
        loop {
            let pods = api.list(&page).await?;
            if pods.items.iter().any(&uses) {
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
    let meta = &pod.metadata;
    // A pod that its node is done with may stay until its dependents are gone: those do not wait for it in turn. Of its
    // dependents upstream lets go only of claims made for ephemeral volumes; those of a StatefulSet, which scaling down
    // gives to their pod, and the pod then wait for each other for ever.
    let over = meta.deletion_timestamp.is_some() && meta.deletion_grace_period_seconds == Some(0);
    let its_own = || {
        claim
            .owners
            .iter()
            .any(|o| Some(&*o.uid) == meta.uid.as_deref())
    };
    !pods::node(pod).is_empty() && mounts(pod, claim) && !(over && its_own())
}

/// Whether a pod that has not ended is to have a claim, on whichever node.
fn refers_to(pod: &Pod, claim: &Entry) -> bool {
    !has_ended(pod) && mounts(pod, claim)
}

fn has_ended(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let containers = status.into_iter().flat_map(|s| {
        let kinds = [
            &s.init_container_statuses,
            &s.container_statuses,
            &s.ephemeral_container_statuses,
        ];
        kinds.into_iter().flatten().flatten()
    });
    let mut states = containers.map(|c| c.state.as_ref());
    let is_still = |s: &ContainerState| s.terminated.is_some() || s.waiting.is_some();
    let deleting = pod.metadata.deletion_timestamp.is_some();
    pods::is_terminal(pod) || deleting && states.all(|s| s.is_some_and(is_still))
}

/// Whether a claim is among the volumes of a pod.
fn mounts(pod: &Pod, claim: &Entry) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let uid = pod.metadata.uid.as_deref();
    let made_for_it = claim.controller().is_some_and(|o| Some(&*o.uid) == uid);
    let claim = &*claim.key.name;
    spec.volumes.iter().flatten().any(|v| {
        let direct = v.persistent_volume_claim.as_ref();
        let is_made =
            || v.ephemeral.is_some() && made_for_it && format!("{name}-{}", v.name) == claim;
        direct.is_some_and(|c| c.claim_name == claim) || is_made()
    })
}

/// The conditions of a claim that say whether it is used; `None`: they do.
fn said(
    known: &[PersistentVolumeClaimCondition],
    used: bool,
    now: Timestamp,
) -> Option<Vec<PersistentVolumeClaimCondition>> {
    let (status, reason, message) = match used {
        true => (
            "False",
            "PodUsingPVC",
            "A pod is currently referencing this PVC",
        ),
        false => (
            "True",
            "NoPodsUsingPVC",
            "No pods are currently referencing this PVC",
        ),
    };
    let at = known.iter().position(|c| c.type_ == UNUSED);
    if at.is_some_and(|i| known[i].status == status) {
        return None;
    }
    let new = PersistentVolumeClaimCondition {
        type_: UNUSED.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: Some(Time(now)),
        last_probe_time: None,
    };
    let mut all = known.to_vec();
    match at {
        Some(i) => all[i] = new,
        None => all.push(new),
    }
    Some(all)
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
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;
    use crate::testing::{list, stand_in};

    /// A server whose pods come to be after the first look, and how often it was asked to write.
    fn server() -> (client::Client, Arc<AtomicU32>) {
        let looks = Arc::new(AtomicU32::new(0));
        stand_in(move |path, watches| {
            if watches || !path.ends_with("/pods") {
                return Some(list(json!([
                    {"metadata": {"name": "c", "namespace": "n", "uid": "u", "resourceVersion": "5",
                        "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [CLAIM_FINALIZER]}}
                ])));
            }
            let again = looks.fetch_add(1, Ordering::Relaxed) > 0;
            again.then(|| {
                list(json!([{
                "metadata": {"name": "p", "namespace": "n"},
                "spec": {"containers": [], "nodeName": "m", "volumes": [
                    {"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]}}]))
            })
        })
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
        for (name, owner, expected) in [("c", "", true), ("c", "u", false), ("p-e", "u", false)] {
            assert_eq!(
                uses(&over, &claim(name, owner)),
                expected,
                "{name} of {owner}"
            );
        }
    }

    #[test]
    fn claims_say_whether_a_pod_uses_them() {
        let now = Timestamp::UNIX_EPOCH;
        let status = |all: &[PersistentVolumeClaimCondition]| {
            let of = all.iter().find(|c| c.type_ == UNUSED);
            of.map(|c| (c.status.clone(), c.reason.clone().unwrap()))
        };
        let other = PersistentVolumeClaimCondition {
            type_: "Resizing".into(),
            ..PersistentVolumeClaimCondition::default()
        };
        let free = said(&[other], false, now).unwrap();
        let expected = ("True".to_owned(), "NoPodsUsingPVC".to_owned());
        assert_eq!((free.len(), status(&free)), (2, Some(expected)));
        assert_eq!(said(&free, false, now), None);
        let used = said(&free, true, now).unwrap();
        let expected = ("False".to_owned(), "PodUsingPVC".to_owned());
        assert_eq!((used.len(), status(&used)), (2, Some(expected)));
        assert_eq!(said(&used, true, now), None);

        let claim = json!({"metadata": {"name": "c", "namespace": "n", "uid": "c"}});
        let claim = client::cache::parse_entry(claim.to_string().as_bytes()).unwrap();
        let pod = |deleted: bool, status: serde_json::Value| -> Pod {
            let at = deleted.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({"metadata": {"name": "p", "deletionTimestamp": at},
                "spec": {"containers": [], "volumes": [
                    {"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]},
                "status": status}))
            .unwrap()
        };
        let running = json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "",
            "ready": true, "restartCount": 0, "state": {"running": {}}}]});
        for (deleted, status, expected) in [
            (false, json!({}), true),
            (false, json!({"phase": "Succeeded"}), false),
            (true, running, true),
            (true, json!({}), false),
        ] {
            let found = refers_to(&pod(deleted, status.clone()), &claim);
            assert_eq!(found, expected, "{deleted} {status}");
        }
    }
}
