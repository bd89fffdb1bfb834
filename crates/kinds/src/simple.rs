//! Kinds whose rules are data: columns, field labels, how they are named.

use api::time::Timestamp;
use api::{FieldError, names};
use serde_json::Value;

use crate::cells::{Cell, render};
use crate::metadata::masked;
use crate::strategy::{Ctx, Strategy};

/// Paths that field selectors may name.
pub(crate) type FieldLabels = &'static [(&'static str, &'static [&'static str])];

/// A kind described by data alone.
pub(crate) struct Simple {
    /// Cells of its table, in the order of the columns.
    pub cells: &'static [Cell],
    /// Field labels.
    pub labels: FieldLabels,
    /// Rule for names.
    pub name: fn(&str) -> Vec<String>,
    /// Whether changes are counted.
    pub generation: bool,
    /// Rules of the object.
    pub validate: fn(&Value) -> Vec<FieldError>,
    /// Rules of a new object.
    pub validate_create: fn(&Value) -> Vec<FieldError>,
    /// Rules of a change.
    pub validate_update: fn(&Value, &Value) -> Vec<FieldError>,
    /// Whether they are told before those of the object.
    pub changes_first: bool,
    /// Rules of a change of status.
    pub validate_status: fn(&Value, &Value) -> Vec<FieldError>,
    /// Warnings about the object.
    pub warnings: fn(&Value) -> Vec<String>,
    /// What is filled in.
    pub default: fn(&mut Value),
    /// What is made fit when an object is stored; the second is the one it replaces.
    pub prepare: fn(&mut Value, Option<&Value>, Timestamp),
    /// Whether an update creates what is not there.
    pub create_on_update: bool,
}

impl Simple {
    /// No rules, no cells: a base to change fields of.
    pub const BASE: Self = Self {
        cells: &[],
        labels: &[],
        name: names::dns1123_subdomain,
        generation: false,
        validate: |_| Vec::new(),
        validate_create: |_| Vec::new(),
        validate_update: |_, _| Vec::new(),
        changes_first: false,
        validate_status: |_, _| Vec::new(),
        warnings: |_| Vec::new(),
        default: |_| {},
        prepare: |_, _, _| {},
        create_on_update: false,
    };
}

impl Strategy for Simple {
    fn default(&self, obj: &mut Value) {
        (self.default)(obj);
    }

    fn prepare_create(&self, obj: &mut Value, ctx: &Ctx<'_>) {
        (self.prepare)(obj, None, ctx.now);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, ctx: &Ctx<'_>) {
        (self.prepare)(new, Some(old), ctx.now);
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        (self.validate)(obj)
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        (self.validate_create)(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        (self.validate_update)(new, old)
    }

    fn changes_first(&self) -> bool {
        self.changes_first
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        (self.validate_status)(new, old)
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        masked(name, prefix, self.name)
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        (self.warnings)(obj)
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Option<Vec<Value>> {
        (!self.cells.is_empty()).then(|| render(self.cells, obj, now))
    }

    fn field_labels(&self) -> FieldLabels {
        self.labels
    }

    fn has_generation(&self) -> bool {
        self.generation
    }

    fn allows_create_on_update(&self) -> bool {
        self.create_on_update
    }
}
