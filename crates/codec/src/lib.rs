//! Bytes to objects and back: the only place where bodies are parsed, checked and filled in.
//!
//! ```text
//! bytes -> decode (schema walk) -> default (static values) -> kinds: rule defaults -> ... -> canonical -> store
//! ```
//!
//! Objects are JSON trees whose maps are sorted by key, as Go writes maps: sets of fields, hashes and messages rely on
//! it. A crate that has `serde_json` keep the order of keys would change that for all. Unknown fields, wrong types and duplicate keys are found against the
//! schema of the kind, so that built-in and custom kinds behave the same.

pub mod apply;
mod canonical;
pub mod custom;
mod decode;
mod default;
pub mod openapi;
pub mod patch;
pub mod protobuf;
mod tree;
mod walk;

pub use canonical::{canonical, splice_resource_version};
pub use decode::{
    ContentType, Decoded, Duplicate, FieldValidation, MAX_DEPTH, check, decode, parse, repeated,
};
pub use default::default;
