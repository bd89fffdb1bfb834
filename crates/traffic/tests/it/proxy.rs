//! Real connections through the kernel's table.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};

use client::Key;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use traffic::proxy::{Applier, Config, Place, frontends};

use crate::api::{Api, NODES, SERVICES, SLICES};
use crate::world::{World, ask, ask_udp, pod_ip};

fn config() -> Config {
    Config {
        table: "styr-test".into(),
        node_name: "node".into(),
        service_cidr: "10.43.0.0/16".parse().unwrap(),
        pod_cidr: "10.42.0.0/16".parse().unwrap(),
        node_pod_cidr: "10.42.0.0/24".parse().unwrap(),
        bridge: "styr0".into(),
        unreachable: None,
    }
}

fn here() -> Place {
    Place {
        node: "node".into(),
        zone: None,
    }
}

/// The proxy of a world's node, fed directly.
struct Proxy(Applier);

impl Proxy {
    fn new(world: &World) -> Self {
        let applier = world.on("node", || {
            net::Bridge::ensure("styr0", crate::world::gateway())?.route(config().service_cidr)?;
            Applier::open(config())
        });
        Proxy(applier)
    }

    /// Sets the Service named `name`, whose port 80 leads to port 8080 (UDP 53 to 5353) of these pods on this node.
    fn set(&mut self, name: &str, spec: Value, pods: &[u8]) {
        let service: Service =
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        let endpoints: Vec<_> = pods
            .iter()
            .map(|p| json!({"addresses": [pod_ip(*p)], "nodeName": "node", "conditions": {"ready": true}}))
            .collect();
        let slice: EndpointSlice = serde_json::from_value(json!({"metadata": {"name": name}, "addressType": "IPv4",
            "endpoints": endpoints, "ports": [{"name": "web", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}]}))
        .unwrap();
        let wanted = frontends(&service, &[slice], &here());
        self.0
            .update(BTreeMap::from([(Key::new("default", name), wanted)]))
            .unwrap();
    }
}

fn web(extra: Value) -> Value {
    let mut spec = json!({"clusterIP": "10.43.0.7", "ports": [{"name": "web", "port": 80}]});
    spec.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    spec
}

fn node_port() -> Value {
    web(json!({"type": "NodePort", "ports": [{"name": "web", "port": 80, "nodePort": 30080}]}))
}

fn world_with_servers(pods: &[u8]) -> World {
    let mut world = World::new();
    for n in pods {
        let pod = world.pod(*n);
        world.serve_tcp(&pod, 8080);
        world.serve_udp(&pod, 5353);
    }
    world
}

#[test]
fn connections_are_spread_over_endpoints_from_pods_and_the_node() {
    let mut world = world_with_servers(&[2, 3, 4]);
    let client = world.pod(9);
    let mut proxy = Proxy::new(&world);
    proxy.set("web", web(json!({})), &[2, 3, 4]);
    for place in [client.as_str(), "node"] {
        let answers: Vec<_> = (0..60)
            .map(|_| world.ask(place, "10.43.0.7:80").unwrap())
            .collect();
        let who: BTreeSet<_> = answers.iter().map(|(who, _)| who.as_str()).collect();
        assert_eq!(who, BTreeSet::from(["pod2", "pod3", "pod4"]));
        let seen: BTreeSet<_> = answers.iter().map(|(_, seen)| seen.as_str()).collect();
        let own = if place == "node" {
            "10.42.0.1"
        } else {
            "10.42.0.9"
        };
        assert_eq!(seen, BTreeSet::from([own]), "the client's address is kept");
    }
    if let Ok(tool) = std::env::var("NFT") {
        let listing = world.on("node", || {
            Ok(std::process::Command::new(tool)
                .args(["list", "ruleset"])
                .output())
        });
        println!("{}", String::from_utf8_lossy(&listing.unwrap().stdout));
    }
}

