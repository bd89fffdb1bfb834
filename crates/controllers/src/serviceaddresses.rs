//! Ranges of cluster IPs, which stay while addresses of theirs are in use, and the addresses
//! themselves, of which each service has its own.
//!
//! The API server takes and gives back addresses with the services; what is put right here was
//! done by hand.

use std::{fmt, net::IpAddr, time::Duration};

use client::{Cache, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, write};
use futures::future::BoxFuture;
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    core::v1::Service,
    networking::v1::{IPAddress, ServiceCIDR},
};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use crate::{Context, Controller};

/// Keeps the ranges.
pub const RANGES: Controller = Controller {
    name: "service-cidrs-controller",
    run: run_ranges,
};
/// Puts addresses right.
pub const REPAIR: Controller = Controller {
    name: "ipallocator-repair-controller",
    run: run_repair,
};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const MANAGER: &str = "ipallocator.k8s.io";
/// The range that the API server makes itself.
const DEFAULT: &str = "kubernetes";
/// An address may be older than what shows its service.
const YOUNG: SignedDuration = SignedDuration::from_secs(60);

fn cidrs(range: &ServiceCIDR) -> Vec<IpNet> {
    let spec = range.spec.as_ref();
    let all = spec.and_then(|s| s.cidrs.as_deref()).unwrap_or_default();
    all.iter().filter_map(|c| c.parse().ok()).collect()
}

/// Whether some address is in this range and in no other that stays.
fn is_needed(range: &ServiceCIDR, others: &[ServiceCIDR], addresses: &[IpAddr]) -> bool {
    let mine = cidrs(range);
    let stays = |o: &&ServiceCIDR| {
        o.metadata.name != range.metadata.name && o.metadata.deletion_timestamp.is_none()
    };
    let rest: Vec<IpNet> = others.iter().filter(stays).flat_map(cidrs).collect();
    addresses
        .iter()
        .any(|a| mine.iter().any(|c| c.contains(a)) && !rest.iter().any(|c| c.contains(a)))
}

struct Ranges {
    context: Context,
    ranges: Cache<ServiceCIDR>,
    addresses: Cache<IPAddress>,
}

fn run_ranges(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let ranges = context.caches.get::<ServiceCIDR>(Scope::all());
        let addresses = context.caches.get::<IPAddress>(Scope::all());
        ranges.synced().await;
        addresses.synced().await;
        let queue = Queue::default();
        let (to, all) = (queue.clone(), ranges.clone());
        ranges.on_change(move |change| {
            to.add(change.key.clone());
            // A range that comes may free another one.
            let leaving = all.entries().into_iter().filter(|e| e.deleting);
            leaving.for_each(|e| to.add(e.key.clone()));
        });
        let (to, all) = (queue.clone(), ranges.clone());
        addresses.on_change(move |change| {
            if change.new.is_none() {
                let leaving = all.entries().into_iter().filter(|e| e.deleting);
                leaving.for_each(|e| to.add(e.key.clone()));
            }
        });
        let reconciler = Ranges {
            context: context.clone(),
            ranges,
            addresses,
        };
        context.work(reconciler, queue).await;
    })
}

impl Reconcile for Ranges {
    type Key = Key;

    fn name(&self) -> &'static str {
        RANGES.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(range) = self.ranges.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let finalizers = range.metadata.finalizers.clone().unwrap_or_default();
        let held = finalizers.iter().any(|f| f == FINALIZER);
        if range.metadata.deletion_timestamp.is_none() {
            if !held && &*key.name != DEFAULT {
                self.set_finalizers(key, &range, [finalizers, vec![FINALIZER.into()]].concat())
                    .await?;
            }
            self.report(key, &range, "True", "", "Kubernetes Service CIDR is ready")
                .await?;
            return Ok(Requeue::OnChange);
        }
        if !held {
            return Ok(Requeue::OnChange);
        }
        // No new address is taken from a range that is not ready.
        let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
        self.report(key, &range, "False", "Terminating", message)
            .await?;
        let parse = |e: std::sync::Arc<client::Entry>| e.key.name.parse().ok();
        let entries = self.addresses.entries().into_iter();
        let addresses: Vec<IpAddr> = entries.filter_map(parse).collect();
        if !is_needed(&range, &self.ranges.list(), &addresses) {
            let left = finalizers.into_iter().filter(|f| f != FINALIZER);
            self.set_finalizers(key, &range, left.collect()).await?;
        }
        Ok(Requeue::OnChange)
    }
}

