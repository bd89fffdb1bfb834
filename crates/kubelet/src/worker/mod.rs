//! The worker of one pod: a task that looks at the runtime, publishes the status, plans, and sets
//! jobs to work; then sleeps until something happens. All decisions are in [`crate::plan`]; all state
//! is in the runtime, in the API and in [`Progress`], which is rebuilt after a restart of the agent.
//!
//! Jobs run beside the worker, so that a slow pull or a long grace period never keeps it from
//! noticing a deletion. A job's result is taken before the next look at the runtime.

mod act;
mod hooks;
mod publish;
mod start;
mod stop;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use client::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use publish::{ApiObject, delete};

use crate::admission;
use crate::agent::SharedAgent;
use crate::backoff::Backoff;
use crate::logs::rotate;
use crate::observe::observe;
use crate::plan::{
    self, CRASH_LOOP, Cause, ContainerProgress, Progress, Step, Termination, View, Waiting,
};
use crate::pod::{self, ContainerState, Observed, PodRef};
use crate::probes::{ProbeKind, Probers, Report};
use crate::status::{self, Facts};
use crate::volumes::{Failure, PodVolumes};
use start::{Held, NotStarted};

/// First delay after something of the pod failed (sandbox, volumes, tearing down).
const FIRST_RETRY: SignedDuration = SignedDuration::from_secs(1);
/// Delay after the API server or the runtime could not be reached.
const CALL_RETRY: SignedDuration = SignedDuration::from_secs(1);
/// Notes waiting for the worker.
const NOTES: usize = 64;

/// What the worker is to make true.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The pod is gone from the API or from its folder.
    pub removed: bool,
    /// Where its status is shown.
    pub object: Option<ApiObject>,
}

/// Something that concerns the worker, from its own tasks.
#[derive(Debug)]
enum Note {
    Probe(Report),
    ConfigChanged(String),
    VolumesStale,
}

/// Result of a job.
enum Done {
    Volumes(Result<PodVolumes, Box<Failure>>),
    Sandbox(Result<(), String>),
    Started {
        name: String,
        result: Result<(), Option<NotStarted>>,
        held: Box<Held>,
    },
    Stopped {
        id: String,
        grace: i64,
        result: Result<(), String>,
    },
    Removed {
        id: String,
        result: Result<(), String>,
    },
    Finished(Result<(), String>),
    Purged(Result<(), String>),
    Published {
        status: Box<PodStatus>,
        result: Result<(), String>,
    },
}

/// The worker.
pub struct Worker {
    agent: SharedAgent,
    desired: watch::Receiver<Desired>,
    kick: Arc<Notify>,
    identity: PodRef,
    jobs: JoinSet<Done>,
    progress: Progress,
    observed: Observed,
    status: PodStatus,
    published: PodStatus,
    publishing: bool,
    publish_at: Option<Timestamp>,
    probers: Probers,
    notes: mpsc::Receiver<Note>,
    note: mpsc::Sender<Note>,
    reports: mpsc::Sender<Report>,
    volumes: Arc<PodVolumes>,
    volumes_backoff: Option<Backoff>,
    refreshing: bool,
    sandbox_backoff: Option<Backoff>,
    volume_watch: Option<AbortOnDropHandle<()>>,
    config_watch: BTreeMap<String, AbortOnDropHandle<()>>,
    held: BTreeMap<String, Arc<Held>>,
    rotators: BTreeMap<String, AbortOnDropHandle<()>>,
    cancel: CancellationToken,
    ending_since: Option<Instant>,
    _relay: AbortOnDropHandle<()>,
}

impl Worker {
    /// A worker for the pod in `desired`; `kick` makes it look at the runtime again.
    pub fn new(agent: SharedAgent, desired: watch::Receiver<Desired>, kick: Arc<Notify>) -> Worker {
        let (note, notes) = mpsc::channel(NOTES);
        let (reports, mut reported) = mpsc::channel(NOTES);
        let forward = note.clone();
        let relay = tokio::spawn(async move {
            while let Some(report) = reported.recv().await {
                if forward.send(Note::Probe(report)).await.is_err() {
                    return;
                }
            }
        });
        let pod = desired.borrow().pod.clone();
        let known = pod::status(&pod).clone();
        Worker {
            agent,
            desired,
            kick,
            identity: PodRef::of(&pod),
            jobs: JoinSet::new(),
            progress: remembered(&known),
            observed: Observed::default(),
            status: known.clone(),
            published: known,
            publishing: false,
            publish_at: None,
            probers: Probers::default(),
            notes,
            note,
            reports,
            volumes: Arc::default(),
            volumes_backoff: None,
            refreshing: false,
            sandbox_backoff: None,
            volume_watch: None,
            config_watch: BTreeMap::new(),
            held: BTreeMap::new(),
            rotators: BTreeMap::new(),
            cancel: CancellationToken::new(),
            ending_since: None,
            _relay: AbortOnDropHandle::new(relay),
        }
    }

