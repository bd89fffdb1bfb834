//! The DNS server over real sockets, fed by a fake API.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::api::{Api, SERVICES, SLICES};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;
use traffic::dns::{Config, Sockets, Upstreams, run};

struct Server {
    api: Api,
    address: SocketAddr,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(upstreams: Vec<SocketAddr>) -> Self {
        let endpoints: Vec<_> = (2..120)
            .map(|n| json!({"addresses": [format!("10.42.0.{n}")]}))
            .collect();
        let meta = |name: &str| json!({"name": name, "namespace": "default"});
        let api = Api::default();
        for (name, spec) in [
            (
                "web",
                json!({"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]}),
            ),
            (
                "big",
                json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}),
            ),
            (
                "out",
                json!({"type": "ExternalName", "externalName": "one.example.org"}),
            ),
        ] {
            api.put(SERVICES, json!({"metadata": meta(name), "spec": spec}));
        }
        let mut labelled = meta("big-1");
        labelled["labels"] = json!({"kubernetes.io/service-name": "big"});
        api.put(
            SLICES,
            json!({"metadata": labelled, "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": 80}]}),
        );
        let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = sockets.address().unwrap();
        let shutdown = CancellationToken::new();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let config = Config {
            cluster_domain: "cluster.local".into(),
            cluster_ranges: vec!["10.43.0.0/16".parse().unwrap()],
            upstreams: Upstreams::Fixed(upstreams),
        };
        let (caches, token) = (api.caches(), shutdown.clone());
        let running =
            tokio::spawn(async move { run(caches, sockets, config, ready, token).await.unwrap() });
        is_ready.await.unwrap();
        Server {
            api,
            address,
            shutdown,
            running,
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap();
    }

    async fn udp(&self, request: &Message) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket
            .send_to(&request.to_vec().unwrap(), self.address)
            .await
            .unwrap();
        let mut buf = vec![0; 65_535];
        let received = tokio::time::timeout(Duration::from_secs(6), socket.recv(&mut buf))
            .await
            .unwrap()
            .unwrap();
        let answer = Message::from_vec(&buf[..received]).unwrap();
        assert_eq!(answer.metadata.id, request.metadata.id);
        answer
    }

    async fn tcp(&self, request: &Message) -> Message {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let bytes = request.to_vec().unwrap();
        stream.write_u16(bytes.len() as u16).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut request = Message::query();
    request.metadata.recursion_desired = true;
    request.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    request
}

fn data(answer: &Message) -> Vec<String> {
    answer.answers.iter().map(|r| r.data.to_string()).collect()
}

/// A resolver that knows one.example.org by UDP and TCP, and counts its questions.
async fn resolver() -> (SocketAddr, Arc<AtomicUsize>) {
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let udp = UdpSocket::bind(tcp.local_addr().unwrap()).await.unwrap();
    let (address, count) = (tcp.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let reply = |packet: &[u8]| {
        let request = Message::from_vec(packet).unwrap();
        let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
        answer.queries = request.queries.clone();
        let name = request.queries[0].name().clone();
        if name.to_lowercase() == Name::from_ascii("one.example.org.").unwrap() {
            answer.add_answer(Record::from_rdata(
                name,
                60,
                RData::A(A([192, 0, 2, 44].into())),
            ));
        } else {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        answer.to_vec().unwrap()
    };
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut buf = vec![0; 4096];
        while let Ok((n, from)) = udp.recv_from(&mut buf).await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            let _ = udp.send_to(&reply(&buf[..n]), from).await;
        }
    });
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let Ok(length) = stream.read_u16().await else {
                continue;
            };
            let mut packet = vec![0; length.into()];
            let _ = stream.read_exact(&mut packet).await;
            let answer = reply(&packet);
            let _ = stream.write_u16(answer.len() as u16).await;
            let _ = stream.write_all(&answer).await;
        }
    });
    (address, count)
}

