//! How many pods of a PodDisruptionBudget may be disturbed now. Pure.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
};

use crate::{amount::scaled, pods};

/// An evicted pod that is not being deleted after this time was not evicted.
const EVICTION_LIMIT: SignedDuration = SignedDuration::from_mins(2);
const ALLOWED: &str = "DisruptionAllowed";

/// What the pods say.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The status.
    pub status: PodDisruptionBudgetStatus,
    /// Pods that were to be evicted but are still there.
    pub overdue: Vec<String>,
    /// When to look again at the latest.
    pub wait: Option<SignedDuration>,
}

/// Whether the number of pods that should be there has to be asked of those who manage them.
pub fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let Some(spec) = &budget.spec else {
        return false;
    };
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// Decides; `scale` is the number of pods that their managers want altogether.
pub fn plan(budget: &PodDisruptionBudget, pods: &[Pod], scale: i32, now: Timestamp) -> Plan {
    let (expected, desired) = wanted(budget, pods, scale);
    let old = budget.status.clone().unwrap_or_default();
    let mut disrupted = BTreeMap::new();
    let (mut overdue, mut wait) = (Vec::new(), None::<SignedDuration>);
    for pod in pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let since = old.disrupted_pods.as_ref().and_then(|d| d.get(&name));
        let Some(since) = since.filter(|_| pod.metadata.deletion_timestamp.is_none()) else {
            continue;
        };
        let left = EVICTION_LIMIT - now.duration_since(since.0);
        if left.is_positive() {
            wait = Some(wait.map_or(left, |w| w.min(left)));
            disrupted.insert(name, since.clone());
        } else {
            overdue.push(name);
        }
    }
    let healthy = |pod: &&Pod| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        pod.metadata.deletion_timestamp.is_none()
            && !disrupted.contains_key(name)
            && pods::is_ready(pod)
    };
    let healthy = i32::try_from(pods.iter().filter(healthy).count()).unwrap_or(i32::MAX);
    let allowed = if expected > 0 {
        (healthy - desired).max(0)
    } else {
        0
    };
    let verdict = if allowed > 0 {
        ("True", "SufficientPods", "")
    } else {
        ("False", "InsufficientPods", "")
    };
    let status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        observed_generation: budget.metadata.generation,
        conditions: Some(conditions(budget.metadata.generation, &old, verdict, now)),
    };
    Plan {
        status,
        overdue,
        wait,
    }
}

/// The status when nobody can tell how many pods there should be: nothing may be disturbed, and
/// what the budget asks for now counts as not looked at.
pub fn failed(
    budget: &PodDisruptionBudget,
    why: &str,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let old = budget.status.clone().unwrap_or_default();
    PodDisruptionBudgetStatus {
        disruptions_allowed: Some(0),
        conditions: Some(conditions(
            old.observed_generation,
            &old,
            ("False", "SyncFailed", why),
            now,
        )),
        ..old
    }
}

/// How many pods there should be, and how many of them healthy.
fn wanted(budget: &PodDisruptionBudget, pods: &[Pod], scale: i32) -> (i32, i32) {
    let Some(spec) = &budget.spec else {
        return (0, 0);
    };
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (scale, (scale - scaled(most, scale, true)).max(0)),
        (None, Some(IntOrString::Int(least))) => {
            (i32::try_from(pods.len()).unwrap_or(i32::MAX), *least)
        }
        (None, Some(least)) => (scale, scaled(least, scale, true)),
        (None, None) => (0, 0),
    }
}

fn conditions(
    generation: Option<i64>,
    old: &PodDisruptionBudgetStatus,
    (status, reason, message): (&str, &str, &str),
    now: Timestamp,
) -> Vec<Condition> {
    let mut all = old.conditions.clone().unwrap_or_default();
    let before = all.iter().find(|c| c.type_ == ALLOWED);
    let since = before
        .filter(|c| c.status == status)
        .map_or(Time(now), |c| c.last_transition_time.clone());
    let new = Condition {
        type_: ALLOWED.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: since,
    };
    all.retain(|c| c.type_ != ALLOWED);
    all.push(new);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({
            "metadata": {"name": "b", "generation": 2}, "spec": spec, "status": status,
        }))
        .unwrap()
    }

    fn pod(name: &str, ready: bool) -> Pod {
        let status = if ready { "True" } else { "False" };
        serde_json::from_value(json!({"metadata": {"name": name},
            "status": {"conditions": [{"type": "Ready", "status": status}]}}))
        .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn as_many_as_can_be_spared() {
        let pods = [
            pod("a", true),
            pod("b", true),
            pod("c", true),
            pod("d", false),
        ];
        for (spec, scale, expected) in [
            (json!({"minAvailable": 2}), 0, (4, 2, 1)),
            (json!({"minAvailable": 3}), 0, (4, 3, 0)),
            (json!({"minAvailable": "50%"}), 5, (5, 3, 0)),
            (json!({"minAvailable": "50%"}), 4, (4, 2, 1)),
            (json!({"maxUnavailable": 2}), 4, (4, 2, 1)),
            (json!({"maxUnavailable": "25%"}), 4, (4, 3, 0)),
            (json!({"maxUnavailable": "100%"}), 4, (4, 0, 3)),
            (json!({"maxUnavailable": 9}), 0, (0, 0, 0)),
        ] {
            let status = plan(&budget(spec.clone(), json!({})), &pods, scale, at(0)).status;
            let found = (
                status.expected_pods.unwrap(),
                status.desired_healthy.unwrap(),
                status.disruptions_allowed.unwrap(),
            );
            assert_eq!(found, expected, "{spec}");
            let condition = &status.conditions.unwrap()[0];
            assert_eq!(condition.status == "True", expected.2 > 0, "{spec}");
        }
        assert!(needs_scale(&budget(
            json!({"minAvailable": "5%"}),
            json!({})
        )));
        assert!(!needs_scale(&budget(json!({"minAvailable": 5}), json!({}))));
    }

    #[test]
    fn evicted_pods_do_not_count_until_it_is_clear_that_they_stay() {
        let pods = [pod("a", true), pod("b", true)];
        let status =
            json!({"disruptedPods": {"a": "1970-01-01T00:00:00Z", "gone": "1970-01-01T00:00:00Z"}});
        let budget = budget(json!({"minAvailable": 1}), status);
        let soon = plan(&budget, &pods, 0, at(30));
        assert_eq!(soon.status.current_healthy, Some(1));
        assert_eq!(soon.wait.unwrap().as_secs(), 90);
        assert_eq!(soon.status.disrupted_pods.unwrap().len(), 1);
        let late = plan(&budget, &pods, 0, at(121));
        assert_eq!(late.status.current_healthy, Some(2));
        assert_eq!(late.overdue, ["a"]);
        assert_eq!(late.status.disrupted_pods, None);
    }

    #[test]
    fn a_condition_keeps_its_time() {
        let mut budget = budget(json!({"minAvailable": 1}), json!({}));
        budget.status = Some(plan(&budget, &[], 0, at(5)).status);
        let again = plan(&budget, &[], 0, at(50)).status;
        assert_eq!(Some(again), budget.status);
        budget.metadata.generation = Some(3);
        let failed = failed(&budget, "why", at(60));
        assert_eq!(failed.observed_generation, Some(2), "not looked at");
        let condition = &failed.conditions.unwrap()[0];
        assert_eq!(
            (condition.reason.as_str(), condition.message.as_str()),
            ("SyncFailed", "why")
        );
        assert_eq!(condition.last_transition_time.0, at(5));
    }
}
