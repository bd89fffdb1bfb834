//! Whether a Job has ended, and which pods it lacks or has too many of. Pure.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;

use super::{
    backoff,
    indexes::Indexes,
    policy::{self, Ruling},
    view::{self, View, all_failures, number, true_condition},
};
use crate::pod_control::by_loss;

/// Pods made or deleted in one pass.
const BURST: usize = 500;

/// How a Job ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Well or not.
    pub success: bool,
    /// One word in CamelCase.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Verdict {
    fn failure(reason: &str, message: &str) -> Self {
        Self {
            success: false,
            reason: reason.into(),
            message: message.into(),
        }
    }

    /// As many pods have succeeded as were asked for.
    pub fn completed() -> Self {
        Self {
            success: true,
            reason: "CompletionsReached".into(),
            message: "Reached expected number of succeeded pods".into(),
        }
    }
}

/// A pod to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewPod {
    /// Its index, in Jobs with indexes.
    pub index: Option<u32>,
    /// How often the index has failed before, counting and not, where a limit per index is set.
    pub failures: Option<(i32, i32)>,
}

/// What is to be done about the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Nothing,
    /// Make these.
    Create(Vec<NewPod>),
    /// Delete these, by their place, without counting them as failed.
    Remove(Vec<usize>),
    /// Delete these, by their place, because the Job has ended.
    Terminate(Vec<usize>),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Whether the Job has ended.
    pub verdict: Option<Verdict>,
    /// What is to be done about the pods.
    pub act: Act,
    /// When to look again at the latest.
    pub wait: Option<SignedDuration>,
}

/// Decides.
pub fn plan(v: &View) -> Plan {
    let verdict = earlier(v)
        .or_else(|| by_policy(v))
        .or_else(|| by_limits(v))
        .or_else(|| by_indexes(v));
    let mut wait = None;
    let act = if verdict.is_some() {
        Act::Terminate(v.active.clone())
    } else if v.job.metadata.deletion_timestamp.is_some() {
        Act::Nothing
    } else {
        wait = v.time_left();
        manage(v, &mut wait)
    };
    Plan { verdict, act, wait }
}

/// What an earlier look decided stays decided.
fn earlier(v: &View) -> Option<Verdict> {
    let of = |kind: &str, success: bool| {
        true_condition(&v.status, kind).map(|c| Verdict {
            success,
            reason: c.reason.clone().unwrap_or_default(),
            message: c.message.clone().unwrap_or_default(),
        })
    };
    of("SuccessCriteriaMet", true).or_else(|| of("FailureTarget", false))
}

fn by_policy(v: &View) -> Option<Verdict> {
    v.spec.pod_failure_policy.as_ref()?;
    let message = v.pods.iter().filter(|p| v.has_failed(p)).find_map(|p| {
        if let Ruling::FailJob(why) = v.ruling(p) {
            Some(why)
        } else {
            None
        }
    })?;
    Some(Verdict::failure("PodFailurePolicy", &message))
}

fn by_limits(v: &View) -> Option<Verdict> {
    let limit = v.spec.backoff_limit.unwrap_or(6);
    let restarts = v.restarts();
    if v.failed > limit || restarts > 0 && restarts >= limit {
        return Some(Verdict::failure(
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
        ));
    }
    let late = v.time_left().is_some_and(|left| !left.is_positive());
    late.then(|| {
        let message = "Job was active longer than specified deadline";
        Verdict::failure("DeadlineExceeded", message)
    })
}

fn by_indexes(v: &View) -> Option<Verdict> {
    let completions = v.indexes()?;
    if let Some(failed) = v.failed_indexes.as_ref().filter(|f| !f.is_empty()) {
        let most = v
            .spec
            .max_failed_indexes
            .and_then(|n| usize::try_from(n).ok());
        if most.is_some_and(|most| failed.len() > most) {
            return Some(Verdict::failure(
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes",
            ));
        }
        if failed.len() + v.done.len() >= completions as usize {
            return Some(Verdict::failure("FailedIndexes", "Job has failed indexes"));
        }
    }
    let message = policy::succeeds(v.spec.success_policy.as_ref(), completions, &v.done)?;
    Some(Verdict {
        success: true,
        reason: "SuccessPolicy".into(),
        message,
    })
}

