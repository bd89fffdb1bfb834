//! What a Deployment reports about itself. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};

use super::model::{self, Snapshot};
use crate::conditions::{self, Condition, Verdict};

/// The condition that tells whether a roll-out moves.
pub const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const DONE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// The status as the ReplicaSets say; `rollout`: judge the progress too.
pub fn of(
    s: &Snapshot,
    mut conditions: Vec<DeploymentCondition>,
    rollout: bool,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = counts(s);
    let enough = model::desired(&s.deployment) - model::max_unavailable(&s.deployment);
    let available = status.available_replicas.unwrap_or(0) >= enough;
    conditions::set(&mut conditions, availability(available), now);
    if rollout {
        judge(s, &status, &mut conditions, now);
    }
    status.conditions = Some(conditions);
    status
}

fn availability(available: bool) -> Verdict {
    let (status, reason, message) = if available {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    Verdict {
        kind: AVAILABLE,
        status,
        reason,
        message: message.into(),
    }
}

fn counts(s: &Snapshot) -> DeploymentStatus {
    let all = s.all();
    let available = s.available(&all);
    let sum = |of: &dyn Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>| {
        all.iter()
            .filter_map(|&i| s.sets[i].status.as_ref().and_then(of))
            .sum::<i32>()
    };
    let positive = |n: i32| (n > 0).then_some(n);
    let updated: Vec<usize> = s.current().into_iter().collect();
    DeploymentStatus {
        observed_generation: s.deployment.metadata.generation,
        replicas: positive(s.actual(&all)),
        updated_replicas: positive(s.actual(&updated)),
        ready_replicas: positive(sum(&|x| x.ready_replicas)),
        available_replicas: positive(available),
        unavailable_replicas: positive(s.wanted(&all) - available),
        terminating_replicas: Some(sum(&|x| x.terminating_replicas)),
        collision_count: s.deployment.status.as_ref().and_then(|x| x.collision_count),
        conditions: None,
    }
}

/// Whether all wanted pods are of the present template, available, and no others are left.
pub fn is_complete(s: &Snapshot) -> bool {
    is_complete_with(&s.deployment, &counts(s))
}

fn is_complete_with(d: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = model::desired(d);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= d.metadata.generation
}

fn judge(
    s: &Snapshot,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) {
    if model::deadline(&s.deployment).is_none() {
        conditions::remove(conditions, PROGRESSING);
    } else {
        judge_progress(s, status, conditions, now);
    }
    let failure = s.current().into_iter().chain(s.old()).find_map(|i| {
        let all = s.sets[i].status.as_ref()?.conditions.as_deref()?;
        conditions::find(all, REPLICA_FAILURE)
    });
    conditions::remove(conditions, REPLICA_FAILURE);
    if let Some(failure) = failure {
        conditions.push(DeploymentCondition {
            type_: Some(REPLICA_FAILURE.into()),
            status: failure.status.clone(),
            reason: failure.reason.clone(),
            message: failure.message.clone(),
            last_transition_time: failure.last_transition_time.clone(),
            last_update_time: failure.last_transition_time.clone(),
        });
    }
}

fn judge_progress(
    s: &Snapshot,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) {
    let d = &s.deployment;
    let current = conditions::find(conditions, PROGRESSING);
    let reason = current.map(|c| c.reason().to_owned()).unwrap_or_default();
    if status.replicas == status.updated_replicas && reason == DONE {
        return;
    }
    let what = match s.current().and_then(|i| s.sets[i].metadata.name.as_deref()) {
        Some(name) => format!("ReplicaSet \"{name}\""),
        None => format!(
            "Deployment \"{}\"",
            d.metadata.name.as_deref().unwrap_or_default()
        ),
    };
    let say = |status, reason, end: &str| Verdict {
        kind: PROGRESSING,
        status,
        reason,
        message: format!("{what} {end}"),
    };
    if is_complete_with(d, status) {
        conditions::set(
            conditions,
            say("True", DONE, "has successfully progressed."),
            now,
        );
    } else if has_progressed(d, status) {
        conditions::replace(
            conditions,
            say("True", "ReplicaSetUpdated", "is progressing."),
            now,
        );
    } else if left(d, current, now).is_some_and(|left| !left.is_positive()) {
        conditions::set(
            conditions,
            say("False", TIMED_OUT, "has timed out progressing."),
            now,
        );
    }
}

fn has_progressed(d: &Deployment, new: &DeploymentStatus) -> bool {
    let old = d.status.clone().unwrap_or_default();
    let n = |x: Option<i32>| x.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || outdated(new) < outdated(&old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

/// What is left of the deadline; `None`: the clock does not run.
fn left(
    d: &Deployment,
    progressing: Option<&DeploymentCondition>,
    now: Timestamp,
) -> Option<SignedDuration> {
    let condition = progressing?;
    if condition.reason() == DONE {
        return None;
    }
    let limit = SignedDuration::from_secs(model::deadline(d)?.into());
    let due = condition
        .last_update_time
        .as_ref()?
        .0
        .saturating_add(limit)
        .ok()?;
    Some(due.duration_since(now))
}

/// When the deadline has to be looked at again.
pub fn look_again(
    d: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<SignedDuration> {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let progressing = conditions::find(conditions, PROGRESSING);
    let timed_out = progressing.is_some_and(|c| c.reason() == TIMED_OUT);
    if timed_out || model::is_paused(d) || is_complete_with(d, status) {
        return None;
    }
    let left = left(d, progressing, now)?;
    Some(left.max(SignedDuration::ZERO) + SignedDuration::from_secs(1))
}
