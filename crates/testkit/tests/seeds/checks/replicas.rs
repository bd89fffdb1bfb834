//! In the end there are as many pods of each kind of work as asked for, all of the newest template,
//! all ready, and the status says so.

use serde_json::Value;

use super::Invariant;
use crate::world::{World, has_condition, is_controlled_by, is_over, number, text};

/// The check.
pub struct Replicas;

/// Pods that an object controls.
fn pods<'a>(world: &'a World, owner: &Value) -> Vec<(&'a str, &'a Value)> {
    let uid = text(owner, "/metadata/uid");
    let of = world
        .all("Pod")
        .filter(|(_, pod)| is_controlled_by(pod, uid) && !is_over(pod));
    of.map(|((_, name), pod)| (name.as_str(), pod)).collect()
}

/// Says which of these fields of an object differ from what they should be.
fn differences(object: &Value, wanted: &[(&str, i64)]) -> Vec<String> {
    let name = format!(
        "{} {}/{}",
        text(object, "/kind"),
        text(object, "/metadata/namespace"),
        text(object, "/metadata/name")
    );
    let mut all = Vec::new();
    for (pointer, wanted) in wanted {
        let found = number(object, pointer).unwrap_or(0);
        if found != *wanted {
            all.push(format!("{name}: {pointer} is {found}, not {wanted}"));
        }
    }
    if number(object, "/status/observedGeneration") != number(object, "/metadata/generation") {
        all.push(format!("{name}: its last change was not observed"));
    }
    all
}

fn unready(pods: &[(&str, &Value)]) -> Vec<String> {
    let unready = pods.iter().filter(|(_, pod)| !has_condition(pod, "Ready"));
    unready
        .map(|(name, _)| format!("pod {name} is not ready"))
        .collect()
}

impl Replicas {
    fn deployment(world: &World, object: &Value) -> Vec<String> {
        let wanted = number(object, "/spec/replicas").unwrap_or(1);
        let mut all = differences(
            object,
            &[
                ("/status/replicas", wanted),
                ("/status/updatedReplicas", wanted),
                ("/status/readyReplicas", wanted),
                ("/status/availableReplicas", wanted),
            ],
        );
        let uid = text(object, "/metadata/uid");
        let sets = world
            .all("ReplicaSet")
            .filter(|(_, set)| is_controlled_by(set, uid));
        let image = |o: &Value| text(o, "/spec/template/spec/containers/0/image").to_owned();
        for (name, set) in sets {
            let replicas = number(set, "/spec/replicas").unwrap_or(1);
            if image(set) != image(object) && replicas != 0 {
                all.push(format!(
                    "{name:?} of an old template has {replicas} replicas"
                ));
            }
        }
        all
    }

    fn replica_set(world: &World, object: &Value) -> Vec<String> {
        let wanted = number(object, "/spec/replicas").unwrap_or(1);
        let pods = pods(world, object);
        let mut all = differences(
            object,
            &[
                ("/status/replicas", wanted),
                ("/status/readyReplicas", wanted),
                ("/status/availableReplicas", wanted),
            ],
        );
        if i64::try_from(pods.len()) != Ok(wanted) {
            all.push(format!(
                "{} has {} pods, not {wanted}",
                text(object, "/metadata/name"),
                pods.len()
            ));
        }
        all.extend(unready(&pods));
        all
    }

    fn stateful_set(world: &World, object: &Value) -> Vec<String> {
        let wanted = number(object, "/spec/replicas").unwrap_or(1);
        let mut all = differences(
            object,
            &[
                ("/status/replicas", wanted),
                ("/status/readyReplicas", wanted),
                ("/status/availableReplicas", wanted),
                ("/status/updatedReplicas", wanted),
                ("/status/currentReplicas", wanted),
            ],
        );
        let pods = pods(world, object);
        let name = text(object, "/metadata/name");
        let names: Vec<&str> = pods.iter().map(|(name, _)| *name).collect();
        let ordinals: Vec<String> = (0..wanted).map(|n| format!("{name}-{n}")).collect();
        if names != ordinals {
            all.push(format!("{name} has the pods {names:?}, not {wanted}"));
        }
        let revision = text(object, "/status/updateRevision");
        if text(object, "/status/currentRevision") != revision {
            all.push(format!("{name} is between two revisions"));
        }
        let old = pods
            .iter()
            .filter(|(_, pod)| pod["metadata"]["labels"]["controller-revision-hash"] != revision);
        all.extend(old.map(|(name, _)| format!("pod {name} is of an old revision")));
        all.extend(unready(&pods));
        all
    }

    fn daemon_set(world: &World, object: &Value) -> Vec<String> {
        let wanted = i64::try_from(world.all("Node").count()).unwrap_or(0);
        let mut all = differences(
            object,
            &[
                ("/status/desiredNumberScheduled", wanted),
                ("/status/currentNumberScheduled", wanted),
                ("/status/updatedNumberScheduled", wanted),
                ("/status/numberReady", wanted),
                ("/status/numberAvailable", wanted),
            ],
        );
        let pods = pods(world, object);
        let mut nodes: Vec<&str> = pods
            .iter()
            .map(|(_, pod)| text(pod, "/spec/nodeName"))
            .collect();
        nodes.sort_unstable();
        let every: Vec<&str> = world
            .all("Node")
            .map(|((_, name), _)| name.as_str())
            .collect();
        if nodes != every {
            all.push(format!(
                "{} is on {nodes:?}",
                text(object, "/metadata/name")
            ));
        }
        all.extend(unready(&pods));
        all
    }
}

impl Invariant for Replicas {
    fn unsettled(&mut self, world: &World) -> Vec<String> {
        let check = |kind: &str, judge: fn(&World, &Value) -> Vec<String>| {
            let all = world.all(kind);
            all.flat_map(|(_, object)| judge(world, object))
                .collect::<Vec<_>>()
        };
        let mut all = check("Deployment", Self::deployment);
        all.extend(check("ReplicaSet", Self::replica_set));
        all.extend(check("StatefulSet", Self::stateful_set));
        all.extend(check("DaemonSet", Self::daemon_set));
        all
    }
}
