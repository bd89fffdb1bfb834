//! How a value merges: schemas as server-side apply sees them.
//!
//! Built-in schemas describe Go structs, which shows in stored field sets: a struct field that is no pointer is
//! there even when nothing was said about it, and so nobody ever adds it; a required list is there as null; an
//! absent required key of a list item is its zero value.

use api::{Field, ListType, Schema, Shape};
use serde_json::Value;

use super::path::PathElement;

/// How the names of built-in schemas begin; names of custom ones may begin with `io.k8s.` too.
const BUILT_IN: [&str; 4] = [
    "io.k8s.api.",
    "io.k8s.apimachinery.",
    "io.k8s.apiextensions-apiserver.",
    "io.k8s.kube-aggregator.",
];

/// Struct fields that are values although neither required nor one of metadata, spec and status: last two
/// parts of the schema's name, and the field.
const VALUES: &[(&str, &str)] = &[
    ("v1.AllocationResult", "devices"),
    ("v1.Container", "resources"),
    ("v1.ContainerStatus", "lastState"),
    ("v1.ContainerStatus", "state"),
    ("v1.CustomResourceDefinitionStatus", "acceptedNames"),
    ("v1.DaemonSetSpec", "updateStrategy"),
    ("v1.DeploymentSpec", "strategy"),
    ("v1.Endpoint", "conditions"),
    ("v1.EphemeralContainer", "resources"),
    ("v1.Event", "deprecatedSource"),
    ("v1.Event", "regarding"),
    ("v1.Event", "source"),
    ("v1.IngressServiceBackend", "port"),
    ("v1.IngressStatus", "loadBalancer"),
    ("v1.LimitedPriorityLevelConfiguration", "limitResponse"),
    ("v1.NetworkPolicySpec", "podSelector"),
    ("v1.NodeDaemonEndpoints", "kubeletEndpoint"),
    ("v1.NodeStatus", "daemonEndpoints"),
    ("v1.NodeStatus", "nodeInfo"),
    ("v1.PersistentVolumeClaimSpec", "resources"),
    ("v1.PodTemplate", "template"),
    ("v1.ReplicaSetSpec", "template"),
    ("v1.ResourceClaimSpec", "devices"),
    ("v1.SelfSubjectReviewStatus", "userInfo"),
    ("v1.ServiceStatus", "loadBalancer"),
    ("v1.StatefulSetSpec", "updateStrategy"),
    ("v1.TokenReviewStatus", "user"),
];

/// Struct fields that are pointers although required or named metadata, spec or status.
const POINTERS: &[(&str, &str)] = &[
    ("v1.CustomResourceSubresources", "status"),
    ("v1.DaemonSetSpec", "selector"),
    ("v1.DeploymentSpec", "selector"),
    ("v1.IPAddressSpec", "parentRef"),
    ("v1.ReplicaSetSpec", "selector"),
    ("v1.ScaleIOPersistentVolumeSource", "secretRef"),
    ("v1.ScaleIOVolumeSource", "secretRef"),
    ("v1.StatefulSetSpec", "selector"),
];

/// Fields whose content belongs to whoever wrote the whole: raw extensions.
const RAW: &[(&str, &str)] = &[
    ("v1.AllocatedDeviceStatus", "data"),
    ("v1.ControllerRevision", "data"),
    ("v1.OpaqueDeviceConfiguration", "parameters"),
];

/// Keys of list items that are not required but written even when empty.
const EMPTY_KEYS: &[(&str, &str)] = &[("v1.LocalObjectReference", "name")];

/// What stands for a struct value that was not written.
pub static EMPTY_STRUCT: std::sync::LazyLock<Value> =
    std::sync::LazyLock::new(|| Value::Object(serde_json::Map::new()));
/// What stands for a required list or map that was not written.
pub static NULL: Value = Value::Null;

