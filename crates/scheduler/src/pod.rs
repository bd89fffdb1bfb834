//! What the scheduler keeps of a pod: a compact projection.

use std::sync::Arc;

use client::Key;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NodeAffinity, ObjectReference, Pod, PodSpec, Toleration};
use placement::{
    host_ports::{self, HostPort},
    resources::{self, Resources},
};

use crate::{
    devices::extended::{self, Container},
    terms::{self, Labels, PodTerms, SpreadConstraint},
};

/// What a pod occupies on its node.
#[derive(Clone, Debug, PartialEq)]
pub struct Footprint {
    /// Namespace and name.
    pub key: Key,
    /// Its uid.
    pub uid: Arc<str>,
    /// Its priority.
    pub priority: i32,
    /// When it started, or was made.
    pub since: Option<Timestamp>,
    /// What it requests.
    pub requested: Resources,
    /// What it is taken to use when nodes are compared.
    pub scored: Resources,
    /// Ports of the node it takes.
    pub ports: Vec<HostPort>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether it is being deleted to make room for another one.
    pub preempted: bool,
    /// Its labels.
    pub labels: Labels,
    /// What it wants of the pods around it.
    pub terms: Option<Arc<PodTerms>>,
    /// The claims it mounts, in its namespace.
    pub claims: Vec<Claim>,
    /// Disks it names that cannot be attached twice.
    pub disks: Vec<Disk>,
}

impl Footprint {
    /// A pod that occupies nothing.
    pub fn bare(uid: &str) -> Self {
        Self {
            key: Key::new("", uid),
            uid: uid.into(),
            priority: 0,
            since: None,
            requested: Resources::default(),
            scored: Resources::default(),
            ports: Vec::new(),
            deleting: false,
            preempted: false,
            labels: Labels::default(),
            terms: None,
            claims: Vec::new(),
            disks: Vec::new(),
        }
    }
}

/// A pod that wants a node.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// Namespace and name.
    pub key: Key,
    /// What it will occupy.
    pub footprint: Arc<Footprint>,
    /// When it was made.
    pub created: Timestamp,
    /// Counts the changes of its specification.
    pub generation: Option<i64>,
    /// Which scheduler it wants.
    pub scheduler: String,
    /// What keeps it from being looked at.
    pub gates: Vec<String>,
    /// The node it asks for by name.
    pub node_name: Option<String>,
    /// Labels its node must have.
    pub node_selector: Vec<(String, String)>,
    /// Rules about its node.
    pub node_affinity: Option<Arc<NodeAffinity>>,
    /// How evenly it is to be spread.
    pub spread: Vec<SpreadConstraint>,
    /// The kind, name and uid of what controls it.
    pub controller: Option<Controller>,
    /// Taints it does not mind.
    pub tolerations: Vec<Toleration>,
    /// Images of its containers, as written.
    pub images: Vec<String>,
    /// The claims of devices it wants.
    pub devices: Vec<DeviceClaim>,
    /// Its containers, if they ask for resources that devices may stand for.
    pub containers: Vec<Container>,
    /// Whether it may make room by evicting others.
    pub may_preempt: bool,
    /// The node where room has been made for it, as its status says.
    pub nominated: Option<String>,
    /// The reason and message of its condition PodScheduled.
    pub verdict: Option<(String, String)>,
    /// How events call it.
    pub reference: ObjectReference,
}

/// What controls a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// Its kind.
    pub kind: String,
    /// Its name, in the pod's namespace.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// A claim of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceClaim {
    /// The one of this name.
    Named(String),
    /// Made for the pod.
    Made(String),
    /// Still to be made for the pod.
    Awaited,
    /// Neither a claim nor a template is named.
    Unknown(String),
}

/// A persistent volume claim that a pod mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// Whether it is made for the pod alone.
    pub ephemeral: bool,
}

/// A disk named in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What it is, and its name there.
    pub name: (&'static str, String),
    /// The servers that have it; empty: there is one of its name only.
    pub servers: Vec<String>,
    /// Whether readers can share it.
    pub shared: bool,
}

impl Disk {
    /// Whether both cannot be had at once.
    pub fn conflicts(&self, other: &Self) -> bool {
        let same =
            self.servers.is_empty() || self.servers.iter().any(|s| other.servers.contains(s));
        self.name == other.name && same && !(self.shared && other.shared)
    }
}

