//! Keeps as many pods of a template alive as a ReplicaSet says.

pub(crate) mod plan;

use std::{collections::HashMap, time::Duration};

use client::{
    Cache, Change, Error, Key, Queue, Reconcile, Requeue, Scope, Selector, cache::decode_all, write,
};
use futures::future::BoxFuture;
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, ReplicaSetStatus},
    core::v1::Pod,
};
use kube::Api;
use serde_json::json;

use crate::{
    Context, Controller, claim,
    digest::{Member, members},
    pod_control::PodControl,
    pods,
};
use plan::Act;

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "replicaset-controller",
    run,
};

/// Changes of pods are gathered for this long, and longer by [`GATHER_MORE`] for each pod there is: a
/// look at all of them takes its time, and nobody needs one for each change.
const GATHER: Duration = Duration::from_millis(10);
const GATHER_MORE: Duration = Duration::from_micros(20);

/// How long to gather changes of the pods of an owner that has so many.
pub(crate) fn gather(pods: usize) -> Duration {
    GATHER + GATHER_MORE * u32::try_from(pods).unwrap_or(u32::MAX)
}

struct ReplicaSets {
    context: Context,
    control: PodControl,
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
        let (to, of, all) = (queue.clone(), sets.clone(), pods.clone());
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
        let reconciler = ReplicaSets {
            context: context.clone(),
            control,
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
            plan::plan(&set, &owned, || self.crowd(&set), self.context.now())
        };
        let failure = self.act(&set, key, &owned, act).await;
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let pods = members(self.pods.entries_owned_by(uid));
        let reported = failure.as_ref().map(|(reason, e)| (*reason, e.words()));
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

    async fn claim(&self, set: &ReplicaSet, key: &Key) -> Result<Vec<Member>, Error> {
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
        Ok(members(owned))
    }

    /// Active pods per node of all ReplicaSets with the same controller.
    fn crowd(&self, set: &ReplicaSet) -> HashMap<String, usize> {
        let owners = set.metadata.owner_references.as_deref().unwrap_or_default();
        let Some(owner) = owners.iter().find(|o| o.controller == Some(true)) else {
            return HashMap::new();
        };
        let mut crowd = HashMap::new();
        for sibling in self.sets.entries_owned_by(&owner.uid) {
            for pod in members(self.pods.entries_owned_by(&sibling.uid)) {
                if pod.is_active() {
                    *crowd.entry(pod.node().to_owned()).or_default() += 1;
                }
            }
        }
        crowd
    }

    async fn act(
        &self,
        set: &ReplicaSet,
        key: &Key,
        owned: &[Member],
        act: Act,
    ) -> Option<(&'static str, Error)> {
        match act {
            Act::Nothing => None,
            Act::Create(count) => {
                let template = set.spec.template.as_ref()?;
                let owner = claim::owner_reference(set);
                let pod = pods::from_template(template, &key.namespace, &key.name, owner);
                let (_, failure) = self.control.create(set, vec![pod; count]).await;
                failure.map(|e| ("FailedCreate", e))
            }
            Act::Delete(which) => {
                let doomed = which.into_iter().map(|i| owned[i].entry.clone());
                let doomed: Vec<Pod> = decode_all(&doomed.collect::<Vec<_>>());
                let doomed: Vec<&Pod> = doomed.iter().collect();
                let (_, failure) = self.control.delete(set, &doomed).await;
                failure.map(|e| ("FailedDelete", e))
            }
        }
    }

    async fn write_status(
        &self,
        set: &ReplicaSet,
        key: &Key,
        status: ReplicaSetStatus,
    ) -> Result<(), Error> {
        let Some(patch) = write::merge_patch(set.status.as_ref(), &status) else {
            return Ok(());
        };
        let sets = write::namespaced::<ReplicaSet>(&self.context.client, &key.namespace);
        let body = json!({"status": patch});
        if let Some(written) = write::patch_status(&sets, &key.name, &body).await? {
            self.sets.caught_up(write::revision_of(&written)).await?;
        }
        Ok(())
    }
}
