//! Tests of the embedded engine through its public interface.

mod behaviour;
mod crash;
mod disk;
mod model;

use bytes::Bytes;
use store::{Commit, Expect, Mutation};

pub(crate) fn put(key: &str, value: impl Into<Bytes>) -> Mutation {
    Mutation::Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.into(),
    }
}

pub(crate) fn delete(key: &str) -> Mutation {
    Mutation::Delete {
        key: Bytes::copy_from_slice(key.as_bytes()),
    }
}

pub(crate) fn commit(mutations: Vec<Mutation>) -> Commit {
    Commit {
        expect: Vec::new(),
        mutations,
    }
}

pub(crate) fn expecting(key: &str, expect: Expect, mutation: Mutation) -> Commit {
    Commit {
        expect: vec![(Bytes::copy_from_slice(key.as_bytes()), expect)],
        mutations: vec![mutation],
    }
}
