//! Empties namespaces that are being deleted, pods first, and then lets them go.

use std::{collections::BTreeMap, time::Duration};

use client::{Cache, Entry, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use k8s_openapi::{
    api::core::v1::{Namespace, NamespaceCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Resource as _,
    api::{DeleteParams, ListParams, PostParams},
    core::Request,
};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::{
    Context, Controller,
    catalogue::{self, Catalogue, Served},
};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "namespace-controller",
    run,
};

const FINALIZER: &str = "kubernetes";
/// What goes within this time is looked at together: thousands of pods go one by one.
const GATHER: Duration = Duration::from_millis(100);

struct Namespaces {
    context: Context,
    namespaces: Cache<Namespace>,
    /// Namespaced resources and what is known of their objects.
    contents: Vec<(Served, Cache<()>)>,
    /// What they were taken from.
    known: Catalogue,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(catalogue::follow(context, |context, known| {
        Box::pin(follow(context, known))
    }))
}

async fn follow(context: Context, known: Catalogue) {
    let mut served = known.served.clone();
    served.retain(|s| s.namespaced);
    let caches = catalogue::caches(&context.caches, &served);
    let namespaces = context.caches.get::<Namespace>(Scope::all());
    let queue = Queue::default();
    let to = queue.clone();
    let mut subscriptions = vec![namespaces.subscribe(move |change| to.add(change.key.clone()))];
    catalogue::synced(&caches).await;
    for cache in &caches {
        let (to, all) = (queue.clone(), namespaces.clone());
        subscriptions.push(cache.subscribe(move |change| {
            let key = Key::cluster(change.key.namespace.clone());
            if all.entry(&key).is_some_and(|n| n.deleting) {
                to.add_after(key, GATHER);
            }
        }));
    }
    let contents = served.into_iter().zip(caches).collect();
    let reconciler = Namespaces {
        context: context.clone(),
        namespaces,
        contents,
        known,
    };
    context.work(reconciler, queue).await;
}

/// What is left in a namespace.
#[derive(Debug, Default, PartialEq)]
struct Left {
    /// Objects by resource, as `pods.` or `deployments.apps`.
    objects: BTreeMap<String, usize>,
    /// Objects by finalizer.
    finalizers: BTreeMap<String, usize>,
}

impl Left {
    fn add(&mut self, served: &Served, entries: &[std::sync::Arc<Entry>]) {
        if entries.is_empty() {
            return;
        }
        let name = format!("{}.{}", served.resource.plural, served.resource.group);
        *self.objects.entry(name).or_default() += entries.len();
        for finalizer in entries.iter().flat_map(|e| e.finalizers.iter()) {
            *self.finalizers.entry(finalizer.to_string()).or_default() += 1;
        }
    }

    /// What is to be said; `silent` are versions of groups that nobody tells about.
    fn conditions(
        &self,
        silent: &BTreeMap<String, String>,
        mut failures: Vec<String>,
    ) -> Vec<(&'static str, bool, &'static str, String)> {
        let objects: Vec<String> = self
            .objects
            .iter()
            .map(|(k, n)| format!("{k} has {n} resource instances"))
            .collect();
        let finalizers: Vec<String> = self
            .finalizers
            .iter()
            .map(|(k, n)| format!("{k} in {n} resource instances"))
            .collect();
        failures.sort_unstable();
        vec![
            if silent.is_empty() {
                (
                    "NamespaceDeletionDiscoveryFailure",
                    false,
                    "ResourcesDiscovered",
                    "All resources successfully discovered".into(),
                )
            } else {
                let why: Vec<String> = silent
                    .iter()
                    .map(|(v, why)| format!("{v}: {why}"))
                    .collect();
                (
                    "NamespaceDeletionDiscoveryFailure",
                    true,
                    "DiscoveryFailed",
                    format!(
                        "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
                        silent.len(),
                        why.join(", ")
                    ),
                )
            },
            (
                "NamespaceDeletionGroupVersionParsingFailure",
                false,
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed".into(),
            ),
            if failures.is_empty() {
                (
                    "NamespaceDeletionContentFailure",
                    false,
                    "ContentDeleted",
                    "All content successfully deleted, may be waiting on finalization".into(),
                )
            } else {
                (
                    "NamespaceDeletionContentFailure",
                    true,
                    "ContentDeletionFailed",
                    format!(
                        "Failed to delete all resource types, {} remaining: {}",
                        failures.len(),
                        failures.join(", ")
                    ),
                )
            },
            if objects.is_empty() {
                (
                    "NamespaceContentRemaining",
                    false,
                    "ContentRemoved",
                    "All content successfully removed".into(),
                )
            } else {
                (
                    "NamespaceContentRemaining",
                    true,
                    "SomeResourcesRemain",
                    format!("Some resources are remaining: {}", objects.join(", ")),
                )
            },
            if finalizers.is_empty() {
                (
                    "NamespaceFinalizersRemaining",
                    false,
                    "ContentHasNoFinalizers",
                    "All content-preserving finalizers finished".into(),
                )
            } else {
                (
                    "NamespaceFinalizersRemaining",
                    true,
                    "SomeFinalizersRemain",
                    format!(
                        "Some content in the namespace has finalizers remaining: {}",
                        finalizers.join(", ")
                    ),
                )
            },
        ]
    }
}

/// The conditions with these among them; those of others stay as they are.
fn said(
    old: &[NamespaceCondition],
    wanted: Vec<(&'static str, bool, &'static str, String)>,
    now: Time,
) -> Vec<NamespaceCondition> {
    let mut all = old.to_vec();
    for (kind, holds, reason, message) in wanted {
        let status = if holds { "True" } else { "False" };
        let at = all.iter().position(|c| c.type_ == kind);
        let before = at.map(|i| &all[i]).filter(|c| c.status == status);
        let since = before.and_then(|c| c.last_transition_time.clone());
        let new = NamespaceCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: since.or_else(|| Some(now.clone())),
        };
        match at {
            Some(i) => all[i] = new,
            None => all.push(new),
        }
    }
    all
}

