//! Making and deleting pods in the name of an owner, with the owner's events.
//!
//! Every call ends only when the cache shows what was written.

use client::{Cache, Client, Entry, Error, Key, Recorder, write};
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Resource,
    api::{Patch, PatchParams, PostParams},
    core::Request,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Context, pods};

/// Requests under way at once: the store writes those together that come together.
const PARALLEL: usize = 64;
/// Pods of the first batch; each further batch doubles while all goes well.
const FIRST_BATCH: usize = 1;

/// Deletes a pod that cannot stay where it is; `why` (reason and message) stands in its status before.
pub async fn evict(context: &Context, pod: &Pod, why: (&str, &str)) -> Result<(), Error> {
    let condition = disruption(pod, why, context.now());
    if !mark(context, pod, &json!({"conditions": [condition]})).await? {
        return Ok(());
    }
    let key = Key::of(pod);
    let api: Api<Pod> = write::namespaced(&context.client, &key.namespace);
    write::delete(&api, &key.name, pod.metadata.uid.as_deref()).await?;
    Ok(())
}

/// The condition of a pod that goes though nobody asked for it; `why`: reason and message.
pub fn disruption(pod: &Pod, why: (&str, &str), now: Timestamp) -> Value {
    json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": why.0,
        "message": why.1,
        "observedGeneration": pod.metadata.generation,
        "lastTransitionTime": api::time::format(now),
    })
}

