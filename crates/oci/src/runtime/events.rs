//! Following the shims, and telling the world.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::container::Container;
use super::records;
use super::sandbox::Sandbox;
use super::shim_client::ShimConnection;
use super::stop::UNKNOWN_EXIT;
use super::{Runtime, lock};
use crate::cgroups::Hierarchy;
use crate::cri::v1::{self, ContainerEventType};
use crate::plan::{Exit, Started};
use crate::proto::{ContainerState, Reply, Request};
use crate::shim::now_nanoseconds;

impl Runtime {
    /// Follows a sandbox's shim: takes over what it knows, marks the sandbox ready, and from then
    /// on hears of every exit. Fails when there is no shim.
    pub async fn watch_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> io::Result<()> {
        let mut shim = ShimConnection::connect(&sandbox.dir)?;
        shim.send(&Request::Subscribe, &[]).await?;
        let (Reply::Snapshot { containers }, _) = shim.receive().await? else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        self.take_over(sandbox, containers);
        sandbox.ready.store(true, Ordering::Release);
        let (runtime, sandbox) = (Arc::downgrade(self), sandbox.clone());
        tokio::spawn(async move {
            while let Ok((reply, _)) = shim.receive().await {
                let Some(runtime) = runtime.upgrade() else {
                    return;
                };
                if let Reply::Exited { id, exit } = reply
                    && let Some(container) = runtime.find_container(&id)
                {
                    runtime.container_exited(&container, exit);
                }
            }
            if let Some(runtime) = runtime.upgrade() {
                runtime.shim_gone(&sandbox).await;
            }
        });
        Ok(())
    }

    fn take_over(&self, sandbox: &Arc<Sandbox>, states: Vec<ContainerState>) {
        for container in self.containers_of(&sandbox.id()) {
            let state = states.iter().find(|state| state.id == container.record.id);
            let progress = container.progress();
            match state {
                Some(state) => container.progress.send_modify(|progress| {
                    progress.started = state.started.clone().or(progress.started.take());
                    progress.exit = state.exit.clone().or(progress.exit.take());
                }),
                None if progress.started.is_some() && progress.exit.is_none() => {
                    self.container_exited(&container, lost());
                }
                None => {}
            }
        }
    }

    /// The shim of a sandbox is gone, and its containers with it.
    pub async fn shim_gone(&self, sandbox: &Arc<Sandbox>) {
        let was_ready = sandbox.ready.swap(false, Ordering::AcqRel);
        for container in self.containers_of(&sandbox.id()) {
            if !container.is_running() {
                continue;
            }
            let cgroup = container.record.cgroup.clone();
            let killed = tokio::task::spawn_blocking(move || {
                Hierarchy::system().cgroup(&cgroup).kill_all();
            });
            let _ = killed.await;
            let exit = records::exit(&container.dir).unwrap_or_else(lost);
            let _ = records::save_exit(&container.dir, &exit);
            self.container_exited(&container, exit);
        }
        if was_ready && !sandbox.record().stopped {
            self.sandbox_event(sandbox, ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// A container runs: remembers and tells, once.
    pub fn container_started(&self, container: &Arc<Container>, started: Started) {
        let _telling = lock(&container.telling);
        let first = container.progress.send_if_modified(|progress| {
            let first = progress.started.is_none();
            progress.started.get_or_insert(started);
            first
        });
        if first {
            self.container_event(container, ContainerEventType::ContainerStartedEvent);
        }
    }

    /// A container has exited: remembers and tells, once.
    pub fn container_exited(&self, container: &Arc<Container>, exit: Exit) {
        // A short life may be over before whoever started it has heard that it began.
        if exit.start_error.is_none()
            && let Some(started) = records::started(&container.dir)
        {
            self.container_started(container, started);
        }
        let _telling = lock(&container.telling);
        let first = container.progress.send_if_modified(|progress| {
            let first = progress.exit.is_none();
            progress.exit.get_or_insert(exit);
            first
        });
        if first {
            self.container_event(container, ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// Tells that something happened to a container.
    pub fn container_event(&self, container: &Arc<Container>, kind: ContainerEventType) {
        let sandbox = self.find_sandbox(&container.record.sandbox);
        self.event(&container.record.id, sandbox.as_ref(), kind);
    }

    /// Tells that something happened to a sandbox.
    pub fn sandbox_event(&self, sandbox: &Arc<Sandbox>, kind: ContainerEventType) {
        self.event(&sandbox.id(), Some(sandbox), kind);
    }

    fn event(&self, id: &str, sandbox: Option<&Arc<Sandbox>>, kind: ContainerEventType) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let containers_statuses = sandbox
            .map(|sandbox| {
                let containers = self.containers_of(&sandbox.id());
                containers
                    .iter()
                    .map(|c| self.container_status(c))
                    .collect()
            })
            .unwrap_or_default();
        let event = v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: now_nanoseconds(),
            pod_sandbox_status: sandbox.map(|sandbox| self.sandbox_status(sandbox)),
            containers_statuses,
        };
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    /// Whether any sandbox still exists by that id.
    pub fn knows_sandbox(&self, id: &str) -> bool {
        lock(&self.sandboxes).contains_key(id)
    }
}

/// The end of a container that nobody saw.
pub fn lost() -> Exit {
    Exit {
        code: UNKNOWN_EXIT,
        finished_at: now_nanoseconds(),
        oom_killed: false,
        start_error: None,
    }
}
