//! Counting the pods of a Job exactly once each. Pure.
//!
//! ```text
//!  ended, with finalizer ──> uid in status.uncountedTerminatedPods ──> finalizer removed
//!                                                                           │
//!                     status.succeeded / status.failed  <── uid leaves the list, number grows
//! ```
//! A crash between any two steps loses and doubles nothing: a listed pod with its finalizer is
//! not listed again, and one without it only has to be added up.

use std::collections::HashSet;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        batch::v1::{JobCondition, JobStatus, UncountedTerminatedPods},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    plan::{Act, Plan, Verdict},
    view::{View, is_tracked, true_condition, uid},
};
use crate::pods;

/// Pods counted in one pass, so that the list in the status stays small.
const UNCOUNTED_MAX: usize = 500;

/// What came of a plan's act.
#[derive(Clone, Debug, Default)]
pub struct Effect {
    /// Places of the pods that are going.
    pub deleted: Vec<usize>,
    /// How many pods were made.
    pub created: usize,
}

/// The status to be written before finalizers are removed, and what comes after.
#[derive(Clone, Debug)]
pub struct Tally {
    /// The status.
    pub status: JobStatus,
    /// Places of the pods whose finalizer goes once the status is written.
    pub release: Vec<usize>,
    /// Whether the Job was suspended or resumed just now.
    pub suspended: Option<bool>,
    verdict: Option<Verdict>,
    tracked: HashSet<String>,
}

/// Counts after the act.
pub fn tally(v: &View, plan: &Plan, effect: &Effect) -> Tally {
    let mut status = v.status.clone();
    status.uncounted_terminated_pods.get_or_insert_default();
    if status.start_time.is_none() && !v.is_suspended() {
        status.start_time = Some(Time(v.now));
    }
    let active = v.active.len() - effect.deleted.len() + effect.created;
    present(v, effect, active, &mut status);
    let mut verdict = plan.verdict.clone();
    let mut suspended = None;
    if verdict.is_some() {
        // Not ended while pods could not be deleted.
        verdict = verdict.filter(|_| active == 0);
    } else if is_complete(v, active) {
        verdict = Some(Verdict::completed());
    } else if v.job.metadata.deletion_timestamp.is_none() {
        suspended = note_suspension(v, &mut status);
    }
    let removed = match plan.act {
        Act::Remove(_) => effect.deleted.as_slice(),
        _ => &[],
    };
    let released = |i: &usize| !removed.contains(i) && is_tracked(&v.pods[*i]);
    let candidates: Vec<usize> = (0..v.pods.len()).filter(released).collect();
    let tracked: HashSet<String> = candidates
        .iter()
        .map(|&i| uid(&v.pods[i]).to_owned())
        .collect();
    add_up(&mut status, &tracked);
    let (release, capped) = note_ended(v, &candidates, verdict.as_ref(), &mut status);
    if let Some(verdict) = &verdict {
        note_verdict(verdict, &mut status, v.now);
    }
    Tally {
        status,
        release,
        suspended,
        verdict: verdict.filter(|_| !capped),
        tracked,
    }
}

impl Tally {
    /// The status once the pods of these uids are without their finalizer, and how the Job
    /// has ended if now it has.
    pub fn after(mut self, released: &[&str], now: Timestamp) -> (JobStatus, Option<Verdict>) {
        for uid in released {
            self.tracked.remove(*uid);
        }
        add_up(&mut self.status, &self.tracked);
        let uncounted = self.status.uncounted_terminated_pods.as_ref();
        let left = uncounted.is_some_and(|u| {
            let some = |l: &Option<Vec<String>>| l.as_ref().is_some_and(|l| !l.is_empty());
            some(&u.succeeded) || some(&u.failed)
        });
        let leaving = self.status.terminating.unwrap_or(0) > 0;
        let all = released.len() == self.release.len();
        let verdict = self.verdict.filter(|_| all && !left && !leaving);
        if let Some(verdict) = &verdict {
            let kind = if verdict.success {
                "Complete"
            } else {
                "Failed"
            };
            let (reason, message) = (&verdict.reason, &verdict.message);
            set_condition(&mut self.status, kind, "True", reason, message, now);
            if verdict.success {
                self.status.completion_time = Some(Time(now));
            }
        }
        (self.status, verdict)
    }
}

/// What is there now: active, ready and leaving pods.
fn present(v: &View, effect: &Effect, active: usize, status: &mut JobStatus) {
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let stays = |i: &&usize| !effect.deleted.contains(i);
    let ready = v.active.iter().filter(stays);
    let ready = ready.filter(|&&i| pods::is_ready(&v.pods[i])).count();
    status.active = Some(number(active)).filter(|n| *n > 0);
    status.ready = Some(number(ready));
    status.terminating = Some(number(v.terminating + effect.deleted.len()));
}

fn is_complete(v: &View, active: usize) -> bool {
    let enough = match v.completions() {
        None => v.succeeded > 0,
        Some(wanted) => i64::from(v.succeeded) >= i64::from(wanted),
    };
    enough && active == 0
}

