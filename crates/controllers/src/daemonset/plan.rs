//! Which daemon pods are missing, superfluous, ended or outdated, and the status. Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use client::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, DaemonSetStatus},
    core::v1::{Pod, PodSpec},
};

use super::nodes::{self, NodeFacts, Place};
use crate::{amount::scaled, pods};

/// The label of pods that names their template.
pub const HASH_LABEL: &str = "controller-revision-hash";
/// The label of pods that says how often the template had changed when they were made.
pub const GENERATION_LABEL: &str = "pod-template-generation";
const GENERATION: &str = "deprecated.daemonset.template.generation";
/// Pods made or deleted in one pass.
const BURST: usize = 500;
/// Wait after the second failure on a node; it doubles with each further one.
const FIRST_WAIT: SignedDuration = SignedDuration::from_secs(1);
/// Longest wait.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_mins(15);

/// What is seen.
pub struct Snapshot<'a> {
    /// The DaemonSet.
    pub set: &'a DaemonSet,
    /// The hash of its present template.
    pub hash: &'a str,
    /// All nodes.
    pub nodes: &'a [Arc<NodeFacts>],
    /// Its pods.
    pub pods: &'a [Pod],
    /// Failures of pods by node.
    pub tries: &'a Tries,
    /// The present moment.
    pub now: Timestamp,
}

/// How often and when last pods of a DaemonSet failed, by node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tries(HashMap<String, (u32, Timestamp)>);

impl Tries {
    fn left(&self, node: &str, now: Timestamp) -> SignedDuration {
        let Some((times, last)) = self.0.get(node) else {
            return SignedDuration::ZERO;
        };
        let doublings = times.saturating_sub(1).min(16);
        let wait = FIRST_WAIT * (1 << doublings);
        (wait.min(LONGEST_WAIT) - now.duration_since(*last)).max(SignedDuration::ZERO)
    }

    /// Notes that a failed pod was removed from a node, and forgets what is long past.
    pub fn note(&mut self, node: &str, now: Timestamp) {
        self.0
            .retain(|_, (_, last)| now.duration_since(*last) < LONGEST_WAIT * 2);
        let tries = self.0.entry(node.to_owned()).or_insert((0, now));
        *tries = (tries.0 + 1, now);
    }
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    /// Places of pods that go.
    pub delete: Vec<usize>,
    /// Nodes on which a failed pod is removed.
    pub failed: Vec<String>,
    /// What to tell.
    pub events: Vec<(EventType, &'static str, String)>,
    /// When to look again at the latest.
    pub wait: Option<SignedDuration>,
}

impl Plan {
    fn look_in(&mut self, wait: SignedDuration) {
        self.wait = Some(self.wait.map_or(wait, |w| w.min(wait)));
    }
}

/// Decides.
pub fn plan(s: &Snapshot) -> Plan {
    let view = View::new(s);
    let mut plan = Plan::default();
    for (node, place) in &view.places {
        view.manage(node, *place, &mut plan);
    }
    let nowhere = |i: &usize| {
        let pod = &s.pods[*i];
        pods::node(pod).is_empty()
            && pod.metadata.deletion_timestamp.is_none()
            && target(pod).is_some_and(|n| !view.places.contains_key(n))
    };
    plan.delete.extend((0..s.pods.len()).filter(nowhere));
    // Nothing rolls while something is missing: what is missing counts as unavailable.
    if plan.create.is_empty() && plan.delete.is_empty() && is_rolling(s.set) {
        view.roll(&mut plan);
    }
    plan.create.truncate(BURST);
    plan.delete.truncate(BURST);
    plan
}

fn is_rolling(set: &DaemonSet) -> bool {
    let strategy = set.spec.update_strategy.as_ref();
    strategy.and_then(|s| s.type_.as_deref()) != Some("OnDelete")
}

fn target(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(nodes::target)
}

/// Pods by node, and where they belong.
struct View<'a> {
    s: &'a Snapshot<'a>,
    places: BTreeMap<&'a str, Place>,
    by_node: BTreeMap<&'a str, Vec<usize>>,
    min_ready: i32,
}

