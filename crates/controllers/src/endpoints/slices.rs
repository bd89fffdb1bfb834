//! EndpointSlices of the services that select pods.

use std::{collections::BTreeMap, sync::Arc};

use client::{Cache, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, events, write};
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointSlice},
};
use kube::{Api, api::PostParams};

use super::{
    HEADLESS, View, ZONE,
    backends::{self, Backend, Groups},
    hints::{self, Policy},
    packing::{self, Act, Wanted, Whose},
    selector_of,
    topology::Topology,
    trigger::{Trigger, Triggers},
};
use crate::{Context, claim, pods};

/// Endpoints of one slice.
const SLICE_MAX: usize = 100;
pub(super) const SERVICE: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// The reason of an event about slices that do not say all.
const FAILED: &str = "FailedToUpdateEndpointSlices";

fn whose(service: &Service) -> Whose {
    Whose {
        namespace: service.metadata.namespace.clone(),
        name: service.metadata.name.clone().unwrap_or_default(),
        labels: labels(service),
        annotations: None,
        owner: claim::owner_reference(service),
        most: SLICE_MAX,
        says_nobody: true,
    }
}

/// What a service wants of its backends.
fn wanted(service: &Service, groups: &Groups) -> Wanted {
    let spec = service.spec.as_ref();
    let all = spec
        .and_then(|s| s.publish_not_ready_addresses)
        .unwrap_or(false);
    groups
        .iter()
        .map(|(ports, backends)| {
            let endpoints = backends.iter().map(|b| endpoint(b, all));
            (ports.clone(), endpoints.collect())
        })
        .collect()
}

