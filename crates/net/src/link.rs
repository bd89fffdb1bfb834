//! Network interfaces, addresses and routes by rtnetlink: only the few requests that are needed here.

use std::net::Ipv4Addr;

use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use crate::error::{Error, Result};
use crate::netlink::{Socket, Writer, attribute, attributes, text, u32_at};

/// Longest interface name the kernel accepts, in bytes.
pub const MAX_NAME: usize = 15;

/// How long an interface may take until packets pass, and how often it is looked at meanwhile.
const CARRIER_LIMIT: Duration = Duration::from_secs(5);
const CARRIER_PAUSE: Duration = Duration::from_millis(1);

const VETH_INFO_PEER: u16 = 1;
const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const RTNH_F_ONLINK: u32 = 4;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const IF_OPER_UP: u8 = 6;
const AF_INET: u8 = libc::AF_INET as u8;
const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;

/// A link-layer address.
pub type Mac = [u8; 6];

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The interface's number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its driver as rtnetlink names it: `bridge`, `veth`, …; empty for hardware and `lo`.
    pub kind: String,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether packets pass: up, with a carrier that the kernel has taken note of.
    pub running: bool,
    /// Number of the bridge it is a port of; 0 for none.
    pub master: u32,
    /// Its link-layer address, where it has one of six bytes.
    pub mac: Option<Mac>,
}

/// An IPv4 address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The interface's number.
    pub index: u32,
    /// The address with its prefix length.
    pub net: Ipv4Net,
}

/// An IPv4 route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to; 0.0.0.0/0 is the default route.
    pub destination: Ipv4Net,
    /// Next hop; None when the destination is directly on the link.
    pub gateway: Option<Ipv4Addr>,
    /// The interface's number.
    pub index: u32,
    /// The source address the kernel chooses for it.
    pub source: Option<Ipv4Addr>,
    /// Lower is better.
    pub metric: u32,
}

/// What to make a pair of virtual interfaces of.
#[derive(Debug, Clone)]
pub struct Veth<'a> {
    /// Name of this end.
    pub name: &'a str,
    /// Number of the bridge this end becomes a port of.
    pub master: u32,
    /// Name of the other end.
    pub peer: &'a str,
    /// Link-layer address of the other end.
    pub peer_mac: Mac,
    /// The other end's network namespace, open as a file.
    pub peer_netns: i32,
    /// Largest packet of both ends, in bytes.
    pub mtu: u32,
}

/// A rtnetlink connection into the network namespace of the thread that opened it.
pub struct Links {
    socket: Socket,
}

impl Links {
    /// Opens the connection.
    pub fn open() -> Result<Self> {
        Ok(Links {
            socket: Socket::open(libc::NETLINK_ROUTE as isize)?,
        })
    }

