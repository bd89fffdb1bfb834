//! How every part of the cluster except the API server itself sees the cluster: a
//! [`Client`] over any transport, shared caches, work queues, the controller harness and the
//! event recorder.
//!
//! Invariants:
//! - nothing here knows whether the API server is in this process or across the network;
//! - a cache is only ever filled by list and watch, and tells of changes by key: whoever misses
//!   one loses time, never correctness;
//! - every queue, cache and buffer is bounded by the number of objects or by a named constant;
//! - clocks and randomness come in through [`Clock`] and [`Jitter`].

pub mod cache;
pub mod clock;
pub mod controller;
mod error;
pub mod events;
mod key;
pub mod queue;
mod selector;
pub mod write;

pub use cache::{Cache, Caches, Change, Entry, Owner, Resource, Scope, Word};
pub use clock::{Clock, Jitter};
pub use controller::{Reconcile, Requeue, run_workers};
pub use error::{Error, is_conflict, is_exists, is_forbidden_by_termination, is_not_found};
pub use events::{EventType, Recorder};
pub use key::Key;
pub use kube::Client;
pub use queue::{Backoff, Queue};
pub use selector::Selector;

use http::{Request, Response};

/// A client whose transport is `service`: the API service of this process, or a test's fake.
///
/// Must be called inside a tokio runtime. The namespace of namespaced requests is always named
/// by the caller, so the default namespace is only a fallback.
pub fn in_process<S, B>(service: S) -> Client
where
    S: tower::Service<Request<kube::client::Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<tower::BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tower::BoxError>,
{
    Client::new(service, "default")
}
