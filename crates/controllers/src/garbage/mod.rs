//! Deletes what nobody owns any more.
//!
//! There is no graph to keep: the caches know every object's owners and, by owner, its
//! dependents; only which uids are alive is kept here. An owner that no cache knows is asked for
//! before its dependents go, so a lagging cache never costs an object.

mod plan;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use client::{
    Cache, Change, Entry, Error, EventType, Key, Owner, Queue, Reconcile, Recorder, Requeue, write,
};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
    core::Request,
};
use serde_json::{Value, json};

use crate::{
    Context, Controller,
    catalogue::{self, Served},
};
use plan::{Act, Fate, Policy};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "generic-garbage-collector",
    run,
};

const RECORDER: &str = "garbage-collector-controller";

/// An object of any resource.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Object {
    /// The place of its resource in the catalogue.
    resource: usize,
    plural: Arc<str>,
    key: Key,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.plural, self.key)
    }
}

struct Kind {
    served: Served,
    plural: Arc<str>,
    cache: Cache<()>,
}

struct World {
    kinds: Vec<Kind>,
    /// Where each living uid is.
    living: Mutex<HashMap<Box<str>, Object>>,
}

struct Collector {
    context: Context,
    recorder: Recorder,
    world: Arc<World>,
    queue: Queue<Object>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(catalogue::follow(context, |context, known| {
        Box::pin(collect(context, known.served))
    }))
}

async fn collect(context: Context, served: Vec<Served>) {
    let caches = catalogue::caches(&context.caches, &served);
    catalogue::synced(&caches).await;
    let kinds = served.into_iter().zip(caches).map(|(served, cache)| Kind {
        plural: served.resource.plural.as_str().into(),
        served,
        cache,
    });
    let world = Arc::new(World {
        kinds: kinds.collect(),
        living: Mutex::default(),
    });
    let queue = Queue::default();
    let mut subscriptions = Vec::new();
    for resource in 0..world.kinds.len() {
        let (weak, to) = (Arc::downgrade(&world), queue.clone());
        let subscription = world.kinds[resource].cache.subscribe(move |change| {
            if let Some(world) = weak.upgrade() {
                world.changed(resource, change, &to);
            }
        });
        subscriptions.push(subscription);
    }
    let collector = Collector {
        recorder: context.recorder_as(RECORDER),
        context: context.clone(),
        world,
        queue: queue.clone(),
    };
    context.work(collector, queue).await;
}

impl World {
    fn object(&self, resource: usize, key: &Key) -> Object {
        let plural = Arc::clone(&self.kinds[resource].plural);
        Object {
            resource,
            plural,
            key: key.clone(),
        }
    }

    fn changed(&self, resource: usize, change: &Change, queue: &Queue<Object>) {
        let object = self.object(resource, &change.key);
        let replaced = change
            .old
            .as_ref()
            .filter(|old| change.new.as_ref().is_none_or(|new| new.uid != old.uid));
        if let Some(gone) = replaced {
            self.living().remove(&gone.uid);
            self.dependents(&gone.uid)
                .into_iter()
                .for_each(|o| queue.add(o));
            self.owners_that_wait(gone)
                .into_iter()
                .for_each(|o| queue.add(o));
        }
        let Some(new) = &change.new else { return };
        let old = change.old.as_ref().filter(|old| old.uid == new.uid);
        if old.is_some_and(|old| plan::is_same(old, new)) {
            return;
        }
        self.living().insert(new.uid.clone(), object.clone());
        if plan::waits(new) && !change.old.as_ref().is_some_and(|old| plan::waits(old)) {
            self.dependents(&new.uid)
                .into_iter()
                .for_each(|o| queue.add(o));
        }
        if new.deleting {
            self.owners_that_wait(new)
                .into_iter()
                .for_each(|o| queue.add(o));
        }
        if !new.owners.is_empty() || new.deleting {
            queue.add(object);
        }
    }

