//! Schemas: which fields an object may have, of which shape, and how its lists merge.
//!
//! Built-in schemas form one table of named objects that may refer to each other (and to
//! themselves); references are resolved at first use, so that a table needs no order.

use std::sync::{Arc, OnceLock};

use serde_json::Value;

/// A reference to a named schema, or an anonymous schema owned by its user.
#[derive(Clone)]
pub struct SchemaRef {
    name: Arc<str>,
    target: OnceLock<Option<Target>>,
}

#[derive(Clone)]
enum Target {
    BuiltIn(&'static Schema),
    Own(Arc<Schema>),
}

impl SchemaRef {
    /// A reference to the built-in schema of that name, resolved when first used.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            target: OnceLock::new(),
        }
    }

    /// A reference to a schema made at run time.
    pub fn own(schema: Arc<Schema>) -> Self {
        let name = Arc::from(schema.name.as_str());
        Self {
            name,
            target: OnceLock::from(Some(Target::Own(schema))),
        }
    }

    /// Name of the schema referred to; empty for anonymous ones.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The schema, or `None` if no built-in schema has that name.
    pub fn get(&self) -> Option<&Schema> {
        match self
            .target
            .get_or_init(|| crate::facts::schema(&self.name).map(Target::BuiltIn))
        {
            Some(Target::BuiltIn(schema)) => Some(schema),
            Some(Target::Own(schema)) => Some(schema),
            None => None,
        }
    }
}

impl std::fmt::Debug for SchemaRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SchemaRef({})", self.name)
    }
}

/// The shape of one value.
#[derive(Debug, Clone)]
pub enum Shape {
    /// A string.
    String,
    /// A boolean.
    Bool,
    /// A 32-bit integer.
    Int32,
    /// A 64-bit integer.
    Int64,
    /// A floating point number.
    Number,
    /// Bytes, as a base64 string.
    Bytes,
    /// RFC 3339 time in whole seconds.
    Time,
    /// RFC 3339 time with microseconds.
    MicroTime,
    /// A resource quantity: string or number.
    Quantity,
    /// An integer or a string.
    IntOrString,
    /// Anything at all: embedded objects and free-form JSON.
    Any,
    /// An object of a named or run-time schema.
    Object(SchemaRef),
    /// A list.
    Array(Box<Shape>),
    /// An object with free keys.
    Map(Box<Shape>),
}

/// How server-side apply treats a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListType {
    /// Replaced as a whole.
    #[default]
    Atomic,
    /// Distinct scalars.
    Set,
    /// Objects identified by `map_keys`.
    Map,
}

/// One field of an object schema.
#[derive(Debug, Clone)]
pub struct Field {
    /// JSON name.
    pub name: Box<str>,
    /// Shape of its value.
    pub shape: Shape,
    /// Allowed values, of the field or of a list's items; empty if free.
    pub enum_values: Vec<Box<str>>,
    /// Whether the field must be present.
    pub required: bool,
    /// Value filled in by the schema itself when absent.
    pub default: Option<Value>,
    /// How server-side apply merges the list; `None` if the field is no list or says nothing.
    pub list_type: Option<ListType>,
    /// Identifying fields of the items of a list of type map.
    pub map_keys: Vec<Box<str>>,
    /// Whether server-side apply replaces the map or struct as a whole.
    pub atomic: bool,
    /// Strategic merge: lists merge by key or as sets, instead of being replaced.
    pub patch_merge: bool,
    /// Strategic merge: fields absent from the patch's `$retainKeys` are dropped.
    pub patch_retain_keys: bool,
    /// Strategic merge: the field that identifies items of a list of objects.
    pub patch_merge_key: Option<Box<str>>,
}

/// An object schema.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    /// Upstream's definition name, such as `io.k8s.api.core.v1.Pod`.
    pub name: String,
    /// Fields, sorted by name.
    pub fields: Vec<Field>,
    /// Group, version and kind of top-level objects; some schemas have several.
    pub gvks: Vec<(Box<str>, Box<str>, Box<str>)>,
    /// Whether server-side apply replaces objects of this schema as a whole.
    pub atomic: bool,
    /// Whether fields not listed are kept rather than reported and dropped.
    pub open: bool,
}

impl Schema {
    /// The field of that JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields
            .binary_search_by(|f| (*f.name).cmp(name))
            .ok()
            .map(|i| &self.fields[i])
    }

    /// Last part of the definition name: `Pod` of `io.k8s.api.core.v1.Pod`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// The shape of a value of this schema: scalars such as `Quantity` have a name but no fields.
    pub(crate) fn scalar_shape(name: &str) -> Option<Shape> {
        Some(match name.strip_prefix("io.k8s.")? {
            "apimachinery.pkg.api.resource.Quantity" => Shape::Quantity,
            "apimachinery.pkg.apis.meta.v1.Time" => Shape::Time,
            "apimachinery.pkg.apis.meta.v1.MicroTime" => Shape::MicroTime,
            "apimachinery.pkg.util.intstr.IntOrString" => Shape::IntOrString,
            "apimachinery.pkg.runtime.RawExtension"
            | "apimachinery.pkg.apis.meta.v1.FieldsV1"
            | "apimachinery.pkg.apis.meta.v1.Patch"
            | "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON"
            | "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray"
            | "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool"
            | "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray" => {
                Shape::Any
            }
            _ => return None,
        })
    }
}