fn endpoint(backend: &Backend, publish_all: bool) -> Endpoint {
    Endpoint {
        addresses: vec![backend.address.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(publish_all || backend.serving && !backend.terminating),
            serving: Some(backend.serving),
            terminating: Some(backend.terminating),
        }),
        hostname: backend.hostname.clone(),
        node_name: backend.node.clone(),
        zone: backend.zone.clone(),
        target_ref: Some(backend.target.clone()),
        ..Endpoint::default()
    }
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(
        SERVICE.into(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

struct Slices {
    context: Context,
    recorder: Recorder,
    services: Cache<Service>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    slices: Cache<EndpointSlice>,
    topology: Arc<Topology>,
    triggers: Triggers,
}

pub(super) async fn run(context: Context, view: View, queue: Queue<Key>) {
    let slices = context.caches.get::<EndpointSlice>(Scope::all());
    let to = queue.clone();
    slices.on_change(move |change| {
        let Some(latest) = change.latest() else {
            return;
        };
        let ours = latest.label(MANAGED_BY) == Some(MANAGER);
        if let Some(service) = latest.label(SERVICE).filter(|_| ours) {
            to.add(Key::new(change.key.namespace.clone(), service));
        }
    });
    slices.synced().await;
    let View {
        services,
        pods,
        nodes,
    } = view;
    let recorder = context.recorder_as("endpoint-slice-controller");
    let topology = Topology::watch(&services, &pods, &nodes, &queue);
    let reconciler = Slices {
        context: context.clone(),
        recorder,
        services,
        pods,
        nodes,
        slices,
        topology,
        triggers: Triggers::default(),
    };
    context.work(reconciler, queue).await;
}

impl Reconcile for Slices {
    type Key = Key;

    fn name(&self) -> &'static str {
        super::SLICES.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(service) = self.services.get(key)? else {
            self.topology.forget(key);
            self.triggers.forget(key);
            return Ok(Requeue::OnChange);
        };
        let Some(selector) = selector_of(&service) else {
            return Ok(Requeue::OnChange);
        };
        let pods = self.pods.list_matching(&key.namespace, &selector);
        let trigger = self.triggers.look(key, &service, &pods);
        self.tell_of_lost(key, &service, &pods);
        let own: Vec<EndpointSlice> = owned(&self.slices, key, MANAGER);
        let families = backends::families(&service);
        let is_of = |s: &EndpointSlice| {
            let owners = s.metadata.owner_references.iter().flatten();
            let of_service = owners
                .map(|o| &o.uid)
                .any(|uid| service.metadata.uid.as_ref() == Some(uid));
            of_service && families.contains(&s.address_type)
        };
        let (own, strange): (Vec<_>, Vec<_>) = own.into_iter().partition(is_of);
        let name = |s: EndpointSlice| s.metadata.name.unwrap_or_default();
        let mut acts: Vec<Act> = strange.into_iter().map(|s| Act::Delete(name(s))).collect();
        for family in &families {
            let groups =
                backends::group(&service, &pods, family, |node| self.zone_of(&service, node));
            let existing: Vec<EndpointSlice> = own
                .iter()
                .filter(|s| s.address_type == *family)
                .cloned()
                .collect();
            let mut groups = wanted(&service, &groups);
            self.hint(&service, key, family, &mut groups, &existing);
            acts.extend(packing::plan(&whose(&service), family, &groups, &existing));
        }
        if service.metadata.deletion_timestamp.is_some() {
            // They would be deleted as soon as they are made.
            acts.retain(|act| !matches!(act, Act::Create(_)));
        }
        acts.iter_mut().for_each(|act| stamp(act, &trigger));
        let writer = Writer {
            context: &self.context,
            slices: &self.slices,
        };
        for act in acts {
            if let Err(e) = writer.act(&key.namespace, act).await {
                let message = format!("Error updating Endpoint Slices for Service {key}: {e}");
                self.recorder.warning(&service, FAILED, message);
                return Err(e);
            }
        }
        self.triggers.told(key, trigger);
        Ok(Requeue::OnChange)
    }
}

/// Says in a slice that is written why it is.
fn stamp(act: &mut Act, trigger: &Trigger) {
    if let Act::Create(slice) | Act::Update(slice) = act {
        trigger.stamp(slice.metadata.annotations.get_or_insert_default());
    }
}

impl Slices {
    /// The zone of a node, if it has one; `None`: the pods of a node that is not there answer nobody.
    fn zone_of(&self, service: &Service, node: &str) -> Option<Option<String>> {
        let spec = service.spec.as_ref();
        let all = spec.and_then(|s| s.publish_not_ready_addresses);
        match self.nodes.entry(&Key::cluster(node)) {
            Some(node) => Some(node.label(ZONE).map(str::to_owned)),
            None => all.unwrap_or(false).then_some(None),
        }
    }

    /// Tells which pods are left out because their node is not there. That of a node that comes is looked at anew.
    fn tell_of_lost(&self, key: &Key, service: &Service, pods: &[Pod]) {
        let lost = pods.iter().filter(|pod| {
            let node = pods::node(pod);
            !pods::is_terminal(pod) && !node.is_empty() && self.zone_of(service, node).is_none()
        });
        let words = lost.map(|pod| {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let node = pods::node(pod);
            format!("skipping Pod {name} for Service {key}: Node {node} Not Found")
        });
        let words: Vec<String> = words.collect();
        let words = match words.as_slice() {
            [] => return,
            [one] => one.clone(),
            all => format!("[{}]", all.join(", ")),
        };
        let message = format!("Error updating Endpoint Slices for Service {key}: {words}");
        self.recorder.warning(service, FAILED, message);
    }

    /// Says who is to use which endpoint, and tells where that changed.
    fn hint(
        &self,
        service: &Service,
        key: &Key,
        family: &str,
        groups: &mut Wanted,
        existing: &[EndpointSlice],
    ) {
        let mut endpoints: Vec<&mut Endpoint> = groups.values_mut().flatten().collect();
        let policy = Policy::of(service);
        let told = if policy == Policy::Auto {
            let existing = existing.iter().flat_map(|s| s.endpoints.iter().flatten());
            let before: BTreeMap<_, _> = existing
                .map(|e| (packing::key_of(e), hints::zone(e)))
                .collect();
            let before = |e: &Endpoint| before.get(&packing::key_of(e)).cloned().flatten();
            let shares = self.topology.shares();
            let outcome = hints::share_out(&mut endpoints, shares.as_ref(), before);
            self.topology.note(key, family, outcome)
        } else {
            endpoints.iter_mut().for_each(|e| hints::near(e, policy));
            self.topology.drop_out(key, family)
        };
        if let Some((kind, reason, message)) = told {
            let about = events::reference(service);
            let message = format!("{message}, addressType: {family}");
            self.recorder.event(&about, kind, reason, message);
        }
    }
}

/// The slices of a service that this manager keeps.
pub(super) fn owned(
    slices: &Cache<EndpointSlice>,
    service: &Key,
    manager: &str,
) -> Vec<EndpointSlice> {
    let labelled = slices.entries_labelled(SERVICE, &service.name);
    let own: Vec<_> = labelled
        .into_iter()
        .filter(|e| e.key.namespace == service.namespace && !e.deleting)
        .filter(|e| e.label(MANAGED_BY) == Some(manager))
        .collect();
    client::cache::decode_all(&own)
}

/// Carries plans out.
pub(super) struct Writer<'a> {
    /// For the client.
    pub context: &'a Context,
    /// Has to show what was written.
    pub slices: &'a Cache<EndpointSlice>,
}

