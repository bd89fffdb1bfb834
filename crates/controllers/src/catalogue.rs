//! Which resources the API server serves, and a cache of the metadata of each.

use std::time::Duration;

use client::{Cache, Caches, Client, Resource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIResource, APIResourceList};

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

/// Wait after a failed discovery.
const RETRY: Duration = Duration::from_secs(1);

/// Events come and go by themselves and own nothing.
const IGNORED: [&str; 1] = ["events"];

/// Asks the server until it answers; `None`: it is time to end.
pub async fn discover_until(context: &Context) -> Option<Vec<Served>> {
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
pub async fn discover(client: &Client) -> kube::Result<Vec<Served>> {
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
