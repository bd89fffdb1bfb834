//! Talking to a shim from the runtime's (many-threaded, asynchronous) side.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::plan::{ContainerPlan, SandboxPlan, Started};
use crate::proto::{self, MAX_FRAME, Reply, Request, receive_with_fds, send_with_fds};
use crate::shim;

/// Why a shim did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// It said why.
    #[error("{0}")]
    Refused(String),
    /// It is not there, or went away.
    #[error("shim: {0}")]
    Unreachable(#[from] io::Error),
}

/// One connection to a shim.
pub struct ShimConnection {
    stream: UnixStream,
}

impl ShimConnection {
    /// Connects to the shim of a sandbox folder.
    pub fn connect(dir: &Path) -> io::Result<Self> {
        let (_folder, path) = proto::short_socket_path(dir)?;
        let stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
        })
    }

    /// The shim's process id.
    pub fn peer_pid(&self) -> io::Result<i32> {
        self.stream
            .peer_cred()?
            .pid()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Sends a request, with descriptors if it has any.
    pub async fn send(&mut self, request: &Request, fds: &[RawFd]) -> io::Result<()> {
        let frame = proto::encode(request)?;
        let sent = self
            .stream
            .async_io(Interest::WRITABLE, || {
                send_with_fds(&self.stream, &frame, fds)
            })
            .await?;
        self.stream.write_all(&frame[sent..]).await
    }

    /// The next reply, with the descriptor beside it if there is one.
    pub async fn receive(&mut self) -> io::Result<(Reply, Option<OwnedFd>)> {
        let mut length = [0; 4];
        let (mut have, mut fd) = (0, None);
        while have < length.len() {
            let (read, fds) = self
                .stream
                .async_io(Interest::READABLE, || {
                    receive_with_fds(&self.stream, &mut length[have..])
                })
                .await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            have += read;
            fd = fd.or(fds.into_iter().next());
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_FRAME {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok((serde_json::from_slice(&body)?, fd))
    }

    /// Sends a request and awaits its first reply.
    pub async fn ask(
        &mut self,
        request: &Request,
        fds: &[RawFd],
    ) -> Result<(Reply, Option<OwnedFd>), ShimError> {
        self.send(request, fds).await?;
        match self.receive().await? {
            (Reply::Error(error), _) => Err(ShimError::Refused(error)),
            reply => Ok(reply),
        }
    }
}

impl AsRawFd for ShimConnection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// Asks the shim of a sandbox folder one thing.
pub async fn ask(dir: &Path, request: &Request) -> Result<Reply, ShimError> {
    Ok(ShimConnection::connect(dir)?.ask(request, &[]).await?.0)
}

/// Starts a container.
pub async fn start(dir: &Path, plan: ContainerPlan) -> Result<Started, ShimError> {
    match ask(dir, &Request::Start(Box::new(plan))).await? {
        Reply::Started(started) => Ok(started),
        other => Err(ShimError::Refused(format!("unexpected reply {other:?}"))),
    }
}

/// Starts the shim of a sandbox folder, which must hold its plan.
pub async fn spawn(command: &[PathBuf], dir: &Path, plan: &SandboxPlan) -> Result<(), ShimError> {
    std::fs::write(
        dir.join(shim::PLAN),
        serde_json::to_vec(plan).map_err(io::Error::from)?,
    )?;
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stdout);
    if said.starts_with("ready") {
        return Ok(());
    }
    let said = said.trim();
    Err(ShimError::Refused(if said.is_empty() {
        format!(
            "{} did not start a shim: {}",
            program.display(),
            output.status
        )
    } else {
        said.to_owned()
    }))
}

/// The process id of a sandbox's shim.
pub fn peer_pid(dir: &Path) -> io::Result<i32> {
    let (_folder, path) = proto::short_socket_path(dir)?;
    let stream = std::os::unix::net::UnixStream::connect(path)?;
    Ok(rustix::net::sockopt::socket_peercred(&stream)?
        .pid
        .as_raw_nonzero()
        .get())
}
