//! From changes in the caches to the world, the queue and happenings.
//!
//! Handlers decode on the task of their watch and leave the result in an inbox; whoever looks at
//! the state empties the inbox first. So a cycle never waits for a handler, nor a handler for a
//! cycle, unless the inbox is full.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client::{Cache, Caches, Change, Key, Scope};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod},
    resource::v1::{DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice},
    storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass},
};
use tokio::sync::Notify;

use crate::{
    devices::claim_change,
    framework::{ClaimChange, Event},
    lean,
    node::NodeSpec,
    pod::{self, Footprint, PodInfo},
    profile::Profiles,
    queue::{Backoff, Queue},
    search::Memory,
    terms::Labels,
    world::World,
};

/// News that are left for later; with more, handlers do the work themselves.
const INBOX_MAX: usize = 10_000;

/// What the scheduler knows; handlers write it, the scheduling loop reads it.
pub struct Shared {
    /// The plugins.
    pub profiles: Profiles,
    /// Wakes the scheduling loop.
    pub wake: Notify,
    state: Mutex<State>,
    inbox: Mutex<Vec<News>>,
}

/// The mutable part.
#[derive(Default)]
pub struct State {
    /// Nodes and what is on them.
    pub world: World,
    /// Pods that wait.
    pub queue: Queue,
    /// What helps with the next pod.
    pub memory: Memory,
}

/// What a handler has to say.
enum News {
    Node(String, Option<NodeSpec>),
    /// A pod has this node.
    Placed(Arc<Footprint>, String),
    /// A pod waits for this scheduler.
    Waits(Box<PodInfo>),
    /// Somebody else's business now.
    Not(Key),
    /// A pod of this uid is no more, or has ended.
    Gone(Key, Box<str>),
    Namespace(Arc<str>, Option<Labels>),
    Volumes,
    Devices,
    DeviceClaim(ClaimChange),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Nothing known yet.
    pub fn new(profiles: Profiles, backoff: Backoff) -> Self {
        let state = State {
            queue: Queue::new(backoff),
            ..State::default()
        };
        Self {
            profiles,
            wake: Notify::new(),
            state: Mutex::new(state),
            inbox: Mutex::default(),
        }
    }

    /// Looks at or changes what is known.
    pub fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = locked(&self.state);
        let news = std::mem::take(&mut *locked(&self.inbox));
        for one in news {
            self.apply(&mut state, one);
        }
        act(&mut state)
    }

    fn tell(&self, news: impl IntoIterator<Item = News>) {
        let waiting = {
            let mut inbox = locked(&self.inbox);
            inbox.extend(news);
            inbox.len()
        };
        if waiting > INBOX_MAX {
            self.with(|_| ());
        }
        self.wake.notify_one();
    }

    fn apply(&self, state: &mut State, news: News) {
        match news {
            News::Node(name, None) => state.world.remove_node(&name),
            News::Node(_, Some(new)) => {
                let old = state.world.set_node(new.clone());
                let event = Event::Node {
                    old: old.as_deref(),
                    new: &new,
                };
                state.queue.happened(&self.profiles, &event);
            }
            News::Placed(pod, node) => {
                state.queue.remove(&pod.key);
                let watched = !state.world.is_placed(&pod.uid);
                let old = state.world.place(Arc::clone(&pod), &node, false);
                if watched || old.is_some() {
                    let event = Event::Pod {
                        old: old.as_deref(),
                        new: Some(&pod),
                    };
                    state.queue.happened(&self.profiles, &event);
                }
            }
            News::Waits(pod) => {
                if !state.world.is_placed(pod.uid()) {
                    self.nominations(state, &pod);
                    state.queue.set(&self.profiles, *pod);
                }
            }
            News::Not(key) => state.queue.remove(&key),
            News::Gone(key, uid) => {
                state.queue.remove(&key);
                state.world.clear_nomination(&uid);
                if let Some(old) = state.world.displace(&uid) {
                    let event = Event::Pod {
                        old: Some(&old),
                        new: None,
                    };
                    state.queue.happened(&self.profiles, &event);
                }
            }
            News::Namespace(name, labels) => state.world.set_namespace(&name, labels),
            News::Volumes => state.queue.happened(&self.profiles, &Event::Volumes),
            News::Devices => state.queue.happened(&self.profiles, &Event::Devices),
            News::DeviceClaim(change) => {
                let event = Event::DeviceClaim(&change);
                state.queue.happened(&self.profiles, &event);
            }
        }
    }

    /// What the status says of a nomination counts once it says something new; until then, what
    /// was decided here does.
    fn nominations(&self, state: &mut State, pod: &PodInfo) {
        let before = state.queue.get(&pod.key).and_then(|p| p.nominated.clone());
        match &pod.nominated {
            same if *same == before => {}
            Some(node) => state.world.nominate(Arc::clone(&pod.footprint), node),
            None => state.world.clear_nomination(pod.uid()),
        }
    }

    fn pod_changed(&self, change: &Change) {
        let mut news = Vec::new();
        let replaced = match (&change.old, &change.new) {
            (Some(old), Some(new)) => old.uid != new.uid,
            (old, new) => old.is_some() && new.is_none(),
        };
        if let Some(old) = change.old.as_ref().filter(|_| replaced) {
            news.push(News::Gone(change.key.clone(), old.uid.clone()));
        }
        if let Some(pod) = change.new.as_ref().and_then(|e| warned(lean::pod(e))) {
            news.extend(self.pod_is(&pod));
        }
        self.tell(news);
    }

    fn pod_is(&self, pod: &Pod) -> Option<News> {
        let spec = pod.spec.as_ref()?;
        let key = Key::of(pod);
        let status = pod.status.as_ref();
        let phase = status.and_then(|s| s.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            return Some(News::Gone(key, uid.into()));
        }
        if let Some(node) = spec.node_name.as_ref().filter(|n| !n.is_empty()) {
            let footprint = pod::footprint(pod, spec);
            return Some(News::Placed(Arc::new(footprint), node.clone()));
        }
        let wanted = spec.scheduler_name.as_deref().unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() || self.profiles.named(wanted).is_none() {
            return Some(News::Not(key));
        }
        PodInfo::of(pod).map(|info| News::Waits(Box::new(info)))
    }

    fn node_changed(&self, change: &Change) {
        let new = change.new.as_ref().and_then(|e| warned(e.decode::<Node>()));
        let spec = new.as_ref().map(NodeSpec::of);
        self.tell([News::Node(change.key.name.to_string(), spec)]);
    }

    fn namespace_changed(&self, change: &Change) {
        let labels = change.new.as_ref().map(|e| {
            let pairs = e.labels.iter();
            Arc::new(pairs.map(|(k, v)| (k.to_string(), v.to_string())).collect())
        });
        self.tell([News::Namespace(Arc::clone(&change.key.name), labels)]);
    }
}

