//! Pods that wait for a node. Pure: the time is an argument.
//!
//! ```text
//!            ┌──────── back-off over, or nothing else to do ────────┐
//!            v                                                      │
//!  new ─> active ─> being scheduled ─> backing off <── something happened that may help
//!            ^             │                                   │
//!            │             └──> unschedulable ─────────────────┘
//!            └── update ── gated
//! ```
//!
//! Every stage has an ordered index, so that no step looks at all pods. Invariant: a pod is in the
//! index of its stage and in no other.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use client::Key;
use jiff::{SignedDuration, Timestamp};

use crate::{
    framework::{Event, Happening},
    pod::PodInfo,
    profile::Profiles,
};

/// A pod is tried again after this long even if nothing has happened that may help.
const UNSCHEDULABLE_MAX: SignedDuration = SignedDuration::from_mins(5);
/// Happenings remembered for pods that are being scheduled while they occur.
const REMEMBERED: usize = 4096;

/// How long pods wait after failures.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first; it doubles with each further one.
    pub first: SignedDuration,
    /// At most.
    pub max: SignedDuration,
}

impl Default for Backoff {
    /// One second to ten.
    fn default() -> Self {
        Self {
            first: SignedDuration::from_secs(1),
            max: SignedDuration::from_secs(10),
        }
    }
}

/// The order within a stage: rank or time, then arrival.
type Place<K> = BTreeSet<(K, u64, Key)>;

#[derive(Clone, Debug, PartialEq)]
enum Stage {
    Active {
        rank: i64,
    },
    BackingOff {
        until: Timestamp,
        /// After an error of the scheduler's own, the wait is served in full.
        error: bool,
    },
    Unschedulable {
        rejected_by: BTreeSet<&'static str>,
        since: Timestamp,
    },
    Gated {
        /// Whose gate it is; `None`: room is being made for it.
        by: Option<&'static str>,
    },
    InFlight,
}

struct Waiting {
    pod: Arc<PodInfo>,
    stage: Stage,
    attempts: u32,
    /// Orders pods of a rank by when they came to the queue last.
    turn: u64,
    /// When it was tried last.
    tried: Timestamp,
    /// How many happenings there had been before it was taken to be scheduled.
    taken_at: u64,
    /// It has changed while it was being scheduled.
    changed: bool,
    /// Room is being made for it; until that is done it is not tried again.
    held: bool,
}

/// The pods that wait.
#[derive(Default)]
pub struct Queue {
    pods: HashMap<Key, Waiting>,
    active: Place<i64>,
    backing_off: Place<Timestamp>,
    after_errors: Place<Timestamp>,
    unschedulable: Place<Timestamp>,
    /// Unschedulable and gated pods by the plugins that said no; those of no plugin under "".
    rejected: HashMap<&'static str, HashSet<Key>>,
    happened: VecDeque<Happening>,
    /// How many happenings there have been in all.
    count: u64,
    turns: u64,
    backoff: Backoff,
}

impl Queue {
    /// An empty queue.
    pub fn new(backoff: Backoff) -> Self {
        Self {
            backoff,
            ..Self::default()
        }
    }

    /// Puts a pod from whatever stage it is in into another.
    fn enter(&mut self, key: &Key, stage: Stage) {
        self.leave(key);
        let Some(waiting) = self.pods.get_mut(key) else {
            return;
        };
        let turn = waiting.turn;
        match &stage {
            Stage::Active { rank } => {
                self.active.insert((*rank, turn, key.clone()));
            }
            Stage::BackingOff { until, error } => {
                let place = if *error {
                    &mut self.after_errors
                } else {
                    &mut self.backing_off
                };
                place.insert((*until, turn, key.clone()));
            }
            Stage::Unschedulable { rejected_by, since } => {
                self.unschedulable.insert((*since, turn, key.clone()));
                for plugin in named(rejected_by) {
                    self.rejected.entry(plugin).or_default().insert(key.clone());
                }
            }
            Stage::Gated { by: Some(plugin) } => {
                self.rejected.entry(plugin).or_default().insert(key.clone());
            }
            Stage::Gated { by: None } | Stage::InFlight => {}
        }
        waiting.stage = stage;
    }

