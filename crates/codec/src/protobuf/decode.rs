//! Protobuf as clients send it, turned into the JSON tree that the same client would have sent.
//!
//! A scalar that is zero on the wire is left out unless it is a pointer upstream or its JSON shows zeros, so that defaults
//! apply to it exactly as they do to an absent JSON field.

use std::collections::HashMap;

use api::Status;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::{Count, Field, MAGIC, Type, table};
use crate::MAX_DEPTH;

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("unexpected EOF")]
    Short,
    #[error("illegal wireType {0}")]
    Wire(u8),
    #[error("string field contains invalid UTF-8")]
    Utf8,
    #[error("exceeded max depth")]
    Depth,
    #[error("{0}")]
    Other(String),
}

/// One field on the wire.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, Broken> {
        let mut out = 0u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first().ok_or(Broken::Short)?;
            self.0 = rest;
            out |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(out);
            }
        }
        Err(Broken::Short)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(Broken::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, Broken> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let wire = match (tag & 7) as u8 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Number(u64::from_le_bytes(
                self.take(8)?.try_into().unwrap_or_default(),
            )),
            2 => {
                let n = self.varint()?;
                Wire::Bytes(self.take(usize::try_from(n).map_err(|_| Broken::Short)?)?)
            }
            5 => Wire::Number(u64::from(u32::from_le_bytes(
                self.take(4)?.try_into().unwrap_or_default(),
            ))),
            other => return Err(Broken::Wire(other)),
        };
        Ok(Some((tag >> 3, wire)))
    }
}

fn text(bytes: &[u8]) -> Result<&str, Broken> {
    std::str::from_utf8(bytes).map_err(|_| Broken::Utf8)
}

/// The numbers and the bytes of a message, by field.
type Small<'a> = (HashMap<u64, i64>, HashMap<u64, &'a [u8]>);

/// Reads a message of which each field occurs once.
fn small(bytes: &[u8]) -> Result<Small<'_>, Broken> {
    let (mut numbers, mut slices) = (HashMap::new(), HashMap::new());
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match wire {
            Wire::Number(n) => drop(numbers.insert(number, n.cast_signed())),
            Wire::Bytes(b) => drop(slices.insert(number, b)),
        }
    }
    Ok((numbers, slices))
}