fn warned<T>(read: Result<T, client::Error>) -> Option<T> {
    read.inspect_err(|error| tracing::warn!(%error, "skipped"))
        .ok()
}

/// Starts watching; returns when all that is needed for good decisions is known.
pub async fn start(shared: &Arc<Shared>, caches: &Caches) {
    let nodes = caches.get::<Node>(Scope::all());
    let pods = caches.get::<Pod>(Scope::all());
    let namespaces = caches.get::<Namespace>(Scope::all());
    let to = Arc::clone(shared);
    nodes.on_change(move |change| to.node_changed(change));
    let to = Arc::clone(shared);
    pods.on_change(move |change| to.pod_changed(change));
    let to = Arc::clone(shared);
    namespaces.on_change(move |change| to.namespace_changed(change));
    let claims = caches.get::<PersistentVolumeClaim>(Scope::all());
    let volumes = caches.get::<PersistentVolume>(Scope::all());
    let classes = caches.get::<StorageClass>(Scope::all());
    let limits = caches.get::<CSINode>(Scope::all());
    let drivers = caches.get::<CSIDriver>(Scope::all());
    let capacities = caches.get::<CSIStorageCapacity>(Scope::all());
    tell(shared, &claims, || News::Volumes);
    tell(shared, &volumes, || News::Volumes);
    tell(shared, &classes, || News::Volumes);
    tell(shared, &limits, || News::Volumes);
    tell(shared, &drivers, || News::Volumes);
    tell(shared, &capacities, || News::Volumes);
    nodes.synced().await;
    pods.synced().await;
    namespaces.synced().await;
    claims.synced().await;
    volumes.synced().await;
    classes.synced().await;
    limits.synced().await;
    drivers.synced().await;
    capacities.synced().await;
    watch_devices(shared, caches).await;
}

/// Devices, their classes and claims: what the plugins know of them is up to date when they are
/// told.
async fn watch_devices(shared: &Arc<Shared>, caches: &Caches) {
    let slices = caches.get::<ResourceSlice>(Scope::all());
    let classes = caches.get::<DeviceClass>(Scope::all());
    let rules = caches.get::<DeviceTaintRule>(Scope::all());
    let claims = caches.get::<ResourceClaim>(Scope::all());
    tell(shared, &slices, || News::Devices);
    tell(shared, &classes, || News::Devices);
    tell(shared, &rules, || News::Devices);
    let to = Arc::clone(shared);
    claims.on_change(move |change| to.tell(claim_change(change).map(News::DeviceClaim)));
    slices.synced().await;
    classes.synced().await;
    rules.synced().await;
    claims.synced().await;
}

fn tell<K>(shared: &Arc<Shared>, cache: &Cache<K>, news: fn() -> News) {
    let to = Arc::clone(shared);
    cache.on_change(move |_| to.tell([news()]));
}
