//! JSON trees as upstream's generated code writes them in protobuf.
//!
//! A message is written from its end to its beginning, because the length of what is nested stands before it: then nothing
//! is measured twice or moved.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::{Count, Field, MAGIC, Type, table};
use crate::MAX_DEPTH;

/// Why an object has no protobuf form.
#[derive(Debug, thiserror::Error)]
pub enum NotEncodable {
    /// The kind is served in other forms only.
    #[error(
        "object {0} {1} does not implement the protobuf marshalling interface and cannot be encoded to a protobuf message"
    )]
    Kind(String, String),
    /// A field does not hold what its type says.
    #[error("field {0}: unexpected value")]
    Field(String),
    /// Nested too deeply.
    #[error("exceeded max depth")]
    Depth,
}

/// Wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;

/// Bytes in reverse order.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes.iter().rev());
    }

    fn varint(&mut self, number: u64) {
        let mut digits = [0u8; 10];
        let mut n = number;
        let mut count = 0;
        loop {
            let more = n > 0x7f;
            digits[count] = (n & 0x7f) as u8 | if more { 0x80 } else { 0 };
            count += 1;
            n >>= 7;
            if !more {
                break;
            }
        }
        self.bytes(&digits[..count]);
    }

    fn tag(&mut self, number: u64, wire: u64) {
        self.varint(number << 3 | wire);
    }

    /// Ends (that is, starts on the wire) something of `number` whose content begins at `mark`.
    fn close(&mut self, number: u64, mark: usize) {
        self.varint((self.0.len() - mark) as u64);
        self.tag(number, BYTES);
    }

    fn text(&mut self, number: u64, text: &str) {
        let mark = self.0.len();
        self.bytes(text.as_bytes());
        self.close(number, mark);
    }

    fn number(&mut self, number: u64, value: i64) {
        self.varint(value.cast_unsigned());
        self.tag(number, VARINT);
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.reverse();
        self.0
    }
}

fn wrong(field: &Field) -> NotEncodable {
    NotEncodable::Field(field.name.clone())
}

/// Whole numbers, also those that are written with a fraction of zero.
fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        value
            .as_f64()
            .filter(|f| f.fract() == 0.0)
            .map(|f| f as i64)
    })
}

/// A time: seconds and nanoseconds, or nothing at all if there is none.
fn time(out: &mut Writer, value: &Value, micro: bool) -> Option<()> {
    if value.is_null() {
        return Some(());
    }
    let at: api::time::Timestamp = value.as_str()?.parse().ok()?;
    let nanos = if micro {
        at.subsec_nanosecond() / 1_000 * 1_000
    } else {
        0
    };
    out.number(2, nanos.into());
    out.number(1, at.as_second());
    Some(())
}

fn quantity(out: &mut Writer, value: &Value) -> Option<()> {
    match value {
        Value::Null => out.text(1, "0"),
        Value::Number(n) => out.text(1, &n.to_string()),
        Value::String(text) => match text.parse::<api::Quantity>() {
            Ok(parsed) => out.text(1, &parsed.to_string()),
            Err(_) => out.text(1, text),
        },
        _ => return None,
    }
    Some(())
}

fn int_or_string(out: &mut Writer, value: &Value) -> Option<()> {
    let (kind, number, text) = match value {
        Value::Null => (0, 0, ""),
        Value::String(text) => (1, 0, text.as_str()),
        other => (0, whole(other)?, ""),
    };
    out.text(3, text);
    out.number(2, number);
    out.number(1, kind);
    Some(())
}

/// The content of what has a length before it.
fn content(
    out: &mut Writer,
    of: Type,
    value: &Value,
    depth: usize,
) -> Result<Option<()>, NotEncodable> {
    Ok(match of {
        Type::Text => value.as_str().map(|t| out.bytes(t.as_bytes())),
        Type::Bytes => value
            .as_str()
            .and_then(|t| STANDARD.decode(t).ok())
            .map(|b| out.bytes(&b)),
        Type::Time => time(out, value, false),
        Type::MicroTime => time(out, value, true),
        Type::Quantity => quantity(out, value),
        Type::IntOrString => int_or_string(out, value),
        Type::Raw => {
            if !value.is_null() {
                out.text(1, &value.to_string());
            }
            Some(())
        }
        Type::SchemaOrArray | Type::SchemaOrBool | Type::SchemaOrStrings => {
            alternative(out, of, value, depth)?
        }
        Type::Message(index) => Some(message(out, index, value, depth)?),
        Type::Bool | Type::Int32 | Type::Int64 | Type::Double => None,
    })
}

fn schema(out: &mut Writer, number: u64, value: &Value, depth: usize) -> Result<(), NotEncodable> {
    let mark = out.0.len();
    message(out, table().schema, value, depth)?;
    out.close(number, mark);
    Ok(())
}