fn manage(v: &View, wait: &mut Option<SignedDuration>) -> Act {
    if v.is_suspended() {
        return remove(v, v.active.len());
    }
    let parallelism = usize::try_from(v.spec.parallelism.unwrap_or(1)).unwrap_or(0);
    let active = v.active.len();
    let wanted = match v.completions() {
        // Without a number, one success is enough, and what runs may end.
        None if v.succeeded > 0 => active,
        None => parallelism,
        Some(all) => {
            let left = i64::from(all) - i64::from(v.succeeded);
            usize::try_from(left).unwrap_or(0).min(parallelism)
        }
    };
    let removal = remove(v, active.saturating_sub(wanted));
    if removal != Act::Nothing {
        return removal;
    }
    let coming = if v.replaces_only_failed() {
        v.terminating
    } else {
        0
    };
    let missing = wanted.saturating_sub(coming + active).min(BURST);
    if missing == 0 {
        return Act::Nothing;
    }
    let (new, delay) = create(v, missing);
    let earlier = |w: Option<SignedDuration>| Some(w.map_or(delay, |w| w.min(delay)));
    if delay.is_positive() {
        *wait = earlier(*wait);
    }
    if new.is_empty() {
        Act::Nothing
    } else {
        Act::Create(new)
    }
}

/// The pods to be made now, and how long the next has to wait.
fn create(v: &View, missing: usize) -> (Vec<NewPod>, SignedDuration) {
    let per_index = v.spec.backoff_limit_per_index.is_some();
    let remaining = v.backoff.remaining(v.now);
    if !per_index && remaining.is_positive() {
        return (Vec::new(), remaining);
    }
    let Some(end) = v.indexes() else {
        return (vec![NewPod::default(); missing], SignedDuration::ZERO);
    };
    let mut taken: Indexes = v.done.union(&v.active_indexes().collect());
    if v.replaces_only_failed() {
        let leaving = v
            .pods
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_some() && !crate::pods::is_terminal(p));
        taken = taken.union(&leaving.filter_map(|p| v.index_of(p)).collect());
    }
    if let Some(failed) = &v.failed_indexes {
        taken = taken.union(failed);
    }
    let mut new = Vec::new();
    let mut shortest: Option<SignedDuration> = None;
    for index in taken.missing(end, missing) {
        let before = v.predecessors.get(&index).map(|&i| &v.pods[i]);
        let wait = before.map_or(SignedDuration::ZERO, |pod| {
            let failures = u32::try_from(all_failures(pod)).unwrap_or(0) + 1;
            backoff::remaining(failures, backoff::finished_at(pod), v.now)
        });
        if per_index && wait.is_positive() {
            shortest = Some(shortest.map_or(wait, |s| s.min(wait)));
            continue;
        }
        new.push(NewPod {
            index: Some(index),
            failures: per_index.then(|| failures_after(v, before)),
        });
    }
    (new, shortest.unwrap_or(SignedDuration::ZERO))
}

fn failures_after(v: &View, before: Option<&Pod>) -> (i32, i32) {
    let Some(pod) = before else { return (0, 0) };
    let (counted, ignored) = (number(pod, view::FAILURES), number(pod, view::IGNORED));
    if v.ruling(pod).counts() {
        (counted.saturating_add(1), ignored)
    } else {
        (counted, ignored.saturating_add(1))
    }
}

/// Removes at least so many active pods: those whose index is invalid or taken by another one,
/// then those with which least is lost.
fn remove(v: &View, at_least: usize) -> Act {
    let mut sorted = v.active.clone();
    sorted.sort_by_cached_key(|&i| by_loss(&v.pods[i]));
    let mut doomed = Vec::new();
    let mut rest = sorted;
    if v.indexes().is_some() {
        let mut best: BTreeMap<u32, usize> = BTreeMap::new();
        let mut keep = Vec::new();
        for &i in &rest {
            if let Some(index) = v.index_of(&v.pods[i]) {
                best.insert(index, i);
            }
        }
        for i in rest {
            let index = v.index_of(&v.pods[i]);
            if index.is_some_and(|index| best.get(&index) == Some(&i)) {
                keep.push(i);
            } else {
                doomed.push(i);
            }
        }
        rest = keep;
    }
    let more = at_least.saturating_sub(doomed.len());
    doomed.extend(rest.into_iter().take(more));
    if !v.is_suspended() {
        doomed.truncate(BURST);
    }
    if doomed.is_empty() {
        Act::Nothing
    } else {
        Act::Remove(doomed)
    }
}
