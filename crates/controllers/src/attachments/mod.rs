//! Attaches the volumes that pods mount to their nodes, and detaches them when no pod there does.
//!
//! An attachment is asked for by a VolumeAttachment, which the attacher of the volume's driver
//! carries out; the node learns of it by its status. What a node may still have mounted stays
//! until the node says otherwise, has been unwell for six minutes, or is said to be down for good.
//!
//! ```text
//! wanted ──> VolumeAttachment ──> attached by the driver ──> in the node's volumesAttached
//!                                                               │ wanted no more, not mounted
//!              gone  <──  deleted  <──  out of volumesAttached  <┘
//! ```

mod plan;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use client::{
    Cache, Change, Entry, Error, EventType, Key, Queue, Reconcile, Recorder, Requeue, Scope,
    events, write,
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{
        AttachedVolume, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod,
    },
    storage::v1::{CSIDriver, VolumeAttachment},
};
use kube::{Api, api::PostParams};
use serde_json::json;

use crate::{Context, Controller, pods};
use plan::{Attachment, Plan, Seen, Wanted};
use source::{DEVICE_PREFIX, MountedClaim, Source};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "attachdetach-controller",
    run,
};

/// On a node: whether its volumes are attached from here.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The pods of a node that mount a volume, by volume.
type Users = HashMap<String, Vec<Pod>>;

/// What is remembered between two looks; forgetting it costs time, or an event more.
#[derive(Default)]
struct Memory {
    /// Since when attachments have not been wanted, by node.
    unwanted: HashMap<String, BTreeMap<String, Timestamp>>,
    /// The problems that were told, by attachment.
    told: HashMap<String, String>,
}

#[derive(Clone)]
struct Attacher {
    context: Context,
    recorder: Recorder,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    drivers: Cache<CSIDriver>,
    attachments: Cache<VolumeAttachment>,
    memory: Arc<Mutex<Memory>>,
    /// Held from the look whether a volume is attached elsewhere until its attachment is seen.
    exclusive: Arc<tokio::sync::Mutex<()>>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let caches = &context.caches;
        let attacher = Attacher {
            recorder: context.recorder(),
            nodes: caches.get(Scope::all()),
            pods: caches.get(Scope::all()),
            claims: caches.get(Scope::all()),
            volumes: caches.get(Scope::all()),
            drivers: caches.get(Scope::all()),
            attachments: caches.get(Scope::all()),
            memory: Arc::default(),
            exclusive: Arc::default(),
            context: context.clone(),
        };
        attacher.nodes.synced().await;
        attacher.pods.synced().await;
        attacher.claims.synced().await;
        attacher.volumes.synced().await;
        attacher.drivers.synced().await;
        attacher.attachments.synced().await;
        let queue = Queue::default();
        attacher.watch(&queue);
        context.work(attacher, queue).await;
    })
}

impl Attacher {
    /// What may matter to which node.
    fn watch(&self, queue: &Queue<Key>) {
        let (to, this) = (queue.clone(), self.clone());
        self.nodes.on_change(move |change| {
            if !this.is_idle() {
                to.add(change.key.clone());
            }
        });
        let (to, this) = (queue.clone(), self.clone());
        self.pods.on_change(move |change| {
            if this.is_idle() || !change.latest().is_some_and(|e| pods::names_claims(e)) {
                return;
            }
            let states = [&change.old, &change.new].into_iter().flatten();
            for node in states.filter_map(|e| e.node.as_deref()) {
                to.add(Key::cluster(node));
            }
        });
        let (to, this) = (queue.clone(), self.clone());
        self.claims.on_change(move |change| {
            for node in this.nodes_using(&change.key) {
                to.add(Key::cluster(node.as_str()));
            }
        });
        let (to, this) = (queue.clone(), self.clone());
        self.volumes
            .on_change(move |change| this.volume_changed(change, &to));
        let (to, this) = (queue.clone(), self.clone());
        self.drivers.on_change(move |_| {
            let nodes = this.nodes.entries();
            nodes.iter().for_each(|node| to.add(node.key.clone()));
        });
        let (to, this) = (queue.clone(), self.clone());
        self.attachments.on_change(move |change| {
            let attachment = change.latest().and_then(|e| e.decode().ok());
            let Some(attachment): Option<VolumeAttachment> = attachment else {
                return;
            };
            to.add(Key::cluster(attachment.spec.node_name.as_str()));
            // Another node may have waited for the volume.
            let volume = attachment.spec.source.persistent_volume_name;
            let volume = volume.and_then(|v| this.volumes.entry(&Key::cluster(v.as_str())));
            if let Some(volume) = volume.filter(|_| change.new.is_none()) {
                this.wake_users(&volume, &to);
            }
        });
    }

