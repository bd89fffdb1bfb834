//! Events, as the core group and events.k8s.io show them: one kind under two names.

use api::meta;
use api::time::Timestamp;
use serde_json::Value;

use crate::cells::{or, since, text};
use crate::simple::FieldLabels;
use crate::strategy::Strategy;

/// Rules of Events of both groups.
pub(crate) struct Event;

impl Strategy for Event {
    fn row(&self, event: &Value, now: Timestamp) -> Option<Vec<Value>> {
        // The two groups name the same things differently.
        let either = |old: &[&str], new: &[&str]| or(text(event, old), &text(event, new));
        let time = |paths: [&[&str]; 2]| {
            paths
                .iter()
                .find(|p| !text(event, p).is_empty())
                .map(|p| since(event, p, now))
        };
        let first = time([&["firstTimestamp"], &["deprecatedFirstTimestamp"]])
            .unwrap_or_else(|| since(event, &["eventTime"], now));
        let mut last = time([&["lastTimestamp"], &["deprecatedLastTimestamp"]])
            .unwrap_or_else(|| first.clone());
        let mut count = meta::int_at(event, &["count"])
            .or(meta::int_at(event, &["deprecatedCount"]))
            .unwrap_or(0)
            .max(1);
        if event.get("series").is_some() {
            last = since(event, &["series", "lastObservedTime"], now);
            count = meta::int_at(event, &["series", "count"]).unwrap_or(count);
        }
        let object = event
            .get("involvedObject")
            .or_else(|| event.get("regarding"))
            .unwrap_or(&Value::Null);
        let kind = text(object, &["kind"]).to_lowercase();
        let name = text(object, &["name"]);
        Some(vec![
            last.into(),
            text(event, &["type"]).into(),
            text(event, &["reason"]).into(),
            if name.is_empty() {
                kind
            } else {
                format!("{kind}/{name}")
            }
            .into(),
            text(object, &["fieldPath"]).into(),
            source(event).into(),
            either(&["message"], &["note"]).trim().into(),
            first.into(),
            count.into(),
            meta::name(event).into(),
        ])
    }

    /// Both groups' names; what is stored is the core form.
    fn field_labels(&self) -> FieldLabels {
        &[
            ("involvedObject.kind", &["involvedObject", "kind"]),
            ("involvedObject.namespace", &["involvedObject", "namespace"]),
            ("involvedObject.name", &["involvedObject", "name"]),
            ("involvedObject.uid", &["involvedObject", "uid"]),
            (
                "involvedObject.apiVersion",
                &["involvedObject", "apiVersion"],
            ),
            (
                "involvedObject.resourceVersion",
                &["involvedObject", "resourceVersion"],
            ),
            ("involvedObject.fieldPath", &["involvedObject", "fieldPath"]),
            ("regarding.kind", &["involvedObject", "kind"]),
            ("regarding.namespace", &["involvedObject", "namespace"]),
            ("regarding.name", &["involvedObject", "name"]),
            ("regarding.uid", &["involvedObject", "uid"]),
            ("regarding.apiVersion", &["involvedObject", "apiVersion"]),
            (
                "regarding.resourceVersion",
                &["involvedObject", "resourceVersion"],
            ),
            ("regarding.fieldPath", &["involvedObject", "fieldPath"]),
            ("reason", &["reason"]),
            ("reportingComponent", &["reportingComponent"]),
            ("reportingController", &["reportingComponent"]),
            ("source", &["source", "component"]),
            ("type", &["type"]),
        ]
    }

    fn allows_create_on_update(&self) -> bool {
        true
    }
}

fn source(event: &Value) -> String {
    let pick = |paths: &[&[&str]]| paths.iter().map(|p| text(event, p)).find(|t| !t.is_empty());
    let component = pick(&[
        &["source", "component"],
        &["deprecatedSource", "component"],
        &["reportingComponent"],
        &["reportingController"],
    ]);
    let host = pick(&[
        &["source", "host"],
        &["deprecatedSource", "host"],
        &["reportingInstance"],
    ]);
    [component, host]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
}

/// Fields that differ between the two groups: core name, events.k8s.io name.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Renames the fields of an event for the given group.
pub(crate) fn convert(event: &mut Value, to_group: &str) {
    for (core, new) in RENAMED {
        let (from, to) = if to_group.is_empty() {
            (new, core)
        } else {
            (core, new)
        };
        if let Some(value) = meta::remove(event, &[from]) {
            meta::set(event, &[to], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_and_names() {
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        let core = json!({"metadata": {"name": "e"}, "type": "Normal", "reason": "Pulled", "message": " m\n", "involvedObject": {"kind": "Pod", "name": "p"},
            "source": {"component": "kubelet", "host": "n"}, "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:09:00Z", "count": 3});
        let want = json!([
            "60s",
            "Normal",
            "Pulled",
            "pod/p",
            "",
            "kubelet, n",
            "m",
            "10m",
            3,
            "e"
        ]);
        assert_eq!(Value::Array(Event.row(&core, now).unwrap()), want);
        let mut other = core.clone();
        convert(&mut other, "events.k8s.io");
        assert_eq!(other["regarding"]["name"], "p");
        assert_eq!(Value::Array(Event.row(&other, now).unwrap()), want);
        convert(&mut other, "");
        assert_eq!(other, core);
    }
}
