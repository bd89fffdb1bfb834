//! The embedded facts, parsed once: descriptors of the served kinds, and schemas.
//!
//! Parsing takes a few milliseconds and happens at first use; discovery and schemas are separate,
//! so that a command that needs the names only does not pay for the schemas.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;

use crate::kind::{Column, Kind, Subresource};
use crate::schema::{Field, ListType, Schema, SchemaRef, Shape};

const SCHEMAS: &str = include_str!("../facts/schemas.json");
const DISCOVERY: &str = include_str!("../facts/discovery.json");
const COLUMNS: &str = include_str!("../facts/columns.json");

/// Static defaults: schema name to path to value, as JSON. Applied by `codec`.
pub const DEFAULTS_JSON: &str = include_str!("../facts/defaults.json");

/// Every built-in kind that is served, in discovery order: generally available versions only, for
/// upstream serves new beta versions only when asked to.
pub fn kinds() -> &'static [Kind] {
    static KINDS: OnceLock<Vec<Kind>> = OnceLock::new();
    KINDS.get_or_init(|| load_kinds().unwrap_or_default())
}

/// The built-in kind served at that group, version and plural resource name.
pub fn kind(group: &str, version: &str, resource: &str) -> Option<&'static Kind> {
    kinds()
        .iter()
        .find(|k| k.resource == resource && k.group == group && k.version == version)
}

/// The built-in kind of that group, version and kind.
pub fn kind_by_gvk(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    kinds()
        .iter()
        .find(|k| k.kind == kind && k.group == group && k.version == version)
}

/// Built-in kinds of one group and version.
pub fn kinds_of_group<'a>(
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'static Kind> + 'a {
    kinds()
        .iter()
        .filter(move |k| k.group == group && k.version == version)
}

/// The built-in schema of that definition name, such as `io.k8s.api.core.v1.Pod`.
pub fn schema(name: &str) -> Option<&'static Schema> {
    all_schemas().get(name)
}

/// Every built-in schema, in no particular order; definitions of scalars are not among them.
pub fn schemas() -> impl Iterator<Item = &'static Schema> {
    all_schemas().values()
}

/// Columns of kinds without columns of their own: the name and when the object was created.
pub fn default_columns() -> &'static [Column] {
    &columns().default
}

