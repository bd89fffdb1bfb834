//! What the watchers of one resource share: an event is opened, read and written once in each form, however many of them
//! there are.
//!
//! A watcher still is a cursor in the store; this only keeps what the one that came first made of an event for those behind
//! it. It is kept while there is more than one watcher, and only what happened lately: who lags further behind works for
//! itself alone.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use store::{Event, EventKind, KeyValue};
use tokio::sync::OnceCell;

use super::selection::Selectable;
use super::{Fail, Registry, Resource, Selection, Stored};
use crate::http::negotiate::Form;

/// Most events kept for a resource.
const KEPT_EVENTS: usize = 256;
/// Most bytes of the objects of these events.
const KEPT_BYTES: usize = 512 << 10;

/// The events that watchers of a resource saw lately.
#[derive(Default)]
pub struct Shared {
    watchers: AtomicUsize,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    /// In order of revision.
    views: VecDeque<Arc<View>>,
    bytes: usize,
}

/// Counts one watcher.
pub struct Joined(Arc<Resource>);

impl Joined {
    /// One watcher more.
    pub fn new(resource: &Arc<Resource>) -> Self {
        resource.shared.watchers.fetch_add(1, Ordering::Relaxed);
        Self(resource.clone())
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let shared = &self.0.shared;
        if shared.watchers.fetch_sub(1, Ordering::Relaxed) <= 2 {
            *shared.recent() = Recent::default();
        }
    }
}

impl Shared {
    /// The view of an event.
    pub fn view(&self, event: &Event) -> Arc<View> {
        if self.watchers.load(Ordering::Relaxed) < 2 {
            return Arc::new(View::new(event));
        }
        self.recent().view(event)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    fn view(&mut self, event: &Event) -> Arc<View> {
        let revision = event.kv.mod_revision;
        let mut at = self.views.partition_point(|v| v.revision() < revision);
        while let Some(view) = self.views.get(at).filter(|v| v.revision() == revision) {
            if view.event.kv.key == event.kv.key {
                return view.clone();
            }
            at += 1;
        }
        let view = Arc::new(View::new(event));
        self.bytes += view.cost();
        self.views.insert(at, view.clone());
        while self.views.len() > KEPT_EVENTS || self.bytes > KEPT_BYTES {
            let Some(oldest) = self.views.pop_front() else {
                break;
            };
            self.bytes -= oldest.cost();
        }
        view
    }
}

/// One event as watchers see it.
pub struct View {
    event: Event,
    previous: OnceCell<Object>,
    current: OnceCell<Object>,
    lines: Mutex<Vec<Line>>,
}

/// An object before or after an event.
pub struct Object {
    /// As it is sent, but for its version.
    pub stored: Stored,
    selectable: OnceLock<Option<Selectable>>,
}

impl Object {
    /// Whether it is selected.
    pub fn is_selected(&self, resource: &Resource, selection: &Selection) -> bool {
        let read = || Selectable::of(resource, &self.stored.bytes);
        let selectable = self.selectable.get_or_init(read).as_ref();
        selectable.is_some_and(|object| selection.matches_read(resource, object))
    }
}

/// What is sent of an event: its type, and the bytes in some form.
struct Line {
    kind: &'static str,
    form: Form,
    bytes: Bytes,
}

impl View {
    fn new(event: &Event) -> Self {
        Self {
            event: event.clone(),
            previous: OnceCell::new(),
            current: OnceCell::new(),
            lines: Mutex::default(),
        }
    }

    /// Revision of the event.
    pub fn revision(&self) -> u64 {
        self.event.kv.mod_revision
    }

    /// Bytes of the objects.
    fn cost(&self) -> usize {
        let previous = self.before().map_or(0, |kv| kv.value.len());
        previous + self.after().map_or(0, |kv| kv.value.len())
    }

    fn before(&self) -> Option<&KeyValue> {
        let event = &self.event;
        match event.kind {
            EventKind::Put => event.prev.as_ref(),
            // A delete whose previous value the store does not hand over carries it itself.
            EventKind::Delete => Some(event.prev.as_ref().unwrap_or(&event.kv)),
        }
    }

    fn after(&self) -> Option<&KeyValue> {
        (self.event.kind == EventKind::Put).then_some(&self.event.kv)
    }

