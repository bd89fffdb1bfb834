//! Requests of pods for certificates go some time after they were made: by then whoever asked has an answer, or
//! has asked again.

use std::time::Duration;

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::PodCertificateRequest;

use crate::{Context, Controller};

/// Deletes old requests.
pub const CONTROLLER: Controller = Controller {
    name: "podcertificaterequestcleaner",
    run,
};

/// A request is kept this long.
const KEPT: SignedDuration = SignedDuration::from_mins(15);

struct Cleaner {
    context: Context,
    requests: Cache<PodCertificateRequest>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let requests = context.caches.get::<PodCertificateRequest>(Scope::all());
        let queue = Queue::default();
        let to = queue.clone();
        requests.on_change(move |change| to.add(change.key.clone()));
        let cleaner = Cleaner {
            context: context.clone(),
            requests,
        };
        context.work(cleaner, queue).await;
    })
}

/// How much of its time a request has left; `None`: none.
fn left(request: &PodCertificateRequest, now: Timestamp) -> Option<Duration> {
    let created = request.metadata.creation_timestamp.as_ref()?.0;
    let left = KEPT - now.duration_since(created);
    left.is_positive().then(|| left.try_into().ok())?
}

impl Reconcile for Cleaner {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(request) = self.requests.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        if let Some(left) = left(&request, self.context.now()) {
            return Ok(Requeue::After(left));
        }
        let api = write::namespaced::<PodCertificateRequest>(&self.context.client, &key.namespace);
        write::delete(&api, &key.name, request.metadata.uid.as_deref()).await?;
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_have_a_quarter_of_an_hour() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let request: PodCertificateRequest = serde_json::from_value(
            json!({"metadata": {"creationTimestamp": at(100).to_string()}, "spec": {}}),
        )
        .unwrap();
        let seconds = |now| left(&request, at(now)).map(|l| l.as_secs());
        assert_eq!((seconds(100), seconds(999)), (Some(900), Some(1)));
        assert_eq!(seconds(1000), None);
    }
}
