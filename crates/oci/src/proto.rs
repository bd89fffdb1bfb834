//! The control protocol between the runtime and a shim: frames of JSON, each after its length,
//! over a unix socket in the sandbox's folder. Descriptors travel beside a frame's length.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

use crate::plan::{ContainerPlan, Exit, ProcessPlan, Started};
use crate::sys;

/// Bytes of a frame, at most. A container with thousands of environment variables fits.
pub const MAX_FRAME: usize = 4 << 20;
/// Descriptors beside a frame, at most: stdin, stdout, stderr.
pub const MAX_FDS: usize = 3;
/// The control socket's name in the sandbox's folder.
pub const SOCKET: &str = "shim.sock";

#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Creates and starts a container. Answered by `Started` or `Error`.
    Start(Box<ContainerPlan>),
    /// Signals the first process of a container, or all of its processes. Answered by `Done`.
    Kill { id: String, signal: i32, all: bool },
    /// Runs one more process. With a terminal the answer `Executing` carries its master end;
    /// otherwise the request carries stdin, stdout and stderr. `ExecExit` follows on the same
    /// connection.
    Exec {
        id: String,
        process: Box<ProcessPlan>,
        /// Kill the process when the connection goes away.
        kill_on_close: bool,
    },
    /// Joins the container's output: the request carries one descriptor each for stdout and
    /// stderr; `Attached` carries the stdin (or terminal) when asked for and present.
    Attach {
        id: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Sets the size of a container's terminal.
    Resize { id: String, width: u16, height: u16 },
    /// Opens the log file anew, after rotation.
    ReopenLog { id: String },
    /// Forgets a container that has exited.
    Forget { id: String },
    /// Answers `Snapshot`, then every `Exited` as it happens.
    Subscribe,
    /// Kills everything and exits.
    Shutdown,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Error(String),
    Started(Started),
    Executing { pid: i32 },
    ExecExit { code: i32 },
    Attached,
    Snapshot { containers: Vec<ContainerState> },
    Exited { id: String, exit: Exit },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerState {
    pub id: String,
    pub started: Option<Started>,
    pub exit: Option<Exit>,
}

/// Sends one frame. The socket may be blocking or not; a full one fails with `WouldBlock`.
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|length| *length as usize <= MAX_FRAME)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "frame too long"))?;
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Sends bytes with descriptors beside the first of them; returns how many bytes went.
pub fn send_with_fds(socket: &impl AsRawFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage] = if fds.is_empty() { &[] } else { &rights };
    sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map_err(io::Error::from)
}

/// Receives bytes and the descriptors beside them.
pub fn receive_with_fds(
    socket: &impl AsRawFd,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .map_err(io::Error::from)?;
    let mut fds = Vec::new();
    if let Ok(control) = message.cmsgs() {
        for item in control {
            if let ControlMessageOwned::ScmRights(numbers) = item {
                fds.extend(numbers.into_iter().map(sys::take_fd));
            }
        }
    }
    Ok((message.bytes, fds))
}

/// A short name for a path that may be longer than a socket address can hold. Valid while the
/// returned folder is open.
pub fn short_socket_path(dir: &Path) -> io::Result<(std::fs::File, std::path::PathBuf)> {
    let folder = std::fs::File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    Ok((folder, path.into()))
}
