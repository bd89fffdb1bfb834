//! Tells how many pods of each PodDisruptionBudget may be evicted.
//!
//! The API server takes from that number with each eviction and notes the pod; the status is
//! written only if it is still as it was read, so that no eviction is forgotten.

mod plan;
mod stale;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use client::{
    Cache, Client, Entry, Error, Key, Owner, Queue, Reconcile, Recorder, Requeue, Scope, Selector,
    write,
};
use futures::future::BoxFuture;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet, StatefulSet},
    core::v1::{Pod, ReplicationController},
    policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
};
use serde_json::json;

use crate::{Context, Controller, autoscaler::scale, selectors};

pub use stale::CONTROLLER as STALE;

/// Keeps the budgets' statuses.
pub const CONTROLLER: Controller = Controller {
    name: "disruption-controller",
    run,
};

/// What upstream calls the source of its events.
const SOURCE: &str = "controllermanager";
/// Changes of pods within this time are looked at together.
const GATHER: Duration = Duration::from_millis(20);

struct Budgets {
    context: Context,
    recorder: Recorder,
    budgets: Cache<PodDisruptionBudget>,
    pods: Cache<Pod>,
    managers: Managers,
}

/// Those who know how many pods there should be.
struct Managers {
    deployments: Cache<Deployment>,
    replica_sets: Cache<ReplicaSet>,
    stateful_sets: Cache<StatefulSet>,
    replication_controllers: Cache<ReplicationController>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let budgets = context.caches.get::<PodDisruptionBudget>(Scope::all());
        let pods = context.caches.get::<Pod>(Scope::all());
        let managers = Managers {
            deployments: context.caches.get(Scope::all()),
            replica_sets: context.caches.get(Scope::all()),
            stateful_sets: context.caches.get(Scope::all()),
            replication_controllers: context.caches.get(Scope::all()),
        };
        managers.synced().await;
        let queue = Queue::default();
        budgets.synced().await;
        let to = queue.clone();
        budgets.on_change(move |change| to.add(change.key.clone()));
        pods.synced().await;
        let (to, of) = (queue.clone(), budgets.clone());
        let recorder = context.recorder_as(SOURCE);
        let told = recorder.clone();
        pods.on_change(move |change| {
            for entry in [&change.old, &change.new].into_iter().flatten() {
                for key in budgets_of(entry, &of) {
                    to.add_after(key, GATHER);
                }
            }
            if let Some(pod) = &change.new {
                tell_several(&told, pod, &budgets_of(pod, &of));
            }
        });
        let reconciler = Budgets {
            context: context.clone(),
            recorder,
            budgets,
            pods,
            managers,
        };
        context.work(reconciler, queue).await;
    })
}

/// A budget without a selector has no pods; with an empty one, all of its namespace.
fn selector(budget: &PodDisruptionBudget) -> Option<Result<Selector, Error>> {
    let selector = budget.spec.as_ref()?.selector.as_ref()?;
    Some(Selector::of(selector).map_err(|e| Error::Other(e.to_string())))
}

/// The budgets that choose a pod.
fn budgets_of(pod: &Entry, budgets: &Cache<PodDisruptionBudget>) -> Vec<Key> {
    if budgets.is_empty() {
        return Vec::new();
    }
    let chooses = |budget: &PodDisruptionBudget| {
        let selector = selector(budget).and_then(Result::ok);
        selector.is_some_and(|s| pod.matches(&s))
    };
    let all = budgets.list_in(&pod.key.namespace);
    all.iter().filter(|b| chooses(b)).map(Key::of).collect()
}

/// A pod of several budgets cannot be evicted: tells whoever looks at the pod.
fn tell_several(recorder: &Recorder, pod: &Entry, budgets: &[Key]) {
    let first = budgets.iter().map(|b| &b.name).min();
    let (Some(first), true) = (first, budgets.len() > 1) else {
        return;
    };
    let (namespace, name) = (&pod.key.namespace, &pod.key.name);
    let message = format!(
        "Pod {namespace:?}/{name:?} matches multiple PodDisruptionBudgets.  Chose {first:?} arbitrarily."
    );
    if let Ok(pod) = pod.decode::<Pod>() {
        recorder.warning(&pod, "MultiplePodDisruptionBudgets", message);
    }
}

impl Managers {
    async fn synced(&self) {
        self.deployments.synced().await;
        self.replica_sets.synced().await;
        self.stateful_sets.synced().await;
        self.replication_controllers.synced().await;
    }

    /// How many pods the managers of these want altogether; in words if one cannot tell.
    async fn scale(
        &self,
        client: &Client,
        namespace: &str,
        pods: &[Arc<Entry>],
    ) -> Result<i32, Error> {
        let mut looked_at = BTreeSet::new();
        let mut scales = BTreeMap::new();
        for pod in pods {
            let Some(owner) = pod.controller().filter(|o| looked_at.insert(&*o.uid)) else {
                continue;
            };
            let found = match self.scale_of(namespace, owner)? {
                Managed::Known(found) => found,
                Managed::Elsewhere => served_scale(client, namespace, owner).await?,
            };
            let Some((uid, replicas)) = found else {
                let name = &pod.key.name;
                return Err(Error::Other(format!(
                    "found no controllers for pod {name:?}"
                )));
            };
            scales.insert(uid, replicas);
        }
        let sum = |sum: i32, replicas: i32| sum.saturating_add(replicas);
        Ok(scales.into_values().fold(0, sum))
    }

