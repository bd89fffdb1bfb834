//! Schemas as definitions write them: what may be said at all, and how lists and maps may be typed.

use std::collections::BTreeSet;

use api::custom::Node;
use api::{FieldError, meta};
use serde_json::{Value, json};

use super::{defaults, expressions, structural};
use crate::check::one_of_if_set;
use crate::custom::is_known_format;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
/// What may be said at the root of a schema with a status of its own: the status is checked by itself.
const AT_ROOT: [(&str, &str); 22] = [
    ("description", "Description"),
    ("type", "Type"),
    ("format", "Format"),
    ("title", "Title"),
    ("maximum", "Maximum"),
    ("exclusiveMaximum", "ExclusiveMaximum"),
    ("minimum", "Minimum"),
    ("exclusiveMinimum", "ExclusiveMinimum"),
    ("maxLength", "MaxLength"),
    ("minLength", "MinLength"),
    ("pattern", "Pattern"),
    ("maxItems", "MaxItems"),
    ("minItems", "MinItems"),
    ("uniqueItems", "UniqueItems"),
    ("multipleOf", "MultipleOf"),
    ("required", "Required"),
    ("items", "Items"),
    ("properties", "Properties"),
    ("externalDocs", "ExternalDocs"),
    ("example", "Example"),
    (
        "x-kubernetes-preserve-unknown-fields",
        "XPreserveUnknownFields",
    ),
    ("x-kubernetes-validations", "XValidations"),
];

/// Every broken rule of a version's schema at a path. A schema that was accepted before may keep rules that are
/// too dear by themselves.
pub(super) fn validate(
    written: &Value,
    path: &str,
    has_status: bool,
    accepted: bool,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if has_status {
        errors.extend(root(written, path));
    }
    if flag(written, "nullable") {
        let why = "nullable cannot be true at the root";
        errors.push(FieldError::forbidden(format!("{path}.nullable"), why));
    }
    let parsed = Node::parse(written);
    if let Ok(node) = &parsed {
        let problems = structural::problems(node, path);
        if problems.is_empty() {
            errors.extend(defaults::validate(node, path));
        }
        errors.extend(problems);
    }
    let mut walk = Walk { errors: Vec::new() };
    walk.schema(
        written,
        path,
        Place {
            root: true,
            ..Place::default()
        },
    );
    let sound = errors.is_empty() && walk.errors.is_empty();
    errors.extend(walk.errors);
    if let (Ok(node), true) = (&parsed, sound) {
        errors.extend(expressions::validate(node, path, accepted));
    }
    if let (Err(why), true) = (parsed, errors.is_empty()) {
        errors.push(FieldError::invalid(path, "", why));
    }
    errors
}

fn root(written: &Value, path: &str) -> Option<FieldError> {
    let kind = meta::str_at(written, &["type"]);
    if !kind.is_empty() && kind != "object" {
        let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        return Some(FieldError::invalid(format!("{path}.type"), kind, why));
    }
    let set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(m) => !m.is_empty(),
        _ => true,
    };
    let other = |(key, value): (&String, &Value)| {
        set(value) && !AT_ROOT.iter().any(|(name, _)| name == key)
    };
    written.as_object()?.iter().any(other).then(|| {
        let names: Vec<&str> = AT_ROOT.iter().map(|(_, name)| *name).collect();
        let why = format!(
            "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
            names.join(" ")
        );
        FieldError::invalid(path, written.clone(), why)
    })
}

fn flag(schema: &Value, key: &str) -> bool {
    schema.get(key) == Some(&Value::Bool(true))
}

fn text<'a>(schema: &'a Value, key: &str) -> &'a str {
    meta::str_at(schema, &[key])
}

/// Where in a schema the walk is.
#[derive(Clone, Copy, Default)]
struct Place {
    root: bool,
    /// Inside type or metadata of a resource.
    in_meta: bool,
    /// Why defaults are forbidden here; empty if they are not.
    no_default: &'static str,
}

