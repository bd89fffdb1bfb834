//! A pod that names its node goes nowhere else.

use super::Handle;
use crate::{
    framework::{Advice, Event, Happening, Plugin, Status, View},
    node::NodeInfo,
    pod::PodInfo,
};

struct NodeName;

pub(super) fn make(_: &Handle) -> Box<dyn Plugin> {
    Box::new(NodeName)
}

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn is_local(&self) -> bool {
        true
    }

    fn happenings(&self) -> &'static [Happening] {
        &[Happening::NodeAdd]
    }

    fn helps(&self, pod: &PodInfo, event: &Event<'_>) -> bool {
        match event {
            Event::Node { new, .. } => pod.node_name.as_ref().is_none_or(|n| *n == new.name),
            _ => true,
        }
    }

    fn filter(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Status {
        let name = node.spec.as_ref().map(|s| &s.name);
        if pod.node_name.is_none() || pod.node_name.as_ref() == name {
            return Status::Success;
        }
        Status::unresolvable("node(s) didn't match the requested node name")
    }

    fn advice(&self, _: &View<'_>, pod: &PodInfo, _: &NodeInfo) -> Option<Advice> {
        let name = pod.node_name.as_deref()?;
        Some(Advice::new(format!("spec.nodeName asks for {name}")))
    }
}