/// The type of a value.
#[derive(Debug, Clone, Copy)]
pub enum Ty<'s> {
    /// An object of a schema.
    Object(&'s Schema),
    /// The value of a field.
    Field(&'s Field),
    /// An item of a list, or a value of a map.
    Shape(&'s Shape),
    /// Whatever the value itself says: maps merge, lists do not.
    Deduced,
    /// One leaf, whatever it is.
    Leaf,
}

/// What a value is to merging.
#[derive(Debug, Clone, Copy)]
pub enum Atom<'s> {
    /// A leaf.
    Scalar(Option<&'s Shape>),
    /// An object with declared fields.
    Struct {
        /// The fields.
        schema: &'s Schema,
        /// Whether it is a leaf.
        atomic: bool,
    },
    /// An object with free keys.
    Map {
        /// Type of the values.
        item: Ty<'s>,
        /// Whether it is a leaf.
        atomic: bool,
    },
    /// A list.
    List {
        /// How its items are told apart.
        kind: List<'s>,
        /// Type of the items.
        item: Ty<'s>,
    },
}

/// How the items of a list are told apart.
#[derive(Debug, Clone, Copy)]
pub enum List<'s> {
    /// Not at all: the list is a leaf.
    Atomic,
    /// By their values.
    Set,
    /// By the values of these fields.
    Map(&'s [Box<str>]),
}

impl Atom<'_> {
    /// Whether the value is a leaf.
    pub fn is_leaf(&self) -> bool {
        match self {
            Atom::Scalar(_) => true,
            Atom::Struct { atomic, .. } | Atom::Map { atomic, .. } => *atomic,
            Atom::List { kind, .. } => matches!(kind, List::Atomic),
        }
    }
}

impl<'s> Ty<'s> {
    /// What a value of this type is; the value matters only where the schema says nothing.
    pub fn atom(self, value: &Value) -> Atom<'s> {
        let (shape, field) = match self {
            Ty::Object(schema) => {
                return Atom::Struct {
                    schema,
                    atomic: schema.atomic,
                };
            }
            Ty::Leaf => return Atom::Scalar(None),
            Ty::Deduced => return deduced(value),
            Ty::Field(field) => (&field.shape, Some(field)),
            Ty::Shape(shape) => (shape, None),
        };
        let atomic = field.is_some_and(|f| f.atomic);
        match shape {
            Shape::Any => deduced(value),
            Shape::Object(reference) => match reference.get() {
                Some(schema) => Atom::Struct {
                    schema,
                    atomic: atomic || schema.atomic,
                },
                None => deduced(value),
            },
            Shape::Map(item) => Atom::Map {
                item: Ty::Shape(item),
                atomic,
            },
            Shape::Array(item) => Atom::List {
                kind: field.map_or(List::Atomic, list_of),
                item: Ty::Shape(item),
            },
            scalar => Atom::Scalar(Some(scalar)),
        }
    }
}

fn list_of(field: &Field) -> List<'_> {
    match field.list_type {
        Some(ListType::Atomic) => List::Atomic,
        Some(ListType::Set) => List::Set,
        Some(ListType::Map) => List::Map(&field.map_keys),
        None if !field.patch_merge => List::Atomic,
        None => match &field.patch_merge_key {
            Some(key) => List::Map(std::slice::from_ref(key)),
            None => List::Set,
        },
    }
}

fn deduced(value: &Value) -> Atom<'static> {
    match value {
        Value::Object(_) => Atom::Map {
            item: Ty::Deduced,
            atomic: false,
        },
        Value::Array(_) => Atom::List {
            kind: List::Atomic,
            item: Ty::Deduced,
        },
        _ => Atom::Scalar(None),
    }
}

fn listed(table: &[(&str, &str)], schema: &Schema, field: &str) -> bool {
    table.iter().any(|(name, f)| {
        *f == field
            && schema
                .name
                .strip_suffix(name)
                .is_some_and(|p| p.ends_with('.'))
    })
}

fn is_built_in(schema: &Schema) -> bool {
    BUILT_IN
        .iter()
        .any(|prefix| schema.name.starts_with(prefix))
}

/// The type of a field of an object; `None` if the schema has no such field and takes no others.
pub fn field_type<'s>(schema: &'s Schema, name: &str) -> Option<Ty<'s>> {
    match schema.field(name) {
        Some(field) => Some(declared_type(schema, field)),
        None if schema.open => Some(Ty::Deduced),
        None => None,
    }
}

/// The type of a declared field.
pub fn declared_type<'s>(schema: &'s Schema, field: &'s Field) -> Ty<'s> {
    if matches!(field.shape, Shape::Any) && listed(RAW, schema, &field.name) {
        Ty::Leaf
    } else {
        Ty::Field(field)
    }
}

/// What a struct has in a field, given what was written there: something even if nothing was, unless the field is
/// a pointer or may be left out.
pub fn as_kept<'v>(
    schema: &Schema,
    field: &Field,
    written: Option<&'v Value>,
) -> Option<&'v Value> {
    if !is_built_in(schema) {
        return written;
    }
    match &field.shape {
        Shape::Object(_) if written.is_none() => {
            let usual = field.required || matches!(&*field.name, "metadata" | "spec" | "status");
            let is_value = if usual {
                !listed(POINTERS, schema, &field.name)
            } else {
                listed(VALUES, schema, &field.name)
            };
            is_value.then(|| &*EMPTY_STRUCT)
        }
        Shape::Array(_) | Shape::Map(_) if field.required && written.is_none_or(is_empty) => {
            Some(&NULL)
        }
        _ => written,
    }
}

