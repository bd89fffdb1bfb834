//! Claims of devices: makes those that pods ask for by template, and lets go of those that no
//! pod uses any more.
//!
//! ```text
//!  pod with a template ──> claim (named in the pod's status) ──> allocated and reserved by the scheduler
//!                                                                      │ the pod ends
//!  claim deleted, if the pod's own  <──  deallocated  <──  no longer reserved
//! ```

use std::fmt;

use client::{
    Cache, Change, Entry, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, Word, write,
};
use futures::future::BoxFuture;
use k8s_openapi::{
    api::{
        core::v1::{Pod, PodResourceClaim, PodResourceClaimStatus},
        resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{Context, Controller, claim, pods};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "resource-claim-controller",
    run,
};

/// The annotation of a claim that tells for which of its pod's claims it was made.
const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// What keeps an allocated claim from vanishing.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Bytes of a name to which the server adds an ending.
const NAME_MAX: usize = 57;
/// Consumers that a claim can be kept for.
const CONSUMERS_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Target {
    Pod(Key),
    Claim(Key),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "pod {key}"),
            Self::Claim(key) => write!(f, "claim {key}"),
        }
    }
}

struct Claims {
    context: Context,
    recorder: Recorder,
    pods: Cache<Pod>,
    claims: Cache<ResourceClaim>,
    templates: Cache<ResourceClaimTemplate>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let pods = context.caches.get::<Pod>(Scope::all());
        let claims = context.caches.get::<ResourceClaim>(Scope::all());
        let templates = context.caches.get::<ResourceClaimTemplate>(Scope::all());
        pods.synced().await;
        claims.synced().await;
        templates.synced().await;
        let queue = Queue::default();
        let (to, all) = (queue.clone(), claims.clone());
        pods.on_change(move |change| {
            for target in of_pod(change, &all) {
                to.add(target);
            }
        });
        let to = queue.clone();
        claims.on_change(move |change| {
            to.add(Target::Claim(change.key.clone()));
            let owner = change.latest().and_then(|e| e.controller());
            if let Some(owner) = owner.filter(|o| o.kind == "Pod") {
                let key = Key::new(change.key.namespace.clone(), owner.name.as_str());
                to.add(Target::Pod(key));
            }
        });
        let (to, all) = (queue.clone(), pods.clone());
        templates.on_change(move |change| {
            // Pods may have waited for it.
            for pod in all.entries_in(&change.key.namespace) {
                if mentions_claims(&pod) {
                    to.add(Target::Pod(pod.key.clone()));
                }
            }
        });
        let recorder = context.recorder();
        let reconciler = Claims {
            context: context.clone(),
            recorder,
            pods,
            claims,
            templates,
        };
        context.work(reconciler, queue).await;
    })
}

/// Few pods ask for devices: decoding each would cost more than looking for the word.
pub(crate) fn mentions_claims(pod: &Entry) -> bool {
    static CLAIMS: Word = Word::new("\"resourceClaims\"");
    static EXTENDED: Word = Word::new("\"extendedResourceClaimStatus\"");
    pod.has(&CLAIMS) || pod.has(&EXTENDED)
}

/// What a change of a pod concerns: the pod, and the claims it may let go of.
fn of_pod(change: &Change, claims: &Cache<ResourceClaim>) -> Vec<Target> {
    let Some(latest) = change.latest().filter(|e| mentions_claims(e)) else {
        return Vec::new();
    };
    let mut targets = vec![Target::Pod(change.key.clone())];
    let pod: Option<Pod> = latest.decode().ok();
    let gone = change.new.is_none();
    if let Some(pod) = pod.filter(|p| gone || is_done(p)) {
        let namespace = &change.key.namespace;
        let names = claim_names(&pod).into_iter();
        targets.extend(names.map(|n| Target::Claim(Key::new(namespace.clone(), n))));
        let owned = claims.entries_owned_by(&latest.uid);
        targets.extend(owned.iter().map(|e| Target::Claim(e.key.clone())));
    }
    targets
}

