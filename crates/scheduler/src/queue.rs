//! Pods that wait for a node. Pure: the time is an argument.
//!
//! ```text
//!            ┌──────── backoff over ────────┐
//!            v                              │
//!  new ─> active ─> being scheduled ─> backing off <── something happened that may help
//!            ^             │                                   │
//!            │             └──> unschedulable ─────────────────┘
//!            └── update ── gated
//! ```

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use client::Key;
use jiff::{SignedDuration, Timestamp};

use crate::{framework::Happening, pod::PodInfo, profile::Profile};

/// Wait after the first failure; doubles with each further one.
const BACKOFF_FIRST: SignedDuration = SignedDuration::from_secs(1);
/// Longest wait.
const BACKOFF_MAX: SignedDuration = SignedDuration::from_secs(10);
/// A pod is tried again after this long even if nothing has happened that may help.
const UNSCHEDULABLE_MAX: SignedDuration = SignedDuration::from_mins(5);
/// Happenings remembered for pods that are being scheduled while they occur.
const REMEMBERED: usize = 1024;

#[derive(Clone, Debug, PartialEq)]
enum Stage {
    Active,
    BackingOff {
        until: Timestamp,
    },
    Unschedulable {
        rejected_by: BTreeSet<&'static str>,
        since: Timestamp,
    },
    Gated,
    InFlight,
}

struct Waiting {
    pod: Arc<PodInfo>,
    stage: Stage,
    attempts: u32,
    /// When it was tried last.
    tried: Timestamp,
    /// The happening that came last before it was taken to be scheduled.
    taken_at: u64,
    /// It has changed while it was being scheduled.
    changed: bool,
}

/// The pods that wait.
#[derive(Default)]
pub struct Queue {
    pods: HashMap<Key, Waiting>,
    happened: std::collections::VecDeque<Happening>,
    /// How many happenings there have been in all.
    count: u64,
}

impl Queue {
    /// A pod is there or has changed.
    pub fn set(&mut self, profile: &Profile, pod: PodInfo) {
        let gated = profile.gate(&pod).is_some();
        let key = pod.key.clone();
        let pod = Arc::new(pod);
        match self.pods.get_mut(&key) {
            Some(known) if known.pod.uid() == pod.uid() => {
                let same = only_status_differs(&known.pod, &pod);
                known.pod = pod;
                known.stage = match &known.stage {
                    Stage::InFlight => {
                        known.changed |= !same;
                        Stage::InFlight
                    }
                    _ if gated => Stage::Gated,
                    Stage::Gated => Stage::Active,
                    Stage::Unschedulable { .. } if !same => Stage::Active,
                    stage => stage.clone(),
                };
            }
            _ => {
                let stage = if gated { Stage::Gated } else { Stage::Active };
                let tried = Timestamp::UNIX_EPOCH;
                let waiting = Waiting {
                    pod,
                    stage,
                    attempts: 0,
                    tried,
                    taken_at: 0,
                    changed: false,
                };
                self.pods.insert(key, waiting);
            }
        }
    }

    /// A pod waits no more: it is bound, gone, or somebody else's.
    pub fn remove(&mut self, key: &Key) {
        self.pods.remove(key);
    }

    /// Takes the pod that comes first; `Err`: when there may be one without anything happening.
    pub fn take(
        &mut self,
        profile: &Profile,
        now: Timestamp,
    ) -> Result<Arc<PodInfo>, Option<Timestamp>> {
        self.promote(now);
        let first = self
            .pods
            .values()
            .filter(|w| w.stage == Stage::Active)
            .min_by(|a, b| order(profile, &a.pod, &b.pod))
            .map(|w| w.pod.key.clone());
        let Some(waiting) = first.and_then(|key| self.pods.get_mut(&key)) else {
            return Err(self.next_due());
        };
        waiting.stage = Stage::InFlight;
        waiting.attempts += 1;
        waiting.tried = now;
        waiting.taken_at = self.count;
        waiting.changed = false;
        Ok(Arc::clone(&waiting.pod))
    }

    /// No node would do for a pod that was taken.
    pub fn unschedulable(
        &mut self,
        profile: &Profile,
        pod: &PodInfo,
        rejected_by: BTreeSet<&'static str>,
        now: Timestamp,
    ) {
        let missed = self.missed_since(pod);
        let Some(waiting) = self.in_flight(pod) else {
            return;
        };
        let helped = waiting.changed
            || missed.is_none_or(|m| m.iter().any(|what| profile.may_help(&rejected_by, *what)));
        waiting.stage = if helped {
            Stage::BackingOff {
                until: until(waiting),
            }
        } else {
            Stage::Unschedulable {
                rejected_by,
                since: now,
            }
        };
    }

