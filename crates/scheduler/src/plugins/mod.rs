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
mod strategy;
mod taint_toleration;
mod volume_binding;
mod volume_restrictions;
mod volume_zone;

use std::sync::Arc;

use client::{Caches, Client, Clock, Scope};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::task::TaskTracker;

pub use default_preemption::Budget;

use crate::{
    devices::Devices,
    framework::Plugin,
    storage::{Mirror, Storage},
};

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
    /// Devices by claim.
    pub devices: Arc<Devices>,
    /// The wall clock.
    pub clock: Clock,
    /// Writes under way that no pod waits for.
    pub tasks: TaskTracker,
}

impl Handle {
    /// For plugins that write with `client` and look into `caches`.
    pub fn new(client: Client, caches: Caches) -> Self {
        Self {
            storage: Arc::new(Storage::of(&caches)),
            budgets: Arc::new(Mirror::of(&caches.get(Scope::all()), Budget::of)),
            devices: Arc::new(Devices::of(&caches)),
            clock: Clock::system(),
            tasks: TaskTracker::new(),
            client,
            caches,
        }
    }
}

/// A plugin, or what is wrong with its arguments.
pub type Made = Result<Box<dyn Plugin>, String>;

/// How a plugin is made.
#[derive(Clone, Copy)]
pub enum Make {
    /// It takes no arguments.
    Plain(fn(&Handle) -> Box<dyn Plugin>),
    /// From its arguments, once they have been found to make sense.
    With {
        /// What is wrong with the arguments, if anything.
        check: fn(&Value) -> Result<(), String>,
        /// Makes it.
        make: fn(&Handle, Value) -> Made,
    },
}

/// The plugin that sorts the queue.
pub const SORTS: &str = "PrioritySort";
/// The plugin that binds.
pub const BINDS: &str = "DefaultBinder";

use Make::Plain;

/// Every plugin, by name.
pub const ALL: &[(&str, Make)] = &[
    ("SchedulingGates", Plain(scheduling_gates::make)),
    (SORTS, Plain(priority_sort::make)),
    ("NodeUnschedulable", Plain(node_unschedulable::make)),
    ("NodeName", Plain(node_name::make)),
    ("TaintToleration", Plain(taint_toleration::make)),
    (
        node_affinity::NAME,
        Make::With {
            check: node_affinity::check,
            make: node_affinity::make,
        },
    ),
    ("NodePorts", Plain(node_ports::make)),
    (
        node_resources_fit::NAME,
        Make::With {
            check: node_resources_fit::check,
            make: node_resources_fit::make,
        },
    ),
    ("VolumeRestrictions", Plain(volume_restrictions::make)),
    ("NodeVolumeLimits", Plain(node_volume_limits::make)),
    (
        volume_binding::NAME,
        Make::With {
            check: volume_binding::check,
            make: volume_binding::make,
        },
    ),
    ("VolumeZone", Plain(volume_zone::make)),
    (
        dynamic_resources::NAME,
        Make::With {
            check: dynamic_resources::check,
            make: dynamic_resources::make,
        },
    ),
    (
        pod_topology_spread::NAME,
        Make::With {
            check: pod_topology_spread::check,
            make: pod_topology_spread::make,
        },
    ),
    (
        inter_pod_affinity::NAME,
        Make::With {
            check: inter_pod_affinity::check,
            make: inter_pod_affinity::make,
        },
    ),
    (
        default_preemption::NAME,
        Make::With {
            check: default_preemption::check,
            make: default_preemption::make,
        },
    ),
    (
        balanced_allocation::NAME,
        Make::With {
            check: balanced_allocation::check,
            make: balanced_allocation::make,
        },
    ),
    ("ImageLocality", Plain(image_locality::make)),
    (BINDS, Plain(default_binder::make)),
];

fn named(name: &str) -> Option<Make> {
    ALL.iter().find(|(n, _)| *n == name).map(|(_, make)| *make)
}

/// Whether a plugin can be made from these arguments.
///
/// # Errors
/// What is wrong with them.
pub fn check(name: &str, args: &Value) -> Result<(), String> {
    match named(name) {
        Some(Make::With { check, .. }) => check(args),
        Some(Plain(_)) if args.as_object().is_none_or(|o| o.is_empty()) => Ok(()),
        Some(Plain(_)) => Err("it takes no arguments".into()),
        None => Err(format!("plugin {name:?} does not exist")),
    }
}

/// Makes a plugin.
///
/// # Errors
/// What is wrong with its arguments.
pub fn make(name: &str, handle: &Handle, args: Value) -> Result<Box<dyn Plugin>, String> {
    match named(name) {
        Some(Make::With { make, .. }) => make(handle, args),
        Some(Plain(make)) => check(name, &args).map(|()| make(handle)),
        None => Err(format!("plugin {name:?} does not exist")),
    }
}

/// Has a plugin leave resources alone that extenders manage.
pub fn ignore_resources(name: &str, args: &mut Value, ignored: &[&str]) {
    if name != node_resources_fit::NAME {
        return;
    }
    if !args.is_object() {
        *args = Value::Object(serde_json::Map::new());
    }
    let list = &mut args["ignoredResources"];
    let mut all = list.as_array().cloned().unwrap_or_default();
    all.extend(ignored.iter().map(|i| Value::from(*i)));
    *list = Value::Array(all);
}

/// The arguments of a plugin; none: its defaults.
fn args<T: DeserializeOwned>(args: Value) -> Result<T, String> {
    let given = match args {
        Value::Null => Value::Object(serde_json::Map::new()),
        given => given,
    };
    serde_json::from_value(given).map_err(|e| e.to_string())
}
