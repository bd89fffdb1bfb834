//! What a PersistentVolumeClaim, or the template of one, must hold to.

use api::{FieldError, meta, names, storage_class::ANNOTATION as CLASS_ANNOTATION};
use serde_json::{Value, json};

use super::{access_modes, basic, mode_stays, positive};
use crate::check::{IMMUTABLE, NOT_NEGATIVE, label_selector, named, one_of_if_set, quantity};
use crate::metadata::{validate_annotations, validate_labels};

const CLASS: [&str; 2] = ["spec", "storageClassName"];
const ATTRIBUTES: [&str; 2] = ["spec", "volumeAttributesClassName"];
const STORAGE: [&str; 4] = ["spec", "resources", "requests", "storage"];
const RESIZING: &[&str] = &[
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

/// Every broken rule of a claim's spec at a path.
pub(crate) fn validate(spec: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = |field: &str| format!("{at}.{field}");
    if meta::list_at(spec, &["accessModes"]).is_empty() {
        let why = "at least 1 access mode is required";
        errors.push(FieldError::required(path("accessModes"), why));
    }
    if let Some(selector) = spec.get("selector") {
        errors.extend(label_selector(selector, &path("selector")));
    }
    errors.extend(access_modes(spec, &path("accessModes")));
    let storage = path("resources[storage]");
    match quantity(spec, &["resources", "requests", "storage"]) {
        None => errors.push(FieldError::required(storage, "")),
        Some(amount) => errors.extend(positive(&amount, &storage)),
    }
    let mut classes = vec!["storageClassName"];
    errors.extend(class_names(spec, &classes, at));
    errors.extend(one_of_if_set(
        meta::str_at(spec, &["volumeMode"]),
        path("volumeMode"),
        &["Block", "Filesystem"],
    ));
    errors.extend(data_sources(spec, at));
    classes = vec!["volumeAttributesClassName"];
    errors.extend(class_names(spec, &classes, at));
    errors
}

fn class_names(spec: &Value, fields: &[&str], at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in fields {
        let class = meta::str_at(spec, &[field]);
        if !class.is_empty() {
            let at = format!("{at}.{field}");
            errors.extend(named(names::dns1123_subdomain(class), &at, class));
        }
    }
    errors
}

/// What the volume is filled with: an older and a newer field, which say the same.
fn data_sources(spec: &Value, at: &str) -> Vec<FieldError> {
    let (older, newer) = (spec.get("dataSource"), spec.get("dataSourceRef"));
    let mut errors = Vec::new();
    for (source, field) in [(older, "dataSource"), (newer, "dataSourceRef")] {
        if let Some(source) = source {
            errors.extend(data_source(source, &format!("{at}.{field}")));
        }
    }
    let namespace = newer.map_or("", |n| meta::str_at(n, &["namespace"]));
    if !namespace.is_empty() {
        let namespace_at = format!("{at}.dataSourceRef.namespace");
        errors.extend(named(
            names::dns1123_label(namespace),
            &namespace_at,
            namespace,
        ));
    }
    let same = |field: &str| older.and_then(|o| o.get(field)) == newer.and_then(|n| n.get(field));
    let why = match (older, newer) {
        (Some(_), Some(_)) if !namespace.is_empty() => {
            "may not be specified when dataSourceRef.namespace is specified"
        }
        (Some(_), Some(_)) if !["apiGroup", "kind", "name"].into_iter().all(same) => {
            "must match dataSourceRef"
        }
        _ => return errors,
    };
    // Upstream shows its own path here, which has no fields to print.
    errors.push(FieldError::invalid(at, json!({}), why));
    errors
}

fn data_source(source: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["name", "kind"] {
        if meta::str_at(source, &[field]).is_empty() {
            errors.push(FieldError::required(format!("{at}.{field}"), ""));
        }
    }
    let (group, kind) = (
        meta::str_at(source, &["apiGroup"]),
        meta::str_at(source, &["kind"]),
    );
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.push(FieldError::invalid(at, kind, why));
    } else if !group.is_empty() {
        let at = format!("{at}.apiGroup");
        errors.extend(named(names::dns1123_subdomain(group), &at, group));
    }
    errors
}

