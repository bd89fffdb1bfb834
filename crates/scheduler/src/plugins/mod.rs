//! The plugins, one file each. [`ALL`] is their order at every point.

mod balanced_allocation;
mod default_binder;
mod default_preemption;
mod dynamic_resources;
mod image_locality;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_fit;
mod node_unschedulable;
mod priority_sort;
mod scheduling_gates;
pub(crate) mod selector;
mod taint_toleration;
mod volume_binding;

use client::{Caches, Client};

use crate::framework::Plugin;

/// What a plugin may hold on to.
#[derive(Clone)]
pub struct Handle {
    /// For writes.
    pub client: Client,
    /// For looking at other kinds.
    pub caches: Caches,
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
    volume_binding::make,
    dynamic_resources::make,
    default_preemption::make,
    balanced_allocation::make,
    image_locality::make,
    default_binder::make,
];
