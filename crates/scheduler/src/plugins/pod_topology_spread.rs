//! Pods of a kind are spread over zones, hosts or whatever else a node label tells apart.
//!
//! Numbers come from the counts that the world keeps. Only where a constraint leaves nodes out
//! (those the pod cannot go to anyway) are places summed up afresh, from per-node counts.

use std::sync::Arc;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use serde::Deserialize;
use serde_json::Value;

use super::{Handle, node_affinity, taint_toleration::welcomes};
use crate::{
    framework::{
        Advice, Cycle, CycleState, Event, Happening, MAX_SCORE, Plugin, PreFilter, Status, View,
    },
    node::{NodeId, NodeInfo, NodeSpec},
    plugins::default_spread::DefaultSpread,
    pod::PodInfo,
    terms::SpreadConstraint,
    topology::{NOWHERE, Places, Query},
    world::World,
};

pub(super) const NAME: &str = "PodTopologySpread";
const SKEWED: &str = "node(s) didn't match pod topology spread constraints";
const NO_LABEL: &str =
    "node(s) didn't match pod topology spread constraints (missing required label)";
const HOSTNAME: &str = "kubernetes.io/hostname";

struct PodTopologySpread {
    defaults: DefaultSpread,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq)]
enum Defaulting {
    #[default]
    System,
    List,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Args {
    default_constraints: Vec<TopologySpreadConstraint>,
    defaulting_type: Defaulting,
}

pub(super) fn check(args: &Value) -> Result<(), String> {
    parse(args.clone()).map(drop)
}

pub(super) fn make(handle: &Handle, args: Value) -> Result<Box<dyn Plugin>, String> {
    let args = parse(args)?;
    let defaults = match args.defaulting_type {
        Defaulting::System => DefaultSpread::system(handle),
        Defaulting::List => DefaultSpread::of(handle, args.default_constraints, false),
    };
    Ok(Box::new(PodTopologySpread { defaults }))
}

fn parse(args: Value) -> Result<Args, String> {
    let args: Args = super::args(args)?;
    if args.defaulting_type == Defaulting::System && !args.default_constraints.is_empty() {
        return Err(
            "defaultingType: Invalid value: System: when .defaultConstraints are not empty".into(),
        );
    }
    for (at, constraint) in args.default_constraints.iter().enumerate() {
        let field = format!("defaultConstraints[{at}]");
        if constraint.max_skew < 1 {
            return Err(format!("{field}.maxSkew: must be greater than zero"));
        }
        if constraint.topology_key.is_empty() {
            return Err(format!("{field}.topologyKey: can not be empty"));
        }
        let action = constraint.when_unsatisfiable.as_str();
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            return Err(format!(
                "{field}.whenUnsatisfiable: unsupported value {action:?}: supported values: \"DoNotSchedule\", \"ScheduleAnyway\""
            ));
        }
        if constraint.label_selector.is_some() {
            return Err(format!(
                "{field}.labelSelector: constraint must not define a selector, as they deduced for each pod"
            ));
        }
    }
    Ok(args)
}

/// A constraint with the numbers it is about.
struct Ask {
    constraint: SpreadConstraint,
    query: Arc<Query>,
    places: Arc<Places>,
    /// Pods by place.
    pods: Arc<Vec<u32>>,
    /// Whether a place counts; `None`: all that have nodes do.
    counted: Option<Vec<bool>>,
    /// Whether the pod itself is one of those counted.
    itself: bool,
    /// The fewest pods in any place, suppositions aside; 0 where nothing must hold.
    fewest: u32,
}

impl Ask {
    fn counts(&self, place: u32) -> bool {
        match &self.counted {
            Some(counted) => counted.get(place as usize).copied().unwrap_or(false),
            None => self.places.sizes.get(place as usize) > Some(&0),
        }
    }

    fn pods(&self, place: u32) -> u32 {
        if self.counts(place) {
            self.pods.get(place as usize).copied().unwrap_or(0)
        } else {
            0
        }
    }

    fn all(&self) -> impl Iterator<Item = u32> {
        (0..self.places.sizes.len() as u32).filter(|p| self.counts(*p))
    }

    /// The fewest pods in any place; none if there are fewer places than there should be.
    fn fewest_of(&self, pods: impl Fn(u32) -> i64) -> i64 {
        let (mut places, mut fewest) = (0, i64::MAX);
        for place in self.all() {
            places += 1;
            fewest = fewest.min(pods(place));
        }
        match places < self.constraint.min_domains || places == 0 {
            true => 0,
            false => fewest,
        }
    }
}

/// What is known before any node is looked at.
#[derive(Default)]
struct Known {
    hard: Vec<Ask>,
    soft: Vec<Ask>,
    /// Whether nodes that lack a label of a soft constraint are passed over by Score.
    all_labels: bool,
    /// What each soft constraint counts, by its number of places.
    weights: Vec<f64>,
    /// Nodes that Score passes over.
    ignored: Vec<NodeId>,
}

