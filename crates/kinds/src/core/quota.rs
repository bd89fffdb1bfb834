//! ResourceQuotas and LimitRanges.

use api::{FieldError, meta};
use serde_json::{Map, Value};

use crate::cells::{Cell, text};
use crate::check::{NOT_NEGATIVE, one_of, quantity};
use crate::simple::Simple;

/// Rules of ResourceQuotas.
pub(crate) static QUOTAS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::With(|o, _| used(o, false)),
        Cell::With(|o, _| used(o, true)),
        Cell::Age,
    ],
    validate: validate_quota,
    ..Simple::BASE
};

/// Rules of LimitRanges.
pub(crate) static LIMITS: Simple = Simple {
    cells: &[Cell::Name, Cell::CreatedAt],
    default: default_limits,
    validate: validate_limits,
    ..Simple::BASE
};

fn used(obj: &Value, limits: bool) -> Value {
    let hard = meta::get(obj, &["status", "hard"]).and_then(Value::as_object);
    let mut names: Vec<&String> = hard
        .into_iter()
        .flatten()
        .map(|(k, _)| k)
        .filter(|k| k.starts_with("limits.") == limits)
        .collect();
    names.sort();
    let cell = |n: &&String| {
        format!(
            "{n}: {}/{}",
            crate::cells::or(text(obj, &["status", "used", n]), "0"),
            text(obj, &["status", "hard", n])
        )
    };
    names.iter().map(cell).collect::<Vec<_>>().join(", ").into()
}

fn validate_quota(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (name, value) in meta::get(obj, &["spec", "hard"])
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        if quantity(obj, &["spec", "hard", name]).is_some_and(|q| q.is_negative()) {
            errors.push(FieldError::invalid(
                format!("spec.hard[{name}]"),
                value.clone(),
                NOT_NEGATIVE,
            ));
        }
    }
    errors
}

fn default_limits(obj: &mut Value) {
    let items = obj
        .get_mut("spec")
        .and_then(|s| s.get_mut("limits"))
        .and_then(Value::as_array_mut);
    for item in items
        .into_iter()
        .flatten()
        .filter(|i| meta::str_at(i, &["type"]) == "Container")
    {
        fill(item, "max", "default");
        fill(item, "default", "defaultRequest");
        fill(item, "min", "defaultRequest");
    }
}

fn fill(item: &mut Value, from: &str, to: &str) {
    let Some(source) = item.get(from).and_then(Value::as_object).cloned() else {
        return;
    };
    let target = meta::object_at(item, &[to]);
    for (name, value) in source {
        target.entry(name).or_insert(value);
    }
}

fn validate_limits(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, item) in meta::list_at(obj, &["spec", "limits"]).iter().enumerate() {
        let at = format!("spec.limits[{i}]");
        if let Some(e) = one_of(
            meta::str_at(item, &["type"]),
            format!("{at}.type"),
            &["Container", "PersistentVolumeClaim", "Pod"],
        ) {
            errors.push(e);
        }
        let names: Map<String, Value> = ["min", "max", "default", "defaultRequest"]
            .iter()
            .filter_map(|f| item.get(*f)?.as_object().cloned())
            .flatten()
            .collect();
        for name in names.keys() {
            let value = |field: &str| quantity(item, &[field, name]);
            for (low, high) in [
                ("min", "max"),
                ("default", "max"),
                ("defaultRequest", "max"),
                ("defaultRequest", "default"),
            ] {
                if let (Some(a), Some(b)) = (value(low), value(high))
                    && a > b
                {
                    let words = |f: &str| match f {
                        "defaultRequest" => "default request".to_owned(),
                        other => other.to_owned(),
                    };
                    let detail = format!(
                        "{} value {a} is greater than {} value {b}",
                        words(low),
                        words(high)
                    );
                    errors.push(FieldError::invalid(
                        format!("{at}.{low}[{name}]"),
                        a.to_string(),
                        detail,
                    ));
                }
            }
        }
    }
    errors
}
