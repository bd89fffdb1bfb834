//! Pods on a bridge, in network namespaces of their own: real interfaces, real connections.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use net::link::Links;
use net::pod::PodNet;
use net::{Bridge, Error, conntrack::Conntrack, netns};

/// A namespace that plays the host, and others that play pods; all gone at the end.
struct World {
    dir: tempfile::TempDir,
    made: Vec<PathBuf>,
}

impl World {
    fn new() -> Self {
        let mut world = World {
            dir: tempfile::tempdir().unwrap(),
            made: Vec::new(),
        };
        world.namespace("host");
        world
    }

    fn namespace(&mut self, name: &str) -> PathBuf {
        let path = self.path(name);
        netns::create(&path).unwrap();
        self.made.push(path.clone());
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn on_host<T: Send>(&self, work: impl FnOnce() -> Result<T, Error> + Send) -> T {
        netns::within(&self.path("host"), work).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for path in &self.made {
            let _ = netns::remove(path);
        }
    }
}

fn gateway() -> Ipv4Net {
    "10.42.0.1/24".parse().unwrap()
}

fn pod<'a>(netns: &'a Path, id: &'a str, last: u8) -> PodNet<'a> {
    PodNet {
        bridge: "styr0",
        netns,
        ifname: "eth0",
        address: Ipv4Addr::new(10, 42, 0, last),
        gateway: gateway().addr(),
        mtu: 1400,
        sandbox_id: id,
    }
}

fn listen(netns: &Path, port: u16) -> TcpListener {
    netns::within(netns, || {
        TcpListener::bind(("0.0.0.0", port)).map_err(|e| invalid(&e))
    })
    .unwrap()
}

fn invalid(e: &std::io::Error) -> Error {
    Error::Invalid(e.to_string())
}

/// Who the server at `to` sees when something in `from` connects to it.
fn peer_seen(from: &Path, listener: &TcpListener, to: SocketAddr) -> Ipv4Addr {
    let connect =
        || TcpStream::connect_timeout(&to, Duration::from_secs(2)).map_err(|e| invalid(&e));
    let mut stream = netns::within(from, connect).unwrap();
    let (mut accepted, peer) = listener.accept().unwrap();
    stream.write_all(b"hello").unwrap();
    let mut buf = [0; 5];
    accepted.read_exact(&mut buf).unwrap();
    match peer.ip() {
        std::net::IpAddr::V4(ip) => ip,
        other => panic!("{other}"),
    }
}

#[test]
fn pods_reach_each_other_and_the_host() {
    let mut world = World::new();
    let (a, b) = (world.namespace("a"), world.namespace("b"));
    world.on_host(|| {
        let bridge = Bridge::ensure("styr0", gateway())?;
        assert_eq!(Bridge::ensure("styr0", gateway())?, bridge);
        net::pod::setup(&pod(&a, "sandbox-a", 2))?;
        net::pod::setup(&pod(&b, "sandbox-b", 3))?;
        // Again, as after a crash.
        net::pod::setup(&pod(&b, "sandbox-b", 3))
    });
    let on_b = listen(&b, 8080);
    assert_eq!(
        peer_seen(&a, &on_b, "10.42.0.3:8080".parse().unwrap()),
        Ipv4Addr::new(10, 42, 0, 2)
    );
    let host = world.path("host");
    assert_eq!(
        peer_seen(&host, &on_b, "10.42.0.3:8080".parse().unwrap()),
        gateway().addr()
    );
    let on_host = listen(&host, 6443);
    assert_eq!(
        peer_seen(&a, &on_host, "10.42.0.1:6443".parse().unwrap()),
        Ipv4Addr::new(10, 42, 0, 2)
    );
    assert_eq!(
        peer_seen(&a, &listen(&a, 80), "127.0.0.1:80".parse().unwrap()),
        Ipv4Addr::LOCALHOST
    );
    let (link, lone) = netns::within(&b, || {
        let mut links = Links::open()?;
        let lone = links
            .addresses()?
            .iter()
            .all(|a| a.net.prefix_len() == 32 || a.net.addr().is_loopback());
        Ok((links.find("eth0")?.unwrap(), lone))
    })
    .unwrap();
    assert_eq!(
        (link.mtu, link.up, link.mac, lone),
        (1400, true, Some([0x0a, 0x58, 10, 42, 0, 3]), true)
    );
}

#[test]
fn an_address_works_at_once_for_its_next_owner() {
    let mut world = World::new();
    let (a, b) = (world.namespace("a"), world.namespace("b"));
    world.on_host(|| {
        Bridge::ensure("styr0", gateway())?;
        net::pod::setup(&pod(&a, "sandbox-a", 2))
    });
    let host = world.path("host");
    let first = listen(&a, 80);
    peer_seen(&host, &first, "10.42.0.2:80".parse().unwrap());
    world.on_host(|| {
        net::pod::teardown("sandbox-a")?;
        net::pod::teardown("sandbox-a")?;
        net::pod::setup(&pod(&b, "sandbox-b", 2))
    });
    let begun = std::time::Instant::now();
    peer_seen(&host, &listen(&b, 80), "10.42.0.2:80".parse().unwrap());
    assert!(
        begun.elapsed() < Duration::from_millis(900),
        "{:?}",
        begun.elapsed()
    );
    world.on_host(|| {
        netns::remove(&b)?;
        Bridge::remove("styr0")?;
        Bridge::remove("styr0")?;
        assert!(Links::open()?.list()?.iter().all(|l| l.kind != "bridge"));
        Ok(())
    });
}

#[test]
fn host_questions_are_answered() {
    let world = World::new();
    world.on_host(|| {
        assert_eq!(net::host::uplink()?, None);
        let bridge = Bridge::ensure("up0", "192.168.7.9/24".parse().unwrap())?;
        bridge.route("10.43.0.0/16".parse().unwrap())?;
        let mut links = Links::open()?;
        links.set_route(&net::link::Route {
            destination: Ipv4Net::default(),
            gateway: Some(Ipv4Addr::new(192, 168, 7, 1)),
            index: bridge.index,
            source: None,
            metric: 0,
        })?;
        let uplink = net::host::uplink()?.unwrap();
        assert_eq!(
            (
                uplink.link.name.as_str(),
                uplink.address.to_string().as_str()
            ),
            ("up0", "192.168.7.9")
        );
        let used = net::host::used_ranges()?;
        assert!(used.contains(&"192.168.7.0/24".parse().unwrap()));
        assert!(used.contains(&"10.43.0.0/16".parse().unwrap()));
        let taken = TcpListener::bind("192.168.7.9:0").map_err(|e| invalid(&e))?;
        let port = taken.local_addr().map_err(|e| invalid(&e))?.port();
        assert!(!net::host::tcp_port_free(uplink.address.into(), port));
        drop(taken);
        assert!(net::host::tcp_port_free(uplink.address.into(), port));
        Ok(())
    });
}

#[test]
fn flows_are_found_and_forgotten() {
    let world = World::new();
    world.on_host(|| {
        // Tracking begins only once something asks for it.
        let mut nft = net::nft::Connection::open()?;
        let mut batch = net::nft::Batch::new(net::nft::Family::Ip, "styr-test");
        batch.add_table();
        let (hook, policy) = (net::nft::Hook::Output, net::nft::Policy::Accept);
        batch.add_chain(
            "out",
            net::nft::Chain::Base {
                kind: "filter",
                hook,
                priority: 0,
                policy,
            },
        );
        batch.add_rule(
            "out",
            vec![net::nft::Expr::Ct {
                key: net::nft::ct_key::STATE,
                dreg: net::nft::Reg(0),
            }],
        );
        nft.commit(&batch)
            .map_err(|e| Error::Invalid(e.to_string()))?;
        Bridge::ensure("styr0", gateway())?;
        let socket = UdpSocket::bind("10.42.0.1:0").map_err(|e| invalid(&e))?;
        socket
            .send_to(b"x", "10.42.0.9:53")
            .map_err(|e| invalid(&e))?;
        let own = socket.local_addr().map_err(|e| invalid(&e))?.port();
        let mut conntrack = Conntrack::open()?;
        let wanted = |f: &net::conntrack::Flow| f.protocol == 17 && f.source.1 == own;
        let flows = conntrack.flows(wanted)?;
        assert_eq!(flows.len(), 1);
        assert_eq!(flows[0].responder, (Ipv4Addr::new(10, 42, 0, 9), 53));
        assert_eq!(conntrack.forget_where(wanted)?, 1);
        conntrack.forget(&flows[0])?;
        assert!(conntrack.flows(wanted)?.is_empty());
        Ok(())
    });
}

#[test]
fn the_first_packets_of_a_pod_are_not_lost() {
    let mut world = World::new();
    world.on_host(|| Bridge::ensure("styr0", gateway()).map(|_| ()));
    let host = world.path("host");
    let on_host = listen(&host, 6443);
    let mut slowest = Duration::ZERO;
    for n in 2..22 {
        let id = format!("sandbox-{n}");
        let netns = world.namespace(&id);
        let begun = std::time::Instant::now();
        world.on_host(|| net::pod::setup(&pod(&netns, &id, n)));
        let made = begun.elapsed();
        peer_seen(&netns, &on_host, "10.42.0.1:6443".parse().unwrap());
        println!("{made:?}, first connection {:?}", begun.elapsed() - made);
        slowest = slowest.max(begun.elapsed() - made);
    }
    assert!(slowest < Duration::from_millis(900), "{slowest:?}");
}
