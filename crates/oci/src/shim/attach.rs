//! Clients that follow a container's output as it appears.

use std::io;
use std::os::fd::OwnedFd;

use super::log::Stream;

/// Bytes kept for a client that does not read. Beyond that the container's output waits, as it
/// would with a terminal of its own.
const MAX_PENDING: usize = 256 << 10;

/// One client, with a descriptor for each output it asked for.
pub struct Attacher {
    outputs: [Option<Output>; 2],
}

struct Output {
    fd: OwnedFd,
    pending: Vec<u8>,
    ended: bool,
}

impl Attacher {
    pub fn new(stdout: Option<OwnedFd>, stderr: Option<OwnedFd>) -> Self {
        let output = |fd: Option<OwnedFd>| {
            fd.filter(|fd| set_nonblocking(fd).is_ok())
                .map(|fd| Output {
                    fd,
                    pending: Vec::new(),
                    ended: false,
                })
        };
        Self {
            outputs: [output(stdout), output(stderr)],
        }
    }

    /// Hands output on, as far as the client takes it.
    pub fn output(&mut self, stream: Stream, bytes: &[u8]) {
        if let Some(output) = &mut self.outputs[stream as usize] {
            output.pending.extend_from_slice(bytes);
        }
        self.flush(stream);
    }

    /// No more output will come.
    pub fn end(&mut self, stream: Stream) {
        if let Some(output) = &mut self.outputs[stream as usize] {
            output.ended = true;
        }
        self.flush(stream);
    }

    /// Writes what is pending; a client that went away is dropped.
    pub fn flush(&mut self, stream: Stream) {
        let slot = &mut self.outputs[stream as usize];
        let Some(output) = slot else { return };
        while !output.pending.is_empty() {
            match nix::unistd::write(&output.fd, &output.pending) {
                Ok(written) => {
                    output.pending.drain(..written);
                }
                Err(nix::Error::EAGAIN) => return,
                Err(nix::Error::EINTR) => {}
                Err(_) => {
                    *slot = None;
                    return;
                }
            }
        }
        if output.ended {
            *slot = None;
        }
    }

    /// The descriptor to wait on until the client reads again.
    pub fn blocked(&self, stream: Stream) -> Option<&OwnedFd> {
        self.outputs[stream as usize]
            .as_ref()
            .filter(|output| !output.pending.is_empty())
            .map(|output| &output.fd)
    }

    /// Whether the container's output must wait for this client.
    pub fn full(&self, stream: Stream) -> bool {
        self.outputs[stream as usize]
            .as_ref()
            .is_some_and(|output| output.pending.len() >= MAX_PENDING)
    }

    pub fn is_gone(&self) -> bool {
        self.outputs.iter().all(Option::is_none)
    }
}

/// Makes reads and writes return instead of waiting.
pub fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(())
}