#[test]
fn node_ports_answer_on_every_address_of_the_node() {
    let mut world = world_with_servers(&[2]);
    let client = world.pod(9);
    let mut proxy = Proxy::new(&world);
    proxy.set("web", node_port(), &[2]);
    let seen = |place: &str, to: &str| world.ask(place, to).unwrap().1;
    assert_eq!(seen("node", "127.0.0.1:30080"), "10.42.0.1");
    assert_eq!(seen("node", "192.0.2.1:30080"), "192.0.2.1");
    assert_eq!(seen("outside", "192.0.2.1:30080"), "192.0.2.2");
    assert_eq!(seen("outside", "10.42.0.1:30080"), "192.0.2.2");
    assert_eq!(seen(&client, "10.42.0.1:30080"), "10.42.0.9");
    assert_eq!(seen(&client, "192.0.2.1:30080"), "10.42.0.9");
    proxy.set("web", web(json!({})), &[2]);
    assert_eq!(
        world.ask("node", "127.0.0.1:30080"),
        Err(ErrorKind::ConnectionRefused)
    );
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let world = world_with_servers(&[2]);
    let mut proxy = Proxy::new(&world);
    proxy.set("web", node_port(), &[2]);
    for to in ["10.43.0.7:80", "10.42.0.1:30080"] {
        assert_eq!(
            world.ask("pod2", to),
            Ok(("pod2".into(), "10.42.0.1".into())),
            "{to}"
        );
    }
}

#[test]
fn a_service_without_endpoints_refuses_and_one_that_does_not_exist_too() {
    let mut world = World::new();
    let client = world.pod(9);
    let mut proxy = Proxy::new(&world);
    proxy.set("web", node_port(), &[]);
    for place in [client.as_str(), "node"] {
        for to in ["10.43.0.7:80", "10.43.9.9:80", "10.42.0.1:30080"] {
            assert_eq!(
                world.ask(place, to),
                Err(ErrorKind::ConnectionRefused),
                "{to} from {place}"
            );
        }
    }
    let udp = world.udp_to(&client, "10.43.0.7:53");
    assert_eq!(
        ask_udp(&udp).map_err(|e| e.kind()),
        Err(ErrorKind::ConnectionRefused)
    );
}

#[test]
fn a_client_stays_with_its_endpoint_until_it_is_gone() {
    let mut world = world_with_servers(&[2, 3, 4]);
    let client = world.pod(9);
    let mut proxy = Proxy::new(&world);
    let sticky = web(json!({"type": "NodePort", "sessionAffinity": "ClientIP",
        "ports": [{"name": "web", "port": 80, "nodePort": 30080}]}));
    proxy.set("web", sticky.clone(), &[2, 3, 4]);
    let who = |to: &str| world.ask(&client, to).unwrap().0;
    for to in ["10.43.0.7:80", "192.0.2.1:30080"] {
        let first = who(to);
        assert!((0..30).all(|_| who(to) == first), "{to}");
    }
    let first = who("10.43.0.7:80");
    // A proxy that starts anew remembers.
    let mut proxy = Proxy::new(&world);
    proxy.set("web", sticky.clone(), &[2, 3, 4]);
    assert!((0..10).all(|_| who("10.43.0.7:80") == first));
    let left: Vec<u8> = [2, 3, 4]
        .into_iter()
        .filter(|n| format!("pod{n}") != first)
        .collect();
    proxy.set("web", sticky, &left);
    let second = who("10.43.0.7:80");
    assert_ne!(second, first);
    assert!((0..30).all(|_| who("10.43.0.7:80") == second));
    if let Ok(tool) = std::env::var("NFT") {
        let listing = world.on("node", || {
            Ok(std::process::Command::new(tool)
                .args(["list", "ruleset"])
                .output())
        });
        println!("{}", String::from_utf8_lossy(&listing.unwrap().stdout));
    }
}

#[test]
fn no_connection_fails_while_endpoints_come_and_go() {
    let mut world = world_with_servers(&[2, 3, 4, 5]);
    let client = world.pod(9);
    let mut proxy = Proxy::new(&world);
    proxy.set("web", web(json!({})), &[2]);
    let over = AtomicBool::new(false);
    let (asked, failed) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            world.on(&client, || {
                let (mut asked, mut failed) = (0, Vec::new());
                while !over.load(Ordering::Relaxed) {
                    asked += 1;
                    failed.extend(ask("10.43.0.7:80".parse().unwrap()).err());
                }
                Ok((asked, failed))
            })
        });
        for round in 0..400u32 {
            let pods: Vec<u8> = (2..6)
                .filter(|n| (round % 16) & (1 << (n - 2)) != 0)
                .collect();
            proxy.set(
                "web",
                web(json!({})),
                if pods.is_empty() { &[2] } else { &pods },
            );
        }
        over.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    });
    assert!(
        failed.is_empty() && asked > 100,
        "{} of {asked} failed: {failed:?}",
        failed.len()
    );
}

