//! A cluster's bridge: the device all pods of the node hang on, and the one that carries the node's own address.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::error::{Error, Result};
use crate::link::{Link, Links, Mac, Route};
use crate::sysctl;

/// First bytes of link-layer addresses derived from IPv4 addresses (locally administered, unicast).
const MAC_PREFIX: [u8; 2] = [0x0a, 0x58];

/// The link-layer address that goes with an IPv4 address. Derived, so that neighbours' caches stay right when an
/// address moves to another pod.
pub fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [MAC_PREFIX[0], MAC_PREFIX[1], a, b, c, d]
}

/// A bridge that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// The interface's name.
    pub name: String,
    /// The interface's number.
    pub index: u32,
    /// Its address, which is the pods' gateway, with the node's pod range.
    pub gateway: Ipv4Net,
}

impl Bridge {
    /// Makes the bridge, or brings an existing one to this state: up, with `gateway` as its only IPv4 address,
    /// forwarding on (for the whole host), packets for 127.0.0.0/8 let through when they were translated.
    pub fn ensure(name: &str, gateway: Ipv4Net) -> Result<Bridge> {
        let mut links = Links::open()?;
        let link = find_or_make(&mut links, name, gateway.addr())?;
        links.set_up(link.index, true)?;
        links.add_address(link.index, gateway)?;
        for other in links.addresses()? {
            if other.index == link.index && other.net != gateway {
                links.delete_address(link.index, other.net)?;
            }
        }
        sysctl::set("net/ipv4/ip_forward", "1")?;
        // Connections from 127.0.0.1 to a node port leave by the bridge after translation, and come back by it.
        sysctl::set(&format!("net/ipv4/conf/{name}/route_localnet"), "1")?;
        // Pods reach each other by the gateway: telling them of a shorter way would bypass translation. Either setting
        // being on would be enough, and the one for all changes nothing for interfaces that have it on themselves.
        for interface in [name, "all"] {
            sysctl::set(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
        }
        sysctl::set(&format!("net/ipv4/conf/{name}/rp_filter"), "1")?;
        Ok(Bridge {
            name: name.to_string(),
            index: link.index,
            gateway,
        })
    }

    /// Routes `destination` (the service range) into the bridge, so that the host chooses the bridge's address as the
    /// source of connections to it; translation takes them to their real destination before they leave.
    pub fn route(&self, destination: Ipv4Net) -> Result<()> {
        Links::open()?.set_route(&Route {
            destination,
            gateway: None,
            index: self.index,
            source: Some(self.gateway.addr()),
            metric: 0,
        })
    }

    /// Removes the bridge of that name with its addresses and routes. Does nothing when there is none.
    pub fn remove(name: &str) -> Result<()> {
        let mut links = Links::open()?;
        match links.find(name)? {
            Some(link) if link.kind == "bridge" => links.delete(link.index),
            _ => Ok(()),
        }
    }
}

fn find_or_make(links: &mut Links, name: &str, gateway: Ipv4Addr) -> Result<Link> {
    if links.find(name)?.is_none() {
        links.add_bridge(name, mac_of(gateway))?;
    }
    match links.find(name)? {
        Some(link) if link.kind == "bridge" => Ok(link),
        Some(_) => Err(Error::Invalid(format!(
            "the network interface {name} exists already and is no bridge"
        ))),
        None => Err(Error::NoLink(name.to_string())),
    }
}