    /// All interfaces.
    pub fn list(&mut self) -> Result<Vec<Link>> {
        let mut found = Vec::new();
        let body = |w: &mut Writer| {
            w.raw(&ifinfo(0, 0, 0, 0));
            w.ne32(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        };
        self.socket.dump(
            "list network interfaces",
            libc::RTM_GETLINK,
            body,
            |kind, payload| {
                if kind == libc::RTM_NEWLINK {
                    found.extend(parse_link(payload));
                }
            },
        )?;
        Ok(found)
    }

    /// The interface of that name.
    pub fn find(&mut self, name: &str) -> Result<Option<Link>> {
        check_name(name)?;
        let action = format!("look for the network interface {name}");
        let found = self.socket.get(&action, libc::RTM_GETLINK, |w| {
            w.raw(&ifinfo(0, 0, 0, 0));
            w.string(libc::IFLA_IFNAME, name);
            w.ne32(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        })?;
        match found {
            None => Ok(None),
            Some(payload) => match parse_link(&payload) {
                None => Err(Error::Malformed { action }),
                link => Ok(link),
            },
        }
    }

    /// Waits until packets pass through an interface that was set up: the kernel takes note of a carrier some time after
    /// it appears, and drops what is sent before. Newer kernels do so at once when they are asked about the interface.
    pub fn wait_until_running(&mut self, name: &str) -> Result<()> {
        let give_up = Instant::now() + CARRIER_LIMIT;
        loop {
            let link = self
                .find(name)?
                .ok_or_else(|| Error::NoLink(name.to_string()))?;
            if link.running {
                return Ok(());
            }
            if Instant::now() > give_up {
                return Err(Error::Invalid(format!(
                    "the network interface {name} does not come up"
                )));
            }
            std::thread::sleep(CARRIER_PAUSE);
        }
    }

    /// Makes a bridge without spanning tree; an existing interface of that name is an error (EEXIST).
    pub fn add_bridge(&mut self, name: &str, mac: Mac) -> Result<()> {
        check_name(name)?;
        self.create(&format!("make the bridge {name}"), |w| {
            w.raw(&ifinfo(0, 0, libc::IFF_UP as u32, libc::IFF_UP as u32));
            w.string(libc::IFLA_IFNAME, name);
            w.attr(libc::IFLA_ADDRESS, &mac);
            w.nested(libc::IFLA_LINKINFO, |w| {
                w.string(libc::IFLA_INFO_KIND, "bridge");
                w.nested(libc::IFLA_INFO_DATA, |w| {
                    w.ne32(IFLA_BR_FORWARD_DELAY, 0);
                    w.ne32(IFLA_BR_STP_STATE, 0);
                });
            });
        })
    }

    /// Makes a pair of virtual interfaces: this end up and a port of a bridge, the other down in another namespace.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> Result<()> {
        check_name(veth.name)?;
        check_name(veth.peer)?;
        let up = libc::IFF_UP as u32;
        self.create(
            &format!(
                "make the virtual interfaces {} and {}",
                veth.name, veth.peer
            ),
            |w| {
                w.raw(&ifinfo(0, 0, up, up));
                w.string(libc::IFLA_IFNAME, veth.name);
                w.ne32(libc::IFLA_MTU, veth.mtu);
                w.ne32(libc::IFLA_MASTER, veth.master);
                w.nested(libc::IFLA_LINKINFO, |w| {
                    w.string(libc::IFLA_INFO_KIND, "veth");
                    w.nested(libc::IFLA_INFO_DATA, |w| {
                        w.nested(VETH_INFO_PEER, |w| {
                            // Up comes later: the kernel cannot open an end whose other end is still being made.
                            w.raw(&ifinfo(0, 0, 0, 0));
                            w.string(libc::IFLA_IFNAME, veth.peer);
                            w.ne32(libc::IFLA_MTU, veth.mtu);
                            w.attr(libc::IFLA_ADDRESS, &veth.peer_mac);
                            w.ne32(libc::IFLA_NET_NS_FD, veth.peer_netns as u32);
                        });
                    });
                });
            },
        )
    }

    /// Lets a bridge send packets back out of the port they came in by.
    pub fn set_hairpin(&mut self, port: u32, on: bool) -> Result<()> {
        self.socket.request(
            &format!("set hairpin of bridge port {port}"),
            libc::RTM_SETLINK,
            0,
            |w| {
                w.raw(&ifinfo(AF_BRIDGE, port, 0, 0));
                w.nested(libc::IFLA_PROTINFO, |w| {
                    w.attr(IFLA_BRPORT_MODE, &[u8::from(on)])
                });
            },
        )
    }

    /// Sets an interface up or down.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<()> {
        let flags = if up { libc::IFF_UP as u32 } else { 0 };
        self.socket.request(
            &format!("set interface {index} up"),
            libc::RTM_NEWLINK,
            0,
            |w| {
                w.raw(&ifinfo(0, index, flags, libc::IFF_UP as u32));
            },
        )
    }

