//! Empties namespaces that are being deleted, pods first, and then lets them go.

mod left;

use std::time::Duration;

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use k8s_openapi::{
    api::core::v1::Namespace,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Resource as _,
    api::{DeleteParams, ListParams, PostParams},
    core::Request,
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use crate::{
    Context, Controller,
    catalogue::{self, Catalogue, Served},
};
use left::{Left, said};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "namespace-controller",
    run,
};

const FINALIZER: &str = "kubernetes";
/// When to look again at what cannot be followed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
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

/// An object in a list of any kind.
#[derive(Deserialize)]
struct Listed {
    metadata: ObjectMeta,
}

#[derive(Deserialize)]
struct Listing {
    items: Option<Vec<Listed>>,
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
        let mut left = Left::default();
        let (empty, mut failures) = self.empty(&key.name, &mut left).await;
        let waits = !left.objects.is_empty();
        self.count(&key.name, &mut left);
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
        Ok(match waits {
            true => Requeue::After(LOOK_AGAIN),
            false => Requeue::OnChange,
        })
    }
}

impl Namespaces {
    /// Adds what the caches show.
    fn count(&self, namespace: &str, left: &mut Left) {
        for (served, cache) in &self.contents {
            let entries = cache.entries_in(namespace);
            left.add(served, entries.iter().map(|e| &*e.finalizers));
        }
    }

    /// Deletes what is there; answers whether the server says that nothing is, and what failed. Adds to `left`
    /// what is still there of that which no cache shows.
    async fn empty(&self, namespace: &str, left: &mut Left) -> (bool, Vec<Error>) {
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
        for served in self.known.unseen.iter().filter(|s| s.namespaced) {
            match self.clear_unseen(served, namespace).await {
                Ok(objects) => {
                    all &= objects.is_empty();
                    let finalizers =
                        |o: &'_ Listed| o.metadata.finalizers.clone().unwrap_or_default();
                    let finalizers: Vec<Vec<String>> = objects.iter().map(finalizers).collect();
                    left.add(served, finalizers.iter().map(Vec::as_slice));
                }
                Err(failure) => failures.push(failure),
            }
        }
        if all
            && failures.is_empty()
            && let Err(failure) = self.clear_events(namespace).await
        {
            failures.push(failure);
        }
        (all, failures)
    }

    /// Deletes what is there of a resource that no cache shows, as far as that can be done; answers what is
    /// there after that.
    async fn clear_unseen(&self, served: &Served, namespace: &str) -> Result<Vec<Listed>, Error> {
        let client = &self.context.client;
        let collection = || Request::new(served.resource.path(namespace));
        let background = DeleteParams::background();
        if served.deletes_collections {
            let request = collection().delete_collection(&background, &ListParams::default())?;
            client.request::<IgnoredAny>(request).await?;
        } else {
            for object in self.list_unseen(served, namespace).await? {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                let request = collection().delete(name, &background)?;
                write::tolerate_missing(client.request::<IgnoredAny>(request).await)?;
            }
        }
        self.list_unseen(served, namespace).await
    }

    /// What there is of a resource; nothing where nobody can tell.
    async fn list_unseen(&self, served: &Served, namespace: &str) -> Result<Vec<Listed>, Error> {
        if !served.lists {
            return Ok(Vec::new());
        }
        let request = Request::new(served.resource.path(namespace));
        let request = request.list(&ListParams::default())?;
        let found: Listing = self.context.client.request(request).await?;
        Ok(found.items.unwrap_or_default())
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
        collections::BTreeMap,
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use super::*;

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

    fn unseen(plural: &str, lists: bool, deletes_collections: bool) -> Served {
        Served {
            resource: client::Resource {
                group: "a".into(),
                version: "v1".into(),
                plural: plural.into(),
            },
            kind: String::new(),
            namespaced: true,
            lists,
            deletes_collections,
        }
    }

    /// What another server keeps may be there without being watched.
    #[tokio::test]
    async fn what_cannot_be_followed_is_deleted_all_the_same() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let path = request.uri().path().to_owned();
            let what = format!("{} {path}", request.method());
            let before = seen.lock().unwrap().contains(&what);
            seen.lock().unwrap().push(what);
            let items = match path.ends_with("/stay") || path.ends_with("/go") && !before {
                true => json!([{"metadata": {"name": "x", "finalizers": ["x.io/y"]}}]),
                false => json!(null),
            };
            let body = json!({"metadata": {}, "items": items});
            async move { Ok::<_, Infallible>(http::Response::new(body.to_string())) }
        });
        let context = Context::new(
            client::in_process(service),
            Default::default(),
            Default::default(),
        );
        let controller = Namespaces {
            namespaces: context.caches.get::<Namespace>(Scope::all()),
            context,
            contents: Vec::new(),
            known: Catalogue {
                unseen: vec![
                    unseen("go", true, false),
                    unseen("stay", true, true),
                    unseen("blind", false, true),
                ],
                ..Catalogue::default()
            },
        };
        let mut left = Left::default();
        let (empty, failures) = controller.empty("n", &mut left).await;
        assert!(!empty && failures.is_empty(), "{failures:?}");
        let finalizers = BTreeMap::from([("x.io/y".to_owned(), 1)]);
        let objects = BTreeMap::from([("stay.a".to_owned(), 1)]);
        assert_eq!(
            left,
            Left {
                objects,
                finalizers
            }
        );
        let asked = asked.lock().unwrap();
        let of_resources = asked.iter().filter(|a| a.contains("/apis/a/v1/"));
        let start = "/apis/a/v1/namespaces/n";
        let expected = [
            format!("GET {start}/go"),
            format!("DELETE {start}/go/x"),
            format!("GET {start}/go"),
            format!("DELETE {start}/stay"),
            format!("GET {start}/stay"),
            format!("DELETE {start}/blind"),
        ];
        assert_eq!(
            of_resources.collect::<Vec<_>>(),
            expected.iter().collect::<Vec<_>>()
        );
    }
}
