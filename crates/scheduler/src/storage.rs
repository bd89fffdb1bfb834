//! Claims, volumes, storage classes and drivers of nodes, projected to what decides about pods and
//! kept up to date by watches. One mirror a kind, shared by the plugins.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    str::FromStr,
    sync::{Arc, PoisonError, RwLock},
};

use api::{quantity::Quantity, storage_class};
use client::{Cache, Caches, Key, Scope, Selector};
use k8s_openapi::{
    api::{
        core::v1::{NodeSelector, PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm},
        storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass},
    },
    apimachinery::pkg::api::resource::Quantity as Text,
};
use serde::de::DeserializeOwned;

/// On a claim: the node that its volume is to be made for.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BOUND: &str = "pv.kubernetes.io/bind-completed";
/// Labels of volumes that say where they are.
pub const ZONE_LABELS: &[&str] = &[
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

type Items<T> = Arc<RwLock<HashMap<Key, Arc<T>>>>;

/// Projections of all objects of a kind.
pub struct Mirror<T> {
    items: Items<T>,
}

impl<T> Default for Mirror<T> {
    /// None.
    fn default() -> Self {
        Self {
            items: Items::default(),
        }
    }
}

impl<T: Send + Sync + 'static> Mirror<T> {
    /// Follows a cache.
    pub fn of<K>(cache: &Cache<K>, project: fn(K) -> T) -> Self
    where
        K: DeserializeOwned + 'static,
    {
        let items = Items::<T>::default();
        let to = Arc::clone(&items);
        cache.on_change(move |change| {
            let new = change.new.as_ref().and_then(|e| e.decode::<K>().ok());
            let mut items = to.write().unwrap_or_else(PoisonError::into_inner);
            match new {
                Some(object) => items.insert(change.key.clone(), Arc::new(project(object))),
                None => items.remove(&change.key),
            };
        });
        Self { items }
    }

    /// One of them is this.
    #[cfg(test)]
    pub(crate) fn set(&self, key: Key, item: T) {
        let mut items = self.items.write().unwrap_or_else(PoisonError::into_inner);
        items.insert(key, Arc::new(item));
    }

    /// One of them.
    pub fn get(&self, key: &Key) -> Option<Arc<T>> {
        let items = self.items.read().unwrap_or_else(PoisonError::into_inner);
        items.get(key).cloned()
    }

    /// All of them that `keep` keeps.
    pub fn filter(&self, keep: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        let items = self.items.read().unwrap_or_else(PoisonError::into_inner);
        items.values().filter(|t| keep(t)).cloned().collect()
    }
}

/// A persistent volume claim.
pub struct ClaimSpec {
    /// The volume, once that is settled.
    pub volume: Option<String>,
    /// Whether it names a volume, settled or not.
    pub names_volume: bool,
    /// Its class; empty: none.
    pub class: String,
    /// How it may be used.
    pub modes: Vec<String>,
    /// `Filesystem` or `Block`.
    pub mode: String,
    /// Bytes.
    pub request: i64,
    /// Which volumes it takes.
    pub selector: Option<Selector>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its uid.
    pub uid: String,
    /// The uid of the pod that it was made for.
    pub owner: Option<String>,
    /// Whether its volume has been lost.
    pub lost: bool,
    /// The node that its volume is made for.
    pub node: Option<String>,
    /// The version of the object that this is.
    pub version: Option<String>,
}

fn bytes(list: Option<&BTreeMap<String, Text>>) -> i64 {
    list.and_then(|l| l.get("storage"))
        .and_then(|q| Quantity::from_str(&q.0).ok())
        .map_or(0, |q| q.value())
}

impl ClaimSpec {
    pub(crate) fn of(claim: PersistentVolumeClaim) -> Self {
        let spec = claim.spec.unwrap_or_default();
        let annotations = claim.metadata.annotations.unwrap_or_default();
        let class = storage_class::named(Some(&annotations), spec.storage_class_name.as_deref());
        let named = spec.volume_name.filter(|v| !v.is_empty());
        let phase = claim.status.and_then(|s| s.phase);
        Self {
            names_volume: named.is_some(),
            volume: named.filter(|_| annotations.contains_key(BOUND)),
            class: class.to_owned(),
            modes: spec.access_modes.unwrap_or_default(),
            mode: spec.volume_mode.unwrap_or("Filesystem".into()),
            request: bytes(spec.resources.and_then(|r| r.requests).as_ref()),
            selector: spec.selector.and_then(|s| Selector::of(&s).ok()),
            deleting: claim.metadata.deletion_timestamp.is_some(),
            uid: claim.metadata.uid.unwrap_or_default(),
            owner: {
                let owners = claim.metadata.owner_references.into_iter().flatten();
                let mut controllers = owners.filter(|o| o.controller == Some(true));
                controllers.next().map(|o| o.uid)
            },
            lost: phase.as_deref() == Some("Lost"),
            node: annotations.get(SELECTED_NODE).cloned(),
            version: claim.metadata.resource_version,
        }
    }

    /// Whether only one pod may use it.
    pub fn is_for_one_pod(&self) -> bool {
        self.modes.iter().any(|m| m == "ReadWriteOncePod")
    }
}

/// A persistent volume.
pub struct VolumeSpec {
    /// Its name.
    pub name: String,
    /// Its class; empty: none.
    pub class: String,
    /// Bytes.
    pub capacity: i64,
    /// How it may be used.
    pub modes: Vec<String>,
    /// `Filesystem` or `Block`.
    pub mode: String,
    /// The nodes that reach it.
    pub nodes: Option<NodeSelector>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The claim it is for.
    pub claim: Option<Key>,
    /// Driver and handle.
    pub driver: Option<(String, String)>,
    /// Whether a claim may take it.
    pub available: bool,
    /// The version of the object that this is.
    pub version: Option<String>,
}

