//! One connection to the shim: a request comes in, replies go out, without ever blocking.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::proto::{self, MAX_FDS, MAX_FRAME, Reply, Request, receive_with_fds, send_with_fds};

/// A runtime's connection.
pub struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// Wants every exit from now on.
    pub subscribed: bool,
    /// A process to kill when the connection goes away.
    pub kill_on_close: Option<i32>,
    /// To be closed once the current step is done.
    pub finished: bool,
}

impl Connection {
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            received: Vec::new(),
            fds: Vec::new(),
            subscribed: false,
            kill_on_close: None,
            finished: false,
        })
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Reads what is there. A complete request comes back with its descriptors; an error means
    /// that the connection is over.
    pub fn receive(&mut self) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
        let mut buffer = [0; 16 << 10];
        loop {
            match receive_with_fds(&self.stream, &mut buffer) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((length, fds)) => {
                    self.received.extend_from_slice(&buffer[..length]);
                    self.fds.extend(fds);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            if self.received.len() > MAX_FRAME + 4 || self.fds.len() > MAX_FDS {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        let Some(length) = self.received.first_chunk::<4>() else {
            return Ok(None);
        };
        let end = 4 + u32::from_be_bytes(*length) as usize;
        if end > MAX_FRAME + 4 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if self.received.len() < end {
            return Ok(None);
        }
        let request = serde_json::from_slice(&self.received[4..end])?;
        self.received.drain(..end);
        Ok(Some((request, std::mem::take(&mut self.fds))))
    }

    /// Sends a reply. A reader that lets its socket fill up loses the connection.
    pub fn reply(&mut self, reply: &Reply) {
        self.reply_with(reply, None);
    }

    /// Sends a reply with a descriptor beside it.
    pub fn reply_with(&mut self, reply: &Reply, fd: Option<&OwnedFd>) {
        let sent = proto::encode(reply).and_then(|frame| {
            let numbers: Vec<i32> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
            let sent = send_with_fds(&self.stream, &frame, &numbers)?;
            self.stream.write_all(&frame[sent..])
        });
        if sent.is_err() {
            self.finished = true;
        }
    }
}
