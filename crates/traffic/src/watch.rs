//! Services and their EndpointSlices as the cluster has them, and which Services changed: what proxy and DNS share.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use client::{Cache, Caches, Change, Key, Scope};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::Notify;

/// Label that names a slice's Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Caches of both kinds, and the Services that changed since they were last taken.
pub(crate) struct ServiceWatch {
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    changes: Arc<Changes>,
}

/// Bounded by the number of Services.
#[derive(Default)]
struct Changes {
    keys: Mutex<BTreeSet<Key>>,
    wake: Notify,
}

impl Changes {
    fn mark(&self, key: Key) {
        self.keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key);
        self.wake.notify_one();
    }
}

impl ServiceWatch {
    pub(crate) fn start(caches: &Caches) -> Self {
        let watch = ServiceWatch {
            services: caches.get(Scope::all()),
            slices: caches.get(Scope::all()),
            changes: Arc::default(),
        };
        let changes = Arc::clone(&watch.changes);
        watch
            .services
            .on_change(move |change| changes.mark(change.key.clone()));
        let changes = Arc::clone(&watch.changes);
        watch
            .slices
            .on_change(move |change| services_of(change).for_each(|key| changes.mark(key)));
        watch
    }

    /// Waits until both kinds are known.
    pub(crate) async fn synced(&self) {
        tokio::join!(self.services.synced(), self.slices.synced());
    }

    /// Waits until some Service changed.
    pub(crate) async fn changed(&self) {
        self.changes.wake.notified().await;
    }

    /// All Services count as changed, as something that they all depend on did; for handlers of other caches.
    pub(crate) fn all_change(&self) -> impl Fn() + Send + Sync + 'static {
        let (changes, services) = (Arc::clone(&self.changes), self.services.clone());
        move || {
            for service in services.entries() {
                changes.mark(service.key.clone());
            }
        }
    }

    /// The Services that changed since the last time; at first all.
    pub(crate) fn take(&self) -> BTreeSet<Key> {
        std::mem::take(
            &mut *self
                .changes
                .keys
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// The Service and its slices; None when it is gone or cannot be understood.
    pub(crate) fn look_up(&self, key: &Key) -> Option<(Service, Vec<EndpointSlice>)> {
        let found = self
            .services
            .get(key)
            .inspect_err(|error| tracing::warn!(%error, "a Service is left out"));
        let service = found.ok().flatten()?;
        let mut slices = self.slices.entries_labelled(SERVICE_NAME_LABEL, &key.name);
        slices.retain(|slice| slice.key.namespace == key.namespace);
        Some((service, client::cache::decode_all(&slices)))
    }
}

/// The Services a slice belonged to and belongs to.
fn services_of(change: &Change) -> impl Iterator<Item = Key> {
    [&change.old, &change.new]
        .into_iter()
        .flatten()
        .filter_map(|slice| {
            let name = slice.label(SERVICE_NAME_LABEL)?;
            Some(Key::new(slice.key.namespace.clone(), name))
        })
}
