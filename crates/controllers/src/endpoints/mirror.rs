//! Endpoints that people write for services without a selector, as EndpointSlices.

use std::collections::BTreeMap;

use client::{Cache, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope};
use futures::future::BoxFuture;
use k8s_openapi::api::{
    core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointSlice},
};

use super::{
    HEADLESS,
    backends::{self, Port},
    slices::{self, Act, MANAGED_BY, SERVICE, Wanted, Whose, Writer},
};
use crate::{Context, claim};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses of a subset that are mirrored.
const SUBSET_MAX: usize = 1000;
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

struct Mirror {
    context: Context,
    recorder: Recorder,
    services: Cache<Service>,
    endpoints: Cache<Endpoints>,
    slices: Cache<EndpointSlice>,
}

pub(super) fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let services = context.caches.get::<Service>(Scope::all());
        let endpoints = context.caches.get::<Endpoints>(Scope::all());
        let slices = context.caches.get::<EndpointSlice>(Scope::all());
        services.synced().await;
        endpoints.synced().await;
        slices.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        services.on_change(move |change| to.add(change.key.clone()));
        let to = queue.clone();
        endpoints.on_change(move |change| to.add(change.key.clone()));
        let to = queue.clone();
        slices.on_change(move |change| {
            let latest = change.latest();
            let ours = latest.filter(|e| e.label(MANAGED_BY) == Some(MANAGER));
            if let Some(service) = ours.and_then(|e| e.label(SERVICE)) {
                to.add(Key::new(change.key.namespace.clone(), service));
            }
        });
        let recorder = context.recorder();
        let reconciler = Mirror {
            context: context.clone(),
            recorder,
            services,
            endpoints,
            slices,
        };
        context.work(reconciler, queue).await;
    })
}

/// Whether these Endpoints of this service are to be mirrored.
fn is_mirrored(endpoints: &Endpoints, service: &Service) -> bool {
    let meta = &endpoints.metadata;
    let labels = meta.labels.as_ref();
    let skipped = labels
        .and_then(|l| l.get(SKIP))
        .is_some_and(|v| v == "true");
    let leads = meta
        .annotations
        .as_ref()
        .is_some_and(|a| a.contains_key(LEADER));
    let spec = service.spec.as_ref();
    let selects = spec.is_some_and(|s| s.selector.as_ref().is_some_and(|s| !s.is_empty()));
    !skipped && !leads && !selects && meta.deletion_timestamp.is_none()
}

fn whose(endpoints: &Endpoints) -> Whose {
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    Whose {
        namespace: endpoints.metadata.namespace.clone(),
        name,
        labels,
        owner: claim::owner_reference(endpoints),
    }
}

