//! What the store needs of a disk: append a group of writes atomically and durably, and give
//! everything back when opened.

use bytes::Bytes;

use crate::types::{KeyValue, Revision};

/// The writes of a group of commits: at most one per key.
pub(crate) struct Group {
    /// The store's revision once the group is applied.
    pub(crate) revision: Revision,
    /// What each key holds then; `None` deletes it.
    pub(crate) writes: Vec<(Bytes, Option<std::sync::Arc<KeyValue>>)>,
}

/// Everything a back end held when it was opened.
pub(crate) struct Loaded {
    pub(crate) revision: Revision,
    pub(crate) entries: Vec<std::sync::Arc<KeyValue>>,
}

/// Why a group was not appended.
#[derive(Debug)]
pub(crate) enum DurableError {
    NoSpace(String),
    Io(String),
}

/// A durable back end, used by one thread.
pub(crate) trait Durable: Send {
    /// Makes the group durable, all or nothing. After an error the caller must `reload` before it
    /// appends again: the group may or may not have happened.
    fn append(&mut self, group: &Group) -> Result<(), DurableError>;

    /// Opens anew after an error and gives what is there now.
    fn reload(&mut self) -> Result<Loaded, DurableError>;
}

/// Keeps nothing: for stores in memory.
pub(crate) struct Nowhere;

impl Durable for Nowhere {
    fn append(&mut self, _: &Group) -> Result<(), DurableError> {
        Ok(())
    }

    fn reload(&mut self) -> Result<Loaded, DurableError> {
        Err(DurableError::Io("a store in memory has no disk".into()))
    }
}