fn alternative(
    out: &mut Writer,
    of: Type,
    value: &Value,
    depth: usize,
) -> Result<Option<()>, NotEncodable> {
    match (of, value) {
        (Type::SchemaOrBool, Value::Object(_)) => {
            schema(out, 2, value, depth)?;
            out.number(1, 1);
        }
        (Type::SchemaOrBool, value) => out.number(1, value.as_bool().unwrap_or(false).into()),
        (_, Value::Null) => {}
        (_, Value::Object(_)) => schema(out, 1, value, depth)?,
        (Type::SchemaOrArray, Value::Array(items)) => {
            for item in items.iter().rev() {
                schema(out, 2, item, depth)?;
            }
        }
        (Type::SchemaOrStrings, Value::Array(items)) => {
            for item in items.iter().rev() {
                out.text(2, item.as_str().unwrap_or_default());
            }
        }
        _ => return Ok(None),
    }
    Ok(Some(()))
}

/// One value with its tag.
fn value(
    out: &mut Writer,
    number: u64,
    field: &Field,
    value: &Value,
    depth: usize,
) -> Result<(), NotEncodable> {
    match field.of {
        Type::Bool => out.number(number, value.as_bool().ok_or_else(|| wrong(field))?.into()),
        Type::Int32 | Type::Int64 => {
            out.number(number, whole(value).ok_or_else(|| wrong(field))?);
        }
        Type::Double => {
            let bits = value.as_f64().ok_or_else(|| wrong(field))?.to_bits();
            out.bytes(&bits.to_le_bytes());
            out.tag(number, FIXED64);
        }
        of => {
            let mark = out.0.len();
            content(out, of, value, depth)?.ok_or_else(|| wrong(field))?;
            out.close(number, mark);
        }
    }
    Ok(())
}

/// What is written for a field that is no pointer and has no value.
fn zero(of: Type) -> Value {
    match of {
        Type::Text | Type::Bytes => "".into(),
        Type::Bool => false.into(),
        Type::Int32 | Type::Int64 | Type::Double => 0.into(),
        _ => Value::Null,
    }
}

fn map(
    out: &mut Writer,
    field: &Field,
    entries: &Map<String, Value>,
    depth: usize,
) -> Result<(), NotEncodable> {
    for (key, item) in entries.iter().rev() {
        let mark = out.0.len();
        match item {
            Value::Null if field.of == Type::Bytes => {}
            Value::Null => value(out, 2, field, &zero(field.of), depth)?,
            item => value(out, 2, field, item, depth)?,
        }
        out.text(1, key);
        out.close(field.number, mark);
    }
    Ok(())
}

fn message(
    out: &mut Writer,
    index: usize,
    object: &Value,
    depth: usize,
) -> Result<(), NotEncodable> {
    if depth > MAX_DEPTH {
        return Err(NotEncodable::Depth);
    }
    let table = table();
    let fields = table.messages.get(index).map_or(&[][..], |f| &f.0);
    let plain_list = table.lists.contains(&index);
    for field in fields.iter().rev() {
        let found = if plain_list {
            object
        } else {
            object.get(&field.name).unwrap_or(&Value::Null)
        };
        match (field.count, found) {
            (Count::One, _) if field.inline => value(out, field.number, field, object, depth + 1)?,
            (Count::One, Value::Null) if field.pointer => {}
            (Count::One, Value::Null) => {
                value(out, field.number, field, &zero(field.of), depth + 1)?;
            }
            (Count::One, found) => value(out, field.number, field, found, depth + 1)?,
            (_, Value::Null) => {}
            (Count::Many, Value::Array(items)) => {
                for item in items.iter().rev() {
                    let item = if item.is_null() {
                        &zero(field.of)
                    } else {
                        item
                    };
                    value(out, field.number, field, item, depth + 1)?;
                }
            }
            (Count::Map, Value::Object(entries)) => map(out, field, entries, depth + 1)?,
            _ => return Err(wrong(field)),
        }
    }
    Ok(())
}

/// Whether objects of that type have a protobuf form.
pub fn supports(api_version: &str, kind: &str) -> bool {
    table().root(api_version, kind).is_some()
}

fn root(api_version: &str, kind: &str) -> Result<usize, NotEncodable> {
    table()
        .root(api_version, kind)
        .ok_or_else(|| NotEncodable::Kind(api_version.into(), kind.into()))
}

/// Magic number, type, and `raw` between the other fields of the envelope.
fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(raw.len() + 64));
    out.text(4, "");
    out.text(3, "");
    let mark = out.0.len();
    out.bytes(raw);
    out.close(2, mark);
    let mark = out.0.len();
    out.text(2, kind);
    out.text(1, api_version);
    out.close(1, mark);
    out.bytes(MAGIC);
    out.finish()
}

