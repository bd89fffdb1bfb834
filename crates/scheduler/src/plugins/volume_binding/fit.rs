//! Whether a node suits the claims of a pod, and how well. Pure but for looking things up.

use std::{collections::BTreeMap, sync::Arc};

use client::Key;

use crate::{
    node::NodeSpec,
    plugins::strategy::Shape,
    storage::{ClassSpec, Storage, VolumeSpec},
};

const WRONG_NODE: &str = "node(s) didn't match PersistentVolume's node affinity";
const LOST: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
pub(super) const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";
const NO_SPACE: &str = "node(s) did not have enough free storage";

/// A pod's claims, looked up once per cycle.
#[derive(Default)]
pub(super) struct Claims {
    /// Bound: the volume, where it exists.
    pub bound: Vec<Option<Arc<VolumeSpec>>>,
    /// To be bound when the pod has a node.
    pub delayed: Vec<Delayed>,
}

/// A claim that is bound when its pod has a node.
pub(super) struct Delayed {
    pub key: Key,
    /// The name of its class, and the class.
    pub class: (String, Option<Arc<ClassSpec>>),
    /// Bytes.
    pub request: i64,
    /// The node that its volume is being made for.
    pub node: Option<String>,
    /// Volumes that would do, wherever they are; smallest first.
    pub volumes: Vec<Arc<VolumeSpec>>,
}

/// What claims get on a node.
#[derive(Default)]
pub(super) struct Place<'a> {
    /// Volumes that are there.
    pub chosen: Vec<(&'a Delayed, &'a VolumeSpec)>,
    /// Volumes to be made, and how much their driver says that there is.
    made: Vec<(&'a Delayed, Option<i64>)>,
}

fn reaches(volume: &VolumeSpec, node: &NodeSpec) -> bool {
    let required = volume.nodes.as_ref();
    required.is_none_or(|r| placement::node_selector::matches(r, &node.name, &node.labels))
}

/// Whether the class makes volumes that this node reaches.
fn provisions(class: &ClassSpec, node: &NodeSpec) -> bool {
    let term_matches = |term: &k8s_openapi::api::core::v1::TopologySelectorTerm| {
        let mut all = term.match_label_expressions.iter().flatten();
        all.all(|e| {
            let value = node.labels.get(&e.key);
            value.is_some_and(|v| e.values.contains(v))
        })
    };
    let topologies = &class.topologies;
    class.provisions() && (topologies.is_empty() || topologies.iter().any(term_matches))
}

/// How much the driver of a class says that there is for a node; `None`: it does not say.
///
/// # Errors
/// There is too little.
fn space(storage: &Storage, one: &Delayed, node: &NodeSpec) -> Result<Option<i64>, ()> {
    let (name, class) = &one.class;
    let Some(class) = class.as_ref().filter(|_| one.request > 0) else {
        return Ok(None);
    };
    let driver = storage
        .drivers
        .get(&Key::cluster(class.provisioner.as_str()));
    if !driver.is_some_and(|d| d.reports_capacity) {
        return Ok(None);
    }
    let enough = storage.capacities.filter(|c| {
        let reaches = c.topology.as_ref();
        c.class == *name
            && c.largest.is_some_and(|most| most >= one.request)
            && reaches.is_some_and(|t| t.matches(Some(&node.labels)))
    });
    enough.first().map(|c| c.capacity).ok_or(())
}

/// What the claims get on a node.
///
/// # Errors
/// Why the node does not suit them.
pub(super) fn place<'a>(
    claims: &'a Claims,
    storage: &Storage,
    node: &NodeSpec,
) -> Result<Place<'a>, Vec<&'static str>> {
    let mut reasons = Vec::new();
    if claims.bound.iter().any(Option::is_none) {
        return Err(vec![LOST]);
    }
    if !claims.bound.iter().flatten().all(|v| reaches(v, node)) {
        reasons.push(WRONG_NODE);
    }
    let mut place = Place::default();
    let (mut unbound, mut full) = (false, false);
    for one in &claims.delayed {
        if let Some(other) = one.node.as_ref().filter(|n| **n != node.name) {
            tracing::trace!(claim = %one.key, other, "its volume is being made elsewhere");
            unbound = true;
            continue;
        }
        let taken = |v: &VolumeSpec| place.chosen.iter().any(|(_, c)| c.name == v.name);
        let mut there = one.volumes.iter().filter(|_| one.node.is_none());
        if let Some(volume) = there.find(|v| !taken(v) && reaches(v, node)) {
            place.chosen.push((one, volume));
            continue;
        }
        let class = one.class.1.as_deref();
        if !class.is_some_and(|c| provisions(c, node)) {
            unbound = true;
            continue;
        }
        match space(storage, one, node) {
            Ok(space) => place.made.push((one, space)),
            Err(()) => full = true,
        }
    }
    reasons.extend(unbound.then_some(NO_VOLUME));
    reasons.extend((full && !unbound).then_some(NO_SPACE));
    if reasons.is_empty() {
        Ok(place)
    } else {
        Err(reasons)
    }
}

impl Place<'_> {
    /// How well the claims fit into what there is, class by class: by the volumes chosen, or by what
    /// drivers say is left.
    pub(super) fn score(&self, shape: &Shape) -> i64 {
        let mut classes: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
        for (one, volume) in &self.chosen {
            let (requested, capacity) = classes.entry(&one.class.0).or_default();
            *requested += one.request;
            *capacity += volume.capacity;
        }
        let left = self.made.iter().filter(|_| self.chosen.is_empty());
        for (one, left) in left {
            let Some(left) = left else { continue };
            let (requested, capacity) = classes.entry(&one.class.0).or_default();
            *requested += one.request;
            *capacity = *left;
        }
        if classes.is_empty() {
            return 0;
        }
        let each = classes.values().map(|(requested, capacity)| {
            let full = *capacity == 0 || requested > capacity;
            let share = || i128::from(*requested) * 100 / i128::from(*capacity);
            shape.at(if full { 100 } else { share() as i64 })
        });
        let sum: i64 = each.sum();
        (sum as f64 / classes.len() as f64).round() as i64
    }
}