impl Ranges {
    fn api(&self) -> Api<ServiceCIDR> {
        write::cluster(&self.context.client)
    }

    async fn set_finalizers(
        &self,
        key: &Key,
        range: &ServiceCIDR,
        finalizers: Vec<String>,
    ) -> Result<(), Error> {
        let body = json!({"metadata": {"uid": range.metadata.uid, "finalizers": finalizers}});
        let written = write::patch(&self.api(), &key.name, &body).await?;
        if range.metadata.deletion_timestamp.is_none() {
            let revision = written.as_ref().map_or(0, write::revision_of);
            self.ranges.caught_up(revision).await?;
        }
        Ok(())
    }

    async fn report(
        &self,
        key: &Key,
        range: &ServiceCIDR,
        status: &str,
        reason: &str,
        message: &str,
    ) -> Result<(), Error> {
        let told = range.status.as_ref().and_then(|s| s.conditions.as_ref());
        let mut told = told.into_iter().flatten();
        if told.any(|c| c.type_ == "Ready" && c.status == status) {
            return Ok(());
        }
        let condition = json!({"type": "Ready", "status": status, "reason": reason,
            "message": message, "lastTransitionTime": api::time::format(self.context.now())});
        let body = json!({"metadata": {"uid": range.metadata.uid},
            "status": {"conditions": [condition]}});
        let written = write::patch_status(&self.api(), &key.name, &body).await?;
        let revision = written.as_ref().map_or(0, write::revision_of);
        self.ranges.caught_up(revision).await
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Target {
    Service(Key),
    Address(Key),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "service {key}"),
            Self::Address(key) => write!(f, "address {key}"),
        }
    }
}

struct Repair {
    context: Context,
    recorder: Recorder,
    services: Cache<Service>,
    addresses: Cache<IPAddress>,
}

fn run_repair(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let services = context.caches.get::<Service>(Scope::all());
        let addresses = context.caches.get::<IPAddress>(Scope::all());
        services.synced().await;
        addresses.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        services.on_change(move |change| to.add(Target::Service(change.key.clone())));
        let (to, all) = (queue.clone(), services.clone());
        addresses.on_change(move |change| {
            to.add(Target::Address(change.key.clone()));
            if change.new.is_none() {
                for service in all.list() {
                    if ips(&service).any(|ip| ip.to_string() == *change.key.name) {
                        to.add(Target::Service(Key::of(&service)));
                    }
                }
            }
        });
        let recorder = context.recorder();
        let reconciler = Repair {
            context: context.clone(),
            recorder,
            services,
            addresses,
        };
        context.work(reconciler, queue).await;
    })
}

fn ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    let spec = service.spec.as_ref();
    let named = spec.filter(|s| s.type_.as_deref() != Some("ExternalName"));
    let all = named
        .and_then(|s| s.cluster_ips.clone())
        .unwrap_or_default();
    all.into_iter().filter_map(|ip| ip.parse().ok())
}

/// The object that says whose an address is.
fn address_of(ip: IpAddr, service: &Key) -> Value {
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({"metadata": {"name": ip.to_string(), "labels": {FAMILY: family, MANAGED_BY: MANAGER}},
        "spec": {"parentRef": {"group": "", "resource": "services",
            "namespace": &*service.namespace, "name": &*service.name}}})
}

/// The service that an address is of; `None`: it is not the allocator's.
fn parent(address: &IPAddress) -> Option<Key> {
    let labels = address.metadata.labels.as_ref()?;
    let parent = &address.spec.parent_ref;
    let ours = labels.get(MANAGED_BY)? == MANAGER && parent.resource == "services";
    let namespace = parent.namespace.as_deref().unwrap_or_default();
    ours.then(|| Key::new(namespace, parent.name.as_str()))
}

impl Reconcile for Repair {
    type Key = Target;

