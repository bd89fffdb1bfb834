//! A volume is one claim's for good, a pod runs where its volume is, and neither goes while somebody
//! needs it. In the end every claim that a pod uses has its volume, and no volume is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::Invariant;
use crate::world::{Change, Name, World, is_going, is_over, list, text};

/// How old what the scheduler knows of a claim may be when a pod gets its node: a watch lags, and then a
/// request is on its way for long.
const LATEST_NEWS: Duration = Duration::from_secs(60);

/// The check.
#[derive(Default)]
pub struct Volumes {
    /// Claims that went, and when and where their volumes were. The scheduler may not know yet.
    gone: BTreeMap<Name, (Instant, String)>,
}

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

/// The node from which the volume of a claim can be reached.
fn place<'a>(world: &'a World, claim: &Value) -> Option<&'a str> {
    let volume = world.get("PersistentVolume", "", text(claim, "/spec/volumeName"))?;
    let terms = "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0/values/0";
    Some(text(volume, terms))
}

impl Volumes {
    /// Whether a claim of this name had its volume there a moment ago, and none since.
    fn was_there(&self, claim: &Name, node: &str) -> bool {
        let gone = self.gone.get(claim);
        gone.is_some_and(|(at, place)| place == node && at.elapsed() < LATEST_NEWS)
    }

    fn pod(&self, world: &World, change: &Change<'_>) -> Result<(), String> {
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
            let place = claim.and_then(|claim| place(world, claim));
            let claim = (namespace.clone(), used.to_owned());
            if place != Some(node) && (place.is_some() || !self.was_there(&claim, node)) {
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
            ("Pod", _) => self.pod(world, change),
            ("PersistentVolumeClaim", Some(_)) => Self::is_for_good(change, "/spec/volumeName"),
            ("PersistentVolumeClaim", None) => {
                if let Some(place) = change.old.and_then(|claim| place(world, claim)) {
                    let now = (Instant::now(), place.to_owned());
                    self.gone.insert(change.name.clone(), now);
                }
                match runner(world, change.name) {
                    Some(pod) => Err(format!(
                        "claim {:?} went while pod {pod:?} uses it",
                        change.name
                    )),
                    None => Ok(()),
                }
            }
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
