//! The task that keeps one cache equal to the server: list once, then follow the watch. A server in
//! this process answers the list with a feed instead, which brings both without text in between.
//!
//! ```text
//!           ┌────────── 410 Gone, or a broken answer ──────────┐
//!           v                                                  │
//!   list (paged) ──> watch from the list's revision ──> end of stream: watch again
//!     ^  failed: wait, longer each time                from the last revision seen
//! ```

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::Duration,
};

use api::feed::{self, Batches};
use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use http::header::ACCEPT;
use http_body_util::BodyExt;
use tokio::sync::watch::Sender;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Change, Entry, Progress,
    index::{Index, Known},
    wire,
};
use crate::{Client, Jitter, Key};

/// Objects per page of a list.
const PAGE: u32 = 500;
/// First wait after a failure; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest wait after failures.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A watch is asked to end after this many seconds, or up to twice as many.
const WATCH_SECONDS: u32 = 300;
/// A watch that ended sooner than this counts as a failure.
const WATCH_TOO_SHORT: Duration = Duration::from_secs(1);
/// Longest line of a watch: several times the largest object a server stores.
const LINE_MAX: usize = 16 << 20;
/// Largest page of a list.
const PAGE_MAX: usize = 512 << 20;

/// What to list and watch.
pub(super) struct Query {
    pub(super) path: String,
    pub(super) labels: String,
    pub(super) fields: String,
    pub(super) metadata_only: bool,
}

type Handler = Box<dyn Fn(&Change) + Send + Sync>;

/// A cache as shared by its users and its task.
pub(super) struct Shared {
    pub(super) query: Arc<Query>,
    pub(super) progress: Arc<Sender<Progress>>,
    content: Arc<Content>,
    _task: AbortOnDropHandle<()>,
}

/// Locks are taken in this order: `handlers`, then `index`.
#[derive(Default)]
struct Content {
    index: RwLock<Index>,
    handlers: Mutex<Handlers>,
}

#[derive(Default)]
struct Handlers {
    last: u64,
    all: Vec<(u64, Handler)>,
}

impl Handlers {
    fn tell(&self, change: &Change) {
        self.all.iter().for_each(|(_, handler)| handler(change));
    }
}

/// Ends the calls of a handler when dropped.
pub struct Subscription {
    content: Weak<Content>,
    id: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let Some(content) = self.content.upgrade() else {
            return;
        };
        let mut handlers = content
            .handlers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        handlers.all.retain(|(id, _)| *id != self.id);
    }
}

impl Shared {
    pub(super) fn start(client: Client, query: Query, jitter: Jitter) -> Arc<Self> {
        let query = Arc::new(query);
        let progress = Arc::new(Sender::new(Progress::default()));
        let content = Arc::new(Content::default());
        let task = Task {
            client,
            query: Arc::clone(&query),
            content: Arc::clone(&content),
            progress: Arc::clone(&progress),
            jitter,
        };
        let handle = tokio::spawn(task.run());
        Arc::new(Self {
            query,
            progress,
            content,
            _task: AbortOnDropHandle::new(handle),
        })
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(
            &self
                .content
                .index
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    pub(super) fn index_label(&self, key: &str) {
        let mut index = self.content.index.write();
        let index = index.as_mut().unwrap_or_else(|e| e.get_mut());
        index.index_label(key);
    }

    pub(super) fn entry(&self, key: &Key) -> Option<Arc<Entry>> {
        self.read(|i| i.get(key).cloned())
    }

    /// Answers the number of the handler.
    pub(super) fn add_handler(&self, handler: Handler) -> u64 {
        let mut handlers = self
            .content
            .handlers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for entry in self.read(|i| i.all().cloned().collect::<Vec<_>>()) {
            handler(&Change {
                key: entry.key.clone(),
                old: None,
                new: Some(entry),
            });
        }
        handlers.last += 1;
        let id = handlers.last;
        handlers.all.push((id, handler));
        id
    }

    pub(super) fn subscription(&self, id: u64) -> Subscription {
        Subscription {
            content: Arc::downgrade(&self.content),
            id,
        }
    }
}

impl Content {
    fn apply(&self, entry: Entry) {
        let entry = Arc::new(entry);
        let handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let old = {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            match index.insert(Arc::clone(&entry)) {
                Ok(old) => old,
                Err(Known) => return,
            }
        };
        let change = Change {
            key: entry.key.clone(),
            old,
            new: Some(entry),
        };
        handlers.tell(&change);
    }

    fn remove(&self, key: &Key, last: Option<Entry>) {
        let handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = self
            .index
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
        let Some(old) = removed else { return };
        let old = last.map_or(old, Arc::new);
        let change = Change {
            key: key.clone(),
            old: Some(old),
            new: None,
        };
        handlers.tell(&change);
    }
}

/// Why a list or watch ended.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("unreadable answer: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the revision is too old")]
    Gone,
    #[error("the server said: {0}")]
    Ended(String),
}

/// What a list has led to.
enum Listed {
    /// The cache is as the server was at this revision.
    At(String),
    /// The server is in this process and brings everything.
    Fed(Batches),
}

/// An answer to a list.
enum Page {
    Json(Bytes),
    Feed(Batches),
}

impl Failure {
    /// Of a server in this process.
    fn of_fed(status: &api::Status) -> Self {
        match status.code {
            410 => Self::Gone,
            _ => Self::Ended(status.message.clone()),
        }
    }

