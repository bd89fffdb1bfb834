//! Schemas as OpenAPI writes them, and which of them a set of kinds needs.

use std::collections::BTreeMap;

use api::custom::Custom;
use api::{Field, Kind, ListType, Schema, SchemaRef, Shape};
use serde_json::{Map, Value, json};

use super::descriptions::Descriptions;

/// Which version of OpenAPI is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// A reference to a schema.
    pub(super) fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
pub(super) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

/// The name of the schema of lists of a kind.
pub(super) fn list_name(kind: &Kind) -> String {
    match kind.schema.name().rsplit_once('.') {
        Some((package, _)) => format!("{package}.{}", kind.list_kind),
        None => format!("{}List", kind.schema.name()),
    }
}

/// The name of the schema read and written through a subresource, if it has one.
pub(super) fn subresource_name(sub: &api::Subresource) -> Option<String> {
    let kind =
        api::kind_by_gvk(&sub.group, &sub.version, &sub.kind).map(|k| k.schema.name().to_owned());
    kind.or_else(|| {
        let gvk = (sub.group.as_str(), sub.version.as_str(), sub.kind.as_str());
        let found = api::schemas().find(|s| {
            s.gvks.len() == 1 && s.gvks.iter().any(|(g, v, k)| (&**g, &**v, &**k) == gvk)
        });
        found.map(|s| s.name.clone())
    })
}

enum Definition<'a> {
    Object(&'a Schema),
    Custom(&'a Kind, &'a Custom),
    List(&'a Kind),
    Scalar(Value),
}

/// Calls `emit` with every schema that the kinds refer to, in order of names.
pub(super) fn each(
    kinds: &[&Kind],
    dialect: Dialect,
    words: &Descriptions,
    emit: &mut dyn FnMut(&str, Value),
) {
    let mut all: BTreeMap<String, Definition<'_>> = BTreeMap::new();
    for (name, scalar) in scalars(dialect) {
        all.insert(name.to_owned(), Definition::Scalar(scalar));
    }
    for name in [
        STATUS,
        DELETE_OPTIONS,
        LIST_META,
        "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList",
    ] {
        if let Some(schema) = api::schema(name) {
            collect(schema, &mut all);
        }
    }
    for kind in kinds {
        if let Some(custom) = &kind.custom {
            let name = kind.schema.name().to_owned();
            all.insert(name, Definition::Custom(kind, custom));
            if let Some(schema) = api::schema(OBJECT_META) {
                collect(schema, &mut all);
            }
        } else if let Some(schema) = kind.schema.get() {
            collect(schema, &mut all);
        }
        if kind.has_verb("list") {
            all.insert(list_name(kind), Definition::List(kind));
        }
        for name in kind.subresources.iter().filter_map(subresource_name) {
            if let Some(schema) = api::schema(&name) {
                collect(schema, &mut all);
            }
        }
    }
    for (name, definition) in &all {
        let value = match definition {
            Definition::Object(schema) => object(schema, dialect, words),
            Definition::Custom(kind, custom) => {
                super::custom::definition(kind, custom, dialect, words)
            }
            Definition::List(kind) => list(kind, dialect, words),
            Definition::Scalar(value) => value.clone(),
        };
        emit(name, with_description(value, words.schema(name)));
    }
}

fn collect<'a>(schema: &'a Schema, all: &mut BTreeMap<String, Definition<'a>>) {
    if all.contains_key(&schema.name) {
        return;
    }
    all.insert(schema.name.clone(), Definition::Object(schema));
    for field in &schema.fields {
        let mut shape = &field.shape;
        while let Shape::Array(inner) | Shape::Map(inner) = shape {
            shape = inner;
        }
        if let Shape::Object(reference) = shape
            && let Some(inner) = reference.get()
        {
            collect(inner, all);
        }
    }
}

fn scalars(dialect: Dialect) -> [(&'static str, Value); 5] {
    let text = || json!({"type": "string"});
    let time = || json!({"type": "string", "format": "date-time"});
    let (quantity, either) = match dialect {
        // The older dialect has no alternatives: clients treat these two as strings.
        Dialect::V2 => (text(), json!({"type": "string", "format": "int-or-string"})),
        Dialect::V3 => (
            json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        ),
    };
    [
        (QUANTITY, quantity),
        (TIME, time()),
        (MICRO_TIME, time()),
        (INT_OR_STRING, either),
        (PATCH, json!({"type": "object"})),
    ]
}

pub(super) fn with_description(mut value: Value, text: Option<&str>) -> Value {
    if let (Some(text), Value::Object(map)) = (text, &mut value) {
        map.insert("description".to_owned(), text.into());
    }
    value
}

pub(super) fn gvks<'a>(all: impl Iterator<Item = (&'a str, &'a str, &'a str)>) -> Value {
    all.map(|(group, version, kind)| json!({"group": group, "kind": kind, "version": version}))
        .collect()
}

