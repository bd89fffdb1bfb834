//! The embedded engine: a tree in memory over a durable back end.
//!
//! ```text
//!   commit ──► bounded queue ──► committer thread ──► disk (one sync a group)
//!                                      │
//!                                      ▼ publish
//!   get, range ◄── tree (snapshot) ── State ── history ──► watches (a cursor each)
//! ```
//!
//! Reads never touch the disk, so a full or failing disk stops commits only.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::committer::{self, Message, Request, Shared, State};
use crate::durable::{Durable, Loaded, Nowhere};
use crate::history::{History, HistoryLimits};
use crate::log::Log;
use crate::memory::MemoryDisk;
use crate::scan::Scan;
use crate::tree::Tree;
use crate::types::{
    Commit, CommitError, KeyValue, Mutation, OpenError, RangeRequest, RangeResult, ReadError,
    Revision, Store, Watch,
};
use crate::view::View;
use crate::watch;

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 4 << 10;
/// Largest value, in bytes; etcd's default for a request.
pub const MAX_VALUE_BYTES: usize = 3 << 19;
/// Largest commit, in bytes of keys and values and 64 for each mutation.
pub const MAX_COMMIT_BYTES: usize = 8 << 20;
/// Commits that may wait for the committer; further ones wait in their callers.
const QUEUE_COMMITS: usize = 4096;
/// Keys and values of waiting commits, in KiB.
const QUEUE_KIB: usize = 64 << 10;

/// How an [`Embedded`] store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much of the past watches and reads at a revision can reach.
    pub history: HistoryLimits,
    /// The log on disk is not compacted before it has so many bytes.
    pub compact_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            history: HistoryLimits::default(),
            compact_bytes: 64 << 20,
        }
    }
}

/// The embedded store engine.
pub struct Embedded {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
}

impl Embedded {
    /// Opens the store in `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// [`OpenError::Locked`] if it is open elsewhere; otherwise what the disk said.
    pub async fn open(dir: &Path, options: Options) -> Result<Arc<Self>, OpenError> {
        let dir = dir.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let lock = lock(&dir)?;
            let (log, loaded) = Log::open(&dir.join("log"), options.compact_bytes)?;
            Self::start(Box::new(log), loaded, &options, Some(lock))
                .map_err(|error| OpenError::from_io(&dir, &error))
        });
        match opened.await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// A store that forgets everything when dropped.
    ///
    /// # Panics
    /// If the system refuses a thread.
    #[must_use]
    pub fn in_memory() -> Arc<Self> {
        Self::in_memory_with(Options::default())
    }

    /// [`Embedded::in_memory`] with options.
    ///
    /// # Panics
    /// If the system refuses a thread.
    #[must_use]
    pub fn in_memory_with(options: Options) -> Arc<Self> {
        let empty = Loaded {
            revision: 1,
            tree: Tree::default(),
        };
        #[allow(clippy::expect_used)]
        Self::start(Box::new(Nowhere), empty, &options, None).expect("a thread can be started")
    }

    /// Opens the store that `disk` holds, which commits on a task of this runtime instead of a
    /// thread of its own: on a runtime of one thread everything has its one order.
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn on_memory_disk(disk: &MemoryDisk, options: &Options) -> Arc<Self> {
        let (loaded, durable) = disk.attach();
        let (store, shared, receiver) = Self::assemble(loaded, options);
        tokio::spawn(committer::run(durable, shared, receiver, None));
        Arc::new(store)
    }

    pub(crate) fn start(
        durable: Box<dyn Durable>,
        loaded: Loaded,
        options: &Options,
        guard: Option<File>,
    ) -> std::io::Result<Arc<Self>> {
        let (store, shared, receiver) = Self::assemble(loaded, options);
        let committer = committer::run(durable, shared, receiver, guard);
        std::thread::Builder::new()
            .name("store-commit".into())
            .spawn(move || futures::executor::block_on(committer))?;
        Ok(Arc::new(store))
    }

    fn assemble(loaded: Loaded, options: &Options) -> (Self, Arc<Shared>, mpsc::Receiver<Message>) {
        let shared = Arc::new(Shared::new(State {
            tree: loaded.tree,
            revision: loaded.revision,
            history: History::new(options.history.clone(), loaded.revision),
            closed: false,
        }));
        let (queue, receiver) = mpsc::channel(QUEUE_COMMITS);
        let store = Self {
            shared: shared.clone(),
            queue,
            room: Arc::new(Semaphore::new(QUEUE_KIB)),
        };
        (store, shared, receiver)
    }

    async fn enqueue(&self, commit: Commit) -> Result<Revision, CommitError> {
        let size = check_limits(&commit)?;
        let kib = u32::try_from(size / 1024 + 1).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(kib).await;
        let room = room.map_err(|_| CommitError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let request = Request {
            commit,
            reply,
            _room: room,
        };
        let sent = self.queue.send(Message::Commit(request)).await;
        sent.map_err(|_| CommitError::Closed)?;
        answer.await.unwrap_or(Err(CommitError::Closed))
    }

    fn read_key(
        &self,
        key: &[u8],
        at: Option<Revision>,
    ) -> Result<(Option<KeyValue>, Revision), ReadError> {
        let state = self.shared.read();
        let mut end = key.to_vec();
        end.push(0);
        let revision = check_revision(&state, key, &end, at)?;
        if revision < state.revision {
            let mut undone = state.history.undo(key, &end, revision);
            if let Some(then) = undone.remove(key) {
                return Ok((then, revision));
            }
        }
        let kv = state.tree.get(key).map(|kv| KeyValue::clone(kv));
        Ok((kv, revision))
    }

    fn view(&self, start: &Bytes, end: &Bytes, at: Option<Revision>) -> Result<View, ReadError> {
        let state = self.shared.read();
        let revision = check_revision(&state, start, end, at)?;
        let undone = if revision < state.revision {
            state.history.undo(start, end, revision)
        } else {
            HashMap::new()
        };
        let tree = state.tree.clone();
        drop(state);
        Ok(View::new(revision, tree, undone))
    }

    fn read_range(&self, request: &RangeRequest) -> Result<RangeResult, ReadError> {
        let view = self.view(&request.start, &request.end, request.at)?;
        let mut page = Page::new(request.limit);
        for kv in view.range(&request.start, &request.end) {
            page.push(kv);
        }
        Ok(page.finish(view.revision))
    }
}

