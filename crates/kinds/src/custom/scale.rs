//! Replicas of custom kinds, where their definitions say.

use api::custom::Custom;
use api::{FieldError, meta};
use serde_json::Value;

/// Every broken rule of the replicas of an object.
pub(super) fn of_object(custom: &Custom, obj: &Value) -> Vec<FieldError> {
    let Some(scale) = &custom.scale else {
        return Vec::new();
    };
    let mut errors: Vec<FieldError> = replicas(obj, &scale.spec).into_iter().collect();
    errors.extend(of_status(custom, obj));
    errors
}

/// Every broken rule of what a status says of replicas.
pub(super) fn of_status(custom: &Custom, obj: &Value) -> Vec<FieldError> {
    let Some(scale) = &custom.scale else {
        return Vec::new();
    };
    let mut errors: Vec<FieldError> = replicas(obj, &scale.status).into_iter().collect();
    if !scale.selector.is_empty()
        && let Some(selector) = at(obj, &scale.selector)
        && !selector.is_string()
    {
        let path = dotted(&scale.selector);
        let why = format!(
            "{path} accessor error: {selector} is of the type {}, expected string",
            go_type(selector)
        );
        errors.push(FieldError::invalid(path, "", why));
    }
    errors
}

fn at<'a>(obj: &'a Value, path: &[String]) -> Option<&'a Value> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    meta::get(obj, &path)
}

fn dotted(path: &[String]) -> String {
    format!(".{}", path.join("."))
}

fn replicas(obj: &Value, path: &[String]) -> Option<FieldError> {
    let value = at(obj, path)?;
    let name = dotted(path);
    let Some(count) = value.as_i64() else {
        let why = format!(
            "{name} accessor error: {value} is of the type {}, expected int64",
            go_type(value)
        );
        return Some(FieldError::invalid(name, 0, why));
    };
    if count < 0 {
        let why = "should be a non-negative integer";
        return Some(FieldError::invalid(name, count, why));
    }
    (count > i64::from(i32::MAX)).then(|| {
        let why = format!("should be less than or equal to {}", i32::MAX);
        FieldError::invalid(name, count, why)
    })
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}
