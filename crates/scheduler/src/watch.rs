//! From changes in the caches to the world, the queue and happenings.

use std::sync::{Arc, Mutex, PoisonError};

use client::{Caches, Change, Entry, Scope};
use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use tokio::sync::Notify;

use crate::{
    framework::Happening,
    node::{NodeSpec, World},
    pod::{self, PodInfo},
    profile::Profile,
    queue::Queue,
};

/// What the scheduler knows; handlers write it, the scheduling loop reads it.
pub struct Shared {
    /// The plugins.
    pub profile: Profile,
    /// The name pods must give.
    pub name: String,
    /// Wakes the scheduling loop.
    pub wake: Notify,
    state: Mutex<State>,
}

/// The mutable part.
#[derive(Default)]
pub struct State {
    /// Nodes and what is on them.
    pub world: World,
    /// Pods that wait.
    pub queue: Queue,
}

impl Shared {
    /// Nothing known yet.
    pub fn new(profile: Profile, name: String) -> Self {
        Self {
            profile,
            name,
            wake: Notify::new(),
            state: Mutex::default(),
        }
    }

    /// Looks at or changes what is known.
    pub fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn pod_changed(&self, change: &Change) {
        let new = change.new.as_ref().and_then(|e| decode::<Pod>(e));
        self.with(|state| match &new {
            Some(pod) => {
                let replaced = change
                    .old
                    .as_ref()
                    .filter(|o| change.new.as_ref().is_some_and(|n| n.uid != o.uid));
                if let Some(old) = replaced {
                    self.left(state, old);
                }
                self.pod_is(state, pod);
            }
            None => {
                state.queue.remove(&change.key);
                if let Some(old) = &change.old {
                    self.left(state, old);
                }
            }
        });
        self.wake.notify_one();
    }

    fn left(&self, state: &mut State, old: &Entry) {
        if state.world.displace(&old.uid).is_some() {
            state.queue.happened(&self.profile, Happening::PodDelete);
        }
    }

    fn pod_is(&self, state: &mut State, pod: &Pod) {
        let Some(spec) = &pod.spec else { return };
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let phase = pod
            .status
            .as_ref()
            .and_then(|s| s.phase.as_deref())
            .unwrap_or_default();
        let key = client::Key::of(pod);
        if matches!(phase, "Succeeded" | "Failed") {
            state.queue.remove(&key);
            if state.world.displace(uid).is_some() {
                state.queue.happened(&self.profile, Happening::PodDelete);
            }
            return;
        }
        match spec.node_name.as_deref().filter(|n| !n.is_empty()) {
            Some(node) => {
                state.queue.remove(&key);
                state
                    .world
                    .place(Arc::new(pod::footprint(pod, spec)), node, false);
            }
            None if self.is_ours(pod) => {
                if !state.world.is_placed(uid)
                    && let Some(info) = PodInfo::of(pod)
                {
                    state.queue.set(&self.profile, info);
                }
            }
            None => state.queue.remove(&key),
        }
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        let wanted = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
        pod.metadata.deletion_timestamp.is_none() && wanted == Some(&self.name)
    }

    fn node_changed(&self, change: &Change) {
        let new = change.new.as_ref().and_then(|e| decode::<Node>(e));
        self.with(|state| match new {
            None => state.world.remove_node(&change.key.name),
            Some(node) => {
                let spec = NodeSpec::of(&node);
                let now = spec.clone();
                let old = state.world.set_node(spec);
                for what in happenings(old.as_deref(), &now) {
                    state.queue.happened(&self.profile, what);
                }
            }
        });
        self.wake.notify_one();
    }

    fn volumes_changed(&self) {
        self.with(|state| state.queue.happened(&self.profile, Happening::Volumes));
        self.wake.notify_one();
    }
}

fn happenings(old: Option<&NodeSpec>, new: &NodeSpec) -> Vec<Happening> {
    let Some(old) = old else {
        return vec![Happening::NodeAdd];
    };
    [
        (
            old.allocatable != new.allocatable,
            Happening::NodeAllocatable,
        ),
        (old.labels != new.labels, Happening::NodeLabels),
        (
            old.taints != new.taints || old.unschedulable != new.unschedulable,
            Happening::NodeTaints,
        ),
    ]
    .into_iter()
    .filter_map(|(changed, what)| changed.then_some(what))
    .collect()
}

fn decode<K: serde::de::DeserializeOwned>(entry: &Entry) -> Option<K> {
    entry
        .decode()
        .inspect_err(|error| tracing::warn!(%error, "skipped"))
        .ok()
}

/// Starts watching; returns when all that is needed for good decisions is known.
pub async fn start(shared: &Arc<Shared>, caches: &Caches) {
    let nodes = caches.get::<Node>(Scope::all());
    let pods = caches.get::<Pod>(Scope::all());
    let claims = caches.get::<PersistentVolumeClaim>(Scope::all());
    let volumes = caches.get::<PersistentVolume>(Scope::all());
    let classes = caches.get::<StorageClass>(Scope::all());
    let to = Arc::clone(shared);
    nodes.on_change(move |change| to.node_changed(change));
    let to = Arc::clone(shared);
    pods.on_change(move |change| to.pod_changed(change));
    let tell = || {
        let to = Arc::clone(shared);
        move |_: &Change| to.volumes_changed()
    };
    claims.on_change(tell());
    volumes.on_change(tell());
    classes.on_change(tell());
    nodes.synced().await;
    pods.synced().await;
    claims.synced().await;
    volumes.synced().await;
    classes.synced().await;
}
