//! The scheduling loop, and what it does to the cluster.

use std::{sync::Arc, time::Duration};

use client::{Caches, Client, Error, EventType, Recorder, write};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config, diagnosis,
    framework::{Diagnosis, Status},
    plugins::{self, Handle},
    pod::{Footprint, PodInfo},
    profile::{Outcome, Profile},
    watch::{self, Shared},
};

/// Binds under way at once; the loop waits beyond that.
const BINDS_MAX: usize = 512;

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
        let handle = Handle {
            client: client.clone(),
            caches: caches.clone(),
        };
        let made = plugins::ALL.iter().map(|make| make(&handle)).collect();
        let profile = Profile::new(made, config.jitter.clone());
        let recorder = Recorder::new(client.clone(), &config.name, "", config.clock.clone());
        let shared = Arc::new(Shared::new(profile, config.name.clone()));
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
        let mut turn = 0_usize;
        while !shutdown.is_cancelled() {
            let wake = this.shared.wake.notified();
            let now = this.config.clock.now();
            match this
                .shared
                .with(|state| state.queue.take(&this.shared.profile, now))
            {
                Ok(pod) => {
                    turn = turn.wrapping_add(1);
                    this.schedule(pod, turn).await;
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

    async fn schedule(self: &Arc<Self>, pod: Arc<PodInfo>, turn: usize) {
        let snapshot = self.shared.with(|state| state.world.snapshot());
        match self.shared.profile.schedule(&snapshot, &pod, turn) {
            Outcome::Node(node) => {
                let footprint = Arc::clone(&pod.footprint);
                self.shared
                    .with(|state| state.world.place(footprint, &node, true));
                let reserved = self.shared.profile.reserve(&snapshot, &pod, &node);
                if let Status::Success = reserved {
                    return self.bind_later(pod, node).await;
                }
                let message = reserved.reasons().join(", ");
                self.take_back(&pod, &message);
            }
            Outcome::Unschedulable {
                diagnosis,
                nominate,
            } => {
                let now = self.config.clock.now();
                let plugins = diagnosis.plugins.clone();
                self.shared.with(|state| {
                    state
                        .queue
                        .unschedulable(&self.shared.profile, &pod, plugins, now);
                });
                self.report(pod, diagnosis, nominate);
            }
            Outcome::Error(error) => {
                self.shared.with(|state| state.queue.failed(&pod));
                self.recorder.event(
                    &pod.reference,
                    EventType::Warning,
                    "FailedScheduling",
                    error,
                );
            }
        }
    }

    async fn bind_later(self: &Arc<Self>, pod: Arc<PodInfo>, node: String) {
        let Ok(permit) = Arc::clone(&self.binds).acquire_owned().await else {
            return;
        };
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            let outcome = this.shared.profile.bind(&pod, &node).await;
            drop(permit);
            match outcome {
                Ok(()) => {
                    this.shared.with(|state| state.queue.remove(&pod.key));
                    let message = format!("Successfully assigned {} to {node}", pod.key);
                    this.recorder
                        .event(&pod.reference, EventType::Normal, "Scheduled", message);
                }
                Err(error) => {
                    this.shared.profile.unreserve(&pod, &node);
                    this.take_back(&pod, &words(&error));
                }
            }
        });
    }

    /// The pod is not where it was assumed to be; it is tried again.
    fn take_back(&self, pod: &PodInfo, why: &str) {
        tracing::debug!(pod = %pod.key, why, "binding failed");
        self.shared.with(|state| {
            state.world.forget(pod.uid());
            state.queue.failed(pod);
        });
        self.shared.wake.notify_one();
        self.recorder
            .event(&pod.reference, EventType::Warning, "FailedScheduling", why);
    }

    fn report(
        self: &Arc<Self>,
        pod: Arc<PodInfo>,
        diagnosis: Diagnosis,
        nominate: Option<(String, Vec<Arc<Footprint>>)>,
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
            let node = nominate.as_ref().map(|(node, _)| node.as_str());
            if let Err(error) = this.mark(&pod, &message, node).await {
                tracing::warn!(pod = %pod.key, %error, "status not written");
            }
            for victim in nominate.iter().flat_map(|(_, victims)| victims) {
                let (node, _) = nominate
                    .as_ref()
                    .map_or(("", ()), |(n, _)| (n.as_str(), ()));
                if let Err(error) = this.evict(&pod, victim, node).await {
                    tracing::warn!(pod = %pod.key, %error, "victim not evicted");
                }
            }
        });
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
        let (Some(key), false) = (&victim.key, victim.deleting) else {
            return Ok(());
        };
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
