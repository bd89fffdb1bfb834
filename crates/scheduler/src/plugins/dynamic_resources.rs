//! Devices by claim are not allocated here yet: pods that want them wait, and are told so.

use super::Handle;
use crate::{
    framework::{Cycle, Diagnosis, Plugin, PostFilter, PreFilter, Status, TryFilter, View},
    pod::PodInfo,
};

struct DynamicResources;

pub(super) fn make(_: &Handle) -> Box<dyn Plugin> {
    Box::new(DynamicResources)
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }

    fn pre_filter(&self, _: &mut Cycle<'_>, pod: &PodInfo) -> PreFilter {
        if pod.resource_claims {
            return PreFilter::Reject(Status::unresolvable("resource claims are not supported"));
        }
        PreFilter::Skip
    }

    fn post_filter(
        &self,
        _: &View<'_>,
        _: &PodInfo,
        _: &Diagnosis,
        _: &TryFilter<'_>,
    ) -> Option<PostFilter> {
        Some(PostFilter::Failed("no new claims to deallocate".into()))
    }
}
