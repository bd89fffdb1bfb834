//! Schemas of custom resources in the form that built-in ones have: what server-side apply merges by.

use std::sync::Arc;

use super::Node;
use crate::{Field, ListType, Schema, SchemaRef, Shape};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The schema of a whole resource, under the name that it is published by.
pub fn resource(name: String, gvk: (&str, &str, &str), node: Option<&Node>) -> Schema {
    let open = Node {
        preserve_unknown: true,
        ..Node::default()
    };
    let mut out = object(node.unwrap_or(&open), true);
    out.name = name;
    out.gvks = vec![(gvk.0.into(), gvk.1.into(), gvk.2.into())];
    out
}

fn object(node: &Node, is_resource: bool) -> Schema {
    let mut fields: Vec<Field> = node
        .properties
        .iter()
        .filter(|(name, _)| !(is_resource && is_meta(name)))
        .map(|(name, inner)| field(node, name, inner))
        .collect();
    if is_resource {
        fields.push(plain("apiVersion", Shape::String));
        fields.push(plain("kind", Shape::String));
        let metadata = Shape::Object(SchemaRef::named(OBJECT_META));
        fields.push(plain("metadata", metadata));
    }
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    Schema {
        fields,
        atomic: node.map_type == "atomic",
        open: node.preserve_unknown,
        ..Schema::default()
    }
}

fn is_meta(name: &str) -> bool {
    matches!(name, "apiVersion" | "kind" | "metadata")
}

fn plain(name: &str, shape: Shape) -> Field {
    Field {
        name: name.into(),
        shape,
        enum_values: Vec::new(),
        required: false,
        default: None,
        list_type: None,
        map_keys: Vec::new(),
        atomic: false,
        patch_merge: false,
        patch_retain_keys: false,
        patch_merge_key: None,
    }
}

fn field(owner: &Node, name: &str, node: &Node) -> Field {
    Field {
        required: owner.required.iter().any(|r| r == name),
        default: node.default.clone(),
        list_type: (node.kind == "array").then(|| node.list_type.unwrap_or(ListType::Atomic)),
        map_keys: node.map_keys.iter().map(|k| k.as_str().into()).collect(),
        atomic: node.map_type == "atomic",
        ..plain(name, shape(node))
    }
}

fn shape(node: &Node) -> Shape {
    match node.kind.as_str() {
        _ if node.int_or_string => Shape::IntOrString,
        "string" => Shape::String,
        "integer" => Shape::Int64,
        "number" => Shape::Number,
        "boolean" => Shape::Bool,
        "array" => Shape::Array(Box::new(node.items.as_deref().map_or(Shape::Any, shape))),
        "object" => match node.others() {
            Some(inner) => Shape::Map(Box::new(shape(inner))),
            None => Shape::Object(SchemaRef::own(Arc::new(object(node, node.embedded)))),
        },
        _ => Shape::Any,
    }
}
