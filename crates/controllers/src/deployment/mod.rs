//! Rolls a Deployment's template out through ReplicaSets.
//!
//! ```text
//!  template changed ──> new ReplicaSet (revision n+1) ──> grows as surge allows
//!                                │                              │
//!                                v                              v
//!                       history cleaned up  <──  old ones shrink as availability allows
//! ```

pub(crate) mod hash;
mod model;
mod plan;
mod rollback;
mod rolling;
mod scale;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use client::{
    Cache, Change, Error, EventType, Key, Queue, Reconcile, Recorder, Requeue, Scope, events, write,
};
use futures::future::BoxFuture;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use kube::{Api, api::PostParams};
use serde_json::json;

use crate::{
    Context, Controller, conditions,
    owners::{Owner, Owners},
    pod_control, pods,
};
use model::Snapshot;
use plan::{Action, Plan};
use rollback::Rollback;

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "deployment-controller",
    run,
};

struct Deployments {
    context: Context,
    recorder: Recorder,
    owners: Owners<Deployment, ReplicaSet>,
    pods: Cache<Pod>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let queue = Queue::default();
        let owners = Owners::<Deployment, ReplicaSet>::watch(&context, &queue, None).await;
        let pods = context.caches.get::<Pod>(Scope::all());
        pods.synced().await;
        let (to, of) = (queue.clone(), owners.owned.clone());
        pods.on_change(move |change| {
            if let Some(key) = owner_of_ended(change, &of) {
                to.add(key);
            }
        });
        let recorder = context.recorder();
        let reconciler = Deployments {
            context: context.clone(),
            recorder,
            owners,
            pods,
        };
        context.work(reconciler, queue).await;
    })
}

/// The strategy Recreate waits for the end of pods, which ReplicaSets may not tell of.
fn owner_of_ended(change: &Change, sets: &Cache<ReplicaSet>) -> Option<Key> {
    let ended = change.new.is_none().then_some(change.old.as_ref()?)?;
    let set = ended.controller().filter(|o| o.kind == "ReplicaSet")?;
    let set = sets.entry(&Key::new(ended.key.namespace.clone(), set.name.as_str()))?;
    let owner = set.controller().filter(|o| o.kind == "Deployment")?;
    Some(Key::new(ended.key.namespace.clone(), owner.name.as_str()))
}

impl Reconcile for Deployments {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(deployment) = self.owners.all.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        if deployment.selector()?.is_everything() {
            let message =
                "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&deployment, "SelectingAll", message);
            return Ok(Requeue::OnChange);
        }
        let snapshot = self.look(deployment).await?;
        if let Some(rollback) = rollback::plan(&snapshot) {
            self.roll_back(key, rollback).await?;
            return Ok(Requeue::OnChange);
        }
        let Plan { actions, status } = plan::plan(&snapshot, self.context.now());
        for action in actions {
            self.act(&snapshot, key, action).await?;
        }
        let wait = status::look_again(&snapshot.deployment, &status, self.context.now());
        self.owners
            .write_status(&snapshot.deployment, &status)
            .await?;
        Ok(wait
            .and_then(|w| w.try_into().ok())
            .map_or(Requeue::OnChange, Requeue::After))
    }
}

impl Deployments {
    fn api(&self, key: &Key) -> Api<Deployment> {
        self.owners.api(&key.namespace)
    }

    fn sets_api(&self, key: &Key) -> Api<ReplicaSet> {
        self.owners.owned_api(&key.namespace)
    }

    async fn look(&self, deployment: Deployment) -> Result<Snapshot, Error> {
        let sets = self.owners.claim(&deployment).await?;
        let mut running = BTreeMap::new();
        if !model::is_rolling(&deployment) {
            for set in &sets {
                let uid = set.metadata.uid.clone().unwrap_or_default();
                let runs = self
                    .pods
                    .list_owned_by(&uid)
                    .iter()
                    .any(|p| !pods::is_terminal(p));
                running.insert(uid, runs);
            }
        }
        Ok(Snapshot::new(deployment, sets, running))
    }

    /// Fails with a conflict if the Deployment is not as it was when this was decided.
    async fn roll_back(&self, key: &Key, rollback: Rollback) -> Result<(), Error> {
        let Rollback { deployment, event } = rollback;
        let params = PostParams::default();
        let written = self.api(key).replace(&key.name, &params, &deployment).await;
        let Some(written) = write::tolerate_missing(written)? else {
            return Ok(());
        };
        let (kind, reason, message) = event;
        self.recorder
            .event(&events::reference(&written), kind, reason, message);
        self.owners
            .all
            .caught_up(write::revision_of(&written))
            .await
    }

