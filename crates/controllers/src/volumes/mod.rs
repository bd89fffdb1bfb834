//! Binds claims to volumes, makes volumes on demand, and lets go of both when nobody uses them.
//!
//! ```text
//! claim:   Pending ──> Bound ──> Lost (its volume is gone)
//! volume:  Available ──> Bound ──> Released ──> deleted (policy Delete), emptied (Recycle) or kept (Retain)
//! ```
//!
//! A binding is written in four steps (volume's reference, volume's phase, claim's volume, claim's
//! phase), each done only where it is not done yet, so that it can be interrupted anywhere.

mod attributes;
mod ephemeral;
mod expand;
mod folders;
mod plan;
mod protection;
mod provision;
mod recycle;
mod release;
mod users;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use api::storage_class;
use client::{
    Cache, Change, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, events, write,
};
use futures::future::BoxFuture;
use k8s_openapi::api::{
    core::v1::{Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use kube::Api;
use serde_json::json;

use crate::{Context, Controller};
pub use attributes::CONTROLLER as ATTRIBUTES_PROTECTION;
pub use ephemeral::CONTROLLER as EPHEMERAL;
pub use expand::CONTROLLER as EXPANDER;
pub use folders::{Folders, MachineFolders};
use plan::{BIND_COMPLETED, BOUND_BY_CONTROLLER, ClaimAct, Consumers, SELECTED_NODE};
pub use protection::{CLAIMS as CLAIM_PROTECTION, VOLUMES as VOLUME_PROTECTION};
use users::Users;

/// Binds and provisions.
pub const BINDER: Controller = Controller {
    name: "persistent-volume-binder",
    run,
};

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
struct Binder {
    context: Context,
    recorder: Recorder,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    classes: Cache<StorageClass>,
    nodes: Cache<Node>,
    users: Users,
}

/// A claim (with a namespace) or a volume (without).
type Either = Key;

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let claims = context.caches.get::<PersistentVolumeClaim>(Scope::all());
        let volumes = context.caches.get::<PersistentVolume>(Scope::all());
        let classes = context.caches.get::<StorageClass>(Scope::all());
        let nodes = context.caches.get::<Node>(Scope::all());
        let pods = context.caches.get::<Pod>(Scope::all());
        let queue: Queue<Either> = Queue::default();
        nodes.synced().await;
        classes.synced().await;
        volumes.synced().await;
        claims.synced().await;
        pods.synced().await;
        provision::ensure_class(&context).await;
        let to = queue.clone();
        pods.on_change(move |change| {
            if let Some(volume) = recycle::told_by(change) {
                to.add(volume);
            }
        });
        let open = Open::default();
        let (to, waiting) = (queue.clone(), open.clone());
        let (known, all) = (claims.clone(), volumes.clone());
        let users = Users::follow(pods, move |claim| {
            if waiting.has(&claim) {
                to.add(claim);
            } else if !known.contains(&claim) {
                volumes_of(&all, &claim)
                    .into_iter()
                    .for_each(|key| to.add(key));
            }
        });
        let (to, all, noted) = (queue.clone(), volumes.clone(), open.clone());
        claims.on_change(move |change| {
            noted.note(change);
            to.add(change.key.clone());
            volumes_of(&all, &change.key)
                .into_iter()
                .for_each(|key| to.add(key));
        });
        let (to, unsettled) = (queue.clone(), open.clone());
        volumes.on_change(move |change| {
            to.add(change.key.clone());
            claims_of(change).into_iter().for_each(|key| to.add(key));
            unsettled.add_to(&to);
        });
        let to = queue.clone();
        classes.on_change(move |_| open.add_to(&to));
        let recorder = context.recorder_as("persistentvolume-controller");
        let reconciler = Binder {
            context: context.clone(),
            recorder,
            claims,
            volumes,
            classes,
            nodes,
            users,
        };
        // One worker: two claims must not choose the same volume.
        client::run_workers(
            std::sync::Arc::new(reconciler),
            queue,
            1,
            context.shutdown.clone(),
        )
        .await;
    })
}

/// The claims whose binding is not settled: they may profit from a new volume or class.
#[derive(Clone, Default)]
struct Open(Arc<Mutex<BTreeSet<Key>>>);

impl Open {
    fn note(&self, change: &Change) {
        let open = change.new.as_ref().is_some_and(|e| {
            e.decode::<PersistentVolumeClaim>()
                .is_ok_and(|c| !plan::has(&c.metadata, BIND_COMPLETED))
        });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open {
            all.insert(change.key.clone());
        } else {
            all.remove(&change.key);
        }
    }

    fn has(&self, claim: &Key) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.contains(claim)
    }

    fn add_to(&self, queue: &Queue<Key>) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().for_each(|key| queue.add(key.clone()));
    }
}

/// The claims that a volume refers or referred to.
fn claims_of(change: &Change) -> Vec<Key> {
    let states = [&change.old, &change.new].into_iter().flatten();
    states
        .filter_map(|e| e.decode::<PersistentVolume>().ok())
        .filter_map(|v| plan::volume_ref(&v).map(claim_key))
        .collect()
}

