//! Nodes.

use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::Value;

use crate::cells::{age, condition, or, text};
use crate::check::{named, one_of};
use crate::strategy::{Ctx, Strategy};

/// Rules of Nodes.
pub(crate) struct Node;

impl Strategy for Node {
    fn default(&self, node: &mut Value) {
        if meta::get(node, &["status", "allocatable"]).is_none()
            && let Some(capacity) = meta::get(node, &["status", "capacity"]).cloned()
        {
            meta::set(node, &["status", "allocatable"], capacity);
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, _ctx: &Ctx<'_>) {
        // Clients that know only one of the two do not clear the other.
        for field in ["podCIDR", "podCIDRs", "providerID"] {
            if meta::get(new, &["spec", field]).is_none()
                && let Some(value) = meta::get(old, &["spec", field])
            {
                meta::set(new, &["spec", field], value.clone());
            }
        }
    }

    fn validate(&self, node: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut seen = Vec::new();
        for (i, taint) in meta::list_at(node, &["spec", "taints"]).iter().enumerate() {
            let at = format!("spec.taints[{i}]");
            let (key, value, effect) = (
                meta::str_at(taint, &["key"]),
                meta::str_at(taint, &["value"]),
                meta::str_at(taint, &["effect"]),
            );
            errors.extend(named(
                api::names::qualified_name(key),
                &format!("{at}.key"),
                key,
            ));
            errors.extend(named(
                api::names::label_value(value),
                &format!("{at}.value"),
                value,
            ));
            errors.extend(one_of(
                effect,
                format!("{at}.effect"),
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            ));
            if seen.contains(&(key, effect)) {
                let mut error = FieldError::duplicate(&at, taint.clone());
                error.detail = "taints must be unique by key and effect pair".to_owned();
                errors.push(error);
            }
            seen.push((key, effect));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for field in ["podCIDR", "providerID"] {
            let (is, was) = (
                meta::str_at(new, &["spec", field]),
                meta::str_at(old, &["spec", field]),
            );
            if !was.is_empty() && is != was {
                errors.push(FieldError::forbidden(
                    format!("spec.{field}"),
                    format!("node updates may not change {field} except from \"\" to valid"),
                ));
            }
        }
        errors
    }

    fn row(&self, node: &Value, now: Timestamp) -> Option<Vec<Value>> {
        let info = |field: &str| or(text(node, &["status", "nodeInfo", field]), "<unknown>");
        Some(vec![
            meta::name(node).into(),
            status(node).into(),
            or(roles(node).join(","), "<none>").into(),
            age(node, now).into(),
            text(node, &["status", "nodeInfo", "kubeletVersion"]).into(),
            address(node, "InternalIP").into(),
            address(node, "ExternalIP").into(),
            info("osImage").into(),
            info("kernelVersion").into(),
            info("containerRuntimeVersion").into(),
        ])
    }

    fn field_labels(&self) -> crate::simple::FieldLabels {
        &[("spec.unschedulable", &["spec", "unschedulable"])]
    }

    fn keeps_status_on_create(&self) -> bool {
        true
    }
}

fn status(node: &Value) -> String {
    let ready = match condition(node, "Ready").map(|c| meta::str_at(c, &["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let paused = if meta::bool_at(node, &["spec", "unschedulable"]) {
        ",SchedulingDisabled"
    } else {
        ""
    };
    format!("{ready}{paused}")
}

fn roles(node: &Value) -> Vec<String> {
    let labels = meta::get(node, &["metadata", "labels"])
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let mut out: Vec<String> = labels
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) if !role.is_empty() => Some(role.to_owned()),
                _ if key == "kubernetes.io/role" => {
                    value.as_str().filter(|v| !v.is_empty()).map(str::to_owned)
                }
                _ => None,
            },
        )
        .collect();
    out.sort();
    out.dedup();
    out
}

fn address(node: &Value, kind: &str) -> String {
    let list = meta::list_at(node, &["status", "addresses"]);
    list.iter()
        .find(|a| meta::str_at(a, &["type"]) == kind)
        .map_or_else(|| "<none>".to_owned(), |a| text(a, &["address"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows() {
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let node = json!({"metadata": {"name": "n", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "db"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.37.0", "osImage": "Debian"}}});
        let row = Node.row(&node, now).unwrap();
        let want = json!([
            "n",
            "Ready,SchedulingDisabled",
            "control-plane,db",
            "60s",
            "v1.37.0",
            "10.0.0.1",
            "<none>",
            "Debian",
            "<unknown>",
            "<unknown>"
        ]);
        assert_eq!(Value::Array(row), want);
    }
}
