//! The rules of each kind: what is filled in, what is checked, what a table row shows.
//!
//! The API server calls the functions of this module; they wrap the kind's [`Strategy`] in what
//! holds for every kind (metadata rules, generation, who may write status). Nothing here does I/O.
//!
//! Order on create: `codec::default` → [`default`] → [`prepare_create`] → admission → [`validate_create`].
//! On update: `codec::default` → [`default`] → [`prepare_update`] → admission → [`validate_update`].

mod addresses;
mod api_service;
mod apps;
mod autoscaling;
mod batch;
mod cells;
mod certificates;
mod check;
mod core;
mod custom;
mod definition;
mod flowcontrol;
mod generic;
mod metadata;
mod networking;
mod rbac;
mod registry;
mod resource;
mod simple;
mod small;
mod storage;
mod strategy;
#[cfg(test)]
mod testing;

pub use crate::core::pod::qos_class;

pub use definition::{CLEANUP_FINALIZER, approval_of, set_condition, structural_problems};
pub use generic::{
    convert, default, delete_grace, field_labels, field_names, field_path, field_value,
    hold_on_delete, prepare_create, prepare_status_update, prepare_update, row, validate_create,
    validate_status_update, validate_update, warnings,
};
pub use metadata::{validate_labels_and_annotations, validate_metadata, validate_metadata_update};
pub use registry::{ALL, strategy};
pub use strategy::{Ctx, Custom, Entry, Generic, Strategy};
