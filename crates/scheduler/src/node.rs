//! What the scheduler keeps of a node.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{Node, Taint};
use placement::{host_ports::HostPort, resources::Resources};

use crate::pod::Footprint;

/// The number of a node within the scheduler; given to another node once it and its pods are gone.
pub type NodeId = u32;

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

    /// Its taints that keep pods away which do not tolerate them.
    pub fn hard_taints(&self) -> impl Iterator<Item = &Taint> {
        self.taints
            .iter()
            .filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"))
    }

    /// What stands for its region and zone together; empty: it is in none.
    pub fn zone(&self) -> String {
        let label = |name: &str| {
            let stable = self.labels.get(&format!("topology.kubernetes.io/{name}"));
            let old = format!("failure-domain.beta.kubernetes.io/{name}");
            stable
                .or(self.labels.get(&old))
                .cloned()
                .unwrap_or_default()
        };
        match (label("region"), label("zone")) {
            (region, zone) if region.is_empty() && zone.is_empty() => String::new(),
            (region, zone) => format!("{region}:\0:{zone}"),
        }
    }
}

/// A node with what its pods occupy.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// Its number.
    pub id: NodeId,
    /// `None`: there are pods, but no node object.
    pub spec: Option<Arc<NodeSpec>>,
    /// Sum of the requests of its pods.
    pub requested: Resources,
    /// Sum of what its pods are taken to use when nodes are compared.
    pub scored: Resources,
    pods: Vec<Arc<Footprint>>,
    ports: Vec<HostPort>,
}

impl NodeInfo {
    /// A node without pods.
    pub fn new(spec: NodeSpec) -> Self {
        Self {
            spec: Some(Arc::new(spec)),
            ..Self::default()
        }
    }

    /// Its name; empty where there is no node object.
    pub fn name(&self) -> &str {
        self.spec.as_ref().map_or("", |s| &s.name)
    }

    /// Its pods.
    pub fn pods(&self) -> &[Arc<Footprint>] {
        &self.pods
    }

    /// Ports taken by its pods.
    pub fn ports(&self) -> &[HostPort] {
        &self.ports
    }

    /// Adds a pod, which must not be there already.
    pub fn add(&mut self, pod: Arc<Footprint>) {
        self.requested.add(&pod.requested);
        self.scored.add(&pod.scored);
        self.ports.extend(pod.ports.iter().cloned());
        self.pods.push(pod);
    }

    /// Removes a pod.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<Footprint>> {
        let at = self.pods.iter().position(|p| &*p.uid == uid)?;
        let pod = self.pods.swap_remove(at);
        self.requested.remove(&pod.requested);
        self.scored.remove(&pod.scored);
        for port in &pod.ports {
            if let Some(at) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(at);
            }
        }
        Some(pod)
    }
}
