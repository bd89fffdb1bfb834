//! Running one more process in a container and awaiting its end, without a stream.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tonic::Status;

use super::Runtime;
use super::container::Container;
use super::sandbox::Sandbox;
use super::shim_client::ShimConnection;
use crate::cri::v1;
use crate::plan::ProcessPlan;
use crate::proto::{Reply, Request};

/// Bytes kept of each output; what comes after is dropped.
const MAX_OUTPUT: usize = 16 << 20;
/// How long output may keep coming after the process is gone.
const DRAIN: Duration = Duration::from_secs(2);

impl Runtime {
    /// Runs a command in a running container and returns its output and exit code.
    pub async fn exec_sync(
        &self,
        request: v1::ExecSyncRequest,
    ) -> Result<v1::ExecSyncResponse, Status> {
        let (container, sandbox) = self.running(&request.container_id)?;
        let timeout = u64::try_from(request.timeout).unwrap_or(0);
        let run = self.exec_and_wait(&container, &sandbox, request.cmd);
        if timeout == 0 {
            return run.await;
        }
        // Dropping the connection kills the process.
        tokio::time::timeout(Duration::from_secs(timeout), run)
            .await
            .map_err(|_| {
                Status::deadline_exceeded(format!(
                    "failed to exec in container: timeout {timeout}s exceeded: context deadline exceeded"
                ))
            })?
    }

    /// A running container and its sandbox.
    pub fn running(&self, id: &str) -> Result<(Arc<Container>, Arc<Sandbox>), Status> {
        let container = self.container(id)?;
        if !container.is_running() {
            return Err(Status::failed_precondition(format!(
                "container {id:?} is in {} state",
                container.state().as_str_name()
            )));
        }
        let sandbox = self.sandbox(&container.record.sandbox)?;
        Ok((container, sandbox))
    }

    /// What a command runs as: like the container's first process.
    pub fn exec_plan(
        &self,
        container: &Container,
        command: Vec<String>,
        terminal: bool,
    ) -> Result<ProcessPlan, Status> {
        if command.is_empty() {
            return Err(Status::invalid_argument("no command specified"));
        }
        let image = self
            .images()
            .status(&container.record.image_id)
            .map_err(|error| Status::internal(error.to_string()))?
            .map(|image| image.config)
            .unwrap_or_default();
        let mut process = super::convert::exec_process(&container.config, &image)
            .map_err(Status::invalid_argument)?;
        process.args = command;
        process.terminal = terminal;
        Ok(process)
    }

    async fn exec_and_wait(
        &self,
        container: &Container,
        sandbox: &Sandbox,
        command: Vec<String>,
    ) -> Result<v1::ExecSyncResponse, Status> {
        let process = self.exec_plan(container, command, false)?;
        let failed = |error: &dyn std::fmt::Display| {
            Status::unknown(format!("failed to exec in container: {error}"))
        };
        let null = std::fs::File::open("/dev/null").map_err(|error| failed(&error))?;
        let (stdout, stdout_end) = pipe_pair().map_err(|error| failed(&error))?;
        let (stderr, stderr_end) = pipe_pair().map_err(|error| failed(&error))?;
        let request = Request::Exec {
            id: container.record.id.clone(),
            process: Box::new(process),
            kill_on_close: true,
        };
        let mut shim = ShimConnection::connect(&sandbox.dir).map_err(|error| failed(&error))?;
        let ends = [
            &null.as_raw_fd(),
            &stdout_end.as_raw_fd(),
            &stderr_end.as_raw_fd(),
        ];
        let asked = shim.ask(&request, &ends.map(|fd| *fd)).await;
        drop((stdout_end, stderr_end));
        asked.map_err(|error| {
            Status::unknown(format!(
                "failed to exec in container: failed to start exec: {error}"
            ))
        })?;
        let mut outputs = (Vec::new(), Vec::new());
        let exit_code = {
            let collect = collect(stdout, stderr, &mut outputs);
            tokio::pin!(collect);
            let exit = tokio::select! {
                () = &mut collect => shim.receive().await,
                exit = shim.receive() => {
                    // A background process may hold the output open for ever.
                    let _ = tokio::time::timeout(DRAIN, &mut collect).await;
                    exit
                }
            };
            match exit.map_err(|error| failed(&error))? {
                (Reply::ExecExit { code }, _) => code,
                (other, _) => return Err(failed(&format!("unexpected reply {other:?}"))),
            }
        };
        Ok(v1::ExecSyncResponse {
            stdout: outputs.0,
            stderr: outputs.1,
            exit_code,
        })
    }
}

fn pipe_pair() -> std::io::Result<(pipe::Receiver, std::os::fd::OwnedFd)> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
}

async fn collect(stdout: pipe::Receiver, stderr: pipe::Receiver, outputs: &mut (Vec<u8>, Vec<u8>)) {
    let (out, err) = outputs;
    tokio::join!(read_bounded(stdout, out), read_bounded(stderr, err));
}

/// Reads to the end, keeping the beginning.
async fn read_bounded(mut from: pipe::Receiver, into: &mut Vec<u8>) {
    let mut buffer = vec![0; 32 << 10];
    while let Ok(read) = from.read(&mut buffer).await {
        if read == 0 {
            return;
        }
        let room = MAX_OUTPUT - into.len();
        into.extend_from_slice(&buffer[..read.min(room)]);
    }
}