/// The volumes that refer to a claim.
fn volumes_of(all: &Cache<PersistentVolume>, claim: &Key) -> Vec<Key> {
    let refers =
        |v: &&PersistentVolume| plan::volume_ref(v).is_some_and(|r| claim_key(r) == *claim);
    all.list().iter().filter(refers).map(Key::of).collect()
}

fn claim_key(reference: &ObjectReference) -> Key {
    Key::new(
        reference.namespace.as_deref().unwrap_or_default(),
        reference.name.as_deref().unwrap_or_default(),
    )
}

impl Reconcile for Binder {
    type Key = Either;

    fn name(&self) -> &'static str {
        BINDER.name
    }

    async fn reconcile(&self, key: &Either) -> Result<Requeue, Error> {
        if key.namespace.is_empty() {
            self.volume(key).await
        } else {
            self.claim(key).await
        }
    }
}

impl Binder {
    async fn claim(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(claim) = self.claims.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        if self.give_default_class(key, &claim).await? {
            return Ok(Requeue::OnChange);
        }
        let class = self.class_of(&claim)?;
        let node = self.node_of(&claim)?;
        let consumers = self.consumers_of(key, &claim);
        let volumes = self.volumes.list();
        match plan::claim(&claim, class.as_ref(), &volumes, node.as_ref(), consumers) {
            ClaimAct::Bind(volume) => {
                self.bind(key, &claim, &volume).await?;
                Ok(Requeue::OnChange)
            }
            ClaimAct::Wait(why) => {
                self.claim_phase(key, &claim, "Pending").await?;
                let Some((kind, reason, message)) = why else {
                    return Ok(Requeue::OnChange);
                };
                self.recorder
                    .event(&events::reference(&claim), kind, reason, message);
                Ok(Requeue::OnChange)
            }
            ClaimAct::Provision => {
                self.claim_phase(key, &claim, "Pending").await?;
                if let Some(class) = class {
                    self.provision(&claim, &class, node.as_ref()).await?;
                }
                Ok(Requeue::OnChange)
            }
            ClaimAct::Select(node) => {
                self.select_node(key, &claim, &node).await?;
                Ok(Requeue::OnChange)
            }
            ClaimAct::Lost(reason, message) => {
                let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
                if phase != Some("Lost") {
                    self.claim_phase(key, &claim, "Lost").await?;
                    self.recorder.warning(&claim, reason, message);
                }
                Ok(Requeue::OnChange)
            }
        }
    }

    fn consumers_of(&self, key: &Key, claim: &PersistentVolumeClaim) -> Consumers {
        let is_open = |known: &str| !plan::has(&claim.metadata, known);
        if !is_open(BIND_COMPLETED) || !is_open(SELECTED_NODE) {
            return Consumers::default();
        }
        self.users.consumers(key)
    }

    /// Notes where a claim is needed, unless somebody else has done anything to it meanwhile.
    async fn select_node(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        node: &str,
    ) -> Result<(), Error> {
        let api = write::namespaced::<PersistentVolumeClaim>(&self.context.client, &key.namespace);
        let patch = json!({"metadata": {
            "uid": claim.metadata.uid,
            "resourceVersion": claim.metadata.resource_version,
            "annotations": {SELECTED_NODE: node},
        }});
        let written = write::patch(&api, &key.name, &patch).await?;
        let revision = written.as_ref().map_or(0, write::revision_of);
        self.claims.caught_up(revision).await
    }

    fn class_of(&self, claim: &PersistentVolumeClaim) -> Result<Option<StorageClass>, Error> {
        match plan::class_of_claim(claim) {
            "" => Ok(None),
            name => self.classes.get(&Key::cluster(name)),
        }
    }