/// Merges into the status of a pod; answers whether it is still there. What has its name by now may
/// be its successor, which is left alone.
pub async fn mark(context: &Context, pod: &Pod, status: &Value) -> Result<bool, Error> {
    let key = Key::of(pod);
    let api: Api<Pod> = write::namespaced(&context.client, &key.namespace);
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
    let patch = Patch::Strategic(patch);
    let marked = api
        .patch_status(&key.name, &PatchParams::default(), &patch)
        .await;
    match marked {
        Ok(_) => Ok(true),
        Err(e) if client::is_not_found(&e) || client::is_conflict(&e) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Acts on pods. Cheap to clone.
#[derive(Clone)]
pub struct PodControl {
    /// Writes.
    pub client: Client,
    /// Shows what was written.
    pub pods: Cache<Pod>,
    /// Tells of it.
    pub recorder: Recorder,
}

/// What counts of the answer to a creation; the rest is what was asked for.
#[derive(Deserialize)]
struct Made {
    metadata: MadeMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MadeMeta {
    name: String,
    resource_version: String,
}

impl PodControl {
    /// Makes pods in batches that double, so that a quota or a broken template costs one failed
    /// request, not hundreds. Answers how many were made, and the last failure.
    pub async fn create<O>(&self, owner: &O, all: Vec<Pod>) -> (usize, Option<Error>)
    where
        O: Resource<DynamicType = ()>,
    {
        let (mut made, mut revision, mut failure) = (0, 0, None);
        let mut left = all.into_iter().peekable();
        let mut batch = FIRST_BATCH;
        let mut ends = false;
        while left.peek().is_some() && failure.is_none() && !ends {
            let requests: Vec<_> = left
                .by_ref()
                .take(batch)
                .map(|pod| self.create_one(owner, pod))
                .collect();
            let results: Vec<_> = stream::iter(requests)
                .buffer_unordered(PARALLEL)
                .collect()
                .await;
            for result in results {
                match result {
                    Ok(Some(seen)) => {
                        made += 1;
                        revision = revision.max(seen);
                    }
                    // Nor will any other be made there.
                    Ok(None) => ends = true,
                    Err(e) => failure = Some(e),
                }
            }
            batch *= 2;
        }
        if revision > 0
            && let Err(e) = self.pods.caught_up(revision).await
        {
            failure = failure.or(Some(e));
        }
        (made, failure)
    }

    /// Answers the revision of the new pod; `None`: its namespace is being deleted.
    async fn create_one<O>(&self, owner: &O, pod: Pod) -> Result<Option<u64>, Error>
    where
        O: Resource<DynamicType = ()>,
    {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let body = serde_json::to_vec(&pod).map_err(kube::Error::SerdeError)?;
        let request = Request::new(Pod::url_path(&(), Some(namespace)))
            .create(&PostParams::default(), body)
            .map_err(kube::Error::BuildRequest)?;
        match self.client.request::<Made>(request).await {
            Ok(Made { metadata }) => {
                let message = format!("Created pod: {}", metadata.name);
                self.recorder.normal(owner, "SuccessfulCreate", message);
                Ok(Some(metadata.resource_version.parse().unwrap_or(0)))
            }
            Err(e) if client::is_forbidden_by_termination(&e) => Ok(None),
            Err(e) => {
                let message = format!("Error creating: {}", words(&e));
                self.recorder.warning(owner, "FailedCreate", message);
                Err(e.into())
            }
        }
    }

    /// Deletes pods. Answers which of them went or go, and the last failure.
    pub async fn delete<O>(&self, owner: &O, doomed: &[&Pod]) -> (Vec<bool>, Option<Error>)
    where
        O: Resource<DynamicType = ()>,
    {
        let requests: Vec<_> = doomed
            .iter()
            .map(|pod| self.delete_one(owner, pod))
            .collect();
        outcome(stream::iter(requests).buffered(PARALLEL).collect().await)
    }

    async fn delete_one<O>(&self, owner: &O, pod: &Pod) -> Result<(), Error>
    where
        O: Resource<DynamicType = ()>,
    {
        let key = Key::of(pod);
        let uid = pod.metadata.uid.as_deref();
        let api = write::namespaced::<Pod>(&self.client, &key.namespace);
        match write::delete(&api, &key.name, uid).await {
            Ok(true) => {
                let message = format!("Deleted pod: {}", key.name);
                self.recorder.normal(owner, "SuccessfulDelete", message);
            }
            // Somebody else has deleted it.
            Ok(false) => {}
            Err(e) => {
                let message = format!("Error deleting: {}", words(&e));
                self.recorder.warning(owner, "FailedDelete", message);
                return Err(e.into());
            }
        }
        let gone = |e: Option<&Entry>| e.is_none_or(|e| e.deleting || Some(&*e.uid) != uid);
        self.pods.until(&key, gone).await
    }

    /// Removes a finalizer from pods. Answers which of them are without it now.
    pub async fn release(&self, pods: &[&Pod], finalizer: &str) -> (Vec<bool>, Option<Error>) {
        let requests: Vec<_> = pods
            .iter()
            .map(|pod| {
                let patch = serde_json::json!({"metadata": {
                    "uid": pod.metadata.uid,
                    "$deleteFromPrimitiveList/finalizers": [finalizer],
                }});
                self.patch_one(pod, patch)
            })
            .collect();
        self.patched(stream::iter(requests).buffered(PARALLEL).collect().await)
            .await
    }

    /// Patches one pod, fine if it is gone; a strategic patch that names the uid.
    pub async fn patch(&self, pod: &Pod, patch: Value) -> Result<(), Error> {
        let result = self.patch_one(pod, patch).await;
        self.patched(vec![result]).await.1.map_or(Ok(()), Err)
    }

    /// A patch is done when the cache shows it: who counts what was done must not find the pod
    /// as it was before.
    async fn patched(&self, results: Vec<Result<u64, Error>>) -> (Vec<bool>, Option<Error>) {
        let revision = results.iter().flatten().copied().max().unwrap_or(0);
        let (mut done, mut failure) = outcome(results.into_iter().map(|r| r.map(drop)).collect());
        if revision > 0
            && let Err(e) = self.pods.caught_up(revision).await
        {
            done.fill(false);
            failure = failure.or(Some(e));
        }
        (done, failure)
    }

    /// Waits until the cache knows that the pod is gone or has become another one.
    async fn gone(&self, key: &Key, pod: &Pod) -> Result<u64, Error> {
        let uid = pod.metadata.uid.as_deref();
        let gone = |e: Option<&Entry>| e.is_none_or(|e| Some(&*e.uid) != uid);
        self.pods.until(key, gone).await.map(|()| 0)
    }

    /// Answers the revision; 0 where the pod is gone or has become another one.
    async fn patch_one(&self, pod: &Pod, patch: Value) -> Result<u64, Error> {
        let key = Key::of(pod);
        let api = write::namespaced::<Pod>(&self.client, &key.namespace);
        let patched = api
            .patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        match write::tolerate_missing(patched) {
            Ok(Some(pod)) => Ok(write::revision_of(&pod)),
            Ok(None) => self.gone(&key, pod).await,
            // Refused because it is another pod, or because somebody else was faster?
            Err(kube::Error::Api(s)) if s.code == 422 || s.code == 409 => {
                let found = api.get_metadata_opt(&key.name).await?;
                match found.is_some_and(|p| p.metadata.uid == pod.metadata.uid) {
                    true => Err(kube::Error::Api(s).into()),
                    false => self.gone(&key, pod).await,
                }
            }
            Err(e) => Err(e.into()),
        }
    }
}

fn outcome(results: Vec<Result<(), Error>>) -> (Vec<bool>, Option<Error>) {
    let done = results.iter().map(Result::is_ok).collect();
    (done, results.into_iter().find_map(Result::err))
}

/// The server's words for a failure.
pub fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Orders pods by how little would be lost with them: the least first.
pub fn by_loss(pod: &Pod) -> impl Ord + use<> {
    let phase = match pods::phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let since = pods::ready_since(pod);
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let newer = |t: Option<Timestamp>| std::cmp::Reverse(t.unwrap_or(Timestamp::MAX));
    (
        !pods::node(pod).is_empty(),
        phase,
        since.is_some(),
        newer(since),
        std::cmp::Reverse(pods::restarts(pod)),
        newer(created),
        pod.metadata.name.clone(),
    )
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use client::{Caches, Clock, Scope};
    use http::{Method, Request, Response};
    use serde_json::json;

    use super::*;

    const FINALIZER: &str = "example.com/tracking";

    /// A control over one pod, on a server that answers patches with this and tells no watch of it.
    async fn behind(code: u16, patched: Value) -> PodControl {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u",
            "resourceVersion": "5", "finalizers": [FINALIZER]}});
        let list = json!({"metadata": {"resourceVersion": "5"}, "items": [pod]});
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let watches = request.uri().query().is_some_and(|q| q.contains("watch="));
            let (code, body) = match *request.method() {
                Method::PATCH => (code, patched.to_string()),
                _ => (200, list.to_string()),
            };
            async move {
                if watches {
                    std::future::pending::<()>().await;
                }
                let mut response = Response::new(body);
                *response.status_mut() = code.try_into().unwrap();
                Ok::<_, Infallible>(response)
            }
        });
        let client = client::in_process(service);
        let pods = Caches::new(client.clone()).get::<Pod>(Scope::all());
        pods.synced().await;
        PodControl {
            recorder: Recorder::new(client.clone(), "test", "", Clock::system()),
            client,
            pods,
        }
    }

    #[tokio::test]
    async fn a_successor_is_not_marked_in_the_place_of_a_pod_that_went() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let seen = seen.clone();
            async move {
                let method = request.method().clone();
                let body = request.into_body().collect_bytes().await.unwrap();
                seen.lock()
                    .unwrap()
                    .push((method, String::from_utf8_lossy(&body).into_owned()));
                let status = json!({"kind": "Status", "status": "Failure", "code": 409,
                    "reason": "Conflict", "message": "Precondition failed: UID in precondition: u"});
                let mut response = Response::new(status.to_string());
                *response.status_mut() = 409.try_into().unwrap();
                Ok::<_, Infallible>(response)
            }
        });
        let client = client::in_process(service);
        let context = Context::new(client, Default::default(), Default::default());
        let pod: Pod = serde_json::from_value(json!({"metadata":
            {"name": "p", "namespace": "n", "uid": "u", "generation": 3}}))
        .unwrap();
        evict(&context, &pod, ("R", "m")).await.unwrap();
        let asked = asked.lock().unwrap();
        let [(Method::PATCH, body)] = asked.as_slice() else {
            panic!("{asked:?}");
        };
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["metadata"]["uid"], "u");
        assert_eq!(body["status"]["conditions"][0]["observedGeneration"], 3);
    }

    /// The events that told of two deletions, of which the server answered the first with this.
    async fn told_of(gone: u16) -> Vec<Value> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = told.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let heard = heard.clone();
            async move {
                let (parts, body) = request.into_parts();
                if parts.uri.query().is_some_and(|q| q.contains("watch=")) {
                    std::future::pending::<()>().await;
                }
                let mut answer = Response::new(json!({"metadata": {}, "items": []}).to_string());
                if parts.method == Method::POST {
                    let body = body.collect_bytes().await.unwrap();
                    heard
                        .lock()
                        .unwrap()
                        .push(serde_json::from_slice(&body).unwrap());
                } else if parts.method == Method::DELETE && parts.uri.path().ends_with("/first") {
                    let status = json!({"kind": "Status", "status": "Failure", "code": gone,
                        "reason": "NotFound", "message": "why"});
                    *answer.body_mut() = status.to_string();
                    *answer.status_mut() = gone.try_into().unwrap();
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let client = client::in_process(service);
        let control = PodControl {
            recorder: Recorder::new(client.clone(), "test", "", Clock::system()),
            pods: Caches::new(client.clone()).get::<Pod>(Scope::all()),
            client,
        };
        control.pods.synced().await;
        let pod = |name: &str| -> Pod {
            let meta = json!({"name": name, "namespace": "n", "uid": name});
            serde_json::from_value(json!({"metadata": meta})).unwrap()
        };
        for doomed in [pod("first"), pod("last")] {
            control.delete(&pod("owner"), &[&doomed]).await;
        }
        // They are written one after another.
        loop {
            let told = told.lock().unwrap().clone();
            if told
                .iter()
                .any(|e: &Value| e["message"] == "Deleted pod: last")
            {
                return told;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_deletes_a_pod_says_so() {
        assert_eq!(told_of(404).await.len(), 1);
        let told = told_of(500).await;
        assert_eq!(told[0]["reason"], "FailedDelete");
        assert_eq!(told[0]["message"], "Error deleting: why");
    }

    /// Else who counts the pods it let go of would find one of them again, as it was, and count it
    /// once more.
    #[tokio::test(start_paused = true)]
    async fn a_pod_is_let_go_of_only_when_the_cache_shows_it() {
        let changed = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u",
            "resourceVersion": "6"}});
        let missing = json!({"kind": "Status", "status": "Failure", "code": 404,
            "reason": "NotFound", "message": "pods \"p\" not found"});
        for (code, answer) in [(200, changed), (404, missing)] {
            let control = behind(code, answer).await;
            let pods = control.pods.list();
            let (done, failure) = control.release(&[&pods[0]], FINALIZER).await;
            assert_eq!(done, [false], "{code}");
            assert!(matches!(failure, Some(Error::Behind { .. })), "{code}");
        }
    }
}
