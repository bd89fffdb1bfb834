//! Connection tracking: forgetting connections whose translation leads nowhere any more.

use std::net::Ipv4Addr;

use crate::error::Result;
use crate::netlink::{Socket, Writer, attribute};

const MESSAGE_NEW: u16 = 0;
const MESSAGE_GET: u16 = 1;
const MESSAGE_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

/// One connection as it began and as its answers look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Transport protocol.
    pub protocol: u8,
    /// Who began it.
    pub source: (Ipv4Addr, u16),
    /// Whom it was meant for, before translation.
    pub destination: (Ipv4Addr, u16),
    /// Who answers: the destination after translation.
    pub responder: (Ipv4Addr, u16),
    /// What the kernel names it by, kept as it was received.
    raw_original: Vec<u8>,
    raw_id: Vec<u8>,
    raw_zone: Option<Vec<u8>>,
}

/// A connection to connection tracking in the network namespace of the thread that opened it.
pub struct Conntrack {
    socket: Socket,
}

fn message_type(message: u16) -> u16 {
    ((libc::NFNL_SUBSYS_CTNETLINK as u16) << 8) | message
}

const HEADER: [u8; 4] = [libc::AF_INET as u8, libc::NFNETLINK_V0 as u8, 0, 0];

impl Conntrack {
    /// Opens the connection.
    pub fn open() -> Result<Self> {
        Ok(Conntrack {
            socket: Socket::open(libc::NETLINK_NETFILTER as isize)?,
        })
    }

    /// The IPv4 flows for which `wanted` holds.
    pub fn flows(&mut self, mut wanted: impl FnMut(&Flow) -> bool) -> Result<Vec<Flow>> {
        let mut found = Vec::new();
        let body = |w: &mut Writer| w.raw(&HEADER);
        self.socket.dump(
            "list tracked connections",
            message_type(MESSAGE_GET),
            body,
            |kind, payload| {
                if kind == message_type(MESSAGE_NEW) {
                    found.extend(payload.get(4..).and_then(parse_flow).filter(|f| wanted(f)));
                }
            },
        )?;
        Ok(found)
    }

    /// Forgets a flow, so that its next packet begins a new one. Does nothing when it has ended meanwhile.
    pub fn forget(&mut self, flow: &Flow) -> Result<()> {
        let deleted = self.socket.request(
            "forget a tracked connection",
            message_type(MESSAGE_DELETE),
            0,
            |w| {
                w.raw(&HEADER);
                w.nested(CTA_TUPLE_ORIG, |w| w.raw(&flow.raw_original));
                w.attr(CTA_ID, &flow.raw_id);
                if let Some(zone) = &flow.raw_zone {
                    w.attr(CTA_ZONE, zone);
                }
            },
        );
        match deleted {
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Forgets every flow for which `wanted` holds; returns how many.
    pub fn forget_where(&mut self, wanted: impl FnMut(&Flow) -> bool) -> Result<usize> {
        let flows = self.flows(wanted)?;
        for flow in &flows {
            self.forget(flow)?;
        }
        Ok(flows.len())
    }
}

struct Tuple {
    protocol: u8,
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
}

fn parse_tuple(tuple: &[u8]) -> Option<Tuple> {
    let addresses = attribute(tuple, CTA_TUPLE_IP)?;
    let proto = attribute(tuple, CTA_TUPLE_PROTO)?;
    let address = |kind| {
        Some(Ipv4Addr::from(
            <[u8; 4]>::try_from(attribute(addresses, kind)?).ok()?,
        ))
    };
    // Protocols without ports have none here.
    let port = |kind| {
        attribute(proto, kind)
            .and_then(|v| Some(u16::from_be_bytes(v.try_into().ok()?)))
            .unwrap_or(0)
    };
    Some(Tuple {
        protocol: *attribute(proto, 1)?.first()?,
        source: (address(1)?, port(2)),
        destination: (address(2)?, port(3)),
    })
}

fn parse_flow(payload: &[u8]) -> Option<Flow> {
    let raw_original = attribute(payload, CTA_TUPLE_ORIG)?;
    let original = parse_tuple(raw_original)?;
    let reply = parse_tuple(attribute(payload, CTA_TUPLE_REPLY)?)?;
    Some(Flow {
        protocol: original.protocol,
        source: original.source,
        destination: original.destination,
        responder: reply.source,
        raw_original: raw_original.to_vec(),
        raw_id: attribute(payload, CTA_ID)?.to_vec(),
        raw_zone: attribute(payload, CTA_ZONE).map(<[u8]>::to_vec),
    })
}
