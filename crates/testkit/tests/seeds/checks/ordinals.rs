//! Two pods of one ordinal of a StatefulSet never run at once: as long as its node exists, a pod
//! that may run there goes only when the node's agent has said that it runs no more.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;
use serde_json::Value;

use super::Invariant;
use crate::network::Party;
use crate::world::{Change, World, controller, is_over, text};

/// The check.
#[derive(Default)]
pub struct Ordinals {
    /// Uids of pods whose agent has let them go.
    ended: BTreeSet<String>,
    /// Uids of the nodes that pods were given to, by the pods' uids.
    given_to: BTreeMap<String, String>,
}

impl Ordinals {
    /// Notes which node a pod was given to, the first time.
    fn note(&mut self, world: &World, pod: &Value) {
        let uid = text(pod, "/metadata/uid");
        if let Some(node) = world.get("Node", "", text(pod, "/spec/nodeName"))
            && !self.given_to.contains_key(uid)
        {
            let node = text(node, "/metadata/uid").to_owned();
            self.given_to.insert(uid.to_owned(), node);
        }
    }
}

impl Invariant for Ordinals {
    fn sent(&mut self, world: &World, party: Party, method: &Method, path: &str) {
        if party != Party::Nodes || method != Method::DELETE {
            return;
        }
        let parts: Vec<&str> = path.split('/').collect();
        if let ["", "api", "v1", "namespaces", namespace, "pods", name] = parts.as_slice()
            && let Some(pod) = world.get("Pod", namespace, name)
        {
            self.ended.insert(text(pod, "/metadata/uid").to_owned());
        }
    }

    fn see(&mut self, world: &World, change: &Change<'_>) -> Result<(), String> {
        if let ("Pod", Some(new)) = (change.kind, change.new) {
            self.note(world, new);
        }
        let ("Pod", Some(old), None) = (change.kind, change.old, change.new) else {
            return Ok(());
        };
        let of_set = controller(old).is_some_and(|owner| owner["kind"] == "StatefulSet");
        let node = text(old, "/spec/nodeName");
        if !of_set || node.is_empty() || is_over(old) {
            return Ok(());
        }
        if self.ended.contains(text(old, "/metadata/uid")) {
            return Ok(());
        }
        let given_to = self.given_to.get(text(old, "/metadata/uid"));
        let lives_on = world
            .get("Node", "", node)
            .is_some_and(|node| given_to.is_some_and(|uid| text(node, "/metadata/uid") == uid));
        match lives_on {
            true => Err(format!(
                "pod {:?} went while node {node} may run it",
                change.name
            )),
            false => Ok(()),
        }
    }
}
