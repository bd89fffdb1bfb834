//! Endpoints: one object per service, all its addresses grouped by ports.

use std::collections::BTreeMap;

use client::{Cache, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, write};
use k8s_openapi::{
    api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, api::PostParams};

use super::{
    HEADLESS, TRIGGER_TIME, View,
    backends::{self, Backend, Groups, Port},
    selector_of,
};
use crate::Context;

/// Addresses of one object; the rest is left out and an annotation says so.
const ADDRESSES_MAX: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

/// The subsets, and whether addresses had to be left out.
fn subsets(groups: &Groups, publish_all: bool) -> (Vec<EndpointSubset>, bool) {
    let mut room = ADDRESSES_MAX;
    let mut cut = false;
    let mut all = Vec::new();
    for (ports, backends) in groups {
        let counted: Vec<&Backend> = backends
            .iter()
            .filter(|b| publish_all || !b.terminating)
            .collect();
        let (ready, not_ready): (Vec<_>, Vec<_>) =
            counted.into_iter().partition(|b| publish_all || b.serving);
        let mut take = |from: Vec<&Backend>| {
            cut |= from.len() > room;
            let taken: Vec<_> = from.into_iter().take(room).map(address).collect();
            room -= taken.len();
            (!taken.is_empty()).then_some(taken)
        };
        let addresses = take(ready);
        let not_ready_addresses = take(not_ready);
        if addresses.is_none() && not_ready_addresses.is_none() {
            continue;
        }
        let ports: Vec<EndpointPort> = ports.iter().map(subset_port).collect();
        let ports = (!ports.is_empty()).then_some(ports);
        all.push(EndpointSubset {
            addresses,
            not_ready_addresses,
            ports,
        });
    }
    (all, cut)
}

fn address(backend: &Backend) -> EndpointAddress {
    EndpointAddress {
        ip: backend.address.clone(),
        hostname: backend.hostname.clone(),
        node_name: backend.node.clone(),
        target_ref: Some(backend.target.clone()),
    }
}

fn subset_port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()).filter(|n| !n.is_empty()),
        port: port.port,
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    }
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

struct Legacy {
    context: Context,
    recorder: Recorder,
    services: Cache<Service>,
    pods: Cache<Pod>,
    endpoints: Cache<Endpoints>,
}

pub(super) async fn run(context: Context, view: View, queue: Queue<Key>) {
    let endpoints = context.caches.get::<Endpoints>(Scope::all());
    let to = queue.clone();
    endpoints.on_change(move |change| to.add(change.key.clone()));
    endpoints.synced().await;
    let View { services, pods, .. } = view;
    let recorder = context.recorder();
    let reconciler = Legacy {
        context: context.clone(),
        recorder,
        services,
        pods,
        endpoints,
    };
    context.work(reconciler, queue).await;
}

impl Reconcile for Legacy {
    type Key = Key;

    fn name(&self) -> &'static str {
        super::LEGACY.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(service) = self.services.get(key)? else {
            return self.clean_up(key).await;
        };
        let Some(selector) = selector_of(&service) else {
            return Ok(Requeue::OnChange);
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::OnChange);
        }
        let pods = self.pods.list_matching(&key.namespace, &selector);
        let families = backends::families(&service);
        let groups = backends::group(&service, &pods, &families[0], |_| Some(None));
        let spec = service.spec.as_ref();
        let publish_all = spec
            .and_then(|s| s.publish_not_ready_addresses)
            .unwrap_or(false);
        let (subsets, cut) = subsets(&groups, publish_all);
        if let Err(e) = self.write(key, &service, subsets, cut).await {
            let message = format!("Failed to update endpoint {key}: {e}");
            self.recorder
                .warning(&service, "FailedToUpdateEndpoint", message);
            return Err(e);
        }
        Ok(Requeue::OnChange)
    }
}

impl Legacy {
    /// Endpoints this controller made go with their service; other people's stay.
    async fn clean_up(&self, key: &Key) -> Result<Requeue, Error> {
        let found = self.endpoints.entry(key);
        if found.is_some_and(|e| e.label(MANAGED_BY) == Some(MANAGER)) {
            let api: Api<Endpoints> = write::namespaced(&self.context.client, &key.namespace);
            write::delete(&api, &key.name, None).await?;
        }
        Ok(Requeue::OnChange)
    }

    async fn write(
        &self,
        key: &Key,
        service: &Service,
        subsets: Vec<EndpointSubset>,
        cut: bool,
    ) -> Result<(), Error> {
        let old = self.endpoints.get(key)?;
        let labels = Some(labels(service));
        let mut annotations = old
            .as_ref()
            .and_then(|o| o.metadata.annotations.clone())
            .unwrap_or_default();
        let over = annotations.contains_key(OVER_CAPACITY);
        if let Some(old) = &old
            && old.subsets.as_deref().unwrap_or_default() == subsets
            && old.metadata.labels == labels
            && over == cut
        {
            return Ok(());
        }
        annotations.insert(TRIGGER_TIME.into(), api::time::format(self.context.now()));
        annotations.remove(OVER_CAPACITY);
        if cut {
            annotations.insert(OVER_CAPACITY.into(), "truncated".into());
        }
        let new = Endpoints {
            metadata: ObjectMeta {
                name: Some(key.name.to_string()),
                namespace: Some(key.namespace.to_string()),
                resource_version: old
                    .as_ref()
                    .and_then(|o| o.metadata.resource_version.clone()),
                labels,
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            subsets: (!subsets.is_empty()).then_some(subsets),
        };
        let api: Api<Endpoints> = write::namespaced(&self.context.client, &key.namespace);
        let written = match old {
            Some(_) => {
                write::tolerate_missing(api.replace(&key.name, &PostParams::default(), &new).await)?
            }
            None => match api.create(&PostParams::default(), &new).await {
                Err(e) if client::is_forbidden_by_termination(&e) => None,
                other => Some(other?),
            },
        };
        self.endpoints
            .caught_up(written.as_ref().map_or(0, write::revision_of))
            .await
    }
}