    /// Works until the pod is gone, here and in the API.
    pub async fn run(mut self) {
        let mut last = self.desired.borrow_and_update().clone();
        self.judge(&last).await;
        loop {
            let desired = self.desired.borrow_and_update().clone();
            self.note_changes(&last, &desired);
            last = desired.clone();
            let wake = match self.step(&desired).await {
                Ok(Next::Done) => return,
                Ok(Next::Wait(wake)) => wake,
                Err(error) => {
                    tracing::warn!(pod = %self.identity, %error, "the runtime did not answer");
                    Some(crate::clock::now() + CALL_RETRY)
                }
            };
            if !self.wait(wake).await {
                return;
            }
        }
    }

    /// A new pod is taken in, or refused once and for all.
    async fn judge(&mut self, desired: &Desired) {
        let pod = &desired.pod;
        if desired.removed || admission::is_known(pod) || pod.metadata.deletion_timestamp.is_some()
        {
            return;
        }
        if let Err(refusal) = admission::admit(&self.agent, pod).await {
            let (reason, text) = (&refusal.reason, &refusal.message);
            self.agent.event(pod, EventType::Warning, reason, text);
            self.progress.refusal = Some(refusal);
        }
    }

    /// Labels and annotations may be in files; a mirror made anew shows nothing yet.
    fn note_changes(&mut self, last: &Desired, desired: &Desired) {
        if last.object != desired.object {
            self.published = PodStatus::default();
        }
        let (old, new) = (&last.pod.metadata, &desired.pod.metadata);
        let changed = old.labels != new.labels || old.annotations != new.annotations;
        if changed && self.volumes.depends.metadata {
            self.refresh_volumes();
        }
    }

    async fn step(&mut self, desired: &Desired) -> crate::cri::Result<Next> {
        self.observed = observe(&self.agent.cri, &self.identity.uid, &self.observed).await?;
        let now = crate::clock::now();
        self.forget_dead();
        self.remember_backoff();
        let observed = self.observed.clone();
        let progress = self.progress.clone();
        let view = View {
            pod: &desired.pod,
            removed: desired.removed,
            observed: &observed,
            progress: &progress,
            now,
        };
        let termination = plan::termination(&view);
        self.note_ending(&desired.pod, termination.as_ref());
        self.update_status(desired, termination.as_ref(), now);
        self.probers.sync(
            &self.agent,
            &desired.pod,
            &self.observed,
            &self.progress,
            termination.as_ref(),
            &self.reports,
        );
        self.keep_logs_small();
        let plan = plan::plan(&view);
        for action in plan.actions {
            tracing::debug!(pod = %self.identity, ?action, "planned");
            self.act(desired, action, now);
        }
        let gone = self.progress.purge == Step::Done && desired.removed;
        if gone && self.jobs.is_empty() {
            return Ok(Next::Done);
        }
        let wake = [plan.wake_at, self.publish_at].into_iter().flatten().min();
        Ok(Next::Wait(wake))
    }