impl Reconcile for Namespaces {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let is_doomed = |n: &Namespace| n.metadata.deletion_timestamp.is_some();
        if !self.namespaces.get(key)?.is_some_and(|n| is_doomed(&n)) {
            return Ok(Requeue::OnChange);
        }
        // What the cache shows may be gone, and what has its name now must not be emptied.
        let api: Api<Namespace> = write::cluster(&self.context.client);
        let fresh = write::tolerate_missing(api.get(&key.name).await)?;
        let Some(mut namespace) = fresh.filter(is_doomed) else {
            return Ok(Requeue::OnChange);
        };
        let finalizers = namespace
            .spec
            .as_ref()
            .and_then(|s| s.finalizers.clone())
            .unwrap_or_default();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            return Ok(Requeue::OnChange);
        }
        let (empty, mut failures) = self.empty(&key.name).await;
        let left = self.left(&key.name);
        let words: Vec<String> = failures.iter().map(Error::words).collect();
        let mut silent = self.known.failed.clone();
        if empty && failures.is_empty() {
            // What has come since, or nobody can tell about, may hold something.
            match self.known.check(&self.context.client).await? {
                Some(failed) => silent = failed,
                None => return Err(Error::Other("other resources are served by now".into())),
            }
        }
        self.report(key, &mut namespace, left.conditions(&silent, words))
            .await?;
        if let Some(failure) = failures.pop() {
            return Err(failure);
        }
        if let Some((version, why)) = silent.pop_first() {
            return Err(Error::Other(format!("{version}: {why}")));
        }
        if empty {
            self.finalize(key, namespace, finalizers).await?;
        }
        Ok(Requeue::OnChange)
    }
}

impl Namespaces {
    fn left(&self, namespace: &str) -> Left {
        let mut left = Left::default();
        for (served, cache) in &self.contents {
            left.add(served, &cache.entries_in(namespace));
        }
        left
    }

