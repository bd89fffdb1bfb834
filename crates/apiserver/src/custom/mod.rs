//! Custom resources, served by the same engine as built-in ones.
//!
//! One task follows the definitions in the store. Whenever one changes, it decides anew what is served
//! ([`served`]) and what their status says ([`plan`]), and sees to it that a dying definition's objects go
//! first ([`cleanup`]). Everything is level-triggered: what is decided depends on the definitions as they are,
//! never on what happened.

mod cleanup;
mod plan;
mod served;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::custom::{Custom, condition_is_true};
use api::{Kind, Status, meta};
use bytes::Bytes;
use serde_json::Value;
use store::{Batch, EventKind, KeyValue, RangeRequest, ReadError, prefix_end};

use crate::http::handler::Call;
use crate::registry::{Fail, Myself, Part, Registry, Stored, Write, read_failure};
use cleanup::Cleanups;
use served::Served;

const PREFIX: &str = "/registry/apiextensions.k8s.io/customresourcedefinitions/";
const DEFINITIONS: (&str, &str, &str) = ("apiextensions.k8s.io", "v1", "customresourcedefinitions");
/// Wait before a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Tells of deprecated versions and refuses what a custom resource cannot do: requests whose scope is not its
/// own, and new objects of a definition that is being deleted.
///
/// # Errors
/// 404 or 403.
pub fn check(call: &Call, kind: &Kind, custom: &Custom) -> Result<(), Fail> {
    let info = &call.info;
    let across = matches!(info.verb.as_str(), "list" | "watch");
    let scoped = !info.namespace.is_empty();
    if scoped != kind.namespaced && !(kind.namespaced && across) {
        return Err(Box::new(Status::no_resource()));
    }
    call.warnings.add(custom.warning.clone());
    if custom.terminating && info.verb == "create" && info.subresource.is_empty() {
        let why = "create not allowed while custom resource definition is terminating";
        let refused = Status::forbidden(&info.group, &info.resource, &info.name, why);
        return Err(Box::new(refused));
    }
    Ok(())
}

/// A definition as it is stored.
#[derive(Clone)]
struct Definition {
    value: Value,
    revision: u64,
    /// Differs between any two values that a definition had here.
    stamp: u64,
    /// Whether its status is known to be what it should be.
    settled: bool,
}

/// Definitions by name.
type Definitions = BTreeMap<String, Definition>;

/// Serves what is defined now, then follows the definitions until the store closes.
///
/// # Errors
/// When the definitions cannot be read.
pub async fn start(registry: &Arc<Registry>) -> Result<(), Fail> {
    let mut follower = Follower {
        registry: registry.clone(),
        known: Definitions::new(),
        served: Served::default(),
        cleanups: Cleanups::default(),
        stamps: 0,
    };
    let seen = follower.load().await.map_err(read_failure)?;
    follower.serve(true);
    tokio::spawn(follower.run(seen));
    Ok(())
}

struct Follower {
    registry: Arc<Registry>,
    known: Definitions,
    served: Served,
    cleanups: Cleanups,
    stamps: u64,
}

impl Follower {
    async fn load(&mut self) -> Result<u64, ReadError> {
        let range = RangeRequest {
            start: Bytes::from_static(PREFIX.as_bytes()),
            end: prefix_end(PREFIX.as_bytes()),
            limit: 0,
            at: None,
        };
        let all = self.registry.store().range(range).await?;
        self.known.clear();
        all.kvs.iter().for_each(|kv| self.put(kv));
        Ok(all.revision)
    }

    fn put(&mut self, kv: &KeyValue) {
        match self.registry.open(kv).and_then(|stored| stored.value()) {
            Ok(value) => {
                let name = meta::name(&value).to_owned();
                // The watch lags behind what this task wrote itself.
                if self
                    .known
                    .get(&name)
                    .is_none_or(|d| d.revision < kv.mod_revision)
                {
                    self.know(&name, value, kv.mod_revision);
                }
            }
            Err(error) => {
                tracing::error!(error = error.message, "a stored definition cannot be read");
            }
        }
    }

    /// Takes in a definition's new value.
    fn know(&mut self, name: &str, value: Value, revision: u64) {
        self.stamps += 1;
        let definition = Definition {
            value,
            revision,
            stamp: self.stamps,
            settled: false,
        };
        self.known.insert(name.to_owned(), definition);
        self.reconsider(name);
    }

    /// Looks again at definitions of the group that were refused names: some may be free now.
    fn reconsider(&mut self, name: &str) {
        let group = |name: &str| name.split_once('.').map(|(_, group)| group.to_owned());
        let changed = group(name);
        for (_, definition) in self.known.iter_mut().filter(|(n, _)| group(n) == changed) {
            if !condition_is_true(&definition.value, "NamesAccepted") {
                definition.settled = false;
            }
        }
    }

