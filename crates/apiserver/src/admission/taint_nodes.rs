//! A new node is tainted not-ready until the node life-cycle controller has seen it ready.

use api::meta;
use serde_json::{Value, json};

use super::{Admitted, Plugin, Review};

/// Taint of nodes that are not ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// The plugin.
pub struct TaintNodesByCondition;

impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates("", "nodes")
    }

    fn mutate<'a>(&'a self, _review: &'a Review<'a>, object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async move {
            let mut taints = meta::list_at(object, &["spec", "taints"]).to_vec();
            if !taints
                .iter()
                .any(|t| meta::str_at(t, &["key"]) == NOT_READY)
            {
                taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
                meta::set(object, &["spec", "taints"], taints.into());
            }
            Ok(())
        })
    }
}
