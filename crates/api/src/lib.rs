//! What a Kubernetes object is: kinds, schemas, names, selectors, quantities, Status and discovery.
//!
//! Everything here is data and pure functions: no I/O, no clock, no async runtime. Facts about the
//! API (`facts/`) are embedded and parsed once, at first use.

mod brackets;
pub mod cron;
pub mod custom;
pub mod discovery;
pub mod edit;
mod facts;
pub mod feed;
pub mod fields;
pub mod jsonpath;
mod kind;
pub mod meta;
pub mod names;
pub mod quantity;
mod schema;
pub mod selector;
pub mod splice;
mod status;
pub mod storage_class;
pub mod time;

pub use facts::{
    DEFAULTS_JSON, default_columns, kind, kind_by_gvk, kinds, kinds_of_group, schema, schemas,
};
pub use kind::{Column, Kind, Subresource};
pub use quantity::Quantity;
pub use schema::{Field, ListType, Schema, SchemaRef, Shape};
pub use status::{ErrorKind, FieldError, Status, StatusCause, StatusDetails};
