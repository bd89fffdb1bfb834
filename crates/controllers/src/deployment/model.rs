//! What the planner knows about a Deployment and its ReplicaSets, and the arithmetic of both.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::amount::scaled;

/// The number of a template in the history of a Deployment.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier numbers of a template that came back.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The Deployment's replicas when its ReplicaSet was scaled last.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The most pods the Deployment may have had then.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// The revision that the Deployment is to return to.
pub const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";
/// Annotations of a Deployment that its ReplicaSets do not inherit.
pub const NOT_INHERITED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    ROLLBACK_TO,
];
/// Tells the ReplicaSets of a Deployment apart.
pub const HASH_LABEL: &str = "pod-template-hash";
/// No deadline: what the API means by the largest number.
const NO_DEADLINE: i32 = i32::MAX;

/// A Deployment, its ReplicaSets (oldest first) and whether old pods still run.
pub struct Snapshot {
    /// The Deployment.
    pub deployment: Deployment,
    /// Its ReplicaSets.
    pub sets: Vec<ReplicaSet>,
    /// Whether a pod of an old ReplicaSet has not ended; by uid of its ReplicaSet.
    pub running: BTreeMap<String, bool>,
}

impl Snapshot {
    /// Oldest first.
    pub fn new(
        deployment: Deployment,
        mut sets: Vec<ReplicaSet>,
        running: BTreeMap<String, bool>,
    ) -> Self {
        sets.sort_by(|a, b| age_key(a).cmp(&age_key(b)));
        Self {
            deployment,
            sets,
            running,
        }
    }

    /// The ReplicaSet of the present template, by its place.
    pub fn current(&self) -> Option<usize> {
        let template = &self.deployment.spec.template;
        self.sets.iter().position(|set| {
            set.spec
                .template
                .as_ref()
                .is_some_and(|t| same(t, template))
        })
    }

    /// All others, by place, oldest first.
    pub fn old(&self) -> Vec<usize> {
        let current = self.current();
        (0..self.sets.len())
            .filter(|i| Some(*i) != current)
            .collect()
    }

    /// Replicas asked for of all these ReplicaSets together.
    pub fn wanted(&self, which: &[usize]) -> i32 {
        which.iter().map(|&i| replicas(&self.sets[i])).sum()
    }

    /// Pods that all these ReplicaSets have together.
    pub fn actual(&self, which: &[usize]) -> i32 {
        which
            .iter()
            .map(|&i| self.sets[i].status.as_ref().map_or(0, |s| s.replicas))
            .sum()
    }

    /// Available pods of all these ReplicaSets together.
    pub fn available(&self, which: &[usize]) -> i32 {
        which.iter().map(|&i| available(&self.sets[i])).sum()
    }

    /// The places of all ReplicaSets.
    pub fn all(&self) -> Vec<usize> {
        (0..self.sets.len()).collect()
    }
}

fn age_key(set: &ReplicaSet) -> (Option<jiff::Timestamp>, &str) {
    let created = set.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (created, set.metadata.name.as_deref().unwrap_or_default())
}

/// Whether two templates are the same but for the label that tells ReplicaSets apart.
pub fn same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    without_hash(a) == without_hash(b)
}

/// A template without the label that tells ReplicaSets apart.
pub fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
        if labels.is_empty() {
            meta.labels = None;
        }
    }
    meta.creation_timestamp = None;
    template
}

/// Replicas a Deployment wants.
pub fn desired(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

/// Replicas asked of a ReplicaSet.
pub fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

/// Available pods of a ReplicaSet.
pub fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|s| s.available_replicas)
        .unwrap_or(0)
}

/// Whether the strategy is RollingUpdate.
pub fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.strategy.as_ref();
    strategy
        .and_then(|s| s.type_.as_deref())
        .unwrap_or("RollingUpdate")
        == "RollingUpdate"
}

/// Whether it is paused.
pub fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.paused.unwrap_or(false)
}

/// Seconds a roll-out may take without progress; `None`: for ever.
pub fn deadline(deployment: &Deployment) -> Option<i32> {
    deployment
        .spec
        .progress_deadline_seconds
        .filter(|d| *d != NO_DEADLINE)
}

/// Surge and unavailability in pods: surge rounds up, unavailability down, and they are not both
/// zero, or nothing could ever move.
fn fence(deployment: &Deployment) -> (i32, i32) {
    let rolling = deployment
        .spec
        .strategy
        .as_ref()
        .and_then(|s| s.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".into());
    let surge = rolling
        .and_then(|r| r.max_surge.as_ref())
        .unwrap_or(&quarter);
    let down = rolling
        .and_then(|r| r.max_unavailable.as_ref())
        .unwrap_or(&quarter);
    let total = desired(deployment);
    match (scaled(surge, total, true), scaled(down, total, false)) {
        (0, 0) => (0, 1),
        both => both,
    }
}

/// Pods above the desired number that a roll-out may have.
pub fn max_surge(deployment: &Deployment) -> i32 {
    if is_rolling(deployment) {
        fence(deployment).0
    } else {
        0
    }
}

/// Pods below the desired number that a roll-out may be short of.
pub fn max_unavailable(deployment: &Deployment) -> i32 {
    let wanted = desired(deployment);
    if !is_rolling(deployment) || wanted == 0 {
        return 0;
    }
    fence(deployment).1.min(wanted)
}

/// An annotation.
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// An annotation that is a number.
pub fn number(meta: &ObjectMeta, key: &str) -> Option<i64> {
    annotation(meta, key)?.parse().ok()
}

/// The revision of a ReplicaSet or Deployment; 0 where it has none.
pub fn revision(meta: &ObjectMeta) -> i64 {
    number(meta, REVISION).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn surge_rounds_up_and_unavailability_down() {
        for (replicas, surge, down, expected) in [
            (10, json!("25%"), json!("25%"), (3, 2)),
            (4, json!("25%"), json!("25%"), (1, 1)),
            (1, json!("25%"), json!("25%"), (1, 0)),
            (3, json!(0), json!("10%"), (0, 1)),
            (3, json!(2), json!(9), (2, 3)),
            (0, json!("25%"), json!("25%"), (0, 0)),
        ] {
            let d: Deployment = serde_json::from_value(json!({"spec": {
                "replicas": replicas, "selector": {}, "template": {},
                "strategy": {"type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": surge, "maxUnavailable": down}}}}))
            .unwrap();
            assert_eq!(
                (max_surge(&d), max_unavailable(&d)),
                expected,
                "{replicas} {surge} {down}"
            );
        }
    }
}
