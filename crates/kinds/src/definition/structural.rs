//! Whether a schema is structural: every field it speaks of has a type, outside of `allOf` and its like.

use api::FieldError;
use api::custom::{Additional, Node};

use crate::custom::compile_pattern;

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Everything that keeps a schema at a path from being structural, in order of the messages.
pub fn problems(schema: &Node, path: &str) -> Vec<FieldError> {
    let mut walk = Walk { errors: Vec::new() };
    walk.structural(schema, Level::Root, path);
    walk.complete(schema, schema, path, path);
    walk.errors.sort_by_key(ToString::to_string);
    walk.errors
}

struct Walk {
    errors: Vec<FieldError>,
}

/// `anyOf: [{type: integer}, {type: string}]`, which may be said of values that are either.
fn says_either(parts: &[Node]) -> bool {
    let is = |node: &Node, kind: &str| {
        node.kind == kind && is_bare(node) && node.default.is_none() && !node.nullable
    };
    matches!(parts, [a, b] if is(a, "integer") && is(b, "string"))
}

/// Whether a node says nothing but its type.
fn is_bare(node: &Node) -> bool {
    let nested = node.all_of.len() + node.any_of.len() + node.one_of.len() + node.properties.len();
    nested == 0
        && node.not.is_none()
        && node.items.is_none()
        && node.additional.is_none()
        && node.format.is_empty()
        && node.required.is_empty()
        && node.checks == api::custom::Checks::default()
}

impl Walk {
    fn required(&mut self, path: String, why: impl Into<String>) {
        self.errors.push(FieldError::required(path, why));
    }

    fn invalid(&mut self, path: String, value: impl Into<serde_json::Value>, why: &str) {
        self.errors.push(FieldError::invalid(path, value, why));
    }

    fn forbid(&mut self, holds: bool, path: String, why: &str) {
        if holds {
            self.errors.push(FieldError::forbidden(path, why));
        }
    }

    fn structural(&mut self, node: &Node, level: Level, path: &str) {
        if node.kind == "array" && node.items.is_none() {
            self.required(format!("{path}.items"), "must be specified");
        }
        if let Some(items) = &node.items {
            self.structural(items, Level::Item, &format!("{path}.items"));
        }
        for (name, inner) in &node.properties {
            self.structural(inner, Level::Field, &format!("{path}.properties[{name}]"));
        }
        if let Some(additional) = &node.additional {
            let at = format!("{path}.additionalProperties");
            self.forbid(
                level == Level::Root,
                at.clone(),
                "must not be used at the root",
            );
            if let Additional::Schema(inner) = additional {
                self.structural(inner, Level::Field, &at);
            }
        }
        self.extensions(node, path);
        let either = says_either(&node.any_of);
        let first = node.all_of.first().is_some_and(|n| says_either(&n.any_of));
        self.values(node, either, first, level, path);
        self.kind(node, level, path);
        self.meta(node, level, path);
    }

    fn extensions(&mut self, node: &Node, path: &str) {
        let why = "must be false if x-kubernetes-int-or-string is true";
        if node.int_or_string && node.preserve_unknown {
            let at = format!("{path}.x-kubernetes-preserve-unknown-fields");
            self.invalid(at, true, why);
        }
        if node.int_or_string && node.embedded {
            self.invalid(format!("{path}.x-kubernetes-embedded-resource"), true, why);
        }
    }

