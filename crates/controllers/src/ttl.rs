//! Deletes Jobs that have ended some time ago, if they ask for it.

use std::time::Duration;

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, Preconditions, PropagationPolicy};

use crate::{Context, Controller};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "ttl-after-finished-controller",
    run,
};

struct Ended {
    context: Context,
    jobs: Cache<Job>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let jobs = context.caches.get::<Job>(Scope::all());
        jobs.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        jobs.on_change(move |change| to.add(change.key.clone()));
        let reconciler = Ended {
            context: context.clone(),
            jobs,
        };
        context.work(reconciler, queue).await;
    })
}

/// How long a Job still has; zero: it is to go; `None`: it stays.
fn left(job: &Job, now: Timestamp) -> Option<SignedDuration> {
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let conditions = job.status.as_ref()?.conditions.as_deref()?;
    let ended = conditions
        .iter()
        .find(|c| c.status == "True" && matches!(c.type_.as_str(), "Complete" | "Failed"))?;
    let since = ended.last_transition_time.as_ref()?.0;
    let due = since.checked_add(SignedDuration::from_secs(ttl.into()));
    Some(due.ok()?.duration_since(now).max(SignedDuration::ZERO))
}

impl Reconcile for Ended {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let now = self.context.now();
        let cached = self.jobs.get(key)?;
        let Some(wait) = cached.as_ref().and_then(|j| left(j, now)) else {
            return Ok(Requeue::OnChange);
        };
        if !wait.is_zero() {
            let wait = Duration::try_from(wait).unwrap_or_default();
            return Ok(Requeue::After(wait));
        }
        // The user may just have given it more time.
        let api = write::namespaced::<Job>(&self.context.client, &key.namespace);
        let fresh = write::tolerate_missing(api.get(&key.name).await)?;
        let Some(job) = fresh.filter(|j| left(j, now).is_some_and(|w| w.is_zero())) else {
            return Ok(Requeue::OnChange);
        };
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            preconditions: Some(Preconditions {
                uid: job.metadata.uid,
                resource_version: job.metadata.resource_version,
            }),
            ..DeleteParams::default()
        };
        write::tolerate_missing(api.delete(&key.name, &params).await)?;
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_time_runs_from_the_end() {
        let done = |kind: &str, status: &str| {
            json!({"conditions": [{"type": kind, "status": status,
                "lastTransitionTime": "1970-01-01T00:01:40Z"}]})
        };
        for (ttl, status, expected) in [
            (json!(60), done("Complete", "True"), Some(40)),
            (json!(10), done("Failed", "True"), Some(0)),
            (json!(0), done("Complete", "True"), Some(0)),
            (json!(60), done("Complete", "False"), None),
            (json!(60), done("Suspended", "True"), None),
            (Value::Null, done("Complete", "True"), None),
            (json!(60), Value::Null, None),
        ] {
            let job = json!({"metadata": {}, "status": status,
                "spec": {"ttlSecondsAfterFinished": ttl, "template": {}}});
            let job: Job = serde_json::from_value(job).unwrap();
            let left = left(&job, Timestamp::from_second(120).unwrap());
            assert_eq!(left.map(|l| l.as_secs()), expected, "{ttl} {status}");
        }
    }
}
