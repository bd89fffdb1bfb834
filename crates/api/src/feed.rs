//! How a list and its watch reach a client in the same process: as the very bytes of the store, shared, where a
//! connection would carry text that one side writes and the other reads.
//!
//! A client asks for it by putting [`Wanted`] into the extensions of a *list* request. A server in the same process
//! answers with a [`Feed`] in the extensions of its response: the objects there are, and then every change. Any other
//! server sees an ordinary list and answers that, so a client never has to know which of both it talks to.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::Status;

/// Asks for a feed, as an extension of a request.
#[derive(Clone, Copy, Debug)]
pub struct Wanted;

/// What has become of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there, new or changed.
    Set,
    /// It is gone, or outside of what was asked for.
    Gone,
}

/// An object of a feed.
#[derive(Clone, Debug)]
pub struct Item {
    /// What has become of it.
    pub change: Change,
    /// Its canonical JSON, as it is or as it was last, without `resourceVersion`: see [`crate::splice`].
    pub value: Bytes,
    /// The revision of the change.
    pub revision: u64,
}

/// Part of a feed.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The objects, in the order of their changes.
    pub items: Vec<Item>,
    /// Every change up to here has been told.
    pub revision: u64,
    /// Whether the objects that were there at the beginning are complete now.
    pub complete: bool,
}

/// The parts of a feed; after a failure there is nothing more, and the client lists again.
pub type Batches = BoxStream<'static, Result<Batch, Box<Status>>>;

/// A feed on its way, as an extension of a response. It can be taken once.
#[derive(Clone)]
pub struct Feed(Arc<Mutex<Option<Batches>>>);

impl Feed {
    /// Sends these.
    pub fn new(batches: Batches) -> Self {
        Self(Arc::new(Mutex::new(Some(batches))))
    }

    /// What it brings; `None`: somebody has taken it.
    pub fn take(&self) -> Option<Batches> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Feed")
    }
}
