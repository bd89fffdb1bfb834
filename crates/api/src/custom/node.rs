//! Schemas of custom resources, parsed: one node a value, with its structure and its checks.
//!
//! The same node serves structural schemas and the value validations nested under `allOf` and its like;
//! whether a schema is structural is a rule about nodes (in `kinds`), not a type of its own.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::ListType;

/// Fields that make a schema impossible to use, as upstream names them.
const UNSUPPORTED: [(&str, &str); 7] = [
    ("id", "id"),
    ("$schema", "schema"),
    ("$ref", "$ref"),
    ("patternProperties", "patternProperties"),
    ("dependencies", "dependencies"),
    ("additionalItems", "additionalItems"),
    ("definitions", "definitions"),
];

/// What keys that are not listed in `properties` may hold.
#[derive(Debug, Clone)]
pub enum Additional {
    /// Anything, or nothing at all.
    Allowed(bool),
    /// Values of that schema.
    Schema(Box<Node>),
}

/// A rule written in CEL.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    /// The expression that must hold.
    pub rule: String,
    /// What is said when it does not hold; may be empty.
    pub message: String,
    /// An expression that makes the message; may be empty.
    pub message_expression: String,
    /// `FieldValueInvalid` and its like; empty means that one.
    pub reason: String,
    /// The field that is blamed, relative to the rule's own; may be empty.
    pub field_path: String,
    /// Whether a rule about changes also runs when there is no old value.
    pub optional_old_self: Option<bool>,
}

/// Checks of scalars and sizes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Checks {
    /// Largest number.
    pub maximum: Option<f64>,
    /// Whether the largest number itself is too large.
    pub exclusive_maximum: bool,
    /// Smallest number.
    pub minimum: Option<f64>,
    /// Whether the smallest number itself is too small.
    pub exclusive_minimum: bool,
    /// Numbers must be a multiple of it.
    pub multiple_of: Option<f64>,
    /// Longest string, in characters.
    pub max_length: Option<i64>,
    /// Shortest string, in characters.
    pub min_length: Option<i64>,
    /// Regular expression that strings must match; empty if there is none.
    pub pattern: String,
    /// Most items of a list.
    pub max_items: Option<i64>,
    /// Fewest items of a list.
    pub min_items: Option<i64>,
    /// Whether items must differ.
    pub unique_items: bool,
    /// Most keys of an object.
    pub max_properties: Option<i64>,
    /// Fewest keys of an object.
    pub min_properties: Option<i64>,
    /// Allowed values; empty if any.
    pub allowed: Vec<Value>,
}

