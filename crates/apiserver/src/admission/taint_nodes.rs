//! A new node is tainted not-ready until the node life-cycle controller has seen it ready.

use api::meta;
use serde_json::{Value, json};

use super::{Admitted, Operation, Plugin, Review};

/// Taint of nodes that are not ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// The plugin.
pub struct TaintNodesByCondition;

impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn mutate<'a>(&'a self, review: &'a Review<'a>, object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async move {
            if review.operation != Operation::Create || !review.is("", "nodes") {
                return Ok(());
            }
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
