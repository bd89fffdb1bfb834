//! Netlink messages and sockets, shared by links, nftables and connection tracking.
//!
//! Synchronous on purpose: the kernel handles these requests inside `send`, so the answer is already queued when the
//! call returns, and a socket stays in the network namespace of the thread that opened it.
//!
//! Invariant: every message and attribute begins on a multiple of four bytes from the start of the buffer.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use netlink_sys::{Socket as RawSocket, SocketAddr};

use crate::error::{Error, Result};

/// Length of `struct nlmsghdr`, in bytes.
const HEADER: usize = 16;
/// Receive buffer, in bytes; the kernel never makes dump messages longer than 32 KiB.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Marks an attribute that holds attributes.
const NESTED: u16 = 1 << 15;
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// Writes messages, one after another, into one buffer.
#[derive(Default)]
pub(crate) struct Writer {
    pub(crate) buf: Vec<u8>,
}

impl Writer {
    /// Appends one message whose payload `body` writes.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        seq: u32,
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.buf.len();
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        self.buf.extend_from_slice(&seq.to_ne_bytes());
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        body(self);
        let length = (self.buf.len() - start) as u32;
        self.buf[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
        self.pad();
    }

    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) {
        debug_assert!(
            value.len() + 4 <= usize::from(u16::MAX),
            "attribute {kind} too long"
        );
        self.buf
            .extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.pad();
    }

    /// A string with its terminating zero.
    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        self.buf
            .extend_from_slice(&((value.len() + 5) as u16).to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value.as_bytes());
        self.buf.push(0);
        self.pad();
    }

    /// A number in network order, as netfilter wants them.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// A number in host order, as rtnetlink wants them.
    pub(crate) fn ne32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    pub(crate) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.buf.len();
        self.buf.extend_from_slice(&0u16.to_ne_bytes());
        self.buf.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(self);
        let length = self.buf.len() - start;
        debug_assert!(
            length <= usize::from(u16::MAX),
            "nested attribute {kind} too long: {length}"
        );
        self.buf[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
    }

    fn pad(&mut self) {
        while !self.buf.len().is_multiple_of(4) {
            self.buf.push(0);
        }
    }
}

/// One received message.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) seq: u32,
    /// Whose request it answers or tells of.
    pub(crate) port: u32,
    pub(crate) flags: u16,
    pub(crate) payload: &'a [u8],
}

/// The messages of one datagram; stops at the first malformed one.
pub(crate) fn messages(mut buf: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(buf, 0)? as usize;
        if length < HEADER || length > buf.len() {
            return None;
        }
        let message = Message {
            kind: u16_at(buf, 4)?,
            flags: u16_at(buf, 6)?,
            seq: u32_at(buf, 8)?,
            port: u32_at(buf, 12)?,
            payload: &buf[HEADER..length],
        };
        buf = &buf[length.next_multiple_of(4).min(buf.len())..];
        Some(message)
    })
}

/// The attributes in `buf`: (type without flags, value).
pub(crate) fn attributes(mut buf: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(buf, 0)?);
        if length < 4 || length > buf.len() {
            return None;
        }
        let item = (u16_at(buf, 2)? & ATTRIBUTE_TYPE_MASK, &buf[4..length]);
        buf = &buf[length.next_multiple_of(4).min(buf.len())..];
        Some(item)
    })
}

