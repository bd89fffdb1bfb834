//! What a Job and its pods amount to at one moment. Pure.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    batch::v1::{Job, JobCondition, JobSpec, JobStatus},
    core::v1::Pod,
};

use super::{
    backoff::{self, Backoff},
    indexes::Indexes,
    policy::{self, Ruling},
};
use crate::pods;

/// Keeps ended pods until they are counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// The completion index of a pod, as annotation and label.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often the index of a pod has failed before, failures that count.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// How often it has failed before without counting.
pub const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// A Job, its pods, and what follows from them alone.
pub struct View<'a> {
    /// The Job.
    pub job: &'a Job,
    /// Its spec.
    pub spec: &'a JobSpec,
    /// Its status so far.
    pub status: JobStatus,
    /// The pods it owns.
    pub pods: &'a [Pod],
    /// The present moment.
    pub now: Timestamp,
    /// Failures since the last success, the new ones among them.
    pub backoff: Backoff,
    /// Pods that run or may run.
    pub active: Vec<usize>,
    /// How many pods are on their way out.
    pub terminating: usize,
    /// Pods that succeeded, counted or not; by index where there are indexes.
    pub succeeded: i32,
    /// Pods that failed, counted or not, as far as failures count.
    pub failed: i32,
    /// Indexes that the status calls done.
    pub done_before: Indexes,
    /// Indexes that are done.
    pub done: Indexes,
    /// Indexes that have failed for good, where a limit per index is set.
    pub failed_indexes: Option<Indexes>,
    /// The last failed pod of each index without an active one, where a limit per index is set:
    /// it is kept until its successor carries its number of failures.
    pub predecessors: BTreeMap<u32, usize>,
    uncounted_succeeded: HashSet<String>,
    uncounted_failed: HashSet<String>,
}

impl<'a> View<'a> {
    /// What `job` and its `pods` amount to; `backoff` is that of the look before.
    pub fn new(
        job: &'a Job,
        spec: &'a JobSpec,
        pods: &'a [Pod],
        backoff: Backoff,
        now: Timestamp,
    ) -> Self {
        let status = job.status.clone().unwrap_or_default();
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let set = |list: Option<Vec<String>>| list.into_iter().flatten().collect::<HashSet<_>>();
        let terminating =
            |p: &&Pod| p.metadata.deletion_timestamp.is_some() && !pods::is_terminal(p);
        let mut view = Self {
            job,
            spec,
            pods,
            now,
            backoff,
            active: (0..pods.len())
                .filter(|&i| pods::is_active(&pods[i]))
                .collect(),
            terminating: pods.iter().filter(terminating).count(),
            succeeded: 0,
            failed: 0,
            done_before: Indexes::default(),
            done: Indexes::default(),
            failed_indexes: None,
            predecessors: BTreeMap::new(),
            uncounted_succeeded: set(uncounted.succeeded),
            uncounted_failed: set(uncounted.failed),
            status,
        };
        view.count();
        view.count_indexes();
        view
    }

    fn count(&mut self) {
        let ended = |uncounted: &HashSet<String>, ended: &dyn Fn(&Pod) -> bool| -> Vec<&Pod> {
            let fresh = |p: &&Pod| !uncounted.contains(uid(p)) && is_tracked(p) && ended(p);
            self.pods
                .iter()
                .filter(fresh)
                .filter(|p| self.is_valid(p))
                .collect()
        };
        let succeeded = ended(&self.uncounted_succeeded, &|p| {
            pods::phase(p) == "Succeeded"
        });
        let failed = ended(&self.uncounted_failed, &|p| self.has_failed(p));
        let counting = failed.iter().filter(|p| self.ruling(p).counts()).count();
        let backoff = self.backoff.after(&succeeded, &failed);
        let total = |before: Option<i32>, new: usize, uncounted: usize| {
            before
                .unwrap_or(0)
                .saturating_add(i32::try_from(new + uncounted).unwrap_or(i32::MAX))
        };
        let uncounted = self.uncounted_succeeded.len();
        let sum = total(self.status.succeeded, succeeded.len(), uncounted);
        let uncounted = self.uncounted_failed.len();
        let failed = total(self.status.failed, counting, uncounted);
        (self.succeeded, self.failed, self.backoff) = (sum, failed, backoff);
    }

    fn count_indexes(&mut self) {
        let Some(end) = self.indexes() else { return };
        let text = self.status.completed_indexes.as_deref().unwrap_or_default();
        self.done_before = Indexes::parse(text, end);
        let new = self
            .tracked()
            .filter(|(_, p)| pods::phase(p) == "Succeeded")
            .map(|(i, _)| i);
        self.done = self.done_before.union(&new.collect());
        self.succeeded = i32::try_from(self.done.len()).unwrap_or(i32::MAX);
        if let Some(limit) = self.spec.backoff_limit_per_index {
            let text = self.status.failed_indexes.as_deref().unwrap_or_default();
            let failed = self
                .tracked()
                .filter(|(_, p)| self.fails_index(p, limit))
                .map(|(i, _)| i);
            let failed = Indexes::parse(text, end).union(&failed.collect());
            self.failed_indexes = Some(failed);
            self.predecessors = self.find_predecessors();
        }
    }

    fn fails_index(&self, pod: &Pod, limit: i32) -> bool {
        if !self.has_failed(pod) {
            return false;
        }
        let ruling = self.ruling(pod);
        ruling == Ruling::FailIndex || ruling.counts() && number(pod, FAILURES) >= limit
    }

