//! The scheduling loop, and what it does to the cluster.

use std::{collections::HashMap, sync::Arc, time::Duration};

use client::{Cache, Caches, Client, Error, EventType, Key, Recorder, Scope, write};
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config, diagnosis,
    extender::Extender,
    framework::{Candidate, Diagnosis, Event},
    plugins::{self, Handle},
    pod::{Footprint, PodInfo},
    profile::{Profile, Profiles, Scores},
    search::Search,
    watch::{self, Shared, State},
    world::World,
};

/// Binds under way at once; the loop waits beyond that.
const BINDS_MAX: usize = 512;

/// Evictions for one pod under way at once.
const EVICTIONS_MAX: usize = 16;

/// Pods scheduled before others have their turn on the thread.
const TURN: usize = 8;

/// Room to be made for a pod.
struct Nomination {
    node: String,
    victims: Vec<Arc<Footprint>>,
    /// Pods of lower priority for which room was being made there.
    outbid: Vec<Arc<Footprint>>,
}

impl Nomination {
    /// Whether pods are to be evicted first. Those that go already tell of it when they are gone; waiting for nothing,
    /// the pod would be tried again and again until then.
    fn evicts(&self) -> bool {
        self.victims.iter().any(|victim| !victim.deleting)
    }
}

/// Why a pod was not scheduled.
#[derive(Clone, Copy)]
enum Reason {
    /// No node would do.
    Unschedulable,
    /// Something failed.
    Error,
}

/// What became of a pod in a cycle.
enum Decision {
    /// It is assumed on this node and to be bound.
    Bind(String),
    /// No node would do; perhaps room can be made on one of these.
    Help(Box<Search>, Vec<Candidate>),
    /// Something failed.
    Error(String),
}

/// A running scheduler.
pub(crate) struct Scheduler {
    client: Client,
    caches: Caches,
    config: Config,
    /// By the names of the profiles: a pod hears of its own.
    recorders: HashMap<String, Recorder>,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    binds: Arc<tokio::sync::Semaphore>,
    extenders: Vec<Extender>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
}

impl Scheduler {
    /// # Errors
    /// When a plugin or an extender refuses its configuration.
    pub(crate) fn start(client: Client, config: Config) -> Result<Self, String> {
        let caches = config
            .caches
            .clone()
            .unwrap_or_else(|| Caches::new(client.clone()));
        let handle = Handle {
            clock: config.clock.clone(),
            ..Handle::new(client.clone(), caches.clone())
        };
        let profiles = profiles(&config, &handle)?;
        let extenders = config.configuration.extenders.iter().cloned();
        let extenders = extenders.map(Extender::new).collect::<Result<_, _>>()?;
        let recorder = |name: &str| Recorder::new(client.clone(), name, "", config.clock.clone());
        let names = config.configuration.profiles.iter().map(|p| p.name.clone());
        let recorders = names.map(|name| (name.clone(), recorder(&name))).collect();
        let shared = Arc::new(Shared::new(profiles, config.configuration.backoff));
        let binds = Arc::new(tokio::sync::Semaphore::new(BINDS_MAX));
        Ok(Self {
            extenders,
            pods: caches.get(Scope::all()),
            nodes: caches.get(Scope::all()),
            client,
            caches,
            config,
            recorders,
            shared,
            tasks: handle.tasks,
            binds,
        })
    }