    fn of_status(status: kube::core::Status) -> Self {
        if status.code == 410 {
            Self::Gone
        } else {
            Self::Api(kube::Error::Api(status.boxed()))
        }
    }
}

struct Task {
    client: Client,
    query: Arc<Query>,
    content: Arc<Content>,
    progress: Arc<Sender<Progress>>,
    jitter: Jitter,
}

impl Task {
    async fn run(self) {
        let mut revision = None;
        let mut wait = RETRY_MIN;
        loop {
            let started = tokio::time::Instant::now();
            let outcome = match revision.take() {
                None => match self.list().await {
                    Ok(Listed::At(listed)) => {
                        revision = Some(listed);
                        continue;
                    }
                    Ok(Listed::Fed(batches)) => self.eat(batches).await,
                    Err(failure) => Err((None, failure)),
                },
                Some(from) => self.watch(from).await,
            };
            revision = outcome.unwrap_or_else(|(next, failure)| {
                tracing::debug!(path = %self.query.path, %failure, "list or watch failed");
                next
            });
            if started.elapsed() < WATCH_TOO_SHORT {
                tokio::time::sleep(self.jitter.stretch(wait, 1.0)).await;
                wait = (wait * 2).min(RETRY_MAX);
            } else {
                wait = RETRY_MIN;
            }
        }
    }

    fn advance(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(|p| {
            change(p);
            p.changes += 1;
        });
    }

    /// Makes the cache equal to the server's list, unless the server feeds it.
    async fn list(&self) -> Result<Listed, Failure> {
        let mut seen = BTreeSet::new();
        let mut token = None;
        let revision = loop {
            let body = match self.page(token.as_deref()).await? {
                Page::Json(body) => body,
                Page::Feed(batches) => return Ok(Listed::Fed(batches)),
            };
            let page: wire::List<'_> = serde_json::from_slice(&body)?;
            for item in page.items.unwrap_or_default() {
                let entry = Entry::parse(item.get().as_bytes(), self.query.metadata_only)?;
                seen.insert(entry.key.clone());
                self.content.apply(entry);
            }
            match page.metadata.token.filter(|t| !t.is_empty()) {
                Some(next) => token = Some(next),
                None => break page.metadata.resource_version,
            }
        };
        self.forget_all_but(&seen);
        self.advance(|p| {
            p.synced = true;
            p.revision = revision.parse().unwrap_or(p.revision);
        });
        Ok(Listed::At(revision))
    }

    fn forget_all_but(&self, seen: &BTreeSet<Key>) {
        let gone = self
            .content
            .index
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .missing_from(seen);
        gone.iter().for_each(|key| self.content.remove(key, None));
    }

    /// Follows a feed until it ends; after that the server is to be asked again.
    async fn eat(&self, mut batches: Batches) -> Result<Option<String>, (Option<String>, Failure)> {
        let mut seen = Some(BTreeSet::new());
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(|status| (None, Failure::of_fed(&status)))?;
            for item in &batch.items {
                let entry = Entry::share(&item.value, item.revision, self.query.metadata_only)
                    .map_err(|error| (None, error.into()))?;
                if let Some(seen) = &mut seen {
                    seen.insert(entry.key.clone());
                }
                match item.change {
                    feed::Change::Set => self.content.apply(entry),
                    feed::Change::Gone => self.content.remove(&entry.key.clone(), Some(entry)),
                }
            }
            if batch.complete
                && let Some(seen) = seen.take()
            {
                self.forget_all_but(&seen);
            }
            self.advance(|p| {
                p.synced |= batch.complete;
                p.revision = p.revision.max(batch.revision);
            });
            // A long feed is always ready.
            tokio::task::yield_now().await;
        }
        Ok(None)
    }