#[test]
fn a_removed_endpoint_gets_no_new_connection() {
    let mut world = world_with_servers(&[2, 3]);
    let client = world.pod(9);
    let mut proxy = Proxy::new(&world);
    for round in 0..50 {
        let (old, new) = if round % 2 == 0 { (2, 3) } else { (3, 2) };
        proxy.set("web", web(json!({})), &[old, new]);
        proxy.set("web", web(json!({})), &[new]);
        assert_eq!(
            world.ask(&client, "10.43.0.7:80").unwrap().0,
            format!("pod{new}")
        );
    }
}

#[test]
fn udp_follows_its_endpoints() {
    let mut world = world_with_servers(&[2, 3]);
    let client = world.pod(9);
    let dns = json!({"clusterIP": "10.43.0.10", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]});
    let mut proxy = Proxy::new(&world);
    proxy.set("dns", dns.clone(), &[2]);
    let socket = world.udp_to(&client, "10.43.0.10:53");
    assert_eq!(ask_udp(&socket).unwrap(), "pod2");
    proxy.set("dns", dns, &[3]);
    assert_eq!(
        ask_udp(&socket).unwrap(),
        "pod3",
        "the same socket follows at once"
    );
}

#[test]
fn external_addresses_and_allowed_sources() {
    let mut world = world_with_servers(&[2]);
    let client = world.pod(9);
    let mut proxy = Proxy::new(&world);
    let balancer = |ranges: Value| {
        json!({"metadata": {"name": "web"}, "spec": {"type": "LoadBalancer", "clusterIP": "10.43.0.7",
            "externalIPs": ["203.0.113.5"], "loadBalancerSourceRanges": ranges, "ports": [{"name": "web", "port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.6"}]}}})
    };
    let mut set = |ranges: Value| {
        let service: Service = serde_json::from_value(balancer(ranges)).unwrap();
        let slice: EndpointSlice = serde_json::from_value(json!({"metadata": {"name": "web"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.42.0.2"], "nodeName": "node"}], "ports": [{"name": "web", "port": 8080}]}))
        .unwrap();
        let wanted = frontends(&service, &[slice], &here());
        proxy
            .0
            .update(BTreeMap::from([(Key::new("default", "web"), wanted)]))
            .unwrap();
    };
    set(json!([]));
    for to in ["203.0.113.5:80", "203.0.113.6:80"] {
        assert_eq!(world.ask("outside", to).unwrap().1, "192.0.2.2");
        assert_eq!(world.ask(&client, to).unwrap().0, "pod2");
    }
    set(json!(["198.51.100.0/24", "198.51.100.0/25"]));
    assert_eq!(
        world.ask("outside", "203.0.113.6:80"),
        Err(ErrorKind::TimedOut)
    );
    assert!(world.ask("outside", "203.0.113.5:80").is_ok());
    set(json!(["198.51.100.0/24", "192.0.2.2/32"]));
    assert!(world.ask("outside", "203.0.113.6:80").is_ok());
}

#[test]
fn the_way_out_is_masqueraded_and_forged_loopback_is_dropped() {
    let mut world = World::new();
    let client = world.pod(9);
    let mut proxy = Proxy::new(&world);
    proxy.set("web", web(json!({})), &[]);
    world.serve_tcp("outside", 8000);
    assert_eq!(world.ask(&client, "192.0.2.2:8000").unwrap().1, "192.0.2.1");
    world.on("node", || {
        traffic::proxy::cleanup("styr-test").unwrap();
        traffic::proxy::cleanup("styr-test").unwrap();
        Ok(())
    });
    assert_eq!(world.ask(&client, "192.0.2.2:8000").unwrap().1, "10.42.0.9");
}

#[test]
fn a_table_flushed_by_others_is_made_anew() {
    let mut world = world_with_servers(&[2, 3]);
    let client = world.pod(9);
    let mut proxy = Proxy::new(&world);
    proxy.set("web", web(json!({})), &[2]);
    world.on("node", || {
        traffic::proxy::cleanup("styr-test").unwrap();
        Ok(())
    });
    proxy.set("web", web(json!({})), &[3]);
    assert_eq!(world.ask(&client, "10.43.0.7:80").unwrap().0, "pod3");
}

#[test]
fn bridged_packets_need_not_be_filtered() {
    let mut world = world_with_servers(&[2, 3]);
    let client = world.pod(9);
    world.on("node", || {
        net::sysctl::set_if_present("net/bridge/bridge-nf-call-iptables", "0")
    });
    let mut proxy = Proxy::new(&world);
    proxy.set("web", node_port(), &[2, 3]);
    for (place, to) in [
        (client.as_str(), "10.43.0.7:80"),
        ("pod2", "10.43.0.7:80"),
        ("node", "127.0.0.1:30080"),
    ] {
        let who: BTreeSet<_> = (0..40).map(|_| world.ask(place, to).unwrap().0).collect();
        assert_eq!(
            who,
            BTreeSet::from(["pod2".to_string(), "pod3".to_string()]),
            "{to} from {place}"
        );
    }
}

#[test]
fn the_running_proxy_follows_the_api() {
    let mut world = world_with_servers(&[2, 3]);
    let client = world.pod(9);
    let api = Api::default();
    let slice = |ip: &str| {
        json!({"metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": [{"addresses": [ip]}], "ports": [{"name": "web", "port": 8080}]})
    };
    api.put(
        SERVICES,
        json!({"metadata": {"name": "web", "namespace": "default"}, "spec": web(json!({}))}),
    );
    api.put(SLICES, slice("10.42.0.2"));
    let node = world.path("node");
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let shutdown = CancellationToken::new();
    let (token, told) = (shutdown.clone(), api.clone());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Threads of a runtime made inside a namespace are inside it too.
            let run = || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                let proxy =
                    async { traffic::proxy::run(told.caches(), config(), ready, token).await };
                runtime.block_on(proxy).unwrap();
                Ok(())
            };
            net::netns::within(&node, run).unwrap();
        });
        is_ready.blocking_recv().unwrap();
        assert_eq!(world.ask(&client, "10.43.0.7:80").unwrap().0, "pod2");
        api.put(SLICES, slice("10.42.0.3"));
        let begun = std::time::Instant::now();
        while world.ask(&client, "10.43.0.7:80").unwrap().0 != "pod3" {
            assert!(begun.elapsed().as_secs() < 2);
        }
        println!("followed within {:?}", begun.elapsed());
        // Each endpoint is meant for one zone: the node's own answers alone, and another one when the node moves.
        let meant = |ip: &str, zone: &str| json!({"addresses": [ip], "hints": {"forZones": [{"name": zone}]}});
        let mut hinted = slice("10.42.0.2");
        hinted["endpoints"] = json!([meant("10.42.0.2", "a"), meant("10.42.0.3", "b")]);
        api.put(SLICES, hinted);
        for (zone, pod) in [("a", "pod2"), ("b", "pod3")] {
            let labels = json!({"topology.kubernetes.io/zone": zone});
            api.put(
                NODES,
                json!({"metadata": {"name": "node", "labels": labels}}),
            );
            let answers = || world.ask(&client, "10.43.0.7:80").unwrap().0;
            let begun = std::time::Instant::now();
            while !(0..10).all(|_| answers() == pod) {
                assert!(begun.elapsed().as_secs() < 20, "{zone}");
            }
        }
        // Another firewall is loaded: everything is flushed, and a chain that drops appears.
        world.on("node", || {
            use net::nft::{Batch, Chain, Connection, Family, Hook, Policy};
            let mut nft = Connection::open()?;
            let mut flush = Batch::new(Family::Ip, "styr-test");
            flush.delete_table();
            nft.commit(&flush).unwrap();
            let mut docker = Batch::new(Family::Ip, "filter");
            docker.add_table();
            let chain = Chain::Base {
                kind: "filter",
                hook: Hook::Forward,
                priority: 0,
                policy: Policy::Drop,
            };
            docker.add_chain("FORWARD", chain);
            nft.commit(&docker).unwrap();
            Ok(())
        });
        let begun = std::time::Instant::now();
        while world.ask(&client, "10.43.0.7:80").map(|(who, _)| who) != Ok("pod3".into()) {
            assert!(begun.elapsed().as_secs() < 10);
        }
        println!("mended within {:?}", begun.elapsed());
        shutdown.cancel();
    });
    // The table outlives the proxy.
    assert_eq!(world.ask(&client, "10.43.0.7:80").unwrap().0, "pod3");
    let rules = || {
        world.on("node", || {
            use net::nft::Dumper;
            net::nft::Connection::open()?.rules(net::nft::Family::Ip, "filter", "FORWARD")
        })
    };
    assert_eq!(rules().len(), 2);
    world.on("node", || {
        traffic::proxy::cleanup("styr-test").unwrap();
        Ok(())
    });
    assert!(rules().is_empty());
}

