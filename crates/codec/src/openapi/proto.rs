//! The v2 document in gnostic's protobuf form.
//!
//! A small writer over field numbers: messages are written from the same JSON trees as the JSON
//! document, so that both say the same.

use bytes::Bytes;
use serde_json::Value;

/// Field numbers of the messages, by what they are called in JSON.
mod field {
    pub(super) const SCHEMA: &[(&str, u32, super::Form)] = &[
        ("$ref", 1, super::Form::Text),
        ("format", 2, super::Form::Text),
        ("description", 4, super::Form::Text),
        ("default", 5, super::Form::Any),
        ("uniqueItems", 16, super::Form::Flag),
        ("required", 19, super::Form::Texts),
        ("enum", 20, super::Form::Anys),
        ("additionalProperties", 21, super::Form::Nested),
        ("type", 22, super::Form::Type),
        ("items", 23, super::Form::Nested),
        ("properties", 25, super::Form::Properties),
    ];
    pub(super) const SCHEMA_EXTENSION: u32 = 31;
    pub(super) const OPERATION: &[(&str, u32, super::Form)] = &[
        ("tags", 1, super::Form::Texts),
        ("description", 3, super::Form::Text),
        ("operationId", 5, super::Form::Text),
        ("produces", 6, super::Form::Texts),
        ("consumes", 7, super::Form::Texts),
        ("parameters", 8, super::Form::Parameters),
        ("responses", 9, super::Form::Responses),
    ];
    pub(super) const OPERATION_EXTENSION: u32 = 13;
    pub(super) const PATH_ITEM: &[(&str, u32, super::Form)] = &[
        ("get", 2, super::Form::Operation),
        ("put", 3, super::Form::Operation),
        ("post", 4, super::Form::Operation),
        ("delete", 5, super::Form::Operation),
        ("patch", 8, super::Form::Operation),
        ("parameters", 9, super::Form::Parameters),
    ];
    pub(super) const BODY_PARAMETER: &[(&str, u32, super::Form)] = &[
        ("description", 1, super::Form::Text),
        ("name", 2, super::Form::Text),
        ("in", 3, super::Form::Text),
        ("required", 4, super::Form::Flag),
        ("schema", 5, super::Form::Schema),
    ];
    pub(super) const PATH_PARAMETER: &[(&str, u32, super::Form)] = &[
        ("required", 1, super::Form::Flag),
        ("in", 2, super::Form::Text),
        ("description", 3, super::Form::Text),
        ("name", 4, super::Form::Text),
        ("type", 5, super::Form::Text),
        ("uniqueItems", 19, super::Form::Flag),
    ];
    pub(super) const QUERY_PARAMETER: &[(&str, u32, super::Form)] = &[
        ("required", 1, super::Form::Flag),
        ("in", 2, super::Form::Text),
        ("description", 3, super::Form::Text),
        ("name", 4, super::Form::Text),
        ("type", 6, super::Form::Text),
        ("uniqueItems", 20, super::Form::Flag),
    ];
}

/// How a JSON value becomes a field.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Texts,
    Flag,
    /// Free values are carried as YAML, of which JSON is a part.
    Any,
    Anys,
    Schema,
    /// A message that holds a schema as its first field.
    Nested,
    Type,
    Properties,
    Operation,
    Parameters,
    Responses,
}

/// A document being written.
pub(super) struct Document {
    head: Vec<u8>,
    paths: Vec<u8>,
    definitions: Vec<u8>,
}

impl Document {
    pub(super) fn new(title: &str, version: &str) -> Self {
        let mut info = Vec::new();
        put_text(&mut info, 1, title);
        put_text(&mut info, 2, version);
        let mut head = Vec::new();
        put_text(&mut head, 1, "2.0");
        put_bytes(&mut head, 2, &info);
        Self {
            head,
            paths: Vec::new(),
            definitions: Vec::new(),
        }
    }

    pub(super) fn path(&mut self, path: &str, item: &Value) {
        put_bytes(
            &mut self.paths,
            2,
            &named(path, &message(item, field::PATH_ITEM, None)),
        );
    }

