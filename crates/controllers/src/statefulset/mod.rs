//! Keeps pods with names of their own, each with its own claims, in order.
//!
//! ```text
//!  0 ── ready ──> 1 ── ready ──> 2 …        growing: upwards, each waits for those below
//!  shrinking and rolling: downwards from the highest
//! ```

mod claims;
mod identity;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use client::{
    Cache, Change, Entry, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope,
    cache::decode_all, write,
};
use futures::future::BoxFuture;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus},
    core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec},
};
use kube::api::PostParams;
use serde_json::json;

use crate::{
    Context, Controller,
    deployment::hash,
    history::{self, History, Present},
    owners::{Owner, Owners},
    pod_control::PodControl,
};
use claims::{Claims, Provided};
use plan::{Action, Snapshot};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "statefulset-controller",
    run,
};

/// The label of revisions that holds the hash of their template.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";
const HISTORY_LIMIT: i32 = 10;
/// So many characters of a set's name stand in the names of its revisions.
const PREFIX_MAX: usize = 223;

struct StatefulSets {
    context: Context,
    recorder: Recorder,
    control: PodControl,
    history: History,
    claims: Claims,
    owners: Owners<StatefulSet, Pod>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let claims = context.caches.get::<PersistentVolumeClaim>(Scope::all());
        let revisions = context.caches.get::<ControllerRevision>(Scope::all());
        let queue = Queue::default();
        revisions.synced().await;
        let owners = Owners::<StatefulSet, Pod>::watch(&context, &queue, None).await;
        claims.synced().await;
        let (to, of) = (queue.clone(), owners.all.clone());
        claims.on_change(move |change| {
            waiting_for(change, &of)
                .into_iter()
                .for_each(|key| to.add(key))
        });
        let recorder = context.recorder();
        let reconciler = StatefulSets {
            context: context.clone(),
            control: PodControl {
                client: context.client.clone(),
                pods: owners.owned.clone(),
                recorder: recorder.clone(),
            },
            history: History {
                client: context.client.clone(),
                revisions,
            },
            claims: Claims {
                client: context.client.clone(),
                recorder: recorder.clone(),
                claims,
            },
            recorder,
            owners,
        };
        context.work(reconciler, queue).await;
    })
}

/// Sets that may wait for a claim to be gone.
fn waiting_for(change: &Change, sets: &Cache<StatefulSet>) -> Vec<Key> {
    let Some(gone) = change.old.as_ref().filter(|_| change.new.is_none()) else {
        return Vec::new();
    };
    let sets = sets.entries_in(&gone.key.namespace);
    let named = |set: &&std::sync::Arc<Entry>| {
        let part = format!("-{}-", set.key.name);
        gone.key.name.contains(&part)
    };
    sets.iter().filter(named).map(|s| s.key.clone()).collect()
}

impl Reconcile for StatefulSets {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(set) = self.owners.all.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        if set.selector()?.is_everything() {
            return Ok(Requeue::OnChange);
        }
        let mut revisions = self.history.of(&set).await?;
        let update = self.record(&set, &revisions).await?;
        if revisions
            .iter()
            .all(|r| r.metadata.uid != update.metadata.uid)
        {
            revisions.push(update.clone());
        }
        let (current, template) = current(&set, &revisions, &update);
        let prefix = format!("{}-", key.name);
        let suits = |pod: &Entry| pod.key.name.starts_with(&prefix);
        let owned: Vec<Pod> = decode_all(&self.owners.claim_entries(&set, suits).await?);
        self.claims.keep_owners(&set, &owned).await?;
        self.claims.replace_lost(&set, &owned).await?;
        let look = |pods: &[Pod], f: &dyn Fn(&Snapshot) -> Found| {
            f(&Snapshot {
                set: &set,
                current: (&current, &template),
                update: name(&update),
                pods,
                now: self.context.now(),
            })
        };
        let Found::Actions(actions) = look(&owned, &|s| Found::Actions(plan::plan(s))) else {
            return Ok(Requeue::OnChange);
        };
        let failure = self.act(&set, key, &owned, actions).await.err();
        let pods = self.owners.of(&set);
        let collisions = set.status.as_ref().and_then(|s| s.collision_count);
        let found = look(&pods, &|s| {
            let (status, soon) = plan::status(s, collisions.or(Some(0)));
            Found::Status(Box::new(status), soon)
        });
        let Found::Status(status, soon) = found else {
            return Ok(Requeue::OnChange);
        };
        self.owners.write_status(&set, &status).await?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        self.clean_up(&set, &revisions, &status, &pods).await?;
        let wait = soon.and_then(|w| w.try_into().ok());
        Ok(wait.map_or(Requeue::OnChange, Requeue::After))
    }
}

