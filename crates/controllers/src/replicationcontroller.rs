//! Keeps as many pods of a template alive as a ReplicationController says: a ReplicaSet in
//! everything but its name.

use std::collections::HashMap;

use client::{Cache, Change, Error, Key, Queue, Reconcile, Requeue, Scope, Selector, write};
use futures::future::BoxFuture;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetSpec, ReplicaSetStatus},
        core::v1::{Pod, ReplicationController, ReplicationControllerStatus},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::{
    Context, Controller, claim,
    digest::{Member, members},
    pod_control::PodControl,
    pods,
    replicaset::{
        gather,
        plan::{self, Act},
    },
};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "replication-controller",
    run,
};

struct ReplicationControllers {
    context: Context,
    control: PodControl,
    owners: Cache<ReplicationController>,
    pods: Cache<Pod>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let owners = context.caches.get::<ReplicationController>(Scope::all());
        let pods = context.caches.get::<Pod>(Scope::all());
        let queue = Queue::default();
        owners.synced().await;
        let to = queue.clone();
        owners.on_change(move |change| to.add(change.key.clone()));
        pods.synced().await;
        let (to, of, all) = (queue.clone(), owners.clone(), pods.clone());
        pods.on_change(move |change| {
            let owner = change.latest().and_then(|e| e.controller());
            let wait = gather(owner.map_or(0, |o| all.owned_count(&o.uid)));
            for key in owners_of(change, &of) {
                to.add_after(key, wait);
            }
        });
        let control = PodControl {
            client: context.client.clone(),
            recorder: context.recorder(),
            pods: pods.clone(),
        };
        let reconciler = ReplicationControllers {
            context: context.clone(),
            control,
            owners,
            pods,
        };
        context.work(reconciler, queue).await;
    })
}

fn selector(owner: &ReplicationController) -> Option<Selector> {
    let labels = owner.spec.as_ref()?.selector.as_ref()?;
    (!labels.is_empty()).then(|| Selector::of_labels(labels))
}

fn owners_of(change: &Change, owners: &Cache<ReplicationController>) -> Vec<Key> {
    let mut keys = Vec::new();
    for entry in [&change.old, &change.new].into_iter().flatten() {
        let owner = entry
            .controller()
            .filter(|o| o.kind == "ReplicationController");
        if let Some(owner) = owner {
            keys.push(Key::new(entry.key.namespace.clone(), owner.name.as_str()));
        }
    }
    let orphan = change
        .new
        .as_ref()
        .filter(|e| e.controller().is_none() && !e.deleting);
    if let Some(orphan) = orphan.filter(|_| !owners.is_empty()) {
        for owner in owners.list_in(&orphan.key.namespace) {
            if selector(&owner).is_some_and(|s| orphan.matches(&s)) {
                keys.push(Key::of(&owner));
            }
        }
    }
    keys
}

/// The ReplicaSet that would do the same.
fn as_set(owner: &ReplicationController) -> ReplicaSet {
    let spec = owner.spec.clone().unwrap_or_default();
    ReplicaSet {
        metadata: owner.metadata.clone(),
        spec: ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: spec.replicas,
            selector: LabelSelector {
                match_labels: spec.selector,
                match_expressions: None,
            },
            template: spec.template,
        },
        status: owner.status.as_ref().and_then(convert),
    }
}

/// Both kinds of status are written alike.
fn convert<A: Serialize, B: DeserializeOwned>(status: &A) -> Option<B> {
    serde_json::from_value(serde_json::to_value(status).ok()?).ok()
}

impl Reconcile for ReplicationControllers {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(owner) = self.owners.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let set = as_set(&owner);
        let owned = self.claim(&owner, key).await?;
        let act = if set.metadata.deletion_timestamp.is_some() {
            Act::Nothing
        } else {
            plan::plan(&set, &owned, HashMap::new, self.context.now())
        };
        let failure = self.act(&owner, &owned, act).await;
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let pods = members(self.pods.entries_owned_by(uid));
        let reported = failure.as_ref().map(|(reason, e)| (*reason, e.words()));
        let status = plan::status(&set, &pods, reported, self.context.now());
        self.write_status(&owner, key, &status).await?;
        if let Some((_, error)) = failure {
            return Err(error);
        }
        let wait = plan::next_available(&set, &pods, self.context.now());
        Ok(wait
            .and_then(|w| w.try_into().ok())
            .map_or(Requeue::OnChange, Requeue::After))
    }
}

impl ReplicationControllers {
    async fn claim(&self, owner: &ReplicationController, key: &Key) -> Result<Vec<Member>, Error> {
        let Some(selector) = selector(owner) else {
            return Ok(Vec::new());
        };
        let uid = owner.metadata.uid.as_deref().unwrap_or_default();
        let deleting = owner.metadata.deletion_timestamp.is_some();
        let candidates = claim::candidates(&self.pods, &key.namespace, uid, &selector);
        let claims = claim::sort(uid, deleting, &selector, candidates);
        let owners = write::namespaced(&self.context.client, &key.namespace);
        let pods = write::namespaced(&self.context.client, &key.namespace);
        let owned = claim::settle(owner, &owners, &pods, &self.pods, claims).await?;
        Ok(members(owned))
    }

    async fn act(
        &self,
        owner: &ReplicationController,
        owned: &[Member],
        act: Act,
    ) -> Option<(&'static str, Error)> {
        match act {
            Act::Nothing => None,
            Act::Create(count) => {
                let template = owner.spec.as_ref()?.template.as_ref()?;
                let key = Key::of(owner);
                let reference = claim::owner_reference(owner);
                let pod = pods::from_template(template, &key.namespace, &key.name, reference);
                let (_, failure) = self.control.create(owner, vec![pod; count]).await;
                failure.map(|e| ("FailedCreate", e))
            }
            Act::Delete(which) => {
                let doomed = which.into_iter().map(|i| owned[i].entry.clone());
                let doomed: Vec<Pod> = client::cache::decode_all(&doomed.collect::<Vec<_>>());
                let doomed: Vec<&Pod> = doomed.iter().collect();
                let (_, failure) = self.control.delete(owner, &doomed).await;
                failure.map(|e| ("FailedDelete", e))
            }
        }
    }

    async fn write_status(
        &self,
        owner: &ReplicationController,
        key: &Key,
        status: &ReplicaSetStatus,
    ) -> Result<(), Error> {
        let Some(status) = convert::<_, ReplicationControllerStatus>(status) else {
            return Ok(());
        };
        let Some(patch) = write::merge_patch(owner.status.as_ref(), &status) else {
            return Ok(());
        };
        let body = json!({"metadata": {"uid": owner.metadata.uid}, "status": patch});
        let api = write::namespaced::<ReplicationController>(&self.context.client, &key.namespace);
        if let Some(written) = write::patch_status(&api, &key.name, &body).await? {
            self.owners.caught_up(write::revision_of(&written)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_replica_set_by_another_name() {
        let owner: ReplicationController = serde_json::from_value(json!({
            "metadata": {"name": "r", "uid": "u"},
            "spec": {"replicas": 4, "selector": {"a": "b"}, "template": {"metadata": {"labels": {"a": "b"}}}},
            "status": {"replicas": 2, "readyReplicas": 1, "conditions": [
                {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}]},
        }))
        .unwrap();
        let set = as_set(&owner);
        assert_eq!(set.spec.replicas, Some(4));
        let status = set.status.unwrap();
        assert_eq!((status.replicas, status.ready_replicas), (2, Some(1)));
        let back: ReplicationControllerStatus = convert(&status).unwrap();
        assert_eq!(Some(back), owner.status);
    }
}
