//! HorizontalPodAutoscalers: rules, the metrics cell, and the older version of the kind.

mod validate;
mod versions;

use api::meta;
use api::time::Timestamp;
use serde_json::{Value, json};

use crate::cells::{Cell, or, text};
use crate::simple::Simple;
use validate::validate;
pub(crate) use versions::convert;

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
    generation: true,
    validate,
    validate_status: |new, _| {
        let status = new.get("status").unwrap_or(&Value::Null);
        let counts = ["currentReplicas", "desiredReplicas"];
        crate::check::not_negative(status, "status", &counts)
    },
    ..Simple::BASE
};

fn default(obj: &mut Value) {
    if obj.get("spec").is_none() {
        return;
    }
    if meta::str_at(obj, &["apiVersion"]) == "autoscaling/v1" {
        versions::default_v1(obj, CPU_TARGET);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_without_metrics_is_about_cpu() {
        let spec = json!({"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}});
        let mut hpa = json!({"apiVersion": "autoscaling/v1", "spec": spec});
        let bare = hpa.clone();
        default(&mut hpa);
        assert_eq!(hpa["spec"]["targetCPUUtilizationPercentage"], 80);
        for (path, value) in [
            (&["spec", "targetCPUUtilizationPercentage"][..], json!(5)),
            (
                &["metadata", "annotations", versions::METRICS],
                json!(r#"[{"type": "Resource", "resource": {"name": "memory"}}]"#),
            ),
        ] {
            let mut hpa = bare.clone();
            meta::set(&mut hpa, path, value);
            let asked = hpa.clone();
            default(&mut hpa);
            assert_eq!(hpa, asked);
        }
    }

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
