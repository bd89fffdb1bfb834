//! Real connections: TLS with client certificates, and streams through to a node agent.

use std::sync::Arc;

use apiserver::http::body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use crate::harness::*;

struct Pki {
    ca: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "ca");
        let ca = params.self_signed(&key).unwrap().der().clone();
        Self {
            ca,
            issuer: Issuer::new(params, key),
        }
    }

    fn leaf(
        &self,
        name: &str,
        group: &str,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (
            vec![leaf],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
    }

    fn roots(&self) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        Arc::new(roots)
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        let verifier = rustls::server::WebPkiClientVerifier::builder(self.roots())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let (chain, key) = self.leaf("server", "styr");
        Arc::new(
            rustls::ServerConfig::builder()
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain, key)
                .unwrap(),
        )
    }

    fn client(&self, name: &str, group: &str) -> Arc<rustls::ClientConfig> {
        let (chain, key) = self.leaf(name, group);
        Arc::new(
            rustls::ClientConfig::builder()
                .with_root_certificates(self.roots())
                .with_client_auth_cert(chain, key)
                .unwrap(),
        )
    }

    fn nobody(&self) -> Arc<rustls::ClientConfig> {
        Arc::new(
            rustls::ClientConfig::builder()
                .with_root_certificates(self.roots())
                .with_no_client_auth(),
        )
    }
}

type Sender = hyper::client::conn::http1::SendRequest<http_body_util::Full<bytes::Bytes>>;

async fn connect(port: u16, tls: Arc<rustls::ClientConfig>) -> Sender {
    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TlsConnector::from(tls).connect(name, socket).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

async fn fetch(sender: &mut Sender, request: http::request::Builder) -> (StatusCode, String) {
    let request = request
        .header("host", "x")
        .body(http_body_util::Full::default())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let code = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8(bytes.to_vec()).unwrap())
}

/// A node agent that echoes: the path of a log request, the bytes of an exec.
async fn kubelet(
    request: Request<Incoming>,
) -> Result<http::Response<body::ResponseBody>, std::convert::Infallible> {
    let path = request.uri().path_and_query().unwrap().to_string();
    if path.starts_with("/containerLogs/default/p/c?tailLines=bad") {
        let mut response = http::Response::new(body::full("no such line"));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(response);
    }
    if !path.starts_with("/exec/") {
        return Ok(http::Response::new(body::full(path)));
    }
    assert!(request.headers().get("authorization").is_none());
    tokio::spawn(async move {
        let mut io = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        let mut buffer = [0u8; 5];
        io.read_exact(&mut buffer).await.unwrap();
        io.write_all(&buffer).await.unwrap();
        io.write_all(path.as_bytes()).await.unwrap();
        io.shutdown().await.unwrap();
    });
    let mut response = http::Response::new(body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .headers_mut()
        .insert("connection", "Upgrade".parse().unwrap());
    response
        .headers_mut()
        .insert("upgrade", "echo".parse().unwrap());
    Ok(response)
}

async fn start_kubelet(tls: Arc<rustls::ServerConfig>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = TlsAcceptor::from(tls.clone());
            tokio::spawn(async move {
                let io = TokioIo::new(acceptor.accept(socket).await.unwrap());
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server
                    .serve_connection(io, service_fn(kubelet))
                    .with_upgrades()
                    .await;
            });
        }
    });
    port
}

struct Served {
    cluster: Cluster,
    pki: Pki,
    port: u16,
    stop: CancellationToken,
    done: tokio::task::JoinHandle<()>,
}

async fn served() -> Served {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let pki = Pki::new();
    let agent = start_kubelet(pki.server()).await;
    let tls = pki.client("kube-apiserver-kubelet-client", "system:masters");
    let cluster = cluster_with(|config| config.kubelet_tls = Some(tls)).await;
    with_account(&cluster).await;
    let node = json!({"metadata": {"name": "n"}, "status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": agent}}}});
    cluster.create("/api/v1/nodes", &node).await;
    let mut pod = pod("p");
    pod["spec"]["nodeName"] = "n".into();
    cluster.create(PODS, &pod).await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stop = CancellationToken::new();
    let (server, server_tls, token) = (cluster.server.clone(), pki.server(), stop.clone());
    let done = tokio::spawn(async move { server.serve(listener, server_tls, token).await });
    Served {
        cluster,
        pki,
        port,
        stop,
        done,
    }
}