/// Whether a node is among those that a constraint counts.
fn is_included(constraint: &SpreadConstraint, pod: &PodInfo, node: &NodeSpec) -> bool {
    let inclusion = constraint.inclusion;
    (!inclusion.honor_affinity || node_affinity::suits(pod, node))
        && (!inclusion.honor_taints || welcomes(pod, node))
}

/// Whether a constraint of this pod may leave nodes out that have its label.
fn leaves_out(constraint: &SpreadConstraint, pod: &PodInfo, world: &World) -> bool {
    let inclusion = constraint.inclusion;
    let picky = !pod.node_selector.is_empty()
        || pod.node_affinity.as_ref().is_some_and(|a| {
            a.required_during_scheduling_ignored_during_execution
                .is_some()
        });
    inclusion.honor_affinity && picky || inclusion.honor_taints && world.tainted() > 0
}

/// The numbers of constraints that are looked at together: with `all_labels`, only nodes that have
/// the labels of all of them count.
fn asks(
    world: &mut World,
    pod: &PodInfo,
    constraints: Vec<SpreadConstraint>,
    all_labels: bool,
) -> Vec<Ask> {
    let mut asks: Vec<Ask> = constraints
        .into_iter()
        .map(|constraint| {
            let query = Arc::new(Query {
                rules: vec![constraint.rule.clone()],
                topology_key: Arc::clone(&constraint.topology_key),
                with_deleted: false,
            });
            let counts = world.count(&query);
            let itself = world.counts(&query, &pod.footprint);
            (constraint, query, counts, itself)
        })
        .map(|(constraint, query, counts, itself)| Ask {
            constraint,
            query,
            places: counts.places,
            pods: counts.by_place,
            counted: None,
            itself,
            fewest: 0,
        })
        .collect();
    let everywhere = asks.iter().all(|a| a.places.nodes == world.node_count());
    let partial = all_labels && asks.len() > 1 && !everywhere;
    let all: Vec<Arc<Places>> = asks.iter().map(|a| Arc::clone(&a.places)).collect();
    for ask in &mut asks {
        if partial || leaves_out(&ask.constraint, pod, world) {
            let required: &[Arc<Places>] = if all_labels { &all } else { &[] };
            sum_up(world, pod, ask, required);
        }
        if ask.constraint.hard {
            ask.fewest = ask.fewest_of(|p| i64::from(ask.pods(p))) as u32;
        }
    }
    asks
}

/// Sums up the places from the nodes that count.
fn sum_up(world: &mut World, pod: &PodInfo, ask: &mut Ask, required: &[Arc<Places>]) {
    let by_node = world.count(&ask.query).by_node;
    let mut pods = vec![0; ask.places.sizes.len()];
    let mut counted = vec![false; pods.len()];
    for node in world.nodes() {
        let place = ask.places.of(node.id);
        let labelled = required.iter().all(|p| p.of(node.id) != NOWHERE);
        let included = node
            .spec
            .as_ref()
            .is_some_and(|s| is_included(&ask.constraint, pod, s));
        if place != NOWHERE && labelled && included {
            counted[place as usize] = true;
            pods[place as usize] += by_node.get(node.id as usize).copied().unwrap_or(0);
        }
    }
    ask.pods = Arc::new(pods);
    ask.counted = Some(counted);
}

/// By how much suppositions change the pods of a place.
fn difference(view: &View<'_>, pod: &PodInfo, ask: &Ask, place: u32) -> i64 {
    let here = view.suppositions.iter().filter(|s| {
        ask.places.of(s.node) == place
            && view.world.counts(&ask.query, &s.pod)
            && view
                .world
                .node(s.node)
                .spec
                .as_ref()
                .is_some_and(|n| is_included(&ask.constraint, pod, n))
    });
    here.map(|s| if s.added { 1 } else { -1 }).sum()
}

