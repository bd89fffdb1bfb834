//! What a HorizontalPodAutoscaler must hold to.

use api::{FieldError, meta, names};
use serde_json::Value;

use crate::check::{NOT_NEGATIVE, named, one_of_if_set, quantity};
use crate::core::resources::container_resource;

/// Longest time that a recommendation may be waited for, in seconds.
const WINDOW_MAX: i64 = 3600;
/// Longest period of a policy, in seconds.
const PERIOD_MAX: i64 = 1800;
/// Types of metrics, sorted, and the fields that describe them.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

/// Every broken rule of an autoscaler of the stored version.
pub(super) fn validate(obj: &Value) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let mut errors = replicas(spec);
    let target = spec.get("scaleTargetRef").unwrap_or(&Value::Null);
    errors.extend(reference(target, "spec.scaleTargetRef"));
    for (i, metric) in meta::list_at(spec, &["metrics"]).iter().enumerate() {
        errors.extend(source(metric, &format!("spec.metrics[{i}]")));
    }
    if meta::int_at(spec, &["minReplicas"]) == Some(0) && !speaks_without_pods(spec) {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.push(FieldError::forbidden("spec.metrics", why));
    }
    for direction in ["scaleUp", "scaleDown"] {
        if let Some(rules) = meta::get(spec, &["behavior", direction]) {
            errors.extend(scaling(rules, &format!("spec.behavior.{direction}")));
        }
    }
    errors
}

fn replicas(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (min, max) = (
        meta::int_at(spec, &["minReplicas"]).unwrap_or(1),
        meta::int_at(spec, &["maxReplicas"]).unwrap_or(0),
    );
    let mut refuse = |field: &str, value: i64, why: &str| {
        errors.push(FieldError::invalid(format!("spec.{field}"), value, why));
    };
    if min < 0 {
        refuse("minReplicas", min, "must be greater than or equal to 0");
    }
    if max < 1 {
        refuse("maxReplicas", max, "must be greater than 0");
    }
    if max < min {
        let why = "must be greater than or equal to `minReplicas`";
        refuse("maxReplicas", max, why);
    }
    errors
}

/// Whether a metric can tell that pods are wanted while there are none.
fn speaks_without_pods(spec: &Value) -> bool {
    let kinds = meta::list_at(spec, &["metrics"]).iter();
    kinds
        .map(|metric| meta::str_at(metric, &["type"]))
        .any(|kind| matches!(kind, "Object" | "External"))
}

fn reference(target: &Value, at: &str) -> Vec<FieldError> {
    let part = |field: &str| {
        let (value, at) = (meta::str_at(target, &[field]), format!("{at}.{field}"));
        if value.is_empty() {
            vec![FieldError::required(at, "")]
        } else {
            named(names::path_segment(value), &at, value)
        }
    };
    ["kind", "name"].into_iter().flat_map(part).collect()
}

fn source(metric: &Value, at: &str) -> Vec<FieldError> {
    let kind = meta::str_at(metric, &["type"]);
    let mut errors = Vec::new();
    if kind.is_empty() {
        let why = "must specify a metric source type";
        errors.push(FieldError::required(format!("{at}.type"), why));
    }
    let known = SOURCES.iter().find(|(name, _)| *name == kind);
    if known.is_none() {
        let names = SOURCES.map(|(name, _)| name);
        errors.push(FieldError::not_supported(
            format!("{at}.type"),
            kind,
            &names,
        ));
    }
    let present = SOURCES
        .iter()
        .map(|(_, field)| *field)
        .filter(|field| metric.get(field).is_some());
    let present: Vec<&str> = present.collect();
    if let Some(first) = present.first() {
        errors.extend(described(&metric[*first], first, &format!("{at}.{first}")));
    }
    let wanted = known.map_or("", |(_, field)| *field);
    if !wanted.is_empty() && !present.contains(&wanted) {
        let why = "must populate information for the given metric source";
        errors.push(FieldError::required(format!("{at}.{wanted}"), why));
    }
    if present.len() > 1 {
        let others = present.iter().filter(|field| **field != wanted);
        errors.extend(others.map(|field| {
            let why = "must populate the given metric source only";
            FieldError::forbidden(format!("{at}.{field}"), why)
        }));
    }
    errors
}

