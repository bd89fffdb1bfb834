//! Keeps one pod of a template on every node that suits it.
//!
//! Pods are pinned to their node by affinity, so that the scheduler binds them and its rules
//! hold for them too.

mod nodes;
mod plan;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use client::{
    Cache, Change, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, Selector,
    cache::decode_all, events, write,
};
use futures::future::BoxFuture;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus},
    core::v1::{Node, Pod},
};
use kube::Api;
use serde_json::json;

use crate::{
    Context, Controller, claim,
    history::{self, History, Recorded},
    pod_control::PodControl,
    pods,
};
use nodes::NodeFacts;
use plan::{HASH_LABEL, Snapshot, Tries};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "daemonset-controller",
    run,
};

/// Changes of pods and nodes within this time are looked at together.
const GATHER: Duration = Duration::from_millis(20);
const HISTORY_LIMIT: i32 = 10;

/// What matters of each node, with the revision it was taken from.
type FactsByNode = HashMap<Arc<str>, (u64, Arc<NodeFacts>)>;

struct DaemonSets {
    context: Context,
    recorder: Recorder,
    control: PodControl,
    history: History,
    sets: Cache<DaemonSet>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    /// Nodes as read at a revision, so that each is decoded once a change.
    facts: Mutex<FactsByNode>,
    tries: Mutex<HashMap<Key, Tries>>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let sets = context.caches.get::<DaemonSet>(Scope::all());
        let pods = context.caches.get::<Pod>(Scope::all());
        let nodes = context.caches.get::<Node>(Scope::all());
        let revisions = context.caches.get::<ControllerRevision>(Scope::all());
        let queue = Queue::default();
        sets.synced().await;
        let to = queue.clone();
        sets.on_change(move |change| to.add(change.key.clone()));
        pods.synced().await;
        let (to, of) = (queue.clone(), sets.clone());
        pods.on_change(move |change| {
            for key in owners_of(change, &of) {
                to.add_after(key, GATHER);
            }
        });
        nodes.synced().await;
        let (to, of) = (queue.clone(), sets.clone());
        nodes.on_change(move |change| {
            if concerns_daemons(change) {
                for set in of.entries() {
                    to.add_after(set.key.clone(), GATHER);
                }
            }
        });
        revisions.synced().await;
        let recorder = context.recorder();
        let control = PodControl {
            client: context.client.clone(),
            pods: pods.clone(),
            recorder: recorder.clone(),
        };
        let history = History {
            client: context.client.clone(),
            revisions,
        };
        let reconciler = DaemonSets {
            context: context.clone(),
            recorder,
            control,
            history,
            sets,
            pods,
            nodes,
            facts: Mutex::default(),
            tries: Mutex::default(),
        };
        context.work(reconciler, queue).await;
    })
}

fn owners_of(change: &Change, sets: &Cache<DaemonSet>) -> Vec<Key> {
    let mut keys = Vec::new();
    for entry in [&change.old, &change.new].into_iter().flatten() {
        if let Some(owner) = entry.controller().filter(|o| o.kind == "DaemonSet") {
            keys.push(Key::new(entry.key.namespace.clone(), owner.name.as_str()));
        }
    }
    let orphan = change
        .new
        .as_ref()
        .filter(|e| e.controller().is_none() && !e.deleting);
    if let Some(orphan) = orphan {
        for set in sets.list_in(&orphan.key.namespace) {
            if Selector::of(&set.spec.selector)
                .is_ok_and(|s| !s.is_everything() && orphan.matches(&s))
            {
                keys.push(Key::of(&set));
            }
        }
    }
    keys
}

/// Most changes of nodes are heartbeats.
fn concerns_daemons(change: &Change) -> bool {
    let facts = |entry: &Option<Arc<client::Entry>>| {
        let node = entry.as_ref()?.decode::<Node>().ok()?;
        Some(NodeFacts::of(node))
    };
    facts(&change.old) != facts(&change.new)
}

impl Reconcile for DaemonSets {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(set) = self.sets.get(key)? else {
            self.lock_tries().remove(key);
            return Ok(Requeue::OnChange);
        };
        let selector = match Selector::of(&set.spec.selector) {
            Ok(selector) if !selector.is_everything() => selector,
            Err(e) => return Err(Error::Other(e.to_string())),
            _ => {
                let message =
                    "This daemon set is selecting all pods. A non-empty selector is required.";
                self.recorder.warning(&set, "SelectingAll", message);
                return Ok(Requeue::OnChange);
            }
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::OnChange);
        }
        let revisions = self.history.of(&set, &set.spec.selector).await?;
        let current = self.record(&set, key, &revisions).await?;
        let hash = history::label(&current, HASH_LABEL);
        let owned = self.claim(&set, key, &selector).await?;
        let (wait, failure) = self.manage(&set, key, hash, &owned).await;
        let pods = self
            .pods
            .list_owned_by(set.metadata.uid.as_deref().unwrap_or_default());
        let nodes = self.nodes();
        let (status, soon) = plan::status(&Snapshot {
            set: &set,
            hash,
            nodes: &nodes,
            pods: &pods,
            tries: &Tries::default(),
            now: self.context.now(),
        });
        self.write_status(&set, key, &status).await?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        self.clean_up(&set, &revisions, &current, &pods).await?;
        let wait = [wait, soon].into_iter().flatten().min();
        Ok(wait
            .and_then(|w| w.try_into().ok())
            .map_or(Requeue::OnChange, Requeue::After))
    }
}

