//! What the host's network looks like: questions asked when a cluster chooses its addresses and ports.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use ipnet::Ipv4Net;

use crate::error::Result;
use crate::link::{Link, Links};

/// MTU where the host has no default route, in bytes.
const FALLBACK_MTU: u32 = 1500;

/// The host's way to the rest of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The interface of the default route.
    pub link: Link,
    /// The address that outgoing connections have.
    pub address: Ipv4Addr,
}

/// The best default route's interface and address; None on a host without one.
pub fn uplink() -> Result<Option<Uplink>> {
    let mut links = Links::open()?;
    let mut defaults: Vec<_> = links
        .routes()?
        .into_iter()
        .filter(|r| r.destination.prefix_len() == 0)
        .collect();
    defaults.sort_by_key(|r| r.metric);
    let Some(route) = defaults.into_iter().next() else {
        return Ok(None);
    };
    let addresses = links.addresses()?;
    let of_link = || {
        addresses
            .iter()
            .find(|a| a.index == route.index)
            .map(|a| a.net.addr())
    };
    let link = links.list()?.into_iter().find(|l| l.index == route.index);
    Ok(link
        .zip(route.source.or_else(of_link))
        .map(|(link, address)| Uplink { link, address }))
}

/// The largest packet that pods can send without fragments, in bytes: that of the default route's interface.
pub fn mtu() -> Result<u32> {
    Ok(uplink()?.map_or(FALLBACK_MTU, |u| u.link.mtu))
}

/// Every IPv4 range that the host has an address in or a route to, but for the default route.
pub fn used_ranges() -> Result<Vec<Ipv4Net>> {
    let mut links = Links::open()?;
    let addresses = links.addresses()?.into_iter().map(|a| a.net.trunc());
    let mut ranges: Vec<_> = addresses.collect();
    ranges.extend(
        links
            .routes()?
            .into_iter()
            .map(|r| r.destination)
            .filter(|d| d.prefix_len() > 0),
    );
    ranges.sort();
    ranges.dedup();
    Ok(ranges)
}

/// Whether two ranges have an address in common.
pub fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(b) || b.contains(a)
}

/// Whether a TCP server could listen on that port now. Another process may still take it before you do.
pub fn tcp_port_free(address: IpAddr, port: u16) -> bool {
    TcpListener::bind(SocketAddr::new(address, port)).is_ok()
}

/// Whether a UDP server could listen on that port now.
pub fn udp_port_free(address: IpAddr, port: u16) -> bool {
    UdpSocket::bind(SocketAddr::new(address, port)).is_ok()
}
