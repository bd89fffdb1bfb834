//! Endpoints that people write for services without a selector, as EndpointSlices.

use std::collections::BTreeMap;

use client::{Cache, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope};
use futures::future::BoxFuture;
use k8s_openapi::api::{
    core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointSlice},
};

use super::{
    backends::{self, Port},
    packing::{self, Act, Wanted, Whose},
    slices::{self, MANAGED_BY, SERVICE, Writer},
};
use crate::{Context, claim};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses of a subset that are mirrored, into one slice.
const SUBSET_MAX: usize = 1000;
/// Annotations that say something of the Endpoints only.
const NOT_MIRRORED: [&str; 2] = [
    "endpoints.kubernetes.io/last-change-trigger-time",
    "kubectl.kubernetes.io/last-applied-configuration",
];
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
    labels.insert(SERVICE.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_MIRRORED.contains(&key.as_str()));
    Whose {
        namespace: endpoints.metadata.namespace.clone(),
        name,
        labels,
        annotations: Some(annotations),
        owner: claim::owner_reference(endpoints),
        most: SUBSET_MAX,
        says_nobody: false,
    }
}

/// Addresses by their ports: those that are ready, and the others.
type Subsets<'a> = BTreeMap<Vec<Port>, [Vec<&'a EndpointAddress>; 2]>;

/// Subsets of the same ports are one.
fn merged(subsets: &[EndpointSubset]) -> Subsets<'_> {
    let mut all = Subsets::new();
    for subset in subsets {
        let ports = subset.ports.iter().flatten().map(|p| Port {
            name: p.name.clone().unwrap_or_default(),
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            port: p.port,
            app_protocol: p.app_protocol.clone(),
        });
        let mut ports: Vec<Port> = ports.collect();
        ports.sort();
        let [ready, others] = all.entry(ports).or_default();
        ready.extend(subset.addresses.iter().flatten());
        others.extend(subset.not_ready_addresses.iter().flatten());
    }
    all
}

/// The endpoints of each family, and how many were left out.
fn wanted(subsets: &[EndpointSubset]) -> ([Wanted; 2], usize) {
    let (mut wanted, mut skipped) = (<[Wanted; 2]>::default(), 0);
    for (ports, [ready, others]) in merged(subsets) {
        skipped += (ready.len() + others.len()).saturating_sub(SUBSET_MAX);
        let ready = ready.into_iter().map(|a| (a, true));
        let all = ready.chain(others.into_iter().map(|a| (a, false)));
        for (address, ready) in all.take(SUBSET_MAX) {
            let of = FAMILIES.map(|family| backends::is_of_family(&address.ip, family));
            for (wanted, _) in wanted.iter_mut().zip(of).filter(|(_, is)| *is) {
                let endpoints = wanted.entry(ports.clone()).or_default();
                endpoints.push(endpoint(address, ready));
            }
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
    let (wanted, skipped) = wanted(subsets);
    let mut acts = Vec::new();
    for (family, wanted) in FAMILIES.into_iter().zip(wanted) {
        let existing: Vec<EndpointSlice> = existing
            .iter()
            .filter(|s| s.address_type == family)
            .cloned()
            .collect();
        acts.extend(packing::plan(&whose, family, &wanted, &existing));
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
    fn what_people_write_of_their_endpoints_is_said_of_the_slices() {
        let of = |note: &str, time: &str| {
            let annotations = json!({"note": note, NOT_MIRRORED[0]: time, NOT_MIRRORED[1]: time});
            let labels = json!({"service.kubernetes.io/headless": ""});
            let meta = json!({"name": "e", "annotations": annotations, "labels": labels});
            endpoints(meta, json!([{"addresses": [{"ip": "10.0.0.1"}]}]))
        };
        let (acts, _) = plan(&of("a", "1"), &[]);
        let [Act::Create(slice)] = acts.as_slice() else {
            panic!("{acts:?}");
        };
        let said = BTreeMap::from([("note".to_owned(), "a".to_owned())]);
        assert_eq!(slice.metadata.annotations, Some(said));
        let labels = slice.metadata.labels.as_ref().unwrap();
        assert!(labels.contains_key("service.kubernetes.io/headless"));
        let there = std::slice::from_ref(slice);
        assert_eq!(plan(&of("a", "2"), there), (vec![], 0));
        let (acts, _) = plan(&of("b", "2"), there);
        assert!(matches!(acts.as_slice(), [Act::Update(_)]), "{acts:?}");
    }

    #[test]
    fn too_many_are_cut() {
        let many: Vec<_> = (0..900)
            .map(|i| json!({"ip": format!("10.0.{}.{}", i / 250, i % 250)}))
            .collect();
        let more: Vec<_> = (0..200)
            .map(|i| json!({"ip": format!("fd00::{i}")}))
            .collect();
        let subsets = json!([{"addresses": many, "ports": [{"port": 80}]},
            {"notReadyAddresses": more, "ports": [{"port": 80}]}]);
        let (acts, skipped) = plan(&endpoints(json!({"name": "e"}), subsets), &[]);
        let sizes: Vec<_> = acts
            .iter()
            .map(|act| match act {
                Act::Create(slice) => slice.endpoints.as_ref().unwrap().len(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!((sizes, skipped), (vec![900, 100], 100));
    }
}
