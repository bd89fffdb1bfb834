//! Schemas and values as expressions see them.
//!
//! Only what a schema declares can be seen, and fields whose names are no identifiers have escaped ones. Of an
//! object's metadata, names alone can be seen.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::ListType;
use api::custom::Node;
use cel::{Fields, List, Listing, Map, Type, Value};
use serde_json::Value as Json;

/// Words that mean something. These and the reserved ones fields can be seen by only in disguise.
const MEANT: [&str; 4] = ["true", "false", "null", "in"];
/// Parts of names that are no part of identifiers.
const ESCAPES: [(&str, &str); 4] = [
    ("__", "__underscores__"),
    (".", "__dot__"),
    ("-", "__dash__"),
    ("/", "__slash__"),
];

/// The name that expressions know a field by; `None` if it has none.
pub(super) fn escaped(name: &str) -> Option<String> {
    if MEANT.contains(&name) || cel::RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let mut out = String::new();
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        if let Some((from, to)) = ESCAPES.iter().find(|(from, _)| rest.starts_with(from)) {
            out.push_str(to);
            rest = &rest[from.len()..];
        } else if c.is_ascii_alphanumeric() || c == '_' {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            return None;
        }
    }
    starts.then_some(out)
}

/// Longest names, of which generated ones take one character more.
const NAMES: [(&str, i64); 2] = [("name", 253), ("generateName", 252)];

fn names() -> Node {
    let text = |max| {
        let mut node = Node {
            kind: "string".to_owned(),
            ..Node::default()
        };
        node.checks.max_length = Some(max);
        node
    };
    let names = NAMES.map(|(name, max)| (name.to_owned(), text(max)));
    Node {
        kind: "object".to_owned(),
        properties: names.into(),
        ..Node::default()
    }
}

/// The schema of a resource with the type and names that it has without saying so.
pub(super) fn resource(node: &Node) -> Node {
    let mut out = node.clone();
    for field in ["apiVersion", "kind"] {
        out.properties
            .entry(field.to_owned())
            .or_insert_with(|| Node {
                kind: "string".to_owned(),
                ..Node::default()
            });
    }
    let metadata = out.properties.entry("metadata".to_owned()).or_default();
    let own = std::mem::take(&mut metadata.properties);
    *metadata = names();
    metadata.properties.extend(own);
    for (name, max) in NAMES {
        if let Some(node) = metadata.properties.get_mut(name) {
            node.checks.max_length = Some(node.checks.max_length.map_or(max, |own| own.min(max)));
        }
    }
    out
}

/// The type of values of a schema; `None` if they cannot be seen.
pub(super) fn type_of(node: &Node) -> Option<Type> {
    if node.int_or_string {
        return Some(Type::Dyn);
    }
    if node.embedded {
        let mut plain = resource(node);
        plain.embedded = false;
        return type_of(&plain);
    }
    Some(match node.kind.as_str() {
        "array" => Type::List(Arc::new(type_of(node.items.as_deref()?)?)),
        "object" if node.others().is_some() => {
            Type::Map(Arc::new(Type::String), Arc::new(type_of(node.others()?)?))
        }
        "object" => {
            let fields: BTreeMap<String, Type> = node
                .properties
                .iter()
                .filter_map(|(name, inner)| Some((escaped(name)?, type_of(inner)?)))
                .collect();
            let name = "object".to_owned();
            Type::Object(Arc::new(Fields { name, fields }))
        }
        "boolean" => Type::Bool,
        "integer" => Type::Int,
        "number" => Type::Double,
        "string" => match node.format.as_str() {
            "byte" => Type::Bytes,
            "duration" => Type::Duration,
            "date" | "date-time" => Type::Timestamp,
            _ => Type::String,
        },
        _ => return None,
    })
}

/// A value of a schema.
pub(super) fn value_of(json: &Json, node: &Node) -> Value {
    if json.is_null() || node.int_or_string {
        return Value::from_json(json);
    }
    match (node.kind.as_str(), json) {
        ("array", Json::Array(items)) => list(items, node),
        ("object", Json::Object(map)) if node.others().is_some() => {
            let inner = node.others();
            let value = |v: &Json| inner.map_or(Value::Null, |n| value_of(v, n));
            Value::object(map.iter().map(|(k, v)| (k.clone(), value(v))))
        }
        ("object", Json::Object(map)) => {
            let resource = node.embedded.then(|| resource(node));
            let node = resource.as_ref().unwrap_or(node);
            let fields = map.iter().filter_map(|(name, v)| {
                let inner = node.properties.get(name)?;
                type_of(inner)?;
                Some((Value::from(escaped(name)?), value_of(v, inner)))
            });
            Value::Map(Arc::new(Map(fields.collect())))
        }
        ("number", Json::Number(n)) => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
        ("integer", Json::Number(n)) if n.is_f64() => {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "checked to be whole before"
            )]
            let whole = n.as_f64().map_or(0, |f| f as i64);
            Value::Int(whole)
        }
        ("string", Json::String(text)) => string(text, &node.format),
        _ => Value::from_json(json),
    }
}

fn list(items: &[Json], node: &Node) -> Value {
    let inner = node.items.as_deref();
    let value = |v: &Json| inner.map_or(Value::Null, |n| value_of(v, n));
    let listing = match node.list_type {
        Some(ListType::Set) => Listing::Set,
        Some(ListType::Map) => {
            let keys = node.map_keys.iter().filter_map(|k| escaped(k));
            Listing::Keyed(keys.map(Arc::from).collect())
        }
        _ => Listing::Plain,
    };
    Value::List(Arc::new(List {
        items: items.iter().map(value).collect(),
        listing,
    }))
}

/// A string of a format; one that is none of it stays as it is, for other checks to refuse.
fn string(text: &str, format: &str) -> Value {
    use base64::Engine as _;
    let made = match format {
        "byte" => base64::engine::general_purpose::STANDARD
            .decode(text)
            .ok()
            .map(|bytes| Value::Bytes(bytes.into())),
        "duration" => cel::parse_duration(text).map(Value::Duration),
        "date-time" => cel::parse_timestamp(text).map(Value::Timestamp),
        "date" => cel::parse_timestamp(&format!("{text}T00:00:00Z")).map(Value::Timestamp),
        _ => None,
    };
    made.unwrap_or_else(|| Value::from(text))
}