    pub(crate) async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = watch::start(&self.shared, &self.caches) => {}
            () = shutdown.cancelled() => return,
        }
        let this = Arc::new(self);
        let mut turn = 0_usize;
        while !shutdown.is_cancelled() {
            let wake = this.shared.wake.notified();
            let now = this.config.clock.now();
            match this
                .shared
                .with(|state| state.queue.take(&this.shared.profiles, now))
            {
                Ok(pod) => {
                    this.schedule(pod).await;
                    turn = turn.wrapping_add(1);
                    if turn.is_multiple_of(TURN) {
                        tokio::task::yield_now().await;
                    }
                }
                Err(due) => tokio::select! {
                    () = wake => {}
                    () = sleep_until(due, now) => {}
                    () = shutdown.cancelled() => {}
                },
            }
        }
        this.tasks.close();
        this.tasks.wait().await;
    }

    async fn schedule(self: &Arc<Self>, pod: Arc<PodInfo>) {
        let Some(profile) = self.shared.profiles.of(&pod) else {
            return self.shared.with(|state| state.queue.remove(&pod.key));
        };
        let asked: Vec<&Extender> = self
            .extenders
            .iter()
            .filter(|e| e.cares_about(&pod))
            .collect();
        let decision = if asked.is_empty() {
            self.shared.with(|state| {
                match profile.search(&mut state.world, &pod, &mut state.memory) {
                    Ok(search) => decide(state, profile, &pod, search, &Scores::new()),
                    Err(error) => Decision::Error(error),
                }
            })
        } else {
            self.consult(profile, &pod, &asked).await
        };
        match decision {
            Decision::Bind(node) => self.bind_later(pod, node).await,
            Decision::Help(search, candidates) => {
                let candidates = self.ask_about_victims(&pod, &asked, candidates).await;
                let nomination = self.give_up(&pod, &search, candidates);
                self.report(pod, search.diagnosis, nomination);
            }
            Decision::Error(error) => {
                self.shared.with(|state| state.queue.failed(&pod));
                self.say_that_it_failed(&pod, &error);
                self.mark_later(pod, Reason::Error, error, None);
            }
        }
    }

    /// The pod waits; room may be made for it.
    fn give_up(
        &self,
        pod: &Arc<PodInfo>,
        search: &Search,
        candidates: Vec<Candidate>,
    ) -> Option<Nomination> {
        let now = self.config.clock.now();
        self.shared.with(|state| {
            let State { world, queue, .. } = state;
            let waits = queue.get(&pod.key).is_some_and(|p| p.uid() == pod.uid());
            let best = candidates.into_iter().next().filter(|_| waits);
            let nomination = best.map(|candidate| Nomination {
                outbid: world.outbid(&candidate.node, pod.footprint.priority),
                node: candidate.node,
                victims: candidate.victims,
            });
            if let Some(nomination) = &nomination {
                world.nominate(Arc::clone(&pod.footprint), &nomination.node);
                for other in &nomination.outbid {
                    queue.retry(&other.key);
                }
            } else if search.diagnosis.rejected || !is_waiting(world, pod) {
                world.clear_nomination(pod.uid());
            }
            let plugins = search.diagnosis.plugins.clone();
            let held = nomination.as_ref().is_some_and(Nomination::evicts);
            queue.unschedulable(&self.shared.profiles, pod, plugins, held, now);
            nomination
        })
    }

    /// Decides with the help of extenders.
    async fn consult(
        &self,
        profile: &Profile,
        pod: &Arc<PodInfo>,
        asked: &[&Extender],
    ) -> Decision {
        let found = self.shared.with(|state| {
            let search = profile.search(&mut state.world, pod, &mut state.memory)?;
            let names = search
                .feasible
                .iter()
                .map(|id| state.world.node(*id).name());
            let names: Vec<String> = names.map(str::to_owned).collect();
            Ok((search, names))
        });
        let (mut search, mut names) = match found {
            Ok(found) => found,
            Err(error) => return Decision::Error(error),
        };
        let object = self.object(&pod.key);
        let nodes = |names: &[String]| self.node_list(names);
        let mut scores = Scores::new();
        let mut failed = Vec::new();
        for extender in asked {
            if names.is_empty() {
                break;
            }
            match extender.filter(&object, names.clone(), &nodes).await {
                Ok(filtered) => {
                    names = filtered.nodes;
                    failed.extend(filtered.failed);
                }
                Err(error) if extender.config().ignorable => {
                    tracing::warn!(pod = %pod.key, %error, "extender ignored");
                }
                Err(error) => return Decision::Error(error.to_string()),
            }
        }
        for extender in asked.iter().filter(|_| names.len() > 1) {
            // Scores are wishes: without them the pod is scheduled all the same.
            match extender.prioritize(&object, &names, &nodes).await {
                Ok(given) => given
                    .into_iter()
                    .for_each(|(node, score)| *scores.entry(node).or_default() += score),
                Err(error) => tracing::warn!(pod = %pod.key, %error, "scores not had"),
            }
        }
        self.shared.with(|state| {
            state.world.arrange();
            let ids = names.iter().filter_map(|n| state.world.node_named(n));
            let left = ids.map(|n| n.id).collect();
            search.narrow(left);
            search.explain();
            for (name, status) in failed {
                if let Some(node) = state.world.node_named(&name) {
                    let refusal = Arc::new(("", status));
                    search.diagnosis.by_node.insert(node.id, refusal);
                }
            }
            decide(state, profile, pod, search, &scores)
        })
    }

    async fn ask_about_victims(
        &self,
        pod: &PodInfo,
        asked: &[&Extender],
        mut candidates: Vec<Candidate>,
    ) -> Vec<Candidate> {
        for extender in asked {
            if candidates.is_empty() {
                break;
            }
            match extender
                .preempt(&self.object(&pod.key), candidates.clone(), &|key| {
                    self.object(key)
                })
                .await
            {
                Ok(left) => candidates = left,
                Err(error) if extender.config().ignorable => {
                    tracing::warn!(pod = %pod.key, %error, "extender ignored");
                }
                Err(error) => {
                    tracing::warn!(pod = %pod.key, %error, "nobody is evicted");
                    return Vec::new();
                }
            }
        }
        candidates
    }

    /// The pod as the API has it.
    fn object(&self, pod: &Key) -> Value {
        let entry = self.pods.entry(pod);
        entry.and_then(|e| e.decode().ok()).unwrap_or_default()
    }

    fn node_list(&self, names: &[String]) -> Value {
        let items: Vec<Value> = names
            .iter()
            .filter_map(|name| self.nodes.entry(&Key::cluster(name.as_str())))
            .filter_map(|entry| entry.decode().ok())
            .collect();
        json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {}, "items": items})
    }

    async fn bind_later(self: &Arc<Self>, pod: Arc<PodInfo>, node: String) {
        let Ok(permit) = Arc::clone(&self.binds).acquire_owned().await else {
            return;
        };
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            let Some(profile) = this.shared.profiles.of(&pod) else {
                return;
            };
            let outcome = profile.bind(&pod, &node, &this.extenders).await;
            drop(permit);
            match outcome {
                Ok(()) => {
                    this.shared.with(|state| state.queue.remove(&pod.key));
                    let message = format!("Successfully assigned {} to {node}", pod.key);
                    this.tell(
                        &pod,
                        &pod.reference,
                        EventType::Normal,
                        "Scheduled",
                        message,
                    );
                }
                Err(error) => {
                    profile.unreserve(&pod, &node);
                    let why = words(&error);
                    this.take_back(&pod, &why);
                    this.mark_later(pod, Reason::Error, why, None);
                }
            }
        });
    }

    /// Records an event in the name of the pod's profile.
    fn tell(
        &self,
        pod: &PodInfo,
        about: &ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        if let Some(recorder) = self.recorders.get(&pod.scheduler) {
            recorder.event(about, kind, reason, message);
        }
    }

    /// The pod is not where it was assumed to be; it is tried again.
    fn take_back(&self, pod: &PodInfo, why: &str) {
        tracing::debug!(pod = %pod.key, why, "binding failed");
        self.shared.with(|state| {
            let given_up = state.world.forget(pod.uid());
            state.queue.failed(pod);
            if let Some(old) = given_up {
                let event = Event::Pod {
                    old: Some(&old),
                    new: None,
                };
                state.queue.happened(&self.shared.profiles, &event);
            }
        });
        self.shared.wake.notify_one();
        self.say_that_it_failed(pod, why);
    }

    fn say_that_it_failed(&self, pod: &PodInfo, why: &str) {
        let why = diagnosis::cut(why);
        let warning = EventType::Warning;
        self.tell(pod, &pod.reference, warning, "FailedScheduling", why);
    }

    fn report(
        self: &Arc<Self>,
        pod: Arc<PodInfo>,
        diagnosis: Diagnosis,
        nomination: Option<Nomination>,
    ) {
        let message = if diagnosis.nodes == 0 {
            diagnosis::NO_NODES.to_owned()
        } else {
            diagnosis::message(&diagnosis)
        };
        self.say_that_it_failed(&pod, &message);
        self.mark_later(pod, Reason::Unschedulable, message, nomination);
    }

    /// Tells the pod's status what came of the try; then room is made for it.
    fn mark_later(
        self: &Arc<Self>,
        pod: Arc<PodInfo>,
        reason: Reason,
        message: String,
        nomination: Option<Nomination>,
    ) {
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            let waiting = this
                .shared
                .with(|s| s.world.nomination(pod.uid()).map(|n| n.name().to_owned()));
            let marked = this.mark(&pod, reason, &message, waiting.as_deref()).await;
            if let Err(error) = marked {
                tracing::warn!(pod = %pod.key, %error, "status not written");
            }
            if let Some(nomination) = nomination {
                this.make_room(&pod, nomination).await;
            }
        });
    }

    /// Evicts the victims; then the pod may be tried again.
    async fn make_room(&self, pod: &PodInfo, nomination: Nomination) {
        for other in &nomination.outbid {
            let api = write::namespaced::<Pod>(&self.client, &other.key.namespace);
            let patch = Patch::Strategic(json!({
                "metadata": {"uid": &*other.uid}, "status": {"nominatedNodeName": null},
            }));
            let written = api
                .patch_status(&other.key.name, &PatchParams::default(), &patch)
                .await;
            if let Err(error) = write::tolerate_missing(written) {
                tracing::warn!(pod = %other.key, %error, "nomination not cleared");
            }
        }
        let node = &nomination.node;
        let victims = nomination.victims.into_iter();
        let evictions =
            victims.map(|victim| async move { self.evict(pod, &victim, node).await }.boxed());
        let outcomes = futures::stream::iter(evictions)
            .buffer_unordered(EVICTIONS_MAX)
            .collect::<Vec<_>>()
            .await;
        let failed = outcomes.into_iter().find_map(Result::err);
        self.shared.with(|state| {
            if let Some(error) = failed {
                tracing::warn!(pod = %pod.key, %error, "victim not evicted");
                state.world.clear_nomination(pod.uid());
            }
            state.queue.release(&self.shared.profiles, &pod.key);
        });
        self.shared.wake.notify_one();
    }

    async fn mark(
        &self,
        pod: &PodInfo,
        reason: Reason,
        message: &str,
        node: Option<&str>,
    ) -> kube::Result<()> {
        let reason = match reason {
            Reason::Unschedulable => "Unschedulable",
            Reason::Error => "SchedulerError",
        };
        let known = pod.verdict.as_ref();
        let same = known.is_some_and(|(r, m)| r == reason && m == message);
        if same && node == pod.nominated.as_deref() {
            return Ok(());
        }
        let condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "observedGeneration": pod.generation,
            "reason": reason,
            "message": message,
            "lastTransitionTime": api::time::format(self.config.clock.now()),
        });
        let mut status = json!({"conditions": [condition]});
        if node.is_some() || pod.nominated.is_some() {
            status["nominatedNodeName"] = json!(node);
        }
        let api = write::namespaced::<Pod>(&self.client, &pod.key.namespace);
        let patch = Patch::Strategic(json!({"metadata": {"uid": &**pod.uid()}, "status": status}));
        let written = api
            .patch_status(&pod.key.name, &PatchParams::default(), &patch)
            .await;
        match write::tolerate_missing(written) {
            Err(e) if client::is_conflict(&e) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Makes room for `pod`.
    async fn evict(&self, pod: &PodInfo, victim: &Footprint, node: &str) -> kube::Result<()> {
        if victim.deleting {
            return Ok(());
        }
        let key = &victim.key;
        let api = write::namespaced::<Pod>(&self.client, &key.namespace);
        let name = &pod.scheduler;
        let condition = json!({
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": format!("{name}: preempting to accommodate a higher priority pod"),
            "lastTransitionTime": api::time::format(self.config.clock.now()),
        });
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        let marked = api
            .patch_status(&key.name, &PatchParams::default(), &patch)
            .await;
        if write::tolerate_missing(marked)?.is_none() {
            return Ok(());
        }
        write::delete(&api, &key.name, Some(&victim.uid)).await?;
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: Some(victim.uid.to_string()),
            ..ObjectReference::default()
        };
        let message = format!("Preempted by pod {} on node {node}", pod.uid());
        self.tell(pod, &about, EventType::Normal, "Preempted", message);
        Ok(())
    }
}

