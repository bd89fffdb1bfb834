//! Tokens of Secrets that an account names and nobody has used for a year are first marked, which ends them, and after
//! another year deleted.

use std::time::Duration;

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::{DeleteParams, Preconditions};
use serde_json::json;

use crate::{Context, Controller, tokens};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "legacy-service-account-token-cleaner",
    run,
};

const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// ConfigMap of `kube-system` that says since when uses are noted.
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
/// How long nobody has used a token that is no longer needed.
const UNUSED: SignedDuration = SignedDuration::from_hours(365 * 24);
/// How often each is looked at: days are what is counted.
const PERIOD: Duration = Duration::from_secs(24 * 3600);

/// What is to be done about a Secret.
#[derive(Debug, PartialEq, Eq)]
enum Act {
    Keep,
    Mark,
    Delete,
}

fn day(label: &str) -> Option<Date> {
    Date::strptime("%Y-%m-%d", label).ok()
}

fn day_of(moment: Timestamp) -> Date {
    moment.to_zoned(TimeZone::UTC).date()
}

/// Decides about a Secret that an account names and no pod mounts.
fn plan(secret: &Secret, now: Timestamp) -> Act {
    let Ok(limit) = now.checked_sub(UNUSED) else {
        return Act::Keep;
    };
    let label = |key: &str| secret.metadata.labels.as_ref()?.get(key);
    let created = secret.metadata.creation_timestamp.as_ref();
    if secret.metadata.deletion_timestamp.is_some() || created.is_none_or(|t| t.0 >= limit) {
        return Act::Keep;
    }
    // A day that nobody understands tells nothing; none at all tells that there was no use.
    let used = label(LAST_USED).map(|used| day(used));
    if used.is_some_and(|used| used.is_none_or(|used| used >= day_of(limit))) {
        return Act::Keep;
    }
    match label(INVALID_SINCE).and_then(|since| day(since)) {
        None => Act::Mark,
        Some(since) if since >= day_of(limit) => Act::Keep,
        Some(_) => Act::Delete,
    }
}

/// Whether uses have been noted for long enough; the first day is not over all of the day.
fn is_tracked(since: &str, now: Timestamp) -> bool {
    let start = day(since).and_then(|d| d.tomorrow().ok()?.to_zoned(TimeZone::UTC).ok());
    start.is_some_and(|start| now.duration_since(start.timestamp()) >= UNUSED)
}

struct Cleaner {
    context: Context,
    secrets: Cache<Secret>,
    accounts: Cache<ServiceAccount>,
    pods: Cache<Pod>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let secrets = context.caches.get::<Secret>(tokens::scope());
        let accounts = context.caches.get::<ServiceAccount>(Scope::all());
        let pods = context.caches.get::<Pod>(Scope::all());
        accounts.synced().await;
        pods.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        secrets.on_change(move |change| to.add(change.key.clone()));
        let cleaner = Cleaner {
            context: context.clone(),
            secrets,
            accounts,
            pods,
        };
        context.work(cleaner, queue).await;
    })
}

impl Cleaner {
    /// Whether its account names it: others were not made for the account by a controller.
    fn is_named(&self, key: &Key, secret: &Secret) -> Result<bool, Error> {
        let account = Key::new(key.namespace.clone(), tokens::account_of(secret));
        let account = self.accounts.get(&account)?;
        let account = account.filter(|a| tokens::is_of(secret, a));
        let mut named = account
            .into_iter()
            .flat_map(|a| a.secrets.unwrap_or_default());
        Ok(named.any(|s| s.name.as_deref() == Some(&*key.name)))
    }

    /// Whether a pod may use it: one that has its name anywhere counts.
    fn is_mounted(&self, key: &Key) -> bool {
        let name = format!("\"{}\"", key.name);
        let pods = self.pods.entries_in(&key.namespace);
        pods.iter().any(|pod| pod.mentions(&name))
    }

    async fn are_uses_noted(&self) -> Result<bool, Error> {
        let api = write::namespaced::<ConfigMap>(&self.context.client, "kube-system");
        let since = write::tolerate_missing(api.get(TRACKING).await)?.and_then(|m| m.data);
        let since = since.and_then(|mut data| data.remove("since"));
        Ok(since.is_some_and(|since| is_tracked(&since, self.context.now())))
    }
}

impl Reconcile for Cleaner {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(secret) = self.secrets.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let act = plan(&secret, self.context.now());
        if act == Act::Keep
            || !self.is_named(key, &secret)?
            || self.is_mounted(key)
            || !self.are_uses_noted().await?
        {
            return Ok(Requeue::After(PERIOD));
        }
        let api = write::namespaced::<Secret>(&self.context.client, &key.namespace);
        let meta = &secret.metadata;
        if act == Act::Mark {
            let today = day_of(self.context.now()).to_string();
            tracing::info!(secret = %key, "an unused token of an account ends");
            let labels = json!({INVALID_SINCE: today});
            let patch = json!({"metadata": {"uid": meta.uid, "labels": labels}});
            write::patch(&api, &key.name, &patch).await?;
        } else {
            tracing::info!(secret = %key, "an unused token of an account is deleted");
            // Somebody may have taken the mark away.
            let preconditions = Preconditions {
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
            };
            let params = DeleteParams {
                preconditions: Some(preconditions),
                ..DeleteParams::default()
            };
            write::tolerate_missing(api.delete(&key.name, &params).await)?;
        }
        Ok(Requeue::After(PERIOD))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_uses_is_marked_and_then_goes() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        for (created, labels, expected) in [
            ("2026-01-01T00:00:00Z", json!({}), Act::Keep),
            ("2024-01-01T00:00:00Z", json!({}), Act::Mark),
            (
                "2024-01-01T00:00:00Z",
                json!({LAST_USED: "2025-11-21"}),
                Act::Keep,
            ),
            (
                "2024-01-01T00:00:00Z",
                json!({LAST_USED: "2025-11-20"}),
                Act::Mark,
            ),
            (
                "2024-01-01T00:00:00Z",
                json!({LAST_USED: "yesterday"}),
                Act::Keep,
            ),
            (
                "2024-01-01T00:00:00Z",
                json!({INVALID_SINCE: "soon"}),
                Act::Mark,
            ),
            (
                "2024-01-01T00:00:00Z",
                json!({INVALID_SINCE: "2025-11-21"}),
                Act::Keep,
            ),
            (
                "2024-01-01T00:00:00Z",
                json!({INVALID_SINCE: "2025-11-20"}),
                Act::Delete,
            ),
            (
                "2024-01-01T00:00:00Z",
                json!({INVALID_SINCE: "2025-01-01", LAST_USED: "2026-01-01"}),
                Act::Keep,
            ),
        ] {
            let secret = json!({"metadata": {"creationTimestamp": created, "labels": labels}});
            let secret: Secret = serde_json::from_value(secret).unwrap();
            assert_eq!(plan(&secret, now), expected, "{created} {labels}");
        }
        for (since, expected) in [("2025-11-19", true), ("2025-11-21", false), ("", false)] {
            assert_eq!(is_tracked(since, now), expected, "{since}");
        }
    }
}
