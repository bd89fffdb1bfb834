//! Keeps an in-memory index equal to one prefix of the store.
//!
//! Level-triggered: when the watch is lost or compacted, the index is rebuilt from a fresh range.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use store::{Event, KeyValue, RangeRequest, ReadError, Store, prefix_end};

/// Something that mirrors the keys below a prefix.
pub trait Index: Send + Sync + 'static {
    /// The prefix that is followed.
    const PREFIX: &'static str;
    /// Forgets everything and starts again from `all`.
    fn reset(&self, all: &[KeyValue]);
    /// Takes in changes, oldest first.
    fn apply(&self, events: &[Event]);
}

/// Fills `index` from `store`, then keeps it current in the background until the store closes.
///
/// # Errors
/// When the first read fails.
pub async fn start<I: Index>(index: Arc<I>, store: Arc<dyn Store>) -> Result<(), ReadError> {
    let seen = reload(index.as_ref(), store.as_ref()).await?;
    tokio::spawn(run(index, store, seen));
    Ok(())
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

async fn run<I: Index>(index: Arc<I>, store: Arc<dyn Store>, mut seen: u64) {
    loop {
        match store.watch(Bytes::from_static(I::PREFIX.as_bytes()), seen) {
            Ok(mut watch) => loop {
                match watch.next().await {
                    Some(Ok(batch)) => {
                        if !batch.events.is_empty() {
                            index.apply(&batch.events);
                        }
                    }
                    Some(Err(ReadError::Compacted { .. })) => break,
                    Some(Err(_)) | None => return,
                }
            },
            Err(ReadError::Compacted { .. }) => {}
            Err(_) => return,
        }
        match reload(index.as_ref(), store.as_ref()).await {
            Ok(revision) => seen = revision,
            Err(_) => return,
        }
    }
}