#[test]
fn five_thousand_services_are_loaded_and_changed_quickly() {
    let mut world = world_with_servers(&[2]);
    let client = world.pod(9);
    let mut proxy = Proxy::new(&world);
    let service = |n: u16, ports: u8| {
        let [high, low] = n.to_be_bytes();
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "s"},
            "spec": {"clusterIP": format!("10.43.{high}.{low}"), "ports": [{"name": "web", "port": 80}]}}))
        .unwrap();
        let endpoints: Vec<_> = (0..ports)
            .map(|p| json!({"addresses": [format!("10.42.{p}.2")]}))
            .collect();
        let slice: EndpointSlice =
            serde_json::from_value(json!({"metadata": {"name": "s"}, "addressType": "IPv4",
            "endpoints": endpoints, "ports": [{"name": "web", "port": 8080}]}))
            .unwrap();
        (
            Key::new("default", format!("s{n}")),
            frontends(&service, &[slice], &here()),
        )
    };
    let all: BTreeMap<_, _> = (1..=5000).map(|n| service(n, 4)).collect();
    let begun = std::time::Instant::now();
    proxy.0.update(all).unwrap();
    let loaded = begun.elapsed();
    let begun = std::time::Instant::now();
    for n in 1..=50 {
        proxy.0.update(BTreeMap::from([service(n, 1)])).unwrap();
    }
    let changed = begun.elapsed() / 50;
    println!("5,000 services with 20,000 endpoints: {loaded:?}; one change: {changed:?}");
    assert_eq!(world.ask(&client, "10.43.0.7:80").unwrap().0, "pod2");
    assert!(loaded.as_secs() < 10 && changed.as_millis() < 200);
}

