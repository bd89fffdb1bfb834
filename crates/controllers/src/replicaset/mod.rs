//! Keeps as many pods of a template alive as a ReplicaSet says.

mod plan;

use std::collections::HashMap;

use client::{
    Cache, Change, Error, EventType, Key, Queue, Reconcile, Recorder, Requeue, Scope, Selector,
    cache::decode_all, events, write,
};
use futures::{
    future::BoxFuture,
    stream::{self, StreamExt},
};
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, ReplicaSetStatus},
    core::v1::Pod,
};
use kube::{Api, api::PostParams};
use serde_json::json;

use crate::{Context, Controller, claim, pods};
use plan::Act;

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "replicaset-controller",
    run,
};

/// Pods made or deleted at once within a batch.
const PARALLEL: usize = 16;
/// Pods of the first batch; each further batch doubles while all goes well.
const FIRST_BATCH: usize = 1;

struct ReplicaSets {
    context: Context,
    recorder: Recorder,
    sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let sets = context.caches.get::<ReplicaSet>(Scope::all());
        let pods = context.caches.get::<Pod>(Scope::all());
        sets.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        sets.on_change(move |change| to.add(change.key.clone()));
        pods.synced().await;
        let (to, of) = (queue.clone(), sets.clone());
        pods.on_change(move |change| {
            owners_of(change, &of)
                .into_iter()
                .for_each(|key| to.add(key))
        });
        let recorder = context.recorder();
        let reconciler = ReplicaSets {
            context: context.clone(),
            recorder,
            sets,
            pods,
        };
        context.work(reconciler, queue).await;
    })
}

/// The ReplicaSets that a change of a pod concerns: its owner before and after, or, where it has
/// no controller, those that may adopt it.
fn owners_of(change: &Change, sets: &Cache<ReplicaSet>) -> Vec<Key> {
    let mut keys = Vec::new();
    for entry in [&change.old, &change.new].into_iter().flatten() {
        let owner = entry.controller().filter(|o| o.kind == "ReplicaSet");
        if let Some(owner) = owner {
            keys.push(Key::new(entry.key.namespace.clone(), owner.name.as_str()));
        }
    }
    let orphan = change
        .new
        .as_ref()
        .filter(|e| e.controller().is_none() && !e.deleting);
    if let Some(orphan) = orphan {
        for set in sets.list_in(&orphan.key.namespace) {
            if Selector::of(&set.spec.selector)
                .is_ok_and(|s| !s.is_everything() && orphan.matches(&s))
            {
                keys.push(Key::of(&set));
            }
        }
    }
    keys
}

impl Reconcile for ReplicaSets {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(set) = self.sets.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let owned = self.claim(&set, key).await?;
        let act = if set.metadata.deletion_timestamp.is_some() {
            Act::Nothing
        } else {
            plan::plan(&set, &owned, &self.crowd(&set), self.context.now())
        };
        let failure = self.act(&set, key, &owned, act).await;
        let pods = self
            .pods
            .list_owned_by(set.metadata.uid.as_deref().unwrap_or_default());
        let reported = failure.as_ref().map(|(reason, e)| (*reason, e.to_string()));
        let status = plan::status(&set, &pods, reported, self.context.now());
        self.write_status(&set, key, status).await?;
        if let Some((_, error)) = failure {
            return Err(error);
        }
        let wait = plan::next_available(&set, &pods, self.context.now());
        Ok(wait
            .and_then(|w| w.try_into().ok())
            .map_or(Requeue::OnChange, Requeue::After))
    }
}

impl ReplicaSets {
    fn api(&self, key: &Key) -> Api<Pod> {
        write::namespaced(&self.context.client, &key.namespace)
    }

    async fn claim(&self, set: &ReplicaSet, key: &Key) -> Result<Vec<Pod>, Error> {
        let selector = Selector::of(&set.spec.selector).map_err(|e| Error::Other(e.to_string()))?;
        if selector.is_everything() {
            return Ok(Vec::new());
        }
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let deleting = set.metadata.deletion_timestamp.is_some();
        let candidates = claim::candidates(&self.pods, &key.namespace, uid, &selector);
        let claims = claim::sort(uid, deleting, &selector, candidates);
        let sets = write::namespaced(&self.context.client, &key.namespace);
        let owned = claim::settle(set, &sets, &self.api(key), &self.pods, claims).await?;
        Ok(decode_all(&owned))
    }

    /// Active pods per node of all ReplicaSets with the same controller.
    fn crowd(&self, set: &ReplicaSet) -> HashMap<String, usize> {
        let owners = set.metadata.owner_references.as_deref().unwrap_or_default();
        let Some(owner) = owners.iter().find(|o| o.controller == Some(true)) else {
            return HashMap::new();
        };
        let mut crowd = HashMap::new();
        for sibling in self.sets.entries_owned_by(&owner.uid) {
            for pod in self.pods.list_owned_by(&sibling.uid) {
                if pods::is_active(&pod) {
                    *crowd.entry(pods::node(&pod).to_owned()).or_default() += 1;
                }
            }
        }
        crowd
    }

