//! Custom resources: what a CustomResourceDefinition says, as descriptors like those of built-in kinds.
//!
//! A definition becomes one [`Kind`] a version; what built-in kinds have in facts and strategies, these have in
//! [`Custom`]. All of it is pure: who follows definitions and serves the kinds is the API server.

mod node;
mod shapes;
mod tree;
mod versions;

use std::any::Any;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use crate::jsonpath::JsonPath;
use crate::kind::{Column, Kind, Subresource};
use crate::schema::SchemaRef;
use crate::{default_columns, meta};

pub use node::{Additional, Checks, Node, Rule};
pub use tree::{drop_nulls, fill, prune, prune_part};
pub use versions::compare_versions;

/// Where a custom kind keeps its replicas: paths of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    /// Wanted replicas.
    pub spec: Vec<String>,
    /// Replicas there are.
    pub status: Vec<String>,
    /// The selector, as text; empty if the kind has none.
    pub selector: Vec<String>,
}

/// What is peculiar to one version of a custom kind.
#[derive(Debug)]
pub struct Custom {
    /// The schema; `None` if the version has none or one that cannot be used.
    pub schema: Option<Node>,
    /// The schema as it is written.
    pub written: Value,
    /// Whether fields that the schema does not know are kept anywhere.
    pub preserve_unknown: bool,
    /// Where the columns behind the first one find their cells.
    pub cells: Vec<Option<JsonPath>>,
    /// Replicas, if the kind has a scale.
    pub scale: Option<ScalePaths>,
    /// Field selectors: label and path of keys.
    pub selectable: Vec<(String, Vec<String>)>,
    /// `spec.conversion.webhook`, if versions differ by more than their name, so that only a webhook can convert them.
    pub webhook: Option<Value>,
    /// What users of a deprecated version are told.
    pub warning: Option<String>,
    /// Whether the definition is being deleted: nothing is created any more.
    pub terminating: bool,
    /// What others compile the schema to, once.
    pub compiled: OnceLock<Box<dyn Any + Send + Sync>>,
}

/// Verbs of custom kinds, in upstream's order.
const VERBS: [&str; 8] = [
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "create",
    "update",
    "watch",
];
/// Verbs left when the definition is being deleted.
const TERMINATING_VERBS: [&str; 5] = ["delete", "deletecollection", "get", "list", "watch"];
const SUBRESOURCE_VERBS: [&str; 3] = ["get", "patch", "update"];

/// Whether a definition's condition holds.
pub fn condition_is_true(definition: &Value, kind: &str) -> bool {
    meta::list_at(definition, &["status", "conditions"])
        .iter()
        .any(|c| meta::str_at(c, &["type"]) == kind && meta::str_at(c, &["status"]) == "True")
}

/// The kinds that a definition describes, one for each version, best version first; the flag tells whether the
/// version is served. `hash` makes the published hash of group, version and kind.
pub fn kinds_of(definition: &Value, hash: &dyn Fn(&str) -> String) -> Vec<(Kind, bool)> {
    let mut versions: Vec<&Value> = meta::list_at(definition, &["spec", "versions"])
        .iter()
        .collect();
    versions.sort_by(|a, b| compare_versions(name_of(b), name_of(a)));
    versions
        .iter()
        .map(|version| {
            let served = meta::bool_at(version, &["served"]);
            (kind_of(definition, version, hash), served)
        })
        .collect()
}

fn name_of(version: &Value) -> &str {
    meta::str_at(version, &["name"])
}

