//! Ports of the node go to one pod each.

use super::Handle;
use crate::{
    framework::{Cycle, Happening, Plugin, PreFilter, Status},
    node::NodeInfo,
    pod::PodInfo,
};

struct NodePorts;

pub(super) fn make(_: &Handle) -> Box<dyn Plugin> {
    Box::new(NodePorts)
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn happenings(&self) -> &'static [Happening] {
        &[Happening::NodeAdd, Happening::PodDelete]
    }

    fn pre_filter(&self, _: &mut Cycle<'_>, pod: &PodInfo) -> PreFilter {
        if pod.footprint.ports.is_empty() {
            PreFilter::Skip
        } else {
            PreFilter::Continue
        }
    }

    fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Status {
        let wanted = &pod.footprint.ports;
        if node
            .ports()
            .any(|taken| wanted.iter().any(|w| w.conflicts(taken)))
        {
            return Status::unschedulable(
                "node(s) didn't have free ports for the requested pod ports",
            );
        }
        Status::Success
    }
}
