//! Ending things: stopping and removing containers and sandboxes, and clearing away what was
//! never finished.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tonic::Status;

use super::container::Container;
use super::network::unname_namespace;
use super::records;
use super::sandbox::Sandbox;
use super::shim_client;
use super::{Runtime, lock};
use crate::cgroups::Hierarchy;
use crate::cri::v1::ContainerEventType;
use crate::plan::Exit;
use crate::proto::Request;
use crate::shim::now_nanoseconds;

/// How long a killed container may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// The exit code of a container whose end nobody saw.
pub const UNKNOWN_EXIT: i32 = 255;

impl Runtime {
    /// Stops a container: its stop signal, then after the timeout SIGKILL. Returns when it is gone.
    pub async fn stop(&self, container: &Arc<Container>, timeout: Duration) -> Result<(), Status> {
        if !container.is_running() {
            return Ok(());
        }
        let Some(sandbox) = self.find_sandbox(&container.record.sandbox) else {
            return self.declare_dead(container);
        };
        if !timeout.is_zero() {
            let signal = container.record.stop_signal;
            let request = Request::Kill {
                id: container.record.id.clone(),
                signal,
                all: false,
            };
            if shim_client::ask(&sandbox.dir, &request).await.is_err() {
                return self.stop_without_shim(container).await;
            }
            if tokio::time::timeout(timeout, container.exited())
                .await
                .is_ok()
            {
                return Ok(());
            }
        }
        let request = Request::Kill {
            id: container.record.id.clone(),
            signal: libc::SIGKILL,
            all: true,
        };
        if shim_client::ask(&sandbox.dir, &request).await.is_err() {
            return self.stop_without_shim(container).await;
        }
        tokio::time::timeout(KILL_PATIENCE, container.exited())
            .await
            .map_err(|_| {
                Status::deadline_exceeded(format!(
                    "container {:?} does not die of SIGKILL",
                    container.record.id
                ))
            })
    }

    /// The shim is gone and the container goes with it; what is left of it is killed.
    async fn stop_without_shim(&self, container: &Arc<Container>) -> Result<(), Status> {
        let cgroup = container.record.cgroup.clone();
        let killed = tokio::task::spawn_blocking(move || {
            Hierarchy::system().cgroup(&cgroup).kill_all();
        });
        killed
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        self.declare_dead(container)
    }

    fn declare_dead(&self, container: &Arc<Container>) -> Result<(), Status> {
        let exit = records::exit(&container.dir).unwrap_or(Exit {
            code: UNKNOWN_EXIT,
            finished_at: now_nanoseconds(),
            oom_killed: false,
            start_error: None,
        });
        records::save_exit(&container.dir, &exit)
            .map_err(|error| Status::internal(error.to_string()))?;
        self.container_exited(container, exit);
        Ok(())
    }

