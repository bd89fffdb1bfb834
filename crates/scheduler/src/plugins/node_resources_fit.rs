//! A node must have what the pod requests, and rather much of it left.

use super::Handle;
use crate::{
    framework::{Event, Happening, MAX_SCORE, Plugin, Status, View},
    node::{NodeInfo, NodeSpec},
    pod::PodInfo,
};

struct NodeResourcesFit;

pub(super) fn make(_: &Handle) -> Box<dyn Plugin> {
    Box::new(NodeResourcesFit)
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn happenings(&self) -> &'static [Happening] {
        &[
            Happening::NodeAdd,
            Happening::NodeAllocatable,
            Happening::PodDelete,
        ]
    }

    fn helps(&self, pod: &PodInfo, event: &Event<'_>) -> bool {
        match event {
            Event::Node { new, .. } => {
                let empty = NodeInfo::new(NodeSpec::clone(new));
                shortages(pod, &empty).is_success()
            }
            _ => true,
        }
    }

    fn filter(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Status {
        shortages(pod, node)
    }

    /// The mean of what is left of CPU and memory.
    fn score(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(spec) = &node.spec else { return 0 };
        let (wants, has, used) = (&pod.footprint.scored, &spec.allocatable, &node.scored);
        let left = [
            (has.milli_cpu, used.milli_cpu + wants.milli_cpu),
            (has.memory, used.memory + wants.memory),
        ];
        let shares: Vec<i64> = left
            .into_iter()
            .filter(|(has, _)| *has > 0)
            .map(|(has, used)| {
                if used > has {
                    0
                } else {
                    (i128::from(has - used) * i128::from(MAX_SCORE) / i128::from(has)) as i64
                }
            })
            .collect();
        if shares.is_empty() {
            0
        } else {
            shares.iter().sum::<i64>() / shares.len() as i64
        }
    }
}

/// What the node lacks for the pod.
fn shortages(pod: &PodInfo, node: &NodeInfo) -> Status {
    let Some(spec) = &node.spec else {
        return Status::Success;
    };
    let (wants, has, used) = (&pod.footprint.requested, &spec.allocatable, &node.requested);
    let mut reasons = Vec::new();
    // What the whole node does not have, no eviction can give.
    let mut hopeless = false;
    if node.pods().len() as i64 + 1 > has.pods {
        reasons.push("Too many pods".to_owned());
    }
    let mut check = |name: &str, wants: i64, has: i64, used: i64| {
        if wants > 0 && wants > has - used {
            reasons.push(format!("Insufficient {name}"));
            hopeless |= wants > has;
        }
    };
    check("cpu", wants.milli_cpu, has.milli_cpu, used.milli_cpu);
    check("memory", wants.memory, has.memory, used.memory);
    check(
        "ephemeral-storage",
        wants.ephemeral_storage,
        has.ephemeral_storage,
        used.ephemeral_storage,
    );
    for (name, amount) in &wants.scalar {
        let of = |all: &crate::resources::Resources| all.scalar.get(name).copied().unwrap_or(0);
        check(name, *amount, of(has), of(used));
    }
    match (reasons.is_empty(), hopeless) {
        (true, _) => Status::Success,
        (false, true) => Status::Unresolvable(reasons),
        (false, false) => Status::Unschedulable(reasons),
    }
}
