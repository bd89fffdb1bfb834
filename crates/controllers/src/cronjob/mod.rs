//! Starts Jobs by the clock.
//!
//! The name of a Job holds the minute it was due: whatever happens, no run starts twice.

mod plan;

use std::time::Duration;

use client::{Cache, Entry, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, events, write};
use futures::future::BoxFuture;
use k8s_openapi::{
    api::batch::v1::{CronJob, CronJobStatus, Job},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api,
    api::{DeleteParams, PostParams, Preconditions, PropagationPolicy},
};
use serde_json::json;

use crate::{Context, Controller};
use plan::Start;

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "cronjob-controller",
    run,
};

/// A timer must not be early, or the run would not be due yet.
const AFTER_DUE: Duration = Duration::from_millis(100);

struct CronJobs {
    context: Context,
    recorder: Recorder,
    crons: Cache<CronJob>,
    jobs: Cache<Job>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let crons = context.caches.get::<CronJob>(Scope::all());
        let jobs = context.caches.get::<Job>(Scope::all());
        let queue = Queue::default();
        crons.synced().await;
        jobs.synced().await;
        let to = queue.clone();
        crons.on_change(move |change| to.add(change.key.clone()));
        let to = queue.clone();
        jobs.on_change(move |change| {
            for entry in [&change.old, &change.new].into_iter().flatten() {
                if let Some(owner) = entry.controller().filter(|o| o.kind == "CronJob") {
                    to.add(Key::new(entry.key.namespace.clone(), owner.name.as_str()));
                }
            }
        });
        let recorder = context.recorder();
        let reconciler = CronJobs {
            context: context.clone(),
            recorder,
            crons,
            jobs,
        };
        context.work(reconciler, queue).await;
    })
}

impl Reconcile for CronJobs {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(cron) = self.crons.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let uid = cron.metadata.uid.clone().unwrap_or_default();
        let mut jobs = self.jobs.list_owned_by(&uid);
        jobs.retain(|j| {
            let owners = j.metadata.owner_references.as_deref().unwrap_or_default();
            let ours = |o: &&_| is_controller(o, &uid);
            owners.iter().any(|o| ours(&o)) && j.metadata.namespace == cron.metadata.namespace
        });
        let plan = plan::plan(&cron, &jobs, self.context.now());
        let about = events::reference(&cron);
        for (kind, reason, message) in &plan.events {
            self.recorder.event(&about, *kind, reason, message.as_str());
        }
        let mut status = plan.status;
        let mut written = cron.status.clone().unwrap_or_default();
        self.write_status(&cron, key, &mut written, &status).await?;
        for &i in &plan.replace {
            self.delete(&cron, &jobs[i]).await?;
            let uid = &jobs[i].metadata.uid;
            let active = status.active.get_or_insert_default();
            active.retain(|r| r.uid != *uid);
        }
        if let Some(start) = plan.start {
            self.start(&cron, key, *start, &mut status).await?;
        }
        self.write_status(&cron, key, &mut written, &status).await?;
        for &i in &plan.expired {
            self.delete(&cron, &jobs[i]).await?;
        }
        let wait = plan.wait.and_then(|w| Duration::try_from(w).ok());
        Ok(wait.map_or(Requeue::OnChange, |w| Requeue::After(w + AFTER_DUE)))
    }
}

fn is_controller(
    owner: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference,
    uid: &str,
) -> bool {
    owner.controller == Some(true) && owner.uid == uid
}

impl CronJobs {
    fn jobs_api(&self, key: &Key) -> Api<Job> {
        write::namespaced(&self.context.client, &key.namespace)
    }

    async fn start(
        &self,
        cron: &CronJob,
        key: &Key,
        start: Start,
        status: &mut CronJobStatus,
    ) -> Result<(), Error> {
        let api = self.jobs_api(key);
        let name = start.job.metadata.name.clone().unwrap_or_default();
        let job = match api.create(&PostParams::default(), &start.job).await {
            Ok(made) => {
                let message = format!("Created job {name}");
                self.recorder.normal(cron, "SuccessfulCreate", message);
                made
            }
            // Made before the status could be written, or by somebody else.
            Err(e) if client::is_exists(&e) => {
                let found = write::tolerate_missing(api.get(&name).await)?;
                let uid = cron.metadata.uid.as_deref().unwrap_or_default();
                let ours = |j: &Job| {
                    let owners = j.metadata.owner_references.as_deref().unwrap_or_default();
                    owners.iter().any(|o| is_controller(o, uid))
                };
                match found {
                    Some(job) if ours(&job) => job,
                    // Whoever has taken the name runs in its place.
                    _ => return Ok(()),
                }
            }
            Err(e) if client::is_forbidden_by_termination(&e) => return Ok(()),
            Err(e) => {
                let failure = Error::from(e);
                let message = format!("Error creating job: {}", failure.words());
                self.recorder.warning(cron, "FailedCreate", message);
                return Err(failure);
            }
        };
        self.jobs.caught_up(write::revision_of(&job)).await?;
        status.last_schedule_time = Some(Time(start.due));
        if plan::outcome(&job).is_none() {
            let active = status.active.get_or_insert_default();
            active.push(plan::reference(&job));
        }
        Ok(())
    }

    /// Deletes a Job; its pods follow.
    async fn delete(&self, cron: &CronJob, job: &Job) -> Result<(), Error> {
        let key = Key::of(job);
        let uid = job.metadata.uid.as_deref();
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions {
                uid: job.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match self.jobs_api(&key).delete(&key.name, &params).await {
            Ok(_) => {
                let message = format!("Deleted job {}", key.name);
                self.recorder.normal(cron, "SuccessfulDelete", message);
            }
            Err(e) if client::is_not_found(&e) || client::is_conflict(&e) => {}
            Err(e) => {
                let failure = Error::from(e);
                let message = format!("Deleted job: {}", failure.words());
                self.recorder.warning(cron, "FailedDelete", message);
                return Err(failure);
            }
        }
        let gone = |e: Option<&Entry>| e.is_none_or(|e| e.deleting || Some(&*e.uid) != uid);
        self.jobs.until(&key, gone).await
    }

    async fn write_status(
        &self,
        cron: &CronJob,
        key: &Key,
        before: &mut CronJobStatus,
        status: &CronJobStatus,
    ) -> Result<(), Error> {
        let Some(patch) = write::merge_patch(Some(&*before), status) else {
            return Ok(());
        };
        let body = json!({"metadata": {"uid": cron.metadata.uid}, "status": patch});
        let api = write::namespaced::<CronJob>(&self.context.client, &key.namespace);
        if let Some(written) = write::patch_status(&api, &key.name, &body).await? {
            self.crons.caught_up(write::revision_of(&written)).await?;
        }
        before.clone_from(status);
        Ok(())
    }
}