/// One source of metrics, by the field that holds it.
fn described(source: &Value, field: &str, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if field == "object" {
        let object = source.get("describedObject").unwrap_or(&Value::Null);
        errors.extend(reference(object, &format!("{at}.describedObject")));
    }
    if matches!(field, "object" | "pods" | "external") {
        errors.extend(identifier(source, at));
    } else if meta::str_at(source, &["name"]).is_empty() {
        let why = "must specify a resource name";
        errors.push(FieldError::required(format!("{at}.name"), why));
    }
    if field == "containerResource" {
        let name = meta::str_at(source, &["name"]);
        if !name.is_empty() {
            errors.extend(container_resource(name, &format!("{at}.name")));
        }
        let (container, at) = (
            meta::str_at(source, &["container"]),
            format!("{at}.container"),
        );
        if container.is_empty() {
            errors.push(FieldError::required(at, "must specify a container"));
        } else {
            errors.extend(named(names::dns1123_label(container), &at, container));
        }
    }
    errors.extend(target(source, &format!("{at}.target")));
    let has = |name: &str| meta::get(source, &["target", name]).is_some();
    let missing = |name: &str, why: &str| FieldError::required(format!("{at}.target.{name}"), why);
    let both = |name: &str, why: &str| FieldError::forbidden(format!("{at}.target.{name}"), why);
    const EITHER: &str = "must set either a target value or averageValue";
    const PER_POD: &str = "must set either a target value for metric or a per-pod target";
    const NOT_BOTH: &str = "may not set both a target value for metric and a per-pod target";
    match field {
        "pods" if !has("averageValue") => {
            let why = "must specify a positive target averageValue";
            errors.push(missing("averageValue", why));
        }
        "pods" => {}
        "object" if !has("value") && !has("averageValue") => {
            errors.push(missing("averageValue", EITHER));
        }
        "object" => {}
        "external" => match (has("value"), has("averageValue")) {
            (false, false) => errors.push(missing("averageValue", PER_POD)),
            (true, true) => errors.push(both("value", NOT_BOTH)),
            _ => {}
        },
        _ => match (has("averageUtilization"), has("averageValue")) {
            (false, false) => {
                let why = "must set either a target raw value or a target utilization";
                errors.push(missing("averageUtilization", why));
            }
            (true, true) => {
                let why = "may not set both a target raw value and a target utilization";
                errors.push(both("averageValue", why));
            }
            _ => {}
        },
    }
    errors
}

fn identifier(source: &Value, at: &str) -> Vec<FieldError> {
    let (name, at) = (
        meta::str_at(source, &["metric", "name"]),
        format!("{at}.metric.name"),
    );
    if name.is_empty() {
        vec![FieldError::required(at, "must specify a metric name")]
    } else {
        named(names::path_segment(name), &at, name)
    }
}

fn target(source: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = meta::str_at(source, &["target", "type"]);
    let path = format!("{at}.type");
    match kind {
        "" => errors.push(FieldError::required(
            path,
            "must specify a metric target type",
        )),
        "Utilization" | "Value" | "AverageValue" => {}
        other => errors.push(FieldError::invalid(
            path,
            other,
            "must be either Utilization, Value, or AverageValue",
        )),
    }
    for field in ["value", "averageValue"] {
        let at = format!("{at}.{field}");
        let given = meta::get(source, &["target", field]);
        let amount = quantity(source, &["target", field]);
        if amount.is_some_and(|q| q.is_zero() || q.is_negative()) {
            let given = given.cloned().unwrap_or_default();
            errors.push(FieldError::invalid(at, given, "must be positive"));
        }
    }
    let share = meta::int_at(source, &["target", "averageUtilization"]);
    if let Some(share) = share.filter(|s| *s < 1) {
        let at = format!("{at}.averageUtilization");
        errors.push(FieldError::invalid(at, share, "must be greater than 0"));
    }
    errors
}

fn scaling(rules: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let window = meta::int_at(rules, &["stabilizationWindowSeconds"]);
    let path = format!("{at}.stabilizationWindowSeconds");
    match window {
        Some(n) if n < 0 => {
            let why = "must be greater than or equal to zero";
            errors.push(FieldError::invalid(path, n, why));
        }
        Some(n) if n > WINDOW_MAX => {
            let why = format!("must be less than or equal to {WINDOW_MAX}");
            errors.push(FieldError::invalid(path, n, why));
        }
        _ => {}
    }
    errors.extend(one_of_if_set(
        meta::str_at(rules, &["selectPolicy"]),
        format!("{at}.selectPolicy"),
        &["Disabled", "Max", "Min"],
    ));
    let policies = meta::list_at(rules, &["policies"]);
    if policies.is_empty() {
        let why = "must specify at least one Policy";
        errors.push(FieldError::required(format!("{at}.policies"), why));
    }
    for (i, policy) in policies.iter().enumerate() {
        errors.extend(self::policy(policy, &format!("{at}.policies[{i}]")));
    }
    if quantity(rules, &["tolerance"]).is_some_and(|q| q.is_negative()) {
        let given = rules.get("tolerance").cloned().unwrap_or_default();
        let at = format!("{at}.tolerance");
        errors.push(FieldError::invalid(at, given, NOT_NEGATIVE));
    }
    errors
}

