//! Takes back what an eviction said of a pod that is still there and is not being deleted.

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, Word, write};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{Context, Controller, pods};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "disruption-controller",
    run,
};

const TARGET: &str = "DisruptionTarget";
static MARK: Word = Word::new(TARGET);
/// A deletion that was announced comes within this time.
const LIMIT: SignedDuration = SignedDuration::from_mins(2);

struct Stale {
    context: Context,
    pods: Cache<Pod>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let pods = context.caches.get::<Pod>(Scope::all());
        pods.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        pods.on_change(move |change| {
            let staying = change.new.as_ref().filter(|e| !e.deleting);
            // Few pods are announced: decoding each would cost more than looking for the word.
            if staying.is_some_and(|e| e.has(&MARK)) {
                to.add(change.key.clone());
            }
        });
        let reconciler = Stale {
            context: context.clone(),
            pods,
        };
        context.work(reconciler, queue).await;
    })
}

/// How long the announcement still holds; `None`: there is none.
fn left(pod: &Pod, now: Timestamp) -> Option<SignedDuration> {
    if pods::is_terminal(pod) || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let said = pods::condition(pod, TARGET).filter(|c| c.status == "True")?;
    let since = said.last_transition_time.as_ref()?.0;
    Some(LIMIT - now.duration_since(since))
}

impl Reconcile for Stale {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let now = self.context.now();
        let Some(pod) = self.pods.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let Some(left) = left(&pod, now) else {
            return Ok(Requeue::OnChange);
        };
        if left.is_positive() {
            return Ok(left.try_into().map_or(Requeue::OnChange, Requeue::After));
        }
        let condition = json!({"type": TARGET, "status": "False",
            "observedGeneration": pod.metadata.generation,
            "lastTransitionTime": api::time::format(now)});
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [condition]}}));
        let api: Api<Pod> = write::namespaced(&self.context.client, &key.namespace);
        let written = api
            .patch_status(&key.name, &PatchParams::default(), &patch)
            .await;
        if let Some(written) = write::tolerate_missing(written)? {
            self.pods.caught_up(write::revision_of(&written)).await?;
        }
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn announcements_hold_for_two_minutes() {
        let pod = |status: &str, deleted: Value, phase: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"deletionTimestamp": deleted},
                "status": {"phase": phase, "conditions": [{"type": TARGET, "status": status,
                    "lastTransitionTime": "1970-01-01T00:01:40Z"}]}}))
            .unwrap()
        };
        let now = Timestamp::from_second(130).unwrap();
        for (pod, expected) in [
            (pod("True", Value::Null, "Running"), Some(90)),
            (pod("False", Value::Null, "Running"), None),
            (pod("True", json!("1970-01-01T00:02:00Z"), "Running"), None),
            (pod("True", Value::Null, "Failed"), None),
        ] {
            assert_eq!(left(&pod, now).map(|l| l.as_secs()), expected);
        }
    }
}
