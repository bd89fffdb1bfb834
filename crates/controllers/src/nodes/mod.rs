//! Watches over nodes: notices those that fall silent, taints those that are unwell, and makes
//! pods leave them when their tolerations end.
//!
//! A node is heard of when its lease or its Ready condition changes; the time is this process's
//! own, so neither skewed clocks nor a long pause of the control plane make a live node look dead.

mod plan;
mod zones;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use client::{
    Cache, Entry, Error, EventType, Key, Queue, Reconcile, Recorder, Requeue, Scope, write,
};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, ObjectReference, Pod},
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{Context, Controller, pod_control, pods};
use plan::{Evict, Leave, Plan};
use zones::{Turn, Zones};

/// Taints nodes and reports silent ones.
pub const LIFECYCLE: Controller = Controller {
    name: "node-controller",
    run: run_lifecycle,
};
/// Makes pods leave tainted nodes.
pub const EVICTION: Controller = Controller {
    name: "taint-eviction-controller",
    run: run_eviction,
};

/// A node whose zone is too unwell is looked at again after this time.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(10);
const LEASES: &str = "kube-node-lease";

/// What was heard of a node last, and when.
#[derive(Clone, Debug, PartialEq)]
struct Heard {
    uid: String,
    lease: u64,
    heartbeat: Option<Timestamp>,
    at: Timestamp,
}

struct Lifecycle {
    context: Context,
    recorder: Recorder,
    nodes: Cache<Node>,
    leases: Cache<Lease>,
    pods: Cache<Pod>,
    /// By node name; forgotten with the node.
    heard: Arc<Mutex<HashMap<Key, Heard>>>,
    zones: Arc<Mutex<Zones>>,
    queue: Queue<Key>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run_lifecycle(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let leases = context.caches.get::<Lease>(Scope::all().namespace(LEASES));
        let nodes = context.caches.get::<Node>(Scope::all());
        let pods = context.caches.get::<Pod>(Scope::all());
        let queue = Queue::default();
        let (heard, zones) = <(Arc<Mutex<HashMap<Key, Heard>>>, Arc<Mutex<Zones>>)>::default();
        let (known, all, to) = (Arc::clone(&heard), Arc::clone(&zones), queue.clone());
        let (of, clock) = (nodes.clone(), context.config.clock.clone());
        nodes.on_change(move |change| {
            to.add(change.key.clone());
            let now: Option<Node> = change.new.as_ref().and_then(|e| e.decode().ok());
            let fares = now.and_then(|n| zones::fares(&n, is_ready(&n)));
            let mut zones = lock(&all);
            if zones.note(&change.key, fares) {
                // Whoever was not heard while nobody was is given time anew.
                if !zones.all_disrupted() {
                    let now = clock.now();
                    lock(&known).values_mut().for_each(|h| h.at = now);
                }
                of.entries().iter().for_each(|e| to.add(e.key.clone()));
            }
        });
        leases.synced().await;
        nodes.synced().await;
        pods.synced().await;
        let reconciler = Lifecycle {
            context: context.clone(),
            recorder: context.recorder(),
            nodes,
            leases,
            pods,
            heard,
            zones,
            queue: queue.clone(),
        };
        context.work(reconciler, queue).await;
    })
}

impl Reconcile for Lifecycle {
    type Key = Key;

