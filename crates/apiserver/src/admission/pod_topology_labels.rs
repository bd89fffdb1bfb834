//! Pods carry the labels that say where their node is, so that their containers can be told.

use api::{fields, meta};
use serde_json::{Map, Value};

use super::{Admitted, Plugin, Review};
use crate::registry::{Fail, Registry};

const NODES: (&str, &str, &str) = ("", "v1", "nodes");
const LABELS: [&str; 2] = ["metadata", "labels"];
/// What of a node's labels its pods get.
const TOPOLOGY: [fields::Path<'static>; 2] = [
    &["metadata", "labels", "topology.kubernetes.io/zone"],
    &["metadata", "labels", "topology.kubernetes.io/region"],
];

/// The plugin: for pods that are made with a node. The others get theirs with the node.
pub struct PodTopologyLabels;

impl Plugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates("", "pods")
    }

    fn mutate<'a>(&'a self, review: &'a Review<'a>, object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async move {
            let node = meta::str_at(object, &["spec", "nodeName"]);
            if !node.is_empty() {
                let labels = of_node(review.registry, node).await?;
                give(object, labels);
            }
            Ok(())
        })
    }
}

/// The labels that pods of a node get; none of a node that nobody knows.
///
/// # Errors
/// When it cannot be read.
pub async fn of_node(registry: &Registry, node: &str) -> Result<Map<String, Value>, Fail> {
    let found = registry.read_part(NODES, "", node, &TOPOLOGY).await?;
    let labels = found.as_ref().and_then(|node| meta::get(node, &LABELS));
    Ok(labels
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default())
}

/// Gives a pod labels, whatever it had of these names.
pub fn give(pod: &mut Value, labels: Map<String, Value>) {
    if !labels.is_empty() {
        meta::object_at(pod, &LABELS).extend(labels);
    }
}
