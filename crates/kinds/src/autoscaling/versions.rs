//! autoscaling/v1 of what is stored as v2. What v1 has no fields for is kept in annotations, which are no annotations of the
//! stored object: whoever reads and writes v1 loses nothing.

use api::meta;
use serde_json::{Map, Value, json};

pub(super) const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// Fields of a metric by their place in v2 and their name in v1. `target` and `Target` stand for `current` and `Current` in
/// what is measured.
type Fields = &'static [(&'static [&'static str], &'static str)];

const RESOURCE: Fields = &[
    (&["name"], "name"),
    (&["container"], "container"),
    (
        &["target", "averageUtilization"],
        "targetAverageUtilization",
    ),
    (&["target", "averageValue"], "targetAverageValue"),
];

/// Fields of each source of metrics.
const SOURCES: [(&str, Fields); 5] = [
    (
        "object",
        &[
            (&["describedObject"], "target"),
            (&["metric", "name"], "metricName"),
            (&["metric", "selector"], "selector"),
            (&["target", "value"], "targetValue"),
            (&["target", "averageValue"], "averageValue"),
        ],
    ),
    (
        "pods",
        &[
            (&["metric", "name"], "metricName"),
            (&["metric", "selector"], "selector"),
            (&["target", "averageValue"], "targetAverageValue"),
        ],
    ),
    ("resource", RESOURCE),
    ("containerResource", RESOURCE),
    (
        "external",
        &[
            (&["metric", "name"], "metricName"),
            (&["metric", "selector"], "metricSelector"),
            (&["target", "value"], "targetValue"),
            (&["target", "averageValue"], "targetAverageValue"),
        ],
    ),
];

/// From v2, the stored version, to v1 or back.
pub(crate) fn convert(obj: &mut Value, to_v1: bool) {
    if obj.get("spec").is_some() {
        if to_v1 { older(obj) } else { newer(obj) }
    }
}

/// What v1 wants where neither its field nor the annotation names a metric: this share of CPU.
pub(super) fn default_v1(obj: &mut Value, share: i64) {
    let noted = meta::str_at(obj, &["metadata", "annotations", METRICS]);
    let noted: Option<Vec<Value>> = serde_json::from_str(noted).ok();
    let at = ["spec", "targetCPUUtilizationPercentage"];
    if noted.is_none_or(|m| m.is_empty()) && meta::get(obj, &at).is_none() {
        meta::set(obj, &at, share.into());
    }
}

/// The share of CPU that a metric of v2 is about, which v1 has a field for.
fn cpu_share<'a>(metric: &'a Value, side: &str) -> Option<&'a Value> {
    let cpu = meta::str_at(metric, &["resource", "name"]) == "cpu";
    meta::get(metric, &["resource", side, "averageUtilization"]).filter(|_| cpu)
}

fn older(obj: &mut Value) {
    let metrics = meta::remove(obj, &["spec", "metrics"]).unwrap_or_default();
    let mut others = Vec::new();
    for metric in metrics.as_array().into_iter().flatten() {
        match cpu_share(metric, "target").cloned() {
            Some(share) => meta::set(obj, &["spec", "targetCPUUtilizationPercentage"], share),
            None => others.push(metric_to_v1(metric, false)),
        }
    }
    let mut notes = Vec::new();
    if !others.is_empty() {
        notes.push((METRICS, Value::Array(others)));
    }
    let current = meta::remove(obj, &["status", "currentMetrics"]).unwrap_or_default();
    let current = current.as_array().cloned().unwrap_or_default();
    if let Some(share) = current.iter().find_map(|m| cpu_share(m, "current")) {
        let at = ["status", "currentCPUUtilizationPercentage"];
        meta::set(obj, &at, share.clone());
    }
    if !current.is_empty() {
        let all = current.iter().map(|m| metric_to_v1(m, true)).collect();
        notes.push((CURRENT, Value::Array(all)));
    }
    let conditions = meta::remove(obj, &["status", "conditions"]);
    notes.extend(conditions.map(|c| (CONDITIONS, c)));
    let behavior = meta::remove(obj, &["spec", "behavior"]);
    notes.extend(behavior.map(|b| (BEHAVIOR, capitals(&b))));
    for (key, value) in notes {
        let at = ["metadata", "annotations", key];
        meta::set(obj, &at, value.to_string().into());
    }
}

