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

use client::{Cache, Change, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, events};
use futures::future::BoxFuture;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet},
    core::v1::{Node, Pod},
};

use crate::{
    Context, Controller, claim,
    deployment::hash,
    history::{self, History, Present},
    owners::{Owner, Owners},
    pod_control::PodControl,
    pods,
};
use nodes::NodeFacts;
use plan::{GENERATION_LABEL, HASH_LABEL, Snapshot, Tries};

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
    owners: Owners<DaemonSet, Pod>,
    nodes: Cache<Node>,
    /// Nodes as read at a revision, so that each is decoded once a change.
    facts: Mutex<FactsByNode>,
    tries: Mutex<HashMap<Key, Tries>>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let nodes = context.caches.get::<Node>(Scope::all());
        let revisions = context.caches.get::<ControllerRevision>(Scope::all());
        let queue = Queue::default();
        let owners = Owners::<DaemonSet, Pod>::watch(&context, &queue, Some(|_| GATHER)).await;
        nodes.synced().await;
        let (to, of) = (queue.clone(), owners.all.clone());
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
            pods: owners.owned.clone(),
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
            owners,
            nodes,
            facts: Mutex::default(),
            tries: Mutex::default(),
        };
        context.work(reconciler, queue).await;
    })
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
        let Some(set) = self.owners.all.get(key)? else {
            self.lock_tries().remove(key);
            return Ok(Requeue::OnChange);
        };
        if set.selector()?.is_everything() {
            let message =
                "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&set, "SelectingAll", message);
            return Ok(Requeue::OnChange);
        }
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::OnChange);
        }
        let revisions = self.history.of(&set).await?;
        let current = self.record(&set, &revisions).await?;
        let hash = history::label(&current, HASH_LABEL);
        let owned = self.owners.claim(&set).await?;
        let (wait, failure) = self.manage(&set, key, hash, &owned).await;
        let pods = self.owners.of(&set);
        let nodes = self.nodes();
        let (status, soon) = plan::status(&Snapshot {
            set: &set,
            hash,
            nodes: &nodes,
            pods: &pods,
            tries: &Tries::default(),
            now: self.context.now(),
        });
        self.owners.write_status(&set, &status).await?;
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

    /// The revision of the present template.
    async fn record(
        &self,
        set: &DaemonSet,
        all: &[ControllerRevision],
    ) -> Result<ControllerRevision, Error> {
        let present = Present {
            template: &set.spec.template,
            collisions: set.status.as_ref().and_then(|s| s.collision_count),
            hash_label: HASH_LABEL,
            name: hash::name,
        };
        self.history.record(&self.owners, set, &present, all).await
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
        // Outdated ones that still run are part of the history.
        let rolling = i32::try_from(live.len() - 1).unwrap_or(i32::MAX);
        let limit = limit.saturating_sub(rolling).max(0);
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
    if let Some(generation) = plan::generation(set) {
        labels.insert(GENERATION_LABEL.into(), generation.into());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(nodes::tolerations(spec));
    nodes::pin(spec, node);
    pod
}
