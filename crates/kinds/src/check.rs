//! Checks that many kinds share, with upstream's messages.

use api::{FieldError, Quantity, meta, names, selector::LabelSelector};
use serde_json::Value;

/// Upstream's words for a change that is not allowed.
pub(crate) const IMMUTABLE: &str = "field is immutable";
/// Upstream's words for a number below zero.
pub(crate) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// Integers at the paths (relative to `obj`, printed below `at`) must not be negative.
pub(crate) fn not_negative(obj: &Value, at: &str, fields: &[&str]) -> Vec<FieldError> {
    let negative = |field: &&str| {
        let n = meta::int_at(obj, &[field]).filter(|n| *n < 0)?;
        Some(FieldError::invalid(
            format!("{at}.{field}"),
            n,
            NOT_NEGATIVE,
        ))
    };
    fields.iter().filter_map(negative).collect()
}

/// The value at a path must not change.
pub(crate) fn immutable(new: &Value, old: &Value, path: &[&str]) -> Option<FieldError> {
    let (is, was) = (meta::get(new, path), meta::get(old, path));
    (is != was)
        .then(|| FieldError::invalid(path.join("."), is.cloned().unwrap_or_default(), IMMUTABLE))
}

/// A string must be one of the allowed ones; empty is a missing value.
pub(crate) fn one_of(value: &str, path: impl Into<String>, allowed: &[&str]) -> Option<FieldError> {
    match value {
        "" => Some(FieldError::required(path, "")),
        v if allowed.contains(&v) => None,
        v => Some(FieldError::not_supported(path, v, allowed)),
    }
}

/// The same, but absent is fine.
pub(crate) fn one_of_if_set(
    value: &str,
    path: impl Into<String>,
    allowed: &[&str],
) -> Option<FieldError> {
    if value.is_empty() {
        None
    } else {
        one_of(value, path, allowed)
    }
}

/// A port number from 1 to 65535.
pub(crate) fn port(value: i64, path: impl Into<String>) -> Option<FieldError> {
    (!(1..=65535).contains(&value))
        .then(|| FieldError::invalid(path, value, "must be between 1 and 65535, inclusive"))
}

/// A port number or the name of one.
pub(crate) fn port_or_name(value: &Value, path: &str) -> Vec<FieldError> {
    match value {
        Value::Number(n) => port(n.as_i64().unwrap_or(0), path).into_iter().collect(),
        Value::String(s) => names::port_name(s)
            .into_iter()
            .map(|m| FieldError::invalid(path, s.as_str(), m))
            .collect(),
        _ => vec![FieldError::required(path, "")],
    }
}

/// Every message of a name rule as an error at the path.
pub(crate) fn named(messages: Vec<String>, path: &str, value: &str) -> Vec<FieldError> {
    messages
        .into_iter()
        .map(|m| FieldError::invalid(path, value, m))
        .collect()
}

/// A percentage such as `25%`, as its number.
pub(crate) fn percent(value: &Value) -> Option<i64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

/// A count or percentage that must not be negative.
pub(crate) fn count_or_percent(value: Option<&Value>, path: &str) -> Vec<FieldError> {
    match value {
        None => Vec::new(),
        Some(Value::Number(n)) if n.as_i64().is_some_and(|n| n < 0) => {
            vec![FieldError::invalid(
                path,
                n.as_i64().unwrap_or(0),
                NOT_NEGATIVE,
            )]
        }
        Some(Value::String(s)) if percent(&Value::String(s.clone())).is_none_or(|p| p < 0) => {
            let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%', '93%', regex used for validation is '[0-9]+%')";
            vec![FieldError::invalid(path, s.as_str(), detail)]
        }
        Some(_) => Vec::new(),
    }
}

/// A `metav1.LabelSelector`.
pub(crate) fn label_selector(selector: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = crate::metadata::validate_labels(
        selector.get("matchLabels"),
        &format!("{path}.matchLabels"),
    );
    for (i, expression) in meta::list_at(selector, &["matchExpressions"])
        .iter()
        .enumerate()
    {
        let at = format!("{path}.matchExpressions[{i}]");
        let values = meta::list_at(expression, &["values"]).len();
        match meta::str_at(expression, &["operator"]) {
            "In" | "NotIn" if values == 0 => {
                errors.push(FieldError::required(
                    format!("{at}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                ));
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                errors.push(FieldError::forbidden(
                    format!("{at}.values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(
                format!("{at}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = meta::str_at(expression, &["key"]);
        errors.extend(named(names::qualified_name(key), &format!("{at}.key"), key));
    }
    errors
}

/// The selector of a workload: present, not empty, and matching the labels of its pod template. None at all
/// matches no labels; all but a DaemonSet are told that it is missing.
pub(crate) fn workload_selector(spec: &Value, kind: &str) -> Vec<FieldError> {
    let labels = meta::get(spec, &["template", "metadata", "labels"]);
    let mismatch = || {
        FieldError::invalid(
            "spec.template.metadata.labels",
            labels.cloned().unwrap_or_default(),
            "`selector` does not match template `labels`",
        )
    };
    let Some(selector) = spec.get("selector") else {
        let missing = (kind != "daemonset").then(|| FieldError::required("spec.selector", ""));
        return missing.into_iter().chain([mismatch()]).collect();
    };
    let mut errors = label_selector(selector, "spec.selector");
    let Ok(parsed) = LabelSelector::from_value(selector) else {
        return errors;
    };
    let none = Value::Object(serde_json::Map::new());
    if parsed.is_everything() {
        errors.push(FieldError::invalid(
            "spec.selector",
            selector.clone(),
            format!("empty selector is invalid for {kind}"),
        ));
    } else if !parsed.matches(labels.unwrap_or(&none)) {
        errors.push(mismatch());
    }
    errors
}

/// The quantity at a path, if it is one.
pub(crate) fn quantity(obj: &Value, path: &[&str]) -> Option<Quantity> {
    match meta::get(obj, path)? {
        Value::String(s) => s.parse().ok(),
        Value::Number(n) => n.to_string().parse().ok(),
        _ => None,
    }
}
