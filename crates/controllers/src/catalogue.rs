//! Which resources the API server serves, and a cache of the metadata of each.

use std::{sync::Arc, time::Duration};

use client::{Cache, Caches, Client, Resource};
use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIResource, APIResourceList};
use tokio::sync::Notify;

use crate::Context;

/// A resource whose objects can be listed, watched and deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its names in URLs.
    pub resource: Resource,
    /// Its kind.
    pub kind: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
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

/// Events come and go by themselves and own nothing.
const IGNORED: [&str; 1] = ["events"];

/// Runs `body` with what is served now, and again whenever that changes: custom resources come
/// and go. The context that `body` gets ends with each run.
pub async fn follow(
    context: Context,
    body: impl Fn(Context, Vec<Served>) -> BoxFuture<'static, ()> + Send,
) {
    while let Some(served) = discover_until(&context).await {
        let run = context.child();
        let mut task = std::pin::pin!(body(run.clone(), served.clone()));
        let now = tokio::select! {
            () = &mut task => return,
            now = changed(&context, &served) => now,
        };
        run.shutdown.cancel();
        // What has not ended by then is dropped: it goes on from what it finds.
        let _ = tokio::time::timeout(END_LIMIT, task).await;
        for gone in served.iter().filter(|s| !now.contains(s)) {
            context.caches.forget_metadata(&gone.resource);
        }
    }
}

/// Waits until other resources are served; answers which.
async fn changed(context: &Context, served: &[Served]) -> Vec<Served> {
    let sources: Vec<Cache<()>> = served
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
        notify.notified().await;
        // A definition changes several times until it is served.
        tokio::time::sleep(SETTLE).await;
        match discover(&context.client).await {
            Ok(now) if now != served => return now,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "discovery failed; the next change brings another")
            }
        }
    }
}

/// Asks the server until it answers; `None`: it is time to end.
async fn discover_until(context: &Context) -> Option<Vec<Served>> {
    loop {
        match discover(&context.client).await {
            Ok(served) => return Some(served),
            Err(error) => tracing::warn!(%error, "discovery failed; will try again"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = context.shutdown.cancelled() => return None,
        }
    }
}

/// Asks the server; each resource in the version its group prefers.
async fn discover(client: &Client) -> kube::Result<Vec<Served>> {
    let mut all = Vec::new();
    for version in client.list_core_api_versions().await?.versions {
        take(
            &mut all,
            "",
            &version,
            client.list_core_api_resources(&version).await?,
        );
    }
    for group in client.list_api_groups().await?.groups {
        let preferred = group.preferred_version.as_ref().or(group.versions.first());
        let Some(version) = preferred else { continue };
        let list = client
            .list_api_group_resources(&version.group_version)
            .await?;
        take(&mut all, &group.name, &version.version, list);
        // A resource may be served in another version only.
        for other in group
            .versions
            .iter()
            .filter(|v| v.version != version.version)
        {
            let list = client
                .list_api_group_resources(&other.group_version)
                .await?;
            take(&mut all, &group.name, &other.version, list);
        }
    }
    Ok(all)
}

fn take(all: &mut Vec<Served>, group: &str, version: &str, list: APIResourceList) {
    for found in list.resources {
        let known = |s: &Served| s.resource.group == group && s.resource.plural == found.name;
        if is_usable(&found) && !all.iter().any(known) {
            all.push(Served {
                resource: Resource {
                    group: group.to_owned(),
                    version: version.to_owned(),
                    plural: found.name.clone(),
                },
                kind: found.kind.clone(),
                namespaced: found.namespaced,
                deletes_collections: found.verbs.iter().any(|v| v == "deletecollection"),
            });
        }
    }
}

fn is_usable(resource: &APIResource) -> bool {
    let can = |verb: &str| resource.verbs.iter().any(|v| v == verb);
    !resource.name.contains('/')
        && !IGNORED.contains(&resource.name.as_str())
        && ["list", "watch", "delete"].into_iter().all(can)
}

/// The caches of these resources' metadata, in the same order, started but not awaited.
pub fn caches(caches: &Caches, served: &[Served]) -> Vec<Cache<()>> {
    served
        .iter()
        .map(|s| caches.metadata(s.resource.clone()))
        .collect()
}
