//! Which nodes a DaemonSet wants a pod on. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};
use placement::{node_selector::suits, taints::tolerates};

/// What a DaemonSet needs to know of a node; unequal when it has to look again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
}

impl NodeFacts {
    /// The facts of a node.
    pub fn of(node: Node) -> Self {
        Self {
            name: node.metadata.name.unwrap_or_default(),
            labels: node.metadata.labels.unwrap_or_default(),
            taints: node.spec.and_then(|s| s.taints).unwrap_or_default(),
        }
    }
}

/// Whether a daemon pod belongs on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It does.
    Run,
    /// One that is there may stay.
    Stay,
    /// It does not.
    Away,
}

/// Judges a node by the pod spec of the template.
pub fn place(template: &PodSpec, node: &NodeFacts) -> Place {
    let named = template.node_name.as_deref().unwrap_or_default();
    if !(named.is_empty() || named == node.name) || !suits(template, &node.name, &node.labels) {
        return Place::Away;
    }
    let tolerations = tolerations(template);
    let refuses = |effect: &str| {
        let mut taints = node.taints.iter().filter(|t| t.effect == effect);
        taints.any(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
    };
    if refuses("NoExecute") {
        Place::Away
    } else if refuses("NoSchedule") {
        Place::Stay
    } else {
        Place::Run
    }
}

/// Taints that do not keep daemons away.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// Daemons on the network of the node do without that of pods.
const WITHOUT_NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// The tolerations of the template's pods: its own and those of every daemon.
pub fn tolerations(template: &PodSpec) -> Vec<Toleration> {
    let mut all = template.tolerations.clone().unwrap_or_default();
    let host = template.host_network == Some(true);
    for (key, effect) in TOLERATED.into_iter().chain(host.then_some(WITHOUT_NETWORK)) {
        let new = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        let same = |t: &&mut Toleration| {
            t.key == new.key
                && t.effect == new.effect
                && t.operator == new.operator
                && t.value.as_deref().unwrap_or_default().is_empty()
        };
        match all.iter_mut().find(same) {
            Some(old) => *old = new,
            None => all.push(new),
        }
    }
    all
}

/// Binds a pod's spec to a node for whichever scheduler it names.
pub fn pin(spec: &mut PodSpec, node: &str) {
    let affinity = spec.affinity.get_or_insert_default();
    affinity
        .node_affinity
        .get_or_insert_default()
        .required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec![node.to_owned()]),
            }]),
            ..NodeSelectorTerm::default()
        }],
    });
}

/// The node a pod runs on or is pinned to.
pub fn target(spec: &PodSpec) -> Option<&str> {
    if let Some(node) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(node);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let mut fields = required
        .node_selector_terms
        .iter()
        .flat_map(|t| t.match_fields.iter().flatten());
    let named = fields.find(|f| f.key == "metadata.name" && f.operator == "In")?;
    named.values.as_ref()?.first().map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(labels: Value, taints: Value) -> NodeFacts {
        let node = json!({"metadata": {"name": "n", "labels": labels}, "spec": {"taints": taints}});
        NodeFacts::of(serde_json::from_value(node).unwrap())
    }

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn nodes_are_judged_by_selectors_and_taints() {
        let none = json!([]);
        let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
        let cordoned = taint("node.kubernetes.io/unschedulable", "NoSchedule");
        let affinity = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}}}});
        for (template, labels, taints, expected) in [
            (json!({}), json!({}), none.clone(), Place::Run),
            (json!({}), json!({}), cordoned, Place::Run),
            (json!({}), json!({}), taint("k", "NoSchedule"), Place::Stay),
            (
                json!({}),
                json!({}),
                taint("k", "PreferNoSchedule"),
                Place::Run,
            ),
            (json!({}), json!({}), taint("k", "NoExecute"), Place::Away),
            (
                json!({"tolerations": [{"operator": "Exists"}]}),
                json!({}),
                taint("k", "NoExecute"),
                Place::Run,
            ),
            (
                json!({"tolerations": [{"key": "k", "value": "x"}]}),
                json!({}),
                taint("k", "NoSchedule"),
                Place::Stay,
            ),
            (
                json!({}),
                json!({}),
                taint("node.kubernetes.io/network-unavailable", "NoSchedule"),
                Place::Stay,
            ),
            (
                json!({"hostNetwork": true}),
                json!({}),
                taint("node.kubernetes.io/network-unavailable", "NoSchedule"),
                Place::Run,
            ),
            (
                json!({"nodeName": "m"}),
                json!({}),
                none.clone(),
                Place::Away,
            ),
            (
                json!({"nodeSelector": {"zone": "a"}}),
                json!({"zone": "a"}),
                none.clone(),
                Place::Run,
            ),
            (
                json!({"nodeSelector": {"zone": "a"}}),
                json!({}),
                none.clone(),
                Place::Away,
            ),
            (
                affinity.clone(),
                json!({"zone": "a"}),
                none.clone(),
                Place::Run,
            ),
            (affinity, json!({"zone": "b"}), none, Place::Away),
        ] {
            let case = format!("{template} {labels} {taints}");
            assert_eq!(
                place(&spec(template), &node(labels, taints)),
                expected,
                "{case}"
            );
        }
    }

    #[test]
    fn a_pinned_pod_knows_its_node() {
        let mut one = spec(json!({}));
        assert_eq!(target(&one), None);
        pin(&mut one, "n7");
        assert_eq!(target(&one), Some("n7"));
        one.node_name = Some("n8".into());
        assert_eq!(target(&one), Some("n8"));
    }

    #[test]
    fn own_tolerations_are_kept() {
        let one = spec(json!({"tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
            {"key": "x", "operator": "Exists"}]}));
        let all = tolerations(&one);
        assert_eq!(all.len(), 7);
        assert_eq!(all[0].toleration_seconds, None);
    }
}
