//! A volume is one claim's for good, a pod runs where its volume is, and neither goes while somebody
//! needs it. In the end every claim that a pod uses has its volume, and no volume is left over.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

use super::Invariant;
use crate::world::{Change, Name, World, is_going, is_over, list, text};

/// The check.
pub struct Volumes;

/// The folders that volumes name.
pub fn folders(world: &World) -> BTreeSet<PathBuf> {
    let all = world.all("PersistentVolume");
    all.map(|(_, volume)| text(volume, "/spec/hostPath/path").into())
        .collect()
}

/// The names of the claims that a pod uses.
fn claims_of(pod: &Value) -> impl Iterator<Item = &str> {
    let volumes = list(pod, "/spec/volumes").iter();
    volumes.filter_map(|v| v.pointer("/persistentVolumeClaim/claimName")?.as_str())
}

/// Pods of a namespace that use a claim, on a node and not over.
fn users<'a>(world: &'a World, claim: &'a Name) -> impl Iterator<Item = &'a Name> {
    let (namespace, name) = claim;
    let pods = world.all("Pod").filter(move |((ns, _), pod)| {
        ns == namespace
            && !is_over(pod)
            && !text(pod, "/spec/nodeName").is_empty()
            && claims_of(pod).any(|used| used == name)
    });
    pods.map(|(name, _)| name)
}

/// A pod that runs with a claim; one that was given its node just now could still be refused.
fn runner<'a>(world: &'a World, claim: &'a Name) -> Option<&'a Name> {
    users(world, claim).find(|(namespace, name)| {
        let pod = world.get("Pod", namespace, name);
        pod.is_some_and(|pod| text(pod, "/status/phase") == "Running")
    })
}

/// What is wrong with the volume of a claim.
fn misbound(world: &World, (namespace, name): &Name, claim: &Value) -> Option<String> {
    let volume = text(claim, "/spec/volumeName");
    let Some(found) = world.get("PersistentVolume", "", volume) else {
        return Some(format!(
            "claim {namespace}/{name} has no volume ({volume:?})"
        ));
    };
    let of = text(found, "/spec/claimRef/uid");
    let bound = text(claim, "/status/phase") == "Bound" && text(found, "/status/phase") == "Bound";
    let fits = bound && of == text(claim, "/metadata/uid");
    (!fits).then(|| format!("claim {namespace}/{name} is not bound to {volume} for good"))
}

/// Whether the volume of a claim can be reached from a node.
fn reaches(world: &World, claim: &Value, node: &str) -> bool {
    let volume = world.get("PersistentVolume", "", text(claim, "/spec/volumeName"));
    volume.is_some_and(|volume| {
        let terms = "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0/values/0";
        text(volume, terms) == node
    })
}

impl Volumes {
    fn pod(world: &World, change: &Change<'_>) -> Result<(), String> {
        let node_of = |pod| text(pod, "/spec/nodeName");
        let (namespace, name) = change.name;
        let Some(pod) = change.new else {
            return Ok(());
        };
        let before = change.old.map(node_of).unwrap_or_default();
        let node = node_of(pod);
        if before == node {
            return Ok(());
        }
        for used in claims_of(pod) {
            let claim = world.get("PersistentVolumeClaim", namespace, used);
            if !claim.is_some_and(|claim| reaches(world, claim, node)) {
                return Err(format!(
                    "pod {namespace}/{name} came to {node}, where its claim {used} has no volume"
                ));
            }
        }
        Ok(())
    }

    /// What names another one stays with it.
    fn is_for_good(change: &Change<'_>, pointer: &str) -> Result<(), String> {
        let (Some(old), Some(new)) = (change.old, change.new) else {
            return Ok(());
        };
        let (before, after) = (text(old, pointer), text(new, pointer));
        match before.is_empty() || before == after {
            true => Ok(()),
            false => Err(format!(
                "{} {:?} went from {before} to {after}",
                change.kind, change.name
            )),
        }
    }
}

impl Invariant for Volumes {
    fn see(&mut self, world: &World, change: &Change<'_>) -> Result<(), String> {
        match (change.kind, change.new) {
            ("Pod", _) => Self::pod(world, change),
            ("PersistentVolumeClaim", Some(_)) => Self::is_for_good(change, "/spec/volumeName"),
            ("PersistentVolumeClaim", None) => match runner(world, change.name) {
                Some(pod) => Err(format!(
                    "claim {:?} went while pod {pod:?} uses it",
                    change.name
                )),
                None => Ok(()),
            },
            ("PersistentVolume", Some(_)) => Self::is_for_good(change, "/spec/claimRef/uid"),
            ("PersistentVolume", None) => {
                let uid = change.old.map(|v| text(v, "/spec/claimRef/uid"));
                let claim = uid.and_then(|uid| world.by_uid("PersistentVolumeClaim", uid));
                match claim.is_some() {
                    true => Err(format!("volume {:?} went before its claim", change.name)),
                    false => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn unsettled(&mut self, world: &World) -> Vec<String> {
        let mut all = Vec::new();
        for (name, claim) in world.all("PersistentVolumeClaim") {
            let is_used = users(world, name).next().is_some();
            // Nobody may have come for it yet; then it has no volume.
            if is_used || !text(claim, "/spec/volumeName").is_empty() {
                all.extend(misbound(world, name, claim));
            }
            if is_going(claim) && !is_used {
                all.push(format!("claim {name:?} is still going"));
            }
        }
        for ((_, name), volume) in world.all("PersistentVolume") {
            let uid = text(volume, "/spec/claimRef/uid");
            if world.by_uid("PersistentVolumeClaim", uid).is_none() {
                all.push(format!("volume {name} is left over"));
            }
        }
        for ((namespace, name), pod) in world.all("Pod").filter(|(_, pod)| !is_over(pod)) {
            for used in claims_of(pod) {
                if world
                    .get("PersistentVolumeClaim", namespace, used)
                    .is_none()
                {
                    all.push(format!("pod {namespace}/{name} lacks its claim {used}"));
                }
            }
        }
        all
    }
}
