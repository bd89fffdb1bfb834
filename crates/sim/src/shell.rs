//! Follows the settings: starts the simulation, changes it, ends it.

use std::sync::{Arc, Mutex, PoisonError};

use client::{Cache, Caches, Client, Clock, EventType, Key, Queue, Recorder, Scope, events};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use tokio_util::sync::CancellationToken;

use crate::{
    NAME, NAMESPACE, PodRule, Settings,
    addresses::Addresses,
    leases::Leases,
    nodes::{self, Fleet, Nodes},
    pods::Pods,
};

/// Pods worked on at once: more share a commit of the store.
const POD_WORKERS: usize = 64;
/// Nodes worked on at once.
const NODE_WORKERS: usize = 32;

/// What the simulation needs to know.
#[derive(Clone)]
pub struct Config {
    /// What the nodes claim as their kubelets' version.
    pub version: String,
    /// The wall clock.
    pub clock: Clock,
    /// Caches shared with other parts of this process; `None`: the simulation keeps its own.
    pub caches: Option<Caches>,
}

/// Simulates what the cluster asks for until `shutdown`. What is simulated stays in the cluster
/// then, and falls silent.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) {
    let caches = config
        .caches
        .clone()
        .unwrap_or_else(|| Caches::new(client.clone()));
    let scope = Scope::all()
        .namespace(NAMESPACE)
        .fields(format!("metadata.name={NAME}"));
    // Its own: nobody else wants this one object alone.
    let maps = Caches::new(client.clone()).get::<ConfigMap>(scope);
    let world = World {
        recorder: Recorder::new(client.clone(), "styr-simulation", "", config.clock.clone()),
        client,
        config,
        caches,
        shutdown: shutdown.clone(),
    };
    let mut progress = maps.progress();
    tokio::select! {
        () = maps.synced() => {}
        () = shutdown.cancelled() => return,
    }
    let mut known = None;
    let mut running: Option<Running> = None;
    while !shutdown.is_cancelled() {
        if let Some(wanted) = world.wanted(&maps).filter(|w| known.as_ref() != Some(w)) {
            if let Some(before) = running.take() {
                before.end().await;
            }
            running = world.start(&wanted).await;
            known = Some(wanted);
        }
        tokio::select! {
            changed = progress.changed() => if changed.is_err() { break },
            () = shutdown.cancelled() => {}
        }
    }
    if let Some(last) = running.take() {
        last.end().await;
    }
}

struct World {
    client: Client,
    config: Config,
    caches: Caches,
    recorder: Recorder,
    shutdown: CancellationToken,
}

/// A simulation under way; it ends with its token.
struct Running {
    token: CancellationToken,
    tasks: tokio::task::JoinSet<()>,
    _subscriptions: Vec<client::cache::Subscription>,
}

impl Running {
    async fn end(mut self) {
        self.token.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

impl World {
    /// What is asked for now; `None`: it cannot be understood, so what runs goes on.
    fn wanted(&self, maps: &Cache<ConfigMap>) -> Option<Settings> {
        let key = Key::new(NAMESPACE, NAME);
        let map = match maps.get(&key) {
            Ok(Some(map)) => map,
            Ok(None) => return Some(Settings::default()),
            Err(error) => {
                tracing::warn!(%error, "the settings of the simulation are unreadable");
                return None;
            }
        };
        match Settings::of(&map) {
            Ok(settings) => Some(settings),
            Err(error) => {
                let about = events::reference(&map);
                let message = error.to_string();
                self.recorder
                    .event(&about, EventType::Warning, "InvalidSimulation", message);
                None
            }
        }
    }

    /// Starts what is asked for. Where there are no nodes and are to be none, nothing runs.
    async fn start(&self, settings: &Settings) -> Option<Running> {
        let nodes = match settings.nodes {
            // Left over from earlier settings, perhaps.
            0 => self
                .caches
                .get::<Node>(Scope::all().labels(format!("{}=true", nodes::LABEL))),
            _ => self.caches.get::<Node>(Scope::all()),
        };
        let token = self.shutdown.child_token();
        tokio::select! {
            () = nodes.synced() => {}
            () = token.cancelled() => return None,
        }
        if settings.nodes == 0 && nodes.is_empty() {
            return None;
        }
        let mut running = Running {
            token,
            tasks: tokio::task::JoinSet::new(),
            _subscriptions: Vec::new(),
        };
        let fleet = Arc::new(Fleet::new(settings, &self.config.version));
        let addresses = Addresses::new(settings.nodes, settings.profile.nodes.pods());
        let addresses = Arc::new(Mutex::new(addresses));
        self.start_nodes(&mut running, &nodes, &fleet, &addresses);
        if settings.nodes > 0 {
            self.start_pods(&mut running, &fleet, &addresses);
            let leases = Leases {
                client: self.client.clone(),
                clock: self.config.clock.clone(),
                nodes,
                fleet,
            };
            running.tasks.spawn(leases.run(running.token.clone()));
        }
        Some(running)
    }

    fn start_nodes(
        &self,
        running: &mut Running,
        nodes: &Cache<Node>,
        fleet: &Arc<Fleet>,
        addresses: &Arc<Mutex<Addresses>>,
    ) {
        let queue = Queue::default();
        for index in 0..fleet.count {
            queue.add(Key::cluster(fleet.name(index)));
        }
        let (to, of) = (queue.clone(), Arc::clone(fleet));
        let subscription = nodes.subscribe(move |change| {
            let ours = change.latest().is_some_and(|e| nodes::is_simulated(e));
            if ours || of.index_of(&change.key.name).is_some() {
                to.add(change.key.clone());
            }
        });
        running._subscriptions.push(subscription);
        let reconciler = Nodes {
            client: self.client.clone(),
            clock: self.config.clock.clone(),
            nodes: nodes.clone(),
            fleet: Arc::clone(fleet),
            addresses: Arc::clone(addresses),
        };
        running.tasks.spawn(client::run_workers(
            Arc::new(reconciler),
            queue,
            NODE_WORKERS,
            running.token.clone(),
        ));
    }

    fn start_pods(
        &self,
        running: &mut Running,
        fleet: &Arc<Fleet>,
        addresses: &Arc<Mutex<Addresses>>,
    ) {
        let pods = self.caches.get::<Pod>(Scope::all());
        let queue = Queue::default();
        let (to, of, free) = (queue.clone(), Arc::clone(fleet), Arc::clone(addresses));
        let subscription = pods.subscribe(move |change| {
            let on_ours = |e: &client::Entry| e.node.as_deref().and_then(|n| of.index_of(n));
            let Some(latest) = change.latest().filter(|e| on_ours(e).is_some()) else {
                return;
            };
            if change.new.is_some() {
                to.add(change.key.clone());
            } else {
                let mut free = free.lock().unwrap_or_else(PoisonError::into_inner);
                free.release(&latest.uid);
            }
        });
        running._subscriptions.push(subscription);
        let reconciler = Pods {
            client: self.client.clone(),
            clock: self.config.clock.clone(),
            pods,
            fleet: Arc::clone(fleet),
            addresses: Arc::clone(addresses),
            fallback: PodRule::default(),
        };
        running.tasks.spawn(client::run_workers(
            Arc::new(reconciler),
            queue,
            POD_WORKERS,
            running.token.clone(),
        ));
    }
}
