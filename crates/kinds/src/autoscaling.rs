//! HorizontalPodAutoscalers: rules, the metrics cell, and the older version of the kind.

use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::{Map, Value, json};

use crate::cells::{Cell, or, text};
use crate::simple::Simple;

const CPU_TARGET: i64 = 80;
/// How many metrics the cell shows.
const SHOWN: usize = 2;

/// Rules of HorizontalPodAutoscalers.
pub(crate) static AUTOSCALERS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::With(|o, _| {
            format!(
                "{}/{}",
                text(o, &["spec", "scaleTargetRef", "kind"]),
                text(o, &["spec", "scaleTargetRef", "name"])
            )
            .into()
        }),
        Cell::With(metrics),
        Cell::TextOr(&["spec", "minReplicas"], "<unset>"),
        Cell::Int(&["spec", "maxReplicas"]),
        Cell::Int(&["status", "currentReplicas"]),
        Cell::Age,
    ],
    default,
    validate,
    ..Simple::BASE
};

fn default(obj: &mut Value) {
    if meta::str_at(obj, &["apiVersion"]) == "autoscaling/v1" || obj.get("spec").is_none() {
        return;
    }
    if meta::list_at(obj, &["spec", "metrics"]).is_empty() {
        let cpu = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": CPU_TARGET}}}]);
        meta::set(obj, &["spec", "metrics"], cpu);
    }
    if meta::get(obj, &["spec", "behavior"]).is_none() {
        return;
    }
    let policy =
        |kind: &str, value: i64| json!({"type": kind, "value": value, "periodSeconds": 15});
    let up = meta::object_at(obj, &["spec", "behavior", "scaleUp"]);
    up.entry("stabilizationWindowSeconds")
        .or_insert_with(|| json!(0));
    up.entry("selectPolicy").or_insert_with(|| json!("Max"));
    up.entry("policies")
        .or_insert_with(|| json!([policy("Pods", 4), policy("Percent", 100)]));
    let down = meta::object_at(obj, &["spec", "behavior", "scaleDown"]);
    down.entry("selectPolicy").or_insert_with(|| json!("Max"));
    down.entry("policies")
        .or_insert_with(|| json!([policy("Percent", 100)]));
}

fn validate(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (min, max) = (
        meta::int_at(obj, &["spec", "minReplicas"]).unwrap_or(1),
        meta::int_at(obj, &["spec", "maxReplicas"]).unwrap_or(0),
    );
    if min < 1 {
        errors.push(FieldError::invalid(
            "spec.minReplicas",
            min,
            "must be greater than or equal to 1",
        ));
    }
    if max < 1 {
        errors.push(FieldError::invalid(
            "spec.maxReplicas",
            max,
            "must be greater than 0",
        ));
    }
    if max < min {
        errors.push(FieldError::invalid(
            "spec.maxReplicas",
            max,
            "must be greater than or equal to `minReplicas`",
        ));
    }
    for field in ["kind", "name"] {
        if meta::str_at(obj, &["spec", "scaleTargetRef", field]).is_empty() {
            errors.push(FieldError::required(
                format!("spec.scaleTargetRef.{field}"),
                "",
            ));
        }
    }
    errors
}

fn metrics(obj: &Value, _now: Timestamp) -> Value {
    if let Some(target) = meta::int_at(obj, &["spec", "targetCPUUtilizationPercentage"]) {
        let now = meta::int_at(obj, &["status", "currentCPUUtilizationPercentage"])
            .map_or_else(|| "<unknown>".to_owned(), |n| format!("{n}%"));
        return format!("cpu: {now}/{target}%").into();
    }
    let current = meta::list_at(obj, &["status", "currentMetrics"]);
    let specs = meta::list_at(obj, &["spec", "metrics"]);
    if specs.is_empty() {
        return "<none>".into();
    }
    let all: Vec<String> = specs
        .iter()
        .enumerate()
        .map(|(i, spec)| metric(spec, current.get(i)))
        .collect();
    let shown = all[..all.len().min(SHOWN)].join(", ");
    if all.len() > SHOWN {
        format!("{shown} + {} more...", all.len() - SHOWN)
    } else {
        shown
    }
    .into()
}

