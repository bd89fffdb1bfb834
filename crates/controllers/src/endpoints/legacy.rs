//! Endpoints: one object per service, all its addresses grouped by ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use client::{Cache, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, write};
use k8s_openapi::{
    api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, api::PostParams};

use super::{
    HEADLESS, View,
    backends::{self, Backend, Groups, Port},
    selector_of,
    trigger::{Trigger, Triggers},
};
use crate::Context;

/// Addresses of one object; the rest is left out and an annotation says so.
const ADDRESSES_MAX: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

/// The subsets, and whether addresses had to be left out.
fn subsets(service: &Service, groups: &Groups) -> (Vec<EndpointSubset>, bool) {
    let spec = service.spec.as_ref();
    let publish_all = spec.and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let portless = spec.is_some_and(|s| {
        let none = s.ports.as_ref().is_none_or(Vec::is_empty);
        none && s.cluster_ip.as_deref() == Some("None")
    });
    let mut all = Vec::new();
    for (ports, backends) in groups {
        if ports.is_empty() && !portless {
            continue;
        }
        let counted = backends.iter().filter(|b| publish_all || !b.terminating);
        let (ready, others): (Vec<_>, Vec<_>) = counted.partition(|b| publish_all || b.serving);
        if ready.is_empty() && others.is_empty() {
            continue;
        }
        let addresses = |from: Vec<&Backend>| from.into_iter().map(address).collect::<Vec<_>>();
        let ports: Vec<EndpointPort> = ports.iter().map(subset_port).collect();
        all.push(EndpointSubset {
            addresses: some(addresses(ready)),
            not_ready_addresses: some(addresses(others)),
            ports: some(ports),
        });
    }
    let cut = truncate(&mut all);
    (all, cut)
}

fn some<T>(all: Vec<T>) -> Option<Vec<T>> {
    (!all.is_empty()).then_some(all)
}

/// Leaves out what is too much, of each subset its part: first of what is not ready.
fn truncate(subsets: &mut [EndpointSubset]) -> bool {
    let count = |all: &Option<Vec<EndpointAddress>>| all.as_ref().map_or(0, Vec::len);
    let ready: usize = subsets.iter().map(|s| count(&s.addresses)).sum();
    let others: usize = subsets.iter().map(|s| count(&s.not_ready_addresses)).sum();
    if ready + others <= ADDRESSES_MAX {
        return false;
    }
    let (room, total) = match ADDRESSES_MAX.checked_sub(ready) {
        Some(room) => (room, others),
        None => (ADDRESSES_MAX, ready),
    };
    let mut left = room;
    for subset in subsets {
        let cut = if ready > ADDRESSES_MAX {
            subset.not_ready_addresses = None;
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        let part = (count(cut) * room).div_ceil(total.max(1)).min(left);
        if let Some(addresses) = cut {
            addresses.truncate(part);
            left -= addresses.len();
        }
        *cut = cut.take().and_then(some);
    }
    true
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
    triggers: Triggers,
    /// Services that were seen to go.
    gone: Gone,
}

type Gone = Arc<Mutex<BTreeSet<Key>>>;

fn lock(gone: &Gone) -> MutexGuard<'_, BTreeSet<Key>> {
    gone.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) async fn run(context: Context, view: View, queue: Queue<Key>) {
    let endpoints = context.caches.get::<Endpoints>(Scope::all());
    let to = queue.clone();
    endpoints.on_change(move |change| to.add(change.key.clone()));
    endpoints.synced().await;
    let View { services, pods, .. } = view;
    let recorder = context.recorder();
    let gone = Gone::default();
    let (noted, to) = (gone.clone(), queue.clone());
    services.on_change(move |change| {
        if change.new.is_none() {
            lock(&noted).insert(change.key.clone());
            to.add(change.key.clone());
        }
    });
    let reconciler = Legacy {
        context: context.clone(),
        recorder,
        services,
        pods,
        endpoints,
        triggers: Triggers::default(),
        gone,
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
        lock(&self.gone).remove(key);
        let Some(selector) = selector_of(&service) else {
            return Ok(Requeue::OnChange);
        };
        let pods = self.pods.list_matching(&key.namespace, &selector);
        let trigger = self.triggers.look(key, &service, &pods);
        let families = backends::families(&service);
        let groups = backends::group(&service, &pods, &families[0], |_| Some(None));
        let (subsets, cut) = subsets(&service, &groups);
        self.write(key, &service, subsets, (cut, &trigger)).await?;
        self.triggers.told(key, trigger);
        Ok(Requeue::OnChange)
    }
}

