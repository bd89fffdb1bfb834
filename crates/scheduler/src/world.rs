//! The cluster as watched: nodes, and the pods assigned to, assumed on or nominated for them.
//!
//! It is changed in place, one event at a time, and never copied: one loop owns it, and a
//! scheduling cycle reads it between two changes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use client::Key;

use crate::{
    node::{NodeId, NodeInfo, NodeSpec},
    pod::Footprint,
    terms::Labels,
    topology::{Bearers, Counts, Index, Nodes, Query},
};

/// Nodes, their pods, and what is counted of them.
#[derive(Default)]
pub struct World {
    store: Store,
    ids: HashMap<String, NodeId>,
    free: Vec<NodeId>,
    places: HashMap<Arc<str>, Place>,
    nominations: HashMap<NodeId, Vec<Arc<Footprint>>>,
    nominated: HashMap<Arc<str>, NodeId>,
    image_spread: HashMap<String, usize>,
    index: Index,
    /// How many pods on nodes mount each claim.
    claims: HashMap<Key, usize>,
    /// Nodes with taints that keep pods away.
    tainted: usize,
    /// Counts the changes of nodes.
    generation: u64,
}

/// The nodes, apart from what indexes them.
#[derive(Default)]
struct Store {
    nodes: Vec<NodeInfo>,
    /// The generation of each: side by side, as a search looks at those of many nodes and at little else.
    generations: Vec<u64>,
    /// Those that exist, zones taking turns.
    order: Vec<NodeId>,
    /// Whether `order` has to be made afresh.
    stale: bool,
}

struct Place {
    node: NodeId,
    pod: Arc<Footprint>,
    assumed: bool,
}

impl Nodes for Store {
    fn each(&self, see: &mut dyn FnMut(NodeId, &BTreeMap<String, String>)) {
        for node in &self.nodes {
            if let Some(spec) = &node.spec {
                see(node.id, &spec.labels);
            }
        }
    }

    fn each_pod(&self, see: &mut dyn FnMut(NodeId, &Footprint)) {
        for node in &self.nodes {
            for pod in node.pods() {
                see(node.id, pod);
            }
        }
    }
}

impl Store {
    /// One node of each zone in turn, so that a search that ends early has seen all zones.
    fn arrange(&mut self) {
        let mut zones: Vec<(String, Vec<NodeId>)> = Vec::new();
        let mut at: HashMap<String, usize> = HashMap::new();
        for node in &self.nodes {
            let Some(spec) = &node.spec else { continue };
            let zone = spec.zone();
            let i = *at.entry(zone.clone()).or_insert_with(|| {
                zones.push((zone, Vec::new()));
                zones.len() - 1
            });
            zones[i].1.push(node.id);
        }
        let longest = zones.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0);
        self.order = (0..longest)
            .flat_map(|i| zones.iter().filter_map(move |(_, ids)| ids.get(i).copied()))
            .collect();
        self.stale = false;
    }
}

fn key_of(pod: &Footprint, claim: &str) -> Key {
    Key::new(Arc::clone(&pod.key.namespace), claim)
}

impl World {
    /// Makes ready for a cycle.
    pub fn arrange(&mut self) {
        if self.store.stale {
            self.store.arrange();
        }
    }

    /// The nodes that exist, zones taking turns, as of the last [`World::arrange`].
    pub fn order(&self) -> &[NodeId] {
        &self.store.order
    }

    /// How many nodes exist.
    pub fn node_count(&self) -> usize {
        self.store.order.len()
    }