    /// Deletes what is there; answers whether the server says that nothing is, and what failed.
    async fn empty(&self, namespace: &str) -> (bool, Vec<Error>) {
        let is_pods = |s: &Served| s.resource.group.is_empty() && s.resource.plural == "pods";
        let (pods, others): (Vec<_>, Vec<_>) = self.contents.iter().partition(|(s, _)| is_pods(s));
        let (mut all, mut failures) = (true, Vec::new());
        // Pods may need what else is there until they are gone.
        for turn in [pods, others] {
            for (served, known) in turn {
                match self.clear(served, known, namespace).await {
                    Ok(empty) => all &= empty,
                    Err(failure) => failures.push(failure),
                }
            }
            if !(all && failures.is_empty()) {
                return (all, failures);
            }
        }
        if let Err(failure) = self.clear_events(namespace).await {
            failures.push(failure);
        }
        (all, failures)
    }

    /// Deletes the events, which nobody watches here, when nothing is left that could cause more.
    async fn clear_events(&self, namespace: &str) -> Result<(), Error> {
        let path = format!("/api/v1/namespaces/{namespace}/events");
        let params = DeleteParams::background();
        let request = Request::new(path).delete_collection(&params, &ListParams::default())?;
        self.context.client.request::<IgnoredAny>(request).await?;
        Ok(())
    }

    /// Deletes what is there of one resource; answers whether the server says that nothing is.
    async fn clear(
        &self,
        served: &Served,
        known: &Cache<()>,
        namespace: &str,
    ) -> Result<bool, Error> {
        let seen = known.entries_in(namespace);
        // All of it is on its way: its end will be seen.
        if !seen.is_empty() && seen.iter().all(|e| e.deleting) {
            return Ok(false);
        }
        if seen.is_empty() && self.is_empty(served, namespace).await? {
            return Ok(true);
        }
        let client = &self.context.client;
        let collection = || Request::new(served.resource.path(namespace));
        let background = DeleteParams::background();
        if served.deletes_collections {
            let request = collection().delete_collection(&background, &ListParams::default())?;
            client.request::<IgnoredAny>(request).await?;
        } else {
            for entry in seen.iter().filter(|e| !e.deleting) {
                let request = collection().delete(&entry.key.name, &background)?;
                write::tolerate_missing(client.request::<IgnoredAny>(request).await)?;
            }
        }
        self.is_empty(served, namespace).await
    }

    /// Whether the server has nothing: caches may not know yet what was made just before.
    async fn is_empty(&self, served: &Served, namespace: &str) -> Result<bool, Error> {
        let request = Request::new(served.resource.path(namespace));
        let request = request.list(&ListParams::default().limit(1))?;
        let found: Value = self.context.client.request(request).await?;
        Ok(found["items"].as_array().is_none_or(Vec::is_empty))
    }

    /// Writes the conditions, if they say something new, into the namespace as it was read.
    async fn report(
        &self,
        key: &Key,
        namespace: &mut Namespace,
        wanted: Vec<(&'static str, bool, &'static str, String)>,
    ) -> Result<(), Error> {
        let status = namespace.status.as_ref();
        let old = status
            .and_then(|s| s.conditions.clone())
            .unwrap_or_default();
        let new = said(&old, wanted, Time(self.context.now()));
        if new == old {
            return Ok(());
        }
        let api: Api<Namespace> = write::cluster(&self.context.client);
        let version = &namespace.metadata.resource_version;
        let patch =
            json!({"metadata": {"resourceVersion": version}, "status": {"conditions": new}});
        let written = write::patch_status(&api, &key.name, &patch).await?;
        let revision = written.as_ref().map_or(0, write::revision_of);
        namespace.metadata.resource_version = Some(revision.to_string());
        self.namespaces.caught_up(revision).await
    }