impl Plugin for PodTopologySpread {
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
        let hard = || pod.spread.iter().filter(|c| c.hard);
        match event {
            Event::Pod { old, new } => {
                let counted = |p: &crate::pod::Footprint| hard().any(|c| c.rule.matches(p, None));
                old.is_some_and(counted) || new.is_some_and(counted)
            }
            Event::Node { old, new } => {
                let has = |n: &NodeSpec| hard().all(|c| n.labels.contains_key(&*c.topology_key));
                has(new) || old.is_some_and(has)
            }
            _ => false,
        }
    }

    fn prepare(&self, world: &mut World, state: &mut CycleState, pod: &PodInfo) {
        let mut known = Known {
            all_labels: true,
            ..Known::default()
        };
        let mut all = pod.spread.clone();
        if all.is_empty() {
            all = self.defaults.constraints(pod);
            known.all_labels = all.is_empty() || !self.defaults.is_system();
        }
        if all.is_empty() {
            return;
        }
        let (hard, soft) = all.into_iter().partition(|c| c.hard);
        known.hard = asks(world, pod, hard, true);
        known.soft = asks(world, pod, soft, known.all_labels);
        state.write(NAME, known);
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>, _: &PodInfo) -> PreFilter {
        match cycle.state.read::<Known>(NAME) {
            Some(known) if !known.hard.is_empty() => PreFilter::Continue,
            _ => PreFilter::Skip,
        }
    }

    fn filter(&self, view: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Status {
        let Some(known) = view.state.read::<Known>(NAME) else {
            return Status::Success;
        };
        for ask in &known.hard {
            let place = ask.places.of(node.id);
            if place == NOWHERE {
                return Status::unresolvable(NO_LABEL);
            }
            let mut here = i64::from(ask.pods(place));
            let mut fewest = i64::from(ask.fewest);
            if !view.suppositions.is_empty() {
                let differs = |p: u32| difference(view, pod, ask, p);
                here += differs(place);
                let touched = |p: u32| view.suppositions.iter().any(|s| ask.places.of(s.node) == p);
                let at = |p: u32| i64::from(ask.pods(p)) + if touched(p) { differs(p) } else { 0 };
                fewest = ask.fewest_of(at);
            }
            if here + i64::from(ask.itself) - fewest > i64::from(ask.constraint.max_skew) {
                return Status::unschedulable(SKEWED);
            }
        }
        Status::Success
    }

    fn advice(&self, view: &View<'_>, _: &PodInfo, node: &NodeInfo) -> Option<Advice> {
        let known = view.state.read::<Known>(NAME)?;
        let mut parts = Vec::new();
        for ask in &known.hard {
            let (key, place) = (&ask.constraint.topology_key, ask.places.of(node.id));
            if place == NOWHERE {
                parts.push(format!("the node has no label {key}: add it"));
                continue;
            }
            let (here, fewest) = (ask.pods(place) + u32::from(ask.itself), ask.fewest);
            let allowed = ask.constraint.max_skew;
            if i64::from(here) - i64::from(fewest) > i64::from(allowed) {
                parts.push(format!(
                    "with this pod there were {here} here, the emptiest {key} has {fewest}, and maxSkew is {allowed}: make room where there are fewest, or raise maxSkew"
                ));
            }
        }
        Some(Advice::new(parts.join("; ")))
    }

    fn pre_score(&self, cycle: &mut Cycle<'_>, _: &PodInfo, nodes: &[&NodeInfo]) -> bool {
        let Some(known) = cycle.state.read_mut::<Known>(NAME) else {
            return false;
        };
        if known.soft.is_empty() {
            return false;
        }
        if known.all_labels {
            let lacks = |n: &&NodeInfo| known.soft.iter().any(|a| a.places.of(n.id) == NOWHERE);
            known.ignored = nodes.iter().copied().filter(lacks).map(|n| n.id).collect();
            known.ignored.sort_unstable();
        }
        let regarded = nodes.len() - known.ignored.len();
        known.weights = known
            .soft
            .iter()
            .map(|ask| {
                let size = if &*ask.constraint.topology_key == HOSTNAME {
                    regarded
                } else {
                    let mut seen = vec![false; ask.places.sizes.len()];
                    for node in nodes {
                        let place = ask.places.of(node.id);
                        if place != NOWHERE && known.ignored.binary_search(&node.id).is_err() {
                            seen[place as usize] = true;
                        }
                    }
                    seen.iter().filter(|s| **s).count()
                };
                ((size + 2) as f64).ln()
            })
            .collect();
        true
    }

    fn score(&self, view: &View<'_>, _: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(known) = view.state.read::<Known>(NAME) else {
            return 0;
        };
        if known.ignored.binary_search(&node.id).is_ok() {
            return 0;
        }
        let mut score = 0.0;
        for (ask, weight) in known.soft.iter().zip(&known.weights) {
            let place = ask.places.of(node.id);
            if place != NOWHERE {
                let slack = f64::from(ask.constraint.max_skew - 1);
                score += f64::from(ask.pods(place)) * weight + slack;
            }
        }
        score.round() as i64
    }

    /// The emptiest place becomes the best.
    fn normalize(&self, view: &View<'_>, nodes: &[&NodeInfo], scores: &mut [i64]) {
        let Some(known) = view.state.read::<Known>(NAME) else {
            return;
        };
        let regarded = |id: NodeId| known.ignored.binary_search(&id).is_err();
        let considered = || {
            let pairs = nodes.iter().zip(scores.iter());
            pairs.filter(|(n, _)| regarded(n.id)).map(|(_, s)| *s)
        };
        let (lowest, highest) = (considered().min(), considered().max());
        let (lowest, highest) = (lowest.unwrap_or(0), highest.unwrap_or(0));
        for (node, score) in nodes.iter().zip(scores.iter_mut()) {
            *score = match (regarded(node.id), highest) {
                (false, _) => 0,
                (true, 0) => MAX_SCORE,
                (true, _) => MAX_SCORE * (highest + lowest - *score) / highest,
            };
        }
    }
}
