//! Nodes with taints take only pods that tolerate them, and rather those that tolerate the mild
//! ones too.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::Handle;
use crate::{
    framework::{Advice, Event, Happening, Plugin, Status, View, normalize_to_highest},
    node::{NodeInfo, NodeSpec},
    pod::PodInfo,
};

struct TaintToleration;

pub(super) fn make(_: &Handle) -> Box<dyn Plugin> {
    Box::new(TaintToleration)
}

/// Whether any of the tolerations covers the taint.
pub(super) fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations
        .iter()
        .any(|t| placement::taints::tolerates(t, taint))
}

/// Whether the pod tolerates every taint of the node that keeps pods away.
pub(super) fn welcomes(pod: &PodInfo, node: &NodeSpec) -> bool {
    node.hard_taints().all(|t| tolerates(&pod.tolerations, t))
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn is_local(&self) -> bool {
        true
    }

    fn weight(&self) -> i64 {
        3
    }

    fn happenings(&self) -> &'static [Happening] {
        &[Happening::NodeAdd, Happening::NodeTaints]
    }

    fn helps(&self, pod: &PodInfo, event: &Event<'_>) -> bool {
        match event {
            Event::Node { old, new } => {
                welcomes(pod, new) && !old.is_some_and(|o| welcomes(pod, o))
            }
            _ => true,
        }
    }

    fn filter(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Status {
        if node.spec.as_ref().is_none_or(|s| welcomes(pod, s)) {
            return Status::Success;
        }
        Status::unresolvable("node(s) had untolerated taint(s)")
    }

    fn advice(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Option<Advice> {
        let spec = node.spec.as_ref()?;
        let parts: Vec<String> = spec
            .hard_taints()
            .filter(|t| !tolerates(&pod.tolerations, t))
            .map(|taint| {
                let (key, effect) = (&taint.key, &taint.effect);
                let value = taint.value.as_deref().unwrap_or_default();
                let shown = match value {
                    "" => format!("{key}:{effect}"),
                    value => format!("{key}={value}:{effect}"),
                };
                let toleration = match value {
                    "" => format!("{{key: {key}, operator: Exists, effect: {effect}}}"),
                    value => format!("{{key: {key}, value: {value:?}, effect: {effect}}}"),
                };
                format!("taint {shown}: add the toleration {toleration}")
            })
            .collect();
        Some(Advice {
            effort: parts.len() as i64,
            text: parts.join("; "),
        })
    }

    fn score(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let mild = |t: &&Taint| t.effect == "PreferNoSchedule";
        let taints = node.spec.iter().flat_map(|s| &s.taints).filter(mild);
        taints.filter(|t| !tolerates(&pod.tolerations, t)).count() as i64
    }

    fn normalize(&self, _: &View<'_>, _: &[&NodeInfo], scores: &mut [i64]) {
        normalize_to_highest(scores, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations() {
        let toleration = |json: &str| serde_json::from_str::<Toleration>(json).unwrap();
        let taint: Taint =
            serde_json::from_str(r#"{"key":"k","value":"5","effect":"NoSchedule"}"#).unwrap();
        for (json, expected) in [
            (r#"{"operator":"Exists"}"#, true),
            (r#"{"key":"k","operator":"Exists"}"#, true),
            (r#"{"key":"k","value":"5"}"#, true),
            (r#"{"key":"k","operator":"Equal","value":"6"}"#, false),
            (r#"{"key":"j","operator":"Exists"}"#, false),
            (
                r#"{"key":"k","operator":"Exists","effect":"NoExecute"}"#,
                false,
            ),
            (r#"{"key":"k","operator":"Gt","value":"4"}"#, true),
            (r#"{"key":"k","operator":"Lt","value":"4"}"#, false),
            (r#"{"key":"k","operator":"Odd","value":"5"}"#, false),
        ] {
            assert_eq!(tolerates(&[toleration(json)], &taint), expected, "{json}");
        }
    }
}