/// Every broken rule of the template that a pod's own claim is made from.
pub(crate) fn validate_template(template: &Value, at: &str) -> Vec<FieldError> {
    let metadata = template.get("metadata").unwrap_or(&Value::Null);
    let path = |field: &str| format!("{at}.metadata.{field}");
    let mut errors = validate_annotations(metadata.get("annotations"), &path("annotations"));
    errors.extend(validate_labels(metadata.get("labels"), &path("labels")));
    let fields = metadata.as_object().into_iter().flatten();
    for (field, _) in fields.filter(|(_, value)| !value.is_null()) {
        if !matches!(field.as_str(), "annotations" | "labels") {
            errors.push(FieldError::forbidden(path(field), "cannot be set"));
        }
    }
    let spec = template.get("spec").unwrap_or(&Value::Null);
    errors.extend(validate(spec, &format!("{at}.spec")));
    errors
}

/// Makes `target` what `source` is at a path.
fn take(target: &mut Value, source: &Value, path: &[&str]) {
    match meta::get(source, path) {
        Some(value) => meta::set(target, path, value.clone()),
        None => drop(meta::remove(target, path)),
    }
}

/// Every broken rule of a change.
pub(super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (mut is, mut was) = (new.clone(), old.clone());
    // The binder names the volume, once.
    let volume = ["spec", "volumeName"];
    if meta::str_at(old, &volume).is_empty() {
        take(&mut was, new, &volume);
    }
    let class = |of| meta::get(of, &CLASS).and_then(Value::as_str);
    let annotated = |of| meta::annotation(of, CLASS_ANNOTATION);
    let first = class(old).is_none() && class(new).is_some();
    let (before, after) = (annotated(old), annotated(new));
    if first && before.is_some() && class(new) == before && (after.is_none() || after == before) {
        meta::remove(&mut is, &CLASS);
    } else {
        if after.unwrap_or_default() != before.unwrap_or_default() {
            let at = format!("metadata.annotations.{CLASS_ANNOTATION}");
            let after = after.unwrap_or_default();
            errors.push(FieldError::invalid(at, after, IMMUTABLE));
        }
        if first && (before.is_none() || class(new) == before) {
            meta::remove(&mut is, &CLASS);
        }
    }
    if meta::str_at(new, &["status", "phase"]) == "Bound" {
        if meta::get(new, &STORAGE[..3]).is_some() {
            take(&mut is, old, &STORAGE);
        }
        if meta::get(new, &ATTRIBUTES).is_some() {
            take(&mut is, old, &ATTRIBUTES);
        }
    }
    if is.get("spec") != was.get("spec") {
        let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden("spec", why));
    }
    errors.extend(shrinking(new, old));
    errors.extend(mode_stays(new, old));
    let attributes = meta::get(new, &ATTRIBUTES);
    if meta::get(old, &ATTRIBUTES).is_some() && attributes.is_none_or(|a| a == "") {
        let what = if attributes.is_some() {
            "an empty string"
        } else {
            "nil"
        };
        let why = format!("update from non-nil value to {what} is forbidden");
        errors.push(FieldError::forbidden(ATTRIBUTES.join("."), why));
    }
    errors
}

/// A request goes back only to what is more than there is: that is how a failed expansion is given up.
fn shrinking(new: &Value, old: &Value) -> Option<FieldError> {
    let of = |claim, path: &[&str]| quantity(claim, path).unwrap_or_default();
    let (is, was) = (of(new, &STORAGE), of(old, &STORAGE));
    let there = of(old, &["status", "capacity", "storage"]);
    let why = "field can not be less than status.capacity";
    (is < was && is <= there).then(|| FieldError::forbidden(STORAGE.join("."), why))
}

