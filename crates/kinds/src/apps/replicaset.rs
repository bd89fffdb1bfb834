//! ReplicaSets and their elder, ReplicationControllers; ControllerRevisions.

use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::Value;

use super::{default_template, validate_lasting_template};
use crate::cells::Cell;
use crate::check::{immutable, not_negative, workload_selector};
use crate::metadata::validate_labels;
use crate::simple::Simple;

const TEMPLATE: &[&str] = &["spec", "template", "spec"];

/// Rules of ReplicaSets.
pub(crate) static REPLICA_SETS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Int(&["spec", "replicas"]),
        Cell::Int(&["status", "replicas"]),
        Cell::Int(&["status", "readyReplicas"]),
        Cell::Age,
        Cell::Containers(TEMPLATE),
        Cell::Images(TEMPLATE),
        Cell::Selector(&["spec", "selector"]),
    ],
    labels: &[("status.replicas", &["status", "replicas"])],
    generation: true,
    warnings: super::template_warnings,
    default: |obj| default_template(obj, &["spec", "template"]),
    validate: |obj| {
        let spec = obj.get("spec").unwrap_or(&Value::Null);
        let mut errors = not_negative(spec, "spec", &["replicas", "minReadySeconds"]);
        errors.extend(workload_selector(spec, "deployment"));
        errors.extend(validate_lasting_template(spec, "ReplicaSet"));
        errors
    },
    validate_update: |new, old| {
        immutable(new, old, &["spec", "selector"])
            .into_iter()
            .collect()
    },
    ..Simple::BASE
};

/// Rules of ReplicationControllers.
pub(crate) static REPLICATION_CONTROLLERS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Int(&["spec", "replicas"]),
        Cell::Int(&["status", "replicas"]),
        Cell::Int(&["status", "readyReplicas"]),
        Cell::Age,
        Cell::Containers(TEMPLATE),
        Cell::Images(TEMPLATE),
        Cell::Labels(&["spec", "selector"]),
    ],
    labels: &[("status.replicas", &["status", "replicas"])],
    generation: true,
    warnings: super::template_warnings,
    default: default_controller,
    validate: validate_controller,
    ..Simple::BASE
};

/// Rules of ControllerRevisions.
pub(crate) static REVISIONS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::With(owner),
        Cell::Text(&["revision"]),
        Cell::Age,
    ],
    validate: |obj| not_negative(obj, "", &["revision"]),
    validate_update: |new, old| immutable(new, old, &["data"]).into_iter().collect(),
    ..Simple::BASE
};

fn owner(obj: &Value, _now: Timestamp) -> Value {
    let Some(owner) = meta::controller_of(obj) else {
        return "<none>".into();
    };
    let (group, _) = meta::split_api_version(meta::str_at(owner, &["apiVersion"]));
    let kind = meta::str_at(owner, &["kind"]).to_lowercase();
    let qualified = if group.is_empty() {
        kind
    } else {
        format!("{kind}.{group}")
    };
    format!("{qualified}/{}", meta::str_at(owner, &["name"])).into()
}

fn default_controller(obj: &mut Value) {
    default_template(obj, &["spec", "template"]);
    let Some(labels) = meta::get(obj, &["spec", "template", "metadata", "labels"]).cloned() else {
        return;
    };
    for path in [&["spec", "selector"][..], &["metadata", "labels"][..]] {
        if meta::get(obj, path)
            .and_then(Value::as_object)
            .is_none_or(serde_json::Map::is_empty)
        {
            meta::set(obj, path, labels.clone());
        }
    }
}

fn validate_controller(obj: &Value) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let mut errors = not_negative(spec, "spec", &["replicas", "minReadySeconds"]);
    errors.extend(validate_labels(spec.get("selector"), "spec.selector"));
    let selector = spec.get("selector").and_then(Value::as_object);
    if selector.is_none_or(serde_json::Map::is_empty) {
        errors.push(FieldError::required("spec.selector", ""));
    }
    let Some(template) = spec.get("template") else {
        errors.push(FieldError::required("spec.template", ""));
        return errors;
    };
    let labels = meta::get(template, &["metadata", "labels"]);
    let mut wanted = selector.into_iter().flatten();
    if !wanted.all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v)) {
        errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            labels.cloned().unwrap_or_default(),
            "`selector` does not match template `labels`",
        ));
    }
    errors.extend(validate_lasting_template(spec, "ReplicationController"));
    errors
}
