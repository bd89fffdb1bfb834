//! Pods that want to be near other pods, or far from them. Terms bind both ways: what a running
//! pod keeps away does not come near it later either.
//!
//! All numbers come from the counts that the world keeps, so a cycle costs as much as there are
//! terms and nodes, however many pods there are.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::Handle;
use crate::{
    framework::{
        Advice, Cycle, CycleState, Event, Happening, Plugin, PreFilter, Status, View,
        normalize_between,
    },
    node::NodeInfo,
    pod::{Footprint, PodInfo},
    terms::AffinityTerm,
    topology::{Bearers, Bond, Counts, NOWHERE, Query},
    world::World,
};

pub(super) const NAME: &str = "InterPodAffinity";
const NO_AFFINITY: &str = "node(s) didn't match pod affinity rules";
const ANTI_AFFINITY: &str = "node(s) didn't match pod anti-affinity rules";
const KEPT_AWAY: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

struct InterPodAffinity {
    /// What each required affinity term of a running pod adds to the score of its place.
    hard_weight: i32,
    /// Whether preferences of running pods count for pods that have none themselves.
    mind_others: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Args {
    hard_pod_affinity_weight: i32,
    ignore_preferred_terms_of_existing_pods: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms_of_existing_pods: false,
        }
    }
}

pub(super) fn check(args: &Value) -> Result<(), String> {
    parse(args.clone()).map(drop)
}

pub(super) fn make(_: &Handle, args: Value) -> Result<Box<dyn Plugin>, String> {
    Ok(Box::new(parse(args)?))
}

fn parse(args: Value) -> Result<InterPodAffinity, String> {
    let args: Args = super::args(args)?;
    let weight = args.hard_pod_affinity_weight;
    if !(0..=100).contains(&weight) {
        return Err(format!(
            "hardPodAffinityWeight: Invalid value: {weight}: not in valid range [0, 100]"
        ));
    }
    Ok(InterPodAffinity {
        hard_weight: weight,
        mind_others: !args.ignore_preferred_terms_of_existing_pods,
    })
}

/// A count with what is counted.
struct Tally {
    query: Arc<Query>,
    counts: Counts,
}

/// What is known before any node is looked at.
struct Known {
    /// Pods that match all required affinity terms, by the place of each term.
    affinity: Vec<Tally>,
    /// Whether the pod would itself be one of those.
    suits_itself: bool,
    /// Pods that the pod keeps away from.
    anti_affinity: Vec<Tally>,
    /// Pods that it likes or dislikes, and how much.
    preferred: Vec<(Tally, i32)>,
    /// Pods that have terms about this one.
    bearers: Vec<Bearers>,
}

fn query(terms: &[Arc<AffinityTerm>], at: usize) -> Arc<Query> {
    Arc::new(Query {
        rules: terms.iter().map(|t| t.rule.clone()).collect(),
        topology_key: Arc::clone(&terms[at].topology_key),
        with_deleted: true,
    })
}

fn tally(world: &mut World, query: Arc<Query>) -> Tally {
    Tally {
        counts: world.count(&query),
        query,
    }
}

impl Known {
    fn of(world: &mut World, pod: &Footprint) -> Self {
        let mut known = Self {
            affinity: Vec::new(),
            suits_itself: true,
            anti_affinity: Vec::new(),
            preferred: Vec::new(),
            bearers: world.bearers(pod),
        };
        let Some(terms) = &pod.terms else {
            return known;
        };
        for at in 0..terms.affinity.len() {
            let query = query(&terms.affinity, at);
            known.suits_itself &= world.counts(&query, pod);
            known.affinity.push(tally(world, query));
        }
        for term in &terms.anti_affinity {
            let query = query(std::slice::from_ref(term), 0);
            known.anti_affinity.push(tally(world, query));
        }
        for weighted in &terms.preferred {
            let query = query(std::slice::from_ref(&weighted.term), 0);
            known.preferred.push((tally(world, query), weighted.weight));
        }
        known
    }

    fn repelled(&self) -> impl Iterator<Item = &Bearers> {
        self.bearers.iter().filter(|b| b.bond == Bond::Repels)
    }
}

/// By how much the suppositions change a count at the node's place; `None`: the node is nowhere.
fn difference(view: &View<'_>, tally: &Tally, node: &NodeInfo) -> Option<i64> {
    let place = tally.counts.places.of(node.id);
    if place == NOWHERE {
        return None;
    }
    let near = view.suppositions.iter().filter(|s| {
        tally.counts.places.of(s.node) == place && view.world.counts(&tally.query, &s.pod)
    });
    Some(near.map(|s| if s.added { 1 } else { -1 }).sum())
}