struct Walk {
    errors: Vec<FieldError>,
}

impl Walk {
    fn forbid(&mut self, holds: bool, path: String, why: &str) {
        if holds {
            self.errors.push(FieldError::forbidden(path, why));
        }
    }

    fn schema(&mut self, schema: &Value, path: &str, place: Place) {
        if !schema.is_object() {
            return;
        }
        self.allowed(schema, path, place);
        let inner = Place {
            root: false,
            ..place
        };
        self.nested(schema, path, place, inner);
        self.types(schema, path);
        self.list(schema, path);
        self.list_map(schema, path);
        self.rules(schema, path);
    }

    fn allowed(&mut self, schema: &Value, path: &str, place: Place) {
        let at = |key: &str| format!("{path}.{key}");
        let kind = text(schema, "type");
        if !kind.is_empty() && !TYPES.contains(&kind) {
            self.errors
                .push(FieldError::not_supported(at("type"), kind, &TYPES));
        }
        let default = schema.get("default").is_some_and(|d| !d.is_null());
        let why = format!("must not be set {}", place.no_default);
        self.forbid(default && !place.no_default.is_empty(), at("default"), &why);
        for key in [
            "id",
            "additionalItems",
            "patternProperties",
            "definitions",
            "dependencies",
            "$ref",
        ] {
            let set = match schema.get(key) {
                None | Some(Value::Null) => false,
                Some(Value::String(s)) => !s.is_empty(),
                Some(_) => true,
            };
            self.forbid(set, at(key), &format!("{key} is not supported"));
        }
        let why = "type cannot be set to null, use nullable as an alternative";
        self.forbid(kind == "null", at("type"), why);
        let why = "items must be a schema object and not an array";
        self.forbid(
            schema.get("items").is_some_and(Value::is_array),
            at("items"),
            why,
        );
        self.forbid(
            place.in_meta && flag(schema, "x-kubernetes-embedded-resource"),
            at("x-kubernetes-embedded-resource"),
            "must not be used inside of resource meta",
        );
        let why =
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        self.forbid(flag(schema, "uniqueItems"), at("uniqueItems"), why);
    }

