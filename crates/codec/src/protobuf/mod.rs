//! Protobuf bodies (`application/vnd.kubernetes.protobuf`) from and to JSON trees.
//!
//! Table driven: `facts/protobuf.json` lists the field numbers of every message, so no kind has code of its own. The bytes are
//! the ones that upstream's generated code writes: fields in ascending order, maps by key, what is no pointer even when zero.

mod decode;
mod encode;

use std::collections::HashMap;
use std::sync::OnceLock;

use serde::Deserialize;

pub use decode::to_json;
pub use encode::{ListMessage, NotEncodable, encode, encode_item, supports, watch_event};

/// First bytes of every protobuf body.
const MAGIC: &[u8] = b"k8s\0";

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Text,
    Bool,
    Int32,
    Int64,
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    Double,
    Raw,
    /// A schema or a list of schemas.
    SchemaOrArray,
    /// A schema or a truth value.
    SchemaOrBool,
    /// A schema or a list of names.
    SchemaOrStrings,
    Message(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    One,
    Many,
    Map,
}

#[derive(Debug)]
struct Field {
    number: u64,
    name: String,
    of: Type,
    count: Count,
    /// Absent when it is not set; everything else is always written.
    pointer: bool,
    /// Upstream's JSON has it even when it is zero.
    zero_shown: bool,
    /// The message's fields belong to the parent in JSON.
    inline: bool,
}

impl Field {
    /// Whether a zero on the wire is a value in JSON, too.
    fn shows_zero(&self) -> bool {
        self.pointer || self.zero_shown || self.of == Type::IntOrString
    }
}

/// Fields of a message in ascending order of their numbers.
struct Fields(Vec<Field>);

impl Fields {
    fn get(&self, number: u64) -> Option<&Field> {
        let at = self.0.binary_search_by_key(&number, |f| f.number).ok()?;
        self.0.get(at)
    }
}

#[derive(Default)]
struct Table {
    roots: HashMap<String, usize>,
    lists: Vec<usize>,
    /// The message of a schema of custom resources.
    schema: usize,
    messages: Vec<Fields>,
}

impl Table {
    fn root(&self, api_version: &str, kind: &str) -> Option<usize> {
        self.roots.get(&format!("{api_version}/{kind}")).copied()
    }
}

#[derive(Deserialize)]
struct Facts {
    roots: HashMap<String, usize>,
    lists: Vec<usize>,
    schema: usize,
    messages: Vec<HashMap<String, Vec<String>>>,
}

fn field(number: u64, entry: &[String]) -> Option<Field> {
    let (name, text) = (entry.first()?, entry.get(1)?);
    let flag = entry.get(2).map_or("", String::as_str);
    let (count, of) = match text.split_once(':') {
        Some(("rep", of)) => (Count::Many, of),
        Some((_, of)) => (Count::Map, of),
        None => (Count::One, text.as_str()),
    };
    let of = match of {
        "string" => Type::Text,
        "bool" => Type::Bool,
        "int32" => Type::Int32,
        "int64" => Type::Int64,
        "bytes" => Type::Bytes,
        "Time" => Type::Time,
        "MicroTime" => Type::MicroTime,
        "Quantity" => Type::Quantity,
        "IntOrString" => Type::IntOrString,
        "double" => Type::Double,
        "Raw" => Type::Raw,
        "SchemaOrArray" => Type::SchemaOrArray,
        "SchemaOrBool" => Type::SchemaOrBool,
        "SchemaOrStrings" => Type::SchemaOrStrings,
        index => Type::Message(index.parse().ok()?),
    };
    Some(Field {
        number,
        name: name.clone(),
        of,
        count,
        pointer: flag == "p",
        zero_shown: flag == "z",
        inline: flag == "i",
    })
}

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        let facts: Facts = match serde_json::from_str(include_str!("../../facts/protobuf.json")) {
            Ok(facts) => facts,
            // The file is part of the program; a test reads it.
            Err(_) => return Table::default(),
        };
        let message = |entries: HashMap<String, Vec<String>>| {
            let known = |(n, e): (&String, &Vec<String>)| field(n.parse().ok()?, e);
            let mut fields: Vec<Field> = entries.iter().filter_map(known).collect();
            fields.sort_by_key(|f| f.number);
            Fields(fields)
        };
        Table {
            roots: facts.roots,
            lists: facts.lists,
            schema: facts.schema,
            messages: facts.messages.into_iter().map(message).collect(),
        }
    })
}
