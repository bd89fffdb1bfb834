//! What a node's silence and its conditions mean: conditions, taints, and who has to leave. Pure.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::Time,
};
use placement::taints::tolerates;

/// A node that has not been heard of for this long is not known to be alive.
const GRACE: SignedDuration = SignedDuration::from_secs(50);
/// The same of one that has yet to say how it is.
const STARTUP_GRACE: SignedDuration = SignedDuration::from_secs(60);

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that a silent node no longer vouches for.
const VOUCHED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Conditions that keep pods away while they hold.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];

/// Labels of nodes, and what they were called before.
const OLDER_LABELS: [(&str, &str); 2] = [
    ("kubernetes.io/os", "beta.kubernetes.io/os"),
    ("kubernetes.io/arch", "beta.kubernetes.io/arch"),
];

/// What is to be written, and when to look again.
#[derive(Debug, PartialEq)]
pub struct Plan {
    /// The conditions, if they change.
    pub conditions: Option<Vec<NodeCondition>>,
    /// The taints, if they change.
    pub taints: Option<Vec<Taint>>,
    /// When its silence would become too long.
    pub again: Option<SignedDuration>,
    /// Whether it is silent for too long.
    pub silent: bool,
    /// Whether its pods are to leave as soon as it is its turn.
    pub waits: bool,
}

/// Whether pods of a node that is unwell are told to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evict {
    /// They are.
    Yes,
    /// Not yet; those that were told stay told.
    NotYet,
    /// No, not even those that were told.
    No,
}

/// Decides about a node that was last heard of at `heard`.
pub fn plan(node: &Node, heard: Timestamp, evict: Evict, now: Timestamp) -> Plan {
    let current = node
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let grace = if current.iter().any(|c| c.type_ == "Ready") {
        GRACE
    } else {
        STARTUP_GRACE
    };
    let left = grace - now.duration_since(heard);
    let silent = !left.is_positive();
    let conditions = if silent {
        unknown(&current, node.metadata.creation_timestamp.as_ref(), now)
    } else {
        current.clone()
    };
    let (taints, waits) = taints(node, &conditions, evict, now);
    let old = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.clone())
        .unwrap_or_default();
    Plan {
        conditions: (conditions != current).then_some(conditions),
        taints: (taints != old).then_some(taints),
        again: (!silent).then_some(left),
        silent,
        waits,
    }
}

fn unknown(
    current: &[NodeCondition],
    created: Option<&Time>,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let mut all = current.to_vec();
    for kind in VOUCHED {
        match all.iter_mut().find(|c| c.type_ == kind) {
            Some(condition) if condition.status == "Unknown" => {}
            Some(condition) => {
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(Time(now));
            }
            None => all.push(NodeCondition {
                type_: kind.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: created.cloned(),
                last_transition_time: Some(Time(now)),
            }),
        }
    }
    all
}