    fn living(&self) -> std::sync::MutexGuard<'_, HashMap<Box<str>, Object>> {
        self.living.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, object: &Object) -> Option<Arc<Entry>> {
        self.kinds[object.resource].cache.entry(&object.key)
    }

    fn dependents(&self, uid: &str) -> Vec<Object> {
        let mut all = Vec::new();
        for (resource, kind) in self.kinds.iter().enumerate() {
            let owned = kind.cache.entries_owned_by(uid);
            all.extend(owned.iter().map(|e| self.object(resource, &e.key)));
        }
        all
    }

    fn find(&self, uid: &str) -> Option<(Object, Arc<Entry>)> {
        let object = self.living().get(uid).cloned()?;
        let entry = self.entry(&object).filter(|e| &*e.uid == uid)?;
        Some((object, entry))
    }

    fn owners_that_wait(&self, entry: &Entry) -> Vec<Object> {
        let found = entry.owners.iter().filter_map(|o| self.find(&o.uid));
        found
            .filter(|(_, e)| plan::waits(e) || e.deleting)
            .map(|(o, _)| o)
            .collect()
    }

    /// Whether a dependent keeps its owner from going.
    fn blocks(&self, dependent: &Object, uid: &str) -> bool {
        self.entry(dependent).is_some_and(|e| {
            e.owners
                .iter()
                .any(|owner| owner.uid == uid && owner.block_owner_deletion)
        })
    }
}

impl Reconcile for Collector {
    type Key = Object;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, object: &Object) -> Result<Requeue, Error> {
        let Some(entry) = self.world.entry(object) else {
            return Ok(Requeue::OnChange);
        };
        let mut fates = Vec::new();
        if !entry.deleting {
            for owner in &entry.owners {
                fates.push(self.fate(owner, object, &entry).await?);
            }
        }
        let dependents = self.world.dependents(&entry.uid);
        let mut blocking = dependents.clone();
        blocking.retain(|d| self.world.blocks(d, &entry.uid));
        match plan::plan(&entry, &fates, !blocking.is_empty(), !dependents.is_empty()) {
            Act::Nothing => {}
            Act::Delete(Policy::Foreground) if self.is_in_a_circle(&dependents) => {
                // Or each would wait for the other for ever.
                self.unblock(object, &entry).await?;
            }
            Act::Delete(policy) => self.delete(object, &entry, policy).await?,
            Act::Disown(uids) => self.disown(object, &entry, &uids).await?,
            Act::Finish(finalizer) => self.finish(object, &entry, finalizer).await?,
            Act::DeleteBlocking => {
                for dependent in blocking {
                    // Each decides for itself: it may have other owners.
                    self.queue.add(dependent);
                }
            }
            Act::OrphanDependents => {
                for dependent in dependents {
                    if let Some(e) = self.world.entry(&dependent) {
                        self.disown(&dependent, &e, &[entry.uid.to_string()])
                            .await?;
                    }
                }
                self.finish(object, &entry, plan::ORPHAN).await?;
            }
        }
        Ok(Requeue::OnChange)
    }
}

impl Collector {
    async fn fate(&self, owner: &Owner, owned: &Object, of: &Entry) -> Result<Fate, Error> {
        if let Some((found, entry)) = self.world.find(&owner.uid) {
            let place = &found.key.namespace;
            if (place.is_empty() || *place == of.key.namespace) && *found.key.name == owner.name {
                return Ok(if plan::waits(&entry) {
                    Fate::Waiting
                } else {
                    Fate::Solid
                });
            }
            if !place.is_empty() && *place != of.key.namespace {
                self.tell_foreign(owner, owned, of);
            }
        }
        // No cache knows it: it is gone, too new, or of a kind that cannot be watched.
        let Some(kind) = self.kind_of(owner) else {
            return Ok(Fate::Solid);
        };
        let namespace = if kind.served.namespaced {
            &*of.key.namespace
        } else {
            ""
        };
        if kind.served.namespaced && namespace.is_empty() {
            self.tell_foreign(owner, owned, of);
            return Ok(Fate::Solid);
        }
        let path = kind.served.resource.path(namespace);
        let request = Request::new(path).get(&owner.name, &Default::default())?;
        let found: Option<Value> =
            write::tolerate_missing(self.context.client.request(request).await)?;
        let same = found.is_some_and(|f| f["metadata"]["uid"] == owner.uid.as_str());
        Ok(if same { Fate::Solid } else { Fate::Absent })
    }