fn near(view: &View<'_>, tally: &Tally, node: &NodeInfo) -> Option<i64> {
    let counted = i64::from(tally.counts.near(node.id)?);
    if view.suppositions.is_empty() {
        return Some(counted);
    }
    Some(counted + difference(view, tally, node)?)
}

/// There are pods of all affinity terms here; or there are none anywhere yet, and the pod would be
/// the first of its kind.
fn has_company(view: &View<'_>, known: &Known, node: &NodeInfo) -> bool {
    let mut found = true;
    for tally in &known.affinity {
        match near(view, tally, node) {
            None => return false,
            Some(pods) => found &= pods > 0,
        }
    }
    found || known.suits_itself && known.affinity.iter().all(|t| none_anywhere(view, t))
}

fn none_anywhere(view: &View<'_>, tally: &Tally) -> bool {
    let mut total = i64::from(tally.counts.total);
    for s in view.suppositions {
        if tally.counts.places.of(s.node) != NOWHERE && view.world.counts(&tally.query, &s.pod) {
            total += if s.added { 1 } else { -1 };
        }
    }
    total <= 0
}

fn has_enemies(view: &View<'_>, known: &Known, node: &NodeInfo) -> bool {
    let mut tallies = known.anti_affinity.iter();
    tallies.any(|tally| near(view, tally, node).is_some_and(|pods| pods > 0))
}

