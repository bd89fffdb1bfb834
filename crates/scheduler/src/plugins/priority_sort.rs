//! Pods of higher priority first, then those that wait longer.

use std::cmp::Ordering;

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

    fn queue_sort(&self, a: &PodInfo, b: &PodInfo) -> Option<Ordering> {
        let by_priority = b.footprint.priority.cmp(&a.footprint.priority);
        Some(by_priority.then(a.created.cmp(&b.created)))
    }
}
