//! Disks that only one pod can use go to one pod at a time: claims of mode ReadWriteOncePod, and
//! disks named in pods that cannot be attached twice.

use std::sync::Arc;

use client::Key;

use super::Handle;
use crate::{
    framework::{Cycle, Event, Happening, Plugin, PreFilter, Status, View},
    node::NodeInfo,
    pod::{Disk, PodInfo},
    storage::Storage,
};

const NAME: &str = "VolumeRestrictions";
const DISK_CONFLICT: &str = "node(s) had no available disk";
const CLAIM_CONFLICT: &str =
    "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";

struct VolumeRestrictions {
    storage: Arc<Storage>,
}

pub(super) fn make(handle: &Handle) -> Box<dyn Plugin> {
    Box::new(VolumeRestrictions {
        storage: Arc::clone(&handle.storage),
    })
}

/// Claims for one pod only that others use, and by how many.
struct Contested(Vec<(Key, usize)>);

fn conflict(wanted: &[Disk], taken: &[Disk]) -> bool {
    taken.iter().any(|t| wanted.iter().any(|w| w.conflicts(t)))
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        NAME
    }

    fn happenings(&self) -> &'static [Happening] {
        &[Happening::PodDelete, Happening::NodeAdd, Happening::Volumes]
    }

    fn helps(&self, pod: &PodInfo, event: &Event<'_>) -> bool {
        match event {
            Event::Pod { old: Some(old), .. } => {
                let own = &pod.footprint;
                conflict(&own.disks, &old.disks)
                    || old.key.namespace == own.key.namespace
                        && own.claims.iter().any(|c| old.claims.contains(c))
            }
            _ => true,
        }
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>, pod: &PodInfo) -> PreFilter {
        let contested: Vec<_> = pod
            .footprint
            .claims
            .iter()
            .map(|c| Key::new(Arc::clone(&pod.key.namespace), c.name.as_str()))
            .filter(|key| {
                let claim = self.storage.claims.get(key);
                claim.is_some_and(|c| c.is_for_one_pod())
            })
            .map(|key| {
                let users = cycle.world.users_of(&key);
                (key, users)
            })
            .filter(|(_, users)| *users > 0)
            .collect();
        if contested.is_empty() && pod.footprint.disks.is_empty() {
            return PreFilter::Skip;
        }
        cycle.state.write(NAME, Contested(contested));
        PreFilter::Continue
    }

    fn filter(&self, view: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Status {
        let wanted = &pod.footprint.disks;
        if !wanted.is_empty() && node.pods().iter().any(|p| conflict(wanted, &p.disks)) {
            return Status::unschedulable(DISK_CONFLICT);
        }
        let contested = view.state.read::<Contested>(NAME);
        let taken = contested.iter().flat_map(|c| &c.0).any(|(key, users)| {
            let supposed = view.suppositions.iter().filter(|s| {
                s.pod.key.namespace == key.namespace
                    && s.pod.claims.iter().any(|c| *c.name == *key.name)
            });
            let change: i64 = supposed.map(|s| if s.added { 1 } else { -1 }).sum();
            *users as i64 + change > 0
        });
        if taken {
            return Status::unschedulable(CLAIM_CONFLICT);
        }
        Status::Success
    }
}