/// The claims that a pod uses, by name.
pub(crate) fn claim_names(pod: &Pod) -> Vec<String> {
    let spec = pod.spec.as_ref().and_then(|s| s.resource_claims.as_ref());
    let status = pod.status.as_ref();
    let made = status.and_then(|s| s.resource_claim_statuses.as_ref());
    let direct = spec
        .into_iter()
        .flatten()
        .filter_map(|c| c.resource_claim_name.clone());
    let made = made
        .into_iter()
        .flatten()
        .filter_map(|c| c.resource_claim_name.clone());
    direct.chain(made).collect()
}

/// Whether a pod needs its claims no longer.
fn is_done(pod: &Pod) -> bool {
    let never_ran = pod.metadata.deletion_timestamp.is_some() && pods::node(pod).is_empty();
    pods::is_terminal(pod) || never_ran
}

/// The claim made for one of a pod's claims.
fn new_claim(pod: &Pod, of: &PodResourceClaim, template: &ResourceClaimTemplate) -> ResourceClaim {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let mut base = format!("{name}-{}-", of.name);
    if base.len() > NAME_MAX {
        // Names are ASCII. The server would cut off the end only, which is what tells claims apart.
        let part = |text: &str| text[..text.len() * NAME_MAX / base.len()].to_owned();
        base = format!("{}-{}", part(name), part(&of.name));
    }
    let wanted = template.spec.clone().unwrap_or_default();
    let meta = wanted.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM.into(), of.name.clone());
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(base),
            namespace: pod.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![claim::owner_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: wanted.spec,
        status: None,
    }
}

/// What keeps an allocated claim for a pod that is not among its consumers yet.
fn reservation(claim: &ResourceClaim, pod: &Pod) -> Option<Value> {
    let status = claim.status.as_ref()?;
    status.allocation.as_ref()?;
    let mut all = status.reserved_for.clone().unwrap_or_default();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if all.len() >= CONSUMERS_MAX || all.iter().any(|c| c.uid == uid) {
        return None;
    }
    all.push(ResourceClaimConsumerReference {
        resource: "pods".into(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: uid.to_owned(),
        api_group: None,
    });
    let version = &claim.metadata.resource_version;
    Some(json!({"metadata": {"resourceVersion": version}, "status": {"reservedFor": all}}))
}

/// What is to be done about a claim.
#[derive(Debug, PartialEq)]
struct Upkeep {
    /// The consumers that are left, if some have gone.
    reserved_for: Option<Vec<ResourceClaimConsumerReference>>,
    deallocate: bool,
    unprotect: bool,
    delete: bool,
}

/// Decides; `lives` tells which consumers still use the claim, `owner_done` whether the pod that
/// it was made for has ended.
fn plan(
    claim: &ResourceClaim,
    lives: impl Fn(&ResourceClaimConsumerReference) -> bool,
    owner_done: bool,
) -> Upkeep {
    let status = claim.status.clone().unwrap_or_default();
    let all = status.reserved_for.unwrap_or_default();
    let left: Vec<_> = all.iter().filter(|r| lives(r)).cloned().collect();
    let free = left.is_empty();
    let protected = claim
        .metadata
        .finalizers
        .iter()
        .flatten()
        .any(|f| f == FINALIZER);
    let leaving = claim.metadata.deletion_timestamp.is_some();
    let released = left.len() < all.len();
    let allocated = status.allocation.is_some();
    let deallocate = allocated && free && (released || leaving);
    Upkeep {
        reserved_for: released.then_some(left),
        deallocate,
        unprotect: protected && free && (deallocate || !allocated && leaving),
        delete: free && owner_done && !leaving,
    }
}

impl Reconcile for Claims {
    type Key = Target;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, target: &Target) -> Result<Requeue, Error> {
        match target {
            Target::Pod(key) => self.provide(key).await?,
            Target::Claim(key) => self.keep(key).await?,
        }
        Ok(Requeue::OnChange)
    }
}

impl Claims {
    fn api(&self, key: &Key) -> Api<ResourceClaim> {
        write::namespaced(&self.context.client, &key.namespace)
    }

