//! When no node will do, finds one that would if pods of lower priority left, and picks the least
//! costly: disruption budgets are broken only where nothing else helps.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use client::Selector;
use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::Deserialize;
use serde_json::Value;

use super::Handle;
use crate::{
    diagnosis,
    framework::{
        Candidate, Cycle, Diagnosis, Plugin, PostFilter, PreFilter, Status, Supposition, TryFilter,
        View,
    },
    node::NodeInfo,
    pod::{Footprint, PodInfo},
    storage::Mirror,
};

pub(super) const NAME: &str = "DefaultPreemption";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

/// How many nodes are tried out: at least this share, in percent, and at least so many.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Args {
    min_candidate_nodes_percentage: usize,
    min_candidate_nodes_absolute: usize,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            min_candidate_nodes_percentage: 10,
            min_candidate_nodes_absolute: 100,
        }
    }
}

struct DefaultPreemption {
    budgets: Arc<Mirror<Budget>>,
    candidates: Args,
}

pub(super) fn check(args: &Value) -> Result<(), String> {
    parse(args.clone()).map(drop)
}

pub(super) fn make(handle: &Handle, args: Value) -> Result<Box<dyn Plugin>, String> {
    Ok(Box::new(DefaultPreemption {
        budgets: Arc::clone(&handle.budgets),
        candidates: parse(args)?,
    }))
}

fn parse(args: Value) -> Result<Args, String> {
    let args: Args = super::args(args)?;
    let percentage = args.min_candidate_nodes_percentage;
    if percentage > 100 {
        return Err(format!(
            "minCandidateNodesPercentage: Invalid value: {percentage}: not in valid range [0, 100]"
        ));
    }
    if percentage == 0 && args.min_candidate_nodes_absolute == 0 {
        return Err(
            "minCandidateNodesPercentage, minCandidateNodesAbsolute: cannot both be zero".into(),
        );
    }
    Ok(args)
}

/// A disruption budget.
pub struct Budget {
    namespace: String,
    selector: Selector,
    allowed: i32,
    disrupted: Vec<String>,
}

impl Budget {
    pub(crate) fn of(budget: PodDisruptionBudget) -> Self {
        let selector = budget.spec.and_then(|s| s.selector);
        let status = budget.status.unwrap_or_default();
        Self {
            namespace: budget.metadata.namespace.unwrap_or_default(),
            selector: selector
                .and_then(|s| Selector::of(&s).ok())
                .filter(|s| !s.is_everything())
                .unwrap_or_else(Selector::nothing),
            allowed: status.disruptions_allowed.unwrap_or(0),
            disrupted: status
                .disrupted_pods
                .unwrap_or_default()
                .into_keys()
                .collect(),
        }
    }

    fn covers(&self, pod: &Footprint) -> bool {
        *self.namespace == *pod.key.namespace
            && self.selector.matches(Some(&pod.labels))
            && !self.disrupted.iter().any(|name| **name == *pod.key.name)
    }
}

/// The pods to evict from a node, the most important first.
struct Victims {
    pods: Vec<Arc<Footprint>>,
    /// How many of them no budget allows for.
    violations: usize,
}

