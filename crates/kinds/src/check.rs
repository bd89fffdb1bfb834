//! Checks that many kinds share, with upstream's messages.

use api::{FieldError, Quantity, meta, names};
use serde_json::Value;

/// Upstream's words for a change that is not allowed.
pub(crate) const IMMUTABLE: &str = "field is immutable";
/// Upstream's words for a number below zero.
pub(crate) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// A field of what is at a path; the path of the whole object is empty.
pub(crate) fn child(at: &str, field: &str) -> String {
    if at.is_empty() {
        field.to_owned()
    } else {
        format!("{at}.{field}")
    }
}

/// Integers at the paths (relative to `obj`, printed below `at`) must not be negative.
pub(crate) fn not_negative(obj: &Value, at: &str, fields: &[&str]) -> Vec<FieldError> {
    let negative = |field: &&str| {
        let n = meta::int_at(obj, &[field]).filter(|n| *n < 0)?;
        Some(FieldError::invalid(child(at, field), n, NOT_NEGATIVE))
    };
    fields.iter().filter_map(negative).collect()
}

/// A count of the status that may only grow, once it is there.
pub(crate) fn not_decremented(new: &Value, old: &Value, field: &str) -> Option<FieldError> {
    let was = meta::int_at(old, &["status", field])?;
    let is = meta::int_at(new, &["status", field]);
    let why = "cannot be decremented";
    is.is_none_or(|is| is < was)
        .then(|| FieldError::invalid(format!("status.{field}"), is.unwrap_or(0), why))
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
    let digits = value.as_str()?.strip_suffix('%')?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok())?
}

/// A count or percentage as its number; what is neither counts as nothing.
pub(crate) fn count_or_share(value: Option<&Value>) -> i64 {
    let plain = |v: &Value| v.as_str()?.parse().ok();
    let number = |v: &Value| percent(v).or(v.as_i64()).or_else(|| plain(v));
    value.and_then(number).unwrap_or(0)
}

/// A count or percentage that must not be negative.
pub(crate) fn count_or_percent(value: Option<&Value>, path: &str) -> Vec<FieldError> {
    match value {
        Some(Value::Number(n)) if n.as_i64().is_some_and(|n| n < 0) => {
            let n = n.as_i64().unwrap_or(0);
            vec![FieldError::invalid(path, n, NOT_NEGATIVE)]
        }
        Some(Value::String(text)) => named(names::percent(text), path, text),
        _ => Vec::new(),
    }
}

/// A percentage of at most the whole.
pub(crate) fn at_most_whole(value: Option<&Value>, path: &str) -> Option<FieldError> {
    let share = value.filter(|v| percent(v).is_some_and(|p| p > 100))?;
    let why = "must not be greater than 100%";
    Some(FieldError::invalid(path, share.clone(), why))
}

/// An object as upstream's types inside the server print it: the names of fields begin with capitals.
pub(crate) fn internal(value: &Value) -> Value {
    let upper = |key: &str| {
        let mut letters = key.chars();
        let first = letters.next().map(|c| c.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    match value {
        Value::Object(map) => {
            let fields = map.iter().map(|(k, v)| (upper(k), internal(v)));
            Value::Object(fields.collect())
        }
        other => other.clone(),
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
        let values = meta::list_at(expression, &["values"]);
        match meta::str_at(expression, &["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(FieldError::required(
                    format!("{at}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                ));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
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
        for (j, value) in values.iter().filter_map(Value::as_str).enumerate() {
            let at = format!("{at}.values[{j}]");
            errors.extend(named(names::label_value(value), &at, value));
        }
    }
    errors
}

/// `domain/path`, as for controllers.
pub(crate) fn prefixed_path(text: &str, at: &str) -> Vec<FieldError> {
    if text.is_empty() {
        return vec![FieldError::required(at, "")];
    }
    let (domain, path) = text.split_once('/').unwrap_or_default();
    if domain.is_empty() || path.is_empty() {
        let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        return vec![FieldError::invalid(at, text, why)];
    }
    let mut errors = named(names::dns1123_subdomain(domain), at, domain);
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~%!$&'()*+,;=:".contains(c);
    if !path.chars().all(plain) {
        let why = r"Invalid path (regex used for validation is '[A-Za-z0-9/\-._~%!$&'()*+,;=:]+')";
        errors.push(FieldError::invalid(at, path, why));
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