/// Whether a value is null, or a list or map without anything in it.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// The path element of a list item.
///
/// # Errors
/// In upstream's words, when the item cannot be told from others.
pub fn item_element(
    kind: List<'_>,
    item_type: Ty<'_>,
    item: &Value,
) -> Result<PathElement, String> {
    match kind {
        List::Map(keys) => keyed_element(keys, item_type, item),
        List::Set => match item {
            Value::Object(_) => {
                Err("associative list without keys has an element that's a map type".to_owned())
            }
            Value::Array(_) => {
                Err("not supported: associative list with lists as elements".to_owned())
            }
            Value::Null => Err(
                "associative list without keys has an element that's an explicit null".to_owned(),
            ),
            scalar => Ok(PathElement::Value(scalar.clone())),
        },
        List::Atomic => Err("invalid indexing of non-associative list".to_owned()),
    }
}

fn keyed_element(
    keys: &[Box<str>],
    item_type: Ty<'_>,
    item: &Value,
) -> Result<PathElement, String> {
    let map = match item {
        Value::Object(map) => map,
        Value::Null => {
            return Err("associative list with keys may not have a null element".to_owned());
        }
        _ => return Err("associative list with keys may not have non-map elements".to_owned()),
    };
    let schema = match item_type.atom(item) {
        Atom::Struct { schema, .. } => Some(schema),
        _ => None,
    };
    let mut fields: Vec<(Box<str>, Value)> = Vec::with_capacity(keys.len());
    for key in keys {
        let value = match map.get(&**key) {
            Some(value) => Some(value.clone()),
            None => schema.and_then(|s| key_default(s, key)),
        };
        if let Some(value) = value {
            fields.push((key.clone(), value));
        }
    }
    if fields.is_empty() && !keys.is_empty() {
        let names: Vec<String> = keys.iter().map(|k| format!("{k:?}")).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
            names.join(" ")
        ));
    }
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(PathElement::Key(fields.into()))
}

fn key_default(schema: &Schema, key: &str) -> Option<Value> {
    let field = schema.field(key)?;
    if field.default.is_some() {
        return field.default.clone();
    }
    let written = is_built_in(schema) && (field.required || listed(EMPTY_KEYS, schema, key));
    if !written {
        return None;
    }
    match field.shape {
        Shape::String => Some("".into()),
        Shape::Int32 | Shape::Int64 => Some(0.into()),
        Shape::Bool => Some(false.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(name: &str) -> &'static Schema {
        api::schema(&format!("io.k8s.api.{name}")).unwrap()
    }

    #[test]
    fn keys_of_items_have_defaults() {
        let container = schema("core.v1.Container");
        let ports = Ty::Field(container.field("ports").unwrap());
        let Atom::List { kind, item } = ports.atom(&Value::Null) else {
            panic!("ports are a list")
        };
        let element = |v: Value| item_element(kind, item, &v).map(|e| e.to_string());
        assert_eq!(
            element(json!({"containerPort": 80})),
            Ok(r#"[containerPort=80,protocol="TCP"]"#.to_owned())
        );
        assert_eq!(
            element(json!({"protocol": "UDP"})),
            Ok(r#"[containerPort=0,protocol="UDP"]"#.to_owned())
        );
        assert!(element(json!(1)).is_err());
    }

    #[test]
    fn values_and_pointers_are_told_apart() {
        let has = |name: &str, field: &str| {
            let s = schema(name);
            as_kept(s, s.field(field).unwrap(), None).is_some()
        };
        for (name, field) in VALUES.iter().chain(POINTERS) {
            let known = api::schemas()
                .any(|s| s.name.ends_with(&format!(".{name}")) && s.field(field).is_some());
            assert!(known, "{name} {field}");
        }
        assert!(has("apps.v1.Deployment", "spec"));
        assert!(has("apps.v1.DeploymentSpec", "strategy"));
        assert!(has("apps.v1.DeploymentSpec", "template"));
        assert!(!has("apps.v1.DeploymentSpec", "selector"));
        assert!(has("core.v1.PodSpec", "containers"));
        assert!(!has("core.v1.PodSpec", "securityContext"));
    }
}