    async fn act(&self, s: &Snapshot, key: &Key, action: Action) -> Result<(), Error> {
        match action {
            Action::Create(set) => self.create(s, key, &set).await,
            Action::Scale { set, from, to } => self.scale(s, key, set, from, to).await,
            Action::Describe { set, annotations } => {
                let min = s.deployment.spec.min_ready_seconds.unwrap_or(0);
                let patch = json!({
                    "metadata": {"annotations": annotations},
                    "spec": {"minReadySeconds": min},
                });
                self.patch_set(s, key, set, patch).await
            }
            Action::SetRevision(number) => {
                let patch = json!({"metadata": {"annotations": {model::REVISION: number}}});
                let written = write::patch(&self.api(key), &key.name, &patch).await?;
                self.owners
                    .all
                    .caught_up(written.as_ref().map_or(0, write::revision_of))
                    .await
            }
            Action::Delete(set) => {
                let meta = &s.sets[set].metadata;
                let name = meta.name.as_deref().unwrap_or_default();
                let uid = meta.uid.as_deref();
                write::delete(&self.sets_api(key), name, uid).await?;
                let gone = |e: Option<&client::Entry>| {
                    e.is_none_or(|e| e.deleting || Some(&*e.uid) != uid)
                };
                self.owners.owned.until(&Key::of(&s.sets[set]), gone).await
            }
        }
    }

    async fn create(&self, s: &Snapshot, key: &Key, set: &ReplicaSet) -> Result<(), Error> {
        let api = self.sets_api(key);
        match api.create(&PostParams::default(), set).await {
            Ok(made) => {
                let to = model::replicas(&made);
                if to > 0 {
                    self.tell_scaled(s, &made, 0, to);
                }
                self.owners.owned.caught_up(write::revision_of(&made)).await
            }
            Err(e) if client::is_exists(&e) => self.collide(s, key, set).await,
            Err(e) if client::is_forbidden_by_termination(&e) => Ok(()),
            Err(e) => {
                self.report_failed_create(s, set, &e).await?;
                Err(e.into())
            }
        }
    }

    /// The name is taken: by our own earlier attempt, or by a template of the same hash.
    async fn collide(&self, s: &Snapshot, key: &Key, set: &ReplicaSet) -> Result<(), Error> {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let Some(found) = write::tolerate_missing(self.sets_api(key).get(name).await)? else {
            return Err(Error::Other(format!("replica set {name} vanished")));
        };
        let uid = s.deployment.metadata.uid.as_deref();
        let owners = found
            .metadata
            .owner_references
            .as_deref()
            .unwrap_or_default();
        let ours = owners
            .iter()
            .any(|o| o.controller == Some(true) && Some(&*o.uid) == uid);
        let template = |set: &ReplicaSet| set.spec.template.clone();
        let same = match (template(&found), template(set)) {
            (Some(a), Some(b)) => model::same(&a, &b),
            _ => false,
        };
        if ours && same {
            return self
                .owners
                .owned
                .caught_up(write::revision_of(&found))
                .await;
        }
        let status = s.deployment.status.as_ref();
        let before = status.and_then(|x| x.collision_count);
        self.owners.count_collision(&s.deployment, before).await?;
        Err(Error::Other(format!(
            "the name {name} is taken by another replica set"
        )))
    }

    async fn report_failed_create(
        &self,
        s: &Snapshot,
        set: &ReplicaSet,
        error: &kube::Error,
    ) -> Result<(), Error> {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let why = pod_control::words(error);
        let message = format!("Failed to create new replica set {name:?}: {why}");
        let reason = "ReplicaSetCreateError";
        self.recorder
            .warning(&s.deployment, reason, message.as_str());
        if model::deadline(&s.deployment).is_none() {
            return Ok(());
        }
        let mut status = s.deployment.status.clone().unwrap_or_default();
        let verdict = conditions::Verdict {
            kind: status::PROGRESSING,
            status: "False",
            reason,
            message,
        };
        let list = status.conditions.get_or_insert_default();
        conditions::set(list, verdict, self.context.now());
        self.owners.write_status(&s.deployment, &status).await
    }

    async fn scale(
        &self,
        s: &Snapshot,
        key: &Key,
        set: usize,
        from: i32,
        to: i32,
    ) -> Result<(), Error> {
        let annotations = scale::annotations(&s.deployment);
        let meta = &s.sets[set].metadata;
        let current = |k: &str| model::annotation(meta, k).map(str::to_owned);
        if from == to
            && annotations
                .iter()
                .all(|(k, v)| current(k).as_ref() == Some(v))
        {
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": annotations}, "spec": {"replicas": to}});
        self.patch_set(s, key, set, patch).await?;
        if from != to {
            self.tell_scaled(s, &s.sets[set], from, to);
        }
        Ok(())
    }

    fn tell_scaled(&self, s: &Snapshot, set: &ReplicaSet, from: i32, to: i32) {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
        let about = events::reference(&s.deployment);
        self.recorder
            .event(&about, EventType::Normal, "ScalingReplicaSet", message);
    }

    /// Fails with a conflict if the ReplicaSet is not as it was when the plan was made.
    async fn patch_set(
        &self,
        s: &Snapshot,
        key: &Key,
        set: usize,
        mut patch: serde_json::Value,
    ) -> Result<(), Error> {
        let meta = &s.sets[set].metadata;
        patch["metadata"]["uid"] = json!(meta.uid);
        let name = meta.name.as_deref().unwrap_or_default();
        match write::patch(&self.sets_api(key), name, &patch).await? {
            Some(written) => {
                self.owners
                    .owned
                    .caught_up(write::revision_of(&written))
                    .await
            }
            None => Ok(()),
        }
    }
}
