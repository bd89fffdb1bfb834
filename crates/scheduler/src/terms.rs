//! Affinity terms and spreading constraints of pods, compiled once, so that they can be hashed,
//! compared and matched without the object they came from.

use std::{collections::BTreeMap, sync::Arc};

use client::Selector;
use k8s_openapi::{
    api::core::v1::{Affinity, PodAffinityTerm, TopologySpreadConstraint},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
};

use crate::pod::Footprint;

/// Labels, shared.
pub type Labels = Arc<BTreeMap<String, String>>;

/// Which pods a term is about. Equal rules share one count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodRule {
    /// Namespaces by name, sorted.
    pub namespaces: Vec<Arc<str>>,
    /// Namespaces by label; `None`: only those named.
    pub namespace_selector: Option<Selector>,
    /// The pods in them.
    pub selector: Selector,
}

impl PodRule {
    /// The pods of one namespace that match a selector.
    pub fn within(namespace: &Arc<str>, selector: Selector) -> Self {
        Self {
            namespaces: vec![Arc::clone(namespace)],
            namespace_selector: None,
            selector,
        }
    }

    /// Whether a pod is meant; `namespace_labels` are those of its namespace.
    pub fn matches(&self, pod: &Footprint, namespace_labels: Option<&Labels>) -> bool {
        self.selector.matches(Some(&pod.labels))
            && self.is_within(&pod.key.namespace, namespace_labels)
    }

    fn is_within(&self, namespace: &Arc<str>, labels: Option<&Labels>) -> bool {
        self.namespaces.iter().any(|n| n == namespace)
            || self
                .namespace_selector
                .as_ref()
                .is_some_and(|s| s.matches(labels.map(|l| &**l)))
    }
}

/// A rule about pods, and what counts as the same place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AffinityTerm {
    /// The pods.
    pub rule: PodRule,
    /// The label of nodes whose value is the place.
    pub topology_key: Arc<str>,
}

/// An affinity term that may be outweighed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightedTerm {
    /// The term.
    pub term: Arc<AffinityTerm>,
    /// How much it counts; negative: for anti-affinity.
    pub weight: i32,
}

/// What a pod wants of the pods around it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodTerms {
    /// It goes only where pods of all of these are.
    pub affinity: Vec<Arc<AffinityTerm>>,
    /// It goes only where no pod of any of these is.
    pub anti_affinity: Vec<Arc<AffinityTerm>>,
    /// It rather goes there, or elsewhere.
    pub preferred: Vec<WeightedTerm>,
}

impl PodTerms {
    /// The terms of a pod of these labels in this namespace; `None`: it has none.
    pub fn of(
        affinity: Option<&Affinity>,
        namespace: &Arc<str>,
        labels: &BTreeMap<String, String>,
    ) -> Option<Arc<Self>> {
        let affinity = affinity?;
        let one = |t: &PodAffinityTerm| Arc::new(term(t, namespace, labels));
        let mut all = Self::default();
        if let Some(own) = &affinity.pod_affinity {
            let required = own
                .required_during_scheduling_ignored_during_execution
                .iter();
            all.affinity.extend(required.flatten().map(one));
            let preferred = own
                .preferred_during_scheduling_ignored_during_execution
                .iter();
            all.preferred
                .extend(preferred.flatten().map(|p| WeightedTerm {
                    term: one(&p.pod_affinity_term),
                    weight: p.weight,
                }));
        }
        if let Some(own) = &affinity.pod_anti_affinity {
            let required = own
                .required_during_scheduling_ignored_during_execution
                .iter();
            all.anti_affinity.extend(required.flatten().map(one));
            let preferred = own
                .preferred_during_scheduling_ignored_during_execution
                .iter();
            all.preferred
                .extend(preferred.flatten().map(|p| WeightedTerm {
                    term: one(&p.pod_affinity_term),
                    weight: -p.weight,
                }));
        }
        (all != Self::default()).then(|| Arc::new(all))
    }
}

/// A selector with what the label keys of the pod itself add to it; one that cannot be understood
/// matches nothing.
fn selector(
    written: Option<&LabelSelector>,
    labels: &BTreeMap<String, String>,
    same: Option<&Vec<String>>,
    other: Option<&Vec<String>>,
) -> Selector {
    let Some(written) = written else {
        return Selector::nothing();
    };
    let mut whole = written.clone();
    let lists = [(same, "In"), (other, "NotIn")];
    for (keys, operator) in lists {
        for key in keys.into_iter().flatten() {
            if let Some(value) = labels.get(key) {
                whole
                    .match_expressions
                    .get_or_insert_default()
                    .push(LabelSelectorRequirement {
                        key: key.clone(),
                        operator: operator.into(),
                        values: Some(vec![value.clone()]),
                    });
            }
        }
    }
    Selector::of(&whole).unwrap_or_else(|_| Selector::nothing())
}

fn term(
    term: &PodAffinityTerm,
    namespace: &Arc<str>,
    labels: &BTreeMap<String, String>,
) -> AffinityTerm {
    let mut namespaces: Vec<Arc<str>> = term
        .namespaces
        .iter()
        .flatten()
        .map(|n| n.as_str().into())
        .collect();
    if namespaces.is_empty() && term.namespace_selector.is_none() {
        namespaces.push(Arc::clone(namespace));
    }
    namespaces.sort();
    let by_label = term
        .namespace_selector
        .as_ref()
        .map(|s| Selector::of(s).unwrap_or_else(|_| Selector::nothing()));
    AffinityTerm {
        rule: PodRule {
            namespaces,
            namespace_selector: by_label,
            selector: selector(
                term.label_selector.as_ref(),
                labels,
                term.match_label_keys.as_ref(),
                term.mismatch_label_keys.as_ref(),
            ),
        },
        topology_key: term.topology_key.as_str().into(),
    }
}

/// Whether nodes that a pod cannot go to anyway count for spreading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inclusion {
    /// Leave out nodes that its node selector and affinity exclude.
    pub honor_affinity: bool,
    /// Leave out nodes with taints that it does not tolerate.
    pub honor_taints: bool,
}

/// How evenly pods are to be spread.
#[derive(Clone, Debug, PartialEq)]
pub struct SpreadConstraint {
    /// By how many pods two places may differ.
    pub max_skew: i32,
    /// The label of nodes whose value is the place.
    pub topology_key: Arc<str>,
    /// Whether it must hold, rather than should.
    pub hard: bool,
    /// The pods that are counted.
    pub rule: PodRule,
    /// With fewer places than this, the emptiest is taken to hold none.
    pub min_domains: i32,
    /// Which nodes count.
    pub inclusion: Inclusion,
}

/// The constraints of a pod of these labels in this namespace.
pub fn constraints(
    written: Option<&Vec<TopologySpreadConstraint>>,
    namespace: &Arc<str>,
    labels: &BTreeMap<String, String>,
) -> Vec<SpreadConstraint> {
    written
        .into_iter()
        .flatten()
        .map(|c| SpreadConstraint {
            max_skew: c.max_skew,
            topology_key: c.topology_key.as_str().into(),
            hard: c.when_unsatisfiable == "DoNotSchedule",
            rule: PodRule::within(
                namespace,
                selector(
                    c.label_selector.as_ref(),
                    labels,
                    c.match_label_keys.as_ref(),
                    None,
                ),
            ),
            min_domains: c.min_domains.unwrap_or(1),
            inclusion: Inclusion {
                honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
                honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
            },
        })
        .collect()
}
