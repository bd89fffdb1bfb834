//! A pod is given to one node, once, and no node more than it has room for.

use super::Invariant;
use crate::world::{Change, World, is_going, is_over, list, number, text};

/// The check.
pub struct Binding;

/// What a pod takes of a node, or a node has.
#[derive(Debug, Default)]
struct Amounts {
    milli_cpu: i64,
    memory: i64,
    pods: i64,
}

impl Binding {
    fn amounts(value: &serde_json::Value) -> Amounts {
        let of = |pointer: &str| {
            let quantity = text(value, pointer).parse::<api::Quantity>();
            quantity.map_or(0, |q| q.milli_value())
        };
        Amounts {
            milli_cpu: of("/cpu"),
            memory: of("/memory") / 1000,
            pods: of("/pods") / 1000,
        }
    }

    /// Whether the pods of a node are more than fit.
    fn overcommitted(world: &World, node: &str) -> Option<String> {
        let (_, object) = world.all("Node").find(|((_, name), _)| name == node)?;
        let room = Self::amounts(object.pointer("/status/allocatable")?);
        let mut used = Amounts::default();
        for (_, pod) in world.all("Pod") {
            if text(pod, "/spec/nodeName") != node || is_over(pod) {
                continue;
            }
            used.pods += 1;
            for container in list(pod, "/spec/containers") {
                let requests = container.pointer("/resources/requests");
                let wants = requests.map(Self::amounts).unwrap_or_default();
                used.milli_cpu += wants.milli_cpu;
                used.memory += wants.memory;
            }
        }
        let fits = used.milli_cpu <= room.milli_cpu
            && used.memory <= room.memory
            && used.pods <= room.pods;
        (!fits).then(|| format!("node {node} has {room:?} and gave away {used:?}"))
    }
}

impl Invariant for Binding {
    fn see(&mut self, world: &World, change: &Change<'_>) -> Result<(), String> {
        let ("Pod", Some(new)) = (change.kind, change.new) else {
            return Ok(());
        };
        let node_of = |pod| text(pod, "/spec/nodeName");
        let before = change.old.map(node_of).unwrap_or_default();
        let node = node_of(new);
        if before == node {
            return Ok(());
        }
        if !before.is_empty() {
            return Err(format!(
                "pod {:?} moved from {before} to {node}",
                change.name
            ));
        }
        Self::overcommitted(world, node).map_or(Ok(()), Err)
    }

    fn unsettled(&mut self, world: &World) -> Vec<String> {
        let mut all = Vec::new();
        for (name, pod) in world.all("Pod").filter(|(_, pod)| !is_over(pod)) {
            let node = text(pod, "/spec/nodeName");
            if node.is_empty() {
                all.push(format!("pod {name:?} has no node"));
            } else if world.get("Node", "", node).is_none() && !is_going(pod) {
                all.push(format!("pod {name:?} is on node {node}, which is gone"));
            } else if number(pod, "/metadata/generation").is_none() {
                all.push(format!("pod {name:?} has no generation"));
            }
        }
        all
    }
}
