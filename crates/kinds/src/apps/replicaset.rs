//! ReplicaSets and their elder, ReplicationControllers; ControllerRevisions.

use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::Value;

use super::{Counts, default_template, selector_and_template, validate_lasting_template};
use crate::cells::Cell;
use crate::check::{immutable, not_negative};
use crate::simple::Simple;

const TEMPLATE: &[&str] = &["spec", "template", "spec"];

const COUNTS: Counts = Counts {
    all: &[
        "replicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "observedGeneration",
    ],
    bounded: &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
    available: "cannot be greater than readyReplicas",
};

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
        errors.extend(selector_and_template(
            spec,
            "deployment",
            "invalid label selector",
            || validate_lasting_template(spec, "ReplicaSet"),
        ));
        errors
    },
    validate_update: |new, old| {
        immutable(new, old, &["spec", "selector"])
            .into_iter()
            .collect()
    },
    validate_status: |new, old| COUNTS.validate(new, old),
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
    validate_status: |new, old| COUNTS.validate(new, old),
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
    validate: |obj| {
        let missing = obj.get("data").is_none_or(Value::is_null);
        let missing = missing.then(|| FieldError::required("data", "data is mandatory"));
        let counts = not_negative(obj, "", &["revision"]);
        missing.into_iter().chain(counts).collect()
    },
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
    let mut errors = not_negative(spec, "spec", &["minReadySeconds"]);
    let selector = spec.get("selector").and_then(Value::as_object);
    if selector.is_none_or(serde_json::Map::is_empty) {
        errors.push(FieldError::required("spec.selector", ""));
    }
    errors.extend(not_negative(spec, "spec", &["replicas"]));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_rules, assert_updates};
    use serde_json::json;

    #[test]
    fn controllers_select_their_template() {
        let pod = json!({"restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "containers": [{"name": "c", "image": "i:1", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]});
        let controller = json!({"spec": {"replicas": 1, "selector": {"a": "b"},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}}});
        assert_rules(
            &controller,
            validate_controller,
            &[
                (
                    json!({"/spec/minReadySeconds": -1, "/spec/selector": {}, "/spec/replicas": -1}),
                    &[
                        "spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0",
                        "spec.selector: Required value",
                        "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                    ],
                ),
                (
                    json!({"/spec/template": null}),
                    &["spec.template: Required value"],
                ),
                (
                    json!({"/spec/selector/a": "c"}),
                    &[
                        "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
                    ],
                ),
            ],
        );
    }

    #[test]
    fn revisions_keep_their_data() {
        let revision = json!({"data": {"spec": {}}, "revision": 1});
        assert_rules(
            &revision,
            REVISIONS.validate,
            &[(
                json!({"/data": null, "/revision": -1}),
                &[
                    "data: Required value: data is mandatory",
                    "revision: Invalid value: -1: must be greater than or equal to 0",
                ],
            )],
        );
        assert_updates(
            &revision,
            REVISIONS.validate_update,
            &[
                (json!({"/revision": 2}), &[]),
                (
                    json!({"/data": {}}),
                    &["data: Invalid value: {}: field is immutable"],
                ),
            ],
        );
    }

    #[test]
    fn statuses() {
        let old = json!({"status": {"replicas": 2}});
        assert_updates(
            &old,
            REPLICA_SETS.validate_status,
            &[(
                json!({"/status/fullyLabeledReplicas": 3, "/status/observedGeneration": -1}),
                &[
                    "status.observedGeneration: Invalid value: -1: must be greater than or equal to 0",
                    "status.fullyLabeledReplicas: Invalid value: 3: cannot be greater than status.replicas",
                ],
            )],
        );
    }
}
