//! Shared caches: one list-and-watch per resource and scope in a process, whoever asks.
//!
//! A cache holds the bytes the server sent and the few fields its indexes need; an object is
//! decoded when somebody looks at it, because a typed object costs ten times its bytes. Where the
//! server is in this process, the bytes are the server's own.
//!
//! Invariants:
//! - a cache never shows an object older than one it has shown before, except after the watch
//!   was lost and the server answered from an older state;
//! - handlers see the changes of a cache one after another, each after the cache shows it;
//! - the watch ends when the last [`Cache`] and the [`Caches`] that made it are gone.

mod entry;
mod index;
mod watch;
mod wire;

use std::{
    collections::HashMap,
    fmt,
    marker::PhantomData,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::Selector;
use serde::de::DeserializeOwned;

use crate::{Client, Error, Jitter, Key};
pub use entry::{Digest, Entry, Owner, Word};
use watch::Shared;
pub use watch::Subscription;

/// How long [`Cache::caught_up`] waits before it gives up.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(10);

/// A resource by its names in URLs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// The API group, empty for core.
    pub group: String,
    /// The version, such as `v1`.
    pub version: String,
    /// The plural name in lower case, such as `pods`.
    pub plural: String,
}

impl Resource {
    /// The resource of a built-in kind.
    pub fn of<K: kube::Resource<DynamicType = ()>>() -> Self {
        Self {
            group: K::group(&()).into_owned(),
            version: K::version(&()).into_owned(),
            plural: K::plural(&()).into_owned(),
        }
    }

    /// `group/version`, or the version alone for core: the `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The path of its collection in `namespace` (empty: all namespaces, or cluster-scoped).
    pub fn path(&self, namespace: &str) -> String {
        let root = if self.group.is_empty() {
            "/api"
        } else {
            "/apis"
        };
        let scope = if namespace.is_empty() {
            String::new()
        } else {
            format!("/namespaces/{namespace}")
        };
        format!("{root}/{}{scope}/{}", self.api_version(), self.plural)
    }
}

/// Which objects of a resource a cache holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    namespace: String,
    labels: String,
    fields: String,
}

impl Scope {
    /// Every object.
    pub fn all() -> Self {
        Self::default()
    }

    /// Only objects of this namespace.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Only objects whose labels match this selector, as the server understands it.
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.labels = selector.into();
        self
    }

    /// Only objects whose fields match this selector, as the server understands it.
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.fields = selector.into();
        self
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct CacheId {
    resource: Resource,
    scope: Scope,
    metadata_only: bool,
}

/// The caches of a process. Cheap to clone; clones share the caches.
#[derive(Clone)]
pub struct Caches {
    client: Client,
    jitter: Jitter,
    started: Arc<Mutex<HashMap<CacheId, Arc<Shared>>>>,
}

impl Caches {
    /// No caches yet; each starts when it is first asked for.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            jitter: Jitter::random(),
            started: Arc::default(),
        }
    }

    /// The client the caches read through.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The cache of kind `K` within `scope`, started now unless it runs already.
    /// Must be called inside a tokio runtime.
    pub fn get<K: kube::Resource<DynamicType = ()>>(&self, scope: Scope) -> Cache<K> {
        Cache {
            shared: self.start(Resource::of::<K>(), scope, false),
            kind: PhantomData,
        }
    }

    /// A cache of the metadata of every object of `resource`. It is the cache of whole objects
    /// if there is one already, for two watches of one resource would be a waste.
    pub fn metadata(&self, resource: Resource) -> Cache<()> {
        let whole = CacheId {
            resource: resource.clone(),
            scope: Scope::all(),
            metadata_only: false,
        };
        let running = self
            .started
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&whole)
            .cloned();
        let shared = running.unwrap_or_else(|| self.start(resource, Scope::all(), true));
        Cache {
            shared,
            kind: PhantomData,
        }
    }

    /// Forgets the metadata cache of a resource that is no longer served.
    pub fn forget_metadata(&self, resource: &Resource) {
        let id = CacheId {
            resource: resource.clone(),
            scope: Scope::all(),
            metadata_only: true,
        };
        self.started
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }

    fn start(&self, resource: Resource, scope: Scope, metadata_only: bool) -> Arc<Shared> {
        let id = CacheId {
            resource,
            scope,
            metadata_only,
        };
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = started.entry(id).or_insert_with_key(|id| {
            let query = watch::Query {
                path: id.resource.path(&id.scope.namespace),
                labels: id.scope.labels.clone(),
                fields: id.scope.fields.clone(),
                metadata_only: id.metadata_only,
            };
            Shared::start(self.client.clone(), query, self.jitter.clone())
        });
        Arc::clone(shared)
    }
}