/// Says whether the Job is suspended; answers it if that is news.
fn note_suspension(v: &View, status: &mut JobStatus) -> Option<bool> {
    let suspended = v.is_suspended();
    let known = status.conditions.iter().flatten();
    let known = known.clone().find(|c| c.type_ == "Suspended");
    let news = match known {
        Some(c) => (c.status == "True") != suspended,
        None => suspended,
    };
    if !news {
        return None;
    }
    if suspended {
        set_condition(
            status,
            "Suspended",
            "True",
            "JobSuspended",
            "Job suspended",
            v.now,
        );
        status.start_time = None;
    } else {
        set_condition(
            status,
            "Suspended",
            "False",
            "JobResumed",
            "Job resumed",
            v.now,
        );
        status.start_time = Some(Time(v.now));
    }
    Some(suspended)
}

/// Lists newly ended pods in the status. Answers the pods that need their finalizer no more, and
/// whether some had to wait for the next pass.
fn note_ended(
    v: &View,
    candidates: &[usize],
    verdict: Option<&Verdict>,
    status: &mut JobStatus,
) -> (Vec<usize>, bool) {
    let mut release = Vec::new();
    let mut capped = false;
    let mut uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let mut order = candidates.to_vec();
    order.sort_by_key(|&i| v.index_of(&v.pods[i]));
    let mut done = Vec::new();
    for i in order {
        let pod = &v.pods[i];
        if !may_release(v, pod, verdict) {
            continue;
        }
        let noted = v.is_noted_succeeded(pod) || v.is_noted_failed(pod);
        if !noted && count(&uncounted) + done.len() >= UNCOUNTED_MAX {
            capped = true;
            continue;
        }
        release.push(i);
        if pods::phase(pod) == "Succeeded" && !v.is_noted_failed(pod) {
            if v.indexes().is_none() {
                if !v.is_noted_succeeded(pod) {
                    let list = uncounted.succeeded.get_or_insert_default();
                    list.push(uid(pod).to_owned());
                }
            } else if let Some(index) = v.index_of(pod)
                && !v.done_before.contains(index)
            {
                done.push(index);
            }
        } else if counts_as_failed(v, pod, verdict) {
            let list = uncounted.failed.get_or_insert_default();
            list.push(uid(pod).to_owned());
        }
    }
    status.uncounted_terminated_pods = Some(uncounted);
    if v.indexes().is_some() {
        let all = v.done_before.union(&done.into_iter().collect());
        status.succeeded = i32::try_from(all.len()).ok().filter(|n| *n > 0);
        status.completed_indexes = Some(all.to_string()).filter(|t| !t.is_empty());
        status.failed_indexes = v.failed_indexes.as_ref().map(ToString::to_string);
    }
    (release, capped)
}

fn count(uncounted: &UncountedTerminatedPods) -> usize {
    let len = |l: &Option<Vec<String>>| l.as_ref().map_or(0, Vec::len);
    len(&uncounted.succeeded) + len(&uncounted.failed)
}

fn may_release(v: &View, pod: &Pod, verdict: Option<&Verdict>) -> bool {
    if v.job.metadata.deletion_timestamp.is_some()
        || verdict.is_some()
        || pods::phase(pod) == "Succeeded"
    {
        return true;
    }
    let awaited = || {
        let place = v.index_of(pod).and_then(|i| v.predecessors.get(&i));
        place.is_some_and(|&p| uid(&v.pods[p]) == uid(pod))
    };
    v.has_failed(pod) && !awaited()
}

/// When a Job has failed, every pod that has not succeeded has failed.
fn counts_as_failed(v: &View, pod: &Pod, verdict: Option<&Verdict>) -> bool {
    let failed = v.has_failed(pod) || verdict.is_some_and(|v| !v.success);
    failed && !v.is_noted_failed(pod) && v.is_valid(pod) && v.ruling(pod).counts()
}

/// Adds up the listed pods that have lost their finalizer.
fn add_up(status: &mut JobStatus, tracked: &HashSet<String>) {
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    let settle = |list: &mut Option<Vec<String>>, sum: &mut Option<i32>| {
        let Some(all) = list else { return };
        let before = all.len();
        all.retain(|uid| tracked.contains(uid));
        let counted = i32::try_from(before - all.len()).unwrap_or(0);
        if counted > 0 {
            *sum = Some(sum.unwrap_or(0) + counted);
        }
        if all.is_empty() {
            *list = None;
        }
    };
    settle(&mut uncounted.succeeded, &mut status.succeeded);
    settle(&mut uncounted.failed, &mut status.failed);
}

/// The condition that announces the end.
fn note_verdict(verdict: &Verdict, status: &mut JobStatus, now: Timestamp) {
    let kind = if verdict.success {
        "SuccessCriteriaMet"
    } else {
        "FailureTarget"
    };
    if true_condition(status, kind).is_none() {
        let (reason, message) = (&verdict.reason, &verdict.message);
        set_condition(status, kind, "True", reason, message, now);
    }
}

fn set_condition(
    status: &mut JobStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let new = JobCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    let all = status.conditions.get_or_insert_default();
    match all.iter_mut().find(|c| c.type_ == kind) {
        Some(old) => *old = new,
        None => all.push(new),
    }
}
