//! Scaling to no replicas, and back. Pure.
//!
//! Whoever sets the replicas of a target to zero by hand turns its autoscaler off. An autoscaler
//! that did so itself remembers it in a condition, and goes on asking for its metrics.

use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus};

/// The condition that remembers who made the replicas zero.
pub const CONDITION: &str = "ScaledToZero";

/// Whether the autoscaler itself took all replicas away.
pub fn is_asleep(status: &HorizontalPodAutoscalerStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions
        .iter()
        .any(|c| c.type_ == CONDITION && c.status == "True")
}

/// Whether a metric can tell that pods are wanted while there are none.
fn hears(autoscaler: &HorizontalPodAutoscaler) -> bool {
    let metrics = autoscaler.spec.metrics.as_deref().unwrap_or_default();
    let mut kinds = metrics.iter().map(|m| m.type_.as_str());
    kinds.any(|kind| matches!(kind, "Object" | "External"))
}

/// Whether the metrics of a target without replicas count.
pub fn may_wake(
    autoscaler: &HorizontalPodAutoscaler,
    status: &HorizontalPodAutoscalerStatus,
) -> bool {
    let always = autoscaler.spec.min_replicas != Some(0);
    is_asleep(status) && (always || hears(autoscaler))
}

/// Whether a change of the replicas, which was made, put the target to sleep; reason and message of the condition.
pub fn verdict(
    autoscaler: &HorizontalPodAutoscaler,
    from: i32,
    to: i32,
) -> (bool, &'static str, &'static str) {
    let allowed = autoscaler.spec.min_replicas == Some(0) && hears(autoscaler);
    if allowed && from > 0 && to == 0 {
        let message = "the HPA controller scaled the workload to zero";
        (true, "ScaledToZero", message)
    } else {
        let message = "the HPA controller did not scale the workload to zero";
        (false, "NotScaledToZero", message)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn autoscaler(least: i32, metric: &str) -> HorizontalPodAutoscaler {
        let spec = json!({"minReplicas": least, "maxReplicas": 9, "metrics": [{"type": metric}],
            "scaleTargetRef": {"kind": "Deployment", "name": "d"}});
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
    }

    #[test]
    fn only_who_put_it_to_sleep_wakes_it() {
        let status = |value: &str| -> HorizontalPodAutoscalerStatus {
            let conditions = json!([{"type": CONDITION, "status": value}]);
            serde_json::from_value(json!({"desiredReplicas": 0, "conditions": conditions})).unwrap()
        };
        for (least, metric, asleep, expected) in [
            (0, "External", "True", true),
            (0, "Object", "True", true),
            (0, "External", "False", false),
            (0, "Resource", "True", false),
            (1, "Resource", "True", true),
            (1, "External", "False", false),
        ] {
            let found = may_wake(&autoscaler(least, metric), &status(asleep));
            assert_eq!(found, expected, "{least} {metric} {asleep}");
        }
        let awake = HorizontalPodAutoscalerStatus::default();
        assert!(!may_wake(&autoscaler(0, "External"), &awake));
    }

    #[test]
    fn a_change_to_zero_is_remembered() {
        for (least, metric, from, to, expected) in [
            (0, "External", 2, 0, true),
            (0, "External", 0, 2, false),
            (0, "External", 2, 1, false),
            (0, "Resource", 2, 0, false),
            (1, "External", 2, 0, false),
        ] {
            let (asleep, reason, _) = verdict(&autoscaler(least, metric), from, to);
            assert_eq!(asleep, expected, "{least} {metric} {from} {to}");
            assert_eq!(reason == "ScaledToZero", asleep);
        }
    }
}