    /// The object before the event.
    ///
    /// # Errors
    /// When it cannot be opened or converted.
    pub async fn previous(
        &self,
        registry: &Registry,
        resource: &Resource,
    ) -> Result<Option<&Object>, Fail> {
        match self.before() {
            Some(kv) => open(&self.previous, kv, registry, resource).await.map(Some),
            None => Ok(None),
        }
    }

    /// The object after the event.
    ///
    /// # Errors
    /// As [`Self::previous`].
    pub async fn current(
        &self,
        registry: &Registry,
        resource: &Resource,
    ) -> Result<Option<&Object>, Fail> {
        match self.after() {
            Some(kv) => open(&self.current, kv, registry, resource).await.map(Some),
            None => Ok(None),
        }
    }

    /// Whether there was an object before the event, and whether there is one after it.
    pub fn existed_exists(&self) -> (bool, bool) {
        (self.before().is_some(), self.after().is_some())
    }

    /// What is sent of the event in a form, written by `write` unless another watcher did so before.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn line(
        &self,
        kind: &'static str,
        form: Form,
        write: impl FnOnce() -> Result<Bytes, Fail>,
    ) -> Result<Bytes, Fail> {
        // Held while writing: whoever comes meanwhile wants the same.
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.iter().find(|l| l.kind == kind && l.form == form) {
            return Ok(line.bytes.clone());
        }
        let bytes = write()?;
        lines.push(Line {
            kind,
            form,
            bytes: bytes.clone(),
        });
        Ok(bytes)
    }
}

async fn open<'a>(
    cell: &'a OnceCell<Object>,
    kv: &KeyValue,
    registry: &Registry,
    resource: &Resource,
) -> Result<&'a Object, Fail> {
    let made = cell.get_or_try_init(async || {
        let stored = registry.open(kv)?;
        Ok(Object {
            stored: registry.converted_one(resource, stored).await?,
            selectable: OnceLock::new(),
        })
    });
    made.await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(key: &str, revision: u64, size: usize) -> Event {
        Event {
            kind: EventKind::Put,
            kv: KeyValue {
                key: key.to_owned().into(),
                value: vec![b'x'; size].into(),
                create_revision: revision,
                mod_revision: revision,
                version: 1,
            },
            prev: None,
        }
    }

    fn joined(resource: &Arc<Resource>, count: usize) -> Vec<Joined> {
        (0..count).map(|_| Joined::new(resource)).collect()
    }

    #[test]
    fn what_one_watcher_wrote_is_what_the_others_send() {
        let resource = Arc::new(Resource::new(api::kind("", "v1", "pods").unwrap()));
        let mut watchers = joined(&resource, 2);
        let shared = &resource.shared;
        let line = |view: &View, text: &'static str| {
            let write = || Ok(Bytes::from_static(text.as_bytes()));
            view.line("ADDED", Form::default(), write).unwrap()
        };
        // In whatever order they come, and also where one commit changed several keys.
        for (key, revision) in [("a", 5), ("b", 3), ("c", 5), ("d", 4)] {
            let first = line(&shared.view(&event(key, revision, 1)), "first");
            let second = line(&shared.view(&event(key, revision, 1)), "second");
            assert_eq!((first, second), ("first".into(), "first".into()));
        }
        let view = shared.view(&event("a", 5, 1));
        let other = view.line("MODIFIED", Form::default(), || Ok("other".into()));
        assert_eq!(other.unwrap(), "other");
        // One alone has nobody to share with.
        watchers.pop();
        assert_eq!(line(&shared.view(&event("a", 5, 1)), "alone"), "alone");
    }

    #[test]
    fn little_is_kept_and_nothing_without_watchers() {
        let resource = Arc::new(Resource::new(api::kind("", "v1", "pods").unwrap()));
        let watchers = joined(&resource, 3);
        let shared = &resource.shared;
        for revision in 0..2 * KEPT_EVENTS as u64 {
            shared.view(&event("a", revision, 1));
        }
        assert_eq!(shared.recent().views.len(), KEPT_EVENTS);
        for revision in 1000..1010 {
            shared.view(&event("a", revision, KEPT_BYTES / 4));
        }
        assert_eq!(shared.recent().views.len(), 4);
        assert_eq!(shared.recent().bytes, KEPT_BYTES);
        shared.view(&event("a", 2000, 2 * KEPT_BYTES));
        assert_eq!(shared.recent().bytes, 0);
        shared.view(&event("a", 2001, 1));
        drop(watchers);
        assert!(shared.recent().views.is_empty());
    }
}