    fn kind(&mut self, node: &Node, level: Level, path: &str) {
        let at = format!("{path}.type");
        if node.embedded && node.kind != "object" {
            let why = "must be object if x-kubernetes-embedded-resource is true";
            if node.kind.is_empty() {
                self.required(at.clone(), why);
            } else {
                self.invalid(at.clone(), node.kind.as_str(), why);
            }
        } else if node.kind.is_empty() && !node.int_or_string && !node.preserve_unknown {
            let why = match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            };
            self.required(at.clone(), why);
        }
        self.forbid(
            node.embedded && node.additional.is_some(),
            format!("{path}.additionalProperties"),
            "must not be used if x-kubernetes-embedded-resource is set",
        );
        if level == Level::Root && !node.kind.is_empty() && node.kind != "object" {
            self.invalid(at, node.kind.as_str(), "must be object at the root");
        }
    }

    fn meta(&mut self, node: &Node, level: Level, path: &str) {
        let is_resource = level == Level::Root || node.embedded;
        let wanted = [
            ("kind", "string"),
            ("apiVersion", "string"),
            ("metadata", "object"),
        ];
        for (name, kind) in wanted {
            if let Some(field) = node.properties.get(name)
                && is_resource
                && field.kind != kind
            {
                let at = format!("{path}.properties[{name}].type");
                self.invalid(at, field.kind.as_str(), &format!("must be {kind}"));
            }
        }
        if let Some(metadata) = node.properties.get("metadata") {
            let at = format!("{path}.properties[metadata]");
            let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
            self.forbid(level == Level::Root && says_more(metadata), at, why);
        }
        if node.embedded && !node.preserve_unknown && node.properties.is_empty() {
            let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
            self.required(format!("{path}.properties"), why);
        }
    }

    /// Checks of the value, and the alternatives.
    fn values(&mut self, node: &Node, either: bool, first: bool, level: Level, path: &str) {
        if !either {
            for (index, inner) in node.any_of.iter().enumerate() {
                self.nested(inner, false, level, &format!("{path}.anyOf[{index}]"));
            }
        }
        for (index, inner) in node.all_of.iter().enumerate() {
            let skip = first && index == 0;
            self.nested(inner, skip, level, &format!("{path}.allOf[{index}]"));
        }
        for (index, inner) in node.one_of.iter().enumerate() {
            self.nested(inner, false, level, &format!("{path}.oneOf[{index}]"));
        }
        if let Some(not) = &node.not {
            self.nested(not, false, level, &format!("{path}.not"));
        }
        let pattern = &node.checks.pattern;
        if !pattern.is_empty()
            && let Err(why) = compile_pattern(pattern)
        {
            let why = format!("must be a valid regular expression, but isn't: {why}");
            self.invalid(format!("{path}.pattern"), pattern.as_str(), &why);
        }
    }

    fn nested(&mut self, node: &Node, either: bool, level: Level, path: &str) {
        self.values(node, either, false, level, path);
        if let Some(items) = &node.items {
            self.nested(items, false, level, &format!("{path}.items"));
        }
        for (name, inner) in &node.properties {
            let at = format!("{path}.properties[{name}]");
            self.nested(inner, false, Level::Field, &at);
        }
        let at = |field: &str| format!("{path}.{field}");
        let empty = "must be empty to be structural";
        let undefined = "must be undefined to be structural";
        let off = "must be false to be structural";
        let allows = !matches!(node.additional, None | Some(Additional::Allowed(false)));
        for (holds, field, why) in [
            (!node.kind.is_empty(), "type", empty),
            (allows, "additionalProperties", undefined),
            (node.default.is_some(), "default", undefined),
            (!node.title.is_empty(), "title", empty),
            (node.described, "description", empty),
            (node.nullable, "nullable", off),
            (
                node.preserve_unknown,
                "x-kubernetes-preserve-unknown-fields",
                off,
            ),
            (node.embedded, "x-kubernetes-embedded-resource", off),
            (node.int_or_string, "x-kubernetes-int-or-string", off),
            (
                !node.map_keys.is_empty(),
                "x-kubernetes-list-map-keys",
                empty,
            ),
            (
                node.list_type.is_some(),
                "x-kubernetes-list-type",
                undefined,
            ),
            (
                !node.map_type.is_empty(),
                "x-kubernetes-map-type",
                undefined,
            ),
            (!node.rules.is_empty(), "x-kubernetes-validations", empty),
        ] {
            self.forbid(holds, at(field), why);
        }
        self.forbid(
            node.properties.contains_key("metadata"),
            at("properties[metadata]"),
            "must not be specified in a nested context",
        );
    }

    /// Whatever alternatives speak of must have a schema outside of them.
    fn complete(&mut self, values: &Node, node: &Node, node_path: &str, path: &str) {
        let groups = [
            ("allOf", &values.all_of),
            ("anyOf", &values.any_of),
            ("oneOf", &values.one_of),
        ];
        if let Some(not) = &values.not {
            self.complete_nested(not, Some(node), node_path, &format!("{path}.not"));
        }
        for (name, parts) in groups {
            for (index, part) in parts.iter().enumerate() {
                let at = format!("{path}.{name}[{index}]");
                self.complete_nested(part, Some(node), node_path, &at);
            }
        }
    }

    fn complete_nested(&mut self, values: &Node, node: Option<&Node>, node_path: &str, path: &str) {
        let Some(node) = node else {
            let why = format!("because it is defined in {path}");
            self.required(node_path.to_owned(), why);
            return;
        };
        self.complete(values, node, node_path, path);
        if let Some(items) = &values.items {
            let (outer, inner) = (format!("{node_path}.items"), format!("{path}.items"));
            self.complete_nested(items, node.items.as_deref(), &outer, &inner);
        }
        for (name, part) in &values.properties {
            let outer = format!("{node_path}.properties[{name}]");
            let inner = format!("{path}.properties[{name}]");
            self.complete_nested(part, node.properties.get(name), &outer, &inner);
        }
    }
}

/// Whether a schema of metadata says more than names.
fn says_more(metadata: &Node) -> bool {
    let names_only = metadata
        .properties
        .keys()
        .all(|k| k == "name" || k == "generateName");
    let rest = Node {
        properties: Default::default(),
        ..metadata.clone()
    };
    !names_only
        || !is_bare(&rest)
        || rest.described
        || rest.nullable
        || !rest.title.is_empty()
        || rest.preserve_unknown
        || rest.embedded
        || rest.int_or_string
        || !rest.map_type.is_empty()
        || rest.list_type.is_some()
        || !rest.rules.is_empty()
}