    /// Something failed for a pod that was taken, other than that no node would do.
    pub fn failed(&mut self, pod: &PodInfo) {
        if let Some(waiting) = self.in_flight(pod) {
            waiting.stage = Stage::BackingOff {
                until: until(waiting),
            };
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
        Some(self.happened.range(start..).copied().collect())
    }

    /// Something happened; pods that it may help are tried again, each after its back-off.
    pub fn happened(&mut self, profile: &Profile, what: Happening) {
        self.count += 1;
        self.happened.push_back(what);
        if self.happened.len() > REMEMBERED {
            self.happened.pop_front();
        }
        for waiting in self.pods.values_mut() {
            if let Stage::Unschedulable { rejected_by, .. } = &waiting.stage
                && profile.may_help(rejected_by, what)
            {
                waiting.stage = Stage::BackingOff {
                    until: until(waiting),
                };
            }
        }
    }

    fn promote(&mut self, now: Timestamp) {
        for waiting in self.pods.values_mut() {
            match waiting.stage {
                Stage::BackingOff { until } if until <= now => waiting.stage = Stage::Active,
                Stage::Unschedulable { since, .. }
                    if now.duration_since(since) >= UNSCHEDULABLE_MAX =>
                {
                    waiting.stage = Stage::Active;
                }
                _ => {}
            }
        }
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.pods
            .values()
            .filter_map(|w| match w.stage {
                Stage::BackingOff { until } => Some(until),
                Stage::Unschedulable { since, .. } => since.checked_add(UNSCHEDULABLE_MAX).ok(),
                _ => None,
            })
            .min()
    }
}

fn order(profile: &Profile, a: &PodInfo, b: &PodInfo) -> Ordering {
    profile.order(a, b).then_with(|| a.key.cmp(&b.key))
}

fn until(waiting: &Waiting) -> Timestamp {
    let doublings = waiting.attempts.saturating_sub(1).min(16);
    let wait = BACKOFF_FIRST
        .checked_mul(1 << doublings)
        .unwrap_or(BACKOFF_MAX)
        .min(BACKOFF_MAX);
    waiting.tried.checked_add(wait).unwrap_or(waiting.tried)
}

/// Whether nothing has changed that decides where the pod may go.
fn only_status_differs(a: &PodInfo, b: &PodInfo) -> bool {
    a.footprint.requested == b.footprint.requested
        && a.gates == b.gates
        && a.node_selector == b.node_selector
        && a.node_affinity == b.node_affinity
        && a.tolerations == b.tolerations
        && a.claims == b.claims
}

#[cfg(test)]
mod tests {
    use client::Jitter;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;
    use crate::framework::{Plugin, Status};

    struct Gate;

    impl Plugin for Gate {
        fn name(&self) -> &'static str {
            "Gate"
        }
        fn happenings(&self) -> &'static [Happening] {
            &[Happening::NodeAdd]
        }
        fn pre_enqueue(&self, pod: &PodInfo) -> Status {
            if pod.gates.is_empty() {
                Status::Success
            } else {
                Status::unresolvable("gated")
            }
        }
        fn queue_sort(&self, a: &PodInfo, b: &PodInfo) -> Option<Ordering> {
            Some(b.footprint.priority.cmp(&a.footprint.priority))
        }
    }

    fn profile() -> Profile {
        Profile::new(vec![Box::new(Gate)], Jitter::none())
    }

    fn pod(name: &str, priority: i32, gates: &[&str]) -> PodInfo {
        let gates: Vec<_> = gates.iter().map(|g| json!({"name": g})).collect();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"containers": [], "priority": priority, "schedulingGates": gates},
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

    #[test]
    fn higher_priority_first_and_each_once() {
        let (p, mut q) = (profile(), Queue::default());
        q.set(&p, pod("low", 0, &[]));
        q.set(&p, pod("high", 9, &[]));
        assert_eq!(name(q.take(&p, at(0))), "high");
        assert_eq!(name(q.take(&p, at(0))), "low");
        assert_eq!(q.take(&p, at(0)).err(), Some(None));
    }

    #[test]
    fn unschedulable_pods_wait_for_what_may_help_and_back_off() {
        let (p, mut q) = (profile(), Queue::default());
        q.set(&p, pod("a", 0, &[]));
        let taken = q.take(&p, at(0)).unwrap();
        q.unschedulable(&p, &taken, ["Gate"].into(), at(0));
        q.happened(&p, Happening::PodDelete);
        assert_eq!(q.take(&p, at(0)).err(), Some(Some(at(300_000))));
        q.happened(&p, Happening::NodeAdd);
        assert_eq!(q.take(&p, at(0)).err(), Some(Some(at(1000))));
        let taken = q.take(&p, at(1000)).unwrap();
        q.happened(&p, Happening::NodeAdd);
        q.unschedulable(&p, &taken, ["Gate"].into(), at(1000));
        assert_eq!(
            q.take(&p, at(1000)).err(),
            Some(Some(at(3000))),
            "it happened meanwhile"
        );
        let taken = q.take(&p, at(3000)).unwrap();
        q.unschedulable(&p, &taken, ["Gate"].into(), at(3000));
        assert!(q.take(&p, at(303_000)).is_ok(), "tried again after all");
    }

    #[test]
    fn gates_and_changes() {
        let (p, mut q) = (profile(), Queue::default());
        q.set(&p, pod("a", 0, &["wait"]));
        assert_eq!(q.take(&p, at(0)).err(), Some(None));
        q.set(&p, pod("a", 0, &[]));
        let taken = q.take(&p, at(0)).unwrap();
        q.remove(&taken.key);
        q.unschedulable(&p, &taken, BTreeSet::new(), at(0));
        assert_eq!(q.take(&p, at(0)).err(), Some(None), "it is gone");
    }
}
