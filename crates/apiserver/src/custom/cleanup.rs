//! Deletes the objects of a dying definition before it goes.
//!
//! One task for each dying definition: it deletes what there is, waits for the store to tell of deletes (objects
//! may have finalizers of their own), and lets the definition go when nothing is left.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::custom::condition_is_true;
use api::{Status, meta};
use futures::StreamExt;
use kinds::{CLEANUP_FINALIZER, set_condition};
use serde_json::Value;
use store::EventKind;

use super::update;
use crate::registry::Selection;
use crate::registry::list::ListOptions;
use crate::registry::{DeleteOptions, Fail, Myself, Registry, Resource, read_failure};

/// Wait before a failed cleanup is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Whether a definition waits for its objects to go.
pub(super) fn is_due(definition: &Value) -> bool {
    meta::get(definition, &["metadata", "deletionTimestamp"]).is_some()
        && meta::list_at(definition, &["metadata", "finalizers"])
            .iter()
            .any(|f| f == CLEANUP_FINALIZER)
}

/// Cleanups under way, by the uid of the definition.
#[derive(Default, Clone)]
pub(super) struct Cleanups(Arc<Mutex<HashSet<String>>>);

impl Cleanups {
    fn running(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the cleanup of a dying definition unless it is under way.
    pub fn start(
        &self,
        registry: &Arc<Registry>,
        definition: &Value,
        resource: Option<Arc<Resource>>,
    ) {
        let uid = meta::uid(definition).to_owned();
        if !self.running().insert(uid.clone()) {
            return;
        }
        let cleanup = Cleanup {
            registry: registry.clone(),
            name: meta::name(definition).to_owned(),
            established: condition_is_true(definition, "Established"),
            resource,
        };
        let all = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = cleanup.run() => {}
                () = cleanup.registry.stop.cancelled() => {}
            }
            all.running().remove(&uid);
        });
    }
}

struct Cleanup {
    registry: Arc<Registry>,
    name: String,
    established: bool,
    resource: Option<Arc<Resource>>,
}

impl Cleanup {
    async fn run(&self) {
        loop {
            match self.attempt().await {
                Ok(()) => return,
                Err(status) if status.code == 404 => return,
                Err(status) => {
                    tracing::warn!(
                        name = self.name,
                        error = status.message,
                        "cannot delete custom resources"
                    );
                    let why = format!("could not issue all deletes: {}", status.message);
                    let _ = self.say(true, ("InstanceDeletionFailed", &why)).await;
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn attempt(&self) -> Result<(), Fail> {
        let in_progress = (
            "InstanceDeletionInProgress",
            "CustomResource deletion is in progress",
        );
        self.say(true, in_progress).await?;
        let why = match &self.resource {
            Some(resource) if overlaps(resource) => (
                "OverlappingBuiltInResource",
                "instances overlap with built-in resources in storage",
            ),
            Some(resource) if self.established => {
                self.delete_all(resource).await?;
                ("InstanceDeletionCompleted", "removed all instances")
            }
            _ => ("NeverEstablished", "resource was never established"),
        };
        self.release(why).await
    }

    async fn delete_all(&self, resource: &Arc<Resource>) -> Result<(), Fail> {
        let myself = Myself::default();
        let options = DeleteOptions::default();
        let everything = ListOptions::of(Selection::default());
        loop {
            let page = self.registry.list(resource, "", &everything).await?;
            if page.items.is_empty() {
                return Ok(());
            }
            let mut waiting = true;
            for item in &page.items {
                let object = item.value()?;
                if meta::get(&object, &["metadata", "deletionTimestamp"]).is_some() {
                    continue;
                }
                let (namespace, name) = (meta::namespace(&object), meta::name(&object));
                let one = myself.write(&self.registry, resource, namespace, name);
                match self.registry.delete(&one, &options).await {
                    Ok(deleted) => waiting &= !deleted.gone,
                    Err(status) if status.code == 404 => waiting = false,
                    Err(status) => return Err(status),
                }
            }
            if waiting {
                self.wait(resource, page.revision).await?;
            }
        }
    }

    /// Waits until an object is gone that was there at the revision.
    async fn wait(&self, resource: &Resource, after: u64) -> Result<(), Fail> {
        let store = self.registry.store();
        let mut watch = store
            .watch(resource.prefix(""), after)
            .map_err(read_failure)?;
        while let Some(batch) = watch.next().await {
            let batch = batch.map_err(read_failure)?;
            if batch.events.iter().any(|e| e.kind == EventKind::Delete) {
                return Ok(());
            }
        }
        Err(Box::new(Status::service_unavailable(
            "the server is shutting down",
        )))
    }

    /// Sets the condition that tells how far it is.
    async fn say(&self, holds: bool, why: (&str, &str)) -> Result<(), Fail> {
        let now = self.registry.now();
        let change = |current: &Value| {
            let mut next = current.clone();
            set_condition(&mut next, "Terminating", holds, why, now);
            Ok(next)
        };
        update(&self.registry, &self.name, change).await.map(drop)
    }

    /// Lets the definition go.
    async fn release(&self, why: (&str, &str)) -> Result<(), Fail> {
        let now = self.registry.now();
        let change = |current: &Value| {
            let mut next = current.clone();
            set_condition(&mut next, "Terminating", false, why, now);
            let mut finalizers = meta::list_at(current, &["metadata", "finalizers"]).to_vec();
            finalizers.retain(|f| f != CLEANUP_FINALIZER);
            meta::set(&mut next, &["metadata", "finalizers"], finalizers.into());
            Ok(next)
        };
        update(&self.registry, &self.name, change).await.map(drop)
    }
}

/// Whether a custom resource is kept where a built-in one is.
fn overlaps(resource: &Resource) -> bool {
    let kind = &resource.kind;
    api::kinds()
        .iter()
        .any(|k| k.group == kind.group && k.resource == kind.resource)
}
