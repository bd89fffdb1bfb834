//! The rules of custom kinds: those their definitions write, around what holds for every object.
//!
//! What upstream calls ratcheting holds here as well: an update is not refused for what it leaves as it was.

mod cel_types;
mod embedded;
mod formats;
mod list_types;
mod pattern;
mod problem;
mod row;
mod rules;
mod scale;
mod schema;
mod sizes;
mod written;

use std::collections::HashSet;

use api::custom::{Custom, Node};
use api::{ErrorKind, FieldError, Kind, meta, names};
use serde_json::Value;

pub(crate) use formats::is_known as is_known_format;
pub(crate) use pattern::{Patterns, compile as compile_pattern};
pub(crate) use row::row;
use rules::Rules;
pub(crate) use written::{Written, written as written_rules};

/// Finalizers without a domain that are nobody's mistake.
const STANDARD_FINALIZERS: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];

/// What a definition's schema is compiled to, once.
struct Compiled {
    patterns: Patterns,
    rules: Rules,
}

fn compiled(custom: &Custom) -> Option<&Compiled> {
    let compile = || {
        let patterns = custom.schema.as_ref().map(Patterns::of);
        let rules = custom.schema.as_ref().map(|s| Rules::of(s, true));
        let compiled: Box<dyn std::any::Any + Send + Sync> = Box::new(Compiled {
            patterns: patterns.unwrap_or_default(),
            rules: rules.unwrap_or_default(),
        });
        compiled
    };
    custom.compiled.get_or_init(compile).downcast_ref()
}

/// Every broken rule of an object, or of a change of one.
pub(crate) fn validate(
    kind: &Kind,
    custom: &Custom,
    obj: &Value,
    old: Option<&Value>,
) -> Vec<FieldError> {
    let mut errors = type_meta(kind, obj);
    if !errors.is_empty() {
        return errors;
    }
    let (Some(schema), Some(compiled)) = (&custom.schema, compiled(custom)) else {
        return scale::of_object(custom, obj);
    };
    errors.extend(schema::validate(schema, &compiled.patterns, obj, old, None));
    errors.extend(scale::of_object(custom, obj));
    errors.extend(embedded::validate(schema, obj));
    if old.is_none_or(|old| list_types::validate(schema, old).is_empty()) {
        errors.extend(list_types::validate(schema, obj));
    }
    errors.extend(expressions(schema, compiled, obj, old, &errors));
    errors
}

/// Every rule written as an expression that an object breaks; they are run only on what is otherwise sound.
fn expressions(
    schema: &Node,
    compiled: &Compiled,
    obj: &Value,
    old: Option<&Value>,
    found: &[FieldError],
) -> Vec<FieldError> {
    if !found.iter().any(blocks) {
        return compiled.rules.validate(schema, obj, old);
    }
    if !schema.any(&|node| !node.rules.is_empty()) {
        return Vec::new();
    }
    let why = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
    vec![FieldError::invalid("<nil>", "null", why)]
}

/// Every broken rule of a change of status.
pub(crate) fn validate_status(
    kind: &Kind,
    custom: &Custom,
    obj: &Value,
    old: &Value,
) -> Vec<FieldError> {
    let mut errors = type_meta(kind, obj);
    if !errors.is_empty() {
        return errors;
    }
    let (Some(schema), Some(compiled)) = (&custom.schema, compiled(custom)) else {
        return scale::of_status(custom, obj);
    };
    if let (Some(status), Some(inner)) = (obj.get("status"), schema.properties.get("status")) {
        let before = old.get("status");
        let found = schema::validate(inner, &compiled.patterns, status, before, Some("status"));
        errors.extend(found);
    }
    errors.extend(scale::of_status(custom, obj));
    if list_types::validate(schema, old).is_empty() {
        errors.extend(list_types::validate(schema, obj));
    }
    errors.extend(expressions(schema, compiled, obj, Some(old), &errors));
    errors
}

/// Every broken rule of a value by itself, without regard for other rules: of defaults in definitions.
pub(crate) fn validate_value(schema: &Node, value: &Value, path: &str) -> Vec<FieldError> {
    schema::validate(schema, &Patterns::of(schema), value, None, Some(path))
}

/// Every broken rule of resources embedded in a value.
pub(crate) fn validate_embedded(schema: &Node, value: &Value) -> Vec<FieldError> {
    embedded::validate(schema, value)
}

fn type_meta(kind: &Kind, obj: &Value) -> Vec<FieldError> {
    let wanted = [
        ("kind", kind.kind.clone()),
        ("apiVersion", kind.api_version()),
    ];
    let wrong = |(field, wanted): (&str, String)| {
        let given = meta::str_at(obj, &[field]);
        (given != wanted).then(|| FieldError::invalid(field, given, format!("must be {wanted}")))
    };
    wanted.into_iter().filter_map(wrong).collect()
}

/// Whether an error keeps rules that look at several fields from being run.
fn blocks(error: &FieldError) -> bool {
    matches!(
        error.kind,
        ErrorKind::NotSupported
            | ErrorKind::Required
            | ErrorKind::TooLong
            | ErrorKind::TooMany
            | ErrorKind::TypeInvalid
    )
}

/// Warnings about finalizers that may collide with those of others.
pub(crate) fn warnings(obj: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let mut seen = HashSet::new();
    for finalizer in meta::list_at(obj, &["metadata", "finalizers"])
        .iter()
        .filter_map(Value::as_str)
        .filter(|f| seen.insert(*f))
    {
        let at = |why: &str| format!("metadata.finalizers: {finalizer:?}: {why}");
        out.extend(names::qualified_name(finalizer).iter().map(|why| at(why)));
        if finalizer.contains('/') || STANDARD_FINALIZERS.contains(&finalizer) {
            continue;
        }
        out.push(at(if finalizer.contains('.') {
            "prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers"
        } else {
            "prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers"
        }));
    }
    out
}

#[cfg(test)]
mod tests;