    /// The nodes that exist.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.store.order.iter().map(|id| self.node(*id))
    }

    /// A node by number.
    pub fn node(&self, id: NodeId) -> &NodeInfo {
        &self.store.nodes[id as usize]
    }

    /// Another number after each change of the node.
    pub fn generation(&self, id: NodeId) -> u64 {
        self.store.generations[id as usize]
    }

    /// A node that exists, by name.
    pub fn node_named(&self, name: &str) -> Option<&NodeInfo> {
        let node = self.node(*self.ids.get(name)?);
        node.spec.is_some().then_some(node)
    }

    /// How many nodes have taints that keep pods away.
    pub fn tainted(&self) -> usize {
        self.tainted
    }

    /// How many nodes have an image.
    pub fn image_spread(&self, image: &str) -> usize {
        self.image_spread.get(image).copied().unwrap_or(0)
    }

    fn id(&mut self, name: &str) -> NodeId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.store.nodes.push(NodeInfo::default());
            self.store.generations.push(0);
            (self.store.nodes.len() - 1) as NodeId
        });
        let node = &mut self.store.nodes[id as usize];
        *node = NodeInfo::default();
        node.id = id;
        self.store.generations[id as usize] = 0;
        self.ids.insert(name.to_owned(), id);
        id
    }

    /// A node, to be changed.
    fn node_mut(&mut self, id: NodeId) -> &mut NodeInfo {
        self.generation += 1;
        self.store.generations[id as usize] = self.generation;
        &mut self.store.nodes[id as usize]
    }

    /// A node is there or has changed; answers what was known of it.
    pub fn set_node(&mut self, spec: NodeSpec) -> Option<Arc<NodeSpec>> {
        let id = self.id(&spec.name);
        let old = self.node_mut(id).spec.take();
        let relabelled = old.as_ref().is_none_or(|o| o.labels != spec.labels);
        let images = old.as_ref().is_none_or(|o| o.images != spec.images);
        self.count_out(old.as_deref(), images);
        self.tainted += usize::from(spec.hard_taints().next().is_some());
        if images {
            for image in spec.images.keys() {
                *self.image_spread.entry(image.clone()).or_default() += 1;
            }
        }
        if relabelled {
            self.index.node_labels(id, Some(&spec.labels));
            self.store.stale |= old.as_ref().is_none_or(|o| o.zone() != spec.zone());
        }
        self.store.nodes[id as usize].spec = Some(Arc::new(spec));
        old
    }

    fn count_out(&mut self, old: Option<&NodeSpec>, images: bool) {
        let Some(old) = old else { return };
        self.tainted -= usize::from(old.hard_taints().next().is_some());
        if !images {
            return;
        }
        for image in old.images.keys() {
            if let Some(count) = self.image_spread.get_mut(image) {
                *count -= 1;
                if *count == 0 {
                    self.image_spread.remove(image);
                }
            }
        }
    }

    /// A node is gone; its pods are remembered until they go too.
    pub fn remove_node(&mut self, name: &str) {
        let Some(id) = self.ids.get(name).copied() else {
            return;
        };
        let old = self.node_mut(id).spec.take();
        self.count_out(old.as_deref(), true);
        self.index.node_labels(id, None);
        self.store.stale = true;
        for pod in self.nominations.remove(&id).unwrap_or_default() {
            self.nominated.remove(&pod.uid);
        }
        self.drop_if_empty(id, name);
    }

    fn drop_if_empty(&mut self, id: NodeId, name: &str) {
        let node = &self.store.nodes[id as usize];
        if node.spec.is_none() && node.pods().is_empty() {
            self.ids.remove(name);
            self.free.push(id);
        }
    }

    /// A pod is on a node, as watched or (`assumed`) as just decided. Answers what was known of it
    /// if that has changed.
    pub fn place(
        &mut self,
        pod: Arc<Footprint>,
        node: &str,
        assumed: bool,
    ) -> Option<Arc<Footprint>> {
        let id = self.id(node);
        let mut before = None;
        if let Some(known) = self.places.get_mut(&pod.uid) {
            if known.node == id && known.pod == pod {
                known.assumed = assumed;
                return None;
            }
            before = self.displace(&pod.uid);
        }
        // The node may have gone with its last pod just now.
        let id = self.id(node);
        self.clear_nomination(&pod.uid);
        self.node_mut(id).add(Arc::clone(&pod));
        self.index.add(&pod, id, &self.store);
        for claim in &pod.claims {
            *self.claims.entry(key_of(&pod, &claim.name)).or_default() += 1;
        }
        let place = Place {
            node: id,
            pod: Arc::clone(&pod),
            assumed,
        };
        self.places.insert(Arc::clone(&pod.uid), place);
        before
    }

    /// A pod occupies nothing any more; answers what it occupied.
    pub fn displace(&mut self, uid: &str) -> Option<Arc<Footprint>> {
        let place = self.places.remove(uid)?;
        self.index.remove(&place.pod, place.node);
        for claim in &place.pod.claims {
            let key = key_of(&place.pod, &claim.name);
            if let Some(users) = self.claims.get_mut(&key) {
                *users -= 1;
                if *users == 0 {
                    self.claims.remove(&key);
                }
            }
        }
        let node = self.node_mut(place.node);
        node.remove(uid);
        if node.spec.is_none() && node.pods().is_empty() {
            let gone = self.ids.iter().find(|(_, id)| **id == place.node);
            if let Some(name) = gone.map(|(name, _)| name.clone()) {
                self.drop_if_empty(place.node, &name);
            }
        }
        Some(place.pod)
    }

    /// How many pods on nodes mount a claim.
    pub fn users_of(&self, claim: &Key) -> usize {
        self.claims.get(claim).copied().unwrap_or(0)
    }

    /// Takes back an assumption, unless it has come true meanwhile.
    pub fn forget(&mut self, uid: &str) -> Option<Arc<Footprint>> {
        self.places.get(uid).filter(|p| p.assumed)?;
        self.displace(uid)
    }

    /// Whether the pod is on a node, or assumed to be.
    pub fn is_placed(&self, uid: &str) -> bool {
        self.places.contains_key(uid)
    }

    /// Room on a node is being made for a pod.
    pub fn nominate(&mut self, pod: Arc<Footprint>, node: &str) {
        self.clear_nomination(&pod.uid);
        let Some(id) = self.node_named(node).map(|n| n.id) else {
            return;
        };
        self.nominated.insert(Arc::clone(&pod.uid), id);
        self.nominations.entry(id).or_default().push(pod);
    }

    /// No room is being made for a pod any more.
    pub fn clear_nomination(&mut self, uid: &str) {
        if let Some(id) = self.nominated.remove(uid)
            && let Some(pods) = self.nominations.get_mut(&id)
        {
            pods.retain(|p| &*p.uid != uid);
            if pods.is_empty() {
                self.nominations.remove(&id);
            }
        }
    }

    /// No room is being made on a node any more for pods of lower priority than this; answers them.
    pub fn outbid(&mut self, node: &str, priority: i32) -> Vec<Arc<Footprint>> {
        let id = self.node_named(node).map(|n| n.id);
        let lesser: Vec<_> = id
            .map_or(&[][..], |id| self.nominated_for(id))
            .iter()
            .filter(|p| p.priority < priority)
            .cloned()
            .collect();
        for pod in &lesser {
            self.clear_nomination(&pod.uid);
        }
        lesser
    }

    /// The node where room is being made for a pod.
    pub fn nomination(&self, uid: &str) -> Option<&NodeInfo> {
        self.nominated.get(uid).map(|id| self.node(*id))
    }

    /// The pods for which room on a node is being made.
    pub fn nominated_for(&self, node: NodeId) -> &[Arc<Footprint>] {
        self.nominations.get(&node).map_or(&[], Vec::as_slice)
    }

    /// The labels of a namespace are these.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        self.index.namespace_labels(name, labels);
    }

    /// The labels of a namespace.
    pub fn namespace(&self, name: &str) -> Option<&Labels> {
        self.index.namespaces.get(name)
    }

    /// How many pods match, and where.
    pub fn count(&mut self, query: &Arc<Query>) -> Counts {
        self.index.matched(query, &self.store)
    }

    /// The pods whose own terms are about `pod`.
    pub fn bearers(&self, pod: &Footprint) -> Vec<Bearers> {
        self.index.bearers(pod)
    }

    /// Whether a query counts a pod.
    pub fn counts(&self, query: &Query, pod: &Footprint) -> bool {
        query.matches(pod, &self.index.namespaces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use placement::resources::Resources;

    fn pod(uid: &str, cpu: i64) -> Arc<Footprint> {
        let requested = Resources {
            milli_cpu: cpu,
            ..Default::default()
        };
        Arc::new(Footprint {
            requested,
            ..Footprint::bare(uid)
        })
    }

    fn named(name: &str, zone: &str) -> NodeSpec {
        NodeSpec {
            name: name.into(),
            labels: [("topology.kubernetes.io/zone".into(), zone.into())].into(),
            ..Default::default()
        }
    }

    fn cpu(world: &mut World) -> Vec<i64> {
        world.arrange();
        world.nodes().map(|n| n.requested.milli_cpu).collect()
    }

    #[test]
    fn sums_follow_the_pods() {
        let mut world = World::default();
        world.set_node(named("n", "z"));
        world.place(pod("a", 100), "n", true);
        assert_eq!(cpu(&mut world), [100]);
        world.place(pod("a", 100), "n", false);
        world.place(pod("b", 50), "n", false);
        assert_eq!(cpu(&mut world), [150]);
        world.forget("a");
        assert!(world.is_placed("a"), "it came true");
        world.displace("a");
        assert_eq!(cpu(&mut world), [50]);
    }

    #[test]
    fn a_node_that_went_is_not_seen_but_its_pods_are_known() {
        let mut world = World::default();
        world.place(pod("a", 100), "n", false);
        assert!(cpu(&mut world).is_empty());
        world.set_node(named("n", "z"));
        assert_eq!(cpu(&mut world), [100]);
        world.remove_node("n");
        assert!(cpu(&mut world).is_empty());
        world.displace("a");
        assert!(world.ids.is_empty());
        assert_eq!(world.free, [0]);
    }

    #[test]
    fn zones_take_turns() {
        let mut world = World::default();
        for (name, zone) in [("a", "x"), ("b", "x"), ("c", "y"), ("d", "x"), ("e", "y")] {
            world.set_node(named(name, zone));
        }
        world.arrange();
        let names: Vec<_> = world.nodes().map(NodeInfo::name).collect();
        assert_eq!(names, ["a", "c", "b", "e", "d"]);
    }
}