impl<'a> View<'a> {
    fn new(s: &'a Snapshot<'a>) -> Self {
        let nothing = PodSpec::default();
        let template = s.set.spec.template.spec.as_ref().unwrap_or(&nothing);
        let places = s
            .nodes
            .iter()
            .map(|n| (n.name.as_str(), nodes::place(template, n)));
        let mut by_node: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, pod) in s.pods.iter().enumerate() {
            // One that has ended and goes makes room, however long somebody holds on to it.
            let over = pods::is_terminal(pod) && pod.metadata.deletion_timestamp.is_some();
            if let Some(node) = target(pod).filter(|_| !over) {
                by_node.entry(node).or_default().push(i);
            }
        }
        Self {
            s,
            places: places.collect(),
            by_node,
            min_ready: s.set.spec.min_ready_seconds.unwrap_or(0),
        }
    }

    fn on(&self, node: &str) -> &[usize] {
        self.by_node
            .get(node)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    fn is_leaving(&self, i: usize) -> bool {
        self.s.pods[i].metadata.deletion_timestamp.is_some()
    }

    fn is_updated(&self, i: usize) -> bool {
        let labels = self.s.pods[i].metadata.labels.as_ref();
        let has = |key: &str, value: Option<&str>| {
            value.is_some() && labels.and_then(|l| l.get(key)).map(String::as_str) == value
        };
        has(HASH_LABEL, Some(self.s.hash)) || has(GENERATION_LABEL, generation(self.s.set))
    }

    fn available_in(&self, i: usize) -> Option<SignedDuration> {
        pods::available_in(&self.s.pods[i], self.min_ready, self.s.now)
    }

    fn is_available(&self, i: usize) -> bool {
        self.available_in(i).is_some_and(|w| w.is_zero())
    }

    /// Unavailability and surge that a roll-out may cause, in pods.
    fn fence(&self) -> (usize, usize) {
        if !is_rolling(self.s.set) {
            return (1, 0);
        }
        let rolling = self
            .s
            .set
            .spec
            .update_strategy
            .as_ref()
            .and_then(|u| u.rolling_update.as_ref());
        let total = i32::try_from(self.wanted()).unwrap_or(i32::MAX);
        let of = |amount: Option<&_>, default: i32| {
            usize::try_from(amount.map_or(default, |a| scaled(a, total, true))).unwrap_or(0)
        };
        let down = of(rolling.and_then(|r| r.max_unavailable.as_ref()), 1);
        let surge = of(rolling.and_then(|r| r.max_surge.as_ref()), 0);
        if down == 0 && surge == 0 {
            (1, 0)
        } else {
            (down, surge)
        }
    }

    fn manage(&self, node: &str, place: Place, plan: &mut Plan) {
        let here = self.on(node);
        if here.is_empty() {
            if place == Place::Run {
                plan.create.push(node.to_owned());
            }
            return;
        }
        let staying = here.iter().copied().filter(|&i| !self.is_leaving(i));
        if place == Place::Away {
            plan.delete.extend(staying);
            return;
        }
        let mut running = Vec::new();
        let mut held = false;
        for i in staying {
            match pods::phase(&self.s.pods[i]) {
                "Failed" => held |= !self.replace_failed(node, i, plan),
                "Succeeded" => {
                    plan.events.push(self.tale(node, i, true));
                    plan.delete.push(i);
                }
                _ => running.push(i),
            }
        }
        // With surge, a new pod need not wait until the last one has gone, unless it would fail as well.
        if running.is_empty() && !held && place == Place::Run && self.fence().1 > 0 {
            plan.create.push(node.to_owned());
        }
        self.thin_out(running, plan);
    }

    /// Answers whether it goes now.
    fn replace_failed(&self, node: &str, i: usize, plan: &mut Plan) -> bool {
        let left = self.s.tries.left(node, self.s.now);
        if left.is_positive() {
            plan.look_in(left);
            return false;
        }
        plan.failed.push(node.to_owned());
        plan.events.push(self.tale(node, i, false));
        plan.delete.push(i);
        true
    }

    fn tale(&self, node: &str, i: usize, succeeded: bool) -> (EventType, &'static str, String) {
        let meta = &self.s.pods[i].metadata;
        let part = |p: &Option<String>| p.clone().unwrap_or_default();
        let name = format!("{}/{}", part(&meta.namespace), part(&meta.name));
        if succeeded {
            let message =
                format!("Found succeeded daemon pod {name} on node {node}, will try to delete it");
            (EventType::Normal, "SucceededDaemonPod", message)
        } else {
            let message =
                format!("Found failed daemon pod {name} on node {node}, will try to kill it");
            (EventType::Warning, "FailedDaemonPod", message)
        }
    }

    /// Leaves one running pod on a node, or two while a new one replaces an old one.
    fn thin_out(&self, mut running: Vec<usize>, plan: &mut Plan) {
        if running.len() <= 1 {
            return;
        }
        running.sort_by_cached_key(|&i| age_key(&self.s.pods[i]));
        if self.fence().1 == 0 {
            plan.delete.extend(&running[1..]);
            return;
        }
        let (new, old): (Vec<usize>, Vec<usize>) =
            running.into_iter().partition(|&i| self.is_updated(i));
        plan.delete
            .extend(new.iter().skip(1).chain(old.iter().skip(1)));
        let (Some(&new), Some(&old)) = (new.first(), old.first()) else {
            return;
        };
        if !pods::is_ready(&self.s.pods[old]) || self.is_available(new) {
            plan.delete.push(old);
        } else if let Some(wait) = self.available_in(new) {
            plan.look_in(wait);
        }
    }

    /// The updated and the outdated pod of a node; `None`: there are two of a sort.
    fn pair(&self, node: &str) -> Option<(Option<usize>, Option<usize>)> {
        let staying = self.on(node).iter().filter(|&&i| !self.is_leaving(i));
        let (new, old): (Vec<usize>, Vec<usize>) = staying.partition(|&&i| self.is_updated(i));
        (new.len() <= 1 && old.len() <= 1).then(|| (new.first().copied(), old.first().copied()))
    }

    fn roll(&self, plan: &mut Plan) {
        match self.fence() {
            (down, 0) => self.roll_in_place(down, plan),
            (_, surge) => self.roll_with_surge(surge, plan),
        }
    }

    fn roll_in_place(&self, limit: usize, plan: &mut Plan) {
        let mut unavailable = 0;
        let mut candidates = Vec::new();
        for node in self.by_node.keys() {
            match self.pair(node) {
                Some((Some(new), None)) => {
                    if !self.is_available(new) {
                        unavailable += 1;
                        self.watch(new, plan);
                    }
                }
                // What is not available can be replaced without loss.
                Some((None, Some(old))) if !self.is_available(old) => {
                    unavailable += 1;
                    plan.delete.push(old);
                }
                Some((None, Some(old))) => candidates.push(old),
                _ => unavailable += 1,
            }
        }
        let more = limit.saturating_sub(unavailable);
        plan.delete.extend(candidates.into_iter().take(more));
    }

    fn roll_with_surge(&self, limit: usize, plan: &mut Plan) {
        let (mut surging, mut available) = (0, 0);
        let (mut candidates, mut unsuited) = (Vec::new(), Vec::new());
        for node in self.by_node.keys() {
            let pair = self.pair(node);
            let first = pair.and_then(|(new, old)| old.or(new));
            available += usize::from(first.is_some_and(|i| self.is_available(i)));
            let (new, old) = match pair {
                None => {
                    surging += 1;
                    continue;
                }
                Some((_, None)) => continue,
                Some((new, Some(old))) => (new, old),
            };
            match (new, self.places.get(node)) {
                (Some(new), _) if self.is_available(new) => plan.delete.push(old),
                (Some(new), _) => {
                    surging += 1;
                    self.watch(new, plan);
                }
                (None, Some(Place::Run)) if self.is_available(old) => {
                    candidates.push((*node).to_owned());
                }
                (None, Some(Place::Run)) => plan.create.push((*node).to_owned()),
                (None, Some(Place::Stay)) if self.is_available(old) => unsuited.push(old),
                (None, Some(Place::Stay)) => plan.delete.push(old),
                (None, Some(Place::Away) | None) => {}
            }
        }
        let more = limit.saturating_sub(surging);
        plan.create.extend(candidates.into_iter().take(more));
        // Where none may be missing, one on a node that suits no more goes when there are enough others.
        let spare = available.saturating_sub(self.wanted());
        plan.delete.extend(unsuited.into_iter().take(spare));
    }

    /// How many nodes shall have a pod.
    fn wanted(&self) -> usize {
        self.places.values().filter(|p| **p == Place::Run).count()
    }

    /// Looks again when a ready pod becomes available.
    fn watch(&self, i: usize, plan: &mut Plan) {
        if let Some(wait) = self.available_in(i) {
            plan.look_in(wait);
        }
    }
}

