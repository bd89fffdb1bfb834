//! The descriptor of a kind: all that the generic engine needs to serve it.
//!
//! Built-in kinds come from the facts and live as long as the process; custom kinds are built at
//! run time and shared behind an `Arc`.

use std::sync::Arc;

use crate::custom::Custom;
use crate::schema::SchemaRef;

/// One column of a server-side table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Title as clients print it, in upstream's capitals.
    pub name: String,
    /// OpenAPI type of the cells: `string`, `integer`, `boolean`, `date`, `number`.
    pub kind: String,
    /// OpenAPI format; `name` marks the column that holds the object's name.
    pub format: String,
    /// What the column means, in words.
    pub description: String,
    /// 0 is always shown, higher ones only by wide output.
    pub priority: i32,
}

/// A subresource such as `status`, `scale` or `log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subresource {
    /// Path segment after the object's name.
    pub name: String,
    /// Group of the kind read and written through it.
    pub group: String,
    /// Version of that kind.
    pub version: String,
    /// That kind.
    pub kind: String,
    /// Verbs it answers.
    pub verbs: Vec<String>,
}

/// Everything the generic engine needs to know about one served kind.
#[derive(Debug, Clone)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: String,
    /// Served version.
    pub version: String,
    /// Kind, in CamelCase.
    pub kind: String,
    /// Plural resource name used in paths.
    pub resource: String,
    /// Singular resource name.
    pub singular: String,
    /// Kind of a list of these objects.
    pub list_kind: String,
    /// Abbreviations that clients accept.
    pub short_names: Vec<String>,
    /// Groups of resources such as `all`.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs the resource answers.
    pub verbs: Vec<String>,
    /// Subresources it serves.
    pub subresources: Vec<Subresource>,
    /// Group under which objects are stored (differs for events.k8s.io, stored in the core group).
    pub storage_group: String,
    /// Version in which objects are stored.
    pub storage_version: String,
    /// Published hash of the storage version; empty for kinds that are not stored.
    pub storage_version_hash: String,
    /// Columns of the table; never empty.
    pub columns: Vec<Column>,
    /// Schema of the objects; for built-in kinds the name is upstream's definition name.
    pub schema: SchemaRef,
    /// What custom kinds have in place of facts and strategies; `None` for built-in ones.
    pub custom: Option<Arc<Custom>>,
}

impl Kind {
    /// `group/version`, or the version alone in the core group.
    pub fn api_version(&self) -> String {
        join_group_version(&self.group, &self.version)
    }

    /// `resource.group`, or the resource alone in the core group: how messages name a resource.
    pub fn qualified_resource(&self) -> String {
        if self.group.is_empty() {
            self.resource.clone()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }

    /// `Kind.group`, or the kind alone in the core group: how messages name a kind.
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() {
            self.kind.clone()
        } else {
            format!("{}.{}", self.kind, self.group)
        }
    }

    /// Whether the resource answers the verb.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether status is written through a subresource of its own.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Whether objects are kept in the store (reviews, bindings and the like are not).
    pub fn is_stored(&self) -> bool {
        self.has_verb("watch") && self.has_verb("get")
    }

    /// Prefix of the store keys of all objects of this resource, in whatever served version: ends in `/`.
    pub fn storage_prefix(&self) -> String {
        if self.storage_group.is_empty() {
            format!("/registry/{}/", self.resource)
        } else {
            format!("/registry/{}/{}/", self.storage_group, self.resource)
        }
    }

    /// Whether this descriptor's version is the one objects are stored in.
    pub fn is_storage_version(&self) -> bool {
        self.group == self.storage_group && self.version == self.storage_version
    }
}

/// `group/version`, or the version alone for the empty group.
pub(crate) fn join_group_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}