impl Writer<'_> {
    /// Carries out one act.
    pub async fn act(&self, namespace: &str, act: Act) -> Result<(), Error> {
        let api: Api<EndpointSlice> = write::namespaced(&self.context.client, namespace);
        let written = match act {
            Act::Create(slice) => match api.create(&PostParams::default(), &slice).await {
                Err(e) if client::is_forbidden_by_termination(&e) => return Ok(()),
                other => other?,
            },
            Act::Update(slice) => {
                let name = slice.metadata.name.clone().unwrap_or_default();
                let replaced = api.replace(&name, &PostParams::default(), &slice).await;
                match write::tolerate_missing(replaced)? {
                    Some(written) => written,
                    None => return Ok(()),
                }
            }
            Act::Delete(name) => {
                write::delete(&api, &name, None).await?;
                let key = Key::new(namespace, name);
                return self
                    .slices
                    .until(&key, |e| e.is_none_or(|e| e.deleting))
                    .await;
            }
        };
        self.slices.caught_up(write::revision_of(&written)).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::backends::Port, *};

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "n", "uid": "s", "labels": {"l": "m"}},
            "spec": {"clusterIP": "None"},
        }))
        .unwrap()
    }

    fn plan_for(service: &Service, groups: &Groups, existing: &[EndpointSlice]) -> Vec<Act> {
        let groups = wanted(service, groups);
        packing::plan(&whose(service), "IPv4", &groups, existing)
    }

    fn backend() -> Backend {
        Backend {
            address: "10.0.0.1".into(),
            serving: true,
            terminating: false,
            node: None,
            zone: None,
            hostname: None,
            target: Default::default(),
        }
    }

    #[test]
    fn nobody_answers_is_said_by_an_empty_slice() {
        let acts = plan_for(&service(), &Groups::new(), &[]);
        let [Act::Create(slice)] = acts.as_slice() else {
            panic!("{acts:?}")
        };
        assert_eq!(slice.endpoints, Some(vec![]));
        let labels = slice.metadata.labels.as_ref().unwrap();
        assert_eq!(
            (
                labels[SERVICE].as_str(),
                labels[HEADLESS].as_str(),
                labels["l"].as_str()
            ),
            ("s", "", "m")
        );
        let mut empty = slice.clone();
        empty.metadata.name = Some("s-1".into());
        let there = std::slice::from_ref(&empty);
        assert_eq!(plan_for(&service(), &Groups::new(), there), []);
        let port = Port {
            name: "".into(),
            protocol: "TCP".into(),
            port: 80,
            app_protocol: None,
        };
        let groups = Groups::from([(vec![port], vec![backend()])]);
        let some = plan_for(&service(), &groups, there);
        let [Act::Update(filled)] = some.as_slice() else {
            panic!("it takes the place of the empty one: {some:?}");
        };
        assert_eq!(filled.metadata.name.as_deref(), Some("s-1"));
        assert_eq!(filled.endpoints.as_ref().unwrap().len(), 1);
        let none = plan_for(&service(), &Groups::new(), std::slice::from_ref(filled));
        assert_eq!(none, [Act::Update(empty)], "and gives it back");
    }

    #[test]
    fn conditions() {
        let mut backend = backend();
        let of = |b: &Backend, all| {
            let c = endpoint(b, all).conditions.unwrap();
            (c.ready, c.serving, c.terminating)
        };
        assert_eq!(of(&backend, false), (Some(true), Some(true), Some(false)));
        backend.terminating = true;
        assert_eq!(of(&backend, false), (Some(false), Some(true), Some(true)));
        backend.serving = false;
        assert_eq!(of(&backend, true), (Some(true), Some(false), Some(true)));
    }
}
