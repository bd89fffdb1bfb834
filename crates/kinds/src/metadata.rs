//! Metadata rules, the same for every kind.

use std::collections::HashSet;

use api::{FieldError, Kind, meta, names};
use serde_json::Value;

use crate::strategy::Strategy;

/// All annotations of an object together may have this many bytes.
const ANNOTATIONS_MAX: usize = 256 * 1024;

/// Checks a name, or a prefix of a name: a trailing dash of a prefix stands for what will follow.
pub(crate) fn masked(name: &str, prefix: bool, check: fn(&str) -> Vec<String>) -> Vec<String> {
    match name.strip_suffix('-') {
        Some(stem) if prefix && !stem.is_empty() => check(&format!("{stem}a")),
        _ => check(name),
    }
}

/// Every broken rule of an object's metadata.
pub fn validate_metadata(kind: &Kind, strategy: &dyn Strategy, obj: &Value) -> Vec<FieldError> {
    let mut errors = validate_identity(kind, strategy, obj);
    for field in ["generation", "deletionGracePeriodSeconds"] {
        if let Some(n) = meta::int_at(obj, &["metadata", field]).filter(|n| *n < 0) {
            errors.push(FieldError::invalid(
                format!("metadata.{field}"),
                n,
                crate::check::NOT_NEGATIVE,
            ));
        }
    }
    let metadata = obj.get("metadata").unwrap_or(&Value::Null);
    errors.extend(validate_labels_and_annotations(metadata));
    errors.extend(validate_owners(meta::list_at(
        metadata,
        &["ownerReferences"],
    )));
    errors.extend(validate_finalizers(meta::list_at(
        metadata,
        &["finalizers"],
    )));
    errors
}

/// Every broken rule of the labels and annotations of an object's metadata.
pub fn validate_labels_and_annotations(metadata: &Value) -> Vec<FieldError> {
    let mut errors = validate_labels(metadata.get("labels"), "metadata.labels");
    let annotations = metadata.get("annotations");
    errors.extend(validate_annotations(annotations, "metadata.annotations"));
    errors
}

/// Name, prefix of a name, and namespace.
fn validate_identity(kind: &Kind, strategy: &dyn Strategy, obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (name, namespace) = (meta::name(obj), meta::namespace(obj));
    let prefix = meta::str_at(obj, &["metadata", "generateName"]);
    let invalid = |messages: Vec<String>, path: &'static str, value: &str| {
        crate::check::named(messages, path, value)
    };
    if !prefix.is_empty() {
        errors.extend(invalid(
            strategy.validate_name(prefix, true),
            "metadata.generateName",
            prefix,
        ));
    }
    if name.is_empty() {
        errors.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else {
        errors.extend(invalid(
            strategy.validate_name(name, false),
            "metadata.name",
            name,
        ));
    }
    match (kind.namespaced, namespace.is_empty()) {
        (true, true) => errors.push(FieldError::required("metadata.namespace", "")),
        (true, false) => errors.extend(invalid(
            names::dns1123_label(namespace),
            "metadata.namespace",
            namespace,
        )),
        (false, false) => errors.push(FieldError::forbidden(
            "metadata.namespace",
            "not allowed on this type",
        )),
        (false, true) => {}
    }
    errors
}

/// Every broken rule of a map of labels at a path.
pub(crate) fn validate_labels(labels: Option<&Value>, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        errors.extend(
            names::qualified_name(key)
                .into_iter()
                .map(|m| FieldError::invalid(path, key.as_str(), m)),
        );
        errors.extend(
            names::label_value(value)
                .into_iter()
                .map(|m| FieldError::invalid(path, value, m)),
        );
    }
    errors
}

/// Every broken rule of a map of annotations at a path.
pub(crate) fn validate_annotations(annotations: Option<&Value>, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        size += key.len() + value.as_str().map_or(0, str::len);
        // Keys compare without case, for historical reasons.
        errors.extend(
            names::qualified_name(&key.to_lowercase())
                .into_iter()
                .map(|m| FieldError::invalid(path, key.as_str(), m)),
        );
    }
    if size > ANNOTATIONS_MAX {
        errors.push(FieldError::too_long(path, ANNOTATIONS_MAX));
    }
    errors
}

fn validate_owners(owners: &[Value]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = "metadata.ownerReferences";
    let mut controller: Option<String> = None;
    for owner in owners {
        let (_, version) = meta::split_api_version(meta::str_at(owner, &["apiVersion"]));
        if version.is_empty() {
            errors.push(FieldError::invalid(
                format!("{path}.apiVersion"),
                meta::str_at(owner, &["apiVersion"]),
                "version must not be empty",
            ));
        }
        for (field, what) in [("kind", "kind"), ("name", "name"), ("uid", "uid")] {
            if meta::str_at(owner, &[field]).is_empty() {
                errors.push(FieldError::invalid(
                    format!("{path}.{field}"),
                    "",
                    format!("{what} must not be empty"),
                ));
            }
        }
        if !meta::bool_at(owner, &["controller"]) {
            continue;
        }
        let this = format!(
            "{}/{}",
            meta::str_at(owner, &["kind"]),
            meta::str_at(owner, &["name"])
        );
        if let Some(first) = &controller {
            let detail = format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
            );
            errors.push(FieldError::invalid(path, owners.to_vec(), detail));
        } else {
            controller = Some(this);
        }
    }
    errors
}

fn validate_finalizers(finalizers: &[Value]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = "metadata.finalizers";
    let mut seen = HashSet::new();
    for finalizer in finalizers.iter().filter_map(Value::as_str) {
        seen.insert(finalizer);
        errors.extend(
            names::qualified_name(finalizer)
                .into_iter()
                .map(|m| FieldError::invalid(path, finalizer, m)),
        );
    }
    if seen.contains("orphan") && seen.contains("foregroundDeletion") {
        errors.push(FieldError::invalid(
            path,
            finalizers.to_vec(),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    errors
}

/// Every broken rule of a change of metadata.
pub fn validate_metadata_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["name", "namespace", "uid"] {
        let (was, is) = (
            meta::str_at(old, &["metadata", field]),
            meta::str_at(new, &["metadata", field]),
        );
        if was != is {
            errors.push(FieldError::invalid(
                format!("metadata.{field}"),
                is,
                "field is immutable",
            ));
        }
    }
    for field in [
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let at = ["metadata", field];
        let (was, is) = (meta::get(old, &at), meta::get(new, &at));
        if was != is {
            errors.push(FieldError::invalid(
                format!("metadata.{field}"),
                is.cloned().unwrap_or_default(),
                "field is immutable",
            ));
        }
    }
    if meta::get(old, &["metadata", "deletionTimestamp"]).is_some() {
        let was = meta::list_at(old, &["metadata", "finalizers"]);
        let added: Vec<&str> = meta::list_at(new, &["metadata", "finalizers"])
            .iter()
            .filter(|f| !was.contains(f))
            .filter_map(Value::as_str)
            .collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            errors.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
    errors
}
