//! The worker's hands: each action of a plan becomes a job, each result of a job goes into
//! [`crate::plan::Progress`].

use std::sync::Arc;

use client::EventType;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::task::AbortOnDropHandle;

use super::start::{self, Held, NotStarted, Start};
use super::stop::{self, Stop};
use super::{CALL_RETRY, Desired, Done, FIRST_RETRY, Note, Worker, publish};
use crate::agent::Agent;
use crate::backoff::Backoff;
use crate::logs::rotate;
use crate::plan::{Action, CRASH_LOOP, Step, StopReason, Waiting};
use crate::pod::{ContainerState, PodRef};
use crate::volumes;

impl Worker {
    /// Sets one action to work.
    pub(super) fn act(&mut self, desired: &Desired, action: Action, now: Timestamp) {
        match action {
            Action::SetUpVolumes => {
                self.progress.volumes = Step::Busy;
                self.set_up_volumes(&desired.pod);
            }
            Action::CreateSandbox { attempt } => self.create_sandbox(&desired.pod, attempt),
            Action::StartContainer {
                name,
                attempt,
                sandbox,
            } => {
                self.start_container(&desired.pod, name, attempt, sandbox, now);
            }
            Action::AwaitRestart { name, id, waiting } => {
                self.await_restart(&desired.pod, &name, id, waiting)
            }
            Action::StopContainer {
                id,
                name: _,
                grace,
                reason,
            } => self.stop_container(&desired.pod, id, grace, reason),
            Action::RemoveContainer { id } => self.remove_container(id),
            Action::StopSandbox { id } => self.stop_sandbox(id),
            Action::RemoveSandbox { id } => self.remove_sandbox(id),
            Action::Finish => self.finish(),
            Action::Purge => self.purge(desired),
        }
    }

    fn set_up_volumes(&mut self, pod: &Arc<Pod>) {
        let (agent, pod, cancel) = (self.agent.clone(), pod.clone(), self.cancel.clone());
        self.jobs.spawn(async move {
            let place = agent.place(&[]);
            let work = volumes::set_up_all(&agent.host, &pod, &place);
            let canceled = || Err(Box::default());
            Done::Volumes(
                cancel
                    .run_until_cancelled(work)
                    .await
                    .unwrap_or_else(canceled),
            )
        });
    }

    /// Brings the content of volumes up to date.
    pub(super) fn refresh_volumes(&mut self) {
        if self.progress.volumes == Step::Done && !self.refreshing && !self.cancel.is_cancelled() {
            self.refreshing = true;
            let pod = self.desired.borrow().pod.clone();
            self.set_up_volumes(&pod);
        } else if let Step::Failed(_) = self.progress.volumes {
            self.progress.volumes = Step::Idle;
        }
    }

    fn create_sandbox(&mut self, pod: &Arc<Pod>, attempt: u32) {
        self.progress.sandbox = Step::Busy;
        let (agent, pod) = (self.agent.clone(), pod.clone());
        self.jobs.spawn(async move {
            Done::Sandbox(start::create_sandbox(&agent, &pod, attempt).await)
        });
    }

    fn start_container(
        &mut self,
        pod: &Arc<Pod>,
        name: String,
        attempt: u32,
        sandbox: String,
        now: Timestamp,
    ) {
        let again = self
            .observed
            .latest_in(&sandbox, &name)
            .is_some_and(|c| c.state == ContainerState::Exited);
        let progress = self.container(&name);
        progress.busy = true;
        progress.retry_at = None;
        if again
            && progress
                .waiting
                .as_ref()
                .is_none_or(|w| w.reason == CRASH_LOOP)
        {
            progress.backoff = Some(Backoff::next(progress.backoff, now));
        }
        let view = self.observed.sandboxes.iter().find(|s| s.id == sandbox);
        let start = Start {
            pod: pod.clone(),
            name: name.clone(),
            attempt,
            sandbox_attempt: view.map_or(0, |s| s.attempt),
            ips: view
                .map(|s| s.ips.clone())
                .filter(|ips| !ips.is_empty())
                .unwrap_or_else(|| self.agent.host_ips()),
            sandbox,
            volumes: self.volumes.clone(),
            running: self.running(),
        };
        let (agent, cancel) = (self.agent.clone(), self.cancel.clone());
        self.jobs.spawn(async move {
            let mut held = Held::default();
            let result = start::start_container(&agent, &start, &mut held, &cancel).await;
            Done::Started {
                name,
                result,
                held: Box::new(held),
            }
        });
    }

    fn running(&self) -> Vec<(String, String)> {
        let all = self.observed.containers.iter();
        all.filter(|c| c.state == ContainerState::Running)
            .map(|c| (c.name.clone(), c.id.clone()))
            .collect()
    }