/// A change a cache has seen.
#[derive(Clone, Debug)]
pub struct Change {
    /// Which object.
    pub key: Key,
    /// As it was; `None`: it is new to the cache.
    pub old: Option<Arc<Entry>>,
    /// As it is; `None`: it is gone.
    pub new: Option<Arc<Entry>>,
}

impl Change {
    /// The newer of both states.
    pub fn latest(&self) -> Option<&Arc<Entry>> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

/// A view of the objects of kind `K`, kept up to date by a watch. Cheap to clone.
pub struct Cache<K> {
    shared: Arc<Shared>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            kind: PhantomData,
        }
    }
}

impl<K> fmt::Debug for Cache<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({})", self.shared.query.path)
    }
}

impl<K> Cache<K> {
    /// Waits until the first list is complete.
    pub async fn synced(&self) {
        let mut progress = self.shared.progress.subscribe();
        // The sender lives as long as `self.shared`, so this cannot fail.
        let _ = progress.wait_for(|p| p.synced).await;
    }

    /// Whether the first list is complete.
    pub fn is_synced(&self) -> bool {
        self.shared.progress.borrow().synced
    }

    /// Waits until the cache shows every write up to `revision` (the resource version of an
    /// object of this resource that was just written), so that the next look sees one's own writes.
    ///
    /// # Errors
    /// [`Error::Behind`] when that takes longer than ten seconds.
    pub async fn caught_up(&self, revision: u64) -> Result<(), Error> {
        let mut progress = self.shared.progress.subscribe();
        let reached = progress.wait_for(|p| p.revision >= revision);
        match tokio::time::timeout(CATCH_UP_LIMIT, reached).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Behind {
                resource: self.shared.query.path.clone(),
                revision,
            }),
        }
    }

    /// Waits until `condition` holds for the object of this key as cached, at most ten seconds.
    ///
    /// # Errors
    /// [`Error::Behind`] when that takes longer.
    pub async fn until(
        &self,
        key: &Key,
        condition: impl Fn(Option<&Entry>) -> bool,
    ) -> Result<(), Error> {
        let mut progress = self.shared.progress.subscribe();
        let reached = async {
            while !condition(self.shared.entry(key).as_deref()) {
                if progress.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(CATCH_UP_LIMIT, reached)
            .await
            .map_err(|_| Error::Behind {
                resource: self.shared.query.path.clone(),
                revision: progress.borrow().revision,
            })
    }

    /// The object as cached, undecoded.
    pub fn entry(&self, key: &Key) -> Option<Arc<Entry>> {
        self.shared.entry(key)
    }

    /// Whether the cache has the object.
    pub fn contains(&self, key: &Key) -> bool {
        self.shared.entry(key).is_some()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.shared.read(|i| i.len())
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every object, by namespace and name.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        self.shared.read(|i| i.all().cloned().collect())
    }

    /// The objects of a namespace, by name.
    pub fn entries_in(&self, namespace: &str) -> Vec<Arc<Entry>> {
        self.shared
            .read(|i| i.in_namespace(namespace).cloned().collect())
    }

    /// The objects that name `uid` among their owners.
    pub fn entries_owned_by(&self, uid: &str) -> Vec<Arc<Entry>> {
        self.shared.read(|i| i.owned_by(uid).cloned().collect())
    }

    /// How many objects name `uid` among their owners.
    pub fn owned_count(&self, uid: &str) -> usize {
        self.shared.read(|i| i.owned_count(uid))
    }

    /// The objects of a namespace that have no controller.
    pub fn orphans_in(&self, namespace: &str) -> Vec<Arc<Entry>> {
        self.shared
            .read(|i| i.orphans_in(namespace).cloned().collect())
    }

    /// The objects whose `spec.nodeName` is `node`.
    pub fn entries_on(&self, node: &str) -> Vec<Arc<Entry>> {
        self.shared.read(|i| i.on_node(node).cloned().collect())
    }

    /// The objects of a namespace whose labels match `selector`.
    pub fn entries_matching(&self, namespace: &str, selector: &Selector) -> Vec<Arc<Entry>> {
        self.shared.read(|i| {
            i.in_namespace(namespace)
                .filter(|e| e.matches(selector))
                .cloned()
                .collect()
        })
    }

    /// The objects that carry the label `key=value`, in any namespace.
    pub fn entries_labelled(&self, key: &str, value: &str) -> Vec<Arc<Entry>> {
        let find = |i: &index::Index| Some(i.labelled(key, value)?.cloned().collect());
        self.shared.read(find).unwrap_or_else(|| {
            self.shared.index_label(key);
            self.shared.read(find).unwrap_or_default()
        })
    }

    /// Calls `handler` for every object now in the cache and then for each change, one after
    /// another, on the watch's task: it must be quick, must not block, and must not register
    /// further handlers on this cache. Handlers live as long as the cache.
    pub fn on_change(&self, handler: impl Fn(&Change) + Send + Sync + 'static) {
        self.shared.add_handler(Box::new(handler));
    }

    /// Like [`Cache::on_change`], but only until the subscription is dropped, which must not
    /// happen within a handler of this cache.
    pub fn subscribe(&self, handler: impl Fn(&Change) + Send + Sync + 'static) -> Subscription {
        let id = self.shared.add_handler(Box::new(handler));
        self.shared.subscription(id)
    }

    /// Waits until `condition` holds of the whole cache; it is looked at after each change.
    pub async fn wait_for(&self, condition: impl Fn(&Self) -> bool) {
        let mut progress = self.shared.progress.subscribe();
        while !condition(self) {
            if progress.changed().await.is_err() {
                return;
            }
        }
    }

    /// A receiver that is woken after each batch of changes.
    pub fn progress(&self) -> tokio::sync::watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }
}

