//! Rather nodes that have the pod's images already.

use super::Handle;
use crate::{
    framework::{Cycle, MAX_SCORE, Plugin, PreFilter, View},
    node::NodeInfo,
    pod::PodInfo,
};

const NAME: &str = "ImageLocality";

/// Images of a pod that some nodes have, and the share of nodes that do.
type Images = Vec<(f64, String)>;

struct ImageLocality;

/// Bytes of images below which it makes no difference.
const MIN: i64 = 23 * 1024 * 1024;
/// Bytes of images per container above which more makes no difference.
const MAX_PER_CONTAINER: i64 = 1000 * 1024 * 1024;

pub(super) fn make(_: &Handle) -> Box<dyn Plugin> {
    Box::new(ImageLocality)
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weight(&self) -> i64 {
        1
    }

    /// It has nothing against any node.
    fn pre_filter(&self, _: &mut Cycle<'_>, _: &PodInfo) -> PreFilter {
        PreFilter::Skip
    }

    /// Images that no node has say nothing.
    fn pre_score(&self, cycle: &mut Cycle<'_>, pod: &PodInfo, _: &[&NodeInfo]) -> bool {
        let nodes = cycle.world.node_count().max(1) as f64;
        let images: Images = pod
            .images
            .iter()
            .map(|image| with_tag(image))
            .map(|image| (cycle.world.image_spread(&image) as f64 / nodes, image))
            .filter(|(spread, _)| *spread > 0.0)
            .collect();
        let any = !images.is_empty();
        cycle.state.write(NAME, images);
        any
    }

    /// Images count in proportion to how many nodes have them, lest all pods crowd onto the
    /// first node that pulled one.
    fn score(&self, view: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let (Some(spec), Some(images)) = (&node.spec, view.state.read::<Images>(NAME)) else {
            return 0;
        };
        let sizes = images.iter().filter_map(|(spread, image)| {
            let size = *spec.images.get(image)?;
            Some((size as f64 * spread) as i64)
        });
        let here: i64 = sizes.sum();
        let max = MAX_PER_CONTAINER * pod.images.len().max(1) as i64;
        MAX_SCORE * (here.clamp(MIN, max) - MIN) / (max - MIN)
    }
}

fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || image.contains('@') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}