    fn find_predecessors(&self) -> BTreeMap<u32, usize> {
        let active: BTreeSet<u32> = self.active_indexes().collect();
        let failed = self.failed_indexes.clone().unwrap_or_default();
        let rank = |i: usize| {
            (
                all_failures(&self.pods[i]),
                backoff::finished_at(&self.pods[i]),
            )
        };
        let mut last: BTreeMap<u32, usize> = BTreeMap::new();
        for (place, pod) in self.pods.iter().enumerate() {
            let Some(index) = self.index_of(pod) else {
                continue;
            };
            let settled =
                self.done.contains(index) || failed.contains(index) || active.contains(&index);
            if settled || !is_tracked(pod) || !self.has_failed(pod) {
                continue;
            }
            let before = last.entry(index).or_insert(place);
            if rank(place) >= rank(*before) {
                *before = place;
            }
        }
        last
    }

    /// Pods with a valid index that are not counted yet.
    fn tracked(&self) -> impl Iterator<Item = (u32, &'a Pod)> {
        self.pods
            .iter()
            .filter(|p| is_tracked(p))
            .filter_map(|p| Some((self.index_of(p)?, p)))
    }

    /// The end of the indexes; `None`: the Job has none.
    pub fn indexes(&self) -> Option<u32> {
        (self.spec.completion_mode.as_deref() == Some("Indexed"))
            .then(|| self.completions().unwrap_or(0))
    }

    /// How many pods are to succeed.
    pub fn completions(&self) -> Option<u32> {
        self.spec.completions.and_then(|c| u32::try_from(c).ok())
    }

    /// A pod's index, if the Job has it.
    pub fn index_of(&self, pod: &Pod) -> Option<u32> {
        let index = annotation(pod, INDEX)?.parse().ok()?;
        self.indexes()
            .is_some_and(|end| index < end)
            .then_some(index)
    }

    /// Whether a pod may be counted: in a Job with indexes, it must have a valid one.
    pub fn is_valid(&self, pod: &Pod) -> bool {
        self.indexes().is_none() || self.index_of(pod).is_some()
    }

    /// Indexes of active pods.
    pub fn active_indexes(&self) -> impl Iterator<Item = u32> {
        self.active
            .iter()
            .filter_map(|&i| self.index_of(&self.pods[i]))
    }

    /// Whether a pod is replaced only when it has ended.
    pub fn replaces_only_failed(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
    }

    /// Whether a pod counts as failed: deleted ones do at once, unless the Job waits for their end.
    pub fn has_failed(&self, pod: &Pod) -> bool {
        match pods::phase(pod) {
            "Failed" => true,
            "Succeeded" => false,
            _ => !self.replaces_only_failed() && pod.metadata.deletion_timestamp.is_some(),
        }
    }

    /// What the Job's policy says about a failed pod.
    pub fn ruling(&self, pod: &Pod) -> Ruling {
        policy::rule(self.spec.pod_failure_policy.as_ref(), pod)
    }

    /// Whether the Job is not to run now.
    pub fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    /// Whether the status lists the pod as succeeded but not yet counted.
    pub fn is_noted_succeeded(&self, pod: &Pod) -> bool {
        self.uncounted_succeeded.contains(uid(pod))
    }

    /// Whether the status lists the pod as failed but not yet counted.
    pub fn is_noted_failed(&self, pod: &Pod) -> bool {
        self.uncounted_failed.contains(uid(pod))
    }

    /// What is left of the time the Job may be active; `None`: no limit applies.
    pub fn time_left(&self) -> Option<SignedDuration> {
        let limit = self.spec.active_deadline_seconds?;
        if self.is_suspended() {
            return None;
        }
        let start = self.status.start_time.as_ref().map_or(self.now, |t| t.0);
        Some(SignedDuration::from_secs(limit) - self.now.duration_since(start))
    }

    /// Restarts of containers in pods that run, where a failed container is started again.
    pub fn restarts(&self) -> i32 {
        let again = self.spec.template.spec.as_ref();
        if again.and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
            return 0;
        }
        let alive = |p: &&Pod| matches!(pods::phase(p), "Running" | "Pending");
        let lists = self
            .pods
            .iter()
            .filter(alive)
            .filter_map(|p| p.status.as_ref())
            .flat_map(|s| [&s.init_container_statuses, &s.container_statuses]);
        lists
            .flatten()
            .flatten()
            .map(|c| c.restart_count)
            .fold(0, i32::saturating_add)
    }
}

/// The uid of a pod.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// Whether a pod is kept until it is counted.
pub fn is_tracked(pod: &Pod) -> bool {
    let finalizers = pod.metadata.finalizers.as_deref().unwrap_or_default();
    finalizers.iter().any(|f| f == FINALIZER)
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    let all = pod.metadata.annotations.as_ref()?;
    all.get(key).map(String::as_str)
}

/// The number in an annotation; 0 where there is none.
pub fn number(pod: &Pod, key: &str) -> i32 {
    annotation(pod, key)
        .and_then(|n| n.parse().ok())
        .filter(|n: &i32| *n >= 0)
        .unwrap_or(0)
}

/// How often the index of a pod has failed before.
pub fn all_failures(pod: &Pod) -> i32 {
    number(pod, FAILURES).saturating_add(number(pod, IGNORED))
}

/// The condition of this type, if it holds.
pub fn true_condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    let all = status.conditions.as_deref().unwrap_or_default();
    all.iter().find(|c| c.type_ == kind && c.status == "True")
}

/// Whether the Job has ended, well or not.
pub fn is_finished(status: &JobStatus) -> bool {
    true_condition(status, "Complete")
        .or(true_condition(status, "Failed"))
        .is_some()
}
