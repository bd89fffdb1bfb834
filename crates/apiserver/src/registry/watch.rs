//! Watching: the store's events of a prefix as lines of JSON or frames of protobuf.
//!
//! A watcher is a cursor in the store and nothing else: it is pulled by the connection, so a slow client costs no
//! queue here. Events are spliced from stored bytes; only selectors, tables and converted versions parse, and what all
//! watchers of a resource would do alike is done once ([`super::shared`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use api::Status;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::future::BoxFuture;
use rand::Rng;
use serde_json::{Value, json};
use store::{Batch, ReadError};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::list::{ListOptions, Page, served};
use super::shared::{Joined, View};
use super::table::{self, IncludeObject};
use super::{Fail, Registry, Resource, Selection, Stored, splice};
use crate::http::body::{self, ResponseBody};
use crate::http::negotiate::{Encoding, Form, Transform};

/// How often progress is told to watchers that allow bookmarks.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Shortest life of a watch whose client names none; the longest is twice that.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);
/// Initial objects are sent in pieces of about this many bytes.
const CHUNK_BYTES: usize = 64 * 1024;

/// How the events of one watch are written.
pub struct Shape {
    /// Table, metadata or the object.
    pub form: Form,
    /// What table rows carry.
    pub include: IncludeObject,
}

struct Watcher {
    registry: Arc<Registry>,
    resource: Arc<Resource>,
    selection: Arc<Selection>,
    /// Whether progress is told.
    bookmarks: bool,
    shape: Shape,
    initial: VecDeque<Stored>,
    /// Whether the end of the initial objects is still to be told.
    announce: bool,
    watch: store::Watch,
    /// Events up to here are not for this watch.
    after: u64,
    /// Everything up to here has been sent.
    seen: u64,
    head_sent: bool,
    bookmark_due: bool,
    ticks: Interval,
    /// Resolves when the watch is to end. One future for its whole life: making it anew for each event would take locks
    /// that all watchers share.
    ending: BoxFuture<'static, Ending>,
    done: bool,
    _joined: Joined,
}

/// Why a watch ends.
pub(super) enum Ending {
    /// It was as long as it may be.
    Expired,
    /// The server stops, or serves the resource otherwise.
    Stopped,
}

/// Resolves when a watch of the resource has to end.
pub(super) fn ending(
    registry: &Registry,
    resource: &Resource,
    life: Duration,
) -> BoxFuture<'static, Ending> {
    let stop = registry.stop.clone();
    let retirement = resource.retirement().cloned();
    Box::pin(async move {
        let retired = async move {
            match retirement {
                Some(token) => token.cancelled_owned().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled_owned() => Ending::Stopped,
            () = retired => Ending::Stopped,
            () = tokio::time::sleep(life) => Ending::Expired,
        }
    })
}