fn kind_of(definition: &Value, version: &Value, hash: &dyn Fn(&str) -> String) -> Kind {
    let text = |path: &[&str]| meta::str_at(definition, path).to_owned();
    let accepted = |name: &str| match meta::str_at(definition, &["status", "acceptedNames", name]) {
        "" => text(&["spec", "names", name]),
        given => given.to_owned(),
    };
    let group = text(&["spec", "group"]);
    let (name, kind) = (name_of(version).to_owned(), accepted("kind"));
    let storage_version = meta::list_at(definition, &["spec", "versions"])
        .iter()
        .find(|v| meta::bool_at(v, &["storage"]))
        .map_or_else(String::new, |v| name_of(v).to_owned());
    let terminating = condition_is_true(definition, "Terminating")
        || meta::get(definition, &["metadata", "deletionTimestamp"]).is_some();
    let written = meta::get(version, &["schema", "openAPIV3Schema"])
        .cloned()
        .unwrap_or_default();
    let schema = Node::parse(&written).ok().filter(|_| !written.is_null());
    let shape = shapes::resource(
        published_name(&group, &name, &kind),
        (&group, &name, &kind),
        schema.as_ref(),
    );
    let (columns, cells) = columns_of(version);
    let list = |path: &[&str]| strings(meta::list_at(definition, path));
    let verbs: &[&str] = if terminating {
        &TERMINATING_VERBS
    } else {
        &VERBS
    };
    let custom = Custom {
        preserve_unknown: meta::bool_at(definition, &["spec", "preserveUnknownFields"])
            || schema.is_none(),
        schema,
        written,
        cells,
        scale: scale_of(version),
        selectable: selectable_of(version),
        webhook: (text(&["spec", "conversion", "strategy"]) == "Webhook")
            .then(|| meta::get(definition, &["spec", "conversion", "webhook"]).cloned())
            .flatten(),
        warning: deprecation(definition, version, &group, &kind),
        terminating,
        compiled: OnceLock::new(),
    };
    Kind {
        subresources: subresources_of(version, &group, &kind),
        verbs: verbs.iter().map(|v| (*v).to_owned()).collect(),
        resource: text(&["spec", "names", "plural"]),
        singular: accepted("singular"),
        list_kind: accepted("listKind"),
        short_names: list(&["status", "acceptedNames", "shortNames"]),
        categories: list(&["status", "acceptedNames", "categories"]),
        namespaced: text(&["spec", "scope"]) == "Namespaced",
        storage_group: group.clone(),
        storage_version_hash: hash(&format!("{group}/{storage_version}/{kind}")),
        storage_version,
        columns,
        schema: SchemaRef::own(Arc::new(shape)),
        custom: Some(Arc::new(custom)),
        group,
        version: name,
        kind,
    }
}

/// The name a schema is published by: the group backwards, version and kind.
fn published_name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<&str> = group.split('.').collect();
    parts.reverse();
    format!("{}.{version}.{kind}", parts.join("."))
}

fn strings(values: &[Value]) -> Vec<String> {
    values
        .iter()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
}

fn subresources_of(version: &Value, group: &str, kind: &str) -> Vec<Subresource> {
    let subresource = |name: &str, group: &str, version: &str, kind: &str| Subresource {
        name: name.to_owned(),
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        verbs: SUBRESOURCE_VERBS.iter().map(|v| (*v).to_owned()).collect(),
    };
    let mut out = Vec::new();
    if meta::get(version, &["subresources", "status"]).is_some() {
        out.push(subresource("status", group, name_of(version), kind));
    }
    if meta::get(version, &["subresources", "scale"]).is_some() {
        out.push(subresource("scale", "autoscaling", "v1", "Scale"));
    }
    out
}

fn scale_of(version: &Value) -> Option<ScalePaths> {
    let scale = meta::get(version, &["subresources", "scale"])?;
    let path = |field: &str| keys(meta::str_at(scale, &[field]));
    Some(ScalePaths {
        spec: path("specReplicasPath"),
        status: path("statusReplicasPath"),
        selector: path("labelSelectorPath"),
    })
}

/// The keys of a simple path such as `.spec.replicas`.
fn keys(path: &str) -> Vec<String> {
    let path = path.strip_prefix('.').unwrap_or(path);
    path.split('.')
        .filter(|k| !k.is_empty())
        .map(str::to_owned)
        .collect()
}

fn selectable_of(version: &Value) -> Vec<(String, Vec<String>)> {
    meta::list_at(version, &["selectableFields"])
        .iter()
        .map(|f| {
            let path = meta::str_at(f, &["jsonPath"]);
            let label = path.strip_prefix('.').unwrap_or(path).to_owned();
            (label, keys(path))
        })
        .collect()
}