    async fn finalize(
        &self,
        key: &Key,
        mut namespace: Namespace,
        mut finalizers: Vec<String>,
    ) -> Result<(), Error> {
        finalizers.retain(|f| f != FINALIZER);
        namespace.spec.get_or_insert_default().finalizers = Some(finalizers);
        let body = serde_json::to_vec(&namespace).map_err(|e| Error::Other(e.to_string()))?;
        let request = Request::new(Namespace::url_path(&(), None)).replace_subresource(
            "finalize",
            &key.name,
            &PostParams::default(),
            body,
        )?;
        write::tolerate_missing(self.context.client.request::<Value>(request).await)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[test]
    fn what_is_left_is_said_in_upstreams_words() {
        let none = Left::default().conditions(&BTreeMap::new(), Vec::new());
        assert!(none.iter().all(|(_, holds, ..)| !holds));
        let left = Left {
            objects: BTreeMap::from([("pods.".into(), 2)]),
            finalizers: BTreeMap::from([("x.io/y".into(), 1)]),
        };
        let said: Vec<_> = left
            .conditions(
                &BTreeMap::from([(
                    "m/v1".into(),
                    "the server is currently unable to handle the request".into(),
                )]),
                vec!["no".into()],
            )
            .into_iter()
            .filter(|c| c.1)
            .map(|c| c.3)
            .collect();
        assert_eq!(
            said,
            [
                "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: m/v1: the server is currently unable to handle the request",
                "Failed to delete all resource types, 1 remaining: no",
                "Some resources are remaining: pods. has 2 resource instances",
                "Some content in the namespace has finalizers remaining: x.io/y in 1 resource instances",
            ]
        );
    }

    #[test]
    fn conditions_of_others_stay() {
        let at = |second| Time(jiff::Timestamp::from_second(second).unwrap());
        let condition = |kind: &str, status: &str, second| NamespaceCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some("R".into()),
            message: Some("m".into()),
            last_transition_time: Some(at(second)),
        };
        let old = [condition("Mine", "True", 1), condition("Kept", "True", 2)];
        let wanted = vec![
            ("Kept", true, "R", "m".to_owned()),
            ("New", false, "R", "m".to_owned()),
        ];
        let all = said(&old, wanted, at(9));
        let expected = [old[0].clone(), old[1].clone(), condition("New", "False", 9)];
        assert_eq!(all, expected);
        let turned = said(&all, vec![("Kept", false, "R", "m".to_owned())], at(10));
        assert_eq!(turned[1], condition("Kept", "False", 10));
    }

    /// A namespace that came after the one of its name that is being deleted keeps what is in it.
    #[tokio::test]
    async fn a_namespace_that_was_made_anew_is_not_emptied() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let watches = request.uri().query().is_some_and(|q| q.contains("watch="));
            let doomed = json!({"metadata": {"name": "n", "uid": "a", "resourceVersion": "5",
                "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"finalizers": [FINALIZER]}});
            let body = match request.uri().path() {
                "/api/v1/namespaces/n" => json!({"metadata": {"name": "n", "uid": "b"},
                    "spec": {"finalizers": [FINALIZER]}}),
                _ => json!({"metadata": {"resourceVersion": "5"}, "items": [doomed]}),
            };
            if !watches {
                let what = format!("{} {}", request.method(), request.uri().path());
                seen.lock().unwrap().push(what);
            }
            async move {
                if watches {
                    std::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(http::Response::new(body.to_string()))
            }
        });
        let client = client::in_process(service);
        let context = Context::new(client, Default::default(), Default::default());
        let namespaces = context.caches.get::<Namespace>(Scope::all());
        namespaces.synced().await;
        let controller = Namespaces {
            context,
            namespaces,
            contents: Vec::new(),
            known: Catalogue::default(),
        };
        controller.reconcile(&Key::cluster("n")).await.unwrap();
        let asked = asked.lock().unwrap();
        assert!(asked.iter().all(|a| a.starts_with("GET ")), "{asked:?}");
    }
}