/// Every broken rule of the status.
pub(super) fn validate_status(claim: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if meta::list_at(claim, &["spec", "accessModes"]).is_empty() {
        // Upstream writes the path in this way.
        errors.push(FieldError::required("Spec.accessModes", ""));
    }
    let map = |field: &str| meta::get(claim, &["status", field]).and_then(Value::as_object);
    let amount = |field: &str, name: &str| quantity(claim, &["status", field, name]);
    for (name, _) in map("capacity").into_iter().flatten() {
        let at = format!("status.capacity[{name}]");
        errors.extend(amount("capacity", name).and_then(|q| basic(&q, &at)));
    }
    for (name, state) in map("allocatedResourceStatuses").into_iter().flatten() {
        let at = "status.allocatedResourceStatus";
        errors.extend(resource_key(name, at));
        if !state.as_str().is_some_and(|s| RESIZING.contains(&s)) {
            errors.push(FieldError::not_supported(at, name.as_str(), RESIZING));
        }
    }
    for (name, _) in map("allocatedResources").into_iter().flatten() {
        let at = "status.allocatedResources";
        let wrong = resource_key(name, at);
        let at = format!("{at}[{name}]");
        errors.extend(match amount("allocatedResources", name) {
            _ if !wrong.is_empty() => wrong,
            Some(q) if q.value() < 0 => basic(&q, &at).into_iter().collect(),
            Some(q) if q.is_negative() => {
                vec![FieldError::invalid(at, q.to_string(), NOT_NEGATIVE)]
            }
            _ => Vec::new(),
        });
    }
    errors
}