    fn leave(&mut self, key: &Key) {
        let Some(waiting) = self.pods.get(key) else {
            return;
        };
        let turn = waiting.turn;
        match &waiting.stage {
            Stage::Active { rank } => {
                self.active.remove(&(*rank, turn, key.clone()));
            }
            Stage::BackingOff { until, error } => {
                let place = if *error {
                    &mut self.after_errors
                } else {
                    &mut self.backing_off
                };
                place.remove(&(*until, turn, key.clone()));
            }
            Stage::Unschedulable { rejected_by, since } => {
                self.unschedulable.remove(&(*since, turn, key.clone()));
                for plugin in named(rejected_by) {
                    if let Some(keys) = self.rejected.get_mut(plugin) {
                        keys.remove(key);
                    }
                }
            }
            Stage::Gated { by: Some(plugin) } => {
                if let Some(keys) = self.rejected.get_mut(plugin) {
                    keys.remove(key);
                }
            }
            Stage::Gated { by: None } | Stage::InFlight => {}
        }
    }

    /// A pod is there or has changed.
    pub fn set(&mut self, profiles: &Profiles, pod: PodInfo) {
        let Some(profile) = profiles.of(&pod) else {
            return;
        };
        let entry = match profile.gate(&pod) {
            Some(plugin) => Stage::Gated { by: Some(plugin) },
            None => Stage::Active {
                rank: profile.rank(&pod),
            },
        };
        let gated = matches!(entry, Stage::Gated { .. });
        let key = pod.key.clone();
        let pod = Arc::new(pod);
        let known = self.pods.get(&key).filter(|k| k.pod.uid() == pod.uid());
        let Some(known) = known else {
            self.remove(&key);
            self.turns += 1;
            let waiting = Waiting {
                pod,
                stage: Stage::Gated { by: None },
                attempts: 0,
                turn: self.turns,
                tried: Timestamp::UNIX_EPOCH,
                taken_at: 0,
                changed: false,
                held: false,
            };
            self.pods.insert(key.clone(), waiting);
            self.enter(&key, entry);
            return;
        };
        let same = only_status_differs(&known.pod, &pod);
        let next = match &known.stage {
            Stage::InFlight => None,
            _ if known.held => Some(Stage::Gated { by: None }),
            _ if gated => Some(entry),
            Stage::Gated { .. } => Some(entry),
            Stage::Unschedulable { .. } if !same => Some(entry),
            Stage::Active { .. } => Some(entry),
            _ => None,
        };
        if let Some(stage) = next {
            self.enter(&key, stage);
        }
        if let Some(known) = self.pods.get_mut(&key) {
            known.changed |= !same && known.stage == Stage::InFlight;
            known.pod = pod;
        }
    }

    /// A pod waits no more: it is bound, gone, or somebody else's.
    pub fn remove(&mut self, key: &Key) {
        self.leave(key);
        self.pods.remove(key);
    }

    /// The pod as last seen, if it waits.
    pub fn get(&self, key: &Key) -> Option<&Arc<PodInfo>> {
        self.pods.get(key).map(|w| &w.pod)
    }

    /// How many pods wait.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether no pod waits.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// Takes the pod that comes first; `Err`: when there may be one without anything happening.
    /// A pod that backs off although there is nothing else to do waits in vain, so it is taken
    /// early, unless it was the scheduler that failed.
    pub fn take(
        &mut self,
        profiles: &Profiles,
        now: Timestamp,
    ) -> Result<Arc<PodInfo>, Option<Timestamp>> {
        self.promote(profiles, now);
        let first = self.active.first().map(|(_, _, key)| key.clone());
        let first = first.or_else(|| self.backing_off.first().map(|(_, _, key)| key.clone()));
        let Some(key) = first else {
            return Err(self.next_due());
        };
        self.enter(&key, Stage::InFlight);
        let Some(waiting) = self.pods.get_mut(&key) else {
            return Err(self.next_due());
        };
        waiting.attempts += 1;
        waiting.tried = now;
        waiting.taken_at = self.count;
        waiting.changed = false;
        Ok(Arc::clone(&waiting.pod))
    }