    /// Tells of an owner that is not where it could own anything of this object.
    fn tell_foreign(&self, owner: &Owner, owned: &Object, of: &Entry) {
        let Served { resource, kind, .. } = &self.world.kinds[owned.resource].served;
        let (namespace, text) = (of.key.namespace.to_string(), |t: &str| Some(t.to_owned()));
        let about = ObjectReference {
            api_version: Some(resource.api_version()),
            kind: Some(kind.clone()),
            namespace: Some(namespace.clone()).filter(|n| !n.is_empty()),
            name: text(&of.key.name),
            uid: text(&of.uid),
            ..ObjectReference::default()
        };
        let message = format!(
            "ownerRef [{}/{}, namespace: {namespace}, name: {}, uid: {}] does not exist in namespace {namespace:?}",
            owner.api_version, owner.kind, owner.name, owner.uid
        );
        let reason = "OwnerRefInvalidNamespace";
        self.recorder
            .event(&about, EventType::Warning, reason, message);
    }

    fn kind_of(&self, owner: &Owner) -> Option<&Kind> {
        let group = owner
            .api_version
            .split_once('/')
            .map_or("", |(group, _)| group);
        let mut kinds = self.world.kinds.iter();
        kinds.find(|k| k.served.resource.group == group && k.served.kind == owner.kind)
    }

    fn request(&self, object: &Object) -> Request {
        let served = &self.world.kinds[object.resource].served;
        Request::new(served.resource.path(&object.key.namespace))
    }

    async fn delete(&self, object: &Object, entry: &Entry, policy: Policy) -> Result<(), Error> {
        let params = DeleteParams {
            propagation_policy: Some(match policy {
                Policy::Background => PropagationPolicy::Background,
                Policy::Foreground => PropagationPolicy::Foreground,
                Policy::Orphan => PropagationPolicy::Orphan,
            }),
            // The version guards against owners that came meanwhile.
            preconditions: Some(Preconditions {
                uid: Some(entry.uid.to_string()),
                resource_version: Some(entry.revision.to_string()),
            }),
            ..DeleteParams::default()
        };
        let request = self.request(object).delete(&object.key.name, &params)?;
        let deleted = self.context.client.request::<Value>(request).await;
        write::tolerate_missing(deleted)?;
        Ok(())
    }

    /// Whether something that is owned waits for what it owns.
    fn is_in_a_circle(&self, dependents: &[Object]) -> bool {
        let entries = dependents.iter().filter_map(|d| self.world.entry(d));
        entries.into_iter().any(|e| plan::waits(&e))
    }

    /// Keeps no owner from going any more, and goes itself after what it owns.
    async fn unblock(&self, object: &Object, entry: &Entry) -> Result<(), Error> {
        let free = |o: &Owner| Owner {
            block_owner_deletion: false,
            ..o.clone()
        };
        if entry.owners.iter().any(|o| o.block_owner_deletion) {
            let owners: Vec<Owner> = entry.owners.iter().map(free).collect();
            // The change of its owners brings it here again.
            return self
                .patch(object, entry, json!({"ownerReferences": owners}))
                .await;
        }
        self.delete(object, entry, Policy::Foreground).await
    }

    async fn disown(&self, object: &Object, entry: &Entry, uids: &[String]) -> Result<(), Error> {
        let left: Vec<&Owner> = entry
            .owners
            .iter()
            .filter(|o| !uids.contains(&o.uid))
            .collect();
        self.patch(object, entry, json!({"ownerReferences": left}))
            .await
    }

    async fn finish(&self, object: &Object, entry: &Entry, finalizer: &str) -> Result<(), Error> {
        let left: Vec<&str> = entry
            .finalizers
            .iter()
            .map(|f| &**f)
            .filter(|f| *f != finalizer)
            .collect();
        self.patch(object, entry, json!({"finalizers": left})).await
    }

    async fn patch(&self, object: &Object, entry: &Entry, mut meta: Value) -> Result<(), Error> {
        meta["uid"] = json!(entry.uid);
        meta["resourceVersion"] = json!(entry.revision.to_string());
        let patch = Patch::Merge(json!({"metadata": meta}));
        let params = PatchParams::default();
        let request = self
            .request(object)
            .patch(&object.key.name, &params, &patch)?;
        let patched = self.context.client.request::<Value>(request).await;
        write::tolerate_missing(patched)?;
        Ok(())
    }
}
