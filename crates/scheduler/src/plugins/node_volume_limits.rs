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

impl NodeVolumeLimits {
    /// Whether pods with volumes of a driver go only to nodes that have it.
    fn is_required(&self, driver: &str) -> bool {
        let driver = self.storage.drivers.get(&Key::cluster(driver));
        driver.is_some_and(|d| d.required_on_node)
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
        let limits = self.storage.limits.get(&Key::cluster(node.name()));
        let has = |driver: &str| limits.as_ref().is_some_and(|l| l.0.contains_key(driver));
        if let Some(missing) = wanted.keys().find(|d| self.is_required(d) && !has(d)) {
            let why = format!("{missing} CSI driver is not installed on the node");
            return Status::unschedulable(why);
        }
        let Some(limits) = limits else {
            return Status::Success;
        };
        let limit_of = |driver: &str| limits.0.get(driver).copied().flatten();
        if !wanted.keys().any(|driver| limit_of(driver).is_some()) {
            return Status::Success;
        }
        let mut used = Volumes::new();
        for pod in node.pods() {
            self.add(pod, &mut used);
        }
        for (driver, volumes) in wanted {
            let Some(limit) = limit_of(driver) else {
                continue;
            };
            let there = used.get(driver);
            let new = volumes
                .iter()
                .filter(|v| !there.is_some_and(|t| t.contains(*v)))
                .count();
            if new > 0 && there.map_or(0, BTreeSet::len) + new > usize::try_from(limit).unwrap_or(0)
            {
                return Status::unschedulable("node(s) exceed max volume count");
            }
        }
        Status::Success
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;
    use crate::{
        framework::CycleState,
        node::NodeSpec,
        pod,
        storage::{ClaimSpec, DriverLimits, DriverSpec, VolumeSpec},
        world::World,
    };

    /// A node where `volumes` of driver `d` are mounted, and a pod that mounts one more.
    fn outcome(mounted: &[&str], wanted: &str, limit: Option<i32>, required: bool) -> Status {
        let storage = Storage::default();
        for volume in ["a", "b", "c"] {
            let claim = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
                "spec": {"volumeName": volume}});
            let claim = ClaimSpec::of(serde_json::from_value(claim).unwrap());
            storage.claims.set(Key::new("n", volume), claim);
            let given = json!({"metadata": {"name": volume},
                "spec": {"csi": {"driver": "d", "volumeHandle": volume}}});
            let given = VolumeSpec::of(serde_json::from_value(given).unwrap());
            storage.volumes.set(Key::cluster(volume), given);
        }
        let driver = json!({"metadata": {}, "spec": {"preventPodSchedulingIfMissing": required}});
        let driver = DriverSpec::of(serde_json::from_value(driver).unwrap());
        storage.drivers.set(Key::cluster("d"), driver);
        if let Some(limit) = limit {
            let node = json!({"metadata": {}, "spec": {"drivers": [
                {"name": "d", "nodeID": "x", "allocatable": {"count": limit}}]}});
            let node = DriverLimits::of(serde_json::from_value(node).unwrap());
            storage.limits.set(Key::cluster("m"), node);
        }
        let plugin = NodeVolumeLimits {
            storage: Arc::new(storage),
        };
        let pod = |name: &str, claim: &str| -> Pod {
            let pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name},
                "spec": {"containers": [], "volumes": [
                    {"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}});
            serde_json::from_value(pod).unwrap()
        };
        let mut node = NodeInfo::new(NodeSpec {
            name: "m".into(),
            ..NodeSpec::default()
        });
        for claim in mounted {
            let pod = pod(claim, claim);
            let footprint = pod::footprint(&pod, pod.spec.as_ref().unwrap());
            node.add(Arc::new(footprint));
        }
        let (world, mut state) = (World::default(), CycleState::default());
        let pod = PodInfo::of(&pod("p", wanted)).unwrap();
        let mut cycle = Cycle {
            world: &world,
            state: &mut state,
        };
        plugin.pre_filter(&mut cycle, &pod);
        let view = View {
            world: &world,
            state: &state,
            suppositions: &[],
        };
        plugin.filter(&view, &pod, &node)
    }

    #[test]
    fn a_node_takes_as_many_volumes_as_its_driver_says() {
        let full = || Status::unschedulable("node(s) exceed max volume count");
        assert_eq!(outcome(&["a"], "b", Some(2), false), Status::Success);
        assert_eq!(outcome(&["a", "b"], "c", Some(2), false), full());
        assert_eq!(
            outcome(&["a", "b"], "b", Some(2), false),
            Status::Success,
            "it is there"
        );
        assert_eq!(
            outcome(&["a", "b"], "c", None, false),
            Status::Success,
            "nobody says"
        );
        assert_eq!(outcome(&[], "a", Some(0), false), full());
    }

    #[test]
    fn some_drivers_have_to_be_there() {
        let missing = Status::unschedulable("d CSI driver is not installed on the node");
        assert_eq!(outcome(&[], "a", None, true), missing);
        assert_eq!(outcome(&[], "a", Some(1), true), Status::Success);
    }
}
