//! In the end every node is ready, and nothing keeps pods from it.

use super::Invariant;
use crate::world::{World, has_condition, list};

/// The check.
pub struct Nodes;

impl Invariant for Nodes {
    fn unsettled(&mut self, world: &World) -> Vec<String> {
        let mut all = Vec::new();
        for ((_, name), node) in world.all("Node") {
            if !has_condition(node, "Ready") {
                all.push(format!("node {name} is not ready"));
            }
            let taints = list(node, "/spec/taints");
            if !taints.is_empty() {
                all.push(format!("node {name} still has taints {taints:?}"));
            }
        }
        all
    }
}
