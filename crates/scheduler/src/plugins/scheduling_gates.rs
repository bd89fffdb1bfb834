//! Pods wait until all their scheduling gates are gone.

use super::Handle;
use crate::{
    framework::{Plugin, Status},
    pod::PodInfo,
};

struct SchedulingGates;

pub(super) fn make(_: &Handle) -> Box<dyn Plugin> {
    Box::new(SchedulingGates)
}

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn is_local(&self) -> bool {
        true
    }

    fn pre_enqueue(&self, pod: &PodInfo) -> Status {
        if pod.gates.is_empty() {
            return Status::Success;
        }
        let gates = pod.gates.join(" ");
        Status::unresolvable(format!("waiting for scheduling gates: [{gates}]"))
    }
}
