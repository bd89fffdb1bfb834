//! Keeps as many pods of a template alive as a ReplicaSet or ReplicationController says: the same
//! thing under two names.

pub(crate) mod plan;

use std::{borrow::Cow, collections::HashMap, time::Duration};

use client::{Entry, Error, Key, Queue, Reconcile, Requeue, cache::decode_all};
use futures::future::BoxFuture;
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, ReplicaSetStatus},
    core::v1::Pod,
};

use crate::{
    Context, Controller, claim,
    digest::{Member, is_over, members},
    owners::{Owner, Owners},
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

const FAILED_CREATE: &str = "FailedCreate";
const FAILED_DELETE: &str = "FailedDelete";

/// How long to gather changes of the pods of an owner that has so many.
fn gather(pods: usize) -> Duration {
    GATHER + GATHER_MORE * u32::try_from(pods).unwrap_or(u32::MAX)
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    run_for::<ReplicaSet>(context, CONTROLLER.name)
}

/// A kind that keeps a number of pods alive.
pub(crate) trait Replicated: Owner {
    /// The ReplicaSet that would do the same.
    fn as_set(&self) -> Cow<'_, ReplicaSet>;

    /// The status of a ReplicaSet as this kind has it.
    fn status_of(status: ReplicaSetStatus) -> Option<Self::Status>;
}

impl Replicated for ReplicaSet {
    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }

    fn status_of(status: ReplicaSetStatus) -> Option<ReplicaSetStatus> {
        Some(status)
    }
}

/// The controller of one such kind.
pub(crate) fn run_for<O: Replicated>(
    context: Context,
    name: &'static str,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let queue = Queue::default();
        let owners = Owners::<O, Pod>::watch(&context, &queue, Some(gather)).await;
        let control = PodControl {
            client: context.client.clone(),
            recorder: context.recorder(),
            pods: owners.owned.clone(),
        };
        let reconciler = Replicas {
            name,
            context: context.clone(),
            control,
            owners,
        };
        context.work(reconciler, queue).await;
    })
}

struct Replicas<O> {
    name: &'static str,
    context: Context,
    control: PodControl,
    owners: Owners<O, Pod>,
}

impl<O: Replicated> Reconcile for Replicas<O> {
    type Key = Key;

    fn name(&self) -> &'static str {
        self.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(owner) = self.owners.all.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let set = owner.as_set();
        let alive = |pod: &Entry| !is_over(pod);
        let owned = members(self.owners.claim_entries(&owner, alive).await?);
        let act = if set.metadata.deletion_timestamp.is_some() {
            Act::Nothing
        } else {
            plan::plan(&set, &owned, || self.crowd(&set), self.context.now())
        };
        let failure = self.act(&owner, key, &owned, act).await;
        let pods = members(self.owners.entries_of(&owner));
        let reported = failure.as_ref().map(|(reason, e)| {
            let start = match *reason {
                FAILED_DELETE => "unable to delete pods: ",
                _ => "",
            };
            (*reason, format!("{start}{}", e.words()))
        });
        let status = plan::status(&set, &pods, reported, self.context.now());
        if let Some(status) = O::status_of(status) {
            self.owners.write_status(&owner, &status).await?;
        }
        if let Some((_, error)) = failure {
            return Err(error);
        }
        let wait = plan::next_available(&set, &pods, self.context.now());
        Ok(wait
            .and_then(|w| w.try_into().ok())
            .map_or(Requeue::OnChange, Requeue::After))
    }
}

impl<O: Replicated> Replicas<O> {
    /// Active pods per node of all that have the same controller.
    fn crowd(&self, set: &ReplicaSet) -> HashMap<String, usize> {
        let owners = set.metadata.owner_references.as_deref().unwrap_or_default();
        let Some(owner) = owners.iter().find(|o| o.controller == Some(true)) else {
            return HashMap::new();
        };
        let mut crowd = HashMap::new();
        for sibling in self.owners.all.entries_owned_by(&owner.uid) {
            for pod in members(self.owners.owned.entries_owned_by(&sibling.uid)) {
                if pod.is_active() {
                    *crowd.entry(pod.node().to_owned()).or_default() += 1;
                }
            }
        }
        crowd
    }

    async fn act(
        &self,
        owner: &O,
        key: &Key,
        owned: &[Member],
        act: Act,
    ) -> Option<(&'static str, Error)> {
        match act {
            Act::Nothing => None,
            Act::Create(count) => {
                let set = owner.as_set();
                let template = set.spec.template.as_ref()?;
                let reference = claim::owner_reference(owner);
                let pod = pods::from_template(template, &key.namespace, &key.name, reference);
                let (_, failure) = self.control.create(owner, vec![pod; count]).await;
                failure.map(|e| (FAILED_CREATE, e))
            }
            Act::Delete(which) => {
                let doomed = which.into_iter().map(|i| owned[i].entry.clone());
                let doomed: Vec<Pod> = decode_all(&doomed.collect::<Vec<_>>());
                let doomed: Vec<&Pod> = doomed.iter().collect();
                let (_, failure) = self.control.delete(owner, &doomed).await;
                failure.map(|e| (FAILED_DELETE, e))
            }
        }
    }
}