/// What a look at a snapshot answers.
enum Found {
    Actions(Vec<Action>),
    Status(Box<StatefulSetStatus>, Option<jiff::SignedDuration>),
}

fn name(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

/// The name and template of the revision that is being left: the present one unless the status
/// names another that is still known.
fn current(
    set: &StatefulSet,
    all: &[ControllerRevision],
    update: &ControllerRevision,
) -> (String, PodTemplateSpec) {
    let status = set.status.as_ref();
    let wanted = status.and_then(|s| s.current_revision.as_deref());
    let known = all.iter().find(|r| Some(name(r)) == wanted);
    let revision = known.unwrap_or(update);
    let template = history::template(revision).unwrap_or_else(|| set.spec.template.clone());
    (name(revision).to_owned(), template)
}

impl StatefulSets {
    /// The revision of the present template.
    async fn record(
        &self,
        set: &StatefulSet,
        all: &[ControllerRevision],
    ) -> Result<ControllerRevision, Error> {
        let present = Present {
            template: &set.spec.template,
            collisions: set.status.as_ref().and_then(|s| s.collision_count),
            hash_label: HASH_LABEL,
            name: |set, hash| hash::name_cut_at(PREFIX_MAX, set, hash),
        };
        self.history.record(&self.owners, set, &present, all).await
    }

    async fn act(
        &self,
        set: &StatefulSet,
        key: &Key,
        owned: &[Pod],
        actions: Vec<Action>,
    ) -> Result<(), Error> {
        for action in actions {
            match action {
                Action::Create(ordinal, pod) => {
                    if self.has_claims(set, ordinal, &pod).await? {
                        self.create(set, key, *pod).await?;
                    } else if plan::is_ordered(set) {
                        return Ok(());
                    }
                }
                Action::Delete(i) => self.delete(set, &owned[i]).await?,
                Action::Provide(ordinal, i) => {
                    let name = owned[i].metadata.name.as_deref().unwrap_or_default();
                    // One that still goes says so when it is gone.
                    self.claims.provide(set, ordinal, name).await?;
                }
                Action::Label(ordinal, i) => {
                    let pod = &owned[i];
                    let labels = BTreeMap::from(identity::labels(set, ordinal));
                    let patch = json!({"metadata": {"uid": pod.metadata.uid, "labels": labels}});
                    let done = self.control.patch(pod, patch).await;
                    self.tell_updated(set, pod, done)?;
                }
                Action::Store(ordinal, i) => {
                    let done = self.store(set, ordinal, &owned[i]).await;
                    self.tell_updated(set, &owned[i], done)?;
                }
            }
        }
        Ok(())
    }

    /// Tries to give a pod the claims of its ordinal. As servers have it now, the volumes of a pod cannot be
    /// changed, and why not is told: who made it by hand has to make it anew.
    async fn store(&self, set: &StatefulSet, ordinal: u32, pod: &Pod) -> Result<(), Error> {
        let key = Key::of(pod);
        self.claims.provide(set, ordinal, &key.name).await?;
        let conformed = identity::conformed(set, pod, ordinal);
        let api = write::namespaced::<Pod>(&self.context.client, &key.namespace);
        let params = PostParams::default();
        let written = api.replace(&key.name, &params, &conformed).await?;
        let revision = write::revision_of(&written);
        self.owners.owned.caught_up(revision).await
    }

    fn tell_updated(
        &self,
        set: &StatefulSet,
        pod: &Pod,
        done: Result<(), Error>,
    ) -> Result<(), Error> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let what = match &done {
            Ok(()) => Ok("SuccessfulUpdate"),
            Err(why) => Err(("FailedUpdate", why)),
        };
        self.tell(set, what, "Update", name);
        done
    }

    /// Makes the claims of a pod to come; says so if it cannot come yet.
    async fn has_claims(&self, set: &StatefulSet, ordinal: u32, pod: &Pod) -> Result<bool, Error> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let failed = |why: &Error| self.tell(set, Err(("FailedCreate", why)), "Create", name);
        match self.claims.provide(set, ordinal, name).await {
            Ok(Provided::Ready) => Ok(true),
            Ok(Provided::Stale) => Ok(false),
            Ok(Provided::Leaving(claim)) => {
                failed(&Error::Other(format!("pvc {claim} is being deleted")));
                Ok(false)
            }
            Err(why) => {
                failed(&why);
                Err(why)
            }
        }
    }

    async fn create(&self, set: &StatefulSet, key: &Key, pod: Pod) -> Result<(), Error> {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let api = write::namespaced::<Pod>(&self.context.client, &key.namespace);
        match api.create(&PostParams::default(), &pod).await {
            Ok(made) => {
                self.tell(set, Ok("SuccessfulCreate"), "Create", &name);
                self.owners.owned.caught_up(write::revision_of(&made)).await
            }
            Err(e) if client::is_forbidden_by_termination(&e) => Ok(()),
            // Whoever has the name may go.
            Err(e) if client::is_exists(&e) => Err(e.into()),
            Err(e) => {
                let failure = Error::from(e);
                self.tell(set, Err(("FailedCreate", &failure)), "Create", &name);
                Err(failure)
            }
        }
    }

    async fn delete(&self, set: &StatefulSet, pod: &Pod) -> Result<(), Error> {
        let key = Key::of(pod);
        let uid = pod.metadata.uid.as_deref();
        let api = write::namespaced::<Pod>(&self.context.client, &key.namespace);
        if let Err(e) = write::delete(&api, &key.name, uid).await {
            let failure = Error::from(e);
            self.tell(set, Err(("FailedDelete", &failure)), "Delete", &key.name);
            return Err(failure);
        }
        self.tell(set, Ok("SuccessfulDelete"), "Delete", &key.name);
        let gone = |e: Option<&Entry>| e.is_none_or(|e| e.deleting || Some(&*e.uid) != uid);
        self.owners.owned.until(&key, gone).await
    }

    fn tell(&self, set: &StatefulSet, what: Result<&str, (&str, &Error)>, verb: &str, pod: &str) {
        let whose = set.metadata.name.as_deref().unwrap_or_default();
        let start = format!("{verb} Pod {pod} in StatefulSet {whose}");
        match what {
            Ok(reason) => self
                .recorder
                .normal(set, reason, format!("{start} successful")),
            Err((reason, failure)) => {
                let message = format!("{start} failed error: {}", failure.words());
                self.recorder.warning(set, reason, message);
            }
        }
    }

    async fn clean_up(
        &self,
        set: &StatefulSet,
        all: &[ControllerRevision],
        status: &StatefulSetStatus,
        pods: &[Pod],
    ) -> Result<(), Error> {
        let limit = set.spec.revision_history_limit.unwrap_or(HISTORY_LIMIT);
        let mut live: BTreeSet<&str> = pods.iter().map(identity::revision).collect();
        live.extend(status.current_revision.as_deref());
        live.extend(status.update_revision.as_deref());
        self.history
            .delete(&history::excess(all, &live, limit))
            .await
    }
}