/// The endpoints of one family, and how many were left out.
fn wanted(subsets: &[EndpointSubset], family: &str) -> (Wanted, usize) {
    let mut wanted: BTreeMap<Vec<Port>, Vec<Endpoint>> = BTreeMap::new();
    let mut skipped = 0;
    for subset in subsets {
        let mut ports: Vec<Port> = subset
            .ports
            .iter()
            .flatten()
            .map(|p| Port {
                name: p.name.clone().unwrap_or_default(),
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port: p.port,
                app_protocol: p.app_protocol.clone(),
            })
            .collect();
        ports.sort();
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let rest = subset.not_ready_addresses.iter().flatten();
        let all = ready.chain(rest.map(|a| (a, false)));
        let mine: Vec<Endpoint> = all
            .filter(|(a, _)| backends::is_of_family(&a.ip, family))
            .map(|(a, ready)| endpoint(a, ready))
            .collect();
        skipped += mine.len().saturating_sub(SUBSET_MAX);
        if !mine.is_empty() {
            let of = wanted.entry(ports).or_default();
            of.extend(mine.into_iter().take(SUBSET_MAX));
        }
    }
    (wanted, skipped)
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn plan(endpoints: &Endpoints, existing: &[EndpointSlice]) -> (Vec<Act>, usize) {
    let subsets = endpoints.subsets.as_deref().unwrap_or_default();
    let whose = whose(endpoints);
    let (mut acts, mut skipped) = (Vec::new(), 0);
    for family in FAMILIES {
        let existing: Vec<EndpointSlice> = existing
            .iter()
            .filter(|s| s.address_type == family)
            .cloned()
            .collect();
        let (wanted, more) = wanted(subsets, family);
        acts.extend(slices::plan(&whose, family, &wanted, &existing));
        skipped += more;
    }
    (acts, skipped)
}

impl Reconcile for Mirror {
    type Key = Key;

    fn name(&self) -> &'static str {
        super::MIRRORING.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let existing = slices::owned(&self.slices, key, MANAGER);
        let (endpoints, service) = (self.endpoints.get(key)?, self.services.get(key)?);
        let writer = Writer {
            context: &self.context,
            slices: &self.slices,
        };
        let mirrored = endpoints
            .zip(service)
            .filter(|(e, s)| is_mirrored(e, s))
            .map(|(e, _)| e);
        let Some(endpoints) = mirrored else {
            for slice in existing {
                let act = Act::Delete(slice.metadata.name.unwrap_or_default());
                writer.act(&key.namespace, act).await?;
            }
            return Ok(Requeue::OnChange);
        };
        let (acts, skipped) = plan(&endpoints, &existing);
        if skipped > 0 && !acts.is_empty() {
            let message = format!(
                "A max of {SUBSET_MAX} addresses can be mirrored to EndpointSlices per Endpoints subset. {skipped} addresses were skipped"
            );
            self.recorder
                .warning(&endpoints, "TooManyAddressesToMirror", message);
        }
        for act in acts {
            if let Err(e) = writer.act(&key.namespace, act).await {
                let message = format!("Error updating Endpoint Slices for {key}: {e}");
                self.recorder
                    .warning(&endpoints, "FailedToUpdateEndpointSlices", message);
                return Err(e);
            }
        }
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn endpoints(meta: Value, subsets: Value) -> Endpoints {
        serde_json::from_value(json!({"metadata": meta, "subsets": subsets})).unwrap()
    }

    #[test]
    fn only_what_people_write_is_mirrored() {
        let service =
            |spec: Value| -> Service { serde_json::from_value(json!({"spec": spec})).unwrap() };
        let bare = service(json!({}));
        let plain = endpoints(json!({"name": "e"}), json!([]));
        assert!(is_mirrored(&plain, &bare));
        assert!(!is_mirrored(
            &plain,
            &service(json!({"selector": {"a": "b"}}))
        ));
        for meta in [
            json!({"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}),
            json!({"annotations": {"control-plane.alpha.kubernetes.io/leader": "x"}}),
        ] {
            assert!(!is_mirrored(&endpoints(meta, json!([])), &bare));
        }
    }

    #[test]
    fn families_and_ports_have_slices_of_their_own() {
        let subsets = json!([
            {"addresses": [{"ip": "10.0.0.1", "hostname": "a"}, {"ip": "fd00::1"}],
             "notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": [{"name": "p", "port": 80}]},
            {"addresses": [{"ip": "10.0.0.3"}], "ports": [{"name": "p", "port": 81}]}]);
        let (acts, skipped) = plan(
            &endpoints(json!({"name": "e", "labels": {"l": "m"}}), subsets),
            &[],
        );
        let slices: Vec<_> = acts
            .iter()
            .map(|a| match a {
                Act::Create(s) => s,
                other => panic!("{other:?}"),
            })
            .collect();
        let shape: Vec<_> = slices
            .iter()
            .map(|s| {
                let ready = s.endpoints.iter().flatten().map(|e| {
                    (
                        e.addresses[0].as_str(),
                        e.conditions.as_ref().unwrap().ready.unwrap(),
                    )
                });
                (s.address_type.as_str(), ready.collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(
            shape,
            [
                ("IPv4", vec![("10.0.0.1", true), ("10.0.0.2", false)]),
                ("IPv4", vec![("10.0.0.3", true)]),
                ("IPv6", vec![("fd00::1", true)]),
            ]
        );
        let labels = slices[0].metadata.labels.as_ref().unwrap();
        assert_eq!(
            (
                labels[SERVICE].as_str(),
                labels[MANAGED_BY].as_str(),
                labels["l"].as_str()
            ),
            ("e", MANAGER, "m")
        );
        assert_eq!(skipped, 0);
        // Nobody left: nothing left.
        let mut there = slices[0].clone();
        there.metadata.name = Some("e-1".into());
        let (acts, _) = plan(&endpoints(json!({"name": "e"}), json!([])), &[there]);
        assert_eq!(acts, [Act::Delete("e-1".into())]);
    }

    #[test]
    fn too_many_are_cut() {
        let many: Vec<_> = (0..1100)
            .map(|i| json!({"ip": format!("10.0.{}.{}", i / 250, i % 250)}))
            .collect();
        let subsets = json!([{"addresses": many, "ports": [{"port": 80}]}]);
        let (acts, skipped) = plan(&endpoints(json!({"name": "e"}), subsets), &[]);
        assert_eq!((acts.len(), skipped), (10, 100));
    }
}