fn object(schema: &Schema, dialect: Dialect, words: &Descriptions) -> Value {
    let mut out = Map::new();
    out.insert("type".to_owned(), "object".into());
    let required: Vec<&str> = schema
        .fields
        .iter()
        .filter(|f| f.required)
        .map(|f| &*f.name)
        .collect();
    if !required.is_empty() {
        out.insert("required".to_owned(), json!(required));
    }
    if !schema.fields.is_empty() {
        let property = |f: &Field| (f.name.to_string(), field(schema, f, dialect, words));
        out.insert(
            "properties".to_owned(),
            Value::Object(schema.fields.iter().map(property).collect()),
        );
    }
    if !schema.gvks.is_empty() {
        let all = schema.gvks.iter().map(|(g, v, k)| (&**g, &**v, &**k));
        out.insert("x-kubernetes-group-version-kind".to_owned(), gvks(all));
    }
    if schema.atomic {
        out.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
    }
    if schema.open {
        out.insert(
            "x-kubernetes-preserve-unknown-fields".to_owned(),
            true.into(),
        );
    }
    Value::Object(out)
}

fn list(kind: &Kind, dialect: Dialect, words: &Descriptions) -> Value {
    let describe =
        |field: &str, value: Value| with_description(value, words.field(LIST_META, field));
    json!({
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": describe("apiVersion", json!({"type": "string"})),
            "items": {"type": "array", "items": wrap(dialect.reference(kind.schema.name()), dialect)},
            "kind": describe("kind", json!({"type": "string"})),
            "metadata": wrap(dialect.reference(&format!("{META}.ListMeta")), dialect),
        },
        "x-kubernetes-group-version-kind": gvks(std::iter::once((kind.group.as_str(), kind.version.as_str(), kind.list_kind.as_str()))),
    })
}

/// References take no siblings in v3: they are wrapped.
pub(super) fn wrap(reference: Value, dialect: Dialect) -> Value {
    match dialect {
        Dialect::V2 => reference,
        Dialect::V3 => json!({"allOf": [reference]}),
    }
}

fn field(schema: &Schema, field: &Field, dialect: Dialect, words: &Descriptions) -> Value {
    let mut out = shape(schema, &field.shape, &field.enum_values, dialect);
    let Some(map) = out.as_object_mut() else {
        return out;
    };
    let mut set = |key: &str, value: Value| {
        map.insert(key.to_owned(), value);
    };
    if let Some(text) = words.field(&schema.name, &field.name) {
        set("description", text.into());
    }
    if let Some(default) = &field.default {
        set("default", default.clone());
    }
    if let Some(kind) = field.list_type {
        let name = match kind {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map => "map",
        };
        set("x-kubernetes-list-type", name.into());
    }
    if !field.map_keys.is_empty() {
        set("x-kubernetes-list-map-keys", json!(field.map_keys));
    }
    if field.atomic {
        set("x-kubernetes-map-type", "atomic".into());
    }
    if let Some(key) = &field.patch_merge_key {
        set("x-kubernetes-patch-merge-key", json!(key));
    }
    let strategy: Vec<&str> = [
        (field.patch_merge, "merge"),
        (field.patch_retain_keys, "retainKeys"),
    ]
    .iter()
    .filter(|(on, _)| *on)
    .map(|(_, s)| *s)
    .collect();
    if !strategy.is_empty() {
        set("x-kubernetes-patch-strategy", strategy.join(",").into());
    }
    out
}

fn named(name: &str, dialect: Dialect) -> Value {
    wrap(dialect.reference(name), dialect)
}

fn shape(owner: &Schema, value: &Shape, allowed: &[Box<str>], dialect: Dialect) -> Value {
    match value {
        Shape::String if allowed.is_empty() => json!({"type": "string"}),
        Shape::String => json!({"type": "string", "enum": allowed}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Int32 => json!({"type": "integer", "format": "int32"}),
        Shape::Int64 => json!({"type": "integer", "format": "int64"}),
        Shape::Number => json!({"type": "number", "format": "double"}),
        Shape::Bytes => json!({"type": "string", "format": "byte"}),
        Shape::Time => named(TIME, dialect),
        Shape::MicroTime => named(MICRO_TIME, dialect),
        Shape::Quantity => named(QUANTITY, dialect),
        Shape::IntOrString => named(INT_OR_STRING, dialect),
        // Parts of schemas of custom resources are any JSON value; all other free-form values are objects.
        Shape::Any if owner.short_name() == "JSONSchemaProps" => json!({}),
        Shape::Any => json!({"type": "object"}),
        Shape::Object(reference) => object_reference(reference, dialect),
        Shape::Array(item) => {
            json!({"type": "array", "items": shape(owner, item, allowed, dialect)})
        }
        Shape::Map(item) => {
            json!({"type": "object", "additionalProperties": shape(owner, item, &[], dialect)})
        }
    }
}

fn object_reference(reference: &SchemaRef, dialect: Dialect) -> Value {
    if reference.name().is_empty() {
        // Anonymous schemas are written where they are used.
        return reference.get().map_or_else(
            || json!({"type": "object"}),
            |s| object(s, dialect, &Descriptions::default()),
        );
    }
    named(reference.name(), dialect)
}
