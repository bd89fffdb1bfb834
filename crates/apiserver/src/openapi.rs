//! OpenAPI documents, made once and kept as bytes until the kinds change.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::registry::Registry;

/// Finished documents by path.
#[derive(Default)]
pub struct OpenApi(Mutex<HashMap<String, Bytes>>);

impl OpenApi {
    fn cached(&self, path: &str, make: impl FnOnce() -> Option<Bytes>) -> Option<Bytes> {
        if let Some(found) = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(path)
        {
            return Some(found.clone());
        }
        // Made outside the lock: two first requests may both make it, and agree.
        let made = make()?;
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(path.to_owned(), made.clone());
        Some(made)
    }

    /// `/openapi/v3`.
    pub fn v3_index(&self, registry: &Registry) -> Bytes {
        let make = || {
            Some(
                codec::openapi::v3_index(registry.resources().kinds())
                    .to_string()
                    .into(),
            )
        };
        self.cached("v3", make).unwrap_or_default()
    }
}