    /// Whether there is nothing that could be attached or detached.
    fn is_idle(&self) -> bool {
        self.volumes.is_empty() && self.attachments.is_empty()
    }

    fn volume_changed(&self, change: &Change, to: &Queue<Key>) {
        if let Some(volume) = change.latest() {
            self.wake_users(volume, to);
        }
    }

    /// The nodes of the pods that mount a volume.
    fn wake_users(&self, volume: &Entry, to: &Queue<Key>) {
        let volume: Option<PersistentVolume> = volume.decode().ok();
        let Some(claim) = volume.and_then(|v| v.spec?.claim_ref) else {
            return;
        };
        let namespace = claim.namespace.unwrap_or_default();
        let claim = Key::new(namespace, claim.name.unwrap_or_default());
        for node in self.nodes_using(&claim) {
            to.add(Key::cluster(node.as_str()));
        }
    }

    fn nodes_using(&self, claim: &Key) -> BTreeSet<String> {
        let users = self.users_of(claim);
        let nodes = users.iter().filter_map(|p| p.node.as_deref());
        nodes.map(str::to_owned).collect()
    }

    /// The pods with a node that mount a claim.
    fn users_of(&self, claim: &Key) -> Vec<Arc<Entry>> {
        let mut pods = self.pods.entries_in(&claim.namespace);
        let mounts = |pod: &Pod| source::claims_of(pod).iter().any(|c| c.name == *claim.name);
        pods.retain(|p| {
            p.node.is_some() && p.mentions(&claim.name) && p.decode().is_ok_and(|pod| mounts(&pod))
        });
        pods
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether volumes of a driver have to be attached before they are mounted.
    fn is_attached_by(&self, driver: &str) -> Result<bool, Error> {
        let driver = self.drivers.get(&Key::cluster(driver))?;
        Ok(driver.is_none_or(|d| d.spec.attach_required != Some(false)))
    }

    /// What the pods of a node mount, with the pods.
    fn wanted(&self, node: &str) -> Result<(Vec<Wanted>, Users), Error> {
        let mut all: BTreeMap<String, Wanted> = BTreeMap::new();
        let mut users: Users = HashMap::new();
        for entry in self.pods.entries_on(node) {
            if !pods::names_claims(&entry) {
                continue;
            }
            let pod: Pod = entry.decode()?;
            if pods::is_terminal(&pod) {
                continue;
            }
            for claim in source::claims_of(&pod) {
                let Some(wanted) = self.wanted_for(&pod, &entry.key.namespace, &claim, node)?
                else {
                    continue;
                };
                let name = wanted.volume.clone();
                users.entry(name.clone()).or_default().push(pod.clone());
                all.entry(name).or_insert(wanted);
            }
        }
        Ok((all.into_values().collect(), users))
    }

    /// What a pod's claim needs on its node, if it is bound to a volume that is attached.
    fn wanted_for(
        &self,
        pod: &Pod,
        namespace: &str,
        claim: &MountedClaim,
        node: &str,
    ) -> Result<Option<Wanted>, Error> {
        let key = Key::new(namespace, claim.name.as_str());
        let Some(found) = self.claims.get(&key)? else {
            return Ok(None);
        };
        if !claim.is(&found, pod) {
            return Ok(None);
        }
        let Some(name) = source::volume_name(&found) else {
            return Ok(None);
        };
        let Some(volume) = self.volumes.get(&Key::cluster(name))? else {
            return Ok(None);
        };
        let Some(source) = Source::of(&volume).filter(|_| source::belongs_to(&volume, &found))
        else {
            return Ok(None);
        };
        Ok(self.is_attached_by(source.driver)?.then(|| Wanted {
            volume: name.to_owned(),
            attachment: source.attachment_name(node),
            device: source.device(),
            exclusive: source::is_exclusive(&volume),
        }))
    }

    /// Our attachments to a node, with what went wrong with them.
    fn attached(&self, node: &str) -> Result<Vec<(Attachment, Option<String>)>, Error> {
        let mut all = Vec::new();
        for entry in self.attachments.entries_on(node) {
            let one: VolumeAttachment = entry.decode()?;
            if !source::is_ours(&one) {
                continue;
            }
            let volume = one.spec.source.persistent_volume_name.as_deref();
            let volume = volume.unwrap_or_default();
            let volume = self.volumes.get(&Key::cluster(volume))?;
            let known = volume.as_ref().and_then(Source::of);
            let status = one.status.unwrap_or_default();
            let error = status.attach_error.and_then(|e| e.message);
            let attachment = Attachment {
                name: entry.key.name.to_string(),
                device: known.map(|s| s.device()).unwrap_or_default(),
                attached: status.attached,
                deleting: entry.deleting,
            };
            all.push((attachment, error.filter(|_| !status.attached)));
        }
        Ok(all)
    }

    /// Those of the volumes that are attached to other nodes, of whoever can be in one place only
    /// and is not here yet.
    fn elsewhere(
        &self,
        wanted: &[Wanted],
        here: &[(Attachment, Option<String>)],
        node: &str,
    ) -> BTreeSet<String> {
        let is_here = |w: &Wanted| here.iter().any(|(a, _)| a.name == w.attachment);
        let new = wanted.iter().filter(|w| w.exclusive && !is_here(w));
        let on_others = new.filter(|w| self.is_elsewhere(&w.volume, node));
        on_others.map(|w| w.volume.clone()).collect()
    }

    /// Whether a volume is attached to another node.
    fn is_elsewhere(&self, volume: &str, node: &str) -> bool {
        let all = self.attachments.entries();
        let mut others = all
            .iter()
            .filter(|e| e.node.as_deref() != Some(node) && e.mentions(volume))
            .filter_map(|e| e.decode::<VolumeAttachment>().ok());
        others.any(|a| a.spec.source.persistent_volume_name.as_deref() == Some(volume))
    }
}

/// What a node's status and its annotations say.
fn look_at(node: Option<&Node>) -> Seen {
    let Some(node) = node else {
        return Seen::default();
    };
    let status = node.status.clone().unwrap_or_default();
    let annotations = node.metadata.annotations.as_ref();
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let attached = status.volumes_attached.into_iter().flatten();
    let conditions = status.conditions.into_iter().flatten();
    Seen {
        exists: true,
        managed: annotations
            .and_then(|a| a.get(MANAGED))
            .is_some_and(|v| v == "true"),
        healthy: conditions
            .into_iter()
            .any(|c| c.type_ == "Ready" && c.status == "True"),
        out_of_service: taints.into_iter().any(|t| t.key == OUT_OF_SERVICE),
        in_use: status.volumes_in_use.into_iter().flatten().collect(),
        reported: attached.map(|v| v.name).collect(),
        ..Seen::default()
    }
}

impl Reconcile for Attacher {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let name = &*key.name;
        let node = self.nodes.get(key)?;
        let (wanted, users) = self.wanted(name)?;
        let attached = self.attached(name)?;
        let mut seen = look_at(node.as_ref());
        // What others have attached is theirs to report.
        seen.reported.retain(|d| d.starts_with(DEVICE_PREFIX));
        let status = node.and_then(|n| n.status);
        let mut foreign = status.and_then(|s| s.volumes_attached).unwrap_or_default();
        foreign.retain(|v| !v.name.starts_with(DEVICE_PREFIX));
        seen.elsewhere = self.elsewhere(&wanted, &attached, name);
        seen.attachments = attached.iter().map(|(a, _)| a.clone()).collect();
        seen.wanted = wanted;
        let known = self.memory().unwanted.get(name).cloned();
        seen.unwanted_since = known.unwrap_or_default();
        let plan = plan::plan(&seen, self.context.now());
        self.remember(name, &plan);
        for (attachment, error) in &attached {
            let wanted = seen.wanted.iter().find(|w| w.attachment == attachment.name);
            if let (Some(wanted), Some(error)) = (wanted, error) {
                let why = format!(
                    "AttachVolume.Attach failed for volume \"{}\" : {error}",
                    wanted.volume
                );
                self.complain(wanted, &users, why);
            }
        }
        for wanted in &plan.blocked {
            self.complain(wanted, &users, self.multi_attach(wanted, &users));
        }
        self.carry_out(name, &plan, &foreign, &users).await?;
        Ok(plan.again.map_or(Requeue::OnChange, Requeue::After))
    }
}

