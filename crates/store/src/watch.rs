//! Watches of the embedded engine: a cursor into the history, woken through its topic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::{Notify, watch};

use crate::committer::Shared;
use crate::history::Topic;
use crate::types::{Batch, Progress, ReadError, Revision, Watch};

/// Events in a batch, unless one commit alone has more.
const MAX_BATCH_EVENTS: usize = 1000;

/// Starts a watch on what follows `after`.
pub(crate) fn start(
    shared: &Arc<Shared>,
    prefix: Bytes,
    after: Revision,
) -> Result<Watch, ReadError> {
    let topic = {
        let mut state = shared.write();
        if state.closed {
            return Err(ReadError::Closed);
        }
        let current = state.revision;
        if after > current {
            return Err(ReadError::Future { current });
        }
        state.history.topic(&prefix, current)
    };
    let oldest = topic.evicted();
    if after < oldest {
        return Err(ReadError::Compacted { oldest });
    }
    let asked = Arc::new(Asked::default());
    let cursor = Cursor {
        shared: shared.clone(),
        wake: topic.subscribe(),
        topic,
        asked: asked.clone(),
        prefix,
        revision: after,
        done: false,
    };
    let stream = stream::unfold(cursor, |mut cursor| async move {
        let item = cursor.next().await?;
        Some((item, cursor))
    });
    Ok(Watch::new(stream.boxed(), asked))
}

#[derive(Default)]
struct Asked {
    flag: AtomicBool,
    wake: Notify,
}

impl Progress for Asked {
    fn request(&self) {
        self.flag.store(true, Ordering::Release);
        self.wake.notify_one();
    }
}

struct Cursor {
    shared: Arc<Shared>,
    topic: Arc<Topic>,
    wake: watch::Receiver<Revision>,
    asked: Arc<Asked>,
    prefix: Bytes,
    /// Everything up to here has been delivered.
    revision: Revision,
    done: bool,
}

impl Cursor {
    async fn next(&mut self) -> Option<Result<Batch, ReadError>> {
        if self.done {
            return None;
        }
        loop {
            // Seen before looking, so that what comes while looking wakes again.
            self.wake.borrow_and_update();
            let asked = self.asked.flag.swap(false, Ordering::AcqRel);
            match self.pull() {
                Ok(batch) if asked || !batch.events.is_empty() => return Some(Ok(batch)),
                Ok(_) => {}
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
            tokio::select! {
                changed = self.wake.changed() => {
                    // The topic, and so its sender, lives as long as this cursor.
                    changed.ok()?;
                }
                () = self.asked.wake.notified() => {}
            }
        }
    }

    fn pull(&mut self) -> Result<Batch, ReadError> {
        let state = self.shared.read();
        if state.closed {
            return Err(ReadError::Closed);
        }
        let oldest = self.topic.evicted();
        if self.revision < oldest {
            return Err(ReadError::Compacted { oldest });
        }
        let (events, more) = (state.history).events(&self.prefix, self.revision, MAX_BATCH_EVENTS);
        self.revision = match events.last() {
            Some(last) if more => last.kv.mod_revision,
            _ => state.revision,
        };
        Ok(Batch {
            events,
            revision: self.revision,
        })
    }
}
