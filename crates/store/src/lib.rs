//! The cluster's one source of truth: ordered keys with revisions, atomic commits with
//! preconditions, reads at a revision, and watches. It knows bytes only, never objects.
//!
//! Invariants every engine keeps:
//! - one revision counts the commits of the whole store; it only grows, also over restarts;
//! - a commit is all or nothing, and durable before [`Store::commit`] resolves;
//! - nobody, reader or watcher, sees a commit before it is durable;
//! - a watch gives every event of its prefix exactly once and in order, or ends with
//!   [`ReadError::Compacted`]; it never skips silently.

mod committer;
mod durable;
mod embedded;
mod history;
mod log;
mod memory;
mod record;
mod scan;
mod snapshot;
mod tree;
mod types;
mod view;
mod watch;

pub use embedded::{Embedded, MAX_COMMIT_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, Options};
pub use history::HistoryLimits;
pub use memory::MemoryDisk;
pub use scan::Scan;
pub use types::{
    Batch, Commit, CommitError, Event, EventKind, Expect, KeyValue, Mutation, OpenError, Progress,
    RangeRequest, RangeResult, ReadError, Revision, Store, Watch, prefix_end,
};