    /// Makes the claims that a pod asks for by template and names them in its status.
    async fn provide(&self, key: &Key) -> Result<(), Error> {
        let Some(pod) = self.pods.get(key)? else {
            return Ok(());
        };
        if pod.metadata.deletion_timestamp.is_some() || pods::is_terminal(&pod) {
            return Ok(());
        }
        let spec = pod.spec.as_ref();
        let asked = spec
            .and_then(|s| s.resource_claims.clone())
            .unwrap_or_default();
        let status = pod.status.as_ref();
        let known = status.and_then(|s| s.resource_claim_statuses.clone());
        let known = known.unwrap_or_default();
        let mut named = Vec::new();
        for of in asked
            .iter()
            .filter(|c| c.resource_claim_template_name.is_some())
        {
            if let Some(known) = known.iter().find(|k| k.name == of.name)
                && self.is_still_there(key, &pod, known).await?
            {
                named.push(known.clone());
                continue;
            }
            match self.made(key, &pod, of).await {
                Ok(name) => named.push(PodResourceClaimStatus {
                    name: of.name.clone(),
                    resource_claim_name: Some(name),
                }),
                Err(e) => {
                    let message = format!("PodResourceClaim {}: {}", of.name, e.words());
                    self.recorder
                        .warning(&pod, "FailedResourceClaimCreation", message);
                    return Err(e);
                }
            }
        }
        if named == known {
            return self.reserve(key, &pod).await;
        }
        let api: Api<Pod> = write::namespaced(&self.context.client, &key.namespace);
        let body = json!({"metadata": {"uid": pod.metadata.uid},
            "status": {"resourceClaimStatuses": named}});
        let patch = Patch::Strategic(body);
        let params = PatchParams::default();
        let written = api.patch_status(&key.name, &params, &patch).await;
        if let Some(written) = write::tolerate_missing(written)? {
            self.pods.caught_up(write::revision_of(&written)).await?;
        }
        Ok(())
    }

    /// Whether a claim that a pod names in its status is there, and the pod's: somebody may have deleted it.
    async fn is_still_there(
        &self,
        key: &Key,
        pod: &Pod,
        known: &PodResourceClaimStatus,
    ) -> Result<bool, Error> {
        let Some(name) = &known.resource_claim_name else {
            return Ok(true);
        };
        let of = Key::new(key.namespace.clone(), name.as_str());
        if self.claims.get(&of)?.is_some_and(|c| claim::is_of(&c, pod)) {
            return Ok(true);
        }
        // The cache may not show it yet.
        let fresh = write::tolerate_missing(self.api(key).get(name).await)?;
        Ok(fresh.is_some_and(|c| claim::is_of(&c, pod)))
    }

    /// Keeps claims for a pod that was given its node by others than the scheduler, which does so itself.
    async fn reserve(&self, key: &Key, pod: &Pod) -> Result<(), Error> {
        if pods::node(pod).is_empty() {
            return Ok(());
        }
        for name in claim_names(pod) {
            let of = Key::new(key.namespace.clone(), name);
            let Some(claim) = self.claims.get(&of)? else {
                return Ok(());
            };
            if let Some(patch) = reservation(&claim, pod) {
                let written = write::patch_status(&self.api(key), &of.name, &patch).await?;
                let revision = written.as_ref().map_or(0, write::revision_of);
                self.claims.caught_up(revision).await?;
            }
        }
        Ok(())
    }

