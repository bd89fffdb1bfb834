//! Deletes the identity Leases of API servers that are gone.

use std::time::Duration;

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;

use crate::{Context, Controller};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "apiserver-lease-garbage-collector",
    run,
};

const NAMESPACE: &str = "kube-system";
const IDENTITY: &str = "apiserver.kubernetes.io/identity=kube-apiserver";
/// A lease that cannot be read is looked at again after this time.
const AGAIN: Duration = Duration::from_secs(3600);

struct Leases {
    context: Context,
    leases: Cache<Lease>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let scope = Scope::all().namespace(NAMESPACE).labels(IDENTITY);
        let leases = context.caches.get::<Lease>(scope);
        leases.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        leases.on_change(move |change| to.add(change.key.clone()));
        let reconciler = Leases {
            context: context.clone(),
            leases,
        };
        context.work(reconciler, queue).await;
    })
}

/// How long a lease still holds; `None`: it never did.
fn left(lease: &Lease, now: Timestamp) -> Option<SignedDuration> {
    let spec = lease.spec.as_ref()?;
    let renewed = spec.renew_time.as_ref()?.0;
    let lasts = SignedDuration::from_secs(spec.lease_duration_seconds?.into());
    Some(renewed.checked_add(lasts).ok()?.duration_since(now))
}

impl Reconcile for Leases {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let now = self.context.now();
        let holds = |lease: &Lease| left(lease, now).filter(|l| l.is_positive());
        let Some(cached) = self.leases.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        if let Some(left) = holds(&cached) {
            return Ok(Requeue::After(Duration::try_from(left).unwrap_or(AGAIN)));
        }
        // Its holder may just have renewed it.
        let api = write::namespaced::<Lease>(&self.context.client, NAMESPACE);
        let fresh = write::tolerate_missing(api.get(&key.name).await)?;
        if let Some(fresh) = fresh.filter(|l| holds(l).is_none()) {
            write::delete(&api, &key.name, fresh.metadata.uid.as_deref()).await?;
        }
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn leases_end() {
        let now = Timestamp::from_second(1000).unwrap();
        for (spec, expected) in [
            (
                json!({"renewTime": "1970-01-01T00:16:00.000000Z", "leaseDurationSeconds": 60}),
                Some(20),
            ),
            (
                json!({"renewTime": "1970-01-01T00:10:00.000000Z", "leaseDurationSeconds": 60}),
                Some(-340),
            ),
            (json!({}), None),
        ] {
            let lease: Lease =
                serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            assert_eq!(left(&lease, now).map(|l| l.as_secs()), expected);
        }
    }
}