impl VolumeSpec {
    pub(crate) fn of(volume: PersistentVolume) -> Self {
        let spec = volume.spec.unwrap_or_default();
        let phase = volume.status.and_then(|s| s.phase);
        let annotations = volume.metadata.annotations.as_ref();
        let class = storage_class::named(annotations, spec.storage_class_name.as_deref());
        Self {
            name: volume.metadata.name.unwrap_or_default(),
            class: class.to_owned(),
            capacity: bytes(spec.capacity.as_ref()),
            modes: spec.access_modes.unwrap_or_default(),
            mode: spec.volume_mode.unwrap_or("Filesystem".into()),
            nodes: spec.node_affinity.and_then(|a| a.required),
            labels: volume.metadata.labels.unwrap_or_default(),
            claim: spec
                .claim_ref
                .map(|c| Key::new(c.namespace.unwrap_or_default(), c.name.unwrap_or_default())),
            driver: spec.csi.map(|c| (c.driver, c.volume_handle)),
            version: volume.metadata.resource_version,
            available: volume.metadata.deletion_timestamp.is_none()
                && phase.as_deref().is_none_or(|p| p == "Available"),
        }
    }

    /// Where it says it is: label and possible values.
    pub fn zones(&self) -> impl Iterator<Item = (&'static str, BTreeSet<&str>)> {
        ZONE_LABELS
            .iter()
            .filter_map(|key| Some((*key, self.labels.get(*key)?.split("__").collect())))
    }
}

/// A storage class.
pub struct ClassSpec {
    /// Who makes volumes.
    pub provisioner: String,
    /// Whether claims are bound only when a pod needs them.
    pub late: bool,
    /// Where volumes can be made.
    pub topologies: Vec<TopologySelectorTerm>,
}

impl ClassSpec {
    pub(crate) fn of(class: StorageClass) -> Self {
        Self {
            late: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
            provisioner: class.provisioner,
            topologies: class.allowed_topologies.unwrap_or_default(),
        }
    }

    /// Whether volumes can be made for claims.
    pub fn provisions(&self) -> bool {
        !self.provisioner.is_empty() && self.provisioner != "kubernetes.io/no-provisioner"
    }
}

/// The drivers that a node has, and how many volumes of each it takes, if that is limited.
pub struct DriverLimits(pub BTreeMap<String, Option<i32>>);

impl DriverLimits {
    pub(crate) fn of(node: CSINode) -> Self {
        let drivers = node.spec.drivers.into_iter();
        Self(
            drivers
                .map(|d| (d.name, d.allocatable.and_then(|a| a.count)))
                .collect(),
        )
    }
}

/// A storage driver.
pub struct DriverSpec {
    /// Whether it reports how much storage there is.
    pub reports_capacity: bool,
    /// Whether pods with its volumes go only to nodes that have it.
    pub required_on_node: bool,
}

impl DriverSpec {
    pub(crate) fn of(driver: CSIDriver) -> Self {
        let spec = driver.spec;
        Self {
            reports_capacity: spec.storage_capacity.unwrap_or(false),
            required_on_node: spec.prevent_pod_scheduling_if_missing.unwrap_or(false),
        }
    }
}

/// How much storage of a class some nodes can have.
pub struct CapacitySpec {
    /// The class.
    pub class: String,
    /// Bytes in all, if that is known.
    pub capacity: Option<i64>,
    /// Bytes that one volume can have, if that is known.
    pub largest: Option<i64>,
    /// The nodes; `None`: none.
    pub topology: Option<Selector>,
}

impl CapacitySpec {
    pub(crate) fn of(capacity: CSIStorageCapacity) -> Self {
        let size = |q: Option<Text>| Some(Quantity::from_str(&q?.0).ok()?.value());
        let total = size(capacity.capacity);
        Self {
            class: capacity.storage_class_name,
            capacity: total,
            largest: size(capacity.maximum_volume_size).or(total),
            topology: capacity.node_topology.and_then(|t| Selector::of(&t).ok()),
        }
    }
}

/// All of it.
#[derive(Default)]
pub struct Storage {
    /// Persistent volume claims.
    pub claims: Mirror<ClaimSpec>,
    /// Persistent volumes.
    pub volumes: Mirror<VolumeSpec>,
    /// Storage classes.
    pub classes: Mirror<ClassSpec>,
    /// Limits by node.
    pub limits: Mirror<DriverLimits>,
    /// Drivers.
    pub drivers: Mirror<DriverSpec>,
    /// What drivers report of their storage.
    pub capacities: Mirror<CapacitySpec>,
}

impl Storage {
    /// Follows these caches.
    pub fn of(caches: &Caches) -> Self {
        let all = Scope::all;
        Self {
            claims: Mirror::of(&caches.get(all()), ClaimSpec::of),
            volumes: Mirror::of(&caches.get(all()), VolumeSpec::of),
            classes: Mirror::of(&caches.get(all()), ClassSpec::of),
            limits: Mirror::of(&caches.get(all()), DriverLimits::of),
            drivers: Mirror::of(&caches.get(all()), DriverSpec::of),
            capacities: Mirror::of(&caches.get(all()), CapacitySpec::of),
        }
    }

    /// The class of a claim, if it has one that exists.
    pub fn class_of(&self, claim: &ClaimSpec) -> Option<Arc<ClassSpec>> {
        if claim.class.is_empty() {
            return None;
        }
        self.classes.get(&Key::cluster(claim.class.as_str()))
    }
}
