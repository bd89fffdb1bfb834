//! The services of the cluster, reduced to what environment variables need.

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::watcher::{self, Event};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// One port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortView {
    /// Name; may be empty.
    pub name: String,
    /// Port number.
    pub port: i32,
    /// `TCP`, `UDP`, `SCTP`, or empty for TCP.
    pub protocol: String,
}

/// One service that has a cluster IP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceView {
    /// Name.
    pub name: String,
    /// Cluster IP.
    pub cluster_ip: String,
    /// Ports.
    pub ports: Vec<PortView>,
}

type Key = (String, String);

/// Services by namespace and name, kept current by a watch.
#[derive(Debug)]
pub struct Services {
    by_key: Mutex<BTreeMap<Key, ServiceView>>,
    synced: watch::Sender<bool>,
}

impl Default for Services {
    fn default() -> Self {
        Services {
            by_key: Mutex::default(),
            synced: watch::Sender::new(false),
        }
    }
}

fn view(service: &Service) -> Option<(Key, Option<ServiceView>)> {
    let key = (
        service.metadata.namespace.clone()?,
        service.metadata.name.clone()?,
    );
    let spec = service.spec.as_ref()?;
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    if cluster_ip.is_empty() || cluster_ip == "None" {
        return Some((key, None));
    }
    let ports = spec.ports.iter().flatten().map(|p| PortView {
        name: p.name.clone().unwrap_or_default(),
        port: p.port,
        protocol: p.protocol.clone().unwrap_or_default(),
    });
    let view = ServiceView {
        name: key.1.clone(),
        cluster_ip: cluster_ip.to_owned(),
        ports: ports.collect(),
    };
    Some((key, Some(view)))
}

impl Services {
    /// Follows the services of the cluster until `shutdown`.
    pub async fn run(&self, client: kube::Client, shutdown: CancellationToken) {
        let api = kube::Api::<Service>::all(client);
        let mut stream = std::pin::pin!(crate::watching::retrying(watcher::watcher(
            api,
            watcher::Config::default()
        )));
        let mut listing = BTreeMap::new();
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                () = shutdown.cancelled() => return,
            };
            match event {
                Some(Ok(Event::Init)) => listing.clear(),
                Some(Ok(Event::InitApply(service))) => {
                    if let Some((key, Some(view))) = view(&service) {
                        listing.insert(key, view);
                    }
                }
                Some(Ok(Event::InitDone)) => {
                    *self.lock() = std::mem::take(&mut listing);
                    self.synced.send_replace(true);
                }
                Some(Ok(Event::Apply(service))) => self.apply(&service),
                Some(Ok(Event::Delete(service))) => {
                    if let Some((key, _)) = view(&service) {
                        self.lock().remove(&key);
                    }
                }
                Some(Err(_)) => {}
                None => return,
            }
        }
    }

    fn apply(&self, service: &Service) {
        match view(service) {
            Some((key, Some(view))) => {
                self.lock().insert(key, view);
            }
            Some((key, None)) => {
                self.lock().remove(&key);
            }
            None => {}
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, ServiceView>> {
        self.by_key
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits until the services have been listed once.
    pub async fn wait_synced(&self) {
        // The sender lives in self, so this cannot fail while it is borrowed.
        let _ = self.synced.subscribe().wait_for(|done| *done).await;
    }

    /// Services that a pod of `namespace` gets variables for: its own namespace's if `links`, and
    /// always `kubernetes`.
    pub fn visible(&self, namespace: &str, links: bool) -> Vec<ServiceView> {
        self.lock()
            .iter()
            .filter(|((ns, name), _)| {
                (links && ns == namespace) || (ns == "default" && name == "kubernetes")
            })
            .map(|(_, view)| view.clone())
            .collect()
    }
}
