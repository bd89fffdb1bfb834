//! How many pods a ReplicaSet lacks, which it has too many of, and what its status is. Pure.

use std::{cmp::Ordering, collections::HashMap};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};

use crate::{
    conditions::{self, Verdict},
    digest::{Member, Phase},
};

/// Pods made or deleted in one pass.
const BURST: usize = 500;
const REPLICA_FAILURE: &str = "ReplicaFailure";

/// What is to be done about the pods of a ReplicaSet.
#[derive(Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Nothing,
    /// Make this many.
    Create(usize),
    /// Delete these, by their place in the list of pods.
    Delete(Vec<usize>),
}

/// Decides from the pods that belong to `set`. `crowd` counts, per node, the active pods of all
/// ReplicaSets of the same owner.
pub fn plan(
    set: &ReplicaSet,
    pods: &[Member],
    crowd: impl FnOnce() -> HashMap<String, usize>,
    now: Timestamp,
) -> Act {
    let active: Vec<usize> = (0..pods.len()).filter(|&i| pods[i].is_active()).collect();
    let wanted = usize::try_from(replicas(set)).unwrap_or(0);
    match active.len().cmp(&wanted) {
        Ordering::Equal => Act::Nothing,
        Ordering::Less => Act::Create((wanted - active.len()).min(BURST)),
        Ordering::Greater => {
            let excess = (active.len() - wanted).min(BURST);
            let crowd = crowd();
            let mut ranked: Vec<(Rank, usize)> = active
                .into_iter()
                .map(|i| (Rank::of(&pods[i], &crowd, now), i))
                .collect();
            ranked.sort();
            Act::Delete(ranked.into_iter().take(excess).map(|(_, i)| i).collect())
        }
    }
}

/// How many pods are wanted.
pub fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

/// Which pod goes first when there are too many: the lesser.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    assigned: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    crowd: std::cmp::Reverse<usize>,
    ready_age: u32,
    restarts: std::cmp::Reverse<(i32, i32)>,
    age: u32,
    uid: Box<str>,
}

impl Rank {
    fn of(pod: &Member, crowd: &HashMap<String, usize>, now: Timestamp) -> Self {
        Self {
            assigned: !pod.node().is_empty(),
            phase: match pod.phase {
                Phase::Pending => 0,
                Phase::Unknown | Phase::Over => 1,
                Phase::Running => 2,
            },
            ready: pod.ready_since.is_some(),
            cost: pod.deletion_cost,
            crowd: std::cmp::Reverse(crowd.get(pod.node()).copied().unwrap_or(0)),
            ready_age: magnitude(pod.ready_since, now),
            restarts: std::cmp::Reverse((pod.restarts, pod.sidecar_restarts)),
            age: magnitude(pod.created, now),
            uid: pod.entry.uid.clone(),
        }
    }
}

/// The age in powers of two: pods of about one age are equal, so that not always the same one
/// goes.
fn magnitude(since: Option<Timestamp>, now: Timestamp) -> u32 {
    let Some(since) = since else { return 0 };
    let age = now.duration_since(since).as_nanos();
    let log = u128::try_from(age).ok().and_then(u128::checked_ilog2);
    log.map_or(0, |log| log + 1)
}

