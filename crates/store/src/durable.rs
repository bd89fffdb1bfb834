//! What the store needs of a disk: append a group of writes atomically and durably.

use crate::record::Write;
use crate::tree::Tree;
use crate::types::Revision;

/// The writes of a group of commits: at most one per key.
pub(crate) struct Group {
    /// The store's revision once the group is applied.
    pub(crate) revision: Revision,
    /// What each key holds then.
    pub(crate) writes: Vec<Write>,
}

/// Everything a back end held when it was opened.
pub(crate) struct Loaded {
    pub(crate) revision: Revision,
    pub(crate) tree: Tree,
}

/// Why a group was not appended.
#[derive(Debug)]
pub(crate) enum DurableError {
    NoSpace(String),
    Io(String),
}

impl From<std::io::Error> for DurableError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::NoSpace(error.to_string())
            }
            _ => Self::Io(error.to_string()),
        }
    }
}

/// A durable back end, used by one thread.
pub(crate) trait Durable: Send {
    /// Makes the group durable, all or nothing: after an error it has not happened, and the next
    /// group may be tried. `tree` is everything, the group included.
    fn append(&mut self, group: &Group, tree: &Tree) -> Result<(), DurableError>;
}

/// Keeps nothing: for stores in memory.
pub(crate) struct Nowhere;

impl Durable for Nowhere {
    fn append(&mut self, _: &Group, _: &Tree) -> Result<(), DurableError> {
        Ok(())
    }
}