/// Resources of the cluster's own names are storage alone.
fn resource_key(name: &str, at: &str) -> Vec<FieldError> {
    let why = names::qualified_name(name);
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    if why.is_empty() && native && name != "storage" {
        return vec![FieldError::not_supported(at, name, &["storage"])];
    }
    named(why, at, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_rules, assert_updates, changed};

    fn claim() -> Value {
        json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "manual", "volumeMode": "Filesystem"}, "status": {"phase": "Pending"}})
    }

    #[test]
    fn rules() {
        let of = |claim: &Value| validate(&claim["spec"], "spec");
        let group = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        assert_rules(
            &claim(),
            of,
            &[
                (
                    json!({"/spec/accessModes": [], "/spec/resources": null}),
                    &[
                        "spec.accessModes: Required value: at least 1 access mode is required",
                        "spec.resources[storage]: Required value",
                    ],
                ),
                (
                    json!({"/spec/resources/requests/storage": "-1"}),
                    &["spec.resources[storage]: Invalid value: \"-1\": must be greater than zero"],
                ),
                (
                    json!({"/spec/storageClassName": "A", "/spec/volumeMode": "Tape", "/spec/volumeAttributesClassName": "B"}),
                    &[
                        "spec.storageClassName: Invalid value: \"A\": a lowercase RFC 1123 subdomain…",
                        "spec.volumeMode: Unsupported value: \"Tape\": supported values: \"Block\", \"Filesystem\"",
                        "spec.volumeAttributesClassName: Invalid value: \"B\": a lowercase RFC 1123 subdomain…",
                    ],
                ),
                (
                    json!({"/spec/dataSource": {"kind": "K"}}),
                    &[
                        "spec.dataSource.name: Required value",
                        &format!("spec.dataSource: Invalid value: \"K\": {group}"),
                    ],
                ),
                (
                    json!({"/spec/dataSource": {"apiGroup": "a", "kind": "K", "name": "n"}, "/spec/dataSourceRef": {"apiGroup": "a", "kind": "K", "name": "m"}}),
                    &["spec: Invalid value: {}: must match dataSourceRef"],
                ),
                (
                    json!({"/spec/dataSource": {"apiGroup": "a", "kind": "K", "name": "n"}, "/spec/dataSourceRef": {"apiGroup": "a", "kind": "K", "name": "n", "namespace": "s"}}),
                    &[
                        "spec: Invalid value: {}: may not be specified when dataSourceRef.namespace is specified",
                    ],
                ),
            ],
        );
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": claim()["spec"]});
        assert_rules(
            &template,
            |t| validate_template(t, "t"),
            &[
                (
                    json!({"/metadata/name": "n"}),
                    &["t.metadata.name: Forbidden: cannot be set"],
                ),
                (
                    json!({"/spec/accessModes": []}),
                    &["t.spec.accessModes: Required value: at least 1 access mode is required"],
                ),
            ],
        );
    }

    #[test]
    fn little_may_change() {
        let spec = "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        assert_updates(
            &claim(),
            validate_update,
            &[
                (json!({"/spec/volumeName": "v"}), &[]),
                (json!({"/spec/accessModes": ["ReadWriteMany"]}), &[spec]),
                (json!({"/spec/resources/requests/storage": "2Gi"}), &[spec]),
                (
                    json!({"/spec/volumeMode": "Block"}),
                    &[
                        spec,
                        "volumeMode: Invalid value: \"Block\": field is immutable",
                    ],
                ),
                (
                    json!({"/metadata/annotations": {CLASS_ANNOTATION: "b"}}),
                    &[
                        "metadata.annotations.volume.beta.kubernetes.io/storage-class: Invalid value: \"b\": field is immutable",
                    ],
                ),
            ],
        );
        let bound = json!({"/spec/volumeName": "v", "/status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
            "/spec/resources/requests/storage": "3Gi", "/spec/volumeAttributesClassName": "a"});
        let small = "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity";
        assert_updates(
            &changed(&claim(), &bound),
            validate_update,
            &[
                (
                    json!({"/spec/resources/requests/storage": "4Gi", "/spec/volumeAttributesClassName": "b"}),
                    &[],
                ),
                (json!({"/spec/resources/requests/storage": "2Gi"}), &[]),
                (json!({"/spec/resources/requests/storage": "1Gi"}), &[small]),
                (json!({"/spec/volumeName": "w"}), &[spec]),
                (
                    json!({"/spec/volumeAttributesClassName": ""}),
                    &[
                        "spec.volumeAttributesClassName: Forbidden: update from non-nil value to an empty string is forbidden",
                    ],
                ),
            ],
        );
        let none = changed(&claim(), &json!({"/spec/storageClassName": null}));
        assert_updates(
            &none,
            validate_update,
            &[(json!({"/spec/storageClassName": "a"}), &[])],
        );
        let annotated = changed(
            &none,
            &json!({"/metadata/annotations": {CLASS_ANNOTATION: "a"}}),
        );
        assert_updates(
            &annotated,
            validate_update,
            &[
                (
                    json!({"/spec/storageClassName": "a", "/metadata/annotations": null}),
                    &[],
                ),
                (json!({"/spec/storageClassName": "b"}), &[spec]),
            ],
        );
    }

    #[test]
    fn statuses() {
        let told = RESIZING
            .iter()
            .map(|r| format!("{r:?}"))
            .collect::<Vec<_>>()
            .join(", ");
        assert_rules(
            &claim(),
            validate_status,
            &[
                (
                    json!({"/status/capacity": {"storage": "-1"}, "/status/allocatedResourceStatuses": {"cpu": "Odd"}}),
                    &[
                        "status.capacity[storage]: Invalid value: -1: must be a valid resource quantity",
                        "status.allocatedResourceStatus: Unsupported value: \"cpu\": supported values: \"storage\"",
                        &format!(
                            "status.allocatedResourceStatus: Unsupported value: \"cpu\": supported values: {told}"
                        ),
                    ],
                ),
                (
                    json!({"/status/allocatedResources": {"example.com/x": "1", "a b": "1"}}),
                    &["status.allocatedResources: Invalid value: \"a b\": name part…"],
                ),
            ],
        );
    }
}