#[tokio::test]
async fn cluster_names_are_answered_and_cut_to_what_fits() {
    let server = Server::start(vec![]).await;
    let web = question("web.default.svc.cluster.local.", RecordType::A);
    assert_eq!(data(&server.udp(&web).await), ["10.43.0.7"]);
    assert_eq!(data(&server.tcp(&web).await), ["10.43.0.7"]);

    let mut big = question("big.default.svc.cluster.local.", RecordType::A);
    let cut = server.udp(&big).await;
    assert!(
        cut.metadata.truncation && !cut.answers.is_empty() && cut.to_vec().unwrap().len() <= 512
    );
    assert_eq!(server.tcp(&big).await.answers.len(), 118);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    big.set_edns(edns);
    let cut = server.udp(&big).await;
    assert!(cut.metadata.truncation && cut.edns.is_some());
    let firsts: std::collections::BTreeSet<_> = [server.tcp(&big).await, server.tcp(&big).await]
        .iter()
        .map(|m| data(m)[0].clone())
        .collect();
    assert_eq!(firsts.len(), 2, "answers take turns");

    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket
        .send_to(
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xff",
            server.address,
        )
        .await
        .unwrap();
    let mut buf = [0; 512];
    let n = socket.recv(&mut buf).await.unwrap();
    assert_eq!(
        Message::from_vec(&buf[..n]).unwrap().metadata.response_code,
        ResponseCode::FormErr
    );
    server.stop().await;
}

#[tokio::test]
async fn other_names_are_asked_once_and_remembered() {
    let (upstream, asked) = resolver().await;
    let server = Server::start(vec![upstream]).await;
    let one = question("one.example.org.", RecordType::A);
    let mut again = one.clone();
    again.metadata.id = one.metadata.id.wrapping_add(1);
    let (a, b) = tokio::join!(server.udp(&one), server.udp(&again));
    assert_eq!(
        (data(&a), data(&b)),
        (
            vec!["192.0.2.44".to_string()],
            vec!["192.0.2.44".to_string()]
        )
    );
    assert_eq!(data(&server.udp(&one).await), ["192.0.2.44"]);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let none = question("two.example.org.", RecordType::A);
    assert_eq!(
        server.udp(&none).await.metadata.response_code,
        ResponseCode::NXDomain
    );
    let out = question("out.default.svc.cluster.local.", RecordType::A);
    assert_eq!(
        data(&server.udp(&out).await),
        ["one.example.org.", "192.0.2.44"]
    );
    server.stop().await;
}

#[tokio::test]
async fn another_resolver_is_asked_when_one_is_dead() {
    let (upstream, _) = resolver().await;
    let dead = UdpSocket::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let server = Server::start(vec![dead, upstream]).await;
    let begun = Instant::now();
    assert_eq!(
        data(
            &server
                .udp(&question("one.example.org.", RecordType::A))
                .await
        ),
        ["192.0.2.44"]
    );
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    server.stop().await;
}

#[tokio::test]
async fn without_resolvers_the_answer_is_a_quick_failure() {
    let dead = UdpSocket::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    for upstreams in [vec![], vec![dead]] {
        let server = Server::start(upstreams).await;
        for _ in 0..3 {
            let begun = Instant::now();
            let answer = server
                .udp(&question("one.example.org.", RecordType::A))
                .await;
            assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
            assert!(
                begun.elapsed() < Duration::from_secs(1),
                "{:?}",
                begun.elapsed()
            );
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn a_resolver_that_asks_back_does_not_go_round_for_ever() {
    // Whatever this one is asked it asks the server, and never answers.
    let mirror = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let server = Server::start(vec![mirror.local_addr().unwrap()]).await;
    let (asked, address) = (Arc::new(AtomicUsize::new(0)), server.address);
    let counted = Arc::clone(&asked);
    let mirroring = tokio::spawn(async move {
        let mut buf = [0; 512];
        while let Ok((n, from)) = mirror.recv_from(&mut buf).await {
            if from != address {
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = mirror.send_to(&buf[..n], address).await;
            }
        }
    });
    let answer = server
        .udp(&question("one.example.org.", RecordType::A))
        .await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(asked.load(Ordering::SeqCst) <= 4, "{asked:?}");
    mirroring.abort();
    server.stop().await;
}

#[tokio::test]
async fn a_new_service_is_known_within_a_moment() {
    let server = Server::start(vec![]).await;
    let question = question("new.default.svc.cluster.local.", RecordType::A);
    assert_eq!(
        server.udp(&question).await.metadata.response_code,
        ResponseCode::NXDomain
    );
    let meta = json!({"name": "new", "namespace": "default"});
    server.api.put(
        SERVICES,
        json!({"metadata": meta, "spec": {"clusterIP": "10.43.0.9", "ports": [{"port": 80}]}}),
    );
    let begun = Instant::now();
    while data(&server.udp(&question).await) != ["10.43.0.9"] {
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
    server.stop().await;
}