fn time(bytes: &[u8], micro: bool) -> Result<Option<Value>, Broken> {
    let (numbers, _) = small(bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let seconds = numbers.get(&1).copied().unwrap_or(0);
    let nanos = i32::try_from(numbers.get(&2).copied().unwrap_or(0)).unwrap_or(0);
    let at = api::time::Timestamp::new(seconds, nanos).map_err(|e| Broken::Other(e.to_string()))?;
    Ok(Some(
        if micro {
            api::time::format_micro(at)
        } else {
            api::time::format(at)
        }
        .into(),
    ))
}

/// The JSON of one value; `None` for an empty time.
fn value(of: Type, wire: &Wire<'_>, depth: usize) -> Result<Option<Value>, Broken> {
    Ok(Some(match (of, wire) {
        (Type::Bool, Wire::Number(n)) => (*n != 0).into(),
        // Negative 32-bit integers come in 64 bits.
        (Type::Int32, Wire::Number(n)) => (*n as u32).cast_signed().into(),
        (Type::Int64, Wire::Number(n)) => n.cast_signed().into(),
        (Type::Text, Wire::Bytes(b)) => text(b)?.into(),
        (Type::Bytes, Wire::Bytes(b)) => STANDARD.encode(b).into(),
        (Type::Time, Wire::Bytes(b)) => return time(b, false),
        (Type::MicroTime, Wire::Bytes(b)) => return time(b, true),
        (Type::Quantity, Wire::Bytes(b)) => match small(b)?.1.get(&1) {
            Some(quantity) => text(quantity)?.into(),
            None => "0".into(),
        },
        (Type::IntOrString, Wire::Bytes(b)) => {
            let (numbers, slices) = small(b)?;
            if numbers.get(&1) == Some(&1) {
                text(slices.get(&3).copied().unwrap_or_default())?.into()
            } else {
                numbers.get(&2).copied().unwrap_or(0).into()
            }
        }
        (Type::Raw, Wire::Bytes(b)) => match small(b)?.1.get(&1) {
            Some(raw) => serde_json::from_slice(raw).map_err(|e| Broken::Other(e.to_string()))?,
            None => Value::Null,
        },
        (Type::Double, Wire::Number(n)) => f64::from_bits(*n).into(),
        (Type::SchemaOrArray | Type::SchemaOrBool | Type::SchemaOrStrings, Wire::Bytes(b)) => {
            alternative(of, b, depth + 1)?
        }
        (Type::Message(index), Wire::Bytes(b)) => message(index, b, depth + 1)?,
        _ => {
            return Err(Broken::Wire(if matches!(wire, Wire::Number(_)) {
                0
            } else {
                2
            }));
        }
    }))
}

/// A field that is a schema, or something else of number 2 (or, for a truth value, of number 1).
fn alternative(of: Type, bytes: &[u8], depth: usize) -> Result<Value, Broken> {
    let schema_number = if of == Type::SchemaOrBool { 2 } else { 1 };
    let (mut allows, mut others) = (false, Vec::new());
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (n, Wire::Bytes(b)) if n == schema_number => return message(table().schema, b, depth),
            (2, Wire::Bytes(b)) if of == Type::SchemaOrStrings => others.push(text(b)?.into()),
            (2, Wire::Bytes(b)) => others.push(message(table().schema, b, depth)?),
            (1, Wire::Number(n)) => allows = n != 0,
            _ => {}
        }
    }
    Ok(match of {
        Type::SchemaOrBool => allows.into(),
        _ => Value::Array(others),
    })
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(s) => s.is_empty(),
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_i64() == Some(0),
        Value::Null => true,
        _ => false,
    }
}

fn append(map: &mut Map<String, Value>, name: &str, item: Value) {
    match map.entry(name).or_insert_with(|| Value::Array(Vec::new())) {
        Value::Array(list) => list.push(item),
        other => *other = Value::Array(vec![item]),
    }
}

fn message(index: usize, bytes: &[u8], depth: usize) -> Result<Value, Broken> {
    if depth > MAX_DEPTH {
        return Err(Broken::Depth);
    }
    let table = table();
    let fields = table
        .messages
        .get(index)
        .ok_or_else(|| Broken::Other("unknown message".into()))?;
    let mut out = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        let Some(field) = fields.get(number) else {
            continue;
        };
        match field.count {
            Count::Many => many(field, &wire, depth, &mut out)?,
            Count::Map => {
                let Wire::Bytes(entry) = wire else {
                    return Err(Broken::Wire(0));
                };
                let (key, item) = map_entry(field.of, entry, depth)?;
                if let Value::Object(map) = out
                    .entry(field.name.as_str())
                    .or_insert_with(|| Map::new().into())
                {
                    map.insert(key, item);
                }
            }
            Count::One => match value(field.of, &wire, depth)? {
                Some(Value::Object(inner)) if field.inline => out.extend(inner),
                Some(found) if field.shows_zero() || !is_zero(&found) => {
                    out.insert(field.name.clone(), found);
                }
                _ => {}
            },
        }
    }
    if table.lists.contains(&index) {
        return Ok(out
            .remove("items")
            .unwrap_or_else(|| Value::Array(Vec::new())));
    }
    Ok(Value::Object(out))
}

fn many(
    field: &Field,
    wire: &Wire<'_>,
    depth: usize,
    out: &mut Map<String, Value>,
) -> Result<(), Broken> {
    let scalar = matches!(field.of, Type::Bool | Type::Int32 | Type::Int64);
    match wire {
        Wire::Bytes(packed) if scalar => {
            let mut reader = Reader(packed);
            while !reader.0.is_empty() {
                let number = Wire::Number(reader.varint()?);
                append(
                    out,
                    &field.name,
                    value(field.of, &number, depth)?.unwrap_or_default(),
                );
            }
        }
        wire => append(
            out,
            &field.name,
            value(field.of, wire, depth)?.unwrap_or_default(),
        ),
    }
    Ok(())
}

