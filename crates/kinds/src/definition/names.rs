//! Names that a definition asks for, or has got.

use api::names::dns1035_label;
use api::{FieldError, meta};
use serde_json::Value;

/// Every broken rule of a set of names; absent ones break none.
pub(super) fn validate(names: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let text = |field: &str| meta::str_at(names, &[field]);
    for field in ["plural", "singular"] {
        errors.extend(label(text(field), format!("{at}.{field}"), ""));
    }
    for field in ["kind", "listKind"] {
        let mixed = "may have mixed case, but should otherwise match: ";
        let wrong = label(&text(field).to_lowercase(), format!("{at}.{field}"), mixed);
        errors.extend(wrong.map(|e| FieldError {
            value: text(field).into(),
            ..e
        }));
    }
    errors.extend(labels(names, "shortNames", at));
    if !text("kind").is_empty() && text("kind") == text("listKind") {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(
            format!("{at}.listKind"),
            text("listKind"),
            why,
        ));
    }
    errors.extend(labels(names, "categories", at));
    errors
}

fn label(value: &str, path: String, prefix: &str) -> Option<FieldError> {
    let wrong = dns1035_label(value);
    (!value.is_empty() && !wrong.is_empty())
        .then(|| FieldError::invalid(path, value, format!("{prefix}{}", wrong.join(","))))
}

fn labels(names: &Value, field: &str, at: &str) -> Vec<FieldError> {
    let check = |(index, value): (usize, &Value)| {
        let value = value.as_str().unwrap_or_default();
        let wrong = dns1035_label(value);
        (!wrong.is_empty())
            .then(|| FieldError::invalid(format!("{at}.{field}[{index}]"), value, wrong.join(",")))
    };
    let all = meta::list_at(names, &[field]).iter().enumerate();
    all.filter_map(check).collect()
}