    fn await_restart(&mut self, pod: &Pod, name: &str, id: String, waiting: Waiting) {
        let full = self.identity.full();
        let progress = self.container(name);
        progress.waiting = Some(waiting);
        if progress.announced.as_ref() == Some(&id) {
            return;
        }
        progress.announced = Some(id);
        let text = format!("Back-off restarting failed container {name} in pod {full}");
        self.agent
            .container_event(pod, name, EventType::Warning, "BackOff", text);
        // The status must show it, and planning comes after the status.
        self.kick.notify_one();
    }

    fn stop_container(&mut self, pod: &Arc<Pod>, id: String, grace: i64, reason: StopReason) {
        let Some(view) = self.observed.by_id(&id).cloned() else {
            return;
        };
        let hurried = self.progress.stops.insert(id.clone(), grace).is_some();
        let left = match (&reason, self.ending_since) {
            (StopReason::PodEnds, Some(since)) if !hurried => {
                let used = i64::try_from(since.elapsed().as_secs()).unwrap_or(i64::MAX);
                (grace - used).max(grace.min(2))
            }
            _ => grace,
        };
        let ip = self
            .observed
            .sandbox()
            .and_then(|s| s.ips.first().cloned())
            .unwrap_or_default();
        let stop = Stop {
            pod: pod.clone(),
            view,
            ip,
            grace: left,
            reason,
            hurried,
        };
        let agent = self.agent.clone();
        self.jobs.spawn(async move {
            Done::Stopped {
                result: stop::stop(&agent, stop).await,
                id,
                grace,
            }
        });
    }

    fn remove_container(&mut self, id: String) {
        self.progress.removals.insert(id.clone());
        let log = self
            .observed
            .by_id(&id)
            .map(|c| c.log_path.clone())
            .unwrap_or_default();
        let cri = self.agent.cri.clone();
        self.jobs.spawn(async move {
            let result = cri.remove_container(&id).await.map_err(|e| e.to_string());
            if result.is_ok() && !log.is_empty() {
                rotate::remove(log.as_ref());
            }
            Done::Removed { id, result }
        });
    }

    fn stop_sandbox(&mut self, id: String) {
        self.progress.removals.insert(id.clone());
        let cri = self.agent.cri.clone();
        self.jobs.spawn(async move {
            let result = cri.stop_pod_sandbox(&id).await.map_err(|e| e.to_string());
            Done::Removed { id, result }
        });
    }

    fn remove_sandbox(&mut self, id: String) {
        self.progress.removals.insert(id.clone());
        let cri = self.agent.cri.clone();
        self.jobs.spawn(async move {
            let result = cri.remove_pod_sandbox(&id).await.map_err(|e| e.to_string());
            Done::Removed { id, result }
        });
    }

    fn finish(&mut self) {
        self.progress.finish = Step::Busy;
        self.volume_watch = None;
        let dir = self.agent.host.pod_dir(&self.identity.uid);
        self.jobs.spawn(async move {
            let result = tokio::task::spawn_blocking(move || volumes::tear_down(&dir)).await;
            Done::Finished(flat(result))
        });
    }

    fn purge(&mut self, desired: &Desired) {
        // Whoever watches the pod sees how it ended before it is gone.
        if !desired.removed && desired.object.is_some() && !self.is_published() {
            return;
        }
        self.progress.purge = Step::Busy;
        let containers: Vec<_> = self
            .observed
            .containers
            .iter()
            .map(|c| c.id.clone())
            .collect();
        let sandboxes: Vec<_> = self
            .observed
            .sandboxes
            .iter()
            .map(|s| s.id.clone())
            .collect();
        let object = desired.object.clone().filter(|_| !desired.removed);
        let (agent, pod) = (self.agent.clone(), desired.pod.clone());
        self.jobs.spawn(async move {
            let result = purge(&agent, &pod, &containers, &sandboxes).await;
            let result = match (result, object) {
                (Ok(()), Some(object)) => publish::delete(&agent.client, &object)
                    .await
                    .map_err(|e| e.to_string()),
                (result, _) => result,
            };
            Done::Purged(result)
        });
    }

    /// Takes the result of a job.
    pub(super) fn take(&mut self, done: Done) {
        let now = crate::clock::now();
        match done {
            Done::Volumes(result) => self.take_volumes(result, now),
            Done::Sandbox(result) => self.take_sandbox(result, now),
            Done::Started { name, result, held } => self.take_started(&name, result, *held),
            Done::Stopped { id, grace, result } => {
                // A second, shorter stop may be under way.
                if self.progress.stops.get(&id) == Some(&grace) {
                    self.progress.stops.remove(&id);
                }
                self.warn(result, "stopping a container failed");
            }
            Done::Removed { id, result } => {
                self.progress.removals.remove(&id);
                self.warn(result, "removing from the runtime failed");
            }
            Done::Finished(result) => {
                self.progress.finish = self.outcome(result, now, "tearing volumes down failed")
            }
            Done::Purged(result) => {
                self.progress.purge = self.outcome(result, now, "removing the pod failed")
            }
            Done::Published { status, result } => {
                self.publishing = false;
                match result {
                    Ok(()) => self.published = *status,
                    Err(error) => {
                        tracing::debug!(pod = %self.identity, %error, "publishing the status failed");
                        self.publish_at = Some(now + CALL_RETRY);
                    }
                }
            }
        }
    }

