//! Kinds of the core group.

pub(crate) mod config;
pub(crate) mod endpoints;
pub(crate) mod event;
pub(crate) mod limits;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod quota;
pub(crate) mod resources;
pub(crate) mod service;
pub(crate) mod sources;
pub(crate) mod volume;