/// The value of the first attribute of that type.
pub(crate) fn attribute(buf: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(buf).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

pub(crate) fn u16_at(buf: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(buf.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(buf: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(buf.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// What the kernel said about one message: its errno (0 = acknowledged) and its explanation.
pub(crate) struct Answer {
    pub(crate) seq: u32,
    pub(crate) errno: i32,
    pub(crate) detail: Option<String>,
}

impl Answer {
    /// Reads an NLMSG_ERROR; with capped acknowledgements only the header of the request precedes the attributes.
    pub(crate) fn parse(message: &Message<'_>) -> Option<Answer> {
        let errno = -(u32_at(message.payload, 0)? as i32);
        let capped = message.flags & NLM_F_CAPPED != 0;
        let request = if capped {
            HEADER
        } else {
            u32_at(message.payload, 4)? as usize
        };
        let rest = message
            .payload
            .get(4 + request.next_multiple_of(4)..)
            .unwrap_or_default();
        let detail = attribute(rest, NLMSGERR_ATTR_MSG).map(text);
        Some(Answer {
            seq: message.seq,
            errno,
            detail,
        })
    }
}

/// A socket of one netlink protocol, in the namespace of the thread that opened it.
pub(crate) struct Socket {
    raw: RawSocket,
    seq: u32,
    buffer: Vec<u8>,
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.raw.as_raw_fd()
    }
}

impl Socket {
    pub(crate) fn open(protocol: isize) -> Result<Self> {
        let io = |e| Error::io("open a netlink socket", e);
        let mut raw = RawSocket::new(protocol).map_err(io)?;
        raw.bind_auto().map_err(io)?;
        raw.connect(&SocketAddr::new(0, 0)).map_err(io)?;
        raw.set_cap_ack(true).map_err(io)?;
        raw.set_ext_ack(true).map_err(io)?;
        Ok(Socket {
            raw,
            seq: 1,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
        })
    }

    /// The kernel's number for this socket.
    pub(crate) fn port(&self) -> Result<u32> {
        let mut own = SocketAddr::new(0, 0);
        self.raw
            .get_address(&mut own)
            .map_err(|e| Error::io("name a netlink socket", e))?;
        Ok(own.port_number())
    }

    /// Receives what the kernel tells that multicast group from now on, keeping up to `bytes` that are not read yet.
    pub(crate) fn join(&mut self, group: u32, bytes: usize) -> Result<()> {
        use nix::sys::socket::{setsockopt, sockopt};
        setsockopt(&self.raw.as_fd(), sockopt::RcvBufForce, &bytes)
            .map_err(|e| Error::io("enlarge a netlink receive buffer", e))?;
        self.raw
            .add_membership(group)
            .map_err(|e| Error::io("join a netlink group", e))
    }

    /// The next `count` sequence numbers; the first is returned.
    pub(crate) fn take_seq(&mut self, count: u32) -> u32 {
        // Wrapping to small numbers is harmless: nothing is outstanding between calls.
        let first = self.seq;
        self.seq = self.seq.checked_add(count).unwrap_or(1);
        first
    }

    /// Lets one datagram of `bytes` through the socket's send buffer limit.
    pub(crate) fn reserve_send_buffer(&self, bytes: usize) -> Result<()> {
        use nix::sys::socket::{getsockopt, setsockopt, sockopt};
        let io = |e: nix::Error| Error::io("enlarge a netlink send buffer", e);
        // The kernel charges whole pages and its own bookkeeping to the buffer, and doubles what it is told.
        if getsockopt(&self.raw.as_fd(), sockopt::SndBuf).map_err(io)? < bytes * 2 {
            setsockopt(&self.raw.as_fd(), sockopt::SndBufForce, &(bytes * 2)).map_err(io)?;
        }
        Ok(())
    }

    pub(crate) fn send(&self, action: &str, bytes: &[u8]) -> Result<()> {
        self.raw.send(bytes, 0).map_err(|e| Error::io(action, e))?;
        Ok(())
    }

    /// The next datagram, or None when the kernel has queued no more (`wait` false).
    pub(crate) fn receive(&mut self, action: &str, wait: bool) -> Result<Option<&[u8]>> {
        self.buffer.clear();
        let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
        loop {
            match self.raw.recv(&mut self.buffer, flags) {
                Ok(_) => return Ok(Some(&self.buffer)),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if !wait && e.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(Error::io(action, e)),
            }
        }
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn request(
        &mut self,
        action: &str,
        kind: u16,
        flags: i32,
        body: impl FnOnce(&mut Writer),
    ) -> Result<()> {
        let seq = self.take_seq(1);
        let mut writer = Writer::default();
        writer.message(
            kind,
            (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16,
            seq,
            body,
        );
        self.send(action, &writer.buf)?;
        loop {
            let Some(datagram) = self.receive(action, true)? else {
                continue;
            };
            for message in messages(datagram) {
                if message.seq != seq || i32::from(message.kind) != libc::NLMSG_ERROR {
                    continue;
                }
                let answer = Answer::parse(&message).ok_or_else(|| Error::Malformed {
                    action: action.into(),
                })?;
                return kernel_result(action, answer);
            }
        }
    }

    /// Asks for one thing and returns the payload of the answer; None when there is no such thing (ENODEV, ENOENT).
    pub(crate) fn get(
        &mut self,
        action: &str,
        kind: u16,
        body: impl FnOnce(&mut Writer),
    ) -> Result<Option<Vec<u8>>> {
        let seq = self.take_seq(1);
        let mut writer = Writer::default();
        writer.message(kind, libc::NLM_F_REQUEST as u16, seq, body);
        self.send(action, &writer.buf)?;
        loop {
            let Some(datagram) = self.receive(action, true)? else {
                continue;
            };
            for message in messages(datagram).filter(|m| m.seq == seq) {
                if i32::from(message.kind) != libc::NLMSG_ERROR {
                    return Ok(Some(message.payload.to_vec()));
                }
                let answer = Answer::parse(&message).ok_or_else(|| Error::Malformed {
                    action: action.into(),
                })?;
                if matches!(answer.errno, libc::ENODEV | libc::ENOENT) {
                    return Ok(None);
                }
                kernel_result(action, answer)?;
            }
        }
    }

    /// Sends one dump request and gives each answer (message type, payload) to `each`. False when what was dumped
    /// changed meanwhile, so that some of it may be missing or come twice.
    pub(crate) fn dump(
        &mut self,
        action: &str,
        kind: u16,
        body: impl FnOnce(&mut Writer),
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<bool> {
        let seq = self.take_seq(1);
        let mut writer = Writer::default();
        writer.message(
            kind,
            (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16,
            seq,
            body,
        );
        self.send(action, &writer.buf)?;
        let mut complete = true;
        loop {
            let Some(datagram) = self.receive(action, true)? else {
                continue;
            };
            for message in messages(datagram).filter(|m| m.seq == seq) {
                complete &= message.flags & NLM_F_DUMP_INTR == 0;
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => return Ok(complete),
                    libc::NLMSG_ERROR => {
                        let answer = Answer::parse(&message).ok_or_else(|| Error::Malformed {
                            action: action.into(),
                        })?;
                        return kernel_result(action, answer).map(|()| complete);
                    }
                    _ => each(message.kind, message.payload),
                }
            }
        }
    }
}

pub(crate) fn kernel_result(action: &str, answer: Answer) -> Result<()> {
    if answer.errno == 0 {
        return Ok(());
    }
    Err(Error::Kernel {
        action: action.into(),
        source: std::io::Error::from_raw_os_error(answer.errno),
        detail: answer.detail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut w = Writer::default();
        w.message(7, 3, 42, |w| {
            w.raw(&[1, 2, 3, 4]);
            w.string(1, "abc");
            w.nested(2, |w| {
                w.be32(1, 0x01020304);
                w.attr(3, &[9]);
            });
        });
        w.message(8, 0, 43, |_| {});
        let all: Vec<_> = messages(&w.buf)
            .map(|m| (m.kind, m.flags, m.seq, m.payload.len()))
            .collect();
        assert_eq!(all, [(7, 3, 42, 4 + 8 + 4 + 8 + 8), (8, 0, 43, 0)]);
        let first = messages(&w.buf)
            .next()
            .map(|m| m.payload.to_vec())
            .unwrap_or_default();
        assert_eq!(attribute(&first[4..], 1).map(text).as_deref(), Some("abc"));
        let nested = attribute(&first[4..], 2).unwrap_or_default();
        assert_eq!(attribute(nested, 1), Some(&[1u8, 2, 3, 4][..]));
        assert_eq!(attribute(nested, 3), Some(&[9u8][..]));
    }

    #[test]
    fn cut_messages_end_the_iteration() {
        let mut w = Writer::default();
        w.message(7, 0, 1, |w| w.string(1, "abc"));
        for cut in 0..w.buf.len() {
            assert_eq!(messages(&w.buf[..cut]).count(), 0);
            let _ = attributes(&w.buf[..cut]).count();
        }
    }
}