    fn nested(&mut self, schema: &Value, path: &str, place: Place, inner: Place) {
        let properties = schema.get("properties").and_then(Value::as_object);
        if let Some(additional) = schema.get("additionalProperties") {
            let at = format!("{path}.additionalProperties");
            let named = properties.is_some_and(|p| !p.is_empty());
            let why = "additionalProperties and properties are mutual exclusive";
            self.forbid(named && *additional != Value::Bool(true), at.clone(), why);
            let mut below = inner;
            if place.in_meta {
                below.no_default = "inside additionalProperties applying to object metadata";
            }
            self.schema(additional, &at, below);
        }
        let resource = place.root || flag(schema, "x-kubernetes-embedded-resource");
        for (name, property) in properties.into_iter().flatten() {
            let mut below = inner;
            if resource && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
                below.in_meta = true;
                if place.root {
                    below.no_default = match name.as_str() {
                        "metadata" => "in top-level metadata",
                        "kind" => "in top-level kind",
                        _ => "in top-level apiVersion",
                    };
                }
            }
            self.schema(property, &format!("{path}.properties[{name}]"), below);
        }
        for key in ["not", "items"] {
            if let Some(below) = schema.get(key) {
                self.schema(below, &format!("{path}.{key}"), inner);
            }
        }
        for key in ["allOf", "oneOf", "anyOf"] {
            for (index, below) in meta::list_at(schema, &[key]).iter().enumerate() {
                self.schema(below, &format!("{path}.{key}[{index}]"), inner);
            }
        }
    }

    /// List and map types, and the types of values they are for.
    fn types(&mut self, schema: &Value, path: &str) {
        let kind = text(schema, "type");
        let preserve = "x-kubernetes-preserve-unknown-fields";
        if schema.get(preserve) == Some(&Value::Bool(false)) {
            let why = "must be true or undefined";
            self.errors.push(FieldError::invalid(
                format!("{path}.{preserve}"),
                false,
                why,
            ));
        }
        for (key, wanted, allowed) in [
            (
                "x-kubernetes-map-type",
                "object",
                &["atomic", "granular"][..],
            ),
            (
                "x-kubernetes-list-type",
                "array",
                &["atomic", "set", "map"][..],
            ),
        ] {
            let Some(value) = schema.get(key).and_then(Value::as_str) else {
                continue;
            };
            let why = format!("must be {wanted} if {key} is specified");
            let at = format!("{path}.type");
            match kind {
                k if k == wanted => {}
                "" => self.errors.push(FieldError::required(at, why)),
                k => self.errors.push(FieldError::invalid(at, k, why)),
            }
            self.errors
                .extend(one_of_if_set(value, format!("{path}.{key}"), allowed));
        }
    }

    fn list(&mut self, schema: &Value, path: &str) {
        let list_type = text(schema, "x-kubernetes-list-type");
        let Some(items) = schema.get("items").filter(|i| i.is_object()) else {
            return;
        };
        if !matches!(list_type, "set" | "map") {
            return;
        }
        let at = |key: &str| format!("{path}.items.{key}");
        let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
        if list_type == "set" && text(schema, "type") == "array" {
            let (list, map) = ("x-kubernetes-list-type", "x-kubernetes-map-type");
            let atomic = |key: &str| text(items, key) == "atomic";
            match text(items, "type") {
                "array" if !atomic(list) && !text(items, list).is_empty() => {
                    let value = text(items, list);
                    self.errors.push(FieldError::invalid(at(list), value, why));
                }
                "object" if !atomic(map) => {
                    let value = items.get(map).cloned().unwrap_or_default();
                    self.errors.push(FieldError::invalid(at(map), value, why));
                }
                _ => {}
            }
        }
        let why = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        self.forbid(flag(items, "nullable"), at("nullable"), &why);
    }

    fn list_map(&mut self, schema: &Value, path: &str) {
        let list_type = text(schema, "x-kubernetes-list-type");
        let keys = meta::list_at(schema, &["x-kubernetes-list-map-keys"]);
        if !keys.is_empty() && list_type != "map" {
            let at = format!("{path}.x-kubernetes-list-type");
            let why = "must be map if x-kubernetes-list-map-keys is non-empty";
            self.errors.push(match list_type {
                "" => FieldError::required(at, why),
                other => FieldError::invalid(at, other, why),
            });
        }
        if list_type != "map" {
            return;
        }
        let at_keys = format!("{path}.x-kubernetes-list-map-keys");
        if keys.is_empty() {
            let why = "must not be empty if x-kubernetes-list-type is map";
            self.errors
                .push(FieldError::required(at_keys.as_str(), why));
        }
        let Some(items) = schema.get("items") else {
            let why = "must have a schema if x-kubernetes-list-type is map";
            self.errors
                .push(FieldError::required(format!("{path}.items"), why));
            return;
        };
        if text(items, "type") != "object" {
            let why = "must be object if parent array's x-kubernetes-list-type is map";
            let at = format!("{path}.items.type");
            self.errors
                .push(FieldError::invalid(at, text(items, "type"), why));
            return;
        }
        let required = meta::list_at(items, &["required"]);
        let mut seen = BTreeSet::new();
        for key in keys.iter().filter_map(Value::as_str) {
            let mut refuse = |why: &str| {
                self.errors
                    .push(FieldError::invalid(at_keys.as_str(), json!(keys), why));
            };
            if !seen.insert(key) {
                refuse("must not contain duplicate entries");
            }
            match meta::get(items, &["properties", key]) {
                None => refuse("entries must all be names of item properties"),
                Some(property) => {
                    let needed = required.iter().any(|r| r == key);
                    self.map_key(property, needed, &format!("{path}.items.properties[{key}]"));
                }
            }
        }
    }

    fn map_key(&mut self, property: &Value, required: bool, at: &str) {
        if matches!(text(property, "type"), "array" | "object") {
            let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            self.errors
                .push(FieldError::invalid(format!("{at}.type"), "object", why));
        }
        if !required && property.get("default").is_none_or(Value::is_null) {
            let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            self.errors
                .push(FieldError::required(format!("{at}.default"), why));
        }
        let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
        self.forbid(flag(property, "nullable"), format!("{at}.nullable"), why);
    }

    /// How rules in CEL are written; what they say is checked elsewhere.
    fn rules(&mut self, schema: &Value, path: &str) {
        const REASONS: [&str; 4] = [
            "FieldValueDuplicate",
            "FieldValueForbidden",
            "FieldValueInvalid",
            "FieldValueRequired",
        ];
        let newlines = |s: &str| s.contains(['\n', '\r']);
        let rules = meta::list_at(schema, &["x-kubernetes-validations"]);
        for (index, rule) in rules.iter().enumerate() {
            let at = |field: &str| format!("{path}.x-kubernetes-validations[{index}].{field}");
            let given = |field: &str| text(rule, field);
            let (body, message) = (given("rule").trim(), given("message").trim());
            let mut refuse = |field: &str, why: &str| {
                self.errors
                    .push(FieldError::invalid(at(field), given(field), why));
            };
            if !given("message").is_empty() && message.is_empty() {
                refuse("message", "must be non-empty if specified");
            } else if newlines(message) {
                refuse("message", "must not contain line breaks");
            }
            if !given("fieldPath").is_empty() && given("fieldPath").trim().is_empty() {
                refuse("fieldPath", "must be non-empty if specified");
            }
            if newlines(given("fieldPath")) {
                refuse("fieldPath", "must not contain line breaks");
            }
            if body.is_empty() {
                self.errors
                    .push(FieldError::required(at("rule"), "rule is not specified"));
            } else if newlines(body) && message.is_empty() {
                let why = "message must be specified if rule contains line breaks";
                self.errors.push(FieldError::required(at("message"), why));
            }
            if !given("messageExpression").is_empty()
                && given("messageExpression").trim().is_empty()
            {
                let why = "messageExpression must be non-empty if specified";
                self.errors
                    .push(FieldError::required(at("messageExpression"), why));
            }
            self.errors
                .extend(one_of_if_set(given("reason"), at("reason"), &REASONS));
        }
    }
}

