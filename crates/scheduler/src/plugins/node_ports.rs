//! Ports of the node go to one pod each.

use super::Handle;
use crate::{
    framework::{Cycle, Event, Happening, Plugin, PreFilter, Status, View},
    node::NodeInfo,
    pod::{HostPort, PodInfo},
};

struct NodePorts;

pub(super) fn make(_: &Handle) -> Box<dyn Plugin> {
    Box::new(NodePorts)
}

fn conflict(wanted: &[HostPort], taken: &[HostPort]) -> bool {
    taken.iter().any(|t| wanted.iter().any(|w| w.conflicts(t)))
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn happenings(&self) -> &'static [Happening] {
        &[Happening::NodeAdd, Happening::PodDelete]
    }

    fn helps(&self, pod: &PodInfo, event: &Event<'_>) -> bool {
        match event {
            Event::Pod { old: Some(old), .. } => conflict(&pod.footprint.ports, &old.ports),
            _ => true,
        }
    }

    fn pre_filter(&self, _: &mut Cycle<'_>, pod: &PodInfo) -> PreFilter {
        if pod.footprint.ports.is_empty() {
            PreFilter::Skip
        } else {
            PreFilter::Continue
        }
    }

    fn filter(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Status {
        if conflict(&pod.footprint.ports, node.ports()) {
            return Status::unschedulable(
                "node(s) didn't have free ports for the requested pod ports",
            );
        }
        Status::Success
    }
}
