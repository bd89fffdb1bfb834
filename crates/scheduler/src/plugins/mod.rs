//! The plugins, one file each. [`ALL`] is their order at every point.

mod balanced_allocation;
mod default_binder;
mod default_preemption;
mod default_spread;
mod dynamic_resources;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_fit;
mod node_unschedulable;
mod node_volume_limits;
mod pod_topology_spread;
mod priority_sort;
mod scheduling_gates;
pub(crate) mod selector;
mod taint_toleration;
mod volume_binding;
mod volume_restrictions;
mod volume_zone;

use std::sync::Arc;

use client::{Caches, Client, Scope};

use crate::{
    framework::Plugin,
    storage::{Mirror, Storage},
};
pub use default_preemption::Budget;

/// What a plugin may hold on to.
#[derive(Clone)]
pub struct Handle {
    /// For writes.
    pub client: Client,
    /// For looking at other kinds.
    pub caches: Caches,
    /// Claims, volumes and the like.
    pub storage: Arc<Storage>,
    /// Disruption budgets.
    pub budgets: Arc<Mirror<Budget>>,
}

impl Handle {
    /// For plugins that write with `client` and look into `caches`.
    pub fn new(client: Client, caches: Caches) -> Self {
        Self {
            storage: Arc::new(Storage::of(&caches)),
            budgets: Arc::new(Mirror::of(&caches.get(Scope::all()), Budget::of)),
            client,
            caches,
        }
    }
}

/// Makes a plugin.
pub type Make = fn(&Handle) -> Box<dyn Plugin>;

/// Every plugin.
pub const ALL: &[Make] = &[
    scheduling_gates::make,
    priority_sort::make,
    node_unschedulable::make,
    node_name::make,
    taint_toleration::make,
    node_affinity::make,
    node_ports::make,
    node_resources_fit::make,
    volume_restrictions::make,
    node_volume_limits::make,
    volume_binding::make,
    volume_zone::make,
    dynamic_resources::make,
    pod_topology_spread::make,
    inter_pod_affinity::make,
    default_preemption::make,
    balanced_allocation::make,
    image_locality::make,
    default_binder::make,
];