impl PodInfo {
    /// The projection of a pod; `None` where it has no specification.
    pub fn of(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let meta = &pod.metadata;
        let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.clone());
        let footprint = footprint(pod, spec);
        let spread = terms::constraints(
            spec.topology_spread_constraints.as_ref(),
            &footprint.key.namespace,
            &footprint.labels,
        );
        let owners = meta.owner_references.iter().flatten();
        let status = pod.status.as_ref();
        let verdict = status
            .and_then(|s| s.conditions.as_ref())
            .and_then(|all| all.iter().find(|c| c.type_ == "PodScheduled"))
            .map(|c| {
                (
                    c.reason.clone().unwrap_or_default(),
                    c.message.clone().unwrap_or_default(),
                )
            });
        Some(Self {
            key: footprint.key.clone(),
            containers: extended::containers(spec, &footprint.requested),
            spread,
            controller: owners
                .filter(|o| o.controller == Some(true))
                .map(|o| Controller {
                    kind: o.kind.clone(),
                    name: o.name.clone(),
                    uid: o.uid.clone(),
                })
                .next(),
            footprint: Arc::new(footprint),
            created: meta
                .creation_timestamp
                .as_ref()
                .map_or(Timestamp::UNIX_EPOCH, |t| t.0),
            generation: meta.generation,
            scheduler: spec.scheduler_name.clone().unwrap_or_default(),
            gates: spec
                .scheduling_gates
                .iter()
                .flatten()
                .map(|g| g.name.clone())
                .collect(),
            node_name: spec.node_name.clone().filter(|n| !n.is_empty()),
            node_selector: spec
                .node_selector
                .clone()
                .unwrap_or_default()
                .into_iter()
                .collect(),
            node_affinity: affinity.map(Arc::new),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            images: images(spec),
            devices: device_claims(pod, spec),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            nominated: status
                .and_then(|s| s.nominated_node_name.clone())
                .filter(|n| !n.is_empty()),
            verdict,
            reference: client::events::reference(pod),
        })
    }

    /// Its uid.
    pub fn uid(&self) -> &Arc<str> {
        &self.footprint.uid
    }
}

/// What a pod occupies.
pub fn footprint(pod: &Pod, spec: &PodSpec) -> Footprint {
    let meta = &pod.metadata;
    let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    let key = Key::of(pod);
    let labels = meta.labels.clone().unwrap_or_default();
    Footprint {
        terms: PodTerms::of(spec.affinity.as_ref(), &key.namespace, &labels),
        labels: Arc::new(labels),
        claims: claims(&key.name, spec),
        disks: disks(spec),
        key,
        uid: meta.uid.as_deref().unwrap_or_default().into(),
        priority: spec.priority.unwrap_or(0),
        since: started.or(meta.creation_timestamp.as_ref()).map(|t| t.0),
        requested: resources::requested(spec),
        scored: resources::requested_for_scoring(spec),
        ports: host_ports::of(spec),
        deleting: meta.deletion_timestamp.is_some(),
        preempted: meta.deletion_timestamp.is_some() && is_target(pod),
    }
}

/// Whether the scheduler has chosen the pod to make room.
fn is_target(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| {
        c.type_ == "DisruptionTarget"
            && c.status == "True"
            && c.reason.as_deref() == Some("PreemptionByScheduler")
    })
}

fn images(spec: &PodSpec) -> Vec<String> {
    let init = spec.init_containers.iter().flatten();
    init.chain(&spec.containers)
        .filter_map(|c| c.image.clone())
        .collect()
}

fn disks(spec: &PodSpec) -> Vec<Disk> {
    let of_volume = |v: &k8s_openapi::api::core::v1::Volume| {
        let one = |kind, name: String, read_only: Option<bool>| Disk {
            name: (kind, name),
            servers: Vec::new(),
            shared: read_only.unwrap_or(false),
        };
        if let Some(disk) = &v.gce_persistent_disk {
            return Some(one("gce", disk.pd_name.clone(), disk.read_only));
        }
        if let Some(disk) = &v.aws_elastic_block_store {
            return Some(one("ebs", disk.volume_id.clone(), None));
        }
        if let Some(disk) = &v.iscsi {
            return Some(one("iscsi", disk.iqn.clone(), disk.read_only));
        }
        let disk = v.rbd.as_ref()?;
        let pool = disk.pool.as_deref().unwrap_or("rbd");
        Some(Disk {
            servers: disk.monitors.clone(),
            ..one("rbd", format!("{pool}/{}", disk.image), disk.read_only)
        })
    };
    spec.volumes
        .iter()
        .flatten()
        .filter_map(of_volume)
        .collect()
}

/// The claims of devices; of those that are made for the pod the status tells the names.
fn device_claims(pod: &Pod, spec: &PodSpec) -> Vec<DeviceClaim> {
    let status = pod.status.as_ref();
    let made = || {
        let made = status.and_then(|s| s.resource_claim_statuses.as_ref());
        made.into_iter().flatten()
    };
    let of = |c: &k8s_openapi::api::core::v1::PodResourceClaim| {
        if let Some(name) = &c.resource_claim_name {
            return Some(DeviceClaim::Named(name.clone()));
        }
        if c.resource_claim_template_name.is_none() {
            return Some(DeviceClaim::Unknown(c.name.clone()));
        }
        match made().find(|m| m.name == c.name) {
            // No name: none is needed.
            Some(made) => made.resource_claim_name.clone().map(DeviceClaim::Made),
            None => Some(DeviceClaim::Awaited),
        }
    };
    let claims = spec.resource_claims.iter().flatten();
    claims.filter_map(of).collect()
}

fn claims(pod: &str, spec: &PodSpec) -> Vec<Claim> {
    let of_volume = |v: &k8s_openapi::api::core::v1::Volume| {
        if let Some(claim) = &v.persistent_volume_claim {
            return Some(Claim {
                name: claim.claim_name.clone(),
                ephemeral: false,
            });
        }
        v.ephemeral.as_ref().map(|_| Claim {
            name: format!("{pod}-{}", v.name),
            ephemeral: true,
        })
    };
    spec.volumes
        .iter()
        .flatten()
        .filter_map(of_volume)
        .collect()
}