impl Legacy {
    /// Endpoints go with their service, whoever has written them. Those of a service that nobody has
    /// seen go are other people's, unless they were made here.
    async fn clean_up(&self, key: &Key) -> Result<Requeue, Error> {
        self.triggers.forget(key);
        if let Some(found) = self.endpoints.entry(key)
            && (found.label(MANAGED_BY) == Some(MANAGER) || lock(&self.gone).contains(key))
        {
            let api: Api<Endpoints> = write::namespaced(&self.context.client, &key.namespace);
            write::delete(&api, &key.name, Some(&found.uid)).await?;
        }
        lock(&self.gone).remove(key);
        Ok(Requeue::OnChange)
    }

    async fn write(
        &self,
        key: &Key,
        service: &Service,
        subsets: Vec<EndpointSubset>,
        (cut, trigger): (bool, &Trigger),
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
        trigger.stamp(&mut annotations);
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
        let params = PostParams::default();
        let (written, reason, what) = match old {
            Some(_) => (
                write::tolerate_missing(api.replace(&key.name, &params, &new).await),
                "FailedToUpdateEndpoint",
                "update endpoint",
            ),
            // It would go with the service as soon as it is made.
            None if service.metadata.deletion_timestamp.is_some() => return Ok(()),
            None => (
                api.create(&params, &new).await.map(Some),
                "FailedToCreateEndpoint",
                "create endpoint for service",
            ),
        };
        let written = match written {
            Err(e) if client::is_forbidden_by_termination(&e) => return Ok(()),
            Err(e) => {
                let e = Error::from(e);
                let message = format!("Failed to {what} {key}: {}", e.words());
                self.recorder.warning(&new, reason, message);
                return Err(e);
            }
            Ok(written) => written,
        };
        self.endpoints
            .caught_up(written.as_ref().map_or(0, write::revision_of))
            .await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap()
    }

    fn backends(from: usize, to: usize, serving: bool) -> Vec<Backend> {
        let backend = |i: usize| Backend {
            address: format!("10.0.{}.{}", i / 250, i % 250),
            serving,
            terminating: false,
            node: None,
            zone: None,
            hostname: None,
            target: Default::default(),
        };
        (from..to).map(backend).collect()
    }

    fn port(port: i32) -> Vec<Port> {
        vec![Port {
            name: String::new(),
            protocol: "TCP".into(),
            port,
            app_protocol: None,
        }]
    }

    fn sizes(subsets: &[EndpointSubset]) -> Vec<(usize, usize)> {
        let count = |all: &Option<Vec<EndpointAddress>>| all.as_ref().map_or(0, Vec::len);
        let sizes = subsets
            .iter()
            .map(|s| (count(&s.addresses), count(&s.not_ready_addresses)));
        sizes.collect()
    }

    #[test]
    fn addresses_without_any_port_are_those_of_headless_services_only() {
        let groups = Groups::from([(vec![], backends(0, 1, true))]);
        for (spec, expected) in [
            (json!({"clusterIP": "None"}), 1),
            (json!({"clusterIP": "10.0.0.1"}), 0),
            (
                json!({"clusterIP": "None", "ports": [{"port": 80, "targetPort": "x"}]}),
                0,
            ),
        ] {
            let (found, _) = subsets(&service(spec.clone()), &groups);
            assert_eq!(found.len(), expected, "{spec}");
        }
    }

    #[test]
    fn what_is_too_much_is_left_out_first_of_what_is_not_ready() {
        let cut = |ready: [usize; 2], others: [usize; 2]| {
            let group = |i: usize| {
                let mut all = backends(0, ready[i], true);
                all.extend(backends(2000, 2000 + others[i], false));
                all
            };
            let groups = Groups::from([(port(1), group(0)), (port(2), group(1))]);
            let (subsets, cut) = subsets(&service(json!({})), &groups);
            (sizes(&subsets), cut)
        };
        assert_eq!(cut([500, 0], [0, 500]), (vec![(500, 0), (0, 500)], false));
        assert_eq!(cut([0, 500], [900, 100]), (vec![(0, 450), (500, 50)], true));
        assert_eq!(cut([1500, 500], [9, 9]), (vec![(750, 0), (250, 0)], true));
    }
}