fn policy(policy: &Value, at: &str) -> Vec<FieldError> {
    let (kind, kinds) = (meta::str_at(policy, &["type"]), &["Percent", "Pods"]);
    let mut errors = Vec::new();
    if !kinds.contains(&kind) {
        errors.push(FieldError::not_supported(format!("{at}.type"), kind, kinds));
    }
    for (field, max) in [("value", i64::MAX), ("periodSeconds", PERIOD_MAX)] {
        let n = meta::int_at(policy, &[field]).unwrap_or(0);
        let path = format!("{at}.{field}");
        if n <= 0 {
            errors.push(FieldError::invalid(path, n, "must be greater than zero"));
        } else if n > max {
            let why = format!("must be less than or equal to {max}");
            errors.push(FieldError::invalid(path, n, why));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(spec: Value) -> Vec<String> {
        let mut whole =
            json!({"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}});
        if let (Some(whole), Value::Object(spec)) = (whole.as_object_mut(), spec) {
            whole.extend(spec);
        }
        let all = validate(&json!({"spec": whole}));
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn replicas_and_targets() {
        assert_eq!(errors(json!({"minReplicas": 1})), [""; 0]);
        assert_eq!(
            errors(
                json!({"minReplicas": -1, "maxReplicas": -2, "scaleTargetRef": {"name": "a/b"}})
            ),
            [
                "spec.minReplicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.maxReplicas: Invalid value: -2: must be greater than 0",
                "spec.maxReplicas: Invalid value: -2: must be greater than or equal to `minReplicas`",
                "spec.scaleTargetRef.kind: Required value",
                "spec.scaleTargetRef.name: Invalid value: \"a/b\": may not contain '/'"
            ]
        );
    }

    #[test]
    fn no_replicas_need_a_metric_that_speaks_without_pods() {
        let of_pods = json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 50}}});
        let queue = json!({"type": "External", "external": {"metric": {"name": "q"},
            "target": {"type": "AverageValue", "averageValue": "5"}}});
        let refused = "spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to zero replicas";
        for (metrics, wanted) in [
            (json!([of_pods]), vec![refused]),
            (json!([of_pods, queue]), vec![]),
        ] {
            let found = errors(json!({"minReplicas": 0, "metrics": metrics}));
            assert_eq!(found, wanted, "{metrics}");
        }
    }

    #[test]
    fn metrics() {
        let at = "spec.metrics[0]";
        for (metric, wanted) in [
            (
                json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}),
                vec![],
            ),
            (
                json!({"type": "Odd"}),
                vec![
                    "type: Unsupported value: \"Odd\": supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\"",
                ],
            ),
            (
                json!({"type": "Pods"}),
                vec!["pods: Required value: must populate information for the given metric source"],
            ),
            (
                json!({"type": "Resource", "resource": {"target": {"type": "Utilization"}}, "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "0"}}}),
                vec![
                    "pods.target.averageValue: Invalid value: \"0\": must be positive",
                    "pods: Forbidden: must populate the given metric source only",
                ],
            ),
            (
                json!({"type": "Object", "object": {"describedObject": {"kind": "Ingress", "name": "i"}, "metric": {}, "target": {}}}),
                vec![
                    "object.metric.name: Required value: must specify a metric name",
                    "object.target.type: Required value: must specify a metric target type",
                    "object.target.averageValue: Required value: must set either a target value or averageValue",
                ],
            ),
            (
                json!({"type": "ContainerResource", "containerResource": {"name": "cpu", "target": {"type": "Odd", "averageUtilization": 0, "averageValue": "1"}}}),
                vec![
                    "containerResource.container: Required value: must specify a container",
                    "containerResource.target.type: Invalid value: \"Odd\": must be either Utilization, Value, or AverageValue",
                    "containerResource.target.averageUtilization: Invalid value: 0: must be greater than 0",
                    "containerResource.target.averageValue: Forbidden: may not set both a target raw value and a target utilization",
                ],
            ),
        ] {
            let wanted: Vec<String> = wanted.iter().map(|w| format!("{at}.{w}")).collect();
            assert_eq!(errors(json!({"metrics": [metric]})), wanted);
        }
    }

    #[test]
    fn behavior() {
        let rules = json!({"stabilizationWindowSeconds": 3601, "selectPolicy": "Any", "policies": [{"type": "Nodes", "value": 0, "periodSeconds": 1801}]});
        assert_eq!(
            errors(
                json!({"behavior": {"scaleUp": rules, "scaleDown": {"stabilizationWindowSeconds": -1}}})
            ),
            [
                "spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600",
                "spec.behavior.scaleUp.selectPolicy: Unsupported value: \"Any\": supported values: \"Disabled\", \"Max\", \"Min\"",
                "spec.behavior.scaleUp.policies[0].type: Unsupported value: \"Nodes\": supported values: \"Percent\", \"Pods\"",
                "spec.behavior.scaleUp.policies[0].value: Invalid value: 0: must be greater than zero",
                "spec.behavior.scaleUp.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800",
                "spec.behavior.scaleDown.stabilizationWindowSeconds: Invalid value: -1: must be greater than or equal to zero",
                "spec.behavior.scaleDown.policies: Required value: must specify at least one Policy"
            ]
        );
    }
}