fn newer(obj: &mut Value) {
    let mut note = |key: &str| {
        let text = meta::remove(obj, &["metadata", "annotations", key])?;
        let value = serde_json::from_str::<Value>(text.as_str()?).ok();
        value.filter(|v| !v.is_null())
    };
    let [others, current, conditions, behavior] =
        [METRICS, CURRENT, CONDITIONS, BEHAVIOR].map(&mut note);
    if meta::get(obj, &["metadata", "annotations"]).is_some_and(|a| a == &json!({})) {
        meta::remove(obj, &["metadata", "annotations"]);
    }
    let cpu = meta::remove(obj, &["spec", "targetCPUUtilizationPercentage"]);
    let cpu = cpu.map(|share| json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": share}}}));
    let others = others.as_ref().and_then(Value::as_array);
    let others = others
        .into_iter()
        .flatten()
        .map(|m| metric_from_v1(m, false));
    let metrics: Vec<Value> = cpu.into_iter().chain(others).collect();
    if !metrics.is_empty() {
        meta::set(obj, &["spec", "metrics"], metrics.into());
    }
    if let Some(behavior) = behavior {
        meta::set(obj, &["spec", "behavior"], small_letters(&behavior));
    }
    let share = meta::remove(obj, &["status", "currentCPUUtilizationPercentage"]);
    let current = match (current.as_ref().and_then(Value::as_array), share) {
        (Some(all), _) => all.iter().map(|m| metric_from_v1(m, true)).collect(),
        (None, Some(share)) => {
            vec![
                json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": share}}}),
            ]
        }
        (None, None) => Vec::new(),
    };
    if !current.is_empty() {
        meta::set(obj, &["status", "currentMetrics"], current.into());
    }
    if let Some(conditions) = conditions {
        meta::set(obj, &["status", "conditions"], conditions);
    }
}

/// The names of a field in both versions, for a wish or for what is measured.
fn spelt(path: &[&'static str], name: &str, measured: bool) -> (Vec<&'static str>, String) {
    if !measured {
        return (path.to_vec(), name.to_owned());
    }
    let current = |step: &&'static str| match *step {
        "target" => "current",
        other => other,
    };
    let name = match name.strip_prefix("target") {
        Some(rest) if !rest.is_empty() => format!("current{rest}"),
        _ => name.to_owned(),
    };
    (path.iter().map(current).collect(), name)
}

fn metric_to_v1(metric: &Value, measured: bool) -> Value {
    let mut out = json!({"type": metric.get("type")});
    for (source, fields) in SOURCES {
        let Some(from) = metric.get(source) else {
            continue;
        };
        let mut to = Map::new();
        for (path, name) in fields {
            let (path, name) = spelt(path, name, measured);
            if let Some(value) = meta::get(from, &path) {
                to.insert(name, value.clone());
            }
        }
        out[source] = Value::Object(to);
    }
    out
}

fn metric_from_v1(metric: &Value, measured: bool) -> Value {
    let mut out = json!({"type": metric.get("type")});
    for (source, fields) in SOURCES {
        let Some(from) = metric.get(source) else {
            continue;
        };
        let mut to = json!({});
        for (path, name) in fields {
            let (path, name) = spelt(path, name, measured);
            if let Some(value) = from.get(&name).filter(|v| !v.is_null()) {
                meta::set(&mut to, &path, value.clone());
            }
        }
        if !measured {
            let has = |field: &str| meta::get(&to, &["target", field]).is_some();
            let kind = match source {
                "pods" => "AverageValue",
                "object" if has("averageValue") => "AverageValue",
                "external" if !has("value") => "AverageValue",
                "object" | "external" => "Value",
                _ if has("averageUtilization") => "Utilization",
                _ => "AverageValue",
            };
            meta::set(&mut to, &["target", "type"], kind.into());
        }
        out[source] = to;
    }
    out
}

/// The annotation of the behavior has upstream's internal names of fields.
fn capitals(value: &Value) -> Value {
    renamed(value, |c| c.to_ascii_uppercase())
}

fn small_letters(value: &Value) -> Value {
    renamed(value, |c| c.to_ascii_lowercase())
}

fn renamed(value: &Value, turn: fn(&char) -> char) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(key, v)| {
                let mut letters = key.chars();
                let first: String = letters.next().iter().map(turn).collect();
                (first + letters.as_str(), renamed(v, turn))
            })
            .collect(),
        Value::Array(items) => items.iter().map(|v| renamed(v, turn)).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_on_the_way_through_v1() {
        let selector = json!({"matchLabels": {"a": "b"}});
        let metrics = json!([
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}},
            {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
            {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c", "target": {"type": "Utilization", "averageUtilization": 5}}},
            {"type": "Pods", "pods": {"metric": {"name": "m", "selector": selector}, "target": {"type": "AverageValue", "averageValue": "5"}}},
            {"type": "Object", "object": {"describedObject": {"kind": "Ingress", "name": "i"}, "metric": {"name": "m"}, "target": {"type": "Value", "value": "5"}}},
            {"type": "External", "external": {"metric": {"name": "m", "selector": selector}, "target": {"type": "AverageValue", "averageValue": "5"}}}]);
        let current = json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 12, "averageValue": "1m"}}}]);
        let behavior = json!({"scaleUp": {"selectPolicy": "Max", "stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}});
        let conditions = json!([{"type": "AbleToScale", "status": "True"}]);
        let stored = json!({"metadata": {"name": "h", "annotations": {"own": "1"}},
            "spec": {"maxReplicas": 3, "metrics": metrics, "behavior": behavior},
            "status": {"currentMetrics": current, "conditions": conditions}});
        let mut obj = stored.clone();
        convert(&mut obj, true);
        assert_eq!(
            obj["spec"],
            json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 80})
        );
        assert_eq!(
            obj["status"],
            json!({"currentCPUUtilizationPercentage": 12})
        );
        let notes = &obj["metadata"]["annotations"];
        assert_eq!(
            notes[BEHAVIOR],
            json!({"ScaleUp": {"SelectPolicy": "Max", "StabilizationWindowSeconds": 0, "Policies": [{"Type": "Pods", "Value": 4, "PeriodSeconds": 15}]}}).to_string()
        );
        let others: Value = serde_json::from_str(notes[METRICS].as_str().unwrap()).unwrap();
        assert_eq!(
            others[0],
            json!({"type": "Resource", "resource": {"name": "memory", "targetAverageValue": "1Gi"}})
        );
        assert_eq!(
            others[3],
            json!({"type": "Object", "object": {"target": {"kind": "Ingress", "name": "i"}, "metricName": "m", "targetValue": "5"}})
        );
        let shown: Value = serde_json::from_str(notes[CURRENT].as_str().unwrap()).unwrap();
        assert_eq!(
            shown,
            json!([{"type": "Resource", "resource": {"name": "cpu", "currentAverageUtilization": 12, "currentAverageValue": "1m"}}])
        );
        convert(&mut obj, false);
        assert_eq!(obj, stored);
    }

    #[test]
    fn notes_that_are_none_are_dropped() {
        let mut obj = json!({"metadata": {"annotations": {METRICS: "{", BEHAVIOR: "null"}}, "spec": {"targetCPUUtilizationPercentage": 5}});
        convert(&mut obj, false);
        assert_eq!(obj["metadata"], json!({}));
        assert_eq!(
            obj["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
            5
        );
    }
}
