//! Ports of the node go to one pod each.

use placement::host_ports::conflict;

use super::Handle;
use crate::{
    framework::{Advice, Cycle, Event, Happening, Plugin, PreFilter, Status, View},
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

    fn is_local(&self) -> bool {
        true
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

    fn advice(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Option<Advice> {
        let wanted = &pod.footprint.ports;
        let holders = node.pods().iter().filter_map(|p| {
            let port = p
                .ports
                .iter()
                .find(|t| wanted.iter().any(|w| w.conflicts(t)))?;
            Some(format!(
                "port {}/{} is taken by pod {}",
                port.port, port.protocol, p.key
            ))
        });
        Some(Advice::new(format!(
            "{}: end it, or ask for another port",
            holders.collect::<Vec<_>>().join("; ")
        )))
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
