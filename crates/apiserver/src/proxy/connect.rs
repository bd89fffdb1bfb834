//! Connections to node agents, pods and services.

use std::sync::Arc;
use std::time::Duration;

use api::Status;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::http::body::{self, Request, Response};
use crate::registry::Fail;

/// Longest time to reach the other end.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes both ways, over TLS or not.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Where a request is passed on to.
pub struct Target {
    /// Address or name.
    pub host: String,
    /// Port.
    pub port: u16,
    /// TLS, if it is spoken there.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// What its certificate is for, if that is not the host.
    pub server_name: Option<String>,
}

impl Target {
    /// `host:port`, for messages and the Host header.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> Fail {
        Box::new(Status::internal(format!(
            "error dialing backend: dial tcp {}: {error}",
            self.authority()
        )))
    }

    /// A fresh connection.
    ///
    /// # Errors
    /// 500 in upstream's words when the other end cannot be reached.
    pub async fn connect(&self) -> Result<Box<dyn Io>, Fail> {
        let dial = async {
            let socket = TcpStream::connect((self.host.as_str(), self.port)).await?;
            socket.set_nodelay(true)?;
            let Some(tls) = &self.tls else {
                return Ok::<Box<dyn Io>, std::io::Error>(Box::new(socket));
            };
            let name = ServerName::try_from(
                self.server_name
                    .clone()
                    .unwrap_or_else(|| self.host.clone()),
            )
            .map_err(std::io::Error::other)?;
            Ok(Box::new(
                TlsConnector::from(tls.clone())
                    .connect(name, socket)
                    .await?,
            ))
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, dial).await {
            Ok(Ok(io)) => Ok(io),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(self.failed(&"i/o timeout")),
        }
    }

    /// Sends one request over a fresh connection; the body of the response streams.
    ///
    /// # Errors
    /// When the other end cannot be reached or breaks off.
    pub async fn send(&self, request: Request) -> Result<Response, Fail> {
        let io = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
            .await
            .map_err(|e| self.failed(&e))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to a backend ended");
            }
        });
        let mut request = request;
        if !request.headers().contains_key(http::header::HOST)
            && let Ok(host) = http::HeaderValue::from_str(&self.authority())
        {
            request.headers_mut().insert(http::header::HOST, host);
        }
        // An unsync body is enough for the connection, which owns it.
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| self.failed(&e))?;
        Ok(response.map(body::boxed))
    }
}

/// Percent-encodes everything but unreserved characters.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(b as char)
            }
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}
