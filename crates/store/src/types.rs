//! The contract between the API server and any store engine: requests, answers, errors, and the
//! [`Store`] trait itself.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use thiserror::Error;

use crate::scan::Scan;

/// Counts the commits of the whole store. An empty store is at revision 1.
pub type Revision = u64;

/// One key as it was after some commit. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Revision of the commit that created the key (anew, after a delete).
    pub create_revision: Revision,
    /// Revision of the last commit that wrote the key.
    pub mod_revision: Revision,
    /// How often the key was written since it was created; 1 when new.
    pub version: u64,
}

/// What a commit requires of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists and was last written at this revision.
    ModRevision(Revision),
    /// Anything goes.
    Any,
}

/// One change of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Creates or replaces the key.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Removes the key; of an absent key it is a no-op.
    Delete {
        /// The key.
        key: Bytes,
    },
}

/// Preconditions and changes that happen together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// Checked in this order; the first that fails is reported.
    pub expect: Vec<(Bytes, Expect)>,
    /// Applied in this order; all get the same revision.
    pub mutations: Vec<Mutation>,
}

/// Why a commit did not happen.
#[derive(Debug, Error)]
pub enum CommitError {
    /// A precondition failed.
    #[error("precondition failed on key {}", key.escape_ascii())]
    Conflict {
        /// The key whose precondition failed.
        key: Bytes,
        /// What the key holds instead.
        current: Option<KeyValue>,
    },
    /// A value or the whole commit is over its limit.
    #[error("{what} of {size} bytes is over the limit of {limit} bytes")]
    TooLarge {
        /// `key`, `value` or `commit`.
        what: &'static str,
        /// Bytes asked for.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The disk is full. Reads go on; commits work again once there is room.
    #[error("no space left for the store: {0}")]
    NoSpace(String),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The disk failed. Whether the commit happened shows only at the next read.
    #[error("store i/o failed: {0}")]
    Io(String),
}

/// Asks for the keys of `start..end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeRequest {
    /// First key wanted.
    pub start: Bytes,
    /// First key not wanted any more; see [`prefix_end`]. Empty means: to the last key.
    pub end: Bytes,
    /// At most so many keys; 0 gives all.
    pub limit: usize,
    /// The revision to read at; `None` reads now.
    pub at: Option<Revision>,
}

/// Answer to a [`RangeRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeResult {
    /// The keys in order.
    pub kvs: Vec<KeyValue>,
    /// The revision that was read.
    pub revision: Revision,
    /// Whether `limit` left keys out.
    pub more: bool,
    /// How many keys the range holds, those left out included.
    pub count: u64,
}

/// Why a read or a watch could not be answered.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReadError {
    /// The revision is older than the history kept.
    #[error("the requested revision has been compacted; the oldest kept is {oldest}")]
    Compacted {
        /// The oldest revision that can be read here.
        oldest: Revision,
    },
    /// The revision has not happened yet.
    #[error("the requested revision is in the future; the current one is {current}")]
    Future {
        /// The newest revision.
        current: Revision,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The disk failed.
    #[error("store i/o failed: {0}")]
    Io(String),
}

/// Why a store could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process (or this one) has it open.
    #[error("the store is in use by another process: lock file {} is held", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("no space left to open the store in {}: {reason}", path.display())]
    NoSpace {
        /// The store's folder.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The folder's contents cannot be understood, or were written by a newer version.
    #[error("the store in {} is damaged: {reason}", path.display())]
    Damaged {
        /// The store's folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The disk failed.
    #[error("cannot open the store in {}: {reason}", path.display())]
    Io {
        /// The store's folder.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

impl OpenError {
    pub(crate) fn from_io(dir: &Path, error: &std::io::Error) -> Self {
        let (path, reason) = (dir.to_owned(), error.to_string());
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path, reason }
            }
            _ => Self::Io { path, reason },
        }
    }
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was created or replaced.
    Put,
    /// It was removed.
    Delete,
}

/// One change of one key. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key afterwards; for a delete the last value, with `mod_revision` of the delete.
    pub kv: KeyValue,
    /// The key before; `None` when it was created.
    pub prev: Option<KeyValue>,
}

/// What a watch delivers: every event of its prefix up to and including `revision` that it has not
/// delivered before. Without events it tells progress only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// In order of revision; a commit is never split.
    pub events: Vec<Event>,
    /// Everything up to here has been delivered.
    pub revision: Revision,
}

/// Asks a [`Watch`] for progress, from wherever it is convenient.
pub trait Progress: Send + Sync {
    /// The watch's next item comes at once, without events if there are none.
    fn request(&self);
}

/// A stream of [`Batch`]es. It ends after its first error.
pub struct Watch {
    stream: BoxStream<'static, Result<Batch, ReadError>>,
    progress: std::sync::Arc<dyn Progress>,
}

impl Watch {
    /// Made by store engines.
    pub fn new(
        stream: BoxStream<'static, Result<Batch, ReadError>>,
        progress: std::sync::Arc<dyn Progress>,
    ) -> Self {
        Self { stream, progress }
    }

    /// Makes the next item come at once: a batch that may be empty and carries the store's current
    /// revision. This is what a bookmark is made from; without it, batches come with events only.
    pub fn request_progress(&self) {
        self.progress.request();
    }
}

impl Stream for Watch {
    type Item = Result<Batch, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

/// A store engine.
pub trait Store: Send + Sync + 'static {
    /// Applies a commit and returns its revision; durable when it resolves. A commit that changes
    /// nothing (no mutations, or deletes of absent keys) returns the current revision. A commit
    /// whose future is dropped may still happen.
    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Revision, CommitError>>;

    /// One key at a revision (`None`: now), and the revision that was read.
    fn get(
        &self,
        key: &[u8],
        at: Option<Revision>,
    ) -> BoxFuture<'_, Result<(Option<KeyValue>, Revision), ReadError>>;

    /// Keys of a range, all at one revision.
    fn range(&self, request: RangeRequest) -> BoxFuture<'_, Result<RangeResult, ReadError>>;

    /// All keys of `start..end` (an empty `end` means no end), all at one revision (`None`: now), in
    /// pieces. However long it takes, nothing of it expires.
    fn scan(
        &self,
        start: Bytes,
        end: Bytes,
        at: Option<Revision>,
    ) -> BoxFuture<'_, Result<Scan, ReadError>>;

    /// Events of the keys that start with `prefix`, with a revision over `after`. Must be called
    /// within the async runtime that polls the watch. A watch that falls behind the history kept
    /// ends with [`ReadError::Compacted`].
    fn watch(&self, prefix: Bytes, after: Revision) -> Result<Watch, ReadError>;

    /// The newest durable revision.
    fn revision(&self) -> Revision;

    /// Finishes the commits under way and stops; later calls give `Closed`.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// The first key after all keys that start with `prefix`: the exclusive end of their range. Empty
/// (no end) if there is none, that is, for a prefix of 0xff bytes only.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|b| *b != 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
        None => Bytes::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_end_is_the_next_prefix() {
        for (prefix, end) in [
            (&b"/registry/pods/"[..], &b"/registry/pods0"[..]),
            (b"a\xff", b"b"),
            (b"\xff\xff", b""),
            (b"", b""),
        ] {
            assert_eq!(prefix_end(prefix), end);
        }
    }
}
