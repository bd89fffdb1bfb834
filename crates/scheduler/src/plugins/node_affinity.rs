//! A pod's node selector and its rules about nodes.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorTerm};
use placement::node_selector as selector;
use serde::Deserialize;
use serde_json::Value;

use super::Handle;
use crate::{
    framework::{
        Advice, Cycle, Event, Happening, Plugin, PreFilter, Status, View, normalize_to_highest,
    },
    node::{NodeInfo, NodeSpec},
    pod::PodInfo,
};

pub(super) const NAME: &str = "NodeAffinity";

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Args {
    added_affinity: Option<k8s_openapi::api::core::v1::NodeAffinity>,
}

struct NodeAffinity {
    /// Rules for every pod of the profile, beside its own.
    added: Option<k8s_openapi::api::core::v1::NodeAffinity>,
}

pub(super) fn check(args: &Value) -> Result<(), String> {
    super::args::<Args>(args.clone()).map(drop)
}

pub(super) fn make(_: &Handle, args: Value) -> Result<Box<dyn Plugin>, String> {
    let args: Args = super::args(args)?;
    Ok(Box::new(NodeAffinity {
        added: args.added_affinity,
    }))
}

impl NodeAffinity {
    fn enforced(&self) -> Option<&NodeSelector> {
        self.added
            .as_ref()?
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    }
}

const REASON: &str = "node(s) didn't match Pod's node affinity/selector";
const ENFORCED: &str = "node(s) didn't match scheduler-enforced node affinity";
const CONFLICT: &str = "pod affinity terms conflict";

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn is_local(&self) -> bool {
        true
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
            return if pod.node_selector.is_empty() && self.enforced().is_none() {
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
        let allowed = |spec: &NodeSpec| {
            let enforced = self.enforced();
            enforced.is_none_or(|r| selector::matches(r, &spec.name, &spec.labels))
        };
        if !node.spec.as_ref().is_some_and(|spec| allowed(spec)) {
            return Status::unresolvable(ENFORCED);
        }
        if node.spec.as_ref().is_some_and(|spec| suits(pod, spec)) {
            Status::Success
        } else {
            Status::unresolvable(REASON)
        }
    }

    fn advice(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Option<Advice> {
        let spec = node.spec.as_ref()?;
        let name = &spec.name;
        let missing: Vec<String> = pod
            .node_selector
            .iter()
            .filter(|(k, v)| spec.labels.get(k) != Some(v))
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        let mut parts = Vec::new();
        if !missing.is_empty() {
            let labels = missing.join(" ");
            parts.push(format!(
                "label {labels} missing: kubectl label --overwrite node {name} {labels}"
            ));
        }
        let required = pod.node_affinity.as_ref().and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
        if let Some(required) = required.filter(|r| !selector::matches(r, name, &spec.labels)) {
            let unmet = selector::unmet(required, name, &spec.labels);
            parts.push(format!("required node affinity not met: {unmet}"));
        }
        Some(Advice {
            effort: missing.len() as i64,
            text: parts.join("; "),
        })
    }

    fn pre_score(&self, _: &mut Cycle<'_>, pod: &PodInfo, _: &[&NodeInfo]) -> bool {
        let mut both = pod.node_affinity.as_deref().into_iter().chain(&self.added);
        both.any(|a| {
            let preferred = a
                .preferred_during_scheduling_ignored_during_execution
                .as_ref();
            preferred.is_some_and(|p| !p.is_empty())
        })
    }

    fn score(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(spec) = &node.spec else { return 0 };
        let both = pod.node_affinity.as_deref().into_iter().chain(&self.added);
        both.flat_map(|a| &a.preferred_during_scheduling_ignored_during_execution)
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
    let rules = pod.node_affinity.as_deref();
    let wanted = pod.node_selector.iter().map(|(k, v)| (k, v));
    selector::attracts(wanted, rules, &node.name, &node.labels)
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
