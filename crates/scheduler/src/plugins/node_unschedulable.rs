//! Cordoned nodes take no pods, but those that tolerate the taint of that name.

use k8s_openapi::api::core::v1::Taint;

use super::{Handle, taint_toleration::tolerates};
use crate::{
    framework::{Advice, Event, Happening, Plugin, Status, View},
    node::NodeInfo,
    pod::PodInfo,
};

struct NodeUnschedulable;

pub(super) fn make(_: &Handle) -> Box<dyn Plugin> {
    Box::new(NodeUnschedulable)
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn is_local(&self) -> bool {
        true
    }

    fn happenings(&self) -> &'static [Happening] {
        &[Happening::NodeAdd, Happening::NodeTaints]
    }

    fn helps(&self, _: &PodInfo, event: &Event<'_>) -> bool {
        match event {
            Event::Node { old, new } => !new.unschedulable || old.is_none(),
            _ => true,
        }
    }

    fn filter(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Status {
        if !node.spec.as_ref().is_some_and(|s| s.unschedulable) {
            return Status::Success;
        }
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        if tolerates(&pod.tolerations, &taint) {
            return Status::Success;
        }
        Status::unresolvable("node(s) were unschedulable")
    }

    fn advice(&self, _: &View<'_>, _: &PodInfo, node: &NodeInfo) -> Option<Advice> {
        let name = node.name();
        Some(Advice::new(format!(
            "it is cordoned: kubectl uncordon {name}"
        )))
    }
}
