//! Lists that are sets or maps: no item, or no key, occurs twice.

use std::collections::HashMap;

use api::custom::Node;
use api::{FieldError, ListType};
use serde_json::{Map, Value};

/// Every repetition in an object.
pub(super) fn validate(schema: &Node, value: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk(schema, value, &mut String::new(), &mut errors);
    errors
}

fn walk(schema: &Node, value: &Value, path: &mut String, errors: &mut Vec<FieldError>) {
    let mark = path.len();
    match value {
        Value::Object(map) => {
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
            match schema.list_type {
                Some(ListType::Set) => set(items, path, errors),
                Some(ListType::Map) => map(schema, items, path, errors),
                _ => {}
            }
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

/// Where each repeated value occurs for the second time.
fn repeated(values: &[Value]) -> Vec<usize> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut out = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let times = seen.entry(canonical(value)).or_default();
        *times += 1;
        if *times == 2 {
            out.push(index);
        }
    }
    out
}

/// JSON with sorted keys: equal values have equal texts.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            let entries: Vec<String> = keys
                .into_iter()
                .map(|k| format!("{k:?}:{}", canonical(&map[k])))
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        other => other.to_string(),
    }
}

fn set(items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    for index in repeated(items) {
        errors.push(FieldError::duplicate(
            format!("{path}[{index}]"),
            items[index].clone(),
        ));
    }
}

fn map(schema: &Node, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    if let Some(index) = items.iter().position(|i| !i.is_object() && !i.is_null()) {
        let why = "must be an object for an array of list-type map";
        errors.push(FieldError::invalid(
            format!("{path}[{index}]"),
            items[index].clone(),
            why,
        ));
        return;
    }
    let key_of = |item: &Value| {
        let fields = schema.map_keys.iter().filter_map(|key| {
            let value = item.get(key)?;
            Some((key.clone(), value.clone()))
        });
        Value::Object(fields.collect::<Map<_, _>>())
    };
    let keys: Vec<Value> = items.iter().map(key_of).collect();
    for index in repeated(&keys) {
        errors.push(FieldError::duplicate(
            format!("{path}[{index}]"),
            keys[index].clone(),
        ));
    }
}