/// The status as the pods and `failure` (reason and message of a failed create or delete) say.
pub fn status(
    set: &ReplicaSet,
    pods: &[Member],
    failure: Option<(&'static str, String)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let template_labels = set
        .spec
        .template
        .as_ref()
        .and_then(|t| t.metadata.as_ref())
        .and_then(|m| m.labels.as_ref());
    let labelled = |pod: &Member| {
        let mut labels = template_labels.into_iter().flatten();
        labels.all(|(k, v)| pod.entry.label(k) == Some(v))
    };
    let active: Vec<&Member> = pods.iter().filter(|p| p.is_active()).collect();
    let count = |test: &dyn Fn(&Member) -> bool| active.iter().filter(|p| test(p)).count() as i32;
    let terminating = pods
        .iter()
        .filter(|p| p.entry.deleting && !p.is_terminal())
        .count() as i32;
    let current = set.status.clone().unwrap_or_default();
    let mut conditions = current.conditions.unwrap_or_default();
    match failure {
        // Another failure than the one it tells of does not change it.
        Some(_) if conditions::find(&conditions, REPLICA_FAILURE).is_some() => {}
        Some((reason, message)) => {
            let verdict = Verdict {
                kind: REPLICA_FAILURE,
                status: "True",
                reason,
                message,
            };
            conditions::set(&mut conditions, verdict, now);
        }
        None => conditions::remove(&mut conditions, REPLICA_FAILURE),
    }
    let available = |p: &Member| {
        p.available_in(min_ready, now)
            .is_some_and(|wait| wait.is_zero())
    };
    ReplicaSetStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: positive(count(&labelled)),
        ready_replicas: positive(count(&|p| p.ready_since.is_some())),
        available_replicas: positive(count(&available)),
        terminating_replicas: Some(terminating),
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

fn positive(count: i32) -> Option<i32> {
    (count > 0).then_some(count)
}

/// When the next ready pod becomes available without any other change.
pub fn next_available(set: &ReplicaSet, pods: &[Member], now: Timestamp) -> Option<SignedDuration> {
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    pods.iter()
        .filter(|p| p.is_active())
        .filter_map(|p| p.available_in(min_ready, now))
        .filter(|wait| !wait.is_zero())
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::cache::parse_entry;
    use serde_json::{Value, json};

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "generation": 3},
            "spec": {"replicas": replicas, "selector": {}, "minReadySeconds": 10,
                     "template": {"metadata": {"labels": {"a": "b"}}}},
        }))
        .unwrap()
    }

    fn pod(name: &str, node: &str, phase: &str, ready_at: Option<i64>) -> Value {
        let conditions = ready_at.map(|at| {
            json!([{"type": "Ready", "status": "True",
                    "lastTransitionTime": Timestamp::from_second(at).unwrap().to_string()}])
        });
        json!({
            "metadata": {"name": name, "uid": name, "labels": {"a": "b"},
                         "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"containers": [], "nodeName": node},
            "status": {"phase": phase, "conditions": conditions},
        })
    }

    fn members<const N: usize>(pods: [Value; N]) -> Vec<Member> {
        let entry = |pod: &Value| parse_entry(pod.to_string().as_bytes()).unwrap().into();
        crate::digest::members(pods.iter().map(entry).collect())
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn makes_what_is_missing_and_ignores_what_has_ended() {
        let pods = members([
            pod("a", "n", "Running", None),
            pod("b", "n", "Failed", None),
        ]);
        let none = HashMap::new;
        assert_eq!(plan(&set(3), &pods, none, at(100)), Act::Create(2));
        assert_eq!(plan(&set(1), &pods, none, at(100)), Act::Nothing);
        assert_eq!(plan(&set(9000), &pods, none, at(100)), Act::Create(BURST));
    }

    #[test]
    fn deletes_the_least_useful_first() {
        let mut dear = pod("dear", "n", "Running", Some(0));
        dear["metadata"]["annotations"] =
            json!({"controller.kubernetes.io/pod-deletion-cost": "5"});
        let pods = members([
            dear,
            pod("old", "n", "Running", Some(1)),
            pod("young", "n", "Running", Some(990)),
            pod("crowded", "m", "Running", Some(1)),
            pod("unready", "n", "Running", None),
            pod("pending", "n", "Pending", None),
            pod("unassigned", "", "Pending", None),
        ]);
        let crowd = HashMap::from([("m".to_owned(), 2), ("n".to_owned(), 1)]);
        let Act::Delete(order) = plan(&set(0), &pods, || crowd, at(1000)) else {
            panic!()
        };
        let names: Vec<_> = order.iter().map(|&i| &*pods[i].entry.key.name).collect();
        assert_eq!(
            names,
            [
                "unassigned",
                "pending",
                "unready",
                "crowded",
                "young",
                "old",
                "dear"
            ]
        );
    }

    #[test]
    fn of_equals_the_one_goes_that_was_started_most_often() {
        let restarted = |name: &str, own: i32, beside: i32| {
            let mut pod = pod(name, "n", "Running", None);
            let status = |name: &str, count: i32| json!({"name": name, "restartCount": count});
            pod["spec"]["initContainers"] = json!([{"name": "mesh", "restartPolicy": "Always"}]);
            pod["status"]["containerStatuses"] = json!([status("c", own)]);
            pod["status"]["initContainerStatuses"] = json!([status("mesh", beside)]);
            pod
        };
        let pods = members([
            restarted("a", 1, 1),
            restarted("b", 1, 2),
            restarted("c", 0, 9),
        ]);
        let order = plan(&set(0), &pods, HashMap::new, at(1000));
        assert_eq!(order, Act::Delete(vec![1, 0, 2]));
    }

    #[test]
    fn the_status_counts_and_keeps_failures() {
        let mut gone = pod("gone", "n", "Running", None);
        gone["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:00:01Z");
        let pods = members([
            pod("a", "n", "Running", Some(0)),
            pod("b", "n", "Running", Some(95)),
            pod("c", "n", "Pending", None),
            gone,
        ]);
        let set = set(3);
        let s = status(&set, &pods, Some(("FailedCreate", "no".into())), at(100));
        assert_eq!(
            (
                s.replicas,
                s.ready_replicas,
                s.available_replicas,
                s.terminating_replicas
            ),
            (3, Some(2), Some(1), Some(1))
        );
        assert_eq!(s.fully_labeled_replicas, Some(3));
        assert_eq!(
            s.conditions.as_ref().unwrap()[0].reason.as_deref(),
            Some("FailedCreate")
        );
        assert_eq!(
            next_available(&set, &pods, at(100)),
            Some(SignedDuration::from_secs(5))
        );
        let mut failing = set.clone();
        failing.status = Some(s.clone());
        let other = Some(("FailedDelete", "never".into()));
        let later = status(&failing, &pods, other, at(200));
        assert_eq!(later.conditions, s.conditions);
        assert_eq!(status(&failing, &pods, None, at(200)).conditions, None);
    }
}
