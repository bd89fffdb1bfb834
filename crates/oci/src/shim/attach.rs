//! Clients that follow a container's output as it appears.

use std::io;
use std::os::fd::OwnedFd;

use super::log::Stream;

/// Bytes kept for a client that does not read. Beyond that the container's output waits, as it
/// would with a terminal of its own.
const MAX_PENDING: usize = 256 << 10;

/// Bytes kept of each output for the first client; the newest ones.
const MAX_UNSEEN: usize = 64 << 10;

/// What a container wrote before the client came that it waits for (`stdin_once`).
///
/// `kubectl run -it` attaches when the container runs already. By then a prompt, or the complaint
/// of a program that ends at once, may have been written; with this it is seen all the same.
#[derive(Default)]
pub struct Unseen {
    outputs: [Vec<u8>; 2],
}

impl Unseen {
    /// Keeps output for the first client.
    pub fn keep(&mut self, stream: Stream, bytes: &[u8]) {
        let output = &mut self.outputs[stream as usize];
        output.extend_from_slice(bytes);
        output.drain(..output.len().saturating_sub(MAX_UNSEEN));
    }

    /// Hands everything to that client.
    pub fn show(self, attacher: &mut Attacher) {
        let [stdout, stderr] = self.outputs;
        attacher.output(Stream::Stdout, &stdout);
        attacher.output(Stream::Stderr, &stderr);
    }
}

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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_first_client_sees_the_newest_output_from_before_it_came() {
        let mut unseen = Unseen::default();
        unseen.keep(Stream::Stderr, &[b'x'; MAX_UNSEEN]);
        unseen.keep(Stream::Stderr, b"end");
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let mut attacher = Attacher::new(None, Some(writer));
        unseen.show(&mut attacher);
        attacher.end(Stream::Stderr);
        let mut seen = String::new();
        std::fs::File::from(reader)
            .read_to_string(&mut seen)
            .unwrap();
        assert_eq!(seen.len(), MAX_UNSEEN);
        assert!(seen.ends_with("xend"));
    }
}
