//! What the controllers of owners share: Deployments own ReplicaSets; ReplicaSets,
//! ReplicationControllers, StatefulSets and DaemonSets own pods.
//!
//! A change of something owned concerns its owner, and one of an orphan those that may adopt it.
//! What an owner has is settled before it is planned with: adopted what its selector matches, let
//! go what it matches no more.

use std::{fmt::Debug, sync::Arc, time::Duration};

use client::{
    Cache, Change, Client, Entry, Error, Key, Queue, Scope, Selector, cache::decode_all, write,
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{
            DaemonSet, DaemonSetStatus, Deployment, DeploymentStatus, ReplicaSet, ReplicaSetStatus,
            StatefulSet, StatefulSetStatus,
        },
        core::v1::{ReplicationController, ReplicationControllerStatus},
    },
};
use kube::{Api, Resource};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{Context, claim};

/// A kind of the API, in a namespace.
pub trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// A kind whose objects own what their selector matches.
pub trait Owner: Kind {
    /// Of its status.
    type Status: Serialize + Send + Sync;

    /// What it selects. One that would select everything selects nothing.
    ///
    /// # Errors
    /// When it cannot be understood.
    fn selector(&self) -> Result<Selector, Error>;

    /// Its status.
    fn status(&self) -> Option<&Self::Status>;
}

macro_rules! owner {
    ($kind:ty, $status:ty) => {
        impl Owner for $kind {
            type Status = $status;

            fn selector(&self) -> Result<Selector, Error> {
                Selector::of(&self.spec.selector).map_err(|e| Error::Other(e.to_string()))
            }

            fn status(&self) -> Option<&$status> {
                self.status.as_ref()
            }
        }
    };
}

owner!(DaemonSet, DaemonSetStatus);
owner!(Deployment, DeploymentStatus);
owner!(ReplicaSet, ReplicaSetStatus);
owner!(StatefulSet, StatefulSetStatus);

impl Owner for ReplicationController {
    type Status = ReplicationControllerStatus;

    fn selector(&self) -> Result<Selector, Error> {
        let labels = self.spec.as_ref().and_then(|s| s.selector.as_ref());
        Ok(labels.map_or_else(Selector::everything, Selector::of_labels))
    }

    fn status(&self) -> Option<&ReplicationControllerStatus> {
        self.status.as_ref()
    }
}

/// The owners of a kind, and all that they may own.
pub struct Owners<O, K> {
    client: Client,
    /// The owners.
    pub all: Cache<O>,
    /// What they own, and what others own.
    pub owned: Cache<K>,
}

impl<O: Owner, K: Kind> Owners<O, K> {
    /// Waits until both kinds are known. From then on `queue` gets the owners that changed, and
    /// those that a change of something owned concerns: at once, or when changes have been gathered
    /// for as long as `gather` says of an owner of so many.
    pub async fn watch(
        context: &Context,
        queue: &Queue<Key>,
        gather: Option<fn(usize) -> Duration>,
    ) -> Self {
        let all = context.caches.get::<O>(Scope::all());
        let owned = context.caches.get::<K>(Scope::all());
        all.synced().await;
        let to = queue.clone();
        all.on_change(move |change| to.add(change.key.clone()));
        owned.synced().await;
        let (to, of, others) = (queue.clone(), all.clone(), owned.clone());
        owned.on_change(move |change| {
            let owner = change.latest().and_then(|e| e.controller());
            let count = || owner.map_or(0, |o| others.owned_count(&o.uid));
            let wait = gather.map(|gather| gather(count()));
            for key in concerned(change, &of) {
                match wait {
                    Some(time) => to.add_after(key, time),
                    None => to.add(key),
                }
            }
        });
        Self {
            client: context.client.clone(),
            all,
            owned,
        }
    }

    /// Writes owners of a namespace.
    pub fn api(&self, namespace: &str) -> Api<O> {
        write::namespaced(&self.client, namespace)
    }

    /// Writes what is owned in a namespace.
    pub fn owned_api(&self, namespace: &str) -> Api<K> {
        write::namespaced(&self.client, namespace)
    }

    /// All that names `owner` its controller, whether its selector matches or not.
    pub fn of(&self, owner: &O) -> Vec<K> {
        decode_all(&self.entries_of(owner))
    }

    /// As [`Self::of`], not decoded.
    pub fn entries_of(&self, owner: &O) -> Vec<Arc<Entry>> {
        let uid = owner.meta().uid.as_deref();
        self.owned.entries_owned_by(uid.unwrap_or_default())
    }

    /// What `owner` has once it has adopted and released.
    ///
    /// # Errors
    /// When its selector cannot be understood or the server refuses.
    pub async fn claim(&self, owner: &O) -> Result<Vec<K>, Error> {
        Ok(decode_all(&self.claim_entries(owner, |_| true).await?))
    }

    /// As [`Self::claim`], not decoded, and adopts and releases only what `suits`.
    ///
    /// # Errors
    /// As there.
    pub async fn claim_entries(
        &self,
        owner: &O,
        suits: impl Fn(&Entry) -> bool,
    ) -> Result<Vec<Arc<Entry>>, Error> {
        let selector = owner.selector()?;
        claim::own(&self.client, owner, &selector, &self.owned, suits).await
    }

    /// Writes what changed in the status of `owner`, unless it has become another object.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn write_status(&self, owner: &O, status: &O::Status) -> Result<(), Error> {
        match write::merge_patch(owner.status(), status) {
            Some(patch) => self.patch_status(owner, patch).await,
            None => Ok(()),
        }
    }

    /// Counts that a name was taken by something of another template: the next gets another name.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn count_collision(&self, owner: &O, before: Option<i32>) -> Result<(), Error> {
        let patch = json!({"collisionCount": before.unwrap_or(0) + 1});
        self.patch_status(owner, patch).await
    }

    async fn patch_status(&self, owner: &O, status: Value) -> Result<(), Error> {
        let key = Key::of(owner);
        let body = json!({"metadata": {"uid": owner.meta().uid}, "status": status});
        let written = write::patch_status(&self.api(&key.namespace), &key.name, &body).await?;
        let revision = written.as_ref().map_or(0, write::revision_of);
        self.all.caught_up(revision).await
    }
}

/// The owners that a change of something they may own concerns: its owner before and after, or,
/// where it has no controller, those that may adopt it.
fn concerned<O: Owner>(change: &Change, owners: &Cache<O>) -> Vec<Key> {
    let namespace = &change.key.namespace;
    let mut keys = Vec::new();
    for entry in [&change.old, &change.new].into_iter().flatten() {
        if let Some(owner) = entry.controller().filter(|o| o.kind == O::kind(&())) {
            keys.push(Key::new(namespace.clone(), owner.name.as_str()));
        }
    }
    let orphan = change
        .new
        .as_ref()
        .filter(|e| e.controller().is_none() && !e.deleting);
    if let Some(orphan) = orphan.filter(|_| !owners.is_empty()) {
        let selects = |owner: &O| {
            let selector = owner.selector();
            selector.is_ok_and(|s| !s.is_everything() && orphan.matches(&s))
        };
        let all = owners.list_in(namespace);
        keys.extend(all.iter().filter(|o| selects(o)).map(Key::of));
    }
    keys
}
