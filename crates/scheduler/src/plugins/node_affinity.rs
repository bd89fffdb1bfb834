//! A pod's node selector and its rules about nodes.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::NodeSelectorTerm;

use super::{Handle, selector};
use crate::{
    framework::{Cycle, Event, Happening, Plugin, PreFilter, Status, View, normalize_to_highest},
    node::{NodeInfo, NodeSpec},
    pod::PodInfo,
};

struct NodeAffinity;

pub(super) fn make(_: &Handle) -> Box<dyn Plugin> {
    Box::new(NodeAffinity)
}

const REASON: &str = "node(s) didn't match Pod's node affinity/selector";
const CONFLICT: &str = "pod affinity terms conflict";

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn happenings(&self) -> &'static [Happening] {
        &[Happening::NodeAdd, Happening::NodeLabels]
    }

    fn helps(&self, pod: &PodInfo, event: &Event<'_>) -> bool {
        match event {
            Event::Node { old, new } => suits(pod, new) && !old.is_some_and(|o| suits(pod, o)),
            _ => true,
        }
    }

    fn pre_filter(&self, _: &mut Cycle<'_>, pod: &PodInfo) -> PreFilter {
        let required = pod.node_affinity.as_ref().and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
        let Some(required) = required else {
            return if pod.node_selector.is_empty() {
                PreFilter::Skip
            } else {
                PreFilter::Continue
            };
        };
        // Terms that all name their nodes narrow the search to those.
        let mut named = BTreeSet::new();
        for term in &required.node_selector_terms {
            match names(term) {
                None => return PreFilter::Continue,
                Some(names) => named.extend(names),
            }
        }
        if required.node_selector_terms.is_empty() {
            return PreFilter::Continue;
        }
        if named.is_empty() {
            return PreFilter::Reject(Status::unresolvable(CONFLICT));
        }
        PreFilter::Only(named)
    }

    fn filter(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Status {
        if node.spec.as_ref().is_some_and(|spec| suits(pod, spec)) {
            Status::Success
        } else {
            Status::unresolvable(REASON)
        }
    }

    fn pre_score(&self, _: &mut Cycle<'_>, pod: &PodInfo, _: &[&NodeInfo]) -> bool {
        pod.node_affinity.as_ref().is_some_and(|a| {
            let preferred = a
                .preferred_during_scheduling_ignored_during_execution
                .as_ref();
            preferred.is_some_and(|p| !p.is_empty())
        })
    }

    fn score(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let (Some(affinity), Some(spec)) = (&pod.node_affinity, &node.spec) else {
            return 0;
        };
        let preferred = affinity
            .preferred_during_scheduling_ignored_during_execution
            .iter();
        preferred
            .flatten()
            .filter(|p| prefers(&p.preference, spec))
            .map(|p| i64::from(p.weight))
            .sum()
    }

    fn normalize(&self, _: &View<'_>, _: &[&NodeInfo], scores: &mut [i64]) {
        normalize_to_highest(scores, false);
    }
}

/// Whether a node has what the pod's node selector and affinity require.
pub(super) fn suits(pod: &PodInfo, node: &NodeSpec) -> bool {
    let selected = pod
        .node_selector
        .iter()
        .all(|(k, v)| node.labels.get(k) == Some(v));
    let required = pod.node_affinity.as_ref().and_then(|a| {
        a.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    selected && required.is_none_or(|r| selector::matches(r, &node.name, &node.labels))
}

/// Unlike a required one, an empty preferred term suits every node.
fn prefers(term: &NodeSelectorTerm, node: &NodeSpec) -> bool {
    let empty = |list: &Option<Vec<_>>| list.as_ref().is_none_or(Vec::is_empty);
    empty(&term.match_expressions) && empty(&term.match_fields)
        || selector::term_matches(term, &node.name, &node.labels)
}

/// The nodes a term names, all its requirements together; `None`: it names none.
fn names(term: &NodeSelectorTerm) -> Option<BTreeSet<String>> {
    let mut named: Option<BTreeSet<String>> = None;
    for requirement in term.match_fields.iter().flatten() {
        if requirement.key == "metadata.name" && requirement.operator == "In" {
            let these: BTreeSet<String> = requirement.values.iter().flatten().cloned().collect();
            named = Some(match named {
                Some(before) => before.intersection(&these).cloned().collect(),
                None => these,
            });
        }
    }
    named
}
