//! Which objects belong to a controller object: those it owns, those it may adopt because they
//! match its selector and have no controller, and those it must let go.

use std::sync::Arc;

use client::{Cache, Client, Entry, Error, Selector, write};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::owners::Kind;

/// What to do about the candidates.
#[derive(Debug, Default)]
pub struct Claims {
    /// Owned and matching.
    pub owned: Vec<Arc<Entry>>,
    /// Matching and without a controller: to become owned.
    pub adopt: Vec<Arc<Entry>>,
    /// Owned but no longer matching.
    pub release: Vec<Arc<Entry>>,
}

/// What `owner` has of a kind once it has adopted and released (only what `suits`). A selector of
/// everything is one of nothing.
pub async fn own<O, K>(
    client: &Client,
    owner: &O,
    selector: &Selector,
    cache: &Cache<K>,
    suits: impl Fn(&Entry) -> bool,
) -> Result<Vec<Arc<Entry>>, Error>
where
    O: Kind,
    K: Kind,
{
    if selector.is_everything() {
        return Ok(Vec::new());
    }
    let meta = owner.meta();
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let uid = meta.uid.as_deref().unwrap_or_default();
    let mut candidates = candidates(cache, namespace, uid, selector);
    candidates.retain(|e| e.controller().is_some() || suits(e));
    let deleting = meta.deletion_timestamp.is_some();
    let mut claims = sort(uid, deleting, selector, candidates);
    claims.release.retain(|e| suits(e));
    let owners = write::namespaced(client, namespace);
    let objects = write::namespaced(client, namespace);
    settle(owner, &owners, &objects, cache, claims).await
}

/// Whether an object is controlled by this very owner, and not by an earlier one of its name.
pub fn is_of<O: Resource>(object: &impl Resource, owner: &O) -> bool {
    let owners = object.meta().owner_references.iter().flatten();
    let mut controllers = owners.filter(|o| o.controller == Some(true));
    controllers.any(|o| Some(&o.uid) == owner.meta().uid.as_ref())
}

/// Sorts out `candidates` for the owner of this uid. An owner being deleted neither adopts nor
/// releases, and nothing being deleted is adopted or released.
pub fn sort(uid: &str, deleting: bool, selector: &Selector, candidates: Vec<Arc<Entry>>) -> Claims {
    let mut claims = Claims::default();
    for entry in candidates {
        let matches = entry.matches(selector);
        match entry.controller() {
            Some(owner) if owner.uid == uid && (matches || deleting || entry.deleting) => {
                claims.owned.push(entry);
            }
            Some(owner) if owner.uid == uid => claims.release.push(entry),
            Some(_) => {}
            None if matches && !deleting && !entry.deleting => claims.adopt.push(entry),
            None => {}
        }
    }
    claims
}

/// Everything in the cache that the owner might own or adopt.
pub fn candidates<K>(
    cache: &Cache<K>,
    namespace: &str,
    uid: &str,
    selector: &Selector,
) -> Vec<Arc<Entry>> {
    let mut all = cache.entries_owned_by(uid);
    let orphans = cache
        .orphans_in(namespace)
        .into_iter()
        .filter(|e| e.matches(selector) && e.owners.iter().all(|o| o.uid != uid));
    all.extend(orphans);
    all.retain(|e| &*e.key.namespace == namespace);
    all
}

/// A reference that makes `owner` the managing controller of an object.
pub fn owner_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    owner_reference_of(owner.meta(), &K::api_version(&()), &K::kind(&()))
}

fn owner_reference_of(meta: &ObjectMeta, api_version: &str, kind: &str) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Adopts and releases, then waits until the cache shows it. Answers what is owned now.
///
/// The owner is read afresh before it adopts: an owner that was deleted and made again under
/// its old name must not adopt in the name of the former.
pub async fn settle<O, K>(
    owner: &O,
    owners: &Api<O>,
    objects: &Api<K>,
    cache: &Cache<K>,
    claims: Claims,
) -> Result<Vec<Arc<Entry>>, Error>
where
    O: Kind,
    K: Kind,
{
    let Claims {
        mut owned,
        adopt,
        release,
    } = claims;
    let mut adopt = adopt;
    if !adopt.is_empty() && !may_adopt(owner, owners).await? {
        adopt.clear();
    }
    let reference = owner_reference(owner);
    let mut revision = 0;
    for entry in &adopt {
        let patch = json!({"metadata": {"uid": entry.uid, "ownerReferences": [&reference]}});
        revision = revision.max(apply(objects, entry, patch).await?);
    }
    for entry in &release {
        let gone = json!({"$patch": "delete", "uid": reference.uid});
        let patch = json!({"metadata": {"uid": entry.uid, "ownerReferences": [gone]}});
        revision = revision.max(apply(objects, entry, patch).await?);
    }
    if revision > 0 {
        cache.caught_up(revision).await?;
        owned.extend(adopt.iter().filter_map(|e| cache.entry(&e.key)));
    }
    Ok(owned)
}

async fn may_adopt<O>(owner: &O, owners: &Api<O>) -> Result<bool, Error>
where
    O: Kind,
{
    let name = owner.meta().name.as_deref().unwrap_or_default();
    let fresh = write::tolerate_missing(owners.get(name).await)?;
    Ok(fresh
        .is_some_and(|f| f.meta().uid == owner.meta().uid && f.meta().deletion_timestamp.is_none()))
}

/// Patches one object; 0 where it is gone or has become another one.
async fn apply<K>(objects: &Api<K>, entry: &Entry, patch: serde_json::Value) -> Result<u64, Error>
where
    K: Kind,
{
    let patched = objects
        .patch(
            &entry.key.name,
            &PatchParams::default(),
            &Patch::Strategic(patch),
        )
        .await;
    match write::tolerate_missing(patched) {
        Ok(object) => Ok(object.map_or(0, |o| write::revision_of(&o))),
        Err(kube::Error::Api(status)) if status.code == 422 || status.code == 409 => Ok(0),
        Err(e) => Err(e.into()),
    }
}