impl DefaultPreemption {
    /// Tries out nodes from `view`, starting somewhere else for each pod, until there are enough.
    fn search(
        &self,
        view: &View<'_>,
        pod: &PodInfo,
        diagnosis: &Diagnosis,
        try_filter: &TryFilter<'_>,
    ) -> Result<Vec<Candidate>, Box<Diagnosis>> {
        let budgets = self.budgets.filter(|_| true);
        let mut refused = HashMap::new();
        let not_helpful = Arc::new((NAME, Status::unresolvable(NOT_HELPFUL)));
        let mut hopeful = Vec::new();
        for node in view.world.nodes() {
            match diagnosis.by_node.get(&node.id).map(|r| &r.1) {
                Some(Status::Unschedulable(_)) => hopeful.push(node),
                _ => {
                    refused.insert(node.id, Arc::clone(&not_helpful));
                }
            }
        }
        let share = hopeful.len() * self.candidates.min_candidate_nodes_percentage / 100;
        let enough = share.max(self.candidates.min_candidate_nodes_absolute);
        let start = offset(pod, hopeful.len());
        let mut found: Vec<(&str, Victims)> = Vec::new();
        for i in 0..hopeful.len() {
            let node = hopeful[(start + i) % hopeful.len()];
            match victims(view, pod, node, &budgets, try_filter) {
                Ok(victims) => found.push((node.name(), victims)),
                Err(status) => {
                    refused.insert(node.id, Arc::new((NAME, status)));
                }
            }
            if found.len() >= enough && found.iter().any(|(_, v)| v.violations == 0) {
                break;
            }
        }
        if found.is_empty() {
            return Err(Box::new(Diagnosis {
                nodes: diagnosis.nodes,
                by_node: refused,
                ..Diagnosis::default()
            }));
        }
        found.sort_by_key(|(_, v)| cost(v));
        let candidates = found.into_iter().map(|(node, victims)| Candidate {
            node: node.to_owned(),
            victims: victims.pods,
            violations: victims.violations,
        });
        Ok(candidates.collect())
    }
}

/// Where the search begins: another place for each pod, the same for each try.
fn offset(pod: &PodInfo, nodes: usize) -> usize {
    let sum = pod.uid().bytes().fold(0_usize, |sum, b| {
        sum.wrapping_mul(31).wrapping_add(b.into())
    });
    sum.checked_rem(nodes).unwrap_or(0)
}

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        NAME
    }

    /// It has nothing against any node.
    fn pre_filter(&self, _: &mut Cycle<'_>, _: &PodInfo) -> PreFilter {
        PreFilter::Skip
    }

    fn post_filter(
        &self,
        view: &View<'_>,
        pod: &PodInfo,
        diagnosis: &Diagnosis,
        try_filter: &TryFilter<'_>,
    ) -> Option<PostFilter> {
        if !pod.may_preempt {
            let why = "not eligible due to preemptionPolicy=Never.";
            return Some(PostFilter::Failed(format!("preemption: {why}")));
        }
        if waits_for_victims(view, pod, diagnosis) {
            let why = "not eligible due to a terminating pod on the nominated node.";
            return Some(PostFilter::Failed(format!("preemption: {why}")));
        }
        Some(match self.search(view, pod, diagnosis, try_filter) {
            Ok(candidates) => PostFilter::Candidates(candidates),
            Err(why) => PostFilter::Failed(format!("preemption: {}", diagnosis::message(&why))),
        })
    }
}

/// Room is being made for the pod already, on a node that will do.
fn waits_for_victims(view: &View<'_>, pod: &PodInfo, diagnosis: &Diagnosis) -> bool {
    let Some(node) = view.world.nomination(pod.uid()) else {
        return false;
    };
    let hopeless = diagnosis
        .by_node
        .get(&node.id)
        .is_some_and(|r| matches!(r.1, Status::Unresolvable(_)));
    let going = |p: &Arc<Footprint>| p.preempted && p.priority < pod.footprint.priority;
    !hopeless && node.pods().iter().any(going)
}