    /// No node would do for a pod that was taken. `held`: room is being made for it, which
    /// [`Queue::release`] will end.
    pub fn unschedulable(
        &mut self,
        profiles: &Profiles,
        pod: &PodInfo,
        rejected_by: BTreeSet<&'static str>,
        held: bool,
        now: Timestamp,
    ) {
        let missed = self.missed_since(pod);
        let backoff = self.backoff;
        self.turns += 1;
        let turn = self.turns;
        let Some(waiting) = self.in_flight(pod) else {
            return;
        };
        waiting.turn = turn;
        waiting.held = held;
        let cares = |what: &Happening| {
            let profile = profiles.of(pod);
            rejected_by.is_empty()
                || profile.is_some_and(|p| rejected_by.iter().any(|r| p.cares(r, *what)))
        };
        let helped = waiting.changed || missed.is_none_or(|m| m.iter().any(cares));
        let gate = profiles.of(&waiting.pod).and_then(|p| p.gate(&waiting.pod));
        let stage = match (gate, helped) {
            _ if held => Stage::Gated { by: None },
            (Some(_), _) => Stage::Gated { by: gate },
            (None, true) => Stage::BackingOff {
                until: until(&backoff, waiting),
                error: false,
            },
            _ => Stage::Unschedulable {
                rejected_by,
                since: now,
            },
        };
        self.enter(&pod.key, stage);
    }

    /// Something failed for a pod that was taken, other than that no node would do.
    pub fn failed(&mut self, pod: &PodInfo) {
        let backoff = self.backoff;
        if let Some(waiting) = self.in_flight(pod) {
            let until = until(&backoff, waiting);
            self.enter(&pod.key, Stage::BackingOff { until, error: true });
        }
    }

    fn in_flight(&mut self, pod: &PodInfo) -> Option<&mut Waiting> {
        self.pods
            .get_mut(&pod.key)
            .filter(|w| w.stage == Stage::InFlight && w.pod.uid() == pod.uid())
    }

    /// What has happened since the pod was taken; `None`: more than is remembered.
    fn missed_since(&self, pod: &PodInfo) -> Option<Vec<Happening>> {
        let taken_at = self.pods.get(&pod.key)?.taken_at;
        let missed = usize::try_from(self.count - taken_at).ok()?;
        let start = self.happened.len().checked_sub(missed)?;
        let mut kinds: Vec<_> = self.happened.range(start..).copied().collect();
        kinds.sort();
        kinds.dedup();
        Some(kinds)
    }

    /// Something happened; pods that it may help are tried again, each after its back-off.
    pub fn happened(&mut self, profiles: &Profiles, event: &Event<'_>) {
        let kinds = event.kinds();
        for kind in &kinds {
            self.count += 1;
            self.happened.push_back(*kind);
            if self.happened.len() > REMEMBERED {
                self.happened.pop_front();
            }
        }
        if kinds.is_empty() {
            return;
        }
        let asked: Vec<Key> = self
            .rejected
            .iter()
            .filter(|(plugin, keys)| {
                !keys.is_empty() && kinds.iter().any(|k| profiles.any_cares(plugin, *k))
            })
            .flat_map(|(_, keys)| keys.iter().cloned())
            .collect();
        for key in asked {
            let Some(waiting) = self.pods.get(&key) else {
                continue;
            };
            let Some(profile) = profiles.of(&waiting.pod) else {
                continue;
            };
            let pod = &waiting.pod;
            match &waiting.stage {
                Stage::Unschedulable { rejected_by, .. }
                    if profile.may_help(pod, rejected_by, &kinds, event) =>
                {
                    self.retry(&key);
                }
                Stage::Gated { by: Some(_) } => {
                    let by = profile.gate(pod);
                    let rank = profile.rank(pod);
                    let open = by.is_none();
                    let stage = Stage::Gated { by };
                    self.enter(&key, if open { Stage::Active { rank } } else { stage });
                }
                _ => {}
            }
        }
    }

    /// An unschedulable pod is tried again, after its back-off.
    pub fn retry(&mut self, key: &Key) {
        let Some(waiting) = self.pods.get(key) else {
            return;
        };
        if matches!(waiting.stage, Stage::Unschedulable { .. }) {
            let until = until(&self.backoff, waiting);
            let error = false;
            self.enter(key, Stage::BackingOff { until, error });
        }
    }

