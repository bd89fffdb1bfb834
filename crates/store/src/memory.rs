//! A disk in memory that outlives the stores opened on it: for simulations, where a server is killed
//! and started again in one process and on one thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::durable::{Durable, DurableError, Group, Loaded};
use crate::tree::Tree;
use crate::types::Revision;

/// A disk in memory. Its clones are the same disk.
///
/// One store at a time writes to it, the one that was opened last: what an earlier one still
/// tries to commit after [`MemoryDisk::detach`] fails, as if its machine had lost power.
#[derive(Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Content>>);

struct Content {
    revision: Revision,
    tree: Tree,
    /// Which store may write: counts how often the disk was taken away.
    writer: u64,
}

impl Default for Content {
    fn default() -> Self {
        Self {
            revision: 1,
            tree: Tree::default(),
            writer: 0,
        }
    }
}

impl MemoryDisk {
    /// Takes the disk away from the store that has it.
    pub fn detach(&self) {
        self.lock().writer += 1;
    }

    /// Revision of the last commit that is on the disk.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.lock().revision
    }

    /// What is on it, and what writes to it.
    pub(crate) fn attach(&self) -> (Loaded, Box<dyn Durable>) {
        let mut content = self.lock();
        content.writer += 1;
        let loaded = Loaded {
            revision: content.revision,
            tree: content.tree.clone(),
        };
        let writer = Writer {
            disk: self.clone(),
            number: content.writer,
        };
        (loaded, Box::new(writer))
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Writer {
    disk: MemoryDisk,
    number: u64,
}

impl Durable for Writer {
    fn append(&mut self, group: &Group, tree: &Tree) -> Result<(), DurableError> {
        let mut content = self.disk.lock();
        if content.writer != self.number {
            return Err(DurableError::Io("the disk was taken away".into()));
        }
        content.revision = group.revision;
        content.tree = tree.clone();
        Ok(())
    }
}
