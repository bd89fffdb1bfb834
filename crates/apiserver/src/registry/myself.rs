//! The server as one that writes: its own objects, and what it finds out about others'.

use std::sync::Arc;

use super::{Owner, Registry, Resource, Warnings, Write};
use crate::auth::{MASTERS, UserInfo};

/// Who the server is to itself, for as long as a write takes.
pub struct Myself {
    user: UserInfo,
    warnings: Warnings,
    owner: Owner,
}

impl Default for Myself {
    /// A name that may do everything. What writes warn of goes with it: nobody waits for that.
    fn default() -> Self {
        Self {
            user: UserInfo::new("system:apiserver", &[MASTERS]),
            warnings: Warnings::default(),
            owner: Owner::server(),
        }
    }
}

impl Myself {
    /// A write of the whole of an object; `namespace` is empty for one of the cluster.
    pub fn write<'a>(
        &'a self,
        registry: &Registry,
        resource: &'a Arc<Resource>,
        namespace: &'a str,
        name: &'a str,
    ) -> Write<'a> {
        Write {
            resource,
            namespace,
            name,
            subresource: "",
            user: &self.user,
            dry_run: false,
            now: registry.now(),
            warnings: &self.warnings,
            owner: Some(&self.owner),
        }
    }
}
