//! What a write takes besides the object itself: addresses, ports, the life of its namespace.
//!
//! A claim is a set of keys that must be absent (or unchanged) and the mutations that take or release them.
//! They are part of the object's own commit, so two writers can never take the same thing, and nothing leaks
//! when the process dies in between.

use bytes::Bytes;
use serde_json::Value;
use store::{Expect, Mutation};

use super::{Fail, Registry, Write};

/// Extra preconditions and changes of one commit.
#[derive(Default, Debug)]
pub struct Claims {
    /// Preconditions besides the object's own.
    pub expect: Vec<(Bytes, Expect)>,
    /// Changes besides the object's own.
    pub mutations: Vec<Mutation>,
}

impl Claims {
    /// Takes a key that must be free.
    pub fn take(&mut self, key: Bytes, value: Bytes) {
        self.expect.push((key.clone(), Expect::Absent));
        self.mutations.push(Mutation::Put { key, value });
    }

    /// Gives a key back.
    pub fn release(&mut self, key: Bytes) {
        self.mutations.push(Mutation::Delete { key });
    }
}

impl Registry {
    /// Everything that the change of an object takes and gives back: `old` is absent on create, `new` on delete.
    ///
    /// # Errors
    /// 403 or 422 in upstream's words for what is not to be had.
    pub(super) async fn claim(
        &self,
        write: &Write<'_>,
        old: Option<&Value>,
        mut new: Option<&mut Value>,
        claims: &mut Claims,
    ) -> Result<(), Fail> {
        self.claim_service(write, old, new.as_deref_mut(), claims)
            .await?;
        self.claim_quota(write, old, new, claims).await
    }
}