/// How often the template has changed, as the server counts it.
pub fn generation(set: &DaemonSet) -> Option<&str> {
    let annotations = set.metadata.annotations.as_ref()?;
    annotations.get(GENERATION).map(String::as_str)
}

/// Assigned before unassigned, then the older.
fn age_key(pod: &Pod) -> impl Ord + use<> {
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (
        Reverse(!pods::node(pod).is_empty()),
        created,
        pod.metadata.name.clone(),
    )
}

/// The status, and when a ready pod becomes available.
pub fn status(s: &Snapshot) -> (DaemonSetStatus, Option<SignedDuration>) {
    let view = View::new(s);
    let old = s.set.status.clone().unwrap_or_default();
    let mut new = DaemonSetStatus {
        collision_count: old.collision_count,
        conditions: old.conditions,
        observed_generation: s.set.metadata.generation,
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available) = (0, 0);
    let mut wait: Option<SignedDuration> = None;
    for (node, place) in &view.places {
        let here = view.on(node);
        if *place != Place::Run {
            new.number_misscheduled += i32::from(!here.is_empty());
            continue;
        }
        new.desired_number_scheduled += 1;
        let Some(&oldest) = here.iter().min_by_key(|&&i| age_key(&s.pods[i])) else {
            continue;
        };
        new.current_number_scheduled += 1;
        new.number_ready += i32::from(pods::is_ready(&s.pods[oldest]));
        available += i32::from(view.is_available(oldest));
        updated += i32::from(view.is_updated(oldest));
        let soon = view.available_in(oldest).filter(|w| !w.is_zero());
        wait = [wait, soon].into_iter().flatten().min();
    }
    let positive = |n: i32| (n > 0).then_some(n);
    new.updated_number_scheduled = positive(updated);
    new.number_available = positive(available);
    new.number_unavailable = positive(new.desired_number_scheduled - available);
    (new, wait)
}