#[test]
fn endpoints_may_be_the_node_itself() {
    let mut world = World::new();
    let client = world.pod(9);
    world.serve_tcp("node", 8080);
    world.serve_udp("node", 5353);
    let mut proxy = Proxy::new(&world);
    let spec = json!({"clusterIP": "10.43.0.10", "ports": [{"name": "web", "port": 443}, {"name": "dns", "port": 53, "protocol": "UDP"}]});
    proxy.set("kubernetes", spec, &[1]);
    for (place, own) in [(client.as_str(), "10.42.0.9"), ("node", "10.42.0.1")] {
        assert_eq!(
            world.ask(place, "10.43.0.10:443"),
            Ok(("node".into(), own.into()))
        );
        assert_eq!(
            ask_udp(&world.udp_to(place, "10.43.0.10:53")).unwrap(),
            "node"
        );
    }
}

#[test]
fn connections_outlive_the_table_they_were_made_by() {
    use std::io::{Read, Write};
    let mut world = World::new();
    let (server, client) = (world.pod(2), world.pod(9));
    world.echo_tcp(&server, 8080);
    let mut proxy = Proxy::new(&world);
    proxy.set("web", web(json!({})), &[2]);
    let mut connection = world.on(&client, || {
        let to = "10.43.0.7:80".parse().unwrap();
        std::net::TcpStream::connect_timeout(&to, crate::world::PATIENCE).map_err(|source| {
            net::Error::Io {
                action: "connect".into(),
                source,
            }
        })
    });
    connection
        .set_read_timeout(Some(crate::world::PATIENCE))
        .unwrap();
    let mut echo = || {
        let mut buf = [0];
        connection
            .write_all(b"x")
            .and_then(|()| connection.read_exact(&mut buf))
            .map(|()| buf[0])
    };
    assert_eq!(echo().unwrap(), b'x');
    // A proxy that starts anew, and knows of nothing yet.
    let mut proxy = Proxy::new(&world);
    proxy.0.replace().unwrap();
    assert_eq!(echo().unwrap(), b'x');
    // Nor does an endpoint that leaves drop what it has.
    proxy.set("web", web(json!({})), &[]);
    assert_eq!(echo().unwrap(), b'x');
    assert_eq!(
        world.ask(&client, "10.43.0.7:80"),
        Err(ErrorKind::ConnectionRefused)
    );
}
