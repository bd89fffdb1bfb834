//! The shell around the pure parts: watches, gathers changes for a moment, applies them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Cache, Caches, Change, Key, Scope};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use net::link::{Links, Route};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::apply::Applier;
use super::model::{Frontends, frontends};
use super::{Config, Error};

/// How long changes are gathered before they are applied together.
const GATHER: Duration = Duration::from_millis(5);
/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// Label that names a slice's Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Services that have changed since they were last looked at.
#[derive(Default)]
struct Dirty {
    keys: Mutex<BTreeSet<Key>>,
    changed: Notify,
}

impl Dirty {
    fn mark(&self, key: Key) {
        self.keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key);
        self.changed.notify_one();
    }

    fn take(&self) -> BTreeSet<Key> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs the proxy until `shutdown`; the table stays. `ready` is told once the table holds every Service.
///
/// # Errors
/// Only when the host's network cannot be used at all; refused changes are tried again.
pub async fn run(
    caches: Caches,
    config: Config,
    ready: oneshot::Sender<()>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let services: Cache<Service> = caches.get(Scope::all());
    let slices: Cache<EndpointSlice> = caches.get(Scope::all());
    let dirty = Arc::new(Dirty::default());
    let on_service = Arc::clone(&dirty);
    services.on_change(move |change| on_service.mark(change.key.clone()));
    let on_slice = Arc::clone(&dirty);
    slices.on_change(move |change| slice_services(change).for_each(|key| on_slice.mark(key)));

    let node = config.node_name.clone();
    let opened = tokio::task::spawn_blocking(move || {
        route_services(&config)?;
        Applier::open(config)
    });
    let mut applier = opened.await??;
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        _ = async { tokio::join!(services.synced(), slices.synced()) } => {}
    }
    let mut ready = Some(ready);
    let mut pause = RETRY.0;
    // The first pass goes over every Service, so that the table is replaced even if there is none.
    let mut pending: BTreeMap<Key, Frontends> = BTreeMap::new();
    loop {
        for key in dirty.take() {
            let frontends = look_up(&key, &services, &slices, &node);
            pending.insert(key, frontends);
        }
        let batch = std::mem::take(&mut pending);
        let (back, applied) = tokio::task::spawn_blocking(move || {
            let applied = applier.update(batch);
            (applier, applied)
        })
        .await?;
        applier = back;
        match applied {
            Ok(()) => {
                pause = RETRY.0;
                if let Some(ready) = ready.take() {
                    // Nobody may be waiting.
                    let _ = ready.send(());
                }
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    () = dirty.changed.notified() => tokio::time::sleep(GATHER).await,
                }
            }
            Err(error) => {
                // The applier keeps what was wanted and replaces the whole table the next time.
                tracing::error!(%error, "cannot change the service table; trying again in {pause:?}");
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY.1),
                }
            }
        }
    }
}

/// The Services a slice belonged to and belongs to.
fn slice_services(change: &Change) -> impl Iterator<Item = Key> {
    [&change.old, &change.new]
        .into_iter()
        .flatten()
        .filter_map(|slice| {
            let name = slice.label(SERVICE_NAME_LABEL)?;
            Some(Key::new(slice.key.namespace.clone(), name))
        })
}

fn look_up(
    key: &Key,
    services: &Cache<Service>,
    slices: &Cache<EndpointSlice>,
    node: &str,
) -> Frontends {
    let service = match services.get(key) {
        Ok(Some(service)) => service,
        Ok(None) => return Frontends::new(),
        Err(error) => {
            tracing::warn!(%error, "a Service is left out");
            return Frontends::new();
        }
    };
    let of_service = slices.entries_labelled(SERVICE_NAME_LABEL, &key.name);
    let here: Vec<_> = of_service
        .into_iter()
        .filter(|s| s.key.namespace == key.namespace)
        .collect();
    frontends(&service, &client::cache::decode_all(&here), node)
}

/// Routes the service range into the bridge, so that this host's own connections find a source address and way there.
fn route_services(config: &Config) -> Result<(), net::Error> {
    let mut links = Links::open()?;
    let bridge = links
        .find(&config.bridge)?
        .ok_or_else(|| net::Error::NoLink(config.bridge.clone()))?;
    let source = links
        .addresses()?
        .into_iter()
        .find(|a| a.index == bridge.index)
        .map(|a| a.net.addr());
    links.set_route(&Route {
        destination: config.service_cidr,
        gateway: None,
        index: bridge.index,
        source,
        metric: 0,
    })
}
