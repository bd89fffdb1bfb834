//! The limits that a ResourceQuota reports are those that are in force.
//!
//! What is used is counted by the API server with each write, exactly; nothing is left to count
//! here. Only what somebody wrote into the status by hand is put right.

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ResourceQuota;
use serde_json::{Value, json};

use crate::{Context, Controller};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "resourcequota-controller",
    run,
};

struct Quotas {
    context: Context,
    quotas: Cache<ResourceQuota>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let quotas = context.caches.get::<ResourceQuota>(Scope::all());
        quotas.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        quotas.on_change(move |change| to.add(change.key.clone()));
        let reconciler = Quotas {
            context: context.clone(),
            quotas,
        };
        context.work(reconciler, queue).await;
    })
}

/// The patch of the status that tells the limits of the specification.
fn plan(quota: &ResourceQuota) -> Option<Value> {
    let limits = quota.spec.as_ref().and_then(|s| s.hard.clone());
    let told = quota.status.as_ref().and_then(|s| s.hard.clone());
    let (limits, told) = (limits.unwrap_or_default(), told.unwrap_or_default());
    if limits == told {
        return None;
    }
    let mut hard = json!(limits);
    for gone in told.keys().filter(|k| !limits.contains_key(*k)) {
        hard[gone] = Value::Null;
    }
    Some(json!({"metadata": {"uid": quota.metadata.uid}, "status": {"hard": hard}}))
}

impl Reconcile for Quotas {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(quota) = self.quotas.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let Some(patch) = plan(&quota) else {
            return Ok(Requeue::OnChange);
        };
        let api = write::namespaced::<ResourceQuota>(&self.context.client, &key.namespace);
        if let Some(written) = write::patch_status(&api, &key.name, &patch).await? {
            self.quotas.caught_up(write::revision_of(&written)).await?;
        }
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_by_hand_is_put_right() {
        let quota = |told: Value| -> ResourceQuota {
            serde_json::from_value(
                json!({"metadata": {"uid": "u"}, "spec": {"hard": {"pods": "2"}},
                "status": {"hard": told}}),
            )
            .unwrap()
        };
        assert_eq!(plan(&quota(json!({"pods": "2"}))), None);
        let patch = plan(&quota(json!({"pods": "3", "cpu": "1"}))).unwrap();
        assert_eq!(patch["status"]["hard"], json!({"pods": "2", "cpu": null}));
    }
}