    async fn act(
        &self,
        set: &ReplicaSet,
        key: &Key,
        owned: &[Pod],
        act: Act,
    ) -> Option<(&'static str, Error)> {
        match act {
            Act::Nothing => None,
            Act::Create(count) => self
                .create(set, key, count)
                .await
                .err()
                .map(|e| ("FailedCreate", e)),
            Act::Delete(which) => {
                let doomed: Vec<&Pod> = which.into_iter().map(|i| &owned[i]).collect();
                self.delete(set, key, &doomed)
                    .await
                    .err()
                    .map(|e| ("FailedDelete", e))
            }
        }
    }

    /// Makes pods in batches that double, so that a quota or a broken template costs one failed
    /// request, not hundreds.
    async fn create(&self, set: &ReplicaSet, key: &Key, count: usize) -> Result<(), Error> {
        let Some(template) = set.spec.template.as_ref() else {
            return Ok(());
        };
        let owner = claim::owner_reference(set);
        let pod = pods::from_template(template, &key.namespace, &key.name, owner);
        let (mut left, mut batch) = (count, FIRST_BATCH);
        let mut revision = 0;
        let mut failure = None;
        while left > 0 && failure.is_none() {
            let size = batch.min(left);
            let requests: Vec<_> = (0..size).map(|_| self.create_one(set, key, &pod)).collect();
            let made: Vec<_> = stream::iter(requests)
                .buffer_unordered(PARALLEL)
                .collect()
                .await;
            for result in made {
                match result {
                    Ok(seen) => revision = revision.max(seen),
                    Err(e) => failure = Some(e),
                }
            }
            left -= size;
            batch *= 2;
        }
        if revision > 0 {
            self.pods.caught_up(revision).await?;
        }
        failure.map_or(Ok(()), Err)
    }

    async fn create_one(&self, set: &ReplicaSet, key: &Key, pod: &Pod) -> Result<u64, Error> {
        match self.api(key).create(&PostParams::default(), pod).await {
            Ok(made) => {
                let name = made.metadata.name.as_deref().unwrap_or_default();
                self.event(
                    set,
                    EventType::Normal,
                    "SuccessfulCreate",
                    format!("Created pod: {name}"),
                );
                Ok(write::revision_of(&made))
            }
            Err(e) if client::is_forbidden_by_termination(&e) => Ok(0),
            Err(e) => {
                let message = format!("Error creating: {}", words(&e));
                self.event(set, EventType::Warning, "FailedCreate", message);
                Err(e.into())
            }
        }
    }

    async fn delete(&self, set: &ReplicaSet, key: &Key, doomed: &[&Pod]) -> Result<(), Error> {
        let api = self.api(key);
        let requests: Vec<_> = doomed
            .iter()
            .map(|pod| self.delete_one(set, &api, pod))
            .collect();
        let results: Vec<Result<(), Error>> = stream::iter(requests)
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        results.into_iter().collect()
    }

    async fn delete_one(&self, set: &ReplicaSet, api: &Api<Pod>, pod: &Pod) -> Result<(), Error> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let uid = pod.metadata.uid.as_deref();
        if let Err(e) = write::delete(api, name, uid).await {
            let message = format!("Error deleting: {}", words(&e));
            self.event(set, EventType::Warning, "FailedDelete", message);
            return Err(e.into());
        }
        self.event(
            set,
            EventType::Normal,
            "SuccessfulDelete",
            format!("Deleted pod: {name}"),
        );
        let gone = |e: Option<&client::Entry>| e.is_none_or(|e| e.deleting || Some(&*e.uid) != uid);
        self.pods.until(&Key::of(pod), gone).await
    }

    fn event(&self, set: &ReplicaSet, kind: EventType, reason: &str, message: String) {
        self.recorder
            .event(&events::reference(set), kind, reason, message);
    }

    async fn write_status(
        &self,
        set: &ReplicaSet,
        key: &Key,
        status: ReplicaSetStatus,
    ) -> Result<(), Error> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let sets = write::namespaced::<ReplicaSet>(&self.context.client, &key.namespace);
        let body = json!({"status": {
            "replicas": status.replicas,
            "fullyLabeledReplicas": status.fully_labeled_replicas,
            "readyReplicas": status.ready_replicas,
            "availableReplicas": status.available_replicas,
            "terminatingReplicas": status.terminating_replicas,
            "observedGeneration": status.observed_generation,
            "conditions": status.conditions,
        }});
        if let Some(written) = write::patch_status(&sets, &key.name, &body).await? {
            self.sets.caught_up(write::revision_of(&written)).await?;
        }
        Ok(())
    }
}

/// The server's words for a failure.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