    fn node_of(&self, claim: &PersistentVolumeClaim) -> Result<Option<plan::Node>, Error> {
        let selected = claim
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(SELECTED_NODE));
        let Some(name) = selected else {
            return Ok(None);
        };
        let node = self.nodes.get(&Key::cluster(name.as_str()))?;
        let labels = node.and_then(|n| n.metadata.labels).unwrap_or_default();
        Ok(Some(plan::Node {
            name: name.clone(),
            labels,
        }))
    }

    /// A claim that says nothing about its class gets the default one, even if that came later.
    async fn give_default_class(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
    ) -> Result<bool, Error> {
        let spec = claim.spec.as_ref();
        let open = spec.is_some_and(|s| s.storage_class_name.is_none() && s.volume_name.is_none());
        let annotated = plan::has(&claim.metadata, storage_class::ANNOTATION);
        if !open || annotated || claim.metadata.deletion_timestamp.is_some() {
            return Ok(false);
        }
        let is_default = |c: &StorageClass| {
            let annotations = c.metadata.annotations.as_ref();
            annotations
                .and_then(|a| a.get(DEFAULT_CLASS))
                .is_some_and(|v| v == "true")
        };
        let mut defaults: Vec<StorageClass> =
            self.classes.list().into_iter().filter(is_default).collect();
        defaults.sort_by_key(|c| {
            let created = c.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (std::cmp::Reverse(created), c.metadata.name.clone())
        });
        let Some(class) = defaults.first() else {
            return Ok(false);
        };
        let api: Api<PersistentVolumeClaim> =
            write::namespaced(&self.context.client, &key.namespace);
        let patch = json!({"spec": {"storageClassName": class.metadata.name}});
        let written = write::patch(&api, &key.name, &patch).await?;
        self.claims
            .caught_up(written.as_ref().map_or(0, write::revision_of))
            .await?;
        Ok(true)
    }

    async fn bind(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<(), Error> {
        self.bind_volume(claim, volume).await?;
        let name = volume.metadata.name.clone().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> =
            write::namespaced(&self.context.client, &key.namespace);
        let mut revision = 0;
        let named = claim
            .spec
            .as_ref()
            .and_then(|s| s.volume_name.as_deref())
            .unwrap_or_default();
        if named != name || !plan::has(&claim.metadata, BIND_COMPLETED) {
            let mut annotations = json!({BIND_COMPLETED: "yes"});
            if named.is_empty() {
                annotations[BOUND_BY_CONTROLLER] = json!("yes");
            }
            let patch = json!({
                "metadata": {"annotations": annotations, "uid": claim.metadata.uid},
                "spec": {"volumeName": name},
            });
            revision = write::patch(&api, &key.name, &patch)
                .await?
                .as_ref()
                .map_or(0, write::revision_of);
        }
        let spec = volume.spec.clone().unwrap_or_default();
        let capacity = spec
            .capacity
            .as_ref()
            .and_then(|c| c.get("storage"))
            .cloned();
        let status = claim.status.clone().unwrap_or_default();
        let new = status.phase.as_deref() != Some("Bound");
        if new || status.access_modes != spec.access_modes {
            let mut known = json!({"phase": "Bound", "accessModes": spec.access_modes});
            if new {
                // Later it is told by whoever grows the file system, which may be smaller.
                known["capacity"] = json!({"storage": capacity});
            }
            let patch = json!({"status": known});
            let written = write::patch_status(&api, &key.name, &patch).await?;
            revision = written.as_ref().map_or(revision, write::revision_of);
        }
        self.claims.caught_up(revision).await
    }

    async fn bind_volume(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<(), Error> {
        let api: Api<PersistentVolume> = write::cluster(&self.context.client);
        let name = volume.metadata.name.clone().unwrap_or_default();
        let mut revision = 0;
        let current = plan::volume_ref(volume);
        let settled = current.is_some_and(|r| r.uid.is_some() && r.uid == claim.metadata.uid);
        if !settled {
            let mut reference = events::reference(claim);
            reference.field_path = None;
            let mut metadata = json!({"resourceVersion": volume.metadata.resource_version});
            if current.is_none() {
                metadata["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
            }
            let patch = json!({"metadata": metadata, "spec": {"claimRef": reference}});
            revision = write::patch(&api, &name, &patch)
                .await?
                .as_ref()
                .map_or(0, write::revision_of);
        }
        if volume.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
            let patch = json!({"status": {"phase": "Bound"}});
            let written = write::patch_status(&api, &name, &patch).await?;
            revision = written.as_ref().map_or(revision, write::revision_of);
        }
        self.volumes.caught_up(revision).await
    }

    async fn claim_phase(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        phase: &str,
    ) -> Result<(), Error> {
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase) {
            return Ok(());
        }
        let api: Api<PersistentVolumeClaim> =
            write::namespaced(&self.context.client, &key.namespace);
        // Without a volume it has nothing of one.
        let patch = json!({"status": {"phase": phase, "accessModes": null, "capacity": null}});
        let written = write::patch_status(&api, &key.name, &patch).await?;
        self.claims
            .caught_up(written.as_ref().map_or(0, write::revision_of))
            .await
    }

    async fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        node: Option<&plan::Node>,
    ) -> Result<(), Error> {
        if class.provisioner != provision::PROVISIONER {
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{}' or manually by the \
                 system administrator. If volume creation is delayed, please verify that the provisioner is \
                 running and correctly registered.",
                class.provisioner
            );
            self.recorder.normal(claim, "ExternalProvisioning", message);
            return provision::ask_external(&self.context, claim, &class.provisioner).await;
        }
        match provision::make(&self.context, claim, class, node).await {
            Ok(volume) => {
                let name = volume.metadata.name.clone().unwrap_or_default();
                self.volumes.caught_up(write::revision_of(&volume)).await?;
                let message = format!(
                    "Successfully provisioned volume {name} using {}",
                    class.provisioner
                );
                self.recorder
                    .normal(claim, "ProvisioningSucceeded", message);
                Ok(())
            }
            Err(e) => {
                let message = format!(
                    "Failed to provision volume with StorageClass \"{}\": {e}",
                    class.metadata.name.as_deref().unwrap_or_default()
                );
                self.recorder.warning(claim, "ProvisioningFailed", message);
                Err(e)
            }
        }
    }
}
