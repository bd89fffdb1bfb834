//! A range of keys as it was at one revision: a snapshot of the tree, with what changed since undone.

use std::collections::HashMap;

use bytes::Bytes;

use crate::tree::Tree;
use crate::types::{KeyValue, Revision};

/// A snapshot. Holding it costs what the store writes meanwhile.
pub(crate) struct View {
    pub(crate) revision: Revision,
    tree: Tree,
    /// Keys that changed after the revision, with what they held then.
    undone: HashMap<Bytes, Option<KeyValue>>,
    /// The values of `undone`, in order of their keys.
    then: Vec<KeyValue>,
}

impl View {
    pub(crate) fn new(
        revision: Revision,
        tree: Tree,
        undone: HashMap<Bytes, Option<KeyValue>>,
    ) -> Self {
        let mut then: Vec<KeyValue> = undone.values().flatten().cloned().collect();
        then.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Self {
            revision,
            tree,
            undone,
            then,
        }
    }

    /// The keys of `start..end` in order: today's that have not changed since, and those that have as
    /// they were.
    pub(crate) fn range<'a>(
        &'a self,
        start: &'a Bytes,
        end: &'a Bytes,
    ) -> impl Iterator<Item = &'a KeyValue> {
        let from = self.then.partition_point(|kv| kv.key < *start);
        let mut then = self.then[from..].iter().peekable();
        let now = self.tree.range(start, end);
        let mut now = now
            .filter(|kv| !self.undone.contains_key(&kv.key))
            .peekable();
        std::iter::from_fn(move || match (now.peek(), then.peek()) {
            (Some(kv), Some(old)) if old.key < kv.key => then.next(),
            (Some(_), _) => now.next().map(|kv| &**kv),
            (None, _) => then.next(),
        })
    }
}