/// How far a cache has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether the first list is complete.
    pub synced: bool,
    /// Every write up to this revision is shown.
    pub revision: u64,
    /// Counts the changes, so that each one wakes the receivers.
    pub changes: u64,
}

impl<K: DeserializeOwned> Cache<K> {
    /// The object, decoded.
    ///
    /// # Errors
    /// [`Error::Decode`] when the server's bytes are not a `K`.
    pub fn get(&self, key: &Key) -> Result<Option<K>, Error> {
        self.shared.entry(key).map(|e| e.decode()).transpose()
    }

    /// Every object, decoded; those that are no `K` are left out with a warning.
    pub fn list(&self) -> Vec<K> {
        decode_all(&self.entries())
    }

    /// The objects of a namespace, decoded like [`Cache::list`].
    pub fn list_in(&self, namespace: &str) -> Vec<K> {
        decode_all(&self.entries_in(namespace))
    }

    /// The objects that name `uid` among their owners, decoded like [`Cache::list`].
    pub fn list_owned_by(&self, uid: &str) -> Vec<K> {
        decode_all(&self.entries_owned_by(uid))
    }

    /// The objects on a node, decoded like [`Cache::list`].
    pub fn list_on(&self, node: &str) -> Vec<K> {
        decode_all(&self.entries_on(node))
    }

    /// The objects of a namespace whose labels match, decoded like [`Cache::list`].
    pub fn list_matching(&self, namespace: &str, selector: &Selector) -> Vec<K> {
        decode_all(&self.entries_matching(namespace, selector))
    }
}

/// An entry as a cache would hold it, from an object's JSON; for tests of what looks at entries.
///
/// # Errors
/// When it is no object.
pub fn parse_entry(object: &[u8]) -> Result<Entry, serde_json::Error> {
    Entry::parse(object, false)
}

/// Decodes entries, leaving out with a warning those that are no `K`.
pub fn decode_all<K: DeserializeOwned>(entries: &[Arc<Entry>]) -> Vec<K> {
    entries
        .iter()
        .filter_map(|e| {
            e.decode()
                .inspect_err(|error| tracing::warn!(%error, "skipped"))
                .ok()
        })
        .collect()
}