    /// Removes an interface (and the other end of a pair). Nothing happens when it is gone already.
    pub fn delete(&mut self, index: u32) -> Result<()> {
        let deleted = self.socket.request(
            &format!("remove interface {index}"),
            libc::RTM_DELLINK,
            0,
            |w| {
                w.raw(&ifinfo(0, index, 0, 0));
            },
        );
        ignore(deleted, libc::ENODEV)
    }

    /// Gives an interface an address; it may have it already.
    pub fn add_address(&mut self, index: u32, address: Ipv4Net) -> Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        self.socket.request(
            &format!("add the address {address}"),
            libc::RTM_NEWADDR,
            flags,
            |w| {
                w.raw(&ifaddr(index, address));
                w.attr(libc::IFA_LOCAL, &address.addr().octets());
                w.attr(libc::IFA_ADDRESS, &address.addr().octets());
                if address.prefix_len() < 31 {
                    w.attr(libc::IFA_BROADCAST, &address.broadcast().octets());
                }
            },
        )
    }

    /// Takes an address from an interface. Nothing happens when it is gone already.
    pub fn delete_address(&mut self, index: u32, address: Ipv4Net) -> Result<()> {
        let deleted = self.socket.request(
            &format!("remove the address {address}"),
            libc::RTM_DELADDR,
            0,
            |w| {
                w.raw(&ifaddr(index, address));
                w.attr(libc::IFA_LOCAL, &address.addr().octets());
            },
        );
        ignore(deleted, libc::EADDRNOTAVAIL)
    }

    /// All IPv4 addresses.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let mut found = Vec::new();
        let body = |w: &mut Writer| w.raw(&[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
        self.socket.dump(
            "list addresses",
            libc::RTM_GETADDR,
            body,
            |kind, payload| {
                if kind == libc::RTM_NEWADDR && payload.first() == Some(&AF_INET) {
                    found.extend(parse_address(payload));
                }
            },
        )?;
        Ok(found)
    }

    /// Sets a route of the main table, replacing one with the same destination and metric.
    pub fn set_route(&mut self, route: &Route) -> Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let action = format!("add a route to {}", route.destination);
        self.socket
            .request(&action, libc::RTM_NEWROUTE, flags, |w| {
                write_route(w, route)
            })
    }

    /// Removes a route. Nothing happens when it is gone already.
    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        let action = format!("remove the route to {}", route.destination);
        ignore(
            self.socket
                .request(&action, libc::RTM_DELROUTE, 0, |w| write_route(w, route)),
            libc::ESRCH,
        )
    }

    /// The IPv4 routes of the main table.
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        let mut found = Vec::new();
        let body = |w: &mut Writer| w.raw(&[AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        self.socket
            .dump("list routes", libc::RTM_GETROUTE, body, |kind, payload| {
                if kind == libc::RTM_NEWROUTE && payload.first() == Some(&AF_INET) {
                    found.extend(parse_route(payload));
                }
            })?;
        Ok(found)
    }

    fn create(&mut self, action: &str, body: impl FnOnce(&mut Writer)) -> Result<()> {
        self.socket.request(
            action,
            libc::RTM_NEWLINK,
            libc::NLM_F_CREATE | libc::NLM_F_EXCL,
            body,
        )
    }
}

fn check_name(name: &str) -> Result<()> {
    let valid = !name.is_empty()
        && name.len() <= MAX_NAME
        && !matches!(name, "." | "..")
        && !name
            .bytes()
            .any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace());
    if valid {
        Ok(())
    } else {
        Err(Error::Invalid(format!(
            "{name:?} is no valid interface name"
        )))
    }
}

fn ignore(result: Result<()>, errno: i32) -> Result<()> {
    match result {
        Err(e) if e.errno() == Some(errno) => Ok(()),
        other => other,
    }
}

/// `struct ifinfomsg`.
fn ifinfo(family: u8, index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[0] = family;
    raw[4..8].copy_from_slice(&index.to_ne_bytes());
    raw[8..12].copy_from_slice(&flags.to_ne_bytes());
    raw[12..16].copy_from_slice(&change.to_ne_bytes());
    raw
}