impl Attacher {
    fn remember(&self, node: &str, plan: &Plan) {
        let mut memory = self.memory();
        if plan.unwanted_since.is_empty() {
            memory.unwanted.remove(node);
        } else {
            let since = plan.unwanted_since.clone();
            memory.unwanted.insert(node.to_owned(), since);
        }
        for done in &plan.succeeded {
            memory.told.remove(&done.attachment);
        }
    }

    /// Tells the pods that mount a volume what is wrong with it, once.
    fn complain(&self, wanted: &Wanted, users: &Users, why: String) {
        let before = self
            .memory()
            .told
            .insert(wanted.attachment.clone(), why.clone());
        if before.as_ref() == Some(&why) {
            return;
        }
        for pod in users.get(&wanted.volume).into_iter().flatten() {
            self.recorder.warning(pod, "FailedAttachVolume", &*why);
        }
    }

    /// Why a volume cannot be attached to a second node: who has it.
    fn multi_attach(&self, wanted: &Wanted, users: &Users) -> String {
        let volume = self.volumes.get(&Key::cluster(wanted.volume.as_str()));
        let claim = volume.ok().flatten().and_then(|v| v.spec?.claim_ref);
        let key = claim.and_then(|c| Some(Key::new(c.namespace?, c.name?)));
        let here = users.get(&wanted.volume).into_iter().flatten();
        let here: Vec<&str> = here.filter_map(|p| p.metadata.uid.as_deref()).collect();
        let holders = key.map(|claim| self.users_of(&claim)).unwrap_or_default();
        let holders = holders.iter().filter(|p| !here.contains(&&*p.uid));
        let holders: Vec<&str> = holders.map(|p| &*p.key.name).collect();
        let name = &wanted.volume;
        if holders.is_empty() {
            return format!(
                "Multi-Attach error for volume \"{name}\" Volume is already exclusively attached to one node and can't be attached to another"
            );
        }
        format!(
            "Multi-Attach error for volume \"{name}\" Volume is already used by pod(s) {}",
            holders.join(", ")
        )
    }

