//! What the scheduler keeps of a node, and the snapshot that a cycle works on.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::{
    pod::{Footprint, HostPort},
    resources::Resources,
};

/// The parts of a node object that decide about pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSpec {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Whether it is cordoned.
    pub unschedulable: bool,
    /// What its pods may use together.
    pub allocatable: Resources,
    /// Sizes in bytes of the images it has, by name.
    pub images: BTreeMap<String, i64>,
}

impl NodeSpec {
    /// The projection of a node.
    pub fn of(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let mut images = BTreeMap::new();
        for image in status.and_then(|s| s.images.as_ref()).into_iter().flatten() {
            for name in image.names.iter().flatten() {
                images.insert(name.clone(), image.size_bytes.unwrap_or(0));
            }
        }
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.and_then(|s| s.taints.clone()).unwrap_or_default(),
            unschedulable: spec.and_then(|s| s.unschedulable).unwrap_or(false),
            allocatable: Resources::of(status.and_then(|s| s.allocatable.as_ref())),
            images,
        }
    }
}

/// A node with what its pods occupy.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// `None`: there are pods, but no node object.
    pub spec: Option<Arc<NodeSpec>>,
    /// Sum of the requests of its pods.
    pub requested: Resources,
    /// Sum of what its pods are taken to use when nodes are compared.
    pub scored: Resources,
    pods: BTreeMap<Arc<str>, Arc<Footprint>>,
}

impl NodeInfo {
    /// A node without pods.
    pub fn new(spec: NodeSpec) -> Self {
        Self {
            spec: Some(Arc::new(spec)),
            ..Self::default()
        }
    }

    /// Its pods.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Footprint>> {
        self.pods.values()
    }

    /// How many pods it has.
    pub fn pod_count(&self) -> usize {
        self.pods.len()
    }

    /// Ports taken by its pods.
    pub fn ports(&self) -> impl Iterator<Item = &HostPort> {
        self.pods.values().flat_map(|p| &p.ports)
    }

    /// Adds a pod, in place of what was known of it.
    pub fn add(&mut self, pod: Arc<Footprint>) {
        self.remove(&pod.uid);
        self.requested.add(&pod.requested);
        self.scored.add(&pod.scored);
        self.pods.insert(Arc::clone(&pod.uid), pod);
    }

    /// Removes a pod.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<Footprint>> {
        let pod = self.pods.remove(uid)?;
        self.requested.remove(&pod.requested);
        self.scored.remove(&pod.scored);
        Some(pod)
    }
}

/// The nodes as one cycle sees them. Cheap to clone.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// Nodes that exist, in the order they came.
    pub nodes: Vec<Arc<NodeInfo>>,
    /// How many nodes have each image.
    pub image_spread: Arc<HashMap<String, usize>>,
}

/// The cluster as watched: nodes, and the pods assigned to or assumed on them.
#[derive(Default)]
pub struct World {
    nodes: BTreeMap<String, Arc<NodeInfo>>,
    places: HashMap<Arc<str>, Place>,
    image_spread: Arc<HashMap<String, usize>>,
}

struct Place {
    node: String,
    assumed: bool,
}

impl World {
    /// The present state, sharing all memory with it.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            nodes: self
                .nodes
                .values()
                .filter(|n| n.spec.is_some())
                .cloned()
                .collect(),
            image_spread: Arc::clone(&self.image_spread),
        }
    }

    /// A node is there or has changed; answers what was known of it.
    pub fn set_node(&mut self, spec: NodeSpec) -> Option<Arc<NodeSpec>> {
        let node = Arc::make_mut(self.nodes.entry(spec.name.clone()).or_default());
        let images = spec.images.keys().cloned().collect::<Vec<_>>();
        let old = node.spec.replace(Arc::new(spec));
        let same = old
            .as_ref()
            .is_some_and(|o| o.images.keys().eq(images.iter()));
        if !same {
            self.count_images();
        }
        old
    }

    /// A node is gone; its pods are remembered until they go too.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            Arc::make_mut(node).spec = None;
            if node.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
        self.count_images();
    }

    fn count_images(&mut self) {
        let mut spread = HashMap::new();
        for spec in self.nodes.values().filter_map(|n| n.spec.as_ref()) {
            for image in spec.images.keys() {
                *spread.entry(image.clone()).or_default() += 1;
            }
        }
        self.image_spread = Arc::new(spread);
    }

    /// A pod is on a node, as watched or (`assumed`) as just decided.
    pub fn place(&mut self, pod: Arc<Footprint>, node: &str, assumed: bool) {
        let known = self.places.get(&pod.uid);
        if known.is_some_and(|p| p.node != node) {
            self.displace(&pod.uid.clone());
        }
        self.places.insert(
            Arc::clone(&pod.uid),
            Place {
                node: node.to_owned(),
                assumed,
            },
        );
        Arc::make_mut(self.nodes.entry(node.to_owned()).or_default()).add(pod);
    }

    /// A pod occupies nothing any more; answers where it was.
    pub fn displace(&mut self, uid: &str) -> Option<String> {
        let place = self.places.remove(uid)?;
        if let Some(node) = self.nodes.get_mut(&place.node) {
            let info = Arc::make_mut(node);
            info.remove(uid);
            if info.spec.is_none() && info.pods.is_empty() {
                self.nodes.remove(&place.node);
            }
        }
        Some(place.node)
    }

    /// Takes back an assumption, unless it has come true meanwhile.
    pub fn forget(&mut self, uid: &str) {
        if self.places.get(uid).is_some_and(|p| p.assumed) {
            self.displace(uid);
        }
    }

    /// Whether the pod is on a node, or assumed to be.
    pub fn is_placed(&self, uid: &str) -> bool {
        self.places.contains_key(uid)
    }

    /// Whether a pod of this name is on a node.
    pub fn has_node(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|n| n.spec.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, cpu: i64) -> Arc<Footprint> {
        let requested = Resources {
            milli_cpu: cpu,
            ..Default::default()
        };
        Arc::new(Footprint {
            uid: uid.into(),
            requested,
            ..Default::default()
        })
    }

    #[test]
    fn snapshots_do_not_change_and_sums_follow_the_pods() {
        let mut world = World::default();
        world.set_node(NodeSpec {
            name: "n".into(),
            ..Default::default()
        });
        world.place(pod("a", 100), "n", true);
        let before = world.snapshot();
        world.place(pod("a", 100), "n", false);
        world.place(pod("b", 50), "n", false);
        assert_eq!(before.nodes[0].requested.milli_cpu, 100);
        assert_eq!(world.snapshot().nodes[0].requested.milli_cpu, 150);
        world.forget("a");
        assert!(world.is_placed("a"), "it came true");
        world.displace("a");
        assert_eq!(world.snapshot().nodes[0].requested.milli_cpu, 50);
    }

    #[test]
    fn a_node_that_went_is_not_in_the_snapshot_but_its_pods_are_known() {
        let mut world = World::default();
        world.place(pod("a", 100), "n", false);
        assert!(world.snapshot().nodes.is_empty());
        world.set_node(NodeSpec {
            name: "n".into(),
            ..Default::default()
        });
        assert_eq!(world.snapshot().nodes[0].requested.milli_cpu, 100);
        world.remove_node("n");
        assert!(world.snapshot().nodes.is_empty());
        world.displace("a");
        assert!(world.nodes.is_empty());
    }
}