    /// Room has been made for a pod, or will not be: it is tried again.
    pub fn release(&mut self, profiles: &Profiles, key: &Key) {
        let Some(waiting) = self.pods.get_mut(key).filter(|w| w.held) else {
            return;
        };
        waiting.held = false;
        let until = until(&self.backoff, waiting);
        let profile = profiles.of(&waiting.pod);
        if profile.is_some_and(|p| p.gate(&waiting.pod).is_none()) {
            let error = false;
            self.enter(key, Stage::BackingOff { until, error });
        }
    }

    fn promote(&mut self, profiles: &Profiles, now: Timestamp) {
        let mut due = Vec::new();
        for place in [&self.backing_off, &self.after_errors] {
            let over = place.iter().take_while(|(until, _, _)| *until <= now);
            due.extend(over.map(|(_, _, key)| key.clone()));
        }
        let long = self
            .unschedulable
            .iter()
            .take_while(|(since, _, _)| now.duration_since(*since) >= UNSCHEDULABLE_MAX);
        due.extend(long.map(|(_, _, key)| key.clone()));
        for key in due {
            let Some(waiting) = self.pods.get(&key) else {
                continue;
            };
            let rank = profiles
                .of(&waiting.pod)
                .map_or(0, |p| p.rank(&waiting.pod));
            self.enter(&key, Stage::Active { rank });
        }
    }

