//! Spreading of pods that ask for none: pods of one service or one controller go to different
//! hosts and zones if they can.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use client::{Cache, Key, Scope, Selector};
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, StatefulSet},
        core::v1::{ReplicationController, Service, TopologySpreadConstraint},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::Handle;
use crate::{
    pod::PodInfo,
    terms::{self, PodRule, SpreadConstraint},
};

/// Selectors of controllers that are remembered.
const OWNERS_MAX: usize = 4096;

/// The selectors of services, by namespace and name.
type Services = Arc<Mutex<HashMap<Arc<str>, BTreeMap<Arc<str>, BTreeMap<String, String>>>>>;

/// The selectors of owners, by uid and revision.
type Owners = HashMap<(Box<str>, u64), Option<LabelSelector>>;

/// Where pods without constraints of their own get theirs from.
pub(super) struct DefaultSpread {
    constraints: Vec<TopologySpreadConstraint>,
    system: bool,
    services: Services,
    controllers: Cache<ReplicationController>,
    replica_sets: Cache<ReplicaSet>,
    stateful_sets: Cache<StatefulSet>,
    owners: Mutex<Owners>,
}

fn constraint(max_skew: i32, key: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew,
        topology_key: key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        ..TopologySpreadConstraint::default()
    }
}

impl DefaultSpread {
    /// The system's constraints.
    pub fn system(handle: &Handle) -> Self {
        let constraints = vec![
            constraint(3, "kubernetes.io/hostname"),
            constraint(5, "topology.kubernetes.io/zone"),
        ];
        Self::of(handle, constraints, true)
    }

    /// These constraints; `system`: they are the system's own.
    pub fn of(handle: &Handle, constraints: Vec<TopologySpreadConstraint>, system: bool) -> Self {
        let services = Services::default();
        let to = Arc::clone(&services);
        let all = handle.caches.get::<Service>(Scope::all());
        all.on_change(move |change| {
            let selector = change.new.as_ref().and_then(|e| {
                let service = e.decode::<Service>().ok()?;
                service.spec?.selector.filter(|s| !s.is_empty())
            });
            let mut known = to.lock().unwrap_or_else(PoisonError::into_inner);
            let within = known.entry(Arc::clone(&change.key.namespace)).or_default();
            match selector {
                Some(selector) => within.insert(Arc::clone(&change.key.name), selector),
                None => within.remove(&change.key.name),
            };
        });
        Self {
            constraints,
            system,
            services,
            controllers: handle.caches.get(Scope::all()),
            replica_sets: handle.caches.get(Scope::all()),
            stateful_sets: handle.caches.get(Scope::all()),
            owners: Mutex::default(),
        }
    }

    /// Whether the constraints are the system's own.
    pub fn is_system(&self) -> bool {
        self.system
    }

    /// The constraints of a pod that has none itself; empty: nothing says which pods are of its kind.
    pub fn constraints(&self, pod: &PodInfo) -> Vec<SpreadConstraint> {
        if self.constraints.is_empty() {
            return Vec::new();
        }
        let Some(selector) = self.selector(pod) else {
            return Vec::new();
        };
        let namespace = &pod.key.namespace;
        let mut all = terms::constraints(Some(&self.constraints), namespace, &pod.footprint.labels);
        for constraint in &mut all {
            constraint.rule = PodRule::within(namespace, selector.clone());
        }
        all
    }

    /// What selects the pods of the same services and the same controller.
    fn selector(&self, pod: &PodInfo) -> Option<Selector> {
        let mut whole = LabelSelector::default();
        let labels = &pod.footprint.labels;
        {
            let known = self.services.lock().unwrap_or_else(PoisonError::into_inner);
            let within = known.get(&pod.key.namespace).into_iter().flatten();
            let chosen = within.filter(|(_, s)| s.iter().all(|(k, v)| labels.get(k) == Some(v)));
            for (_, selector) in chosen {
                let all = whole.match_labels.get_or_insert_default();
                all.extend(selector.clone());
            }
        }
        if let Some(owner) = self.owner(pod) {
            let all = whole.match_labels.get_or_insert_default();
            all.extend(owner.match_labels.unwrap_or_default());
            whole.match_expressions = owner.match_expressions;
        }
        let whole = Selector::of(&whole).ok()?;
        (!whole.is_everything()).then_some(whole)
    }

    fn owner(&self, pod: &PodInfo) -> Option<LabelSelector> {
        let owner = pod.controller.as_ref()?;
        let key = Key::new(Arc::clone(&pod.key.namespace), owner.name.as_str());
        let entry = match owner.kind.as_str() {
            "ReplicationController" => self.controllers.entry(&key),
            "ReplicaSet" => self.replica_sets.entry(&key),
            "StatefulSet" => self.stateful_sets.entry(&key),
            _ => None,
        }?;
        let at = (entry.uid.clone(), entry.revision);
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = owners.get(&at) {
            return known.clone();
        }
        let selector = match owner.kind.as_str() {
            "ReplicationController" => entry
                .decode::<ReplicationController>()
                .ok()
                .and_then(|rc| rc.spec?.selector)
                .map(|labels| LabelSelector {
                    match_labels: Some(labels),
                    match_expressions: None,
                }),
            "ReplicaSet" => entry.decode::<ReplicaSet>().ok().map(|rs| rs.spec.selector),
            _ => entry.decode::<StatefulSet>().ok().map(|s| s.spec.selector),
        };
        if owners.len() >= OWNERS_MAX {
            owners.clear();
        }
        owners.insert(at, selector.clone());
        selector
    }
}