/// Collects a range up to its limit and counts the rest.
struct Page {
    limit: usize,
    kvs: Vec<KeyValue>,
    count: u64,
}

impl Page {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            kvs: Vec::new(),
            count: 0,
        }
    }

    fn push(&mut self, kv: &KeyValue) {
        self.count += 1;
        if self.limit == 0 || self.kvs.len() < self.limit {
            self.kvs.push(kv.clone());
        }
    }

    fn finish(self, revision: Revision) -> RangeResult {
        RangeResult {
            more: self.count > self.kvs.len() as u64,
            kvs: self.kvs,
            revision,
            count: self.count,
        }
    }
}

impl Store for Embedded {
    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Revision, CommitError>> {
        self.enqueue(commit).boxed()
    }

    fn get(
        &self,
        key: &[u8],
        at: Option<Revision>,
    ) -> BoxFuture<'_, Result<(Option<KeyValue>, Revision), ReadError>> {
        futures::future::ready(self.read_key(key, at)).boxed()
    }

    fn range(&self, request: RangeRequest) -> BoxFuture<'_, Result<RangeResult, ReadError>> {
        async move { self.read_range(&request) }.boxed()
    }

    fn scan(
        &self,
        start: Bytes,
        end: Bytes,
        at: Option<Revision>,
    ) -> BoxFuture<'_, Result<Scan, ReadError>> {
        async move {
            let view = self.view(&start, &end, at)?;
            Ok(Scan::of(view, start, end))
        }
        .boxed()
    }

    fn watch(&self, prefix: Bytes, after: Revision) -> Result<Watch, ReadError> {
        watch::start(&self.shared, prefix, after)
    }

    fn revision(&self) -> Revision {
        self.shared.read().revision
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            let (done, finished) = oneshot::channel();
            if self.queue.send(Message::Close(done)).await.is_ok() {
                // An error means that another close came first.
                let _ = finished.await;
            }
            self.queue.closed().await;
        }
        .boxed()
    }
}

/// The revision to read `start..end` at.
fn check_revision(
    state: &State,
    start: &[u8],
    end: &[u8],
    at: Option<Revision>,
) -> Result<Revision, ReadError> {
    if state.closed {
        return Err(ReadError::Closed);
    }
    let revision = at.unwrap_or(state.revision);
    if revision > state.revision {
        return Err(ReadError::Future {
            current: state.revision,
        });
    }
    if revision < state.revision {
        let oldest = state.history.oldest(start, end);
        if revision < oldest {
            return Err(ReadError::Compacted { oldest });
        }
    }
    Ok(revision)
}

/// Refuses what is too large; gives the commit's size in bytes.
fn check_limits(commit: &Commit) -> Result<usize, CommitError> {
    let within = |what, size, limit| match size > limit {
        true => Err(CommitError::TooLarge { what, size, limit }),
        false => Ok(()),
    };
    for mutation in &commit.mutations {
        match mutation {
            Mutation::Put { key, value } => {
                within("key", key.len(), MAX_KEY_BYTES)?;
                within("value", value.len(), MAX_VALUE_BYTES)?;
            }
            Mutation::Delete { key } => within("key", key.len(), MAX_KEY_BYTES)?,
        }
    }
    let size = committer::size(commit);
    within("commit", size, MAX_COMMIT_BYTES)?;
    Ok(size)
}

/// Makes the folder and takes its lock, held as long as the file is open.
fn lock(dir: &Path) -> Result<File, OpenError> {
    std::fs::create_dir_all(dir).map_err(|error| OpenError::from_io(dir, &error))?;
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| OpenError::from_io(dir, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::Locked { path }),
        Err(std::fs::TryLockError::Error(error)) => Err(OpenError::from_io(dir, &error)),
    }
}
