//! Cells of table rows, mostly as data: a path and how to print what is there.

use api::time::{self, Timestamp};
use api::{meta, selector::LabelSelector};
use serde_json::Value;

/// What a cell shows.
#[derive(Clone, Copy)]
pub(crate) enum Cell {
    /// The object's name.
    Name,
    /// How long ago the object was created.
    Age,
    /// When the object was created.
    CreatedAt,
    /// The scalar at a path as text; empty when absent.
    Text(&'static [&'static str]),
    /// The scalar at a path as text, or a fallback when absent or empty.
    TextOr(&'static [&'static str], &'static str),
    /// The integer at a path; 0 when absent.
    Int(&'static [&'static str]),
    /// The boolean at a path; false when absent.
    Bool(&'static [&'static str]),
    /// How many items the list, or keys the object, at a path has.
    Len(&'static [&'static str]),
    /// Names of the containers of the pod spec at a path.
    Containers(&'static [&'static str]),
    /// Their images.
    Images(&'static [&'static str]),
    /// The `metav1.LabelSelector` at a path.
    Selector(&'static [&'static str]),
    /// The map of labels at a path.
    Labels(&'static [&'static str]),
    /// Computed.
    With(fn(&Value, Timestamp) -> Value),
}

/// The cells of one row.
pub(crate) fn render(cells: &[Cell], obj: &Value, now: Timestamp) -> Vec<Value> {
    cells.iter().map(|cell| cell.render(obj, now)).collect()
}

impl Cell {
    fn render(self, obj: &Value, now: Timestamp) -> Value {
        match self {
            Self::Name => meta::name(obj).into(),
            Self::Age => age(obj, now).into(),
            Self::CreatedAt => meta::str_at(obj, &["metadata", "creationTimestamp"]).into(),
            Self::Text(path) => text(obj, path).into(),
            Self::TextOr(path, fallback) => or(text(obj, path), fallback).into(),
            Self::Int(path) => meta::int_at(obj, path).unwrap_or(0).into(),
            Self::Bool(path) => meta::bool_at(obj, path).into(),
            Self::Len(path) => len(obj, path).into(),
            Self::Containers(path) => containers(obj, path, "name").into(),
            Self::Images(path) => containers(obj, path, "image").into(),
            Self::Selector(path) => selector(obj, path).into(),
            Self::Labels(path) => labels(meta::get(obj, path)).into(),
            Self::With(print) => print(obj, now),
        }
    }
}

/// How long ago the object was created.
pub(crate) fn age(obj: &Value, now: Timestamp) -> String {
    since(obj, &["metadata", "creationTimestamp"], now)
}

/// How long ago the time at a path was.
pub(crate) fn since(obj: &Value, path: &[&str], now: Timestamp) -> String {
    time::age(meta::str_at(obj, path), now)
}

/// The scalar at a path as text.
pub(crate) fn text(obj: &Value, path: &[&str]) -> String {
    match meta::get(obj, path) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    }
}

/// The text, or a fallback if it is empty.
pub(crate) fn or(text: String, fallback: &str) -> String {
    if text.is_empty() {
        fallback.to_owned()
    } else {
        text
    }
}

fn len(obj: &Value, path: &[&str]) -> usize {
    match meta::get(obj, path) {
        Some(Value::Array(items)) => items.len(),
        Some(Value::Object(map)) => map.len(),
        _ => 0,
    }
}

fn containers(obj: &Value, path: &[&str], field: &str) -> String {
    let list = meta::get(obj, path).map_or(&[][..], |spec| meta::list_at(spec, &["containers"]));
    join(list.iter().map(|c| meta::str_at(c, &[field])), ",")
}

/// Texts with a separator in between.
pub(crate) fn join<'a>(items: impl IntoIterator<Item = &'a str>, separator: &str) -> String {
    items.into_iter().collect::<Vec<_>>().join(separator)
}

fn selector(obj: &Value, path: &[&str]) -> String {
    let Some(value) = meta::get(obj, path) else {
        return "<none>".to_owned();
    };
    LabelSelector::from_value(value)
        .map_or_else(|_| "<error>".to_owned(), |s| or(s.to_string(), "<none>"))
}

/// A map of labels in order of keys; `<none>` if there are none.
pub(crate) fn labels(map: Option<&Value>) -> String {
    let mut pairs: Vec<String> = map
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    or(pairs.join(","), "<none>")
}

/// The first `max` texts and how many more there are.
pub(crate) fn first_of(items: &[String], max: usize) -> String {
    if items.len() <= max {
        return items.join(",");
    }
    format!("{} + {} more...", items[..max].join(","), items.len() - max)
}

/// The condition of that type.
pub(crate) fn condition<'a>(obj: &'a Value, name: &str) -> Option<&'a Value> {
    meta::list_at(obj, &["status", "conditions"])
        .iter()
        .find(|c| meta::str_at(c, &["type"]) == name)
}

/// Whether the condition of that type is true.
pub(crate) fn condition_is_true(obj: &Value, name: &str) -> bool {
    condition(obj, name).is_some_and(|c| meta::str_at(c, &["status"]) == "True")
}
