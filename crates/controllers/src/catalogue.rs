//! Which resources the API server serves, and a cache of the metadata of each.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use client::{Cache, Caches, Client, Error, Resource};
use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use tokio::sync::Notify;

use crate::Context;

/// A resource whose objects can be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its names in URLs.
    pub resource: Resource,
    /// Its kind.
    pub kind: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether its objects can be listed.
    pub lists: bool,
    /// Whether all objects of a namespace can be deleted at once.
    pub deletes_collections: bool,
}

/// Resources whose objects say what else is served.
const DEFINITIONS: [&str; 2] = ["customresourcedefinitions", "apiservices"];
/// Wait between a change of a definition and the discovery of what it changed.
const SETTLE: Duration = Duration::from_secs(1);
/// Longest wait for work under way when it is to end.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Wait after a failed discovery.
const RETRY: Duration = Duration::from_secs(1);
/// The same where only some groups failed.
const RETRY_FAILED: Duration = Duration::from_secs(30);
/// Longest wait for caches.
const SYNC_LIMIT: Duration = Duration::from_secs(30);

/// Events come and go by themselves and own nothing.
const IGNORED: [&str; 1] = ["events"];

/// What is served, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// Each resource whose objects can be listed, watched and deleted, in the version its group prefers.
    pub served: Vec<Served>,
    /// Those whose objects can be deleted, but not followed.
    pub unseen: Vec<Served>,
    /// Why nobody tells what is in a version of a group: whoever serves it is not there, say. What
    /// was known of it before is still there.
    pub failed: BTreeMap<String, String>,
}

impl Catalogue {
    /// Whether what is served is said alike in both.
    fn is_like(&self, other: &Self) -> bool {
        self.serves(other) && self.failed.keys().eq(other.failed.keys())
    }

    /// Whether the same is served in both.
    fn serves(&self, other: &Self) -> bool {
        self.served == other.served && self.unseen == other.unseen
    }

    /// Keeps what was known of versions that nobody tells about.
    fn keep(&mut self, before: &Self) {
        keep(&mut self.served, &before.served, &self.failed);
        keep(&mut self.unseen, &before.unseen, &self.failed);
    }

    /// Takes note of what a version of a group serves.
    fn take(&mut self, group: &str, version: &str, list: APIResourceList) {
        for found in list.resources {
            if found.name.contains('/') || IGNORED.contains(&found.name.as_str()) {
                continue;
            }
            let can = |verb: &str| found.verbs.iter().any(|v| v == verb);
            let new = Served {
                resource: Resource {
                    group: group.to_owned(),
                    version: version.to_owned(),
                    plural: found.name.clone(),
                },
                kind: found.kind.clone(),
                namespaced: found.namespaced,
                lists: can("list"),
                deletes_collections: can("deletecollection"),
            };
            if !can("delete") || self.served.iter().any(|s| s.is_same(&new)) {
                continue;
            }
            if new.lists && can("watch") {
                self.unseen.retain(|s| !s.is_same(&new));
                self.served.push(new);
            } else if !self.unseen.iter().any(|s| s.is_same(&new)) {
                self.unseen.push(new);
            }
        }
    }
}

fn keep(now: &mut Vec<Served>, before: &[Served], failed: &BTreeMap<String, String>) {
    for known in before {
        let Resource { group, version, .. } = &known.resource;
        let silent = failed.contains_key(&format!("{group}/{version}"));
        if silent && !now.iter().any(|s| s.is_same(known)) {
            now.push(known.clone());
        }
    }
}

impl Served {
    fn is_same(&self, other: &Self) -> bool {
        let (one, other) = (&self.resource, &other.resource);
        (&one.group, &one.plural) == (&other.group, &other.plural)
    }
}

/// Runs `body` with what is served now, and again whenever that changes: custom resources come
/// and go. The context that `body` gets ends with each run.
pub async fn follow(
    context: Context,
    body: impl Fn(Context, Catalogue) -> BoxFuture<'static, ()> + Send,
) {
    let Some(mut known) = discover_until(&context).await else {
        return;
    };
    loop {
        let run = context.child();
        let mut task = std::pin::pin!(body(run.clone(), known.clone()));
        let now = tokio::select! {
            () = &mut task => return,
            now = changed(&context, &known) => now,
        };
        run.shutdown.cancel();
        // What has not ended by then is dropped: it goes on from what it finds.
        let _ = tokio::time::timeout(END_LIMIT, task).await;
        for gone in known.served.iter().filter(|s| !now.served.contains(s)) {
            context.caches.forget_metadata(&gone.resource);
        }
        known = now;
    }
}

/// Waits until other resources are served; answers which.
async fn changed(context: &Context, known: &Catalogue) -> Catalogue {
    let sources: Vec<Cache<()>> = known
        .served
        .iter()
        .filter(|s| DEFINITIONS.contains(&s.resource.plural.as_str()))
        .map(|s| context.caches.metadata(s.resource.clone()))
        .collect();
    let notify = Arc::new(Notify::new());
    let mut subscriptions = Vec::new();
    for source in &sources {
        let notify = Arc::clone(&notify);
        subscriptions.push(source.subscribe(move |_| notify.notify_one()));
    }
    loop {
        tokio::select! {
            () = notify.notified() => {}
            // Who does not answer comes back without anything being said here.
            () = tokio::time::sleep(RETRY_FAILED), if !known.failed.is_empty() => {}
        }
        // A definition changes several times until it is served.
        tokio::time::sleep(SETTLE).await;
        match discover(&context.client).await {
            Ok(mut now) => {
                now.keep(known);
                if !now.is_like(known) {
                    return now;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "discovery failed; the next change brings another")
            }
        }
    }
}