    async fn page(&self, token: Option<&str>) -> Result<Page, Failure> {
        let limit = PAGE.to_string();
        let mut pairs = vec![("limit", limit.as_str())];
        pairs.extend(token.map(|t| ("continue", t)));
        let mut response = self.ask(self.query_string(&pairs)).await?;
        let fed = response.extensions_mut().remove::<feed::Feed>();
        if let Some(batches) = fed.and_then(|f| f.take()) {
            return Ok(Page::Feed(batches));
        }
        let mut body = response.into_body();
        let mut page = BytesMut::new();
        while let Some(chunk) = next_data(&mut body).await? {
            if page.len() + chunk.len() > PAGE_MAX {
                return Err(Failure::TooLarge(PAGE_MAX));
            }
            page.extend_from_slice(&chunk);
        }
        Ok(Page::Json(page.freeze()))
    }

    /// Follows the watch until it ends; answers the revision to go on from (`None`: list again).
    async fn watch(&self, from: String) -> Result<Option<String>, (Option<String>, Failure)> {
        let mut revision = from;
        match self.follow(&mut revision).await {
            Ok(()) => Ok(Some(revision)),
            Err(Failure::Gone) => Ok(None),
            Err(failure @ Failure::Api(_)) => Err((Some(revision), failure)),
            Err(failure) => Err((None, failure)),
        }
    }

    async fn follow(&self, revision: &mut String) -> Result<(), Failure> {
        let seconds = WATCH_SECONDS + (self.jitter.next() * f64::from(WATCH_SECONDS)) as u32;
        let seconds = seconds.to_string();
        let query = self.query_string(&[
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", &seconds),
            ("resourceVersion", revision),
        ]);
        let mut body = self.ask(query).await?.into_body();
        let mut buffer = BytesMut::new();
        while let Some(chunk) = next_data(&mut body).await? {
            buffer.extend_from_slice(&chunk);
            while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                let line = buffer.split_to(end).freeze();
                buffer.advance(1);
                if !line.trim_ascii().is_empty() {
                    self.event(&line, revision)?;
                }
            }
            if buffer.len() > LINE_MAX {
                return Err(Failure::TooLarge(LINE_MAX));
            }
        }
        Ok(())
    }

    fn event(&self, line: &[u8], revision: &mut String) -> Result<(), Failure> {
        let event: wire::Event<'_> = serde_json::from_slice(line)?;
        let object = event.object.get().as_bytes();
        let seen = match &*event.kind {
            "ADDED" | "MODIFIED" => {
                let entry = Entry::parse(object, self.query.metadata_only)?;
                let seen = entry.revision;
                self.content.apply(entry);
                seen
            }
            "DELETED" => {
                let entry = Entry::parse(object, self.query.metadata_only)?;
                let (key, seen) = (entry.key.clone(), entry.revision);
                self.content.remove(&key, Some(entry));
                seen
            }
            "BOOKMARK" => {
                let bookmark: wire::Bookmark = serde_json::from_slice(object)?;
                bookmark.metadata.resource_version.parse().unwrap_or(0)
            }
            _ => return Err(Failure::of_status(serde_json::from_slice(object)?)),
        };
        if seen > 0 {
            *revision = seen.to_string();
            self.advance(|p| p.revision = p.revision.max(seen));
        }
        Ok(())
    }

    fn query_string(&self, pairs: &[(&str, &str)]) -> String {
        let selectors = [
            ("labelSelector", &*self.query.labels),
            ("fieldSelector", &*self.query.fields),
        ];
        form_urlencoded::Serializer::new(String::new())
            .extend_pairs(selectors.into_iter().filter(|(_, value)| !value.is_empty()))
            .extend_pairs(pairs)
            .finish()
    }

    async fn ask(&self, query: String) -> Result<http::Response<kube::client::Body>, Failure> {
        const META: &str =
            "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
        const META_LIST: &str =
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        let watches = query.contains("watch=true");
        let accept = match (self.query.metadata_only, watches) {
            (false, _) => "application/json",
            (true, true) => META,
            (true, false) => META_LIST,
        };
        let mut request = http::Request::get(format!("{}?{query}", self.query.path))
            .header(ACCEPT, accept)
            .body(kube::client::Body::empty())
            .map_err(kube::Error::HttpError)?;
        if !watches {
            request.extensions_mut().insert(feed::Wanted);
        }
        let response = self.client.send(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        let status = serde_json::from_slice(&body).unwrap_or_else(|_| {
            kube::core::Status::failure(&String::from_utf8_lossy(&body), "Unknown").with_code(code)
        });
        Err(Failure::of_status(status))
    }
}

async fn next_data(body: &mut kube::client::Body) -> Result<Option<Bytes>, Failure> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}
