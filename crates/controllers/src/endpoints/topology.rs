//! What EndpointSlices need to know of nodes: their zones, and how much CPU each zone has.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use client::{Cache, Change, Entry, EventType, Key, Queue};
use k8s_openapi::api::core::v1::{Node, Pod, Service};

use super::{
    ZONE,
    hints::{Capacity, Shares},
    selector_of,
};

/// What becomes an event: its type, reason and message.
pub type Told = (EventType, &'static str, String);

const DISABLED: &str = "TopologyAwareHintsDisabled";

/// Bounded by the number of nodes, and of services that ask for shares.
#[derive(Default)]
struct State {
    capacities: BTreeMap<Key, Capacity>,
    /// How it went, by service and address family.
    outcomes: BTreeMap<(Key, String), Result<(), String>>,
}

/// The nodes' capacity, and the services whose endpoints are shared out by it.
#[derive(Default)]
pub struct Topology(Mutex<State>);

impl Topology {
    /// Follows nodes: a service is looked at again when what its slices say of nodes changes.
    pub fn watch(
        services: &Cache<Service>,
        pods: &Cache<Pod>,
        nodes: &Cache<Node>,
        queue: &Queue<Key>,
    ) -> Arc<Self> {
        let topology = Arc::new(Self::default());
        // What is there at first is looked at anyway.
        let begun = Arc::new(AtomicBool::new(false));
        let (known, to, later) = (topology.clone(), queue.clone(), begun.clone());
        let (services, pods) = (services.clone(), pods.clone());
        nodes.on_change(move |change| {
            let mut keys = known.heard(change);
            if later.load(Ordering::Relaxed) && is_elsewhere(change) {
                keys.extend(selecting_any(&pods.entries_on(&change.key.name), &services));
            }
            keys.into_iter().for_each(|key| to.add(key));
        });
        begun.store(true, Ordering::Relaxed);
        topology
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The services to look at again because the shares may have changed.
    fn heard(&self, change: &Change) -> Vec<Key> {
        let node = change.new.as_ref().and_then(|e| e.decode::<Node>().ok());
        let now = node.map(|node| Capacity::of(&node));
        let mut state = self.state();
        let before = match &now {
            Some(now) => state.capacities.insert(change.key.clone(), now.clone()),
            None => state.capacities.remove(&change.key),
        };
        if before == now {
            return Vec::new();
        }
        state.outcomes.keys().map(|(key, _)| key.clone()).collect()
    }

    /// The part of the CPU that each zone has now.
    pub fn shares(&self) -> Option<Shares> {
        Shares::of(self.state().capacities.values().cloned())
    }

    /// Remembers how sharing out went; answers what is to be told of it.
    pub fn note(&self, key: &Key, family: &str, outcome: Result<(), String>) -> Option<Told> {
        let of = (key.clone(), family.to_owned());
        let before = self.state().outcomes.insert(of, outcome.clone());
        if before.as_ref() == Some(&outcome) {
            return None;
        }
        Some(match outcome {
            Ok(()) => (
                EventType::Normal,
                "TopologyAwareHintsEnabled",
                "Topology Aware Hints has been enabled".into(),
            ),
            Err(why) => (EventType::Warning, DISABLED, why),
        })
    }

    /// A service does not ask for shares; answers what is to be told where it did.
    pub fn drop_out(&self, key: &Key, family: &str) -> Option<Told> {
        let of = (key.clone(), family.to_owned());
        let before = self.state().outcomes.remove(&of)?;
        before.is_ok().then(|| {
            let message = "Topology Aware Hints has been disabled".into();
            (EventType::Warning, DISABLED, message)
        })
    }

    /// A service is gone.
    pub fn forget(&self, key: &Key) {
        self.state().outcomes.retain(|(of, _), _| of != key);
    }
}

/// The services that select one of these pods.
fn selecting_any(pods: &[Arc<Entry>], services: &Cache<Service>) -> Vec<Key> {
    let mut by_namespace: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for pod in pods {
        by_namespace
            .entry(&pod.key.namespace)
            .or_default()
            .push(pod);
    }
    let mut keys = Vec::new();
    for (namespace, pods) in by_namespace {
        let all = services.list_in(namespace);
        let selects = |service: &&Service| {
            let selector = selector_of(service);
            selector.is_some_and(|s| pods.iter().any(|p| p.matches(&s)))
        };
        keys.extend(all.iter().filter(selects).map(Key::of));
    }
    keys
}

/// Whether a node is new, or in another zone than it was.
fn is_elsewhere(change: &Change) -> bool {
    let Some(now) = &change.new else { return false };
    let before = change.old.as_ref();
    before.is_none_or(|before| before.label(ZONE) != now.label(ZONE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_told_once() {
        let topology = Topology::default();
        let key = Key::new("n", "s");
        let reason = |told: Option<Told>| told.map(|(_, reason, message)| (reason, message));
        let enabled = Some((
            "TopologyAwareHintsEnabled",
            "Topology Aware Hints has been enabled".to_owned(),
        ));
        let why = || Err("too few".to_owned());
        assert_eq!(reason(topology.drop_out(&key, "IPv4")), None);
        assert_eq!(reason(topology.note(&key, "IPv4", Ok(()))), enabled);
        assert_eq!(reason(topology.note(&key, "IPv4", Ok(()))), None);
        assert_eq!(
            reason(topology.note(&key, "IPv4", why())),
            Some((DISABLED, "too few".to_owned()))
        );
        assert_eq!(reason(topology.drop_out(&key, "IPv4")), None);
        topology.note(&key, "IPv4", Ok(()));
        assert_eq!(
            reason(topology.drop_out(&key, "IPv4")),
            Some((
                DISABLED,
                "Topology Aware Hints has been disabled".to_owned()
            ))
        );
    }
}