    pub(super) fn definition(&mut self, name: &str, definition: &Value) {
        put_bytes(&mut self.definitions, 1, &named(name, &schema(definition)));
    }

    pub(super) fn finish(self) -> Bytes {
        let mut out = self.head;
        put_bytes(&mut out, 8, &self.paths);
        put_bytes(&mut out, 9, &self.definitions);
        out.into()
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_text(out: &mut Vec<u8>, number: u32, text: &str) {
    put_bytes(out, number, text.as_bytes());
}

/// A name and a message: how maps are written.
fn named(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + value.len() + 8);
    put_text(&mut out, 1, name);
    put_bytes(&mut out, 2, value);
    out
}

/// A message with one field, the first or another one.
fn wrapped(number: u32, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 8);
    put_bytes(&mut out, number, value);
    out
}

fn any(value: &Value) -> Vec<u8> {
    wrapped(2, value.to_string().as_bytes())
}

fn schema(value: &Value) -> Vec<u8> {
    message(value, field::SCHEMA, Some(field::SCHEMA_EXTENSION))
}

fn message(value: &Value, fields: &[(&str, u32, Form)], extension: Option<u32>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, number, form) in fields {
        if let Some(value) = value.get(*name) {
            put(&mut out, *number, value, *form);
        }
    }
    if let Some(number) = extension {
        for (name, value) in value
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(k, _)| k.starts_with("x-"))
        {
            put_bytes(&mut out, number, &named(name, &any(value)));
        }
    }
    out
}

fn put(out: &mut Vec<u8>, number: u32, value: &Value, form: Form) {
    let items = || value.as_array().map_or(&[][..], Vec::as_slice);
    let entries = || value.as_object().into_iter().flatten();
    match form {
        Form::Text => put_text(out, number, value.as_str().unwrap_or_default()),
        Form::Texts => items()
            .iter()
            .for_each(|t| put_text(out, number, t.as_str().unwrap_or_default())),
        Form::Flag => {
            put_varint(out, u64::from(number) << 3);
            out.push(u8::from(value.as_bool().unwrap_or_default()));
        }
        Form::Any => put_bytes(out, number, &any(value)),
        Form::Anys => items().iter().for_each(|v| put_bytes(out, number, &any(v))),
        Form::Schema => put_bytes(out, number, &schema(value)),
        Form::Nested => put_bytes(out, number, &wrapped(1, &schema(value))),
        Form::Type => put_bytes(
            out,
            number,
            &wrapped(1, value.as_str().unwrap_or_default().as_bytes()),
        ),
        Form::Properties => {
            let mut all = Vec::new();
            entries().for_each(|(k, v)| put_bytes(&mut all, 1, &named(k, &schema(v))));
            put_bytes(out, number, &all);
        }
        Form::Operation => put_bytes(
            out,
            number,
            &message(value, field::OPERATION, Some(field::OPERATION_EXTENSION)),
        ),
        Form::Parameters => items()
            .iter()
            .for_each(|p| put_bytes(out, number, &parameter(p))),
        Form::Responses => {
            let mut all = Vec::new();
            entries().for_each(|(code, r)| {
                put_bytes(&mut all, 1, &named(code, &wrapped(1, &response(r))))
            });
            put_bytes(out, number, &all);
        }
    }
}

fn parameter(value: &Value) -> Vec<u8> {
    let inner = match value.get("in").and_then(Value::as_str) {
        Some("body") => wrapped(1, &message(value, field::BODY_PARAMETER, None)),
        Some("path") => wrapped(2, &wrapped(4, &message(value, field::PATH_PARAMETER, None))),
        _ => wrapped(
            2,
            &wrapped(3, &message(value, field::QUERY_PARAMETER, None)),
        ),
    };
    wrapped(1, &inner)
}

fn response(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_text(
        &mut out,
        1,
        value
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default(),
    );
    if let Some(inner) = value.get("schema") {
        put_bytes(&mut out, 2, &wrapped(1, &schema(inner)));
    }
    out
}
