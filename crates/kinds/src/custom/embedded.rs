//! Resources embedded in custom ones: they have a type, and metadata that could be that of an object.

use api::custom::Node;
use api::{FieldError, meta, names};
use serde_json::Value;

use crate::metadata::{validate_annotations, validate_labels};

/// Every broken rule of embedded resources in a value.
pub(super) fn validate(schema: &Node, value: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk(schema, value, &mut String::new(), &mut errors);
    errors
}

fn walk(schema: &Node, value: &Value, path: &mut String, errors: &mut Vec<FieldError>) {
    let mark = path.len();
    match value {
        Value::Object(map) => {
            if schema.embedded {
                resource(value, path, errors);
            }
            for (key, child) in map {
                if let Some(inner) = schema.properties.get(key) {
                    if mark > 0 {
                        path.push('.');
                    }
                    path.push_str(key);
                    walk(inner, child, path, errors);
                } else if let Some(inner) = schema.others() {
                    path.push_str(&format!("[{key}]"));
                    walk(inner, child, path, errors);
                }
                path.truncate(mark);
            }
        }
        Value::Array(items) => {
            let Some(inner) = schema.items.as_deref() else {
                return;
            };
            for (index, child) in items.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                walk(inner, child, path, errors);
                path.truncate(mark);
            }
        }
        _ => {}
    }
}

fn resource(value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let at = |field: &str| match path {
        "" => field.to_owned(),
        path => format!("{path}.{field}"),
    };
    for field in ["apiVersion", "kind"] {
        match value.get(field) {
            None => errors.push(FieldError::required(at(field), "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid(at(field), "", "must not be empty"));
            }
            Some(Value::String(text)) => errors.extend(type_field(field, text, at(field))),
            Some(other) => {
                errors.push(FieldError::invalid(
                    at(field),
                    other.clone(),
                    "must be a string",
                ));
            }
        }
    }
    let Some(metadata) = value.get("metadata") else {
        return;
    };
    let name = meta::str_at(metadata, &["name"]);
    if !name.is_empty() {
        let wrong = names::path_segment(name).into_iter();
        errors.extend(wrong.map(|m| FieldError::invalid(at("metadata.name"), name, m)));
    }
    let namespace = meta::str_at(metadata, &["namespace"]);
    if !namespace.is_empty() {
        let wrong = names::dns1123_label(namespace).into_iter();
        errors.extend(wrong.map(|m| FieldError::invalid(at("metadata.namespace"), namespace, m)));
    }
    errors.extend(validate_labels(
        metadata.get("labels"),
        &at("metadata.labels"),
    ));
    errors.extend(validate_annotations(
        metadata.get("annotations"),
        &at("metadata.annotations"),
    ));
}

fn type_field(field: &str, text: &str, path: String) -> Option<FieldError> {
    if field == "kind" {
        let wrong = names::dns1035_label(&text.to_lowercase());
        let why = "may have mixed case, but should otherwise match: ";
        return (!wrong.is_empty())
            .then(|| FieldError::invalid(path, text, format!("{why}{}", wrong.join(","))));
    }
    (text.matches('/').count() > 1).then(|| {
        let why = format!("unexpected GroupVersion string: {text}");
        FieldError::invalid(path, text, why)
    })
}
