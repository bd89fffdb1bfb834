//! Pods, and the pod specs inside other kinds.

mod containers;
mod defaults;
mod names;
pub(crate) mod placement;
mod row;
mod security;
mod spec;
mod sysctls;
mod told;
mod update;
mod volumes;
mod warnings;

use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::{Map, Value};

pub(crate) use containers::validate_resources;
pub(crate) use defaults::default_spec;
pub(crate) use spec::{validate_template, validate_tolerations};
pub(crate) use warnings::spec_warnings;

use crate::strategy::{Ctx, Strategy};

/// Rules of Pods.
pub(crate) struct Pod;

impl Strategy for Pod {
    fn default(&self, pod: &mut Value) {
        if let Some(spec) = pod.get_mut("spec") {
            default_spec(spec);
        }
        defaults::default_pod(pod);
    }

    fn prepare_create(&self, pod: &mut Value, _ctx: &Ctx<'_>) {
        let class = qos_class(pod);
        meta::set(
            pod,
            &["status"],
            serde_json::json!({"phase": "Pending", "qosClass": class}),
        );
        meta::remove(pod, &["spec", "ephemeralContainers"]);
        if !meta::list_at(pod, &["spec", "schedulingGates"]).is_empty() {
            let gated = serde_json::json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates"});
            meta::set(pod, &["status", "conditions"], Value::Array(vec![gated]));
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, _ctx: &Ctx<'_>) {
        // Ephemeral containers are added through their own subresource only.
        match meta::get(old, &["spec", "ephemeralContainers"]) {
            Some(list) => meta::set(new, &["spec", "ephemeralContainers"], list.clone()),
            None => {
                meta::remove(new, &["spec", "ephemeralContainers"]);
            }
        }
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value, _ctx: &Ctx<'_>) {
        if meta::get(new, &["status", "qosClass"]).is_none()
            && let Some(class) = meta::get(old, &["status", "qosClass"])
        {
            meta::set(new, &["status", "qosClass"], class.clone());
        }
    }

    fn validate(&self, pod: &Value) -> Vec<FieldError> {
        let empty = Value::Object(Map::new());
        let mut errors = spec::validate_spec(pod.get("spec").unwrap_or(&empty), "spec");
        errors.extend(volumes::own_claims(pod));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        update::validate(new, old)
    }

    fn delete_grace(&self, pod: &Value) -> Option<i64> {
        // A pod that is on no node, or has ended, has nothing to shut down.
        let phase = meta::str_at(pod, &["status", "phase"]);
        if meta::str_at(pod, &["spec", "nodeName"]).is_empty()
            || matches!(phase, "Succeeded" | "Failed")
        {
            return Some(0);
        }
        let seconds = meta::int_at(pod, &["spec", "terminationGracePeriodSeconds"]).unwrap_or(30);
        Some(if seconds < 0 { 1 } else { seconds })
    }

    fn warnings(&self, pod: &Value) -> Vec<String> {
        spec_warnings(pod.get("spec").unwrap_or(&Value::Null), "spec")
    }

    fn row(&self, pod: &Value, now: Timestamp) -> Option<Vec<Value>> {
        Some(row::row(pod, now))
    }

    fn field_labels(&self) -> crate::simple::FieldLabels {
        &[
            ("spec.nodeName", &["spec", "nodeName"]),
            ("spec.restartPolicy", &["spec", "restartPolicy"]),
            ("spec.schedulerName", &["spec", "schedulerName"]),
            ("spec.serviceAccountName", &["spec", "serviceAccountName"]),
            ("spec.hostNetwork", &["spec", "hostNetwork"]),
            ("status.phase", &["status", "phase"]),
            ("status.podIP", &["status", "podIP"]),
            ("status.podIPs", &["status", "podIP"]),
            ("status.nominatedNodeName", &["status", "nominatedNodeName"]),
        ]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// The quality-of-service class that the requests and limits of a pod amount to: `Guaranteed` when every
/// container's CPU and memory limits equal its requests, `BestEffort` when there are neither, else `Burstable`.
pub fn qos_class(pod: &Value) -> &'static str {
    let set = |c: &Value, what: &str, name: &str| {
        crate::check::quantity(c, &["resources", what, name]).filter(|q| !q.is_zero())
    };
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    if let Some(resources) = spec
        .get("resources")
        .filter(|r| r.as_object().is_some_and(|m| !m.is_empty()))
    {
        let whole = serde_json::json!({"resources": resources});
        return class_of(&[&whole], set);
    }
    let containers: Vec<&Value> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| meta::list_at(spec, &[list]))
        .collect();
    class_of(&containers, set)
}

fn class_of(
    containers: &[&Value],
    set: impl Fn(&Value, &str, &str) -> Option<api::Quantity>,
) -> &'static str {
    let names = ["cpu", "memory"];
    let any = containers.iter().any(|c| {
        names
            .iter()
            .any(|n| set(c, "requests", n).is_some() || set(c, "limits", n).is_some())
    });
    if !any {
        return "BestEffort";
    }
    let tight = |c: &&Value| {
        names.iter().all(|n| {
            let limit = set(c, "limits", n);
            limit.is_some() && set(c, "requests", n).or(limit) == limit
        })
    };
    if containers.iter().all(tight) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quality_of_service() {
        let pod = |r: Value| json!({"spec": {"containers": [{"resources": r}]}});
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "0"}}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}}),
                "Guaranteed",
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}),
                "Burstable",
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}),
                "Guaranteed",
            ),
            (json!({"limits": {"cpu": "1"}}), "Burstable"),
        ] {
            assert_eq!(qos_class(&pod(resources.clone())), class, "{resources}");
        }
    }
}