fn bare(index: usize, object: &Value) -> Result<Vec<u8>, NotEncodable> {
    let mut out = Writer::default();
    message(&mut out, index, object, 0)?;
    Ok(out.finish())
}

/// An object of a known type as a body of its own.
///
/// # Errors
/// When the type has no protobuf form or a value is not of its field's type.
pub fn encode(object: &Value) -> Result<Vec<u8>, NotEncodable> {
    let text = |name| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let raw = bare(root(api_version, kind)?, object)?;
    Ok(envelope(api_version, kind, &raw))
}

/// An object as an item of a list.
///
/// # Errors
/// As [`encode`].
pub fn encode_item(api_version: &str, kind: &str, object: &Value) -> Result<Vec<u8>, NotEncodable> {
    bare(root(api_version, kind)?, object)
}

/// A list that is put together item by item, so that its tree is never in memory as a whole.
pub struct ListMessage {
    api_version: String,
    kind: String,
    metadata: Vec<u8>,
    items: Vec<u8>,
    items_number: u64,
}

impl ListMessage {
    /// An empty list of that type.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn new(api_version: &str, kind: &str, metadata: &Value) -> Result<Self, NotEncodable> {
        let index = root(api_version, kind)?;
        let head = Value::Object(Map::from_iter([("metadata".to_owned(), metadata.clone())]));
        let fields = table().messages.get(index).map_or(&[][..], |f| &f.0);
        let items = fields.iter().find(|f| f.name == "items");
        Ok(Self {
            api_version: api_version.into(),
            kind: kind.into(),
            metadata: bare(index, &head)?,
            items: Vec::new(),
            items_number: items.map_or(0, |f| f.number),
        })
    }

    /// Appends an item as [`encode_item`] gives it.
    pub fn push(&mut self, item: &[u8]) {
        let mut head = Writer::default();
        head.varint(item.len() as u64);
        head.tag(self.items_number, BYTES);
        self.items.extend_from_slice(&head.finish());
        self.items.extend_from_slice(item);
    }

    /// The whole body.
    pub fn finish(self) -> Vec<u8> {
        // An old list of metadata has its items first.
        let raw = if self.items_number < 2 {
            [self.items, self.metadata].concat()
        } else {
            [self.metadata, self.items].concat()
        };
        envelope(&self.api_version, &self.kind, &raw)
    }
}

