//! A node takes only so many volumes of a storage driver.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use client::Key;

use super::Handle;
use crate::{
    framework::{Cycle, Happening, Plugin, PreFilter, Status, View},
    node::NodeInfo,
    pod::{Footprint, PodInfo},
    storage::Storage,
};

const NAME: &str = "NodeVolumeLimits";

struct NodeVolumeLimits {
    storage: Arc<Storage>,
}

pub(super) fn make(handle: &Handle) -> Box<dyn Plugin> {
    Box::new(NodeVolumeLimits {
        storage: Arc::clone(&handle.storage),
    })
}

/// Volumes by driver; one that is still to be made goes by its claim.
type Volumes = BTreeMap<String, BTreeSet<String>>;

impl NodeVolumeLimits {
    fn add(&self, pod: &Footprint, to: &mut Volumes) {
        for claim in &pod.claims {
            let key = Key::new(Arc::clone(&pod.key.namespace), claim.name.as_str());
            let Some(claim) = self.storage.claims.get(&key) else {
                continue;
            };
            let volume = claim
                .volume
                .as_deref()
                .and_then(|v| self.storage.volumes.get(&Key::cluster(v)));
            let attached = match volume {
                Some(volume) => volume.driver.clone(),
                None => self
                    .storage
                    .class_of(&claim)
                    .filter(|c| c.provisions())
                    .map(|c| (c.provisioner.clone(), format!("{}-{key}", c.provisioner))),
            };
            if let Some((driver, handle)) = attached {
                to.entry(driver).or_default().insert(handle);
            }
        }
    }
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        NAME
    }

    fn happenings(&self) -> &'static [Happening] {
        &[Happening::PodDelete, Happening::NodeAdd, Happening::Volumes]
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>, pod: &PodInfo) -> PreFilter {
        let mut wanted = Volumes::new();
        self.add(&pod.footprint, &mut wanted);
        if wanted.is_empty() {
            return PreFilter::Skip;
        }
        cycle.state.write(NAME, wanted);
        PreFilter::Continue
    }

    fn filter(&self, view: &View<'_>, _: &PodInfo, node: &NodeInfo) -> Status {
        let Some(wanted) = view.state.read::<Volumes>(NAME) else {
            return Status::Success;
        };
        let Some(limits) = self.storage.limits.get(&Key::cluster(node.name())) else {
            return Status::Success;
        };
        if !wanted.keys().any(|driver| limits.0.contains_key(driver)) {
            return Status::Success;
        }
        let mut used = Volumes::new();
        for pod in node.pods() {
            self.add(pod, &mut used);
        }
        for (driver, volumes) in wanted {
            let Some(limit) = limits.0.get(driver) else {
                continue;
            };
            let there = used.get(driver);
            let new = volumes
                .iter()
                .filter(|v| !there.is_some_and(|t| t.contains(*v)))
                .count();
            if new > 0 && there.map_or(0, BTreeSet::len) + new > *limit as usize {
                return Status::unschedulable("node(s) exceed max volume count");
            }
        }
        Status::Success
    }
}
