//! Pods of higher priority first, then those that wait longer.

use super::Handle;
use crate::{framework::Plugin, pod::PodInfo};

struct PrioritySort;

pub(super) fn make(_: &Handle) -> Box<dyn Plugin> {
    Box::new(PrioritySort)
}

impl Plugin for PrioritySort {
    fn name(&self) -> &'static str {
        "PrioritySort"
    }

    fn is_local(&self) -> bool {
        true
    }

    fn queue_sort(&self, pod: &PodInfo) -> Option<i64> {
        Some(-i64::from(pod.footprint.priority))
    }
}