    fn name(&self) -> &'static str {
        LIFECYCLE.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(node) = self.nodes.get(key)? else {
            let known = lock(&self.heard).remove(key);
            if let Some(Heard { uid, .. }) = known {
                let about = about(key, &uid);
                self.tell(about, "RemovingNode", "Removing Node", "from Controller");
            }
            return Ok(Requeue::OnChange);
        };
        let now = self.context.now();
        let about = about(key, node.metadata.uid.as_deref().unwrap_or_default());
        if !lock(&self.heard).contains_key(key) {
            let about = about.clone();
            self.tell(about, "RegisteredNode", "Registered Node", "in Controller");
        }
        let mut heard = self.last_heard(key, &node, now);
        let mut planned = plan::plan(&node, heard, Evict::NotYet, now);
        // Silence that is news has to be sure: it may be the watch that is silent.
        if planned.silent && planned.conditions.is_some() && self.is_lease_behind(key).await? {
            heard = self.last_heard(key, &node, now);
            planned = plan::plan(&node, heard, Evict::NotYet, now);
        }
        let mut turn = Turn::Wait;
        if planned.waits || planned.silent || !is_ready(&node) {
            turn = self.turn(key, &node, &planned, now);
            planned = match turn {
                Turn::Now => plan::plan(&node, heard, Evict::Yes, now),
                Turn::Never => plan::plan(&node, heard, Evict::No, now),
                Turn::At(_) | Turn::Wait => planned,
            };
        }
        let Plan {
            conditions,
            taints,
            again,
            silent,
            waits,
        } = planned;
        let api: Api<Node> = write::cluster(&self.context.client);
        let mut revision = 0;
        if let Some(conditions) = conditions {
            // Of the node as it was looked at: the taints that follow were decided on that one too,
            // and must not undo what somebody else has done to them since.
            let version = &node.metadata.resource_version;
            let patch = Patch::Strategic(json!({
                "metadata": {"resourceVersion": version},
                "status": {"conditions": conditions},
            }));
            let written = api
                .patch_status(&key.name, &PatchParams::default(), &patch)
                .await;
            revision = write::tolerate_missing(written)?
                .as_ref()
                .map_or(0, write::revision_of);
            if is_ready(&node) {
                let message = format!("Node {key} status is now: NodeNotReady");
                self.recorder
                    .event(&about, EventType::Normal, "NodeNotReady", message);
            }
        }
        if let Some(taints) = taints {
            let version = if revision > 0 {
                Some(revision.to_string())
            } else {
                node.metadata.resource_version.clone()
            };
            let patch =
                json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
            let written = write::patch(&api, &key.name, &patch).await?;
            revision = written.as_ref().map_or(0, write::revision_of);
        }
        if let Some(labels) = plan::labels(&node) {
            let patch = json!({"metadata": {"uid": node.metadata.uid, "labels": labels}});
            let written = write::patch(&api, &key.name, &patch).await?;
            revision = written.as_ref().map_or(revision, write::revision_of);
        }
        self.nodes.caught_up(revision).await?;
        // A kubelet that is there tells of its pods itself, whether the node is well or not.
        if silent {
            self.mark_pods(key).await?;
        }
        let its_turn = match turn {
            Turn::At(at) => Some(at.duration_since(now)),
            // Other nodes of the zone decide, and nothing tells of each of them.
            Turn::Wait if waits => Some(LOOK_AGAIN),
            _ => None,
        };
        let wait = [again, its_turn].into_iter().flatten().min();
        Ok(wait
            .and_then(|a| a.try_into().ok())
            .map_or(Requeue::OnChange, Requeue::After))
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// A node as events name it, which live in no namespace of theirs.
fn about(node: &Key, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(node.name.to_string()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

impl Lifecycle {
    /// Tells who comes and goes.
    fn tell(&self, about: ObjectReference, reason: &str, what: &str, whence: &str) {
        let node = about.name.as_deref().unwrap_or_default();
        let message = format!("Node {node} event: {what} {node} {whence}");
        self.recorder
            .event(&about, EventType::Normal, reason, message);
    }

    /// Whether the server has a lease that the cache did not show; it does after this.
    async fn is_lease_behind(&self, node: &Key) -> Result<bool, Error> {
        let key = Key::new(LEASES, node.name.clone());
        let known = self.leases.entry(&key).map_or(0, |l| l.revision);
        let api: Api<Lease> = write::namespaced(&self.context.client, LEASES);
        let found = write::tolerate_missing(api.get(&node.name).await)?;
        let current = found.as_ref().map_or(known, write::revision_of);
        self.leases.caught_up(current).await?;
        Ok(current != known)
    }

    /// Whether the pods of a node that is unwell may be told to leave.
    fn turn(&self, key: &Key, node: &Node, planned: &Plan, now: Timestamp) -> Turn {
        let mut zones = lock(&self.zones);
        let zone = zones::zone_of(node);
        // The watch has yet to tell of what this look has found.
        if zones.note(key, zones::fares(node, is_ready(node) && !planned.silent)) {
            let all = self.nodes.entries();
            all.iter().for_each(|e| self.queue.add(e.key.clone()));
        }
        if zones.all_disrupted() {
            return Turn::Never;
        }
        if planned.waits {
            zones.turn(&zone, now)
        } else {
            Turn::Wait
        }
    }

    fn last_heard(&self, key: &Key, node: &Node, now: Timestamp) -> Timestamp {
        let lease = self
            .leases
            .entry(&Key::new(LEASES, key.name.clone()))
            .map_or(0, |l| l.revision);
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
        let heartbeat = conditions
            .and_then(|all| all.iter().find(|c| c.type_ == "Ready"))
            .and_then(|c| c.last_heartbeat_time.as_ref())
            .map(|t| t.0);
        let uid = node.metadata.uid.clone().unwrap_or_default();
        let fresh = Heard {
            uid,
            lease,
            heartbeat,
            at: now,
        };
        let mut heard = lock(&self.heard);
        let known = heard.entry(key.clone()).or_insert_with(|| fresh.clone());
        if (&known.uid, known.lease, known.heartbeat) != (&fresh.uid, lease, heartbeat) {
            *known = fresh;
        }
        known.at
    }

    /// Pods of a node that says nothing are not ready either, or services would send to them.
    async fn mark_pods(&self, node: &Key) -> Result<(), Error> {
        for pod in self.pods.list_on(&node.name) {
            let ready = pods::condition(&pod, "Ready").filter(|c| c.status == "True");
            if ready.is_none() {
                continue;
            }
            let condition = json!({
                "type": "Ready",
                "status": "False",
                "lastTransitionTime": api::time::format(self.context.now()),
            });
            let status = json!({"conditions": [condition]});
            if pod_control::mark(&self.context, &pod, &status).await? {
                self.recorder
                    .warning(&pod, "NodeNotReady", "Node is not ready");
            }
        }
        Ok(())
    }
}

fn mentions(entry: Option<Arc<Entry>>, word: &str) -> bool {
    entry.is_some_and(|e| e.mentions(word))
}

struct Eviction {
    context: Context,
    recorder: Recorder,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    /// Pods that are to leave later, and since when that is known: their time runs from there.
    due: Mutex<HashMap<Key, Timestamp>>,
}

fn run_eviction(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let nodes = context.caches.get::<Node>(Scope::all());
        let pods = context.caches.get::<Pod>(Scope::all());
        nodes.synced().await;
        pods.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        let of = nodes.clone();
        pods.on_change(move |change| {
            // Nearly all nodes have no such taint: whoever gets one later has its pods looked at then.
            let node = change.new.as_ref().and_then(|e| e.node.as_deref());
            if node.is_some_and(|node| mentions(of.entry(&Key::cluster(node)), "NoExecute")) {
                to.add(change.key.clone());
            }
        });
        let (to, on) = (queue.clone(), pods.clone());
        nodes.on_change(move |change| {
            let taints = |e: &client::Entry| {
                e.decode::<Node>()
                    .ok()
                    .and_then(|n| n.spec?.taints)
                    .unwrap_or_default()
            };
            let before = change.old.as_deref().map(taints).unwrap_or_default();
            let after = change.new.as_deref().map(taints).unwrap_or_default();
            if before != after {
                on.entries_on(&change.key.name)
                    .iter()
                    .for_each(|e| to.add(e.key.clone()));
            }
        });
        let recorder = context.recorder();
        let reconciler = Eviction {
            context: context.clone(),
            recorder,
            nodes,
            pods,
            due: Mutex::default(),
        };
        context.work(reconciler, queue).await;
    })
}

impl Reconcile for Eviction {
    type Key = Key;

