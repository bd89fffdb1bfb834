//! What holds of every object: its identity never changes, its generation never goes back, and what
//! is on its way out stays so until it is gone.

use super::Invariant;
use crate::world::{Change, World, is_going, number, text};

/// The check.
pub struct Life;

impl Invariant for Life {
    fn see(&mut self, _: &World, change: &Change<'_>) -> Result<(), String> {
        let (kind, (namespace, name)) = (change.kind, change.name);
        let broken = |what: &str| Err(format!("{kind} {namespace}/{name} {what}"));
        let Some(old) = change.old else {
            return Ok(());
        };
        let Some(new) = change.new else {
            return Ok(());
        };
        for field in ["/metadata/uid", "/metadata/creationTimestamp"] {
            if text(old, field) != text(new, field) {
                return broken(&format!("has another {field}"));
            }
        }
        if number(new, "/metadata/generation") < number(old, "/metadata/generation") {
            return broken("went back in its generation");
        }
        if is_going(old) && !is_going(new) {
            return broken("was saved from deletion");
        }
        Ok(())
    }

    fn unsettled(&mut self, world: &World) -> Vec<String> {
        const KINDS: [&str; 10] = [
            "Pod",
            "ReplicaSet",
            "Deployment",
            "StatefulSet",
            "DaemonSet",
            "Job",
            "CronJob",
            "Namespace",
            "PersistentVolume",
            "Node",
        ];
        let all = KINDS.iter().flat_map(|kind| world.all(kind));
        all.filter(|(_, object)| is_going(object))
            .map(|(name, object)| format!("{} {name:?} is still going", text(object, "/kind")))
            .collect()
    }
}