/// A frame of a watch: four bytes of length, and an event around an encoded object.
pub fn watch_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(object.len() + 32));
    let mark = out.0.len();
    out.bytes(object);
    out.close(1, mark);
    out.close(2, mark);
    out.text(1, kind);
    let length = u32::try_from(out.0.len()).unwrap_or(u32::MAX);
    out.bytes(&length.to_be_bytes());
    out.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::to_json;
    use super::*;

    /// Objects and the bytes that upstream's own encoder makes of them (k8s.io/api v0.37.2).
    #[test]
    fn bytes_are_the_ones_of_generated_code() {
        let file = std::env::var("PROTOBUF_GOLDEN");
        let golden = file.map_or(include_str!("../../facts/golden.jsonl").into(), |f| {
            std::fs::read_to_string(f).unwrap()
        });
        for line in golden.lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            let bytes = STANDARD.decode(case["pb"].as_str().unwrap()).unwrap();
            assert_eq!(encode(&case["json"]).unwrap(), bytes, "{}", case["json"]);
            assert_eq!(encode(&to_json(&bytes).unwrap()).unwrap(), bytes);
        }
    }

    #[test]
    fn a_frame_has_its_length_before_it() {
        assert_eq!(
            watch_event("ADDED", b"xyz"),
            [&[0, 0, 0, 14][..], b"\x0a\x05ADDED\x12\x05\x0a\x03xyz"].concat()
        );
    }

    /// A random value of a field's type, the way it is stored.
    fn scalar(of: Type, depth: u32) -> BoxedStrategy<Value> {
        match of {
            Type::Text => "[a-z]{0,6}".prop_map(Value::from).boxed(),
            Type::Bool => any::<bool>().prop_map(Value::from).boxed(),
            Type::Int32 => any::<i32>().prop_map(Value::from).boxed(),
            Type::Int64 => any::<i64>().prop_map(Value::from).boxed(),
            Type::Double => any::<i16>()
                .prop_map(|n| (f64::from(n) / 4.0).into())
                .boxed(),
            Type::Bytes => proptest::collection::vec(any::<u8>(), 1..9)
                .prop_map(|b| STANDARD.encode(b).into())
                .boxed(),
            Type::Time => (0i64..4_000_000_000)
                .prop_map(|s| {
                    api::time::format(api::time::Timestamp::from_second(s).unwrap()).into()
                })
                .boxed(),
            Type::MicroTime => (0i64..4_000_000_000_000_000)
                .prop_map(|us| {
                    let at = api::time::Timestamp::from_microsecond(us).unwrap();
                    api::time::format_micro(at).into()
                })
                .boxed(),
            Type::Quantity => (0i64..2_000_000)
                .prop_map(|n| api::Quantity::from_milli(n).to_string().into())
                .boxed(),
            Type::IntOrString => prop_oneof![
                any::<i32>().prop_map(Value::from),
                "[a-z%]{0,5}".prop_map(Value::from)
            ]
            .boxed(),
            Type::Raw => "[a-z]{0,5}"
                .prop_map(|s| json!({"raw": s, "n": [1, {}]}))
                .boxed(),
            Type::SchemaOrBool => any::<bool>().prop_map(Value::from).boxed(),
            Type::SchemaOrArray => tree(table().schema, depth).boxed(),
            Type::SchemaOrStrings => proptest::collection::vec("[a-z]{0,5}", 1..3)
                .prop_map(|v| json!(v))
                .boxed(),
            Type::Message(index) => tree(index, depth),
        }
    }

    /// A random object of a message: about every third field, down to a depth.
    fn tree(index: usize, depth: u32) -> BoxedStrategy<Value> {
        let fields = &table().messages[index].0;
        if table().lists.contains(&index) {
            return proptest::collection::vec(scalar(fields[0].of, 0), 0..3)
                .prop_map(Value::Array)
                .boxed();
        }
        let mut all: Vec<BoxedStrategy<Vec<(String, Value)>>> = Vec::new();
        for field in fields {
            let nested = matches!(
                field.of,
                Type::Message(_) | Type::SchemaOrArray | Type::SchemaOrBool | Type::SchemaOrStrings
            );
            if depth == 0 && nested {
                continue;
            }
            let inner = scalar(field.of, depth.saturating_sub(1));
            let (name, inline) = (field.name.clone(), field.inline);
            all.push(match field.count {
                Count::One if inline => inner
                    .prop_map(|v| match v {
                        Value::Object(m) => m.into_iter().collect(),
                        _ => Vec::new(),
                    })
                    .boxed(),
                Count::One => some(name, inner),
                Count::Many => some(
                    name,
                    proptest::collection::vec(inner, 1..3)
                        .prop_map(Value::Array)
                        .boxed(),
                ),
                Count::Map => some(
                    name,
                    proptest::collection::btree_map("[a-z]{1,4}", inner, 1..3)
                        .prop_map(|m| Value::Object(m.into_iter().collect()))
                        .boxed(),
                ),
            });
        }
        all.prop_map(|parts| Value::Object(parts.into_iter().flatten().collect()))
            .boxed()
    }

    fn some(name: String, inner: BoxedStrategy<Value>) -> BoxedStrategy<Vec<(String, Value)>> {
        prop_oneof![
            2 => Just(Vec::new()),
            1 => inner.prop_map(move |v| vec![(name.clone(), v)])
        ]
        .boxed()
    }

    /// Encoded, read back and encoded again: the same bytes, whatever the kind.
    #[test]
    fn every_kind_survives_the_wire() {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let mut roots: Vec<(&String, &usize)> = table().roots.iter().collect();
        roots.sort();
        for (name, index) in roots {
            let (api_version, kind) = name.rsplit_once('/').unwrap();
            let strategy = tree(*index, 3);
            for _ in 0..4 {
                let mut object = strategy.new_tree(&mut runner).unwrap().current();
                object["apiVersion"] = api_version.into();
                object["kind"] = kind.into();
                let bytes = encode(&object).unwrap();
                let back = to_json(&bytes).unwrap();
                assert_eq!(encode(&back).unwrap(), bytes, "{name}: {object} {back}");
            }
        }
    }

    proptest! {
        #[test]
        fn lists_are_their_items(names in proptest::collection::vec("[a-z]{1,5}", 0..5)) {
            let item = |n: &String| json!({"metadata": {"name": n}, "data": {"k": n}});
            let metadata = json!({"resourceVersion": "7"});
            let mut list = ListMessage::new("v1", "ConfigMapList", &metadata).unwrap();
            for name in &names {
                list.push(&encode_item("v1", "ConfigMap", &item(name)).unwrap());
            }
            let whole = json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata,
                "items": names.iter().map(item).collect::<Vec<_>>()});
            prop_assert_eq!(list.finish(), encode(&whole).unwrap());
        }
    }
}
