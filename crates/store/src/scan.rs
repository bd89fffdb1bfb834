//! Reading a large range in pieces, so that what is read need not be in memory at once.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{BoxStream, Stream};

use crate::types::{KeyValue, ReadError, Revision};
use crate::view::View;

/// Most keys of a piece.
const PIECE: usize = 256;

/// A range of keys in order, in pieces, all at one revision.
pub struct Scan {
    revision: Revision,
    pieces: BoxStream<'static, Result<Vec<KeyValue>, ReadError>>,
}

impl Scan {
    /// Made by store engines. Pieces are not empty.
    pub fn new(
        revision: Revision,
        pieces: BoxStream<'static, Result<Vec<KeyValue>, ReadError>>,
    ) -> Self {
        Self { revision, pieces }
    }

    /// The revision that is read.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn of(view: View, start: Bytes, end: Bytes) -> Self {
        let revision = view.revision;
        let pieces = futures::stream::unfold((view, start), move |(view, start)| {
            let piece: Vec<KeyValue> = view.range(&start, &end).take(PIECE).cloned().collect();
            let next = piece.last().map(|last| {
                // The first key there can be behind the last one.
                let mut key = Vec::with_capacity(last.key.len() + 1);
                key.extend_from_slice(&last.key);
                key.push(0);
                Bytes::from(key)
            });
            futures::future::ready(next.map(|next| (Ok(piece), (view, next))))
        });
        Self::new(revision, Box::pin(pieces))
    }
}

impl Stream for Scan {
    type Item = Result<Vec<KeyValue>, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.as_mut().poll_next(cx)
    }
}
