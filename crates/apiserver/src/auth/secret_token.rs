//! Tokens that Secrets hold: each is good for as long as its Secret holds it.
//!
//! The Secret says on which day its token was used last, so that those that nobody uses can be found, and may say that
//! its token is good no more. Uses are noted beside the requests: a token is no less good where that fails.

use std::collections::HashMap;
use std::sync::Arc;

use api::meta;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::registry::{Fail, Myself, Part, Registry};

/// ConfigMap of `kube-system` that says since when uses are noted.
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
/// On a Secret: the day on which its token was used last.
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// On a Secret: the day since which its token is good no more.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Where in its data a Secret holds the token.
const TOKEN: &str = "token";
/// Why a token is not good that its Secret does not hold.
pub const NOT_HELD: &str = "holds another one";
/// Uses that wait to be noted; the next ones of those beyond are.
const WAITING_MAX: usize = 64;

/// The day of a moment, as labels have it.
fn day(now: Timestamp) -> String {
    now.strftime("%Y-%m-%d").to_string()
}

/// The object that says since when uses are noted, for a cluster that has none.
pub fn tracking(now: Timestamp) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"since": day(now)},
        "metadata": {"namespace": "kube-system", "name": TRACKING}})
}

/// What is needed of a Secret that holds a token.
#[derive(Deserialize)]
pub struct Holder {
    metadata: Metadata,
    #[serde(default)]
    data: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: HashMap<String, String>,
}

impl Holder {
    /// Whether the token is good.
    ///
    /// # Errors
    /// With why it is not.
    pub fn allows(&self, token: &str) -> Result<(), &'static str> {
        let held = self.data.get(TOKEN).and_then(|t| STANDARD.decode(t).ok());
        if held.as_deref() != Some(token.as_bytes()) {
            return Err(NOT_HELD);
        }
        let invalid = self.metadata.labels.get(INVALID_SINCE);
        match invalid.is_some_and(|since| !since.is_empty()) {
            true => Err("has been marked invalid"),
            false => Ok(()),
        }
    }

    /// Whether its use on this day is noted; clocks of several servers may differ.
    fn is_noted(&self, now: Timestamp) -> bool {
        let tomorrow = now
            .saturating_add(SignedDuration::from_hours(24))
            .unwrap_or(now);
        let noted = self.metadata.labels.get(LAST_USED);
        noted.is_some_and(|noted| *noted == day(now) || *noted == day(tomorrow))
    }
}

/// A use of a token.
struct Use {
    namespace: String,
    name: String,
    uid: String,
}

/// Where uses are noted.
#[derive(Clone)]
pub struct Uses(mpsc::Sender<Use>);

impl Uses {
    /// Notes uses from now on, until the registry stops.
    pub fn follow(registry: Arc<Registry>) -> Self {
        let (sender, mut uses) = mpsc::channel::<Use>(WAITING_MAX);
        tokio::spawn(async move {
            let stop = registry.stop.clone();
            while let Some(Some(one)) = stop.run_until_cancelled(uses.recv()).await {
                if let Err(why) = one.note(&registry).await {
                    let Use {
                        namespace, name, ..
                    } = one;
                    tracing::debug!(namespace, name, ?why, "a use of a token is not noted");
                }
            }
        });
        Self(sender)
    }

    /// Notes that the token of a Secret was used, if that is not known of this day.
    pub fn note(&self, holder: &Holder, namespace: &str, name: &str, uid: &str, now: Timestamp) {
        if holder.is_noted(now) {
            return;
        }
        let one = Use {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        };
        // Where too many wait, it is noted the next time.
        let _ = self.0.try_send(one);
    }
}

impl Use {
    async fn note(&self, registry: &Arc<Registry>) -> Result<(), Fail> {
        let resource = registry.resource("", "v1", "secrets")?;
        let myself = Myself::default();
        let write = myself.write(registry, &resource, &self.namespace, &self.name);
        let day = day(registry.now());
        let update = registry.update(&write, Part::Main, |current| {
            let mut next = current.clone();
            if meta::uid(current) == self.uid {
                meta::set(
                    &mut next,
                    &["metadata", "labels", LAST_USED],
                    day.clone().into(),
                );
            }
            Ok(next)
        });
        update.await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_while_its_secret_holds_it() {
        let holder = |labels: Value, token: &str| -> Holder {
            let data = json!({"token": STANDARD.encode(token)});
            serde_json::from_value(json!({"metadata": {"labels": labels}, "data": data})).unwrap()
        };
        for (labels, token, expected) in [
            (json!({}), "t", Ok(())),
            (json!({}), "u", Err(NOT_HELD)),
            (json!({INVALID_SINCE: ""}), "t", Ok(())),
            (
                json!({INVALID_SINCE: "2026-01-01"}),
                "t",
                Err("has been marked invalid"),
            ),
        ] {
            assert_eq!(
                holder(labels.clone(), token).allows("t"),
                expected,
                "{labels}"
            );
        }
        let now: Timestamp = "2026-02-28T23:59:00Z".parse().unwrap();
        for (noted, expected) in [
            (json!({}), false),
            (json!({LAST_USED: "2026-02-27"}), false),
            (json!({LAST_USED: "2026-02-28"}), true),
            (json!({LAST_USED: "2026-03-01"}), true),
        ] {
            assert_eq!(
                holder(noted.clone(), "t").is_noted(now),
                expected,
                "{noted}"
            );
        }
    }
}
