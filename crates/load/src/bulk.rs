//! The same request many times, at little cost: connections of their own, without the layers around a client of
//! Kubernetes, which cost as much as the request does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kube::client::ConfigExt;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

/// Connections, each with one request under way.
const CONNECTIONS: usize = 100;

/// Where requests go, and as whom.
#[derive(Clone)]
pub struct Bulk {
    tls: TlsConnector,
    address: String,
    name: ServerName<'static>,
}

impl Bulk {
    /// To the cluster that the configuration names.
    pub fn new(config: &kube::Config) -> anyhow::Result<Self> {
        let mut tls = config.rustls_client_config()?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let url = &config.cluster_url;
        let host = url.host().context("the cluster's URL has no host")?;
        let port = url.port_u16().unwrap_or(443);
        Ok(Self {
            tls: TlsConnector::from(Arc::new(tls)),
            address: format!("{host}:{port}"),
            name: ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?,
        })
    }

    /// Posts `body` to `path` so often. Fails with the first refusal.
    pub async fn post(&self, path: &str, body: Bytes, count: usize) -> anyhow::Result<()> {
        let left = Arc::new(AtomicUsize::new(count));
        let mut tasks = JoinSet::new();
        for _ in 0..CONNECTIONS.min(count) {
            let (this, left) = (self.clone(), Arc::clone(&left));
            let (path, body) = (path.to_owned(), body.clone());
            tasks.spawn(async move { this.some(&path, &body, &left).await });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    }

    /// Posts over one connection until none is left.
    async fn some(&self, path: &str, body: &Bytes, left: &AtomicUsize) -> anyhow::Result<()> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(self.name.clone(), stream).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let one_less = |n: usize| n.checked_sub(1);
        while left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
            .is_ok()
        {
            sender.ready().await?;
            let request = http::Request::post(path)
                .header(http::header::HOST, &self.address)
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(Full::new(body.clone()))?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            let answer = response.into_body().collect().await?.to_bytes();
            if !status.is_success() {
                let answer = String::from_utf8_lossy(&answer);
                bail!("POST {path}: {status}: {answer}");
            }
        }
        driver.abort();
        Ok(())
    }
}