#[tokio::test]
async fn certificates_say_who_asks() {
    let s = served().await;
    let mut admin = connect(s.port, s.pki.client("root", "system:masters")).await;
    assert_eq!(
        fetch(&mut admin, Request::get("/api/v1/namespaces"))
            .await
            .0,
        200
    );
    let mut jane = connect(s.port, s.pki.client("jane", "devs")).await;
    let (code, text) = fetch(&mut jane, Request::get("/api/v1/namespaces")).await;
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, 403);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("User \"jane\" cannot list resource \"namespaces\"")
    );
    let mut nobody = connect(s.port, s.pki.nobody()).await;
    assert!(
        fetch(&mut nobody, Request::get("/api/v1/namespaces"))
            .await
            .1
            .contains("system:anonymous")
    );
    assert_eq!(
        fetch(&mut nobody, Request::get("/readyz")).await,
        (StatusCode::OK, "ok".to_owned())
    );
    let bad = Request::get("/api/v1/namespaces").header("authorization", "Bearer nonsense");
    assert_eq!(fetch(&mut nobody, bad).await.0, 401);
    let acting = Request::get("/api/v1/namespaces").header("impersonate-user", "jane");
    assert_eq!(fetch(&mut admin, acting).await.0, 403);
}

#[tokio::test]
async fn logs_come_from_the_node_agent() {
    let s = served().await;
    let log = s
        .cluster
        .get(&format!(
            "{PODS}/p/log?follow=false&tailLines=5&container=c"
        ))
        .await;
    assert_eq!(
        log.body,
        json!("/containerLogs/default/p/c?follow=false&tailLines=5")
    );
    assert_eq!(log.headers["content-type"], "text/plain");
    let bad = s.cluster.get(&format!("{PODS}/p/log?tailLines=bad")).await;
    assert_eq!(
        (bad.code, bad.body["message"].as_str()),
        (400, Some("no such line"))
    );
    let other = s.cluster.get(&format!("{PODS}/p/log?container=x")).await;
    assert_eq!(other.body["message"], "container x is not valid for pod p");
    let proxied = s.cluster.get("/api/v1/nodes/n/proxy/pods/?a=b").await;
    assert_eq!(proxied.body, json!("/pods/?a=b"));
}

#[tokio::test]
async fn exec_is_a_tunnel() {
    let s = served().await;
    let mut admin = connect(s.port, s.pki.client("root", "system:masters")).await;
    let request = Request::get(format!(
        "{PODS}/p/exec?command=ls&command=-l&stdin=true&stdout=true"
    ))
    .header("host", "x")
    .header("connection", "Upgrade")
    .header("upgrade", "echo")
    .body(http_body_util::Full::default())
    .unwrap();
    let response = admin.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["upgrade"], "echo");
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    let mut text = String::new();
    io.read_to_string(&mut text).await.unwrap();
    assert_eq!(
        text,
        "hello/exec/default/p/c?command=ls&command=-l&input=1&stdin=1&output=1&stdout=1"
    );
    let plain = s.cluster.get(&format!("{PODS}/p/exec?command=ls")).await;
    assert_eq!(
        (plain.code, plain.body["message"].as_str()),
        (400, Some("Upgrade request required"))
    );
}

#[tokio::test]
async fn stopping_ends_watches_and_connections() {
    let s = served().await;
    let mut admin = connect(s.port, s.pki.client("root", "system:masters")).await;
    let request = Request::get("/api/v1/namespaces?watch=true").header("host", "x");
    let response = admin
        .send_request(request.body(http_body_util::Full::default()).unwrap())
        .await
        .unwrap();
    s.stop.cancel();
    assert!(response.into_body().collect().await.is_ok());
    s.done.await.unwrap();
}