    fn next_due(&self) -> Option<Timestamp> {
        let long = self.unschedulable.first();
        [
            self.backing_off.first().map(|f| f.0),
            self.after_errors.first().map(|f| f.0),
            long.and_then(|(since, _, _)| since.checked_add(UNSCHEDULABLE_MAX).ok()),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

fn named(rejected_by: &BTreeSet<&'static str>) -> impl Iterator<Item = &'static str> {
    let nobody = rejected_by.is_empty().then_some("");
    rejected_by.iter().copied().chain(nobody)
}

fn until(backoff: &Backoff, waiting: &Waiting) -> Timestamp {
    let doublings = waiting.attempts.saturating_sub(1).min(16);
    let wait = backoff
        .first
        .checked_mul(1 << doublings)
        .unwrap_or(backoff.max)
        .min(backoff.max);
    waiting.tried.checked_add(wait).unwrap_or(waiting.tried)
}

/// Whether nothing has changed that decides where the pod may go.
fn only_status_differs(a: &PodInfo, b: &PodInfo) -> bool {
    a.footprint.requested == b.footprint.requested
        && a.footprint.labels == b.footprint.labels
        && a.gates == b.gates
        && a.node_selector == b.node_selector
        && a.node_affinity == b.node_affinity
        && a.tolerations == b.tolerations
        && a.footprint.claims == b.footprint.claims
        && a.devices == b.devices
}

#[cfg(test)]
mod tests {
    use client::Jitter;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;
    use crate::{
        framework::{Plugin, Status},
        node::NodeSpec,
        pod::Footprint,
        profile::Profile,
    };

    /// Its gates are open for all once it says so.
    #[derive(Default)]
    struct Gate(Arc<std::sync::atomic::AtomicBool>);

    impl Plugin for Gate {
        fn name(&self) -> &'static str {
            "Gate"
        }
        fn happenings(&self) -> &'static [Happening] {
            &[Happening::NodeAdd]
        }
        fn helps(&self, _: &PodInfo, event: &Event<'_>) -> bool {
            matches!(event, Event::Node { new, .. } if new.name != "useless")
        }
        fn pre_enqueue(&self, pod: &PodInfo) -> Status {
            let opened = self.0.load(std::sync::atomic::Ordering::Relaxed);
            if pod.gates.is_empty() || opened {
                Status::Success
            } else {
                Status::unresolvable("gated")
            }
        }
        fn queue_sort(&self, pod: &PodInfo) -> Option<i64> {
            Some(-i64::from(pod.footprint.priority))
        }
    }

    fn profiles() -> Profiles {
        profiles_with(Gate::default())
    }

    fn profiles_with(gate: Gate) -> Profiles {
        Profiles::new(vec![Profile::new(
            "s",
            vec![Box::new(gate)],
            Jitter::none(),
        )])
    }

    fn pod(name: &str, priority: i32, gates: &[&str]) -> PodInfo {
        let gates: Vec<_> = gates.iter().map(|g| json!({"name": g})).collect();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"containers": [], "priority": priority, "schedulingGates": gates,
                "schedulerName": "s"},
        }))
        .unwrap();
        PodInfo::of(&pod).unwrap()
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    fn name(taken: Result<Arc<PodInfo>, Option<Timestamp>>) -> String {
        taken.map(|p| p.key.name.to_string()).unwrap_or_default()
    }

    fn node_came(queue: &mut Queue, profiles: &Profiles, name: &str) {
        let new = &NodeSpec {
            name: name.into(),
            ..NodeSpec::default()
        };
        queue.happened(profiles, &Event::Node { old: None, new });
    }

    #[test]
    fn higher_priority_first_and_each_once() {
        let (p, mut q) = (profiles(), Queue::default());
        q.set(&p, pod("low", 0, &[]));
        q.set(&p, pod("lower", 0, &[]));
        q.set(&p, pod("high", 9, &[]));
        q.set(&p, pod("low", 0, &[]));
        for expected in ["high", "low", "lower"] {
            assert_eq!(name(q.take(&p, at(0))), expected);
        }
        assert_eq!(q.take(&p, at(0)).err(), Some(None));
    }

    #[test]
    fn unschedulable_pods_wait_for_what_may_help_and_back_off() {
        let (p, mut q) = (profiles(), Queue::default());
        q.set(&p, pod("a", 0, &[]));
        let taken = q.take(&p, at(0)).unwrap();
        q.unschedulable(&p, &taken, ["Gate"].into(), false, at(0));
        let gone = Footprint::bare("x");
        let left = Event::Pod {
            old: Some(&gone),
            new: None,
        };
        q.happened(&p, &left);
        node_came(&mut q, &p, "useless");
        assert_eq!(q.take(&p, at(0)).err(), Some(Some(at(300_000))));
        node_came(&mut q, &p, "n");
        q.set(&p, pod("b", 0, &[]));
        assert_eq!(name(q.take(&p, at(0))), "b", "the other one backs off");
        assert_eq!(name(q.take(&p, at(1))), "a", "nothing else to do");
        node_came(&mut q, &p, "n");
        q.unschedulable(&p, &taken, ["Gate"].into(), false, at(1));
        assert_eq!(name(q.take(&p, at(1000))), "a", "it happened meanwhile");
        q.unschedulable(&p, &taken, ["Gate"].into(), false, at(3000));
        assert!(q.take(&p, at(303_000)).is_ok(), "tried again after all");
    }

    #[test]
    fn after_errors_the_wait_is_served_and_doubles_up_to_ten_seconds() {
        let (p, mut q) = (profiles(), Queue::default());
        q.set(&p, pod("a", 0, &[]));
        let mut now = 0;
        for wait in [1000, 2000, 4000, 8000, 10_000, 10_000] {
            let taken = q.take(&p, at(now)).unwrap();
            q.failed(&taken);
            now += wait;
            assert_eq!(q.take(&p, at(now - 1)).err(), Some(Some(at(now))));
        }
    }

    #[test]
    fn a_gate_opens_when_something_happens_that_its_plugin_cares_about() {
        let gate = Gate::default();
        let open = Arc::clone(&gate.0);
        let (p, mut q) = (profiles_with(gate), Queue::default());
        q.set(&p, pod("a", 0, &["wait"]));
        node_came(&mut q, &p, "n");
        assert_eq!(q.take(&p, at(0)).err(), Some(None), "it is shut");
        open.store(true, std::sync::atomic::Ordering::Relaxed);
        let gone = Footprint::bare("x");
        let left = Event::Pod {
            old: Some(&gone),
            new: None,
        };
        q.happened(&p, &left);
        assert_eq!(q.take(&p, at(0)).err(), Some(None), "nobody looked");
        node_came(&mut q, &p, "n");
        assert_eq!(name(q.take(&p, at(0))), "a");
    }

    #[test]
    fn gates_and_changes() {
        let (p, mut q) = (profiles(), Queue::default());
        q.set(&p, pod("a", 0, &["wait"]));
        assert_eq!(q.take(&p, at(0)).err(), Some(None));
        q.set(&p, pod("a", 0, &[]));
        let taken = q.take(&p, at(0)).unwrap();
        q.remove(&taken.key);
        q.unschedulable(&p, &taken, BTreeSet::new(), false, at(0));
        assert_eq!(q.take(&p, at(0)).err(), Some(None), "it is gone");
        assert!(q.is_empty());
    }
}