impl Registry {
    /// Starts a watch and gives the body of its response.
    ///
    /// # Errors
    /// A Status when the initial objects cannot be read. Later failures are ERROR events.
    pub async fn watch(
        self: &Arc<Self>,
        resource: &Arc<Resource>,
        namespace: &str,
        options: ListOptions,
        shape: Shape,
    ) -> Result<ResponseBody, Fail> {
        let prefix = resource.prefix(namespace);
        let from = options.resource_version.unwrap_or(0);
        let initial_wanted = options.send_initial_events.unwrap_or(from == 0);
        let (initial, after) = if initial_wanted {
            let list = ListOptions::of(options.selection.clone());
            let current = self.store.revision();
            if from > current {
                return Err(Box::new(Status::too_large_resource_version(from, current)));
            }
            let page = self.list(resource, namespace, &list).await?;
            (page.items.into(), page.revision)
        } else if from == 0 {
            (VecDeque::new(), self.store.revision())
        } else {
            (VecDeque::new(), from)
        };
        let start = after.min(self.store.revision());
        let watch = match self.store.watch(prefix, start) {
            Ok(watch) => watch,
            Err(error) => {
                let status = watch_failure(error, start);
                return Ok(body::full(error_event(&status, shape.form.encoding)));
            }
        };
        let life = options
            .timeout
            .unwrap_or_else(|| DEFAULT_TIMEOUT.mul_f64(rand::rng().random_range(1.0..2.0)));
        let mut ticks =
            tokio::time::interval_at(Instant::now() + BOOKMARK_INTERVAL, BOOKMARK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watcher = Box::new(Watcher {
            announce: options.send_initial_events == Some(true) && options.bookmarks,
            registry: self.clone(),
            resource: resource.clone(),
            bookmarks: options.bookmarks,
            selection: Arc::new(options.selection),
            shape,
            initial,
            watch,
            after,
            seen: after,
            head_sent: false,
            bookmark_due: false,
            ticks,
            ending: ending(self, resource, life),
            done: false,
            _joined: Joined::new(resource),
        });
        Ok(body::stream(futures::stream::unfold(
            watcher,
            |mut watcher| async move { watcher.next().await.map(|chunk| (Ok(chunk), watcher)) },
        )))
    }
}

pub(super) fn watch_failure(error: ReadError, asked: u64) -> Fail {
    match error {
        ReadError::Compacted { oldest } => {
            Box::new(Status::too_old_resource_version(asked, oldest))
        }
        other => super::read_failure(other),
    }
}

fn error_event(status: &Status, encoding: Encoding) -> Bytes {
    frame("ERROR", &status.to_value(), encoding).unwrap_or_default()
}

/// One event around an object that is a tree already.
fn frame(kind: &str, object: &Value, encoding: Encoding) -> Result<Bytes, Fail> {
    if encoding == Encoding::Protobuf {
        let packed = codec::protobuf::encode(object).map_err(|e| Box::new(Status::internal(e)))?;
        return Ok(codec::protobuf::watch_event(kind, &packed).into());
    }
    let mut line = json!({"type": kind, "object": object}).to_string();
    line.push('\n');
    Ok(line.into())
}

/// One piece of a body.
fn joined(mut lines: Vec<Bytes>) -> Bytes {
    if lines.len() < 2 {
        return lines.pop().unwrap_or_default();
    }
    let mut out = BytesMut::with_capacity(lines.iter().map(Bytes::len).sum());
    lines.iter().for_each(|line| out.extend_from_slice(line));
    out.freeze()
}

/// What an event is to those who watch a selection, and the object that tells it.
pub(super) async fn transition(
    view: &View,
    registry: &Registry,
    resource: &Resource,
    selection: &Selection,
) -> Result<Option<(&'static str, Stored)>, Fail> {
    let everything = selection.is_everything();
    let (mut was, mut is) = view.existed_exists();
    if was && !everything {
        let previous = view.previous(registry, resource).await?;
        was = previous.is_some_and(|o| o.is_selected(resource, selection));
    }
    let current = view.current(registry, resource).await?;
    if is && !everything {
        is = current.is_some_and(|o| o.is_selected(resource, selection));
    }
    let gone = async || {
        let previous = view.previous(registry, resource).await?;
        Ok::<_, Fail>(previous.map(|o| Stored {
            bytes: o.stored.bytes.clone(),
            revision: view.revision(),
        }))
    };
    let now = || current.map(|o| o.stored.clone());
    Ok(match (was, is) {
        (false, false) => None,
        (true, true) => now().map(|s| ("MODIFIED", s)),
        (false, true) => now().map(|s| ("ADDED", s)),
        (true, false) => gone().await?.map(|s| ("DELETED", s)),
    })
}

impl Watcher {
    /// The next piece of the body; `None` ends it.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.done {
                return None;
            }
            if let Some(chunk) = self.initial_chunk() {
                return Some(chunk);
            }
            if std::mem::take(&mut self.announce) {
                return Some(self.bookmark(true));
            }
            tokio::select! {
                biased;
                ending = &mut self.ending => {
                    self.done = true;
                    if matches!(ending, Ending::Expired)
                        && self.bookmarks
                        && self.seen > self.after
                    {
                        return Some(self.bookmark(false));
                    }
                }
                batch = self.watch.next() => {
                    let chunk = match batch {
                        Some(Ok(batch)) => self.batch(&batch).await,
                        Some(Err(error)) => {
                            self.done = true;
                            error_event(&watch_failure(error, self.seen), self.shape.form.encoding)
                        }
                        None => {
                            self.done = true;
                            Bytes::new()
                        }
                    };
                    if !chunk.is_empty() {
                        return Some(chunk);
                    }
                }
                _ = self.ticks.tick() => {
                    if self.bookmarks {
                        self.bookmark_due = true;
                        self.watch.request_progress();
                    }
                }
            }
        }
    }

    fn initial_chunk(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        while let Some(stored) = self.initial.pop_front() {
            let line = self.line("ADDED", stored);
            out.extend_from_slice(&self.or_error(line));
            if out.len() >= CHUNK_BYTES {
                break;
            }
        }
        (!out.is_empty()).then(|| out.freeze())
    }

    async fn batch(&mut self, batch: &Batch) -> Bytes {
        let mut lines: Vec<Bytes> = Vec::with_capacity(batch.events.len());
        let after = self.after;
        // Nothing of the watcher is borrowed while a webhook may be waited for: its streams are not shared.
        let (registry, resource) = (self.registry.clone(), self.resource.clone());
        let selection = self.selection.clone();
        for event in batch.events.iter().filter(|e| e.kv.mod_revision > after) {
            let view = resource.shared.view(event);
            let (kind, stored) = match transition(&view, &registry, &resource, &selection).await {
                Ok(Some(seen)) => seen,
                Ok(None) => continue,
                Err(status) => {
                    self.done = true;
                    lines.push(error_event(&status, self.shape.form.encoding));
                    return joined(lines);
                }
            };
            let form = self.shape.form;
            let line = if form.transform == Transform::Table {
                // Each table differs: in its rows' ages, and in whether its columns are named.
                self.line(kind, stored)
            } else {
                view.line(kind, form, || self.line(kind, stored))
            };
            lines.push(self.or_error(line));
        }
        self.seen = self.seen.max(batch.revision);
        if std::mem::take(&mut self.bookmark_due) {
            lines.push(self.bookmark(false));
        }
        joined(lines)
    }

    /// The line, or the error as the last event.
    fn or_error(&mut self, line: Result<Bytes, Fail>) -> Bytes {
        line.unwrap_or_else(|status| {
            self.done = true;
            error_event(&status, self.shape.form.encoding)
        })
    }

    fn line(&mut self, kind: &str, stored: Stored) -> Result<Bytes, Fail> {
        let form = self.shape.form;
        let object = match form.transform {
            Transform::None => {
                let stored = served(&self.resource, stored)?;
                if form.encoding == Encoding::Protobuf {
                    return frame(kind, &stored.with_revision()?, form.encoding);
                }
                return Ok(splice::watch_event(kind, &stored.bytes, stored.revision));
            }
            Transform::Table => {
                let head = !std::mem::replace(&mut self.head_sent, true);
                let page = Page {
                    revision: stored.revision,
                    items: vec![stored],
                    ..Page::default()
                };
                table::table(
                    &self.resource,
                    &page,
                    self.shape.include,
                    form,
                    self.registry.now(),
                    head,
                )?
            }
            Transform::Partial | Transform::PartialList => {
                let version = form.meta_version();
                if form.encoding == Encoding::Json
                    && let Some(line) =
                        splice::metadata_event(kind, &stored.bytes, stored.revision, version)
                {
                    return Ok(line);
                }
                table::partial_of(&stored, form)?
            }
        };
        frame(kind, &object, form.encoding)
    }

    fn bookmark(&self, initial_end: bool) -> Bytes {
        let kind = &self.resource.kind;
        let revision = self.seen.to_string();
        let mut metadata = json!({"resourceVersion": revision, "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.shape.form.transform {
            Transform::None => {
                json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata})
            }
            Transform::Table => json!({
                "kind": "Table",
                "apiVersion": self.shape.form.meta_version(),
                "metadata": {"resourceVersion": revision},
                "columnDefinitions": Value::Null,
                "rows": [{"cells": [], "object": table::partial(&json!({"metadata": metadata}), self.shape.form)}],
            }),
            Transform::Partial | Transform::PartialList => {
                table::partial(&json!({"metadata": metadata}), self.shape.form)
            }
        };
        let encoding = self.shape.form.encoding;
        frame("BOOKMARK", &object, encoding).unwrap_or_else(|e| error_event(&e, encoding))
    }
}
