//! EndpointSlices: at most a hundred endpoints each, changed as little as possible.

use std::{collections::BTreeMap, sync::Arc};

use client::{Cache, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, events, write};
use k8s_openapi::{
    api::{
        core::v1::{Node, Pod, Service},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Api, api::PostParams};
use serde_json::json;

use super::{
    HEADLESS, TRIGGER_TIME, View, ZONE,
    backends::{self, Backend, Groups, Port},
    hints::{self, Policy},
    selector_of,
    topology::Topology,
};
use crate::{Context, claim};

/// Endpoints of one slice.
const SLICE_MAX: usize = 100;
pub(super) const SERVICE: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";

/// What is to be done about one slice.
#[derive(Debug, PartialEq)]
pub(super) enum Act {
    Create(EndpointSlice),
    Update(EndpointSlice),
    Delete(String),
}

/// Whom slices are about.
pub(super) struct Whose {
    /// Where they are.
    pub namespace: Option<String>,
    /// What their names begin with.
    pub name: String,
    /// What they say of themselves.
    pub labels: BTreeMap<String, String>,
    /// What goes before they go.
    pub owner: OwnerReference,
}

impl Whose {
    fn of(service: &Service) -> Self {
        Self {
            namespace: service.metadata.namespace.clone(),
            name: service.metadata.name.clone().unwrap_or_default(),
            labels: labels(service),
            owner: claim::owner_reference(service),
        }
    }
}

/// Endpoints by the ports they serve.
pub(super) type Wanted = BTreeMap<Vec<Port>, Vec<Endpoint>>;

/// What a service wants of its backends. One slice stays even if nobody answers.
fn wanted(service: &Service, groups: &Groups) -> Wanted {
    let spec = service.spec.as_ref();
    let all = spec
        .and_then(|s| s.publish_not_ready_addresses)
        .unwrap_or(false);
    let mut wanted: Wanted = groups
        .iter()
        .map(|(ports, backends)| {
            let endpoints = backends.iter().map(|b| endpoint(b, all));
            (ports.clone(), endpoints.collect())
        })
        .collect();
    if wanted.is_empty() {
        wanted.insert(Vec::new(), Vec::new());
    }
    wanted
}

/// Decides for one address family. `existing` are the slices of that family.
pub(super) fn plan(
    whose: &Whose,
    family: &str,
    groups: &Wanted,
    existing: &[EndpointSlice],
) -> Vec<Act> {
    let mut acts = Vec::new();
    let mut used: Vec<bool> = vec![false; existing.len()];
    for (ports, endpoints) in groups {
        let ports: Vec<EndpointPort> = ports.iter().map(slice_port).collect();
        let mut wanted: BTreeMap<(String, String), Endpoint> =
            endpoints.iter().map(|e| (key_of(e), e.clone())).collect();
        let same_ports = |s: &EndpointSlice| {
            let mut own = s.ports.clone().unwrap_or_default();
            own.sort_by(|a, b| a.name.cmp(&b.name));
            let mut want = ports.clone();
            want.sort_by(|a, b| a.name.cmp(&b.name));
            own == want
        };
        let mut filled: Vec<(usize, Vec<Endpoint>)> = Vec::new();
        for (i, slice) in existing.iter().enumerate() {
            if !used[i] && same_ports(slice) {
                used[i] = true;
                let kept = slice.endpoints.iter().flatten();
                filled.push((i, kept.filter_map(|e| wanted.remove(&key_of(e))).collect()));
            }
        }
        let mut rest = wanted.into_values();
        for (_, endpoints) in &mut filled {
            let room = SLICE_MAX.saturating_sub(endpoints.len());
            endpoints.extend(rest.by_ref().take(room));
        }
        let rest: Vec<Endpoint> = rest.collect();
        let mut left = filled.len();
        for (i, endpoints) in filled {
            // One slice stays even if it is empty: it says that nobody answers.
            if endpoints.is_empty() && (left > 1 || !rest.is_empty()) {
                left -= 1;
                acts.push(Act::Delete(
                    existing[i].metadata.name.clone().unwrap_or_default(),
                ));
            } else if let Some(changed) = changed(whose, &existing[i], endpoints) {
                acts.push(Act::Update(changed));
            }
        }
        let none_there = left == 0 && rest.is_empty();
        for chunk in rest.chunks(SLICE_MAX).chain(none_there.then_some(&[][..])) {
            acts.push(Act::Create(new_slice(
                whose,
                family,
                &ports,
                chunk.to_vec(),
            )));
        }
    }
    let stale = existing.iter().zip(&used).filter(|(_, used)| !**used);
    acts.extend(stale.map(|(s, _)| Act::Delete(s.metadata.name.clone().unwrap_or_default())));
    acts
}

fn slice_port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.port),
        app_protocol: port.app_protocol.clone(),
    }
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