fn map_entry(of: Type, bytes: &[u8], depth: usize) -> Result<(String, Value), Broken> {
    let (mut key, mut item) = (String::new(), None);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, &wire) {
            (1, Wire::Bytes(b)) => key = text(b)?.to_owned(),
            (2, _) => item = value(of, &wire, depth)?,
            _ => {}
        }
    }
    let empty = match of {
        Type::Text => Value::from(""),
        Type::Quantity => "0".into(),
        _ => Value::Null,
    };
    Ok((key, item.unwrap_or(empty)))
}

/// Turns a protobuf body into the JSON tree that the same client would have sent.
///
/// # Errors
/// 400 when the bytes are no envelope, the kind is unknown, or the message is broken.
pub fn to_json(bytes: &[u8]) -> Result<Value, Status> {
    let bad = |why: String| Status::bad_request(why);
    let body = bytes.strip_prefix(MAGIC).ok_or_else(|| {
        bad("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".into())
    })?;
    let broken = |e: Broken| Status::bad_request(format!("proto: {e}"));
    let (_, unknown) = small(body).map_err(broken)?;
    let (_, types) = small(unknown.get(&1).copied().unwrap_or_default()).map_err(broken)?;
    let named = |n: u64| text(types.get(&n).copied().unwrap_or_default()).map_err(broken);
    let (api_version, kind) = (named(1)?, named(2)?);
    let root = table().root(api_version, kind);
    let root = root.ok_or_else(|| {
        bad(format!(
            "no kind {kind:?} is registered for version {api_version:?} in protobuf"
        ))
    })?;
    let mut object = Map::new();
    object.insert("kind".into(), kind.into());
    object.insert("apiVersion".into(), api_version.into());
    let raw = unknown.get(&2).copied().unwrap_or_default();
    if let Value::Object(fields) = message(root, raw, 0).map_err(broken)? {
        object.extend(fields);
    }
    Ok(Value::Object(object))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn bytes_field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        out.extend_from_slice(content);
        out
    }

    fn envelope(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let types = [
            bytes_field(1, version.as_bytes()),
            bytes_field(2, kind.as_bytes()),
        ]
        .concat();
        [MAGIC.to_vec(), bytes_field(1, &types), bytes_field(2, raw)].concat()
    }

    #[test]
    fn a_config_map() {
        let metadata = [
            bytes_field(1, b"a"),
            bytes_field(3, b""),
            bytes_field(8, b""),
        ]
        .concat();
        let entry = [bytes_field(1, b"k"), bytes_field(2, b"v")].concat();
        let raw = [
            bytes_field(1, &metadata),
            bytes_field(2, &entry),
            vec![4 << 3, 0],
        ]
        .concat();
        assert_eq!(
            to_json(&envelope("v1", "ConfigMap", &raw)).unwrap(),
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {"k": "v"}, "immutable": false})
        );
    }

    #[test]
    fn zero_replicas_count_and_volume_sources_are_inlined() {
        let volume = [bytes_field(1, b"v"), bytes_field(2, &bytes_field(2, b""))].concat();
        let pod = bytes_field(2, &bytes_field(1, &volume));
        let template = bytes_field(3, &pod);
        let raw = bytes_field(2, &[vec![1 << 3, 0], template].concat());
        let deployment = to_json(&envelope("apps/v1", "Deployment", &raw)).unwrap();
        assert_eq!(deployment["spec"]["replicas"], 0);
        assert_eq!(
            deployment["spec"]["template"]["spec"]["volumes"],
            json!([{"name": "v", "emptyDir": {}}])
        );
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert!(to_json(b"{}").is_err());
        assert!(to_json(&envelope("v1", "Nothing", b"")).is_err());
        assert!(to_json(&envelope("v1", "Pod", &[0x0a, 0x7f])).is_err());
        assert_eq!(table().lists.len(), 6);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = to_json(&envelope("v1", "Pod", &raw));
        }
    }
}