/// The fewest and least pods without which the node would do, or why it would not at all.
fn victims(
    view: &View<'_>,
    pod: &PodInfo,
    node: &NodeInfo,
    budgets: &[Arc<Budget>],
    try_filter: &TryFilter<'_>,
) -> Result<Victims, Status> {
    let priority = pod.footprint.priority;
    let lesser = node.pods().iter().filter(|p| p.priority < priority);
    let mut lesser: Vec<Arc<Footprint>> = lesser.cloned().collect();
    if lesser.is_empty() {
        return Err(Status::unresolvable(NO_VICTIMS));
    }
    let mut without = node.clone();
    let mut supposed = Vec::new();
    // Pods of at least the same priority are to have their room there, too.
    for other in view.world.nominated_for(node.id) {
        if other.priority >= priority && other.uid != *pod.uid() {
            without.add(Arc::clone(other));
            supposed.push(suppose(other, node, true));
        }
    }
    for victim in &lesser {
        without.remove(&victim.uid);
        supposed.push(suppose(victim, node, false));
    }
    let status = try_filter(pod, &without, &supposed);
    if !status.is_success() {
        return Err(status);
    }
    // The more important and the longer-lived ones are spared first, and before them those that no
    // budget allows for.
    lesser.sort_by_key(|p| (Reverse(p.priority), p.since));
    let (violating, harmless) = by_budget(lesser, budgets);
    let mut doomed = Victims {
        pods: Vec::new(),
        violations: 0,
    };
    let count = violating.len();
    for (at, candidate) in violating.into_iter().chain(harmless).enumerate() {
        without.add(Arc::clone(&candidate));
        let spared = supposed.iter().position(|s| s.pod.uid == candidate.uid);
        let spared = spared.map(|at| supposed.swap_remove(at));
        if !try_filter(pod, &without, &supposed).is_success() {
            without.remove(&candidate.uid);
            supposed.extend(spared);
            doomed.violations += usize::from(at < count);
            doomed.pods.push(candidate);
        }
    }
    doomed.pods.sort_by_key(|p| (Reverse(p.priority), p.since));
    Ok(doomed)
}

fn suppose(pod: &Arc<Footprint>, node: &NodeInfo, added: bool) -> Supposition {
    Supposition {
        pod: Arc::clone(pod),
        node: node.id,
        added,
    }
}

/// The pods whose eviction some budget does not allow for, and the others; as each pod takes its
/// share of the budgets, the first ones are allowed.
fn by_budget(
    pods: Vec<Arc<Footprint>>,
    budgets: &[Arc<Budget>],
) -> (Vec<Arc<Footprint>>, Vec<Arc<Footprint>>) {
    let mut left: Vec<i32> = budgets.iter().map(|b| b.allowed).collect();
    pods.into_iter().partition(|pod| {
        let mut violates = false;
        for (budget, left) in budgets.iter().zip(&mut left) {
            if budget.covers(pod) {
                *left -= 1;
                violates |= *left < 0;
            }
        }
        violates
    })
}

/// Lower is better: budgets broken, the highest priority among the victims, all priorities
/// together, their number, and the youngest of the most important.
fn cost(victims: &Victims) -> (usize, i32, i64, usize, Reverse<Option<Timestamp>>) {
    let pods = &victims.pods;
    let highest = pods.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
    let sum = pods
        .iter()
        .map(|v| i64::from(v.priority) + i64::from(i32::MAX) + 1)
        .sum();
    let eldest = pods
        .iter()
        .filter(|v| v.priority == highest)
        .filter_map(|v| v.since)
        .min();
    (
        victims.violations,
        highest,
        sum,
        pods.len(),
        Reverse(eldest),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn budgets_are_used_up_by_the_more_important_pods() {
        let pod = |name: &str| {
            let mut pod = Footprint::bare(name);
            pod.labels = Arc::new([("app".to_owned(), "db".to_owned())].into());
            Arc::new(pod)
        };
        let budget = |allowed: i32, selector: serde_json::Value| {
            let budget = json!({"metadata": {}, "spec": {"selector": selector},
                "status": {"disruptionsAllowed": allowed, "currentHealthy": 0, "desiredHealthy": 0,
                    "expectedPods": 0, "disruptedPods": {"gone": "2026-01-01T00:00:00Z"}}});
            Arc::new(Budget::of(serde_json::from_value(budget).unwrap()))
        };
        let db = || json!({"matchLabels": {"app": "db"}});
        for (budgets, expected) in [
            (vec![], 0),
            (vec![budget(1, db())], 1),
            (vec![budget(5, db()), budget(0, db())], 2),
            (vec![budget(0, json!({}))], 0),
            (vec![budget(0, json!({"matchLabels": {"app": "x"}}))], 0),
        ] {
            let pods = vec![pod("a"), pod("gone"), pod("b")];
            assert_eq!(by_budget(pods, &budgets).0.len(), expected);
        }
    }
}