    /// The name of the claim made for one of a pod's claims, now or before.
    async fn made(&self, key: &Key, pod: &Pod, of: &PodResourceClaim) -> Result<String, Error> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let owned = self.claims.list_owned_by(uid);
        let before = owned.iter().find(|c| {
            let annotations = c.metadata.annotations.as_ref();
            annotations.and_then(|a| a.get(POD_CLAIM)) == Some(&of.name)
        });
        if let Some(name) = before.and_then(|c| c.metadata.name.clone()) {
            return Ok(name);
        }
        let template = of
            .resource_claim_template_name
            .as_deref()
            .unwrap_or_default();
        let template_key = Key::new(key.namespace.clone(), template);
        let Some(template) = self.templates.get(&template_key)? else {
            let message = format!(
                "resource claim template {template:?}: resourceclaimtemplate.resource.k8s.io {template:?} not found"
            );
            return Err(Error::Other(message));
        };
        let new = new_claim(pod, of, &template);
        let made = self.api(key).create(&PostParams::default(), &new).await?;
        self.claims.caught_up(write::revision_of(&made)).await?;
        Ok(made.metadata.name.unwrap_or_default())
    }

    /// Lets go of what is not used.
    async fn keep(&self, key: &Key) -> Result<(), Error> {
        let Some(claim) = self.claims.get(key)? else {
            return Ok(());
        };
        let mut gone = Vec::new();
        let status = claim.status.as_ref();
        let consumers = status.and_then(|s| s.reserved_for.clone());
        for consumer in consumers.unwrap_or_default() {
            if !self.lives(key, &consumer).await? {
                gone.push(consumer.uid);
            }
        }
        let owner_done = match self.claims.entry(key).and_then(|e| e.controller().cloned()) {
            Some(owner) if owner.kind == "Pod" => {
                let reference = ResourceClaimConsumerReference {
                    resource: "pods".into(),
                    name: owner.name.to_string(),
                    uid: owner.uid.to_string(),
                    api_group: None,
                };
                !self.lives(key, &reference).await?
            }
            _ => false,
        };
        let upkeep = plan(&claim, |r| !gone.contains(&r.uid), owner_done);
        self.carry_out(key, &claim, upkeep).await
    }

    /// Whether a consumer still uses its claim. Only pods can be told about.
    async fn lives(
        &self,
        key: &Key,
        consumer: &ResourceClaimConsumerReference,
    ) -> Result<bool, Error> {
        let group = consumer.api_group.as_deref().unwrap_or_default();
        if !group.is_empty() || consumer.resource != "pods" {
            return Ok(true);
        }
        let same = |p: &Pod| p.metadata.uid.as_deref() == Some(consumer.uid.as_str());
        let pod = Key::new(key.namespace.clone(), consumer.name.as_str());
        if let Some(pod) = self.pods.get(&pod)?.filter(same) {
            return Ok(!is_done(&pod));
        }
        // The cache may not show it yet.
        let api: Api<Pod> = write::namespaced(&self.context.client, &key.namespace);
        let fresh = write::tolerate_missing(api.get(&consumer.name).await)?;
        Ok(fresh.filter(same).is_some_and(|p| !is_done(&p)))
    }

    async fn carry_out(
        &self,
        key: &Key,
        claim: &ResourceClaim,
        upkeep: Upkeep,
    ) -> Result<(), Error> {
        let api = self.api(key);
        let mut version = claim.metadata.resource_version.clone();
        if upkeep.reserved_for.is_some() || upkeep.deallocate {
            let mut status = json!({});
            if let Some(left) = &upkeep.reserved_for {
                status["reservedFor"] = json!(left);
            }
            if upkeep.deallocate {
                status["allocation"] = Value::Null;
                status["devices"] = Value::Null;
            }
            let body = json!({"metadata": {"resourceVersion": version}, "status": status});
            let Some(written) = write::patch_status(&api, &key.name, &body).await? else {
                return Ok(());
            };
            version = write::Revisioned::resource_version(&written).map(str::to_owned);
            self.claims.caught_up(write::revision_of(&written)).await?;
        }
        if upkeep.unprotect {
            let finalizers = claim.metadata.finalizers.iter().flatten();
            let left: Vec<_> = finalizers.filter(|f| *f != FINALIZER).collect();
            let body = json!({"metadata": {"resourceVersion": version, "finalizers": left}});
            let written = write::patch(&api, &key.name, &body).await?;
            let revision = written.as_ref().map_or(0, write::revision_of);
            if claim.metadata.deletion_timestamp.is_none() {
                self.claims.caught_up(revision).await?;
            }
        }
        if upkeep.delete {
            write::delete(&api, &key.name, claim.metadata.uid.as_deref()).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(meta: Value, status: Value) -> ResourceClaim {
        serde_json::from_value(json!({"metadata": meta, "spec": {}, "status": status})).unwrap()
    }

    #[test]
    fn what_nobody_uses_is_let_go() {
        let pod = |uid: &str| json!({"resource": "pods", "name": uid, "uid": uid});
        let used = json!({"reservedFor": [pod("a"), pod("b")], "allocation": {}});
        let kept = json!({"finalizers": [FINALIZER]});
        let leaving =
            json!({"finalizers": [FINALIZER], "deletionTimestamp": "2026-01-01T00:00:00Z"});
        let none: &[&str] = &[];
        for (meta, status, live, owner_done, expected) in [
            (
                &kept,
                &used,
                &["a", "b"][..],
                false,
                (None, false, false, false),
            ),
            (
                &kept,
                &used,
                &["a"][..],
                false,
                (Some(1), false, false, false),
            ),
            (&kept, &used, none, false, (Some(0), true, true, false)),
            (&kept, &used, none, true, (Some(0), true, true, true)),
            (
                &leaving,
                &json!({"allocation": {}}),
                none,
                true,
                (None, true, true, false),
            ),
            (
                &leaving,
                &json!({}),
                none,
                false,
                (None, false, true, false),
            ),
            (
                &kept,
                &json!({"allocation": {}}),
                none,
                false,
                (None, false, false, false),
            ),
        ] {
            let found = plan(
                &claim(meta.clone(), status.clone()),
                |r| live.contains(&&*r.uid),
                owner_done,
            );
            let found = (
                found.reserved_for.map(|l| l.len()),
                found.deallocate,
                found.unprotect,
                found.delete,
            );
            assert_eq!(found, expected, "{meta} {status} {live:?}");
        }
    }

    #[test]
    fn allocated_claims_are_kept_for_pods_that_have_a_node() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}})).unwrap();
        let user = |uid: &str| json!({"resource": "pods", "name": "p", "uid": uid});
        let many: Vec<_> = (0..CONSUMERS_MAX).map(|i| user(&i.to_string())).collect();
        for (status, expected) in [
            (json!({}), None),
            (json!({"allocation": {}}), Some(1)),
            (
                json!({"allocation": {}, "reservedFor": [user("other")]}),
                Some(2),
            ),
            (json!({"allocation": {}, "reservedFor": [user("u")]}), None),
            (json!({"allocation": {}, "reservedFor": many}), None),
        ] {
            let patch = reservation(&claim(json!({"resourceVersion": "7"}), status), &pod);
            let users = patch.map(|p| p["status"]["reservedFor"].as_array().unwrap().len());
            assert_eq!(users, expected);
        }
    }

    #[test]
    fn claims_are_made_of_templates() {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}),
        )
        .unwrap();
        let template: ResourceClaimTemplate = serde_json::from_value(json!({"spec": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"devices": {"requests": [{"name": "r"}]}}}}))
        .unwrap();
        let of = |name: &str| PodResourceClaim {
            name: name.into(),
            ..PodResourceClaim::default()
        };
        let new = new_claim(&pod, &of("gpu"), &template);
        let meta = &new.metadata;
        assert_eq!(meta.generate_name.as_deref(), Some("p-gpu-"));
        assert_eq!(meta.annotations.as_ref().unwrap()[POD_CLAIM], "gpu");
        assert_eq!(meta.labels.as_ref().unwrap()["a"], "b");
        assert_eq!(meta.owner_references.as_ref().unwrap()[0].name, "p");
        assert!(new.spec.unwrap().devices.is_some());
        let mut named = pod.clone();
        named.metadata.name = Some("p".repeat(63));
        let long = new_claim(&named, &of(&"x".repeat(63)), &template);
        let half = |letter: &str| letter.repeat(63 * NAME_MAX / 128);
        let expected = format!("{}-{}", half("p"), half("x"));
        assert_eq!(long.metadata.generate_name, Some(expected));
    }

    #[test]
    fn pods_name_their_claims() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [], "resourceClaims": [
                {"name": "a", "resourceClaimName": "mine"}, {"name": "b", "resourceClaimTemplateName": "t"}]},
            "status": {"resourceClaimStatuses": [{"name": "b", "resourceClaimName": "made"}]}}))
        .unwrap();
        assert_eq!(claim_names(&pod), ["mine", "made"]);
        assert!(is_done(&pod));
    }
}