/// One value's schema.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// `object`, `array`, `string`, `integer`, `number`, `boolean`, or empty.
    pub kind: String,
    /// Format of the value; empty if there is none.
    pub format: String,
    /// Title; only counted, never shown.
    pub title: String,
    /// Whether it is described.
    pub described: bool,
    /// Whether null is a value.
    pub nullable: bool,
    /// Value filled in when absent.
    pub default: Option<Value>,
    /// Fields of an object.
    pub properties: BTreeMap<String, Node>,
    /// Other fields of an object.
    pub additional: Option<Additional>,
    /// Items of a list.
    pub items: Option<Box<Node>>,
    /// Fields that must be there.
    pub required: Vec<String>,
    /// Checks of the value itself.
    pub checks: Checks,
    /// All of these must hold.
    pub all_of: Vec<Node>,
    /// One of these must hold.
    pub any_of: Vec<Node>,
    /// Exactly one of these must hold.
    pub one_of: Vec<Node>,
    /// This must not hold.
    pub not: Option<Box<Node>>,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserve_unknown: bool,
    /// `x-kubernetes-embedded-resource`.
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`.
    pub int_or_string: bool,
    /// `x-kubernetes-list-type`.
    pub list_type: Option<ListType>,
    /// `x-kubernetes-list-map-keys`.
    pub map_keys: Vec<String>,
    /// `x-kubernetes-map-type`: `atomic`, `granular`, or empty.
    pub map_type: String,
    /// `x-kubernetes-validations`.
    pub rules: Vec<Rule>,
}

impl Node {
    /// Parses a schema as it is written in a definition.
    ///
    /// # Errors
    /// The first thing that no structural schema can have, in upstream's words.
    pub fn parse(schema: &Value) -> Result<Self, String> {
        if let Some((_, name)) = UNSUPPORTED.iter().find(|(key, _)| is_set(schema, key)) {
            return Err(format!("OpenAPIV3Schema '{name}' is not supported"));
        }
        if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
            let why =
                "internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined";
            return Err(why.to_owned());
        }
        let items = match schema.get("items") {
            Some(Value::Array(_)) => {
                return Err("OpenAPIV3Schema 'items' must be a schema, but is an array".to_owned());
            }
            other => optional(other)?,
        };
        let additional = match schema.get("additionalProperties") {
            Some(Value::Bool(allowed)) => Some(Additional::Allowed(*allowed)),
            Some(inner @ Value::Object(_)) => {
                Some(Additional::Schema(Box::new(Self::parse(inner)?)))
            }
            _ => None,
        };
        let mut properties = BTreeMap::new();
        for (name, inner) in entries(schema, "properties") {
            properties.insert(name.clone(), Self::parse(inner)?);
        }
        Ok(Self {
            items,
            additional,
            properties,
            all_of: several(schema, "allOf")?,
            any_of: several(schema, "anyOf")?,
            one_of: several(schema, "oneOf")?,
            not: optional(schema.get("not"))?,
            ..Self::leaf(schema)
        })
    }

    /// Everything but nested schemas.
    fn leaf(schema: &Value) -> Self {
        let extension = |name: &str| flag(schema, &format!("x-kubernetes-{name}"));
        Self {
            kind: text(schema, "type"),
            format: text(schema, "format"),
            title: text(schema, "title"),
            described: is_set(schema, "description"),
            nullable: flag(schema, "nullable"),
            default: schema.get("default").filter(|d| !d.is_null()).cloned(),
            required: texts(schema, "required"),
            checks: Checks::parse(schema),
            preserve_unknown: extension("preserve-unknown-fields"),
            embedded: extension("embedded-resource"),
            int_or_string: extension("int-or-string"),
            list_type: match text(schema, "x-kubernetes-list-type").as_str() {
                "atomic" => Some(ListType::Atomic),
                "set" => Some(ListType::Set),
                "map" => Some(ListType::Map),
                _ => None,
            },
            map_keys: texts(schema, "x-kubernetes-list-map-keys"),
            map_type: text(schema, "x-kubernetes-map-type"),
            rules: list(schema, "x-kubernetes-validations")
                .iter()
                .map(Rule::parse)
                .collect(),
            ..Self::default()
        }
    }

    /// The schema of the value under a key: that of its property or of other fields.
    pub fn field(&self, key: &str) -> Option<&Self> {
        self.properties.get(key).or_else(|| self.others())
    }

    /// The schema of fields that are not listed.
    pub fn others(&self) -> Option<&Self> {
        match &self.additional {
            Some(Additional::Schema(node)) => Some(node),
            _ => None,
        }
    }

    /// Whether this node or one below it (not under `allOf` and its like) satisfies `test`.
    pub fn any(&self, test: &dyn Fn(&Self) -> bool) -> bool {
        test(self)
            || self.properties.values().any(|n| n.any(test))
            || self.items.as_ref().is_some_and(|n| n.any(test))
            || self.others().is_some_and(|n| n.any(test))
    }
}

impl Checks {
    fn parse(schema: &Value) -> Self {
        let number = |key: &str| schema.get(key).and_then(Value::as_f64);
        let count = |key: &str| schema.get(key).and_then(Value::as_i64);
        Self {
            maximum: number("maximum"),
            exclusive_maximum: flag(schema, "exclusiveMaximum"),
            minimum: number("minimum"),
            exclusive_minimum: flag(schema, "exclusiveMinimum"),
            multiple_of: number("multipleOf"),
            max_length: count("maxLength"),
            min_length: count("minLength"),
            pattern: text(schema, "pattern"),
            max_items: count("maxItems"),
            min_items: count("minItems"),
            unique_items: flag(schema, "uniqueItems"),
            max_properties: count("maxProperties"),
            min_properties: count("minProperties"),
            allowed: list(schema, "enum").to_vec(),
        }
    }
}

impl Rule {
    fn parse(rule: &Value) -> Self {
        Self {
            rule: text(rule, "rule"),
            message: text(rule, "message"),
            message_expression: text(rule, "messageExpression"),
            reason: text(rule, "reason"),
            field_path: text(rule, "fieldPath"),
            optional_old_self: rule.get("optionalOldSelf").and_then(Value::as_bool),
        }
    }
}

fn optional(schema: Option<&Value>) -> Result<Option<Box<Node>>, String> {
    match schema {
        Some(inner @ Value::Object(_)) => Ok(Some(Box::new(Node::parse(inner)?))),
        _ => Ok(None),
    }
}

fn several(schema: &Value, key: &str) -> Result<Vec<Node>, String> {
    list(schema, key).iter().map(Node::parse).collect()
}

fn list<'a>(schema: &'a Value, key: &str) -> &'a [Value] {
    schema
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn entries<'a>(schema: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    schema
        .get(key)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

fn text(schema: &Value, key: &str) -> String {
    schema
        .get(key)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn texts(schema: &Value, key: &str) -> Vec<String> {
    list(schema, key)
        .iter()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
}

fn flag(schema: &Value, key: &str) -> bool {
    schema.get(key).and_then(Value::as_bool).unwrap_or_default()
}

/// Whether a key holds anything but an empty value.
fn is_set(schema: &Value, key: &str) -> bool {
    match schema.get(key) {
        None | Some(Value::Null) => false,
        Some(Value::String(s)) => !s.is_empty(),
        Some(Value::Object(m)) if key != "additionalItems" => !m.is_empty(),
        Some(_) => true,
    }
}
