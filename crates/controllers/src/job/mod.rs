//! Runs pods until enough of them have succeeded, and counts each exactly once.
//!
//! ```text
//!                 ┌──────────── too many fail, too late, by policy ──> FailureTarget ──> Failed
//!  pods are made ─┤                                                        │ (pods leave)
//!                 └─ enough succeed, by policy ──> SuccessCriteriaMet ─────┴──> Complete
//! ```

mod backoff;
mod indexes;
mod plan;
mod policy;
mod template;
#[cfg(test)]
mod tests;
mod track;
mod view;

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use client::{
    Cache, Change, Entry, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, Selector,
    cache::decode_all, write,
};
use futures::future::BoxFuture;
use k8s_openapi::api::{
    batch::v1::{Job, JobStatus},
    core::v1::Pod,
};
use kube::Api;
use serde_json::json;

use crate::{Context, Controller, claim, pod_control::PodControl};
use backoff::Backoff;
use plan::{Act, Plan, Verdict};
use track::Effect;
use view::{FINALIZER, View, is_tracked, uid};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "job-controller",
    run,
};

/// Who manages a Job that names nobody.
const MANAGER: &str = "kubernetes.io/job-controller";
/// Changes of pods within this time are looked at together.
const GATHER: Duration = Duration::from_millis(20);

/// What is reconciled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Target {
    /// A Job.
    Job(Key),
    /// A pod that may have lost its Job and must not keep its finalizer.
    Orphan(Key),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(key) => write!(f, "{key}"),
            Self::Orphan(key) => write!(f, "pod {key}"),
        }
    }
}

struct Jobs {
    context: Context,
    recorder: Recorder,
    control: PodControl,
    jobs: Cache<Job>,
    pods: Cache<Pod>,
    /// Failures since the last success of Jobs that run.
    backoffs: Mutex<HashMap<Key, Backoff>>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let jobs = context.caches.get::<Job>(Scope::all());
        let pods = context.caches.get::<Pod>(Scope::all());
        let queue = Queue::default();
        jobs.synced().await;
        pods.synced().await;
        let (to, of) = (queue.clone(), pods.clone());
        jobs.on_change(move |change| {
            to.add(Target::Job(change.key.clone()));
            let gone = change.old.as_ref().filter(|_| change.new.is_none());
            for pod in gone.into_iter().flat_map(|j| of.entries_owned_by(&j.uid)) {
                to.add(Target::Orphan(pod.key.clone()));
            }
        });
        let (to, of) = (queue.clone(), jobs.clone());
        pods.on_change(move |change| {
            for target in concerned(change, &of) {
                to.add_after(target, GATHER);
            }
        });
        let recorder = context.recorder();
        let control = PodControl {
            client: context.client.clone(),
            pods: pods.clone(),
            recorder: recorder.clone(),
        };
        let reconciler = Jobs {
            context: context.clone(),
            recorder,
            control,
            jobs,
            pods,
            backoffs: Mutex::default(),
        };
        context.work(reconciler, queue).await;
    })
}

/// What a change of a pod concerns: its Job before and after, those that may adopt it, or the
/// pod alone where its Job is gone.
fn concerned(change: &Change, jobs: &Cache<Job>) -> Vec<Target> {
    let mut targets = Vec::new();
    for entry in [&change.old, &change.new].into_iter().flatten() {
        if let Some(owner) = entry.controller().filter(|o| o.kind == "Job") {
            let key = Key::new(entry.key.namespace.clone(), owner.name.as_str());
            let known = jobs.entry(&key).is_some_and(|j| *j.uid == owner.uid);
            targets.push(if known {
                Target::Job(key)
            } else {
                Target::Orphan(entry.key.clone())
            });
        }
    }
    if let Some(orphan) = change.new.as_ref().filter(|e| e.controller().is_none()) {
        let adopters = adopters(orphan, jobs);
        if adopters.is_empty() && has_finalizer(orphan) {
            targets.push(Target::Orphan(orphan.key.clone()));
        }
        targets.extend(adopters.into_iter().map(Target::Job));
    }
    targets
}

/// Jobs that may adopt a pod without a controller.
fn adopters(orphan: &Entry, jobs: &Cache<Job>) -> Vec<Key> {
    if orphan.deleting {
        return Vec::new();
    }
    let selects = |job: &Job| {
        let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref());
        selector
            .and_then(|s| Selector::of(s).ok())
            .is_some_and(|s| !s.is_everything() && orphan.matches(&s))
    };
    let all = jobs.list_in(&orphan.key.namespace);
    all.iter().filter(|j| selects(j)).map(Key::of).collect()
}

