//! Rather nodes whose CPU and memory would be used to a like degree.

use super::Handle;
use crate::{
    framework::{Cycle, MAX_SCORE, Plugin, View},
    node::NodeInfo,
    pod::PodInfo,
};

struct NodeResourcesBalancedAllocation;

pub(super) fn make(_: &Handle) -> Box<dyn Plugin> {
    Box::new(NodeResourcesBalancedAllocation)
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn weight(&self) -> i64 {
        1
    }

    /// A pod that requests nothing unbalances nothing.
    fn pre_score(&self, _: &mut Cycle<'_>, pod: &PodInfo, _: &[&NodeInfo]) -> bool {
        pod.footprint.requested.milli_cpu > 0 || pod.footprint.requested.memory > 0
    }

    fn score(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(spec) = &node.spec else { return 0 };
        let (wants, has, used) = (&pod.footprint.requested, &spec.allocatable, &node.requested);
        let fraction = |used: i64, has: i64| (has > 0).then(|| (used as f64 / has as f64).min(1.0));
        let cpu = fraction(used.milli_cpu + wants.milli_cpu, has.milli_cpu);
        let memory = fraction(used.memory + wants.memory, has.memory);
        let deviation = cpu.zip(memory).map_or(0.0, |(c, m)| (c - m).abs() / 2.0);
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}