    fn take(&mut self, batch: &Batch) {
        for event in &batch.events {
            match event.kind {
                EventKind::Put => self.put(&event.kv),
                EventKind::Delete => {
                    let name = event.kv.key.strip_prefix(PREFIX.as_bytes());
                    if let Some(name) = name.and_then(|n| std::str::from_utf8(n).ok())
                        && self
                            .known
                            .get(name)
                            .is_some_and(|d| d.revision < event.kv.mod_revision)
                    {
                        self.known.remove(name);
                        self.reconsider(name);
                    }
                }
            }
        }
    }

    /// Serves what the definitions say; `first` tells that nobody was served before.
    fn serve(&mut self, first: bool) {
        let since = (!first).then(|| self.registry.store().revision());
        if let Some(resources) = self.served.update(&self.known, since) {
            self.registry.serve_custom(&resources);
        }
        self.served.retire();
    }

    async fn run(mut self, mut seen: u64) {
        loop {
            let prefix = Bytes::from_static(PREFIX.as_bytes());
            match self.registry.store().watch(prefix, seen) {
                Ok(watch) => match self.follow(watch).await {
                    ReadError::Compacted { .. } => {}
                    _ => return,
                },
                Err(ReadError::Compacted { .. }) => {}
                Err(_) => return,
            }
            match self.load().await {
                Ok(revision) => seen = revision,
                Err(_) => return,
            }
        }
    }

    /// Acts on the definitions and waits for changes, until the watch breaks.
    async fn follow(&mut self, mut watch: store::Watch) -> ReadError {
        use futures::StreamExt;
        loop {
            self.serve(false);
            let settled = self.settle().await;
            let batch = tokio::select! {
                batch = watch.next() => batch,
                () = self.registry.stop.cancelled() => return ReadError::Closed,
                () = tokio::time::sleep(RETRY), if !settled => continue,
            };
            match batch {
                Some(Ok(batch)) => self.take(&batch),
                Some(Err(error)) => return error,
                None => return ReadError::Closed,
            }
        }
    }

    /// Writes the status each definition should have and starts what dying ones wait for; `false` asks for
    /// another try.
    async fn settle(&mut self) -> bool {
        while let Some(name) = self.unsettled() {
            let Some(definition) = self.known.get(&name) else {
                continue;
            };
            if cleanup::is_due(&definition.value) {
                let resource = served::storage_resource(&definition.value);
                self.cleanups
                    .start(&self.registry, &definition.value, resource);
                self.settle_one(&name);
                continue;
            }
            let now = self.registry.now();
            let planned = plan::status(&definition.value, self.others(&name), now);
            let Some(value) = planned else {
                self.settle_one(&name);
                continue;
            };
            // Whoever sees a definition established must find its resources: they are served first.
            let before = definition.clone();
            self.know(&name, value, before.revision);
            self.serve(false);
            match self.write_status(&name).await {
                // The watch tells of it as well; others' names depend on it now.
                Ok(Some((value, revision))) => self.know(&name, value, revision),
                Ok(None) => self.settle_one(&name),
                Err(error) => {
                    self.known.insert(name.clone(), before);
                    tracing::warn!(
                        name,
                        error = error.message,
                        "cannot write a definition's status"
                    );
                    return false;
                }
            }
        }
        true
    }

    fn unsettled(&self) -> Option<String> {
        let first = self.known.iter().find(|(_, d)| !d.settled);
        first.map(|(name, _)| name.clone())
    }

    fn settle_one(&mut self, name: &str) {
        if let Some(definition) = self.known.get_mut(name) {
            definition.settled = true;
        }
    }

    fn others<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> + Clone {
        self.known
            .iter()
            .filter(move |(other, _)| *other != name)
            .map(|(_, d)| &d.value)
    }

    async fn write_status(&self, name: &str) -> Result<Option<(Value, u64)>, Fail> {
        let now = self.registry.now();
        let change = |current: &Value| {
            let planned = plan::status(current, self.others(name), now);
            Ok(planned.unwrap_or_else(|| current.clone()))
        };
        match update(&self.registry, name, change).await {
            Ok(stored) => Ok(Some((stored.value()?, stored.revision))),
            Err(status) if status.code == 404 => Ok(None),
            Err(status) => Err(status),
        }
    }
}

/// Changes a definition in the server's own name.
async fn update<F>(registry: &Arc<Registry>, name: &str, change: F) -> Result<Stored, Fail>
where
    F: FnMut(&Value) -> Result<Value, Fail> + Send,
{
    let (group, version, plural) = DEFINITIONS;
    let resource = registry.resource(group, version, plural)?;
    let myself = Myself::default();
    let write = Write {
        subresource: "status",
        ..myself.write(registry, &resource, "", name)
    };
    registry.update(&write, Part::Exact, change).await
}
