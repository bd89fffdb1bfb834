//! Nodes.

mod rules;

use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::Value;

use crate::cells::{age, condition, or, text};
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
        one_range(node);
    }

    fn prepare_create(&self, node: &mut Value, _ctx: &Ctx<'_>) {
        for (part, field) in OF_OLD {
            meta::remove(node, &[part, field]);
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, _ctx: &Ctx<'_>) {
        drop_unless_used(new, old, ["spec", "configSource"]);
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value, _ctx: &Ctx<'_>) {
        drop_unless_used(new, old, ["status", "config"]);
    }

    fn validate(&self, node: &Value) -> Vec<FieldError> {
        let mut errors = rules::spec(node);
        errors.extend(rules::status(node));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        rules::change(new, old)
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        let mut errors = rules::status(new);
        errors.extend(rules::addresses(new));
        errors
    }

    fn warnings(&self, node: &Value) -> Vec<String> {
        let told = |(field, why): (&str, &str)| {
            let set = meta::get(node, &["spec", field]).is_some_and(|v| v != "");
            set.then(|| format!("spec.{field}: {why}"))
        };
        let unused = "this field is deprecated, and is unused by Kubernetes";
        let all = [
            ("configSource", "the feature is removed"),
            ("externalID", unused),
        ];
        all.into_iter().filter_map(told).collect()
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

/// The one range goes before the list of them, as the first of which it is shown.
fn one_range(node: &mut Value) {
    let one = meta::str_at(node, &["spec", "podCIDR"]).to_owned();
    let first = meta::list_at(node, &["spec", "podCIDRs"]).first().cloned();
    match first {
        Some(first) if one.is_empty() => meta::set(node, &["spec", "podCIDR"], first),
        Some(first) if first == *one => {}
        _ if one.is_empty() => {}
        _ => meta::set(node, &["spec", "podCIDRs"], vec![one].into()),
    }
}

/// What came from the server once: nobody can begin to use it.
const OF_OLD: [(&str, &str); 2] = [("spec", "configSource"), ("status", "config")];

fn drop_unless_used(new: &mut Value, old: &Value, path: [&str; 2]) {
    if meta::get(old, &path).is_none() {
        meta::remove(new, &path);
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
    fn the_range_and_the_list_of_them_say_the_same() {
        for (given, expected) in [
            (json!({}), json!({})),
            (
                json!({"podCIDR": "a"}),
                json!({"podCIDR": "a", "podCIDRs": ["a"]}),
            ),
            (
                json!({"podCIDRs": ["a", "b"]}),
                json!({"podCIDR": "a", "podCIDRs": ["a", "b"]}),
            ),
            (
                json!({"podCIDR": "c", "podCIDRs": ["a", "b"]}),
                json!({"podCIDR": "c", "podCIDRs": ["c"]}),
            ),
        ] {
            let mut node = json!({"spec": given});
            one_range(&mut node);
            assert_eq!(node["spec"], expected);
        }
    }

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
