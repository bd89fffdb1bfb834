//! Addresses of services: puts right which service has which, and gives back those that none has.
//!
//! The caches may lag behind, so nothing is written or deleted before the server has said the same.

use std::{fmt, net::IpAddr};

use client::{Cache, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, write};
use futures::future::BoxFuture;
use jiff::SignedDuration;
use k8s_openapi::{
    api::{
        core::v1::Service,
        networking::v1::{IPAddress, ServiceCIDR},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use super::{MANAGED_BY, MANAGER, cidrs, left_of};
use crate::{Context, Controller};

/// Puts addresses right.
pub const CONTROLLER: Controller = Controller {
    name: "ipallocator-repair-controller",
    run,
};

const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
/// An address is made before its service, and for so long without one at most.
const UNUSED_GRACE: SignedDuration = SignedDuration::from_secs(60);
/// The same where the service is there without the address, which may still be given back.
const REVERT_GRACE: SignedDuration = SignedDuration::from_secs(5);

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
    ranges: Cache<ServiceCIDR>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let services = context.caches.get::<Service>(Scope::all());
        let addresses = context.caches.get::<IPAddress>(Scope::all());
        let ranges = context.caches.get::<ServiceCIDR>(Scope::all());
        services.synced().await;
        addresses.synced().await;
        ranges.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        services.on_change(move |change| to.add(Target::Service(change.key.clone())));
        let (to, all) = (queue.clone(), services.clone());
        addresses.on_change(move |change| {
            to.add(Target::Address(change.key.clone()));
            for service in all.entries() {
                // Few have it: decoding each would cost more than looking for the word.
                if service.mentions(&format!("\"{}\"", change.key.name)) {
                    to.add(Target::Service(service.key.clone()));
                }
            }
        });
        let recorder = context.recorder();
        let reconciler = Repair {
            context: context.clone(),
            recorder,
            services,
            addresses,
            ranges,
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

fn has(service: &Service, ip: &str) -> bool {
    ips(service).any(|own| own.to_string() == ip)
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The object that says whose an address is.
fn address_of(ip: IpAddr, service: &Key) -> Value {
    json!({"metadata": {"name": ip.to_string(), "labels": {FAMILY: family(ip), MANAGED_BY: MANAGER}},
        "spec": {"parentRef": {"group": "", "resource": "services",
            "namespace": &*service.namespace, "name": &*service.name}}})
}

/// The service that an address names; `None`: it names none.
fn parent(address: &IPAddress) -> Option<Key> {
    let parent = &address.spec.parent_ref;
    let ours =
        parent.group.as_deref().unwrap_or_default().is_empty() && parent.resource == "services";
    let namespace = parent.namespace.as_deref().unwrap_or_default();
    ours.then(|| Key::new(namespace, parent.name.as_str()))
}

fn is_managed(address: &IPAddress) -> bool {
    let labels = address.metadata.labels.as_ref();
    labels.is_some_and(|l| l.get(MANAGED_BY).is_some_and(|by| by == MANAGER))
}

/// What is wrong with the address of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// There is no such object.
    Missing,
    /// It is somebody else's, who does not have it.
    Foreign,
    /// It is another service's, which has it too.
    Doubled,
    /// It does not say what it is.
    Unlabelled,
}

/// Judges the object of an address of a service; `holds` tells whether another service has it.
fn flaw(
    address: Option<&IPAddress>,
    (service, ip): (&Key, IpAddr),
    holds: impl FnOnce(&Key) -> bool,
) -> Option<Flaw> {
    let Some(address) = address else {
        return Some(Flaw::Missing);
    };
    match parent(address) {
        Some(named) if named == *service => {
            let labels = address.metadata.labels.as_ref();
            let is_told = labels.and_then(|l| l.get(FAMILY)).map(String::as_str);
            let good = is_managed(address) && is_told == Some(family(ip));
            (!good).then_some(Flaw::Unlabelled)
        }
        Some(other) if holds(&other) => Some(Flaw::Doubled),
        _ => Some(Flaw::Foreign),
    }
}

impl Reconcile for Repair {
    type Key = Target;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, target: &Target) -> Result<Requeue, Error> {
        match target {
            Target::Service(key) => self.provide(key).await,
            Target::Address(key) => self.release(key).await,
        }
    }
}

impl Repair {
    /// Sees to it that the addresses of a service are its own.
    async fn provide(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(service) = self.services.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::OnChange);
        }
        for ip in ips(&service) {
            if !self.is_in_range(ip) {
                let message = format!(
                    "Cluster IP [{}]: {ip} is not within any configured Service CIDR; please recreate service",
                    family(ip)
                );
                self.recorder
                    .warning(&service, "ClusterIPOutOfRange", message);
                continue;
            }
            let known = self.addresses.get(&Key::cluster(ip.to_string()))?;
            let holds = |other: &Key| self.services.get(other).ok().flatten();
            let holds = |other: &Key| holds(other).is_some_and(|s| has(&s, &ip.to_string()));
            if flaw(known.as_ref(), (key, ip), holds).is_some() {
                self.mend(key, ip).await?;
            }
        }
        Ok(Requeue::OnChange)
    }

    fn is_in_range(&self, ip: IpAddr) -> bool {
        let ranges = self.ranges.list();
        ranges.is_empty() || ranges.iter().flat_map(cidrs).any(|c| c.contains(&ip))
    }

    async fn service_by_now(&self, key: &Key) -> Result<Option<Service>, Error> {
        let api = write::namespaced::<Service>(&self.context.client, &key.namespace);
        Ok(write::tolerate_missing(api.get(&key.name).await)?)
    }

    /// Looks at an address again, for the caches may lag behind, and puts it right.
    async fn mend(&self, key: &Key, ip: IpAddr) -> Result<(), Error> {
        let name = ip.to_string();
        let service = self.service_by_now(key).await?;
        let Some(service) = service.filter(|s| has(s, &name)) else {
            return Ok(());
        };
        let api: Api<IPAddress> = write::cluster(&self.context.client);
        let found = write::tolerate_missing(api.get(&name).await)?;
        let other = match found.as_ref().and_then(parent).filter(|p| p != key) {
            Some(other) => self.service_by_now(&other).await?,
            None => None,
        };
        let holds = |_: &Key| other.is_some_and(|s| has(&s, &name));
        let family = family(ip);
        let (reason, message) = match flaw(found.as_ref(), (key, ip), holds) {
            None => return Ok(()),
            Some(Flaw::Doubled) => {
                let message = format!(
                    "Cluster IP [{family}]:{ip} was assigned to multiple services; please recreate service"
                );
                self.recorder
                    .warning(&service, "ClusterIPAlreadyAllocated", message);
                return Ok(());
            }
            Some(Flaw::Missing) => (
                Some("ClusterIPNotAllocated"),
                format!("Cluster IP [{family}]: {ip} is not allocated; repairing"),
            ),
            Some(Flaw::Foreign) => (
                Some("ClusterIPNotAllocated"),
                format!(
                    "the ClusterIP [{family}]: {ip} for Service {key} has a wrong reference; repairing"
                ),
            ),
            Some(Flaw::Unlabelled) => (None, String::new()),
        };
        if let Some(wrong) = found {
            write::delete(&api, &name, wrong.metadata.uid.as_deref()).await?;
        }
        let new: IPAddress =
            serde_json::from_value(address_of(ip, key)).map_err(|e| Error::Other(e.to_string()))?;
        let made = api.create(&PostParams::default(), &new).await;
        if let Some(made) = write::tolerate_existing(made)? {
            if let Some(reason) = reason {
                self.recorder.warning(&service, reason, message);
            }
            self.addresses.caught_up(write::revision_of(&made)).await?;
        }
        Ok(())
    }

    /// Gives back an address whose service is gone.
    async fn release(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(address) = self.addresses.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        if !is_managed(&address) {
            return Ok(Requeue::OnChange);
        }
        let ip = &*key.name;
        let (reason, message) = match parent(&address) {
            None => (
                "IPAddressNotAllocated",
                format!(
                    "IPAddress {ip} appears to have been modified, not referencing a Service {}: cleaning up",
                    told(&address)
                ),
            ),
            Some(of) => {
                if self.services.get(&of)?.is_some_and(|s| has(&s, ip)) {
                    return Ok(Requeue::OnChange);
                }
                let service = self.service_by_now(&of).await?;
                if service.as_ref().is_some_and(|s| has(s, ip)) {
                    return Ok(Requeue::OnChange);
                }
                let grace = grace(&address, service.as_ref());
                let made = address.metadata.creation_timestamp.as_ref();
                if let Some(wait) = left_of(grace, made, self.context.now()) {
                    return Ok(Requeue::After(wait));
                }
                match service {
                    None => (
                        "IPAddressNotAllocated",
                        format!(
                            "IPAddress: {ip} for Service {of} appears to have leaked: cleaning up"
                        ),
                    ),
                    Some(_) => (
                        "IPAddressWrongReference",
                        format!(
                            "IPAddress: {ip} for Service {of} has a wrong reference; cleaning up"
                        ),
                    ),
                }
            }
        };
        self.recorder.warning(&address, reason, message);
        let api: Api<IPAddress> = write::cluster(&self.context.client);
        write::delete(&api, ip, address.metadata.uid.as_deref()).await?;
        Ok(Requeue::OnChange)
    }
}

