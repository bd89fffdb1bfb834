//! A volume that says by its labels where it is can be had only there.

use std::sync::Arc;

use client::Key;

use super::Handle;
use crate::{
    framework::{Cycle, Happening, Plugin, PreFilter, Status, View},
    node::NodeInfo,
    pod::PodInfo,
    storage::{Storage, VolumeSpec, ZONE_LABELS},
};

const NAME: &str = "VolumeZone";

struct VolumeZone {
    storage: Arc<Storage>,
}

pub(super) fn make(handle: &Handle) -> Box<dyn Plugin> {
    Box::new(VolumeZone {
        storage: Arc::clone(&handle.storage),
    })
}

/// The stable name of a label that has an old one.
fn stable(key: &str) -> &str {
    match key {
        "failure-domain.beta.kubernetes.io/zone" => "topology.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region" => "topology.kubernetes.io/region",
        other => other,
    }
}

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        NAME
    }

    fn happenings(&self) -> &'static [Happening] {
        &[
            Happening::Volumes,
            Happening::NodeAdd,
            Happening::NodeLabels,
        ]
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>, pod: &PodInfo) -> PreFilter {
        let volumes: Vec<Arc<VolumeSpec>> = pod
            .footprint
            .claims
            .iter()
            .filter_map(|claim| {
                let key = Key::new(Arc::clone(&pod.key.namespace), claim.name.as_str());
                let bound = self.storage.claims.get(&key)?;
                self.storage
                    .volumes
                    .get(&Key::cluster(bound.volume.as_deref()?))
            })
            .filter(|v| v.zones().next().is_some())
            .collect();
        if volumes.is_empty() {
            return PreFilter::Skip;
        }
        cycle.state.write(NAME, volumes);
        PreFilter::Continue
    }

    /// A node that says nothing of where it is takes every volume.
    fn filter(&self, view: &View<'_>, _: &PodInfo, node: &NodeInfo) -> Status {
        let (Some(volumes), Some(spec)) =
            (view.state.read::<Vec<Arc<VolumeSpec>>>(NAME), &node.spec)
        else {
            return Status::Success;
        };
        if !ZONE_LABELS.iter().any(|l| spec.labels.contains_key(*l)) {
            return Status::Success;
        }
        let here = volumes.iter().flat_map(|v| v.zones()).all(|(key, values)| {
            let label = spec.labels.get(key).or(spec.labels.get(stable(key)));
            label.is_some_and(|l| values.contains(l.as_str()))
        });
        if here {
            Status::Success
        } else {
            Status::unresolvable("node(s) had no available volume zone")
        }
    }
}
