//! Lists with their watch for clients in this process: the store's own bytes, see [`api::feed`].

use std::sync::Arc;
use std::time::Duration;

use api::feed::{Batch, Batches, Change, Item};
use futures::StreamExt;
use futures::future::BoxFuture;

use super::list::{ListOptions, served};
use super::shared::Joined;
use super::watch::{Ending, ending, transition, watch_failure};
use super::{Fail, Registry, Resource, Selection, Stored};

/// Objects there are, in one piece of the feed.
const PIECE: usize = 500;

struct Feeder {
    registry: Arc<Registry>,
    resource: Arc<Resource>,
    selection: Arc<Selection>,
    /// The objects there are, those to be told next last; `None`: all were told.
    present: Option<Vec<Stored>>,
    watch: store::Watch,
    /// Everything up to here has been told.
    seen: u64,
    ending: BoxFuture<'static, Ending>,
    done: bool,
    _joined: Joined,
}

impl Registry {
    /// The objects that are selected, and what becomes of them.
    ///
    /// # Errors
    /// A Status when they cannot be read. Later failures end the feed.
    pub async fn feed(
        self: &Arc<Self>,
        resource: &Arc<Resource>,
        namespace: &str,
        selection: Selection,
    ) -> Result<Batches, Fail> {
        let all = ListOptions::of(selection.clone());
        let page = self.list(resource, namespace, &all).await?;
        let watch = self.store.watch(resource.prefix(namespace), page.revision);
        let watch = watch.map_err(|error| watch_failure(error, page.revision))?;
        let mut present = page.items;
        present.reverse();
        let feeder = Box::new(Feeder {
            registry: self.clone(),
            resource: resource.clone(),
            selection: Arc::new(selection),
            present: Some(present),
            watch,
            seen: page.revision,
            ending: ending(self, resource, Duration::MAX),
            done: false,
            _joined: Joined::new(resource),
        });
        let batches = futures::stream::unfold(feeder, |mut feeder| async move {
            feeder.next().await.map(|batch| (batch, feeder))
        });
        Ok(batches.boxed())
    }
}

impl Feeder {
    /// The next part; `None`: it has ended.
    async fn next(&mut self) -> Option<Result<Batch, Fail>> {
        if self.done {
            return None;
        }
        let batch = match self.present.take() {
            Some(present) => self.present(present),
            None => self.changes().await?,
        };
        self.done = batch.is_err();
        Some(batch)
    }

    fn present(&mut self, mut present: Vec<Stored>) -> Result<Batch, Fail> {
        let left = present.len().saturating_sub(PIECE);
        let piece = present.drain(left..).rev();
        let items = piece.map(|stored| item(&self.resource, Change::Set, stored));
        let items = items.collect::<Result<_, _>>()?;
        let complete = present.is_empty();
        self.present = (!complete).then_some(present);
        Ok(Batch {
            items,
            // Before all are told, none is told for good.
            revision: if complete { self.seen } else { 0 },
            complete,
        })
    }

    async fn changes(&mut self) -> Option<Result<Batch, Fail>> {
        let batch = tokio::select! {
            biased;
            _ = &mut self.ending => return None,
            batch = self.watch.next() => batch?,
        };
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => return Some(Err(watch_failure(error, self.seen))),
        };
        let mut items = Vec::with_capacity(batch.events.len());
        // Nothing of the feed is borrowed while a webhook may be waited for: its streams are not shared.
        let (registry, resource) = (self.registry.clone(), self.resource.clone());
        let selection = self.selection.clone();
        for event in &batch.events {
            let view = resource.shared.view(event);
            let (kind, stored) = match transition(&view, &registry, &resource, &selection).await {
                Ok(Some(seen)) => seen,
                Ok(None) => continue,
                Err(failure) => return Some(Err(failure)),
            };
            let change = match kind {
                "DELETED" => Change::Gone,
                _ => Change::Set,
            };
            match item(&resource, change, stored) {
                Ok(item) => items.push(item),
                Err(failure) => return Some(Err(failure)),
            }
        }
        self.seen = self.seen.max(batch.revision);
        Some(Ok(Batch {
            items,
            revision: self.seen,
            complete: true,
        }))
    }
}

fn item(resource: &Resource, change: Change, stored: Stored) -> Result<Item, Fail> {
    let stored = served(resource, stored)?;
    Ok(Item {
        change,
        value: stored.bytes,
        revision: stored.revision,
    })
}
