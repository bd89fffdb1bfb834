//! What a write takes besides the object itself: addresses, ports, the life of its namespace.
//!
//! A claim is a set of keys that must be absent (or unchanged) and the mutations that take or release them.
//! They are part of the object's own commit, so two writers can never take the same thing, and nothing leaks
//! when the process dies in between.

use bytes::Bytes;
use store::{Expect, Mutation};

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

    /// Whether the conflict on `key` is about a claim.
    pub fn concerns(&self, key: &[u8]) -> bool {
        self.expect.iter().any(|(k, _)| k == key)
    }
}
