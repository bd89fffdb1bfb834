//! A registry for tests: what the pull side of the distribution protocol needs, with its refusals.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::images::Digest;

/// How clients must tell who they are.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Access {
    Open,
    /// `user` with `secret`.
    Basic,
    /// A token that `user` with `secret` gets at `/token`.
    Token,
}

pub(super) struct Registry {
    pub address: SocketAddr,
    /// PEM of the certificate authority, if it speaks TLS.
    pub ca: Option<Vec<u8>>,
    state: Arc<State>,
    server: tokio::task::JoinHandle<()>,
}

struct State {
    access: Access,
    base: String,
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    tags: Mutex<HashMap<String, Vec<u8>>>,
    requests: Mutex<Vec<String>>,
    /// How often blobs still break off after half their bytes.
    break_blobs: Mutex<u32>,
    resumable: bool,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Registry {
    pub(super) async fn start(access: Access, tls: bool) -> Self {
        Self::start_with(access, tls, 0, true).await
    }

    pub(super) async fn start_with(
        access: Access,
        tls: bool,
        breaks: u32,
        resumable: bool,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            access,
            base: format!("{}://{address}", if tls { "https" } else { "http" }),
            blobs: Mutex::default(),
            tags: Mutex::default(),
            requests: Mutex::default(),
            break_blobs: Mutex::new(breaks),
            resumable,
        });
        let (acceptor, ca) = match tls {
            true => {
                let (acceptor, ca) = tls_acceptor();
                (Some(acceptor), Some(ca))
            }
            false => (None, None),
        };
        let server = tokio::spawn(serve(listener, acceptor, state.clone()));
        Self {
            address,
            ca,
            state,
            server,
        }
    }

    /// Stores blobs, and the first of them as `tag`.
    pub(super) fn push(&self, tag: &str, blobs: &[Vec<u8>]) {
        for blob in blobs {
            self.push_as(&Digest::of(blob).to_string(), blob);
        }
        self.state
            .tags
            .lock()
            .unwrap()
            .insert(tag.into(), blobs[0].clone());
    }

    /// Stores a blob under a digest that need not be its own.
    pub(super) fn push_as(&self, digest: &str, blob: &[u8]) {
        self.state
            .blobs
            .lock()
            .unwrap()
            .insert(digest.into(), blob.to_vec());
    }

    pub(super) fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// The requests since the last call that contain `text`.
    pub(super) fn requests(&self, text: &str) -> usize {
        let requests = std::mem::take(&mut *self.state.requests.lock().unwrap());
        requests.iter().filter(|r| r.contains(text)).count()
    }
}

/// PEM of a server's certificate for 127.0.0.1, its key, and the authority that signed it.
pub(super) fn certificates() -> (String, String, String) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::from_params(&ca, &ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    let certificate = server.signed_by(&key, &issuer).unwrap();
    (certificate.pem(), key.serialize_pem(), ca_certificate.pem())
}

fn tls_acceptor() -> (tokio_rustls::TlsAcceptor, Vec<u8>) {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let (certificate, key, ca) = certificates();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(
        vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
        PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
    )
    .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    (acceptor, ca.into_bytes())
}

async fn serve(
    listener: TcpListener,
    acceptor: Option<tokio_rustls::TlsAcceptor>,
    state: Arc<State>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let (acceptor, state) = (acceptor.clone(), state.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let state = state.clone();
                async move { Ok::<_, Infallible>(state.answer(&request)) }
            });
            let http = hyper::server::conn::http1::Builder::new();
            let _ = match acceptor {
                Some(acceptor) => match acceptor.accept(stream).await {
                    Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
                    Err(_) => return,
                },
                None => http.serve_connection(TokioIo::new(stream), service).await,
            };
        });
    }
}

const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";
const BEARER: &str = "Bearer good-token";

impl State {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let text = request.uri().to_string();
        self.requests
            .lock()
            .unwrap()
            .push(format!("{} {text}", request.method()));
        let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok());
        let authorization = header("authorization").unwrap_or_default();
        if path == "/token" {
            let good = authorization == BASIC && text.contains("service=test");
            return match good {
                true => respond(200, br#"{"token":"good-token","expires_in":300}"#),
                false => respond(401, b"{}"),
            };
        }
        let (allowed, challenge) = match self.access {
            Access::Open => (true, String::new()),
            Access::Basic => (authorization == BASIC, "Basic realm=\"test\"".into()),
            Access::Token => (
                authorization == BEARER,
                format!("Bearer realm=\"{}/token\",service=\"test\"", self.base),
            ),
        };
        if !allowed {
            let mut response = respond(
                401,
                br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
            );
            let value = challenge.parse().unwrap();
            response.headers_mut().insert("www-authenticate", value);
            return response;
        }
        let range =
            header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        self.content(path, range)
    }

    fn content(&self, path: &str, range: Option<usize>) -> Response<Full<Bytes>> {
        let name = path.rsplit('/').next().unwrap_or_default();
        let blob = self.blobs.lock().unwrap().get(name).cloned();
        if path.contains("/manifests/") {
            let tag = self.tags.lock().unwrap().get(name).cloned();
            return match blob.or(tag) {
                Some(manifest) => respond(200, &manifest),
                None => respond(
                    404,
                    br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}"#,
                ),
            };
        }
        match (path, blob) {
            ("/v2/", _) => respond(200, b"{}"),
            (_, Some(blob)) => self.blob(&blob, range),
            _ => respond(
                404,
                br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"unknown"}]}"#,
            ),
        }
    }

    fn blob(&self, blob: &[u8], range: Option<usize>) -> Response<Full<Bytes>> {
        let from = range.filter(|_| self.resumable).unwrap_or(0);
        let mut breaks = self.break_blobs.lock().unwrap();
        let rest = &blob[from..];
        let status = if from > 0 { 206 } else { 200 };
        if *breaks > 0 && rest.len() > 1000 {
            *breaks -= 1;
            // Without a length the end of the connection looks like the end of the blob.
            let mut response = respond(status, &rest[..rest.len() / 2]);
            response
                .headers_mut()
                .insert("connection", "close".parse().unwrap());
            return response;
        }
        respond(status, rest)
    }
}

fn respond(status: u16, body: &[u8]) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}
