//! No pod is made beyond its namespace's quota, and the usage is told right in the end. What is
//! allowed is in the quota's status, as upstream has it: a change of the quota holds from there.

use super::Invariant;
use crate::world::{Change, World, is_over, text};

/// The check.
pub struct Quota;

fn pods(world: &World, namespace: &str) -> usize {
    let of = world.all("Pod").filter(|((ns, _), _)| ns == namespace);
    of.filter(|(_, pod)| !is_over(pod)).count()
}

impl Invariant for Quota {
    fn see(&mut self, world: &World, change: &Change<'_>) -> Result<(), String> {
        let ("Pod", None, Some(_)) = (change.kind, change.old, change.new) else {
            return Ok(());
        };
        let namespace = &change.name.0;
        let Some((_, quota)) = world
            .all("ResourceQuota")
            .find(|((ns, _), _)| ns == namespace)
        else {
            return Ok(());
        };
        let hard = text(quota, "/status/hard/pods");
        let hard: usize = hard.parse().unwrap_or(usize::MAX);
        let found = pods(world, namespace);
        match found > hard {
            true => Err(format!(
                "{namespace} has {found} pods of {hard} that its quota allows"
            )),
            false => Ok(()),
        }
    }

    fn unsettled(&mut self, world: &World) -> Vec<String> {
        let mut all = Vec::new();
        for ((namespace, name), quota) in world.all("ResourceQuota") {
            let hard = |of: &str| text(quota, &format!("/{of}/hard/pods")).to_owned();
            if hard("status") != hard("spec") {
                all.push(format!("quota {namespace}/{name} was not observed"));
            }
            let used = text(quota, "/status/used/pods");
            let found = pods(world, namespace).to_string();
            if used != found {
                all.push(format!(
                    "quota {namespace}/{name} tells of {used} pods, there are {found}"
                ));
            }
        }
        all
    }
}