/// What an address names, for people.
fn told(address: &IPAddress) -> String {
    let parent = &address.spec.parent_ref;
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let (group, namespace) = (text(&parent.group), text(&parent.namespace));
    format!(
        "&{{{group} {} {namespace} {}}}",
        parent.resource, parent.name
    )
}

/// How long an address may be without its service, which is made after it, or be one too many.
fn grace(address: &IPAddress, service: Option<&Service>) -> SignedDuration {
    let Some(service) = service else {
        return UNUSED_GRACE;
    };
    let kind = service.spec.as_ref().and_then(|s| s.type_.as_deref());
    let made = |meta: &ObjectMeta| meta.creation_timestamp.as_ref().map(|t| t.0);
    if kind == Some("ExternalName") {
        UNUSED_GRACE
    } else if made(&address.metadata) > made(&service.metadata) {
        REVERT_GRACE
    } else {
        SignedDuration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn addresses_are_those_of_their_services() {
        let (mine, other) = (Key::new("n", "s"), Key::new("n", "t"));
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let address = |value: Value| -> IPAddress { serde_json::from_value(value).unwrap() };
        let good = address_of(ip, &mine);
        let mut bare = good.clone();
        bare["metadata"]["labels"] = json!({MANAGED_BY: MANAGER});
        let mut strange = good.clone();
        strange["spec"]["parentRef"]["resource"] = json!("gateways");
        for (found, held, expected) in [
            (Some(good), false, None),
            (None, false, Some(Flaw::Missing)),
            (Some(bare), false, Some(Flaw::Unlabelled)),
            (Some(strange), true, Some(Flaw::Foreign)),
            (Some(address_of(ip, &other)), false, Some(Flaw::Foreign)),
            (Some(address_of(ip, &other)), true, Some(Flaw::Doubled)),
        ] {
            let found = found.map(address);
            let flaw = flaw(found.as_ref(), (&mine, ip), |_| held);
            assert_eq!(flaw, expected, "{found:?}");
        }
    }

    #[test]
    fn addresses_have_time_to_find_their_service() {
        let at = |second| json!(Timestamp::from_second(second).unwrap().to_string());
        let address = |made: i64| -> IPAddress {
            let mut address = address_of("10.0.0.1".parse().unwrap(), &Key::new("n", "s"));
            address["metadata"]["creationTimestamp"] = at(made);
            serde_json::from_value(address).unwrap()
        };
        let service = |made: i64, kind: &str| -> Service {
            serde_json::from_value(
                json!({"metadata": {"creationTimestamp": at(made)}, "spec": {"type": kind}}),
            )
            .unwrap()
        };
        let cluster = service(100, "ClusterIP");
        for (made, service, seconds) in [
            (100, None, 60),
            (100, Some(service(50, "ExternalName")), 60),
            (101, Some(cluster.clone()), 5),
            (100, Some(cluster), 0),
        ] {
            let grace = grace(&address(made), service.as_ref());
            assert_eq!(grace.as_secs(), seconds, "{made} {service:?}");
        }
    }
}