    /// Waits until something happens. False when the agent ends.
    async fn wait(&mut self, wake: Option<Timestamp>) -> bool {
        let sleep = async {
            match wake {
                Some(at) => crate::clock::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.desired.changed() => return changed.is_ok(),
            () = self.kick.notified() => {}
            Some(note) = self.notes.recv() => self.take_note(note),
            Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => match done {
                Ok(done) => self.take(done),
                Err(error) => tracing::error!(pod = %self.identity, %error, "a job of the pod broke off"),
            },
            () = sleep => {}
        }
        true
    }

    fn take_note(&mut self, note: Note) {
        match note {
            Note::Probe(report) => {
                let verdicts = self
                    .progress
                    .verdicts
                    .entry(report.container_id)
                    .or_default();
                match report.kind {
                    ProbeKind::Startup => verdicts.startup = report.verdict,
                    ProbeKind::Liveness => verdicts.liveness = report.verdict,
                    ProbeKind::Readiness => verdicts.readiness = report.verdict,
                }
            }
            Note::ConfigChanged(name) => {
                self.config_watch.remove(&name);
                if let Some(container) = self.progress.containers.get_mut(&name) {
                    container.retry_at = None;
                }
            }
            Note::VolumesStale => self.refresh_volumes(),
        }
    }

    /// Drops what is remembered of containers that no longer run.
    fn forget_dead(&mut self) {
        let observed = &self.observed;
        let running = |id: &String| {
            observed
                .by_id(id)
                .is_some_and(|c| c.state == ContainerState::Running)
        };
        self.progress.verdicts.retain(|id, _| running(id));
        self.rotators.retain(|id, _| running(id));
        let known = |id: &String| {
            observed.by_id(id).is_some()
                || observed.sandboxes.iter().any(|s| s.id == *id && s.ready)
        };
        self.progress.removals.retain(known);
    }

    /// After a restart of the agent a crashing container goes on waiting, instead of all of them
    /// being restarted at once.
    fn remember_backoff(&mut self) {
        for (name, progress) in &mut self.progress.containers {
            let crashing = progress
                .waiting
                .as_ref()
                .is_some_and(|w| w.reason == CRASH_LOOP);
            let dead = self
                .observed
                .latest(name)
                .filter(|c| c.state == ContainerState::Exited);
            if let (true, None, Some(dead)) = (crashing, progress.backoff, dead)
                && let Some(ended) = dead.finished_at
            {
                progress.backoff = Some(Backoff::after_restarts(dead.attempt, ended));
                progress.announced = Some(dead.id.clone());
            }
        }
    }

    fn note_ending(&mut self, pod: &Pod, termination: Option<&Termination>) {
        let Some(termination) = termination else {
            return;
        };
        if self.ending_since.is_some() {
            return;
        }
        self.ending_since = Some(Instant::now());
        self.cancel.cancel();
        if termination.cause == Cause::DeadlineExceeded {
            let text = "Pod was active on the node longer than specified deadline";
            self.agent
                .event(pod, EventType::Normal, "DeadlineExceeded", text);
        }
    }

    fn update_status(
        &mut self,
        desired: &Desired,
        termination: Option<&Termination>,
        now: Timestamp,
    ) {
        let host_ips = self.agent.host_ips();
        let mut previous = self.status.clone();
        adopt_conditions(&mut previous, pod::status(&desired.pod));
        self.status = status::status(&Facts {
            pod: &desired.pod,
            observed: &self.observed,
            progress: &self.progress,
            termination,
            previous: &previous,
            host_ips: &host_ips,
            runtime_name: &self.agent.runtime_name,
            now,
        });
        if pod::is_last(self.status.phase.as_deref()) {
            self.agent.admission.release(&self.identity.uid);
        }
        self.publish(desired, now);
    }

    /// Whether the API server shows the present status.
    fn is_published(&self) -> bool {
        !self.publishing && self.published == self.status
    }

    fn publish(&mut self, desired: &Desired, now: Timestamp) {
        if self.publish_at.is_some_and(|at| at <= now) {
            self.publish_at = None;
        }
        let Some(object) = desired.object.clone().filter(|_| !desired.removed) else {
            return;
        };
        if self.publishing || self.publish_at.is_some() || self.published == self.status {
            return;
        }
        self.publishing = true;
        let (client, from, to) = (
            self.agent.client.clone(),
            self.published.clone(),
            self.status.clone(),
        );
        self.jobs.spawn(async move {
            let result = publish::send(&client, &object, &from, &to)
                .await
                .map(|_| ())
                .map_err(|e| e.to_string());
            Done::Published {
                status: Box::new(to),
                result,
            }
        });
    }

    fn keep_logs_small(&mut self) {
        for container in self
            .observed
            .containers
            .iter()
            .filter(|c| c.state == ContainerState::Running)
        {
            if self.rotators.contains_key(&container.id) || container.log_path.is_empty() {
                continue;
            }
            let (cri, notify) = (self.agent.cri.clone(), self.agent.notify.clone());
            let work = rotate::keep_small(
                container.log_path.clone().into(),
                container.id.clone(),
                cri,
                notify,
            );
            self.rotators.insert(
                container.id.clone(),
                AbortOnDropHandle::new(tokio::spawn(work)),
            );
        }
    }

    fn container(&mut self, name: &str) -> &mut ContainerProgress {
        self.progress.containers.entry(name.to_owned()).or_default()
    }
}

enum Next {
    Done,
    Wait(Option<Timestamp>),
}

/// What the status tells of containers that wait, for an agent that has just started.
fn remembered(status: &PodStatus) -> Progress {
    let mut progress = Progress::default();
    let all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    for container in all {
        let Some(waiting) = container.state.as_ref().and_then(|s| s.waiting.as_ref()) else {
            continue;
        };
        let reason = waiting.reason.clone().unwrap_or_default();
        if matches!(
            reason.as_str(),
            "" | "ContainerCreating" | "PodInitializing"
        ) {
            continue;
        }
        let message = waiting.message.clone().unwrap_or_default();
        let known = progress
            .containers
            .entry(container.name.clone())
            .or_default();
        known.waiting = Some(Waiting { reason, message });
    }
    progress
}

/// Takes the conditions of others from the API's status, the agent's own from its memory.
fn adopt_conditions(own: &mut PodStatus, api: &PodStatus) {
    let is_owned = |kind: &str| publish::OWNED.contains(&kind);
    let mut conditions = own.conditions.take().unwrap_or_default();
    conditions.retain(|c| is_owned(&c.type_));
    let others = api
        .conditions
        .iter()
        .flatten()
        .filter(|c| !is_owned(&c.type_));
    conditions.extend(others.cloned());
    own.conditions = Some(conditions);
}
