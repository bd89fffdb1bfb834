//! In the end nobody is without the owner that it names, and no pod has another's labels.

use super::Invariant;
use crate::world::{World, list, text};

/// The check.
pub struct Owners;

impl Invariant for Owners {
    fn unsettled(&mut self, world: &World) -> Vec<String> {
        const KINDS: [&str; 7] = [
            "Pod",
            "ReplicaSet",
            "Job",
            "ControllerRevision",
            "EndpointSlice",
            "PodDisruptionBudget",
            "PersistentVolumeClaim",
        ];
        let mut all = Vec::new();
        for kind in KINDS {
            for (name, object) in world.all(kind) {
                let owners = list(object, "/metadata/ownerReferences");
                let lives = |owner: &serde_json::Value| {
                    let kind = owner["kind"].as_str().unwrap_or_default();
                    let uid = owner["uid"].as_str().unwrap_or_default();
                    world.by_uid(kind, uid).is_some()
                };
                if !owners.is_empty() && !owners.iter().any(lives) {
                    all.push(format!("{kind} {name:?} is an orphan"));
                }
                let controllers = owners.iter().filter(|o| o["controller"] == true);
                if controllers.count() > 1 {
                    all.push(format!("{kind} {name:?} has two controllers"));
                }
                if kind == "Pod" && owners.is_empty() {
                    all.push(format!(
                        "pod {name:?} ({}) has no owner",
                        text(object, "/status/phase")
                    ));
                }
            }
        }
        all
    }
}