/// The taints, and whether one is missing because it is not the node's turn.
fn taints(
    node: &Node,
    conditions: &[NodeCondition],
    evict: Evict,
    now: Timestamp,
) -> (Vec<Taint>, bool) {
    let old = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.clone())
        .unwrap_or_default();
    let told = |t: &Taint| t.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&&*t.key);
    let leave = match evict {
        Evict::Yes => true,
        Evict::NotYet => old.iter().any(told),
        Evict::No => false,
    };
    let status = |kind: &str| {
        conditions
            .iter()
            .find(|c| c.type_ == kind)
            .map(|c| c.status.as_str())
    };
    // Of one that has yet to say how it is nothing is said here.
    let unwell = match status("Ready") {
        Some("Unknown") => Some(UNREACHABLE),
        Some("False") => Some(NOT_READY),
        _ => None,
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    wanted.extend(unwell.map(|key| (key, "NoSchedule")));
    wanted.extend(unwell.filter(|_| leave).map(|key| (key, "NoExecute")));
    let pressed = PRESSURES
        .iter()
        .filter(|(kind, _)| status(kind) == Some("True"));
    wanted.extend(pressed.map(|(_, key)| (*key, "NoSchedule")));
    if node
        .spec
        .as_ref()
        .and_then(|s| s.unschedulable)
        .unwrap_or(false)
    {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let is_wanted = |t: &Taint| wanted.contains(&(t.key.as_str(), t.effect.as_str()));
    let mut all: Vec<Taint> = old
        .iter()
        .filter(|t| !is_ours(t) || is_wanted(t))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !all.iter().any(|t| t.key == key && t.effect == effect) {
            all.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    (all, unwell.is_some() && !leave)
}

/// Whether a taint comes and goes with a condition.
fn is_ours(taint: &Taint) -> bool {
    let key = taint.key.as_str();
    match taint.effect.as_str() {
        "NoSchedule" => {
            [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&key)
                || PRESSURES.iter().any(|(_, k)| *k == key)
        }
        "NoExecute" => [NOT_READY, UNREACHABLE].contains(&key),
        _ => false,
    }
}

/// When a pod with these tolerations has to leave a node with these taints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It may stay.
    Never,
    /// There is a taint that it does not tolerate.
    Now,
    /// At this time.
    At(Timestamp),
}

/// Decides about a pod. What it tolerates for a while it tolerates since that is `known`: a pod that
/// came to a node after the taint has all of its time there.
pub fn leave(taints: &[Taint], tolerations: &[Toleration], known: Timestamp) -> Leave {
    let mut shortest: Option<i64> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let Some(first) = tolerations.iter().find(|t| tolerates(t, taint)) else {
            return Leave::Now;
        };
        shortest = match (shortest, first.toleration_seconds) {
            (Some(known), Some(new)) => Some(known.min(new)),
            (known, new) => known.or(new),
        };
    }
    shortest.map_or(Leave::Never, |seconds| {
        let wait = SignedDuration::from_secs(seconds.max(0));
        Leave::At(known.saturating_add(wait).unwrap_or(Timestamp::MAX))
    })
}