fn metric(spec: &Value, current: Option<&Value>) -> String {
    let kind = meta::str_at(spec, &["type"]);
    let field = match kind {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let unknown = |t: String| or(t, "<unknown>");
    let now = |name: &str| {
        current
            .map(|c| text(c, &[field, "current", name]))
            .unwrap_or_default()
    };
    let target = |name: &str| text(spec, &[field, "target", name]);
    let prefix = if matches!(kind, "Resource" | "ContainerResource") {
        format!("{}: ", text(spec, &[field, "name"]))
    } else {
        String::new()
    };
    if !target("averageValue").is_empty() {
        let average = if matches!(kind, "External" | "Object") {
            " (avg)"
        } else {
            ""
        };
        return format!(
            "{prefix}{}/{}{average}",
            unknown(now("averageValue")),
            target("averageValue")
        );
    }
    if prefix.is_empty() {
        return format!("{}/{}", unknown(now("value")), target("value"));
    }
    let percent = now("averageUtilization");
    let percent = if percent.is_empty() {
        "<unknown>".to_owned()
    } else {
        format!("{percent}%")
    };
    format!(
        "{prefix}{percent}/{}%",
        or(target("averageUtilization"), "<auto>")
    )
}

/// From v2, the stored version, to v1 or back. What v1 cannot say is kept in annotations upstream; here only the
/// CPU target survives the way through v1.
pub(crate) fn convert(obj: &mut Value, to_v1: bool) {
    let Some(mut spec) = meta::remove(obj, &["spec"]) else {
        return;
    };
    if to_v1 {
        let is_cpu = |m: &&Value| meta::str_at(m, &["resource", "name"]) == "cpu";
        let target = meta::list_at(&spec, &["metrics"])
            .iter()
            .find(is_cpu)
            .and_then(|m| meta::get(m, &["resource", "target", "averageUtilization"]).cloned());
        meta::remove(&mut spec, &["metrics"]);
        meta::remove(&mut spec, &["behavior"]);
        if let Some(target) = target {
            meta::set(&mut spec, &["targetCPUUtilizationPercentage"], target);
        }
        let metrics = meta::remove(obj, &["status", "currentMetrics"]).unwrap_or_default();
        let now = metrics
            .as_array()
            .into_iter()
            .flatten()
            .find(is_cpu)
            .and_then(|m| meta::get(m, &["resource", "current", "averageUtilization"]).cloned());
        if let Some(now) = now {
            meta::set(obj, &["status", "currentCPUUtilizationPercentage"], now);
        }
        meta::remove(obj, &["status", "conditions"]);
    } else {
        if let Some(target) = meta::remove(&mut spec, &["targetCPUUtilizationPercentage"]) {
            let metric = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": target}}}]);
            meta::set(&mut spec, &["metrics"], metric);
        }
        if let Some(now) = meta::remove(obj, &["status", "currentCPUUtilizationPercentage"]) {
            let metric = json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": now}}}]);
            meta::set(obj, &["status", "currentMetrics"], metric);
        }
    }
    let mut rest: Map<String, Value> = Map::new();
    rest.insert("spec".to_owned(), spec);
    if let Some(map) = obj.as_object_mut() {
        map.extend(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_cell() {
        let mut hpa = json!({"apiVersion": "autoscaling/v2", "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}});
        default(&mut hpa);
        assert_eq!(metrics(&hpa, Timestamp::UNIX_EPOCH), "cpu: <unknown>/80%");
        hpa["status"] = json!({"currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 12, "averageValue": "1m"}}}]});
        assert_eq!(metrics(&hpa, Timestamp::UNIX_EPOCH), "cpu: 12%/80%");
        assert!(validate(&hpa).is_empty());
        convert(&mut hpa, true);
        assert_eq!(hpa["spec"]["targetCPUUtilizationPercentage"], 80);
        assert_eq!(metrics(&hpa, Timestamp::UNIX_EPOCH), "cpu: 12%/80%");
        convert(&mut hpa, false);
        assert_eq!(
            hpa["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
            80
        );
    }
}
