//! Ranges of cluster IPs, which stay while addresses of theirs are in use, and the addresses
//! themselves, of which each service has its own.
//!
//! The API server takes and gives back addresses with the services; what is put right here was
//! done by hand.

mod repair;

use std::{net::IpAddr, time::Duration};

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::networking::v1::{IPAddress, ServiceCIDR},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::Api;
use serde_json::json;

use crate::{Context, Controller};
pub use repair::CONTROLLER as REPAIR;

/// Keeps the ranges.
pub const RANGES: Controller = Controller {
    name: "service-cidrs-controller",
    run: run_ranges,
};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const MANAGER: &str = "ipallocator.k8s.io";
/// A range that is being deleted stays for so long at least: whoever gives addresses away may not know yet.
const DELETION_GRACE: SignedDuration = SignedDuration::from_secs(10);

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

/// How much of a time since then is left.
fn left_of(time: SignedDuration, since: Option<&Time>, now: Timestamp) -> Option<Duration> {
    let left = time - now.duration_since(since?.0);
    left.is_positive().then(|| left.try_into().ok())?
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
            if !held {
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
        let managed = |e: &std::sync::Arc<client::Entry>| e.label(MANAGED_BY) == Some(MANAGER);
        let entries = self.addresses.entries().into_iter().filter(managed);
        let addresses: Vec<IpAddr> = entries.filter_map(|e| e.key.name.parse().ok()).collect();
        if is_needed(&range, &self.ranges.list(), &addresses) {
            let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
            self.report(key, &range, "False", "Terminating", message)
                .await?;
            return Ok(Requeue::OnChange);
        }
        let deleted = range.metadata.deletion_timestamp.as_ref();
        if let Some(wait) = left_of(DELETION_GRACE, deleted, self.context.now()) {
            return Ok(Requeue::After(wait));
        }
        let left = finalizers.into_iter().filter(|f| f != FINALIZER);
        self.set_finalizers(key, &range, left.collect()).await?;
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
        let meta = &range.metadata;
        let body = json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version,
            "finalizers": finalizers}});
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
        if told.any(|c| {
            (&*c.type_, &*c.status, &*c.reason, &*c.message) == ("Ready", status, reason, message)
        }) {
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
    fn a_range_that_goes_has_a_time_of_grace() {
        let since = Time(Timestamp::from_second(100).unwrap());
        let left = |now| {
            left_of(
                DELETION_GRACE,
                Some(&since),
                Timestamp::from_second(now).unwrap(),
            )
        };
        assert_eq!((left(104), left(110)), (Some(Duration::from_secs(6)), None));
    }
}
