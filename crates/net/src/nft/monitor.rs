//! Hearing of changes that others make to nftables.

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result};
use crate::netlink::{Socket, attribute, messages, text};
use crate::nft::message_type;

/// What the kernel may hold for us before it gives up, in bytes.
const BUFFER: usize = 1 << 20;
const ACTION: &str = "listen to nftables";

/// Something that was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A table, or something in it, was removed.
    Removed {
        /// The table.
        table: String,
        /// Who did it, as [`super::Connection::port`] numbers it.
        port: u32,
    },
    /// A chain was made or given another policy.
    Chain {
        /// Its table.
        table: String,
        /// Its name.
        chain: String,
        /// Who did it.
        port: u32,
    },
    /// More happened than could be held: look for yourself.
    Lost,
}

/// A listener in the network namespace of the thread that opened it.
pub struct Monitor {
    socket: AsyncFd<Socket>,
}

impl Monitor {
    /// Begins to listen. Must be called inside a tokio runtime.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::open(libc::NETLINK_NETFILTER as isize)?;
        socket.join(libc::NFNLGRP_NFTABLES as u32, BUFFER)?;
        // SAFETY: the descriptor is owned by the socket, which neither closes nor replaces it while it lives, and which
        // lives inside the registration until that ends.
        #[allow(unsafe_code)]
        let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        let (_, source) = match registered {
            Ok(socket) => return Ok(Monitor { socket }),
            Err(error) => error.into_parts(),
        };
        Err(Error::io(ACTION, source))
    }

    /// Waits until something happens, and returns what did.
    pub async fn next(&mut self) -> Result<Vec<Event>> {
        loop {
            let mut ready = self
                .socket
                .readable_mut()
                .await
                .map_err(|e| Error::io(ACTION, e))?;
            let events = read(ready.get_inner_mut())?;
            ready.clear_ready();
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

/// What happened since the last time, without waiting.
fn read(socket: &mut Socket) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    loop {
        match socket.receive(ACTION, false) {
            Ok(Some(datagram)) => {
                events.extend(messages(datagram).filter_map(|m| parse(m.kind, m.port, m.payload)));
            }
            Ok(None) => break,
            Err(e) if e.errno() == Some(libc::ENOBUFS) => events.push(Event::Lost),
            Err(e) => return Err(e),
        }
    }
    events.dedup();
    Ok(events)
}

fn parse(kind: u16, port: u32, payload: &[u8]) -> Option<Event> {
    let removals = [
        libc::NFT_MSG_DELTABLE,
        libc::NFT_MSG_DELCHAIN,
        libc::NFT_MSG_DELRULE,
        libc::NFT_MSG_DELSET,
    ];
    let rest = payload.get(4..)?;
    let table = || attribute(rest, 1).map(text);
    if removals.iter().any(|r| message_type(*r) == kind) {
        return Some(Event::Removed {
            table: table()?,
            port,
        });
    }
    if kind == message_type(libc::NFT_MSG_NEWCHAIN) {
        return Some(Event::Chain {
            table: table()?,
            chain: attribute(rest, 3).map(text)?,
            port,
        });
    }
    None
}
