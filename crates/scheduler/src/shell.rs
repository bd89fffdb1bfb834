//! The scheduling loop, and what it does to the cluster.

use std::{sync::Arc, time::Duration};

use client::{Caches, Client, Error, EventType, Recorder, write};
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config, diagnosis,
    framework::{Diagnosis, Event},
    plugins::{self, Handle},
    pod::{Footprint, PodInfo},
    profile::{Profile, Profiles},
    queue::Backoff,
    watch::{self, Shared, State},
    world::World,
};

/// Binds under way at once; the loop waits beyond that.
const BINDS_MAX: usize = 512;

/// Evictions for one pod under way at once.
const EVICTIONS_MAX: usize = 16;

/// Room to be made for a pod.
struct Nomination {
    node: String,
    victims: Vec<Arc<Footprint>>,
    /// Pods of lower priority for which room was being made there.
    outbid: Vec<Arc<Footprint>>,
}

/// What became of a pod in a cycle.
enum Decision {
    /// It is assumed on this node and to be bound.
    Bind(String),
    /// No node would do; perhaps room is to be made.
    Report(Box<Diagnosis>, Option<Nomination>),
    /// Something failed.
    Error(String),
}

/// A running scheduler.
pub(crate) struct Scheduler {
    client: Client,
    caches: Caches,
    config: Config,
    recorder: Recorder,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    binds: Arc<tokio::sync::Semaphore>,
}

impl Scheduler {
    pub(crate) fn start(client: Client, config: Config) -> Self {
        let caches = config
            .caches
            .clone()
            .unwrap_or_else(|| Caches::new(client.clone()));
        let handle = Handle::new(client.clone(), caches.clone());
        let made = plugins::ALL.iter().map(|make| make(&handle)).collect();
        let profile = Profile::new(&config.name, made, config.jitter.clone());
        let recorder = Recorder::new(client.clone(), &config.name, "", config.clock.clone());
        let profiles = Profiles::new(vec![profile]);
        let shared = Arc::new(Shared::new(profiles, Backoff::default()));
        let binds = Arc::new(tokio::sync::Semaphore::new(BINDS_MAX));
        Self {
            client,
            caches,
            config,
            recorder,
            shared,
            tasks: TaskTracker::new(),
            binds,
        }
    }

    pub(crate) async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = watch::start(&self.shared, &self.caches) => {}
            () = shutdown.cancelled() => return,
        }
        let this = Arc::new(self);
        while !shutdown.is_cancelled() {
            let wake = this.shared.wake.notified();
            let now = this.config.clock.now();
            match this
                .shared
                .with(|state| state.queue.take(&this.shared.profiles, now))
            {
                Ok(pod) => {
                    this.schedule(pod).await;
                    tokio::task::yield_now().await;
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
        match self.decide(profile, &pod) {
            Decision::Bind(node) => self.bind_later(pod, node).await,
            Decision::Report(diagnosis, nomination) => self.report(pod, *diagnosis, nomination),
            Decision::Error(error) => {
                self.shared.with(|state| state.queue.failed(&pod));
                let warning = EventType::Warning;
                self.recorder
                    .event(&pod.reference, warning, "FailedScheduling", error);
            }
        }
    }

    /// Looks for a node and takes it for the pod, or puts the pod back to wait.
    fn decide(&self, profile: &Profile, pod: &Arc<PodInfo>) -> Decision {
        let now = self.config.clock.now();
        self.shared.with(|state| {
            let State { world, queue, next } = state;
            let mut search = match profile.search(world, pod, next) {
                Ok(search) => search,
                Err(error) => return Decision::Error(error),
            };
            if let Some(node) = profile.choose(world, pod, &mut search) {
                let reserved = profile.reserve(world, pod, &node);
                if !reserved.is_success() {
                    return Decision::Error(reserved.reasons().join(", "));
                }
                world.place(Arc::clone(&pod.footprint), &node, true);
                return Decision::Bind(node);
            }
            let help = profile.ask_for_help(world, pod, &mut search);
            let nomination = help.map(|(node, victims)| Nomination {
                outbid: world.outbid(&node, pod.footprint.priority),
                node,
                victims,
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
            let held = nomination.as_ref().is_some_and(|n| !n.victims.is_empty());
            queue.unschedulable(&self.shared.profiles, pod, plugins, held, now);
            Decision::Report(Box::new(search.diagnosis), nomination)
        })
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
            let outcome = profile.bind(&pod, &node).await;
            drop(permit);
            match outcome {
                Ok(()) => {
                    this.shared.with(|state| state.queue.remove(&pod.key));
                    let message = format!("Successfully assigned {} to {node}", pod.key);
                    this.recorder
                        .event(&pod.reference, EventType::Normal, "Scheduled", message);
                }
                Err(error) => {
                    profile.unreserve(&pod, &node);
                    this.take_back(&pod, &words(&error));
                }
            }
        });
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
        self.recorder
            .event(&pod.reference, EventType::Warning, "FailedScheduling", why);
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
        self.recorder.event(
            &pod.reference,
            EventType::Warning,
            "FailedScheduling",
            &*message,
        );
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            let waiting = this
                .shared
                .with(|s| s.world.nomination(pod.uid()).map(|n| n.name().to_owned()));
            if let Err(error) = this.mark(&pod, &message, waiting.as_deref()).await {
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

    async fn mark(&self, pod: &PodInfo, message: &str, node: Option<&str>) -> kube::Result<()> {
        const REASON: &str = "Unschedulable";
        let known = pod.verdict.as_ref();
        let same = known.is_some_and(|(r, m)| r == REASON && m == message);
        if same && node == pod.nominated.as_deref() {
            return Ok(());
        }
        let condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": REASON,
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
        self.recorder
            .event(&about, EventType::Normal, "Preempted", message);
        Ok(())
    }
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
