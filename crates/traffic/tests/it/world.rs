//! A node and its pods in network namespaces of their own, with real servers.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use net::pod::PodNet;
use net::{Bridge, Error, netns};

/// How long a connection or an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(2);

pub struct World {
    dir: tempfile::TempDir,
    made: Vec<PathBuf>,
}

pub fn gateway() -> ipnet::Ipv4Net {
    "10.42.0.1/24".parse().unwrap()
}

pub fn pod_ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 42, 0, n)
}

fn io<T>(result: std::io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Io {
        action: "test".into(),
        source,
    })
}

impl World {
    /// A node with a bridge, and beyond its other interface a client at 192.0.2.2.
    pub fn new() -> Self {
        let mut world = World {
            dir: tempfile::tempdir().unwrap(),
            made: Vec::new(),
        };
        world.namespace("node");
        let outside = world.namespace("outside");
        world.on("node", || {
            let mut links = net::link::Links::open()?;
            let lo = links.find("lo")?.unwrap();
            links.set_up(lo.index, true)?;
            Bridge::ensure("styr0", gateway())?;
            Bridge::ensure("up0", "192.0.2.1/24".parse().unwrap())?;
            net::pod::setup(&PodNet {
                bridge: "up0",
                netns: &outside,
                ifname: "eth0",
                address: Ipv4Addr::new(192, 0, 2, 2),
                gateway: Ipv4Addr::new(192, 0, 2, 1),
                mtu: 1500,
                sandbox_id: "outside",
            })
        });
        world
    }

    fn namespace(&mut self, name: &str) -> PathBuf {
        let path = self.path(name);
        netns::create(&path).unwrap();
        self.made.push(path.clone());
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn on<T: Send>(&self, place: &str, work: impl FnOnce() -> Result<T, Error> + Send) -> T {
        netns::within(&self.path(place), work).unwrap()
    }

    /// A pod named `pod<n>` with the address 10.42.0.n.
    pub fn pod(&mut self, n: u8) -> String {
        let name = format!("pod{n}");
        let netns = self.namespace(&name);
        self.on("node", || {
            net::pod::setup(&PodNet {
                bridge: "styr0",
                netns: &netns,
                ifname: "eth0",
                address: pod_ip(n),
                gateway: gateway().addr(),
                mtu: 1500,
                sandbox_id: &name,
            })
        });
        name
    }

    /// A TCP server that answers every connection with `place` and the client's address. It ends with the test.
    pub fn serve_tcp(&self, place: &str, port: u16) {
        let listener = self.on(place, || io(TcpListener::bind(("0.0.0.0", port))));
        let name = place.to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let peer = stream
                    .peer_addr()
                    .map(|p| p.ip().to_string())
                    .unwrap_or_default();
                let _ = stream.write_all(format!("{name} {peer}").as_bytes());
            }
        });
    }

    /// A TCP server that sends every byte back.
    pub fn echo_tcp(&self, place: &str, port: u16) {
        let listener = self.on(place, || io(TcpListener::bind(("0.0.0.0", port))));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let Ok(mut back) = stream.try_clone() else {
                        return;
                    };
                    let _ = std::io::copy(&mut &stream, &mut back);
                });
            }
        });
    }

    /// A UDP server that answers every datagram with `place`.
    pub fn serve_udp(&self, place: &str, port: u16) {
        let socket = self.on(place, || io(UdpSocket::bind(("0.0.0.0", port))));
        let name = place.to_string();
        std::thread::spawn(move || {
            let mut buf = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buf) {
                let _ = socket.send_to(name.as_bytes(), from);
            }
        });
    }

    /// Connects from `place` and returns who answered, and whom it saw.
    pub fn ask(&self, place: &str, to: &str) -> Result<(String, String), ErrorKind> {
        let to: SocketAddr = to.parse().unwrap();
        let asked = self.on(place, || Ok(ask(to)));
        asked.map_err(|e| e.kind())
    }

    /// A UDP socket at `place` that talks to `to`.
    pub fn udp_to(&self, place: &str, to: &str) -> UdpSocket {
        let to: SocketAddr = to.parse().unwrap();
        self.on(place, || {
            let socket = io(UdpSocket::bind("0.0.0.0:0"))?;
            io(socket.connect(to))?;
            io(socket.set_read_timeout(Some(PATIENCE)))?;
            Ok(socket)
        })
    }
}

pub fn ask(to: SocketAddr) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (who, seen) = answer.split_once(' ').unwrap_or_default();
    Ok((who.to_string(), seen.to_string()))
}

pub fn ask_udp(socket: &UdpSocket) -> std::io::Result<String> {
    socket.send(b"x")?;
    let mut buf = [0; 64];
    let n = socket.recv(&mut buf)?;
    Ok(String::from_utf8_lossy(&buf[..n]).into_owned())
}

impl Drop for World {
    fn drop(&mut self) {
        for path in &self.made {
            let _ = netns::remove(path);
        }
    }
}