/// `struct ifaddrmsg`.
fn ifaddr(index: u32, address: Ipv4Net) -> [u8; 8] {
    let mut raw = [
        AF_INET,
        address.prefix_len(),
        0,
        libc::RT_SCOPE_UNIVERSE,
        0,
        0,
        0,
        0,
    ];
    raw[4..8].copy_from_slice(&index.to_ne_bytes());
    raw
}

fn write_route(w: &mut Writer, route: &Route) {
    let scope = if route.gateway.is_some() {
        libc::RT_SCOPE_UNIVERSE
    } else {
        libc::RT_SCOPE_LINK
    };
    // `struct rtmsg`; ONLINK because the next hop of a pod lies outside its own /32.
    let mut raw = [0u8; 12];
    raw[0] = AF_INET;
    raw[1] = route.destination.prefix_len();
    raw[4] = libc::RT_TABLE_MAIN;
    raw[5] = libc::RTPROT_STATIC;
    raw[6] = scope;
    raw[7] = libc::RTN_UNICAST;
    if route.gateway.is_some() {
        raw[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    w.raw(&raw);
    w.attr(libc::RTA_DST, &route.destination.network().octets());
    w.ne32(libc::RTA_OIF, route.index);
    if let Some(gateway) = route.gateway {
        w.attr(libc::RTA_GATEWAY, &gateway.octets());
    }
    if let Some(source) = route.source {
        w.attr(libc::RTA_PREFSRC, &source.octets());
    }
    if route.metric != 0 {
        w.ne32(libc::RTA_PRIORITY, route.metric);
    }
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let rest = payload.get(16..)?;
    let number = |kind| {
        attribute(rest, kind)
            .and_then(|v| u32_at(v, 0))
            .unwrap_or(0)
    };
    let info = attribute(rest, libc::IFLA_LINKINFO).unwrap_or_default();
    Some(Link {
        index: u32_at(payload, 4)?,
        name: attribute(rest, libc::IFLA_IFNAME).map(text)?,
        kind: attribute(info, libc::IFLA_INFO_KIND)
            .map(text)
            .unwrap_or_default(),
        mtu: number(libc::IFLA_MTU),
        up: u32_at(payload, 8)? & libc::IFF_UP as u32 != 0,
        running: attribute(rest, libc::IFLA_OPERSTATE) == Some(&[IF_OPER_UP]),
        master: number(libc::IFLA_MASTER),
        mac: attribute(rest, libc::IFLA_ADDRESS).and_then(|v| v.try_into().ok()),
    })
}

fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?))
}

fn parse_address(payload: &[u8]) -> Option<Address> {
    let rest = payload.get(8..)?;
    // On point-to-point links ADDRESS is the other side's; LOCAL is always ours where present.
    let own = attribute(rest, libc::IFA_LOCAL)
        .or_else(|| attribute(rest, libc::IFA_ADDRESS))
        .and_then(ipv4)?;
    Some(Address {
        index: u32_at(payload, 4)?,
        net: Ipv4Net::new(own, *payload.get(1)?).ok()?,
    })
}

fn parse_route(payload: &[u8]) -> Option<Route> {
    let rest = payload.get(12..)?;
    if payload[4] != libc::RT_TABLE_MAIN || payload[7] != libc::RTN_UNICAST {
        return None;
    }
    let mut route = Route {
        destination: Ipv4Net::new(Ipv4Addr::UNSPECIFIED, payload[1]).ok()?,
        gateway: None,
        index: 0,
        source: None,
        metric: 0,
    };
    for (kind, value) in attributes(rest) {
        match kind {
            libc::RTA_DST => route.destination = Ipv4Net::new(ipv4(value)?, payload[1]).ok()?,
            libc::RTA_GATEWAY => route.gateway = ipv4(value),
            libc::RTA_OIF => route.index = u32_at(value, 0)?,
            libc::RTA_PREFSRC => route.source = ipv4(value),
            libc::RTA_PRIORITY => route.metric = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(route)
}
