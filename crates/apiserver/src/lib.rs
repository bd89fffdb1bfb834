//! The Kubernetes API server: HTTP, authentication, authorization, admission and one generic engine for every
//! kind, over any [`store::Store`].
//!
//! ```text
//! http::handler -> auth -> dispatch -> codec (decode, default, patch) -> admission -> kinds (rules) -> registry -> store
//! ```
//!
//! - A kind needs no code here: descriptors come from `api`, rules from `kinds`.
//! - The store's own tree is the watch cache; nothing is kept twice.
//! - Clients in the same process call the very same handler through [`http::in_process::InProcess`].

pub mod admission;
mod aggregation;
mod apply;
pub mod auth;
mod bootstrap;
mod call;
mod components;
mod config;
mod custom;
mod dispatch;
mod eviction;
pub mod http;
mod metrics;
mod openapi;
mod paths;
mod proxy;
pub mod registry;
mod reviews;
mod server;
mod subresources;
mod webhook;

pub use config::{Clock, Config, FrontProxy};
pub use http::in_process::InProcess;
pub use paths::GIT_VERSION;
pub use server::{ApiServer, StartError};
