//! Keeps an in-memory index equal to one prefix of the store.
//!
//! Level-triggered: when the watch is lost or compacted, the index is rebuilt from a fresh range.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use store::{Event, KeyValue, RangeRequest, ReadError, Store, prefix_end};
use tokio::sync::{Notify, watch};

/// Something that mirrors the keys below a prefix.
pub trait Index: Send + Sync + 'static {
    /// The prefix that is followed.
    const PREFIX: &'static str;
    /// Forgets everything and starts again from `all`.
    fn reset(&self, all: &[KeyValue]);
    /// Takes in changes, oldest first.
    fn apply(&self, events: &[Event]);
}

/// Longest wait for an index to have taken in what is committed.
const PATIENCE: Duration = Duration::from_secs(1);

/// How far an index has come.
pub struct Followed {
    store: Arc<dyn Store>,
    seen: watch::Receiver<u64>,
    asked: Arc<Notify>,
}

impl Followed {
    /// Waits until the index holds everything that is committed now. False when it did so already: looking again
    /// shows nothing new.
    pub async fn caught_up(&self) -> bool {
        let now = self.store.revision();
        let mut seen = self.seen.clone();
        if *seen.borrow() >= now {
            return false;
        }
        self.asked.notify_one();
        // Whether in time or not: what there is now is what is decided by.
        let _ = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| *seen >= now)).await;
        true
    }
}

/// Fills `index` from `store`, then keeps it current in the background until the store closes.
///
/// # Errors
/// When the first read fails.
pub async fn start<I: Index>(index: Arc<I>, store: Arc<dyn Store>) -> Result<Followed, ReadError> {
    let seen = reload(index.as_ref(), store.as_ref()).await?;
    let (seen, seen_later) = watch::channel(seen);
    let asked = Arc::new(Notify::new());
    tokio::spawn(run(index, store.clone(), seen, asked.clone()));
    Ok(Followed {
        store,
        seen: seen_later,
        asked,
    })
}

async fn reload<I: Index>(index: &I, store: &dyn Store) -> Result<u64, ReadError> {
    let all = store
        .range(RangeRequest {
            start: Bytes::from_static(I::PREFIX.as_bytes()),
            end: prefix_end(I::PREFIX.as_bytes()),
            limit: 0,
            at: None,
        })
        .await?;
    index.reset(&all.kvs);
    Ok(all.revision)
}

async fn run<I: Index>(
    index: Arc<I>,
    store: Arc<dyn Store>,
    seen: watch::Sender<u64>,
    asked: Arc<Notify>,
) {
    loop {
        let after = *seen.borrow();
        match store.watch(Bytes::from_static(I::PREFIX.as_bytes()), after) {
            Ok(mut watch) => loop {
                let batch = tokio::select! {
                    batch = watch.next() => batch,
                    () = asked.notified() => {
                        watch.request_progress();
                        continue;
                    }
                };
                match batch {
                    Some(Ok(batch)) => {
                        if !batch.events.is_empty() {
                            index.apply(&batch.events);
                        }
                        seen.send_replace(batch.revision);
                    }
                    Some(Err(ReadError::Compacted { .. })) => break,
                    Some(Err(_)) | None => return,
                }
            },
            Err(ReadError::Compacted { .. }) => {}
            Err(_) => return,
        }
        match reload(index.as_ref(), store.as_ref()).await {
            Ok(revision) => seen.send_replace(revision),
            Err(_) => return,
        };
    }
}
