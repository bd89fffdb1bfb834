//! A disruption budget never allows less than nothing, every eviction was allowed by one, and in
//! the end its counts are those of its pods.

use super::Invariant;
use crate::world::{Change, World, has_condition, is_going, list, number, text};

/// The check.
pub struct Budgets;

fn was_evicted(pod: &serde_json::Value) -> bool {
    let mut all = list(pod, "/status/conditions").iter();
    all.any(|c| c["type"] == "DisruptionTarget" && c["reason"] == "EvictionByEvictionAPI")
}

fn matches(budget: &serde_json::Value, namespace: &str, pod: &serde_json::Value) -> bool {
    text(budget, "/metadata/namespace") == namespace
        && budget.pointer("/spec/selector/matchLabels/app") == pod.pointer("/metadata/labels/app")
}

impl Invariant for Budgets {
    fn see(&mut self, world: &World, change: &Change<'_>) -> Result<(), String> {
        match (change.kind, change.old, change.new) {
            ("PodDisruptionBudget", _, Some(budget)) => {
                let allowed = number(budget, "/status/disruptionsAllowed").unwrap_or(0);
                match allowed < 0 {
                    true => Err(format!("budget {:?} allows {allowed}", change.name)),
                    false => Ok(()),
                }
            }
            ("Pod", Some(old), Some(new)) if was_evicted(new) && !was_evicted(old) => {
                let (namespace, name) = change.name;
                let over = matches!(
                    text(old, "/status/phase"),
                    "Pending" | "Succeeded" | "Failed"
                );
                let mut guards = world.all("PodDisruptionBudget").map(|(_, b)| b);
                let guard = guards.find(|budget| matches(budget, namespace, old));
                let Some(budget) = guard.filter(|_| !over && has_condition(old, "Ready")) else {
                    return Ok(());
                };
                let counted = budget
                    .pointer("/status/disruptedPods")
                    .and_then(|all| all.get(name));
                match counted {
                    Some(_) => Ok(()),
                    None => Err(format!(
                        "pod {namespace}/{name} was evicted against its budget"
                    )),
                }
            }
            _ => Ok(()),
        }
    }

    fn unsettled(&mut self, world: &World) -> Vec<String> {
        let mut all = Vec::new();
        for (name, budget) in world.all("PodDisruptionBudget") {
            let pods = world
                .all("Pod")
                .filter(|((namespace, _), pod)| matches(budget, namespace, pod));
            let healthy = pods
                .filter(|(_, pod)| has_condition(pod, "Ready") && !is_going(pod))
                .count();
            let told = number(budget, "/status/currentHealthy").unwrap_or(0);
            if usize::try_from(told) != Ok(healthy) {
                all.push(format!(
                    "budget {name:?} tells of {told} healthy pods, there are {healthy}"
                ));
            }
        }
        all
    }
}
