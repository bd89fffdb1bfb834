//! Rather nodes that have the pod's images already.

use super::Handle;
use crate::{
    framework::{MAX_SCORE, Plugin, View},
    node::NodeInfo,
    pod::PodInfo,
};

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
        "ImageLocality"
    }

    fn weight(&self) -> i64 {
        1
    }

    /// Images count in proportion to how many nodes have them, lest all pods crowd onto the
    /// first node that pulled one.
    fn score(&self, view: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(spec) = &node.spec else { return 0 };
        let nodes = view.world.node_count().max(1) as f64;
        let here: i64 = pod
            .images
            .iter()
            .map(|image| with_tag(image))
            .filter_map(|image| {
                let size = *spec.images.get(&image)?;
                let spread = view.world.image_spread(&image) as f64 / nodes;
                Some((size as f64 * spread) as i64)
            })
            .sum();
        let max = MAX_PER_CONTAINER * pod.images.len().max(1) as i64;
        MAX_SCORE * (here.clamp(MIN, max) - MIN) / (max - MIN)
    }
}

/// The name with the tag that is meant when there is none.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || image.contains('@') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}
