//! When no node will do, finds one that would if pods of lower priority left. Disruption
//! budgets are not weighed yet.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use super::Handle;
use crate::{
    diagnosis,
    framework::{Cycle, Diagnosis, Plugin, PostFilter, Status, TryFilter},
    node::NodeInfo,
    pod::{Footprint, PodInfo},
};

const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

struct DefaultPreemption;

pub(super) fn make(_: &Handle) -> Box<dyn Plugin> {
    Box::new(DefaultPreemption)
}

/// The pods to evict from a node, of highest priority first.
type Victims = Vec<Arc<Footprint>>;

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        "DefaultPreemption"
    }

    fn post_filter(
        &self,
        cycle: &Cycle<'_>,
        pod: &PodInfo,
        diagnosis: &Diagnosis,
        try_filter: &TryFilter<'_>,
    ) -> Option<PostFilter> {
        if !pod.may_preempt {
            let why = "not eligible due to preemptionPolicy=Never.";
            return Some(PostFilter::Failed(format!("preemption: {why}")));
        }
        if waits_for_victims(cycle, pod) {
            let why = "not eligible due to a terminating pod on the nominated node.";
            return Some(PostFilter::Failed(format!("preemption: {why}")));
        }
        let mut found: Vec<(&str, Victims)> = Vec::new();
        let mut refused = BTreeMap::new();
        for node in &cycle.snapshot.nodes {
            let Some(spec) = &node.spec else { continue };
            match diagnosis.by_node.get(&spec.name) {
                Some(Status::Unschedulable(_)) => match victims(pod, node, try_filter) {
                    Some(victims) => found.push((&spec.name, victims)),
                    None => {
                        refused.insert(spec.name.clone(), Status::unschedulable(NO_VICTIMS));
                    }
                },
                _ => {
                    refused.insert(spec.name.clone(), Status::unresolvable(NOT_HELPFUL));
                }
            }
        }
        let Some((node, victims)) = found.into_iter().min_by_key(|(_, v)| cost(v)) else {
            let nodes = diagnosis.nodes;
            let all = Diagnosis {
                nodes,
                by_node: refused,
                ..Diagnosis::default()
            };
            return Some(PostFilter::Failed(format!(
                "preemption: {}",
                diagnosis::message(&all)
            )));
        };
        Some(PostFilter::Nominate {
            node: node.to_owned(),
            victims,
        })
    }
}

/// Room is being made for the pod already.
fn waits_for_victims(cycle: &Cycle<'_>, pod: &PodInfo) -> bool {
    let Some(nominated) = &pod.nominated else {
        return false;
    };
    let node = cycle
        .snapshot
        .nodes
        .iter()
        .find(|n| n.spec.as_ref().is_some_and(|s| s.name == *nominated));
    node.is_some_and(|n| {
        n.pods()
            .any(|p| p.deleting && p.priority < pod.footprint.priority)
    })
}

/// The fewest and least pods without which the node would do; `None`: it would not at all.
fn victims(pod: &PodInfo, node: &NodeInfo, try_filter: &TryFilter<'_>) -> Option<Victims> {
    let mut lesser: Vec<Arc<Footprint>> = node
        .pods()
        .filter(|p| p.priority < pod.footprint.priority)
        .cloned()
        .collect();
    if lesser.is_empty() {
        return None;
    }
    let mut without = node.clone();
    for victim in &lesser {
        without.remove(&victim.uid);
    }
    if !try_filter(pod, &without).is_success() {
        return None;
    }
    // The more important and the longer-lived ones are spared first.
    lesser.sort_by_key(|p| (Reverse(p.priority), p.since));
    let mut doomed = Vec::new();
    for candidate in lesser {
        without.add(Arc::clone(&candidate));
        if !try_filter(pod, &without).is_success() {
            without.remove(&candidate.uid);
            doomed.push(candidate);
        }
    }
    Some(doomed)
}

/// Lower is better: the highest priority among the victims, all priorities together, their
/// number, and the youngest of the most important.
fn cost(victims: &Victims) -> (i32, i64, usize, Reverse<Option<Timestamp>>) {
    let highest = victims.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
    let sum = victims
        .iter()
        .map(|v| i64::from(v.priority) + i64::from(i32::MAX) + 1)
        .sum();
    let eldest = victims
        .iter()
        .filter(|v| v.priority == highest)
        .filter_map(|v| v.since)
        .min();
    (highest, sum, victims.len(), Reverse(eldest))
}