    async fn carry_out(
        &self,
        node: &str,
        plan: &Plan,
        foreign: &[AttachedVolume],
        users: &Users,
    ) -> Result<(), Error> {
        if let Some(report) = &plan.report {
            let ours = report.iter().map(|device| AttachedVolume {
                name: device.clone(),
                device_path: String::new(),
            });
            let all: Vec<AttachedVolume> = foreign.iter().cloned().chain(ours).collect();
            let api: Api<Node> = write::cluster(&self.context.client);
            let body = json!({"status": {"volumesAttached": all}});
            if let Some(written) = write::patch_status(&api, node, &body).await? {
                self.nodes.caught_up(write::revision_of(&written)).await?;
            }
        }
        for done in &plan.succeeded {
            let message = format!(
                "AttachVolume.Attach succeeded for volume \"{}\" ",
                done.volume
            );
            for pod in users.get(&done.volume).into_iter().flatten() {
                let about: ObjectReference = events::reference(pod);
                let reason = "SuccessfulAttachVolume";
                self.recorder
                    .event(&about, EventType::Normal, reason, &*message);
            }
        }
        let api: Api<VolumeAttachment> = write::cluster(&self.context.client);
        for name in &plan.detach {
            write::delete(&api, name, None).await?;
        }
        for wanted in &plan.attach {
            self.attach(&api, wanted, node).await?;
        }
        Ok(())
    }

    async fn attach(
        &self,
        api: &Api<VolumeAttachment>,
        wanted: &Wanted,
        node: &str,
    ) -> Result<(), Error> {
        let volume = self.volumes.get(&Key::cluster(wanted.volume.as_str()))?;
        let Some(Source { driver, .. }) = volume.as_ref().and_then(Source::of) else {
            return Ok(());
        };
        // Two nodes are looked at side by side: the second to come sees what the first has made.
        let _alone = self.exclusive.lock().await;
        if wanted.exclusive && self.is_elsewhere(&wanted.volume, node) {
            return Err(Error::Other(format!(
                "volume {} was attached to another node just now",
                wanted.volume
            )));
        }
        let new = json!({
            "metadata": {"name": wanted.attachment},
            "spec": {"attacher": driver, "nodeName": node,
                "source": {"persistentVolumeName": wanted.volume}},
        });
        let new: VolumeAttachment =
            serde_json::from_value(new).map_err(|e| Error::Other(e.to_string()))?;
        let made = api.create(&PostParams::default(), &new).await;
        if let Some(made) = write::tolerate_existing(made)? {
            let revision = write::revision_of(&made);
            self.attachments.caught_up(revision).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_what_it_has_and_how_it_is() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"annotations": {MANAGED: "true"}},
            "spec": {"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]},
            "status": {"volumesInUse": ["a"], "volumesAttached": [{"name": "a", "devicePath": ""}],
                "conditions": [{"type": "Ready", "status": "Unknown"}]},
        }))
        .unwrap();
        let seen = look_at(Some(&node));
        assert!(seen.exists && seen.managed && seen.out_of_service && !seen.healthy);
        assert_eq!((seen.in_use.len(), seen.reported.len()), (1, 1));
        assert!(!look_at(None).exists);
    }
}
