//! A pod's network: one pair of virtual interfaces between its namespace and the bridge.
//!
//! The pod's address is a /32 and its only neighbour is the gateway, so that packets between pods of one node pass
//! through the host's routing, where services and policies apply, and answers come back the same way, whether or not
//! the kernel filters bridged traffic.
//!
//! The pair is named after the sandbox, made in one request and destroyed with its namespace, so that a crash at any
//! moment leaves either nothing or something that the next `setup` or `teardown` of the same sandbox replaces.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;

use ipnet::Ipv4Net;

use crate::bridge::mac_of;
use crate::error::{Error, Result};
use crate::link::{Links, Route, Veth};
use crate::netns;

/// What a pod's network is made of.
#[derive(Debug, Clone)]
pub struct PodNet<'a> {
    /// Name of the bridge to attach to.
    pub bridge: &'a str,
    /// The pod's network namespace.
    pub netns: &'a Path,
    /// Name of the interface inside the pod: `eth0`.
    pub ifname: &'a str,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The bridge's address.
    pub gateway: Ipv4Addr,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// What the host's end of the pair is named after; unique on the host.
    pub sandbox_id: &'a str,
}

/// Name of the host's end of a sandbox's pair.
pub fn host_ifname(sandbox_id: &str) -> String {
    // FNV-1a: the name must be the same in every process and version, and 15 bytes hold no whole id.
    let hash = sandbox_id.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    format!("veth{:011x}", hash & 0xfff_ffff_ffff)
}

/// Connects the pod. What an earlier attempt for the same sandbox left is replaced.
pub fn setup(pod: &PodNet<'_>) -> Result<()> {
    let mut links = Links::open()?;
    let bridge = links
        .find(pod.bridge)?
        .ok_or_else(|| Error::NoLink(pod.bridge.to_string()))?;
    let name = host_ifname(pod.sandbox_id);
    if let Some(old) = links.find(&name)? {
        links.delete(old.index)?;
    }
    let namespace =
        File::open(pod.netns).map_err(|e| Error::io(format!("open {}", pod.netns.display()), e))?;
    links.add_veth(&Veth {
        name: &name,
        master: bridge.index,
        peer: pod.ifname,
        peer_mac: mac_of(pod.address),
        peer_netns: namespace.as_raw_fd(),
        mtu: pod.mtu,
    })?;
    let mut finish = || {
        let port = links
            .find(&name)?
            .ok_or_else(|| Error::NoLink(name.clone()))?;
        // Where bridged traffic is filtered, a pod that reaches itself by a service turns round in the bridge.
        links.set_hairpin(port.index, true)?;
        netns::within(pod.netns, || configure_inside(pod))?;
        links.wait_until_running(&name)?;
        // A bridge has a carrier from its first port on.
        links.wait_until_running(pod.bridge)
    };
    finish().inspect_err(|_| {
        let _ = teardown(pod.sandbox_id);
    })
}

fn configure_inside(pod: &PodNet<'_>) -> Result<()> {
    let mut links = Links::open()?;
    loopback_up(&mut links)?;
    let link = links
        .find(pod.ifname)?
        .ok_or_else(|| Error::NoLink(pod.ifname.to_string()))?;
    links.set_up(link.index, true)?;
    links.add_address(link.index, Ipv4Net::from(pod.address))?;
    let route = |destination, gateway| Route {
        destination,
        gateway,
        index: link.index,
        source: None,
        metric: 0,
    };
    links.set_route(&route(Ipv4Net::from(pod.gateway), None))?;
    links.set_route(&route(Ipv4Net::default(), Some(pod.gateway)))?;
    links.wait_until_running(pod.ifname)
}

/// Sets `lo` up in a namespace that gets no other interface.
pub fn setup_loopback(netns: &Path) -> Result<()> {
    netns::within(netns, || loopback_up(&mut Links::open()?))
}

fn loopback_up(links: &mut Links) -> Result<()> {
    let lo = links
        .find("lo")?
        .ok_or_else(|| Error::NoLink("lo".into()))?;
    links.set_up(lo.index, true)
}

/// Disconnects the sandbox's pod at once, whether or not its namespace still exists. Does nothing when it is gone.
pub fn teardown(sandbox_id: &str) -> Result<()> {
    let mut links = Links::open()?;
    match links.find(&host_ifname(sandbox_id))? {
        Some(link) => links.delete(link.index),
        None => Ok(()),
    }
}