fn has_finalizer(pod: &Entry) -> bool {
    pod.finalizers.iter().any(|f| &**f == FINALIZER)
}

impl Reconcile for Jobs {
    type Key = Target;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, target: &Target) -> Result<Requeue, Error> {
        match target {
            Target::Job(key) => self.reconcile_job(key).await,
            Target::Orphan(key) => {
                self.release_orphan(key).await?;
                Ok(Requeue::OnChange)
            }
        }
    }
}

impl Jobs {
    fn api(&self, key: &Key) -> Api<Job> {
        write::namespaced(&self.context.client, &key.namespace)
    }

    async fn reconcile_job(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(job) = self.jobs.get(key)? else {
            self.forget(key);
            return Ok(Requeue::OnChange);
        };
        let Some(spec) = &job.spec else {
            return Ok(Requeue::OnChange);
        };
        if spec.managed_by.as_deref().is_some_and(|m| m != MANAGER) {
            return Ok(Requeue::OnChange);
        }
        if job.status.as_ref().is_some_and(view::is_finished) {
            self.forget(key);
            self.release_leftovers(&job).await?;
            return Ok(Requeue::OnChange);
        }
        let owned = self.claim(&job, key).await?;
        let view = View::new(&job, spec, &owned, self.backoff(key), self.context.now());
        let plan = plan::plan(&view);
        let (effect, failure) = self.act(&view, &plan.act).await;
        self.count(&view, key, &plan, &effect).await?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let wait = plan.wait.and_then(|w| w.try_into().ok());
        Ok(wait.map_or(Requeue::OnChange, Requeue::After))
    }