fn is_kept_away(view: &View<'_>, known: &Known, pod: &Footprint, node: &NodeInfo) -> bool {
    let near = known.repelled().any(|b| b.counts.near(node.id) > Some(0));
    if view.suppositions.is_empty() {
        return near;
    }
    // While trying things out, each bearer that came or left is looked at by itself.
    let labels = view.world.namespace(&pod.key.namespace);
    let repels = |s: &Footprint| {
        let mut terms = s.terms.iter().flat_map(|t| &t.anti_affinity);
        terms.any(|t| t.rule.matches(pod, labels))
    };
    let same_place = |key: &str, other: u32| {
        let value = |n: &NodeInfo| n.spec.as_ref().and_then(|s| s.labels.get(key).cloned());
        value(node).is_some() && value(node) == value(view.world.node(other))
    };
    let came = view.suppositions.iter().filter(|s| s.added);
    for s in came {
        let terms = s.pod.terms.iter().flat_map(|t| &t.anti_affinity);
        if terms
            .filter(|t| t.rule.matches(pod, labels))
            .any(|t| same_place(&t.topology_key, s.node))
        {
            return true;
        }
    }
    if !near {
        return false;
    }
    let left: Vec<_> = view
        .suppositions
        .iter()
        .filter(|s| !s.added && repels(&s.pod))
        .collect();
    if left.is_empty() {
        return true;
    }
    known.repelled().any(|bearers| {
        let place = bearers.counts.places.of(node.id);
        if place == NOWHERE {
            return false;
        }
        let gone = left
            .iter()
            .filter(|s| bearers.counts.places.of(s.node) == place)
            .flat_map(|s| s.pod.terms.iter().flat_map(|t| &t.anti_affinity))
            .filter(|t| **t == bearers.term)
            .count();
        bearers.counts.at(place) as usize > gone
    })
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weight(&self) -> i64 {
        2
    }

    fn happenings(&self) -> &'static [Happening] {
        &[
            Happening::PodAdd,
            Happening::PodUpdate,
            Happening::PodDelete,
            Happening::NodeAdd,
            Happening::NodeLabels,
            Happening::NodeTaints,
        ]
    }

    fn helps(&self, pod: &PodInfo, event: &Event<'_>) -> bool {
        let pod = &pod.footprint;
        let about = |terms: &[Arc<AffinityTerm>], other: &Footprint| {
            // Labels of namespaces are not at hand: a namespace selector may match.
            terms.iter().any(|t| {
                t.rule.selector.matches(Some(&other.labels))
                    && (t.rule.namespace_selector.is_some()
                        || t.rule.namespaces.contains(&other.key.namespace))
            })
        };
        let own = pod.terms.as_ref();
        match event {
            Event::Pod { old, new } => {
                let company = |p: &Footprint| own.is_some_and(|t| about(&t.affinity, p));
                let enemy = |p: &Footprint| {
                    own.is_some_and(|t| about(&t.anti_affinity, p))
                        || p.terms
                            .as_ref()
                            .is_some_and(|t| about(&t.anti_affinity, pod))
                };
                new.is_some_and(company) || old.is_some_and(|p| enemy(p) || company(p))
            }
            Event::Node { new, .. } => own.is_none_or(|t| {
                let mut keys = t.affinity.iter().map(|t| &*t.topology_key);
                keys.all(|key| new.labels.contains_key(key))
            }),
            _ => false,
        }
    }

    fn prepare(&self, world: &mut World, state: &mut CycleState, pod: &PodInfo) {
        state.write(NAME, Known::of(world, &pod.footprint));
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>, _: &PodInfo) -> PreFilter {
        match cycle.state.read::<Known>(NAME) {
            Some(known)
                if known.affinity.is_empty()
                    && known.anti_affinity.is_empty()
                    && known.repelled().next().is_none() =>
            {
                PreFilter::Skip
            }
            _ => PreFilter::Continue,
        }
    }

    fn filter(&self, view: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Status {
        let Some(known) = view.state.read::<Known>(NAME) else {
            return Status::Success;
        };
        if !has_company(view, known, node) {
            return Status::unresolvable(NO_AFFINITY);
        }
        if has_enemies(view, known, node) {
            return Status::unschedulable(ANTI_AFFINITY);
        }
        if is_kept_away(view, known, &pod.footprint, node) {
            return Status::unschedulable(KEPT_AWAY);
        }
        Status::Success
    }

    fn advice(&self, view: &View<'_>, _: &PodInfo, node: &NodeInfo) -> Option<Advice> {
        let known = view.state.read::<Known>(NAME)?;
        let spec = node.spec.as_ref()?;
        let place = |key: &str| match spec.labels.get(key) {
            Some(value) => format!("{key}={value}"),
            None => format!("{key} (which the node lacks)"),
        };
        let mut parts = Vec::new();
        for tally in &known.affinity {
            if near(view, tally, node).is_none_or(|pods| pods <= 0) {
                parts.push(format!(
                    "no pod of its affinity is in {}: start one there first",
                    place(&tally.query.topology_key)
                ));
            }
        }
        for tally in &known.anti_affinity {
            if near(view, tally, node).is_some_and(|pods| pods > 0) {
                let others = view.world.nodes().flat_map(|n| {
                    let same = tally.counts.places.of(n.id) == tally.counts.places.of(node.id);
                    n.pods().iter().filter(move |_| same)
                });
                let other = others
                    .filter(|p| view.world.counts(&tally.query, p))
                    .map(|p| p.key.to_string())
                    .next();
                parts.push(format!(
                    "it keeps away from pod {} in {}",
                    other.unwrap_or_default(),
                    place(&tally.query.topology_key)
                ));
            }
        }
        for bearers in known
            .repelled()
            .filter(|b| b.counts.near(node.id) > Some(0))
        {
            let key = &bearers.term.topology_key;
            let others = view.world.nodes().flat_map(|n| n.pods());
            let other = others
                .filter(|p| {
                    p.terms
                        .as_ref()
                        .is_some_and(|t| t.anti_affinity.contains(&bearers.term))
                })
                .map(|p| p.key.to_string())
                .next();
            parts.push(format!(
                "pod {} keeps it away from {}: change its labels, or move that pod",
                other.unwrap_or_default(),
                place(key)
            ));
        }
        Some(Advice::new(parts.join("; ")))
    }

    fn pre_score(&self, cycle: &mut Cycle<'_>, _: &PodInfo, _: &[&NodeInfo]) -> bool {
        let Some(known) = cycle.state.read_mut::<Known>(NAME) else {
            return false;
        };
        let minds = self.mind_others || !known.preferred.is_empty();
        known.bearers.retain(|b| match b.bond {
            Bond::Repels => false,
            Bond::Attracts => minds && self.hard_weight > 0,
            Bond::Prefers(_) => minds,
        });
        let counted = known.preferred.iter().any(|(t, _)| t.counts.total > 0);
        counted || !known.bearers.is_empty()
    }

    fn score(&self, view: &View<'_>, _: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(known) = view.state.read::<Known>(NAME) else {
            return 0;
        };
        let near = |counts: &Counts, weight: i32| {
            i64::from(counts.near(node.id).unwrap_or(0)) * i64::from(weight)
        };
        let own = known.preferred.iter().map(|(t, w)| near(&t.counts, *w));
        let others = known.bearers.iter().map(|b| match b.bond {
            Bond::Repels => 0,
            Bond::Attracts => near(&b.counts, self.hard_weight),
            Bond::Prefers(weight) => near(&b.counts, weight),
        });
        own.chain(others).sum()
    }

    fn normalize(&self, _: &View<'_>, _: &[&NodeInfo], scores: &mut [i64]) {
        normalize_between(scores);
    }
}