/// The profiles of a configuration.
fn profiles(config: &Config, handle: &Handle) -> Result<Profiles, String> {
    let ignored: Vec<&str> = config
        .configuration
        .extenders
        .iter()
        .flat_map(|e| &e.managed_resources)
        .filter(|r| r.ignored_by_scheduler)
        .map(|r| r.name.as_str())
        .collect();
    let made = config.configuration.profiles.iter().map(|profile| {
        let mut profile = profile.clone();
        for chosen in profile.plugins.iter_mut().filter(|_| !ignored.is_empty()) {
            plugins::ignore_resources(chosen.name, &mut chosen.args, &ignored);
        }
        Profile::configured(&profile, handle, config.jitter.clone())
    });
    made.collect::<Result<_, _>>().map(Profiles::new)
}

/// Takes the best node for the pod, or asks how to make room.
fn decide(
    state: &mut State,
    profile: &Profile,
    pod: &Arc<PodInfo>,
    mut search: Search,
    scores: &Scores,
) -> Decision {
    let world = &mut state.world;
    if let Some(node) = profile.choose(world, pod, &mut search, scores) {
        let reserved = profile.reserve(world, pod, &node, &mut search.state);
        if !reserved.is_success() {
            let why = reserved.reasons().join(", ");
            return Decision::Error(format!("running Reserve plugin: {why}"));
        }
        // What it counted by is copied if it is changed while somebody looks.
        drop(search);
        world.place(Arc::clone(&pod.footprint), &node, true);
        return Decision::Bind(node);
    }
    let candidates = profile.ask_for_help(world, pod, &mut search);
    Decision::Help(Box::new(search), candidates)
}

/// Whether victims of the pod are still leaving its node.
fn is_waiting(world: &World, pod: &PodInfo) -> bool {
    let node = world.nomination(pod.uid());
    node.is_some_and(|n| n.pods().iter().any(|p| p.preempted))
}

fn words(error: &Error) -> String {
    match error {
        Error::Api(kube::Error::Api(status)) => status.message.clone(),
        other => other.to_string(),
    }
}

async fn sleep_until(due: Option<Timestamp>, now: Timestamp) {
    match due {
        Some(due) => {
            let wait = Duration::try_from(due.duration_since(now)).unwrap_or(Duration::ZERO);
            tokio::time::sleep(wait).await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_held_for_evictions_but_not_for_pods_that_go_already() {
        let victim = |deleting: bool| {
            let mut pod = Footprint::bare("v");
            pod.deleting = deleting;
            Arc::new(pod)
        };
        for (victims, evicts) in [
            (vec![], false),
            (vec![true, true], false),
            (vec![true, false], true),
        ] {
            let nomination = Nomination {
                node: "n".to_owned(),
                victims: victims.iter().map(|d| victim(*d)).collect(),
                outbid: Vec::new(),
            };
            assert_eq!(nomination.evicts(), evicts, "{victims:?}");
        }
    }
}