impl DaemonSets {
    fn api(&self, key: &Key) -> Api<DaemonSet> {
        write::namespaced(&self.context.client, &key.namespace)
    }

    fn lock_tries(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Tries>> {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nodes(&self) -> Vec<Arc<NodeFacts>> {
        let entries = self.nodes.entries();
        let mut known = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = HashMap::with_capacity(entries.len());
        for entry in &entries {
            let fresh = known
                .remove(&entry.key.name)
                .filter(|(revision, _)| *revision == entry.revision);
            let facts = match fresh {
                Some((_, facts)) => facts,
                None => match entry.decode::<Node>() {
                    Ok(node) => Arc::new(NodeFacts::of(node)),
                    Err(_) => continue,
                },
            };
            next.insert(entry.key.name.clone(), (entry.revision, facts));
        }
        *known = next;
        known.values().map(|(_, facts)| Arc::clone(facts)).collect()
    }

    async fn claim(
        &self,
        set: &DaemonSet,
        key: &Key,
        selector: &Selector,
    ) -> Result<Vec<Pod>, Error> {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let candidates = claim::candidates(&self.pods, &key.namespace, uid, selector);
        let claims = claim::sort(uid, false, selector, candidates);
        let pods = write::namespaced(&self.context.client, &key.namespace);
        let owned = claim::settle(set, &self.api(key), &pods, &self.pods, claims).await?;
        Ok(decode_all(&owned))
    }

    /// The revision of the present template.
    async fn record(
        &self,
        set: &DaemonSet,
        key: &Key,
        all: &[ControllerRevision],
    ) -> Result<ControllerRevision, Error> {
        let status = set.status.as_ref();
        let collisions = status.and_then(|s| s.collision_count).unwrap_or(0);
        let template = &set.spec.template;
        let recorded = self
            .history
            .record(set, template, all, collisions, HASH_LABEL)
            .await?;
        match recorded {
            Recorded::Current(revision) => Ok(*revision),
            Recorded::Collision => {
                let patch = json!({"status": {"collisionCount": collisions + 1}});
                let written = write::patch_status(&self.api(key), &key.name, &patch).await?;
                self.sets
                    .caught_up(written.as_ref().map_or(0, write::revision_of))
                    .await?;
                let message = "the name of its revision is taken by another";
                Err(Error::Other(message.into()))
            }
        }
    }

    /// Makes and deletes pods. Answers when to look again at the latest.
    async fn manage(
        &self,
        set: &DaemonSet,
        key: &Key,
        hash: &str,
        owned: &[Pod],
    ) -> (Option<jiff::SignedDuration>, Option<Error>) {
        let tries = self.lock_tries().get(key).cloned().unwrap_or_default();
        let nodes = self.nodes();
        let now = self.context.now();
        let plan = plan::plan(&Snapshot {
            set,
            hash,
            nodes: &nodes,
            pods: owned,
            tries: &tries,
            now,
        });
        if !plan.failed.is_empty() {
            let mut all = self.lock_tries();
            let tries = all.entry(key.clone()).or_default();
            plan.failed.iter().for_each(|node| tries.note(node, now));
        }
        let about = events::reference(set);
        for (kind, reason, message) in plan.events {
            self.recorder.event(&about, kind, reason, message);
        }
        let new = plan.create.iter().map(|node| daemon(set, hash, node));
        let (_, create) = self.control.create(set, new.collect()).await;
        let doomed: Vec<&Pod> = plan.delete.iter().map(|&i| &owned[i]).collect();
        let (_, delete) = self.control.delete(set, &doomed).await;
        (plan.wait, create.or(delete))
    }

    async fn write_status(
        &self,
        set: &DaemonSet,
        key: &Key,
        status: &DaemonSetStatus,
    ) -> Result<(), Error> {
        let Some(patch) = write::merge_patch(set.status.as_ref(), status) else {
            return Ok(());
        };
        let body = json!({"metadata": {"uid": set.metadata.uid}, "status": patch});
        if let Some(written) = write::patch_status(&self.api(key), &key.name, &body).await? {
            self.sets.caught_up(write::revision_of(&written)).await?;
        }
        Ok(())
    }

    async fn clean_up(
        &self,
        set: &DaemonSet,
        all: &[ControllerRevision],
        current: &ControllerRevision,
        pods: &[Pod],
    ) -> Result<(), Error> {
        let limit = set.spec.revision_history_limit.unwrap_or(HISTORY_LIMIT);
        let hashes: BTreeSet<&str> = pods
            .iter()
            .filter_map(|p| p.metadata.labels.as_ref()?.get(HASH_LABEL))
            .map(String::as_str)
            .collect();
        let name = |r: &'_ ControllerRevision| r.metadata.name.clone().unwrap_or_default();
        let current = name(current);
        let names: Vec<String> = all
            .iter()
            .filter(|r| hashes.contains(history::label(r, HASH_LABEL)))
            .map(name)
            .collect();
        let mut live: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        live.insert(&current);
        self.history
            .delete(&history::excess(all, &live, limit))
            .await
    }
}

/// The daemon of a node.
fn daemon(set: &DaemonSet, hash: &str, node: &str) -> Pod {
    let meta = &set.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let owner = claim::owner_reference(set);
    let mut pod = pods::from_template(&set.spec.template, namespace, name, owner);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.into());
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(nodes::tolerations(spec));
    nodes::pin(spec, node);
    pod
}