    /// Removes a container, running or not.
    pub async fn remove_container(&self, container: &Arc<Container>) -> Result<(), Status> {
        let _changing = container.changing.lock().await;
        self.stop(container, Duration::ZERO).await?;
        let id = container.record.id.clone();
        if let Some(sandbox) = self.find_sandbox(&container.record.sandbox)
            && sandbox.is_ready()
        {
            let _ = shim_client::ask(&sandbox.dir, &Request::Forget { id: id.clone() }).await;
        }
        let (dir, cgroup) = (container.dir.clone(), container.record.cgroup.clone());
        let (images, snapshot) = (self.images().clone(), id.clone());
        tokio::task::spawn_blocking(move || {
            let cgroup = Hierarchy::system().cgroup(&cgroup);
            cgroup.kill_all();
            cgroup.remove().map_err(|error| error.to_string())?;
            images
                .remove_snapshot(&snapshot)
                .map_err(|error| error.to_string())?;
            remove_folder(&dir).map_err(|error| error.to_string())
        })
        .await
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| Status::internal(format!("remove container {id:?}: {error}")))?;
        lock(&self.containers).remove(&id);
        self.container_event(container, ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// Stops a sandbox: its containers, its network, its shim. Repeatable.
    pub async fn stop_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<(), Status> {
        let _changing = sandbox.changing.lock().await;
        let id = sandbox.id();
        for container in self.containers_of(&id) {
            self.stop(&container, Duration::ZERO).await?;
        }
        if sandbox.record().stopped {
            return Ok(());
        }
        if !sandbox.host_network() {
            let netns = self.netns(&id);
            self.config
                .network
                .teardown(&id, &netns)
                .await
                .map_err(|error| {
                    Status::unknown(format!(
                        "failed to destroy network for sandbox {id:?}: {error}"
                    ))
                })?;
            unname_namespace(&netns).map_err(|error| Status::internal(error.to_string()))?;
        }
        self.end_shim(sandbox).await?;
        sandbox.ready.store(false, Ordering::Release);
        lock(&sandbox.record).stopped = true;
        records::save_sandbox_record(&sandbox.dir, &sandbox.record())
            .map_err(|error| Status::internal(error.to_string()))?;
        self.sandbox_event(sandbox, ContainerEventType::ContainerStoppedEvent);
        Ok(())
    }

    /// Tells the shim to end, waits until it has, and removes its cgroup. Fails rather than leave
    /// a shim behind: when this process is ending itself, nothing can be told or killed any more,
    /// and a sandbox taken for stopped would keep its shim for ever.
    async fn end_shim(&self, sandbox: &Arc<Sandbox>) -> Result<(), Status> {
        if let Ok(mut shim) = shim_client::ShimConnection::connect(&sandbox.dir) {
            let _ = shim.ask(&Request::Shutdown, &[]).await;
            // The connection ends with the process.
            let _ = tokio::time::timeout(KILL_PATIENCE, shim.receive()).await;
        }
        let cgroup = sandbox.record().cgroup;
        tokio::task::spawn_blocking(move || {
            let cgroup = Hierarchy::system().cgroup(&cgroup);
            cgroup.kill_all();
            if let Err(error) = cgroup.remove() {
                tracing::warn!(%error, "remove the cgroup of a sandbox");
            }
        })
        .await
        .map_err(|error| Status::internal(error.to_string()))
    }

    /// Removes a sandbox with all its containers.
    pub async fn remove_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<(), Status> {
        self.stop_sandbox(sandbox).await?;
        let id = sandbox.id();
        for container in self.containers_of(&id) {
            self.remove_container(&container).await?;
        }
        let _changing = sandbox.changing.lock().await;
        remove_folder(&sandbox.dir).map_err(|error| Status::internal(error.to_string()))?;
        lock(&self.sandboxes).remove(&id);
        self.sandbox_event(sandbox, ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// Takes back everything a failed or interrupted creation of a sandbox may have made.
    pub async fn discard_sandbox(&self, sandbox: &Arc<Sandbox>) {
        let id = sandbox.id();
        let netns = self.netns(&id);
        if netns.exists() {
            if let Err(error) = self.config.network.teardown(&id, &netns).await {
                tracing::warn!(sandbox = id, %error, "take down the network of half a sandbox");
            }
            let _ = unname_namespace(&netns);
        }
        if let Err(error) = self.end_shim(sandbox).await {
            tracing::warn!(sandbox = id, %error, "end the shim of half a sandbox");
            return;
        }
        if let Err(error) = remove_folder(&sandbox.dir) {
            tracing::warn!(sandbox = id, %error, "remove the folder of half a sandbox");
        }
        lock(&self.sandboxes).remove(&id);
    }
}

/// Removes a folder and everything in it; fine if there is none. The record goes first, so that
/// an interruption leaves what looks like an unfinished creation.
pub fn remove_folder(dir: &std::path::Path) -> io::Result<()> {
    let absent = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    absent(fs::remove_file(dir.join("record.json")))?;
    absent(fs::remove_dir_all(dir))
}