/// Labels by their older names, which say what the newer ones say: what has to change of them.
pub fn labels(node: &Node) -> Option<BTreeMap<&'static str, &str>> {
    let all = node.metadata.labels.as_ref()?;
    let stale = OLDER_LABELS.into_iter().filter_map(|(new, old)| {
        let value = all.get(new)?;
        (all.get(old) != Some(value)).then_some((old, value.as_str()))
    });
    let stale: BTreeMap<_, _> = stale.collect();
    (!stale.is_empty()).then_some(stale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(ready: Option<&str>, taints: serde_json::Value) -> Node {
        let conditions: Vec<_> = ready
            .iter()
            .map(|s| json!({"type": "Ready", "status": s}))
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": "n"},
            "spec": {"taints": taints},
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn keys(taints: &[Taint]) -> Vec<String> {
        taints
            .iter()
            .map(|t| format!("{}:{}", t.key.rsplit('/').next().unwrap(), t.effect))
            .collect()
    }

    #[test]
    fn a_ready_node_loses_the_taint_it_was_born_with_and_keeps_others() {
        let born = json!([{"key": NOT_READY, "effect": "NoSchedule"}, {"key": "mine", "effect": "NoSchedule"}]);
        let plan = plan(&node(Some("True"), born), at(0), Evict::Yes, at(10));
        assert_eq!(keys(&plan.taints.unwrap()), ["mine:NoSchedule"]);
        assert_eq!(
            (plan.conditions, plan.again),
            (None, Some(SignedDuration::from_secs(40)))
        );
    }

    #[test]
    fn silence_makes_everything_unknown_and_taints() {
        let plan = plan(&node(Some("True"), json!([])), at(0), Evict::Yes, at(50));
        let conditions = plan.conditions.unwrap();
        assert_eq!(conditions.len(), 4);
        assert!(conditions.iter().all(|c| c.status == "Unknown"));
        assert_eq!(conditions[0].reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(
            conditions[1].reason.as_deref(),
            Some("NodeStatusNeverUpdated")
        );
        assert_eq!(
            keys(&plan.taints.unwrap()),
            ["unreachable:NoSchedule", "unreachable:NoExecute"]
        );
        assert!(plan.silent && plan.again.is_none());
        let new = super::plan(&node(None, json!([])), at(0), Evict::Yes, at(50));
        assert!(!new.silent, "it may still be starting");
    }

    #[test]
    fn a_node_that_is_not_ready_is_tainted_once() {
        let first = plan(&node(Some("False"), json!([])), at(0), Evict::Yes, at(1));
        assert_eq!(
            keys(first.taints.as_ref().unwrap()),
            ["not-ready:NoSchedule", "not-ready:NoExecute"]
        );
        let again = node(Some("False"), json!(first.taints.unwrap()));
        assert_eq!(plan(&again, at(0), Evict::NotYet, at(2)).taints, None);
        let never = plan(&again, at(0), Evict::No, at(2)).taints.unwrap();
        assert_eq!(keys(&never), ["not-ready:NoSchedule"]);
        let later = plan(&node(Some("False"), json!([])), at(0), Evict::NotYet, at(1));
        assert_eq!(keys(&later.taints.unwrap()), ["not-ready:NoSchedule"]);
        assert!(later.waits && !first.waits);
    }

    #[test]
    fn nothing_is_said_of_a_node_that_has_yet_to_say_how_it_is() {
        let born = json!([{"key": NOT_READY, "effect": "NoSchedule"}]);
        let young = node(None, born);
        let plan = plan(&young, at(0), Evict::NotYet, at(10));
        assert_eq!((plan.taints, plan.waits), (Some(vec![]), false));
        let mut never = node(None, json!([]));
        never.metadata.creation_timestamp = Some(Time(at(5)));
        let told = super::plan(&never, at(5), Evict::NotYet, at(65));
        let told = told.conditions.unwrap();
        let heartbeats = told.iter().map(|c| c.last_heartbeat_time.clone());
        assert!(heartbeats.eq(vec![Some(Time(at(5))); 4]));
    }

    #[test]
    fn older_labels_follow_the_newer() {
        let with = |labels: serde_json::Value| -> Node {
            serde_json::from_value(json!({"metadata": {"labels": labels}})).unwrap()
        };
        let (os, arch) = ("beta.kubernetes.io/os", "beta.kubernetes.io/arch");
        let both = json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", os: "linux", arch: "x"});
        let both = with(both);
        assert_eq!(labels(&both), Some(BTreeMap::from([(arch, "amd64")])));
        let one = with(json!({"kubernetes.io/os": "linux", arch: "x"}));
        assert_eq!(labels(&one), Some(BTreeMap::from([(os, "linux")])));
        assert_eq!(labels(&with(json!({}))), None);
    }

    #[test]
    fn pods_leave_when_their_toleration_ends() {
        let taints = |json| serde_json::from_value::<Vec<Taint>>(json).unwrap();
        let unreachable =
            json!({"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": "1970-01-01T00:01:40Z"});
        let one = || taints(json!([unreachable]));
        let for_a_while = json!({"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        let briefly = json!({"key": "k", "operator": "Exists", "tolerationSeconds": 10});
        let forever = json!({"operator": "Exists"});
        let two = taints(json!([unreachable, {"key": "k", "effect": "NoExecute"}]));
        let mild = taints(json!([{"key": "k", "effect": "NoSchedule"}]));
        for (taints, tolerations, expected) in [
            (one(), json!([]), Leave::Now),
            // From when the taint and the pod were seen together, not from when the taint came.
            (one(), json!([for_a_while]), Leave::At(at(750))),
            (one(), json!([forever]), Leave::Never),
            // The first that matches counts.
            (one(), json!([for_a_while, forever]), Leave::At(at(750))),
            (one(), json!([forever, for_a_while]), Leave::Never),
            (two.clone(), json!([for_a_while]), Leave::Now),
            (
                two.clone(),
                json!([for_a_while, briefly]),
                Leave::At(at(460)),
            ),
            (two, json!([for_a_while, forever]), Leave::At(at(750))),
            (mild, json!([]), Leave::Never),
        ] {
            let tolerations: Vec<Toleration> = serde_json::from_value(tolerations).unwrap();
            let found = leave(&taints, &tolerations, at(450));
            assert_eq!(found, expected, "{taints:?} {tolerations:?}");
        }
    }
}