pub(super) fn key_of(endpoint: &Endpoint) -> (String, String) {
    let uid = endpoint.target_ref.as_ref().and_then(|t| t.uid.clone());
    (
        endpoint.addresses.first().cloned().unwrap_or_default(),
        uid.unwrap_or_default(),
    )
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

fn changed(whose: &Whose, old: &EndpointSlice, endpoints: Vec<Endpoint>) -> Option<EndpointSlice> {
    let labels = Some(whose.labels.clone());
    let same_endpoints = old.endpoints.as_deref().unwrap_or_default() == endpoints;
    if same_endpoints && old.metadata.labels == labels {
        return None;
    }
    let mut new = old.clone();
    new.endpoints = Some(endpoints);
    new.metadata.labels = labels;
    Some(new)
}

fn new_slice(
    whose: &Whose,
    family: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", whose.name)),
            namespace: whose.namespace.clone(),
            labels: Some(whose.labels.clone()),
            owner_references: Some(vec![whose.owner.clone()]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        ports: Some(ports.to_vec()),
        endpoints: Some(endpoints),
    }
}

struct Slices {
    context: Context,
    recorder: Recorder,
    services: Cache<Service>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    slices: Cache<EndpointSlice>,
    topology: Arc<Topology>,
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
            return Ok(Requeue::OnChange);
        };
        let Some(selector) = selector_of(&service) else {
            return Ok(Requeue::OnChange);
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::OnChange);
        }
        let pods = self.pods.list_matching(&key.namespace, &selector);
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
            acts.extend(plan(&Whose::of(&service), family, &groups, &existing));
        }
        let writer = Writer {
            context: &self.context,
            slices: &self.slices,
        };
        for act in acts {
            if let Err(e) = writer.act(&key.namespace, act).await {
                let message = format!("Error updating Endpoint Slices for Service {key}: {e}");
                self.recorder
                    .warning(&service, "FailedToUpdateEndpointSlices", message);
                return Err(e);
            }
        }
        Ok(Requeue::OnChange)
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
            let before: BTreeMap<_, _> = existing.map(|e| (key_of(e), hints::zone(e))).collect();
            let before = |e: &Endpoint| before.get(&key_of(e)).cloned().flatten();
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
    /// For the client and the time.
    pub context: &'a Context,
    /// Has to show what was written.
    pub slices: &'a Cache<EndpointSlice>,
}

impl Writer<'_> {
    /// Carries out one act.
    pub async fn act(&self, namespace: &str, act: Act) -> Result<(), Error> {
        let api: Api<EndpointSlice> = write::namespaced(&self.context.client, namespace);
        let now = json!(api::time::format(self.context.now()));
        let stamp = |slice: &mut EndpointSlice| {
            let all = slice.metadata.annotations.get_or_insert_default();
            all.insert(
                TRIGGER_TIME.into(),
                now.as_str().unwrap_or_default().to_owned(),
            );
        };
        let written = match act {
            Act::Create(mut slice) => {
                stamp(&mut slice);
                match api.create(&PostParams::default(), &slice).await {
                    Err(e) if client::is_forbidden_by_termination(&e) => return Ok(()),
                    other => other?,
                }
            }
            Act::Update(mut slice) => {
                stamp(&mut slice);
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
    use super::*;

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "n", "uid": "s", "labels": {"l": "m"}},
            "spec": {"clusterIP": "None"},
        }))
        .unwrap()
    }

    fn plan_for(service: &Service, groups: &Groups, existing: &[EndpointSlice]) -> Vec<Act> {
        let groups = wanted(service, groups);
        plan(&Whose::of(service), "IPv4", &groups, existing)
    }

    fn groups(count: usize) -> Groups {
        let port = Port {
            name: "".into(),
            protocol: "TCP".into(),
            port: 80,
            app_protocol: None,
        };
        let backend = |i: usize| Backend {
            address: format!("10.0.{}.{}", i / 250, i % 250),
            serving: true,
            terminating: false,
            node: None,
            zone: None,
            hostname: None,
            target: Default::default(),
        };
        Groups::from([(vec![port], (0..count).map(backend).collect())])
    }

    /// Carries a plan out.
    fn apply(existing: &mut Vec<EndpointSlice>, acts: Vec<Act>) -> usize {
        let count = acts.len();
        for act in acts {
            match act {
                Act::Create(mut s) => {
                    s.metadata.name = Some(format!("s-{}", existing.len()));
                    existing.push(s);
                }
                Act::Update(s) => {
                    let at = existing
                        .iter()
                        .position(|e| e.metadata.name == s.metadata.name);
                    existing[at.unwrap()] = s;
                }
                Act::Delete(name) => existing.retain(|e| e.metadata.name != Some(name.clone())),
            }
        }
        count
    }

    fn sizes(existing: &[EndpointSlice]) -> Vec<usize> {
        existing
            .iter()
            .map(|s| s.endpoints.as_ref().unwrap().len())
            .collect()
    }

    #[test]
    fn slices_fill_up_and_change_only_where_needed() {
        let service = service();
        let mut slices = Vec::new();
        let mut go = |n: usize| {
            let acts = plan_for(&service, &groups(n), &slices);
            let count = apply(&mut slices, acts);
            (count, sizes(&slices))
        };
        assert_eq!(go(250), (3, vec![100, 100, 50]));
        assert_eq!(go(250), (0, vec![100, 100, 50]));
        assert_eq!(go(251), (1, vec![100, 100, 51]));
        let (count, after) = go(100);
        assert_eq!(after.iter().sum::<usize>(), 100);
        assert!(
            count <= 3 && after.iter().all(|n| *n <= SLICE_MAX),
            "{count} {after:?}"
        );
        assert_eq!(go(0).1.iter().sum::<usize>(), 0);
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
        let again = plan_for(&service(), &Groups::new(), std::slice::from_ref(slice));
        assert_eq!(again, []);
        let some = plan_for(&service(), &groups(1), std::slice::from_ref(slice));
        assert_eq!(some.len(), 2, "another port set: {some:?}");
    }

    #[test]
    fn conditions() {
        let mut backend = groups(1).into_values().next().unwrap().remove(0);
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