    fn warn(&self, result: Result<(), String>, what: &str) {
        if let Err(error) = result {
            tracing::warn!(pod = %self.identity, %error, "{what}");
            // Not at once again: the runtime has a problem.
            let kick = self.kick.clone();
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                kick.notify_one();
            });
        }
    }

    fn outcome(&self, result: Result<(), String>, now: Timestamp, what: &str) -> Step {
        match result {
            Ok(()) => Step::Done,
            Err(error) => {
                tracing::warn!(pod = %self.identity, %error, "{what}");
                Step::Failed(now + FIRST_RETRY)
            }
        }
    }

    fn take_volumes(
        &mut self,
        result: Result<volumes::PodVolumes, Box<volumes::Failure>>,
        now: Timestamp,
    ) {
        let refreshing = std::mem::take(&mut self.refreshing);
        let depends = match result {
            Ok(ready) => {
                self.progress.volumes = Step::Done;
                self.volumes_backoff = None;
                self.volumes = Arc::new(ready);
                self.volumes.depends.clone()
            }
            Err(failure) => {
                if !failure.volume.is_empty() {
                    let pod = self.desired.borrow().pod.clone();
                    let text = format!(
                        "MountVolume.SetUp failed for volume \"{}\" : {}",
                        failure.volume, failure.message
                    );
                    self.agent
                        .event(&pod, EventType::Warning, "FailedMount", text);
                }
                let backoff = Backoff::next_from(self.volumes_backoff, now, FIRST_RETRY);
                self.volumes_backoff = Some(backoff);
                let retry_at = now + backoff.delay;
                if !refreshing {
                    self.progress.volumes = Step::Failed(retry_at);
                }
                let refresh_at = refreshing.then_some(retry_at);
                volumes::Depends {
                    refresh_at,
                    ..failure.depends
                }
            }
        };
        let note = self.note.clone();
        let task = tokio::spawn(async move {
            depends.changed().await;
            // The worker is gone if nobody listens.
            let _ = note.send(Note::VolumesStale).await;
        });
        self.volume_watch = Some(AbortOnDropHandle::new(task));
    }

    fn take_sandbox(&mut self, result: Result<(), String>, now: Timestamp) {
        match result {
            Ok(()) => {
                self.progress.sandbox = Step::Done;
                self.sandbox_backoff = None;
            }
            Err(error) => {
                let pod = self.desired.borrow().pod.clone();
                let text = format!("Failed to create pod sandbox: {error}");
                self.agent
                    .event(&pod, EventType::Warning, "FailedCreatePodSandBox", text);
                let backoff = Backoff::next_from(self.sandbox_backoff, now, FIRST_RETRY);
                self.sandbox_backoff = Some(backoff);
                self.progress.sandbox = Step::Failed(now + backoff.delay);
            }
        }
    }

    fn take_started(&mut self, name: &str, result: Result<(), Option<NotStarted>>, held: Held) {
        let held = Arc::new(held);
        self.held.insert(name.to_owned(), held.clone());
        let progress = self.container(name);
        progress.busy = false;
        match result {
            Ok(()) => {
                progress.waiting = None;
                progress.retry_at = None;
                self.config_watch.remove(name);
            }
            Err(None) => {}
            Err(Some(failure)) => {
                progress.waiting = Some(failure.waiting);
                progress.retry_at = Some(failure.retry_at);
                let (note, name) = (self.note.clone(), name.to_owned());
                let key = name.clone();
                let task = tokio::spawn(async move {
                    held.changed().await;
                    let _ = note.send(Note::ConfigChanged(name)).await;
                });
                self.config_watch.insert(key, AbortOnDropHandle::new(task));
            }
        }
    }
}

fn flat(result: Result<std::io::Result<()>, tokio::task::JoinError>) -> Result<(), String> {
    result
        .map_err(|e| e.to_string())?
        .map_err(|e| e.to_string())
}

/// Removes all that is left of a pod on this node.
async fn purge(
    agent: &Agent,
    pod: &Pod,
    containers: &[String],
    sandboxes: &[String],
) -> Result<(), String> {
    for id in containers {
        agent
            .cri
            .remove_container(id)
            .await
            .map_err(|e| e.to_string())?;
    }
    for id in sandboxes {
        agent
            .cri
            .remove_pod_sandbox(id)
            .await
            .map_err(|e| e.to_string())?;
    }
    let uid = PodRef::of(pod).uid;
    agent.images.forget(&uid);
    agent.host.tokens.forget(&uid);
    let (dir, logs) = (agent.host.pod_dir(&uid), agent.log_dir(pod));
    let work = move || {
        volumes::remove_pod_dir(&dir)?;
        match std::fs::remove_dir_all(&logs) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    };
    flat(tokio::task::spawn_blocking(work).await)
}