    /// The uid and scale of a manager; `None`: it is gone.
    fn scale_of(&self, namespace: &str, owner: &Owner) -> Result<Managed, Error> {
        let key = Key::new(namespace, owner.name.as_str());
        let group = owner.api_version.split('/').next().unwrap_or_default();
        let found = match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                let set = self.replica_sets.get(&key)?;
                let set = set.filter(|s| is(s, owner));
                let above = set.as_ref().and_then(|_| self.replica_sets.entry(&key));
                // What belongs to a Deployment is counted once, as that wants it.
                let above = above.as_ref().and_then(|e| e.controller());
                if let Some(above) = above.filter(|o| o.kind == "Deployment") {
                    let key = Key::new(namespace, above.name.as_str());
                    let found = self.deployments.get(&key)?.filter(|d| is(d, above));
                    let found = found.map(|d| scale(d.metadata.uid, d.spec.replicas));
                    return Ok(Managed::Known(found));
                }
                set.map(|s| scale(s.metadata.uid, s.spec.replicas))
            }
            ("apps", "StatefulSet") => {
                let set = self.stateful_sets.get(&key)?.filter(|s| is(s, owner));
                set.map(|s| scale(s.metadata.uid, s.spec.replicas))
            }
            ("v1", "ReplicationController") => {
                let found = self.replication_controllers.get(&key)?;
                let found = found.filter(|r| is(r, owner));
                found.map(|r| scale(r.metadata.uid, r.spec.and_then(|s| s.replicas)))
            }
            _ => return Ok(Managed::Elsewhere),
        };
        Ok(Managed::Known(found))
    }
}

/// Whether this is the owner, and not another one of its name.
fn is(object: &impl kube::Resource, owner: &Owner) -> bool {
    object.meta().uid.as_deref() == Some(&*owner.uid)
}

/// Who tells how many pods a manager wants.
enum Managed {
    /// Its uid and that number; `None`: it is gone.
    Known(Option<(String, i32)>),
    /// The server, if it has a scale.
    Elsewhere,
}

/// The scale of a manager of any kind that has one.
async fn served_scale(
    client: &Client,
    namespace: &str,
    owner: &Owner,
) -> Result<Option<(String, i32)>, Error> {
    let (version, kind) = (&owner.api_version, &owner.kind);
    let resource = scale::resource_of(client, version, kind).await;
    let resource = resource.map_err(Error::Other)?;
    let found = scale::get(client, &resource, namespace, &owner.name).await;
    let found = found.map_err(|_| {
        let resource = resource.qualified();
        Error::Other(format!(
            "{resource} does not implement the scale subresource"
        ))
    })?;
    Ok((found.uid == owner.uid).then_some((found.uid, found.wanted)))
}

fn scale(uid: Option<String>, replicas: Option<i32>) -> (String, i32) {
    (uid.unwrap_or_default(), replicas.unwrap_or(1))
}

impl Reconcile for Budgets {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(budget) = self.budgets.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let chosen = match selector(&budget).transpose()? {
            Some(selector) => self.pods.entries_matching(&key.namespace, &selector),
            None => Vec::new(),
        };
        if chosen.is_empty() {
            let message = "No matching pods found";
            self.recorder.normal(&budget, "NoPods", message);
        }
        let now = self.context.now();
        let scale = if plan::needs_scale(&budget) {
            if chosen.iter().any(|e| e.controller().is_none()) {
                self.tell_unmanaged(&budget);
            }
            let client = &self.context.client;
            self.managers.scale(client, &key.namespace, &chosen).await
        } else {
            Ok(0)
        };
        let scale = match scale {
            Ok(scale) => scale,
            Err(failure) => {
                let why = failure.words();
                let message = format!("Failed to calculate the number of expected pods: {why}");
                let reason = "CalculateExpectedPodCountFailed";
                self.recorder.warning(&budget, reason, message);
                let status = plan::failed(&budget, &why, now);
                self.write_status(&budget, key, &status).await?;
                return Err(failure);
            }
        };
        let pods: Vec<Pod> = client::cache::decode_all(&chosen);
        let plan = plan::plan(&budget, &pods, scale, now);
        for name in &plan.overdue {
            let Some(pod) = pods.iter().find(|p| p.metadata.name.as_ref() == Some(name)) else {
                continue;
            };
            let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
            self.recorder.warning(pod, "NotDeleted", message);
        }
        self.write_status(&budget, key, &plan.status).await?;
        let wait = plan.wait.and_then(|w| w.try_into().ok());
        Ok(wait.map_or(Requeue::OnChange, Requeue::After))
    }
}

impl Budgets {
    fn tell_unmanaged(&self, budget: &PodDisruptionBudget) {
        let chosen = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
        let chosen = selectors::spelled(chosen);
        let message = format!(
            "Pods selected by this PodDisruptionBudget (selector: {chosen}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
        );
        self.recorder.warning(budget, "UnmanagedPods", message);
    }

    async fn write_status(
        &self,
        budget: &PodDisruptionBudget,
        key: &Key,
        status: &PodDisruptionBudgetStatus,
    ) -> Result<(), Error> {
        let Some(patch) = write::merge_patch(budget.status.as_ref(), status) else {
            return Ok(());
        };
        let body = json!({
            "metadata": {"resourceVersion": budget.metadata.resource_version},
            "status": patch,
        });
        let api = write::namespaced::<PodDisruptionBudget>(&self.context.client, &key.namespace);
        let written = write::patch_status(&api, &key.name, &body).await?;
        self.budgets
            .caught_up(written.as_ref().map_or(0, write::revision_of))
            .await
    }
}
