//! What a kind may say about itself. Everything has a default that suits most kinds.

use api::time::Timestamp;
use api::{FieldError, Kind};
use serde_json::Value;

/// What a strategy may know beside the objects.
#[derive(Debug, Clone, Copy)]
pub struct Ctx<'a> {
    /// The kind at hand.
    pub kind: &'a Kind,
    /// The subresource written through, or empty.
    pub subresource: &'a str,
    /// The time of the request.
    pub now: Timestamp,
}

/// The rules of one kind. All hooks are pure; metadata is checked elsewhere, for every kind.
pub trait Strategy: Send + Sync {
    /// Fills in what depends on other fields; static values are there already. Must be idempotent.
    fn default(&self, _obj: &mut Value) {}

    /// Makes a new object fit to be stored, after the status was dropped and the generation set.
    fn prepare_create(&self, _obj: &mut Value, _ctx: &Ctx<'_>) {}

    /// Carries over what an update may not change, after the old status was put back.
    fn prepare_update(&self, _new: &mut Value, _old: &Value, _ctx: &Ctx<'_>) {}

    /// Carries over what a status update may not change, after everything but status was put back.
    fn prepare_status_update(&self, _new: &mut Value, _old: &Value, _ctx: &Ctx<'_>) {}

    /// Every broken rule that only new objects are held to; [`Strategy::validate`] runs as well.
    fn validate_create(&self, _obj: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Every broken rule of the object, new or changed.
    fn validate(&self, _obj: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Every broken rule of the change; [`Strategy::validate`] runs as well.
    fn validate_update(&self, _new: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Whether the rules of a change are told before those of the object.
    fn changes_first(&self) -> bool {
        false
    }

    /// Every broken rule of a change of status.
    fn validate_status_update(&self, _new: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// The message of each rule that a name (or generateName with `prefix`) breaks.
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        crate::metadata::masked(name, prefix, api::names::dns1123_subdomain)
    }

    /// Seconds of grace when a delete asks for none; `None` if objects of this kind go at once.
    fn delete_grace(&self, _obj: &Value) -> Option<i64> {
        None
    }

    /// The object with what its kind adds when it is deleted for the first time; `None` if that is nothing.
    fn hold_on_delete(&self, _obj: &Value, _now: Timestamp) -> Option<Value> {
        None
    }

    /// Warnings for whoever writes the object.
    fn warnings(&self, _obj: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Cells of the table in the order of the kind's columns; `None` for name and age alone.
    fn row(&self, _obj: &Value, _now: Timestamp) -> Option<Vec<Value>> {
        None
    }

    /// Fields that a field selector may name beside `metadata.name` and `metadata.namespace`: label, path in the object.
    fn field_labels(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[]
    }

    /// Whether a new object keeps the status it was sent with (Nodes and PersistentVolumes are created with one by clients).
    fn keeps_status_on_create(&self) -> bool {
        false
    }

    /// Whether `metadata.generation` counts the changes of everything but metadata and status.
    fn has_generation(&self) -> bool {
        false
    }

    /// Whether an update of an object that does not exist creates it.
    fn allows_create_on_update(&self) -> bool {
        false
    }

    /// Whether an update must name the resource version it was made from.
    fn requires_resource_version(&self) -> bool {
        false
    }
}

/// The strategy of kinds without rules of their own.
pub struct Generic;

impl Strategy for Generic {}

/// The strategy of custom kinds.
pub struct Custom;

impl Strategy for Custom {
    fn requires_resource_version(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// One line of [`crate::ALL`]: group, kind (any version) and its rules.
pub struct Entry {
    /// API group.
    pub group: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Its rules.
    pub strategy: &'static dyn Strategy,
}