    /// The pods of a Job; one that is adopted gets the finalizer first, so that it is counted.
    async fn claim(&self, job: &Job, key: &Key) -> Result<Vec<Pod>, Error> {
        let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref());
        let selector = match selector.map(Selector::of).transpose() {
            Ok(Some(selector)) if !selector.is_everything() => selector,
            Ok(_) => return Ok(Vec::new()),
            Err(e) => return Err(Error::Other(e.to_string())),
        };
        let uid = job.metadata.uid.as_deref().unwrap_or_default();
        let deleting = job.metadata.deletion_timestamp.is_some();
        let candidates = claim::candidates(&self.pods, &key.namespace, uid, &selector);
        let claims = claim::sort(uid, deleting, &selector, candidates);
        for entry in claims.adopt.iter().filter(|e| !has_finalizer(e)) {
            let patch = json!({"metadata": {"uid": entry.uid, "finalizers": [FINALIZER]}});
            self.control.patch(&entry.decode()?, patch).await?;
        }
        let pods = write::namespaced(&self.context.client, &key.namespace);
        let owned = claim::settle(job, &self.api(key), &pods, &self.pods, claims).await?;
        Ok(decode_all(&owned))
    }

    async fn act(&self, v: &View<'_>, act: &Act) -> (Effect, Option<Error>) {
        match act {
            Act::Nothing => (Effect::default(), None),
            Act::Create(new) => {
                let pods = new.iter().map(|n| template::pod(v.job, v.spec, *n));
                let (created, failure) = self.control.create(v.job, pods.collect()).await;
                let effect = Effect {
                    created,
                    ..Effect::default()
                };
                (effect, failure)
            }
            Act::Terminate(which) => self.delete(v, which.clone()).await,
            Act::Remove(which) => {
                let doomed: Vec<&Pod> = which.iter().map(|&i| &v.pods[i]).collect();
                let (done, failed) = self.control.release(&doomed, FINALIZER).await;
                let which = which.iter().zip(done).filter(|(_, done)| *done);
                let (effect, failure) = self.delete(v, which.map(|(i, _)| *i).collect()).await;
                (effect, failure.or(failed))
            }
        }
    }

    async fn delete(&self, v: &View<'_>, which: Vec<usize>) -> (Effect, Option<Error>) {
        let doomed: Vec<&Pod> = which.iter().map(|&i| &v.pods[i]).collect();
        let (done, failure) = self.control.delete(v.job, &doomed).await;
        let deleted = which.into_iter().zip(done).filter(|(_, done)| *done);
        let effect = Effect {
            deleted: deleted.map(|(i, _)| i).collect(),
            ..Effect::default()
        };
        (effect, failure)
    }

    /// Writes what ended, lets it go, and adds it up.
    async fn count(
        &self,
        v: &View<'_>,
        key: &Key,
        plan: &Plan,
        effect: &Effect,
    ) -> Result<(), Error> {
        let tally = track::tally(v, plan, effect);
        let version = v.job.metadata.resource_version.clone();
        let version = self
            .write_status(v.job, key, version, &v.status, &tally.status)
            .await?;
        self.remember(key, v.backoff);
        if let Some(suspended) = tally.suspended {
            let (reason, message) = if suspended {
                ("Suspended", "Job suspended")
            } else {
                ("Resumed", "Job resumed")
            };
            self.recorder.normal(v.job, reason, message);
        }
        let ended: Vec<&Pod> = tally.release.iter().map(|&i| &v.pods[i]).collect();
        let (done, failure) = self.control.release(&ended, FINALIZER).await;
        let released = ended.iter().zip(done).filter(|(_, done)| *done);
        let released: Vec<&str> = released.map(|(p, _)| uid(p)).collect();
        let before = tally.status.clone();
        let (status, verdict) = tally.after(&released, self.context.now());
        self.write_status(v.job, key, version, &before, &status)
            .await?;
        if let Some(verdict) = verdict {
            self.tell(v, &status, &verdict);
            self.forget(key);
        }
        failure.map_or(Ok(()), Err)
    }

    fn tell(&self, v: &View<'_>, status: &JobStatus, verdict: &Verdict) {
        if !verdict.success {
            self.recorder
                .warning(v.job, &verdict.reason, verdict.message.as_str());
            return;
        }
        let wanted = v.spec.completions;
        if wanted.is_some_and(|wanted| status.succeeded.unwrap_or(0) > wanted) {
            let message = "Too many succeeded pods running after completion count reached";
            self.recorder
                .warning(v.job, "TooManySucceededPods", message);
        }
        self.recorder.normal(v.job, "Completed", "Job completed");
    }

    /// Writes to the Job of this `version` only: counts are never added to an older state, also
    /// where an earlier write had its effect and its answer was lost. Answers the new version.
    async fn write_status(
        &self,
        job: &Job,
        key: &Key,
        version: Option<String>,
        before: &JobStatus,
        status: &JobStatus,
    ) -> Result<Option<String>, Error> {
        // Only what changed: conditions of others stay.
        let Some(patch) = write::merge_patch(Some(before), status) else {
            return Ok(version);
        };
        let metadata = json!({"uid": job.metadata.uid, "resourceVersion": version});
        let body = json!({"metadata": metadata, "status": patch});
        let written = write::patch_status(&self.api(key), &key.name, &body).await?;
        let Some(written) = written else {
            return Ok(version);
        };
        let revision = write::revision_of(&written);
        self.jobs.caught_up(revision).await?;
        Ok(Some(revision.to_string()))
    }

    /// Lets go of the pods of a Job that has ended.
    async fn release_leftovers(&self, job: &Job) -> Result<(), Error> {
        let owned = self
            .pods
            .list_owned_by(job.metadata.uid.as_deref().unwrap_or_default());
        let kept: Vec<&Pod> = owned.iter().filter(|p| is_tracked(p)).collect();
        if kept.is_empty() {
            return Ok(());
        }
        let (_, failure) = self.control.release(&kept, FINALIZER).await;
        failure.map_or(Ok(()), Err)
    }

    /// Lets go of a pod unless a Job will count it.
    async fn release_orphan(&self, key: &Key) -> Result<(), Error> {
        let Some(entry) = self.pods.entry(key).filter(|e| has_finalizer(e)) else {
            return Ok(());
        };
        let counted = match entry.controller() {
            Some(owner) => {
                let job = Key::new(key.namespace.clone(), owner.name.as_str());
                let job = self.jobs.entry(&job);
                owner.kind == "Job" && job.is_some_and(|j| *j.uid == owner.uid)
            }
            None => !adopters(&entry, &self.jobs).is_empty(),
        };
        if counted {
            return Ok(());
        }
        let (_, failure) = self.control.release(&[&entry.decode()?], FINALIZER).await;
        failure.map_or(Ok(()), Err)
    }

    fn backoff(&self, key: &Key) -> Backoff {
        let all = self.backoffs.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(key).copied().unwrap_or_default()
    }

    fn remember(&self, key: &Key, backoff: Backoff) {
        let mut all = self.backoffs.lock().unwrap_or_else(PoisonError::into_inner);
        if backoff == Backoff::default() {
            all.remove(key);
        } else {
            all.insert(key.clone(), backoff);
        }
    }

    fn forget(&self, key: &Key) {
        self.remember(key, Backoff::default());
    }
}