/// Asks the server until it answers; `None`: it is time to end.
async fn discover_until(context: &Context) -> Option<Catalogue> {
    loop {
        match discover(&context.client).await {
            Ok(known) => return Some(known),
            Err(error) => tracing::warn!(%error, "discovery failed; will try again"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = context.shutdown.cancelled() => return None,
        }
    }
}

impl Catalogue {
    /// Asks anew: why nobody tells what is in some versions; `None`: other resources are served.
    pub async fn check(&self, client: &Client) -> kube::Result<Option<BTreeMap<String, String>>> {
        let mut now = discover(client).await?;
        now.keep(self);
        Ok(now.serves(self).then_some(now.failed))
    }
}

/// Asks the server; each resource in the version its group prefers. A group that somebody else
/// serves can fail alone.
pub async fn discover(client: &Client) -> kube::Result<Catalogue> {
    let mut known = Catalogue::default();
    for version in client.list_core_api_versions().await?.versions {
        let list = client.list_core_api_resources(&version).await?;
        known.take("", &version, list);
    }
    for group in client.list_api_groups().await?.groups {
        let preferred = group.preferred_version.as_ref().or(group.versions.first());
        let Some(preferred) = preferred else { continue };
        // A resource may be served in another version only.
        let others = group.versions.iter();
        let others = others.filter(|v| v.version != preferred.version);
        for version in std::iter::once(preferred).chain(others) {
            let name = &version.group_version;
            match client.list_api_group_resources(name).await {
                Ok(list) => known.take(&group.name, &version.version, list),
                Err(error) => {
                    let why = Error::from(error).words();
                    known.failed.insert(name.clone(), why);
                }
            }
        }
    }
    Ok(known)
}

/// The caches of these resources' metadata, in the same order, started but not awaited.
pub fn caches(caches: &Caches, served: &[Served]) -> Vec<Cache<()>> {
    served
        .iter()
        .map(|s| caches.metadata(s.resource.clone()))
        .collect()
}

/// Waits for these caches, but not for ever: whoever serves one of them may not answer.
pub async fn synced(caches: &[Cache<()>]) {
    let all = async {
        for cache in caches {
            cache.synced().await;
        }
    };
    if tokio::time::timeout(SYNC_LIMIT, all).await.is_err() {
        tracing::warn!("not all resources can be listed; going on without those that cannot");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_tells_about_is_still_known() {
        let served = |group: &str, plural: &str| Served {
            resource: Resource {
                group: group.into(),
                version: "v1".into(),
                plural: plural.into(),
            },
            kind: String::new(),
            namespaced: true,
            lists: true,
            deletes_collections: true,
        };
        let before = Catalogue {
            served: vec![served("", "pods"), served("a", "as"), served("b", "bs")],
            ..Catalogue::default()
        };
        let mut now = Catalogue {
            served: vec![served("", "pods")],
            failed: BTreeMap::from([("a/v1".into(), "silence".into())]),
            ..Catalogue::default()
        };
        now.keep(&before);
        assert_eq!(now.served, [served("", "pods"), served("a", "as")]);
        assert!(!now.is_like(&before));
    }

    #[test]
    fn what_can_be_deleted_is_known_even_if_it_cannot_be_followed() {
        let list = |resources: serde_json::Value| -> APIResourceList {
            serde_json::from_value(
                serde_json::json!({"groupVersion": "a/v1", "resources": resources}),
            )
            .unwrap()
        };
        let named = |name: &str, verbs: &[&str]| {
            serde_json::json!({"name": name, "singularName": "", "namespaced": true,
                "kind": "K", "verbs": verbs})
        };
        let mut known = Catalogue::default();
        known.take(
            "a",
            "v1",
            list(serde_json::json!([
                named("whole", &["list", "watch", "delete"]),
                named("whole/status", &["get", "delete"]),
                named("fixed", &["get", "list", "watch"]),
                named("listed", &["list", "delete"]),
                named("blind", &["delete", "deletecollection"]),
            ])),
        );
        // What cannot be followed in one version may be in another.
        known.take(
            "a",
            "v2",
            list(serde_json::json!([named(
                "listed",
                &["list", "watch", "delete"]
            )])),
        );
        let names = |all: &[Served]| -> Vec<String> {
            let name = |s: &Served| format!("{} {}", s.resource.version, s.resource.plural);
            all.iter().map(name).collect()
        };
        assert_eq!(names(&known.served), ["v1 whole", "v2 listed"]);
        assert_eq!(names(&known.unseen), ["v1 blind"]);
        assert!(!known.unseen[0].lists && known.unseen[0].deletes_collections);
    }
}