    fn name(&self) -> &'static str {
        EVICTION.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(pod) = self.pods.get(key)? else {
            self.cancel(key);
            return Ok(Requeue::OnChange);
        };
        let node = self.nodes.get(&Key::cluster(pods::node(&pod)))?;
        let taints = node.and_then(|n| n.spec?.taints).unwrap_or_default();
        // It goes already: that is told when it has.
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::OnChange);
        }
        let tolerations = pod
            .spec
            .as_ref()
            .and_then(|s| s.tolerations.clone())
            .unwrap_or_default();
        let now = self.context.now();
        let known = lock(&self.due).get(key).copied().unwrap_or(now);
        match plan::leave(&taints, &tolerations, known) {
            Leave::Never => {
                self.cancel(key);
                Ok(Requeue::OnChange)
            }
            Leave::Now => {
                self.cancel(key);
                self.evict(key, &pod).await?;
                Ok(Requeue::OnChange)
            }
            Leave::At(at) if at > now => {
                lock(&self.due).insert(key.clone(), known);
                let wait: SignedDuration = at.duration_since(now);
                Ok(wait.try_into().map_or(Requeue::OnChange, Requeue::After))
            }
            Leave::At(_) => {
                lock(&self.due).remove(key);
                self.evict(key, &pod).await?;
                Ok(Requeue::OnChange)
            }
        }
    }
}

impl Eviction {
    /// Forgets when a pod was to leave, and says so.
    fn cancel(&self, key: &Key) {
        if lock(&self.due).remove(key).is_some() {
            let message = format!("Cancelling deletion of Pod {key}");
            self.tell(key, message);
        }
    }

    /// Tells of a pod, which may be gone.
    fn tell(&self, key: &Key, message: String) {
        let pod = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            ..ObjectReference::default()
        };
        self.recorder
            .event(&pod, EventType::Normal, "TaintManagerEviction", message);
    }

    async fn evict(&self, key: &Key, pod: &Pod) -> Result<(), Error> {
        self.tell(key, format!("Marking for deletion Pod {key}"));
        let why = (
            "DeletionByTaintManager",
            "Taint manager: deleting due to NoExecute taint",
        );
        pod_control::evict(&self.context, pod, why).await
    }
}