    fn name(&self) -> &'static str {
        REPAIR.name
    }

    async fn reconcile(&self, target: &Target) -> Result<Requeue, Error> {
        match target {
            Target::Service(key) => self.provide(key).await,
            Target::Address(key) => self.release(key).await,
        }
    }
}

impl Repair {
    /// Takes the addresses of a service that somebody gave back.
    async fn provide(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(service) = self.services.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::OnChange);
        }
        let api: Api<IPAddress> = write::cluster(&self.context.client);
        for ip in ips(&service) {
            if self.addresses.contains(&Key::cluster(ip.to_string())) {
                continue;
            }
            // The cache may lag behind, or the service may be gone.
            let services = write::namespaced::<Service>(&self.context.client, &key.namespace);
            let fresh = write::tolerate_missing(services.get(&key.name).await)?;
            if !fresh.is_some_and(|s| ips(&s).any(|i| i == ip)) {
                return Ok(Requeue::OnChange);
            }
            let new: IPAddress = serde_json::from_value(address_of(ip, key))
                .map_err(|e| Error::Other(e.to_string()))?;
            let made = api.create(&PostParams::default(), &new).await;
            if let Some(made) = write::tolerate_existing(made)? {
                let message =
                    format!("Cluster IP {ip} has no IPAddress object, it was created again");
                self.recorder
                    .warning(&service, "ClusterIPNotAllocated", message);
                self.addresses.caught_up(write::revision_of(&made)).await?;
            }
        }
        Ok(Requeue::OnChange)
    }

    /// Gives back an address whose service is gone.
    async fn release(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(address) = self.addresses.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let Some(parent) = parent(&address) else {
            return Ok(Requeue::OnChange);
        };
        let uses = |s: &Service| ips(s).any(|ip| ip.to_string() == *key.name);
        if self.services.get(&parent)?.as_ref().is_some_and(uses) {
            return Ok(Requeue::OnChange);
        }
        let now = self.context.now();
        if let Some(wait) = young(&address, now) {
            return Ok(Requeue::After(wait));
        }
        let api = write::namespaced::<Service>(&self.context.client, &parent.namespace);
        let fresh = write::tolerate_missing(api.get(&parent.name).await)?;
        if !fresh.as_ref().is_some_and(uses) {
            let api: Api<IPAddress> = write::cluster(&self.context.client);
            write::delete(&api, &key.name, address.metadata.uid.as_deref()).await?;
        }
        Ok(Requeue::OnChange)
    }
}

/// How long an address is too young to be judged.
fn young(address: &IPAddress, now: Timestamp) -> Option<Duration> {
    let created = address.metadata.creation_timestamp.as_ref()?.0;
    let left = YOUNG - now.duration_since(created);
    left.is_positive().then(|| left.try_into().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(name: &str, cidr: &str, deleted: bool) -> ServiceCIDR {
        let at = deleted.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({"metadata": {"name": name, "deletionTimestamp": at},
            "spec": {"cidrs": [cidr]}}))
        .unwrap()
    }

    #[test]
    fn a_range_stays_while_it_alone_has_addresses() {
        let mine = range("mine", "10.0.0.0/24", true);
        let wide = range("wide", "10.0.0.0/16", false);
        let leaving = range("wide", "10.0.0.0/16", true);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (others, addresses, expected) in [
            (vec![], vec![ip("10.0.0.1")], true),
            (vec![], vec![ip("10.1.0.1")], false),
            (vec![mine.clone()], vec![ip("10.0.0.1")], true),
            (vec![wide], vec![ip("10.0.0.1")], false),
            (vec![leaving], vec![ip("10.0.0.1")], true),
        ] {
            assert_eq!(
                is_needed(&mine, &others, &addresses),
                expected,
                "{others:?}"
            );
        }
    }

    #[test]
    fn addresses_name_their_service() {
        let key = Key::new("n", "s");
        let mine = address_of("10.0.0.1".parse().unwrap(), &key);
        let address: IPAddress = serde_json::from_value(mine.clone()).unwrap();
        assert_eq!(parent(&address), Some(key));
        let mut foreign = mine;
        foreign["metadata"]["labels"][MANAGED_BY] = json!("somebody");
        let foreign: IPAddress = serde_json::from_value(foreign).unwrap();
        assert_eq!(parent(&foreign), None);
    }
}
