//! The ordered tree of current keys. It is persistent: cloning it is a snapshot that costs one
//! reference count, and later writes copy only the few nodes on their path.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdSet;

use crate::types::KeyValue;

/// A shared key and value, ordered by its key. One pointer wide, so that copying a tree node copies
/// little.
#[derive(Clone, Debug)]
pub(crate) struct Entry(pub(crate) Arc<KeyValue>);

impl Borrow<[u8]> for Entry {
    fn borrow(&self) -> &[u8] {
        &self.0.key
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

/// The tree. Its clone is a snapshot.
#[derive(Clone, Default)]
pub(crate) struct Tree(OrdSet<Entry>);

impl Tree {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.0.get(key).map(|entry| &entry.0)
    }

    pub(crate) fn insert(&mut self, kv: Arc<KeyValue>) {
        self.0.insert(Entry(kv));
    }

    pub(crate) fn remove(&mut self, key: &[u8]) {
        self.0.remove(key);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<KeyValue>> {
        self.0.iter().map(|entry| &entry.0)
    }

    /// The keys of `start..end` in order; an empty `end` means no end.
    pub(crate) fn range<'a>(
        &'a self,
        start: &'a Bytes,
        end: &'a Bytes,
    ) -> Box<dyn Iterator<Item = &'a Arc<KeyValue>> + 'a> {
        if !end.is_empty() && start >= end {
            return Box::new(std::iter::empty());
        }
        let upper = if end.is_empty() {
            Bound::Unbounded
        } else {
            Bound::Excluded(&end[..])
        };
        let bounds = (Bound::Included(&start[..]), upper);
        Box::new(self.0.range::<_, [u8]>(bounds).map(|entry| &entry.0))
    }
}

impl FromIterator<Arc<KeyValue>> for Tree {
    fn from_iter<I: IntoIterator<Item = Arc<KeyValue>>>(entries: I) -> Self {
        Self(entries.into_iter().map(Entry).collect())
    }
}