fn columns_of(version: &Value) -> (Vec<Column>, Vec<Option<JsonPath>>) {
    let mut columns: Vec<Column> = default_columns()
        .iter()
        .filter(|c| c.format == "name")
        .cloned()
        .collect();
    let extra = meta::list_at(version, &["additionalPrinterColumns"]);
    if extra.is_empty() {
        columns.extend(
            default_columns()
                .iter()
                .filter(|c| c.format != "name")
                .map(|c| Column {
                    name: "Age".to_owned(),
                    kind: "date".to_owned(),
                    ..c.clone()
                }),
        );
        return (
            columns,
            vec![JsonPath::parse(".metadata.creationTimestamp").ok()],
        );
    }
    let mut cells = Vec::new();
    for column in extra {
        let text = |field: &str| meta::str_at(column, &[field]).to_owned();
        let path = text("jsonPath");
        let description = match text("description") {
            d if d.is_empty() => {
                format!("Custom resource definition column (in JSONPath format): {path}")
            }
            d => d,
        };
        let priority = meta::int_at(column, &["priority"]).unwrap_or(0);
        columns.push(Column {
            name: text("name"),
            kind: text("type"),
            format: text("format"),
            description,
            priority: i32::try_from(priority).unwrap_or(i32::MAX),
        });
        cells.push(JsonPath::parse(&path).ok());
    }
    (columns, cells)
}

fn deprecation(definition: &Value, version: &Value, group: &str, kind: &str) -> Option<String> {
    if !meta::bool_at(version, &["deprecated"]) {
        return None;
    }
    if let Some(own) = version.get("deprecationWarning").and_then(Value::as_str) {
        return Some(own.to_owned());
    }
    let name = name_of(version);
    let better = meta::list_at(definition, &["spec", "versions"])
        .iter()
        .filter(|v| meta::bool_at(v, &["served"]) && !meta::bool_at(v, &["deprecated"]))
        .map(name_of)
        .filter(|v| compare_versions(name, v).is_lt())
        .max_by(|a, b| compare_versions(a, b));
    let mut text = format!("{group}/{name} {kind} is deprecated");
    if let Some(better) = better {
        text.push_str(&format!("; use {group}/{better} {kind}"));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn definition() -> Value {
        json!({
            "metadata": {"name": "tabs.stable.example.com"},
            "spec": {
                "group": "stable.example.com", "scope": "Namespaced",
                "names": {"plural": "tabs", "singular": "tab", "kind": "Tab", "listKind": "TabList"},
                "versions": [
                    {"name": "v1beta1", "served": true, "storage": false, "deprecated": true,
                        "schema": {"openAPIV3Schema": {"type": "object"}}},
                    {"name": "v1", "served": true, "storage": true,
                        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
                            "replicas": {"type": "integer", "default": 1},
                            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                                "items": {"type": "object", "properties": {"port": {"type": "integer"}}}}}}}}},
                        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                        "selectableFields": [{"jsonPath": ".spec.replicas"}],
                        "additionalPrinterColumns": [{"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas", "priority": 1}]},
                ],
            },
            "status": {"acceptedNames": {"plural": "tabs", "singular": "tab", "kind": "Tab", "listKind": "TabList", "shortNames": ["tb"]}},
        })
    }

    #[test]
    fn a_definition_becomes_kinds() {
        let kinds = kinds_of(&definition(), &|text| text.to_owned());
        let names: Vec<&str> = kinds.iter().map(|(k, _)| k.version.as_str()).collect();
        assert_eq!(names, ["v1", "v1beta1"]);
        let (v1, served) = &kinds[0];
        assert!(served);
        assert_eq!(v1.storage_prefix(), "/registry/stable.example.com/tabs/");
        assert_eq!(v1.storage_version_hash, "stable.example.com/v1/Tab");
        assert_eq!(v1.schema.name(), "com.example.stable.v1.Tab");
        assert!(v1.has_status() && v1.is_stored() && v1.namespaced);
        let columns: Vec<&str> = v1.columns.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(columns, ["Name", "Replicas"]);
        let custom = v1.custom.as_ref().unwrap();
        assert_eq!(custom.selectable[0].0, "spec.replicas");
        let beta = kinds[1].0.custom.as_ref().unwrap();
        assert_eq!(
            beta.warning.as_deref(),
            Some("stable.example.com/v1beta1 Tab is deprecated; use stable.example.com/v1 Tab")
        );
        assert_eq!(kinds[1].0.columns[1].name, "Age");
    }

    #[test]
    fn schemas_merge_as_written() {
        let kinds = kinds_of(&definition(), &|_| String::new());
        let schema = kinds[0].0.schema.get().unwrap();
        let crate::Shape::Object(spec) = &schema.field("spec").unwrap().shape else {
            panic!("no object")
        };
        let ports = spec.get().unwrap().field("ports").unwrap().clone();
        assert_eq!(ports.list_type, Some(crate::ListType::Map));
        assert_eq!(&*ports.map_keys[0], "port");
        assert!(schema.field("metadata").is_some());
    }
}