/// Warnings about schemas that are valid but hardly meant.
pub(super) fn warnings(definition: &Value) -> Vec<String> {
    let mut formats = Vec::new();
    let mut sets = BTreeSet::new();
    for version in meta::list_at(definition, &["spec", "versions"]) {
        if let Some(schema) = super::parsed(meta::get(version, &["schema", "openAPIV3Schema"])) {
            collect(&schema, &mut formats, &mut sets);
        }
    }
    formats.extend(sets);
    formats
}

fn collect(node: &Node, formats: &mut Vec<String>, sets: &mut BTreeSet<String>) {
    let known = match node.kind.as_str() {
        "" | "string" => is_known_format(&node.format),
        "integer" => matches!(node.format.as_str(), "int32" | "int64"),
        "number" => matches!(node.format.as_str(), "float" | "double"),
        _ => false,
    };
    if !node.format.is_empty() && !known {
        formats.push(format!("unrecognized format {:?}", node.format));
    }
    if node.list_type == Some(api::ListType::Set)
        && let Some(kind) = node.items.as_ref().map(|i| i.kind.as_str())
        && matches!(kind, "object" | "array")
    {
        sets.insert(format!(
            "x-kubernetes-list-type: set for items of type {kind:?} is not supported by server-side apply or CEL validation rules"
        ));
    }
    let nested = node.properties.values().chain(node.items.as_deref());
    let parts = [&node.all_of, &node.any_of, &node.one_of];
    let others = node.others().into_iter().chain(node.not.as_deref());
    for inner in nested.chain(parts.into_iter().flatten()).chain(others) {
        collect(inner, formats, sets);
    }
}