fn all_schemas() -> &'static HashMap<Box<str>, Schema> {
    static ALL: OnceLock<HashMap<Box<str>, Schema>> = OnceLock::new();
    ALL.get_or_init(|| {
        let raw: HashMap<String, RawSchema> = serde_json::from_str(SCHEMAS).unwrap_or_default();
        raw.into_iter()
            .filter(|(name, _)| Schema::scalar_shape(name).is_none())
            .map(|(name, raw)| (name.clone().into_boxed_str(), raw.build(name)))
            .collect()
    })
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawSchema {
    fields: BTreeMap<String, RawField>,
    required: Vec<String>,
    gvk: Vec<(Box<str>, Box<str>, Box<str>)>,
    #[serde(rename = "mapType")]
    map_type: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RawField {
    #[serde(rename = "type")]
    kind: String,
    format: String,
    #[serde(rename = "ref")]
    reference: Option<String>,
    items: Option<Box<RawField>>,
    values: Option<Box<RawField>>,
    #[serde(rename = "enum")]
    enum_values: Vec<Box<str>>,
    default: Option<Value>,
    list_type: Option<String>,
    list_map_keys: Vec<Box<str>>,
    map_type: Option<String>,
    patch_strategy: String,
    patch_merge_key: Option<Box<str>>,
}

impl RawSchema {
    fn build(self, name: String) -> Schema {
        let required = self.required;
        let fields = self
            .fields
            .into_iter()
            .map(|(n, f)| f.build(required.contains(&n), n))
            .collect();
        Schema {
            fields,
            gvks: self.gvk,
            atomic: self.map_type.as_deref() == Some("atomic"),
            open: false,
            name,
        }
    }
}

impl RawField {
    fn shape(&self) -> Shape {
        if let Some(name) = &self.reference {
            return Schema::scalar_shape(name)
                .unwrap_or_else(|| Shape::Object(SchemaRef::named(name)));
        }
        match (self.kind.as_str(), self.format.as_str()) {
            ("string", "byte") => Shape::Bytes,
            ("string", _) => Shape::String,
            ("boolean", _) => Shape::Bool,
            ("integer", "int32") => Shape::Int32,
            ("integer", _) => Shape::Int64,
            ("number", _) => Shape::Number,
            ("array", _) => Shape::Array(Box::new(
                self.items.as_ref().map_or(Shape::Any, |i| i.shape()),
            )),
            ("object", _) => self
                .values
                .as_ref()
                .map_or(Shape::Any, |v| Shape::Map(Box::new(v.shape()))),
            _ => Shape::Any,
        }
    }

    fn build(self, required: bool, name: String) -> Field {
        let shape = self.shape();
        let item_enum = self.items.map(|i| i.enum_values).unwrap_or_default();
        Field {
            name: name.into_boxed_str(),
            shape,
            enum_values: if self.enum_values.is_empty() {
                item_enum
            } else {
                self.enum_values
            },
            required,
            default: self.default,
            list_type: match self.list_type.as_deref() {
                Some("atomic") => Some(ListType::Atomic),
                Some("set") => Some(ListType::Set),
                Some("map") => Some(ListType::Map),
                _ => None,
            },
            map_keys: self.list_map_keys,
            atomic: self.map_type.as_deref() == Some("atomic"),
            patch_merge: self.patch_strategy.split(',').any(|s| s == "merge"),
            patch_retain_keys: self.patch_strategy.split(',').any(|s| s == "retainKeys"),
            patch_merge_key: self.patch_merge_key,
        }
    }
}

#[derive(Deserialize)]
struct RawGroup {
    group: String,
    versions: Vec<RawVersion>,
}

#[derive(Deserialize)]
struct RawVersion {
    version: String,
    resources: Vec<RawResource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawResource {
    resource: String,
    kind: String,
    scope: String,
    singular: String,
    verbs: Vec<String>,
    #[serde(default)]
    short_names: Vec<String>,
    #[serde(default)]
    categories: Vec<String>,
    #[serde(default)]
    storage_version_hash: String,
    #[serde(default)]
    subresources: Vec<RawSubresource>,
}

#[derive(Deserialize)]
struct RawSubresource {
    subresource: String,
    kind: (String, String, String),
    verbs: Vec<String>,
}

struct Columns {
    by_kind: HashMap<String, Vec<Column>>,
    default: Vec<Column>,
}

fn columns() -> &'static Columns {
    #[derive(Deserialize)]
    struct Raw {
        columns: HashMap<String, Vec<RawColumn>>,
        default: Vec<RawColumn>,
    }
    #[derive(Deserialize)]
    struct RawColumn {
        name: String,
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        format: String,
        #[serde(default)]
        priority: i32,
    }
    fn build(raw: Vec<RawColumn>) -> Vec<Column> {
        let column = |c: RawColumn| Column {
            description: crate::facts::describe_column(&c.name, &c.format),
            name: c.name,
            kind: c.kind,
            format: c.format,
            priority: c.priority,
        };
        raw.into_iter().map(column).collect()
    }
    static COLUMN_TABLE: OnceLock<Columns> = OnceLock::new();
    COLUMN_TABLE.get_or_init(|| match serde_json::from_str::<Raw>(COLUMNS) {
        Ok(raw) => Columns {
            by_kind: raw
                .columns
                .into_iter()
                .map(|(k, v)| (k, build(v)))
                .collect(),
            default: build(raw.default),
        },
        Err(_) => Columns {
            by_kind: HashMap::new(),
            default: Vec::new(),
        },
    })
}

fn describe_column(name: &str, format: &str) -> String {
    match (name, format) {
        (_, "name") => "Name of the object, unique within its namespace.".to_owned(),
        ("Age" | "Created At", _) => "Time since the object was created.".to_owned(),
        _ => format!("{name} of the object."),
    }
}

/// GA versions are `v` and a number; anything with a suffix is a preview.
fn is_generally_available(version: &str) -> bool {
    version
        .strip_prefix('v')
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

fn load_kinds() -> Result<Vec<Kind>, serde_json::Error> {
    let groups: Vec<RawGroup> = serde_json::from_str(DISCOVERY)?;
    let names: HashMap<(String, String, String), String> = schema_names()?;
    let mut kinds = Vec::new();
    for group in groups {
        for version in group
            .versions
            .into_iter()
            .filter(|v| is_generally_available(&v.version))
        {
            for resource in version.resources {
                kinds.push(build_kind(&group.group, &version.version, resource, &names));
            }
        }
    }
    Ok(kinds)
}

/// Definition names by group, version and kind, without building the schemas.
fn schema_names() -> Result<HashMap<(String, String, String), String>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Gvks {
        #[serde(default)]
        gvk: Vec<(String, String, String)>,
    }
    let raw: HashMap<String, Gvks> = serde_json::from_str(SCHEMAS)?;
    Ok(raw
        .into_iter()
        .filter(|(_, g)| g.gvk.len() == 1)
        .flat_map(|(n, g)| g.gvk.into_iter().map(move |k| (k, n.clone())))
        .collect())
}

fn build_kind(
    group: &str,
    version: &str,
    raw: RawResource,
    names: &HashMap<(String, String, String), String>,
) -> Kind {
    let id = (group.to_owned(), version.to_owned(), raw.kind.clone());
    let schema_name = names.get(&id).cloned().unwrap_or_default();
    let column_key = if group.is_empty() {
        raw.kind.clone()
    } else {
        format!("{}.{group}", raw.kind)
    };
    let table = columns();
    let (storage_group, storage_version) = storage_of(group, version, &raw.kind);
    // Events have one table in both groups.
    let own = table.by_kind.get(&column_key).or_else(|| {
        (raw.kind == "Event")
            .then(|| table.by_kind.get("Event"))
            .flatten()
    });
    Kind {
        group: group.to_owned(),
        version: version.to_owned(),
        list_kind: format!("{}List", raw.kind),
        kind: raw.kind,
        resource: raw.resource,
        singular: raw.singular,
        short_names: raw.short_names,
        categories: raw.categories,
        namespaced: raw.scope == "Namespaced",
        verbs: raw.verbs,
        subresources: raw
            .subresources
            .into_iter()
            .map(|s| Subresource {
                name: s.subresource,
                group: s.kind.0,
                version: s.kind.1,
                kind: s.kind.2,
                verbs: s.verbs,
            })
            .collect(),
        storage_group,
        storage_version,
        storage_version_hash: raw.storage_version_hash,
        columns: own.unwrap_or(&table.default).clone(),
        schema: SchemaRef::named(&schema_name),
        custom: None,
    }
}

/// The group and version objects of a kind are stored in: only these two kinds are served twice.
fn storage_of(group: &str, version: &str, kind: &str) -> (String, String) {
    match (group, kind) {
        ("events.k8s.io", "Event") => (String::new(), "v1".to_owned()),
        ("autoscaling", "HorizontalPodAutoscaler") => ("autoscaling".to_owned(), "v2".to_owned()),
        _ => (group.to_owned(), version.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_schema_and_columns() {
        assert!(kinds().len() > 60, "{}", kinds().len());
        for kind in kinds() {
            assert!(!kind.columns.is_empty(), "{}", kind.kind);
            assert!(
                kind.schema.get().is_some(),
                "{} {}",
                kind.api_version(),
                kind.kind
            );
        }
    }

    #[test]
    fn every_reference_resolves() {
        fn check(shape: &Shape) {
            match shape {
                Shape::Object(r) => assert!(r.get().is_some(), "{}", r.name()),
                Shape::Array(s) | Shape::Map(s) => check(s),
                _ => {}
            }
        }
        for schema in schemas() {
            schema.fields.iter().for_each(|f| check(&f.shape));
        }
    }

    #[test]
    fn well_known_kinds() {
        let deployment = kind("apps", "v1", "deployments").unwrap();
        assert_eq!(deployment.qualified_resource(), "deployments.apps");
        assert!(deployment.has_status() && deployment.subresource("scale").is_some());
        assert_eq!(deployment.storage_prefix(), "/registry/apps/deployments/");
        assert_eq!(
            kind("events.k8s.io", "v1", "events")
                .unwrap()
                .storage_prefix(),
            "/registry/events/"
        );
        assert!(kind("resource.k8s.io", "v1beta1", "deviceclasses").is_none());
        let spec = schema("io.k8s.api.core.v1.PodSpec").unwrap();
        let volumes = spec.field("volumes").unwrap();
        assert!(volumes.patch_merge && volumes.patch_retain_keys);
        assert_eq!(volumes.patch_merge_key.as_deref(), Some("name"));
    }
}
