//! The node API of a pretended node: `exec`, `attach`, `port-forward` and logs of containers that are not
//! there, for clients that speak these protocols.
//!
//! - `cat` and what is attached to say back what they hear, `fail` says so on its error stream and exits
//!   with 3, `size` tells the first size of its terminal, other commands print their arguments;
//! - a port says back what it hears;
//! - a log has three lines, and no more come.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use streams::remotecommand::{Exit, Options, Session};
use streams::{Body, portforward, remotecommand};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// Lines of every log.
const LOG: &str = "one\ntwo\nthree\n";
/// What `fail` exits with.
const FAILURE: i32 = 3;
/// How long a command takes to begin, as in a container. kubectl 1.30 to 1.33 reads what a WebSocket
/// brings before it has made all its streams, and loses what comes first on one that is still missing
/// (kubernetes/kubernetes#131189): on a busy machine a command that speaks at once is not heard.
const BEGINNING: Duration = Duration::from_millis(300);

/// Both ends of TLS between an API server and its node agents.
pub(crate) struct Trust {
    /// What the API server asks with.
    pub(crate) client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
}

impl Trust {
    pub(crate) fn new() -> anyhow::Result<Self> {
        // Another test may have been first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec![Ipv4Addr::LOCALHOST.to_string()])?;
        let leaf = leaf.signed_by(&key, &issuer)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(issuer.der().clone())?;
        let client = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let server = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)?;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }
}

/// A served node API; it ends when this is dropped.
pub(crate) struct Agent {
    /// The port on loopback.
    pub(crate) port: u16,
    _server: AbortOnDropHandle<()>,
}

impl Agent {
    pub(crate) async fn start(trust: &Trust) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.context("a port for the node agent")?;
        let port = listener.local_addr()?.port();
        let acceptor = TlsAcceptor::from(trust.server.clone());
        let server = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // Who breaks off while connecting asks for nothing.
                    let Ok(stream) = acceptor.accept(socket).await else {
                        return;
                    };
                    let http = hyper::server::conn::http1::Builder::new();
                    let serving = http.serve_connection(TokioIo::new(stream), service_fn(answer));
                    let _ = serving.with_upgrades().await;
                });
            }
        });
        Ok(Self {
            port,
            _server: AbortOnDropHandle::new(server),
        })
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let query = request.uri().query().unwrap_or("").to_owned();
    let asked: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let verb = request
        .uri()
        .path()
        .trim_start_matches('/')
        .split('/')
        .next();
    Ok(match verb {
        Some("exec") => command(request, &asked, said(&asked, "command")),
        Some("attach") => command(request, &asked, vec!["cat".to_owned()]),
        Some("portForward") => forward(request, &asked),
        Some("containerLogs") => Response::new(Body::from(tail(&asked))),
        _ => {
            let mut response = Response::new(Body::from("404 page not found"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    })
}

fn said(asked: &[(String, String)], name: &str) -> Vec<String> {
    let of_name = asked.iter().filter(|(key, _)| key == name);
    of_name.map(|(_, value)| value.clone()).collect()
}

fn tail(asked: &[(String, String)]) -> String {
    let all: Vec<&str> = LOG.split_inclusive('\n').collect();
    let wanted = said(asked, "tailLines");
    let count = wanted.first().and_then(|n| n.parse().ok());
    let count = count.unwrap_or(all.len()).min(all.len());
    all[all.len() - count..].concat()
}

fn command(
    request: Request<Incoming>,
    asked: &[(String, String)],
    command: Vec<String>,
) -> Response<Body> {
    let wants = |name| said(asked, name).iter().any(|v| v == "1" || v == "true");
    let options = Options {
        stdin: wants("input"),
        stdout: wants("output"),
        stderr: wants("error"),
        tty: wants("tty"),
    };
    let (response, pending) = match remotecommand::serve(request, options) {
        Ok(accepted) => accepted,
        Err(refused) => return refused.into_response(),
    };
    tokio::spawn(async move {
        let session = pending.session().await?;
        run(session, &command).await?;
        Ok::<(), streams::Error>(())
    });
    response
}

async fn run(mut session: Session, command: &[String]) -> Result<(), streams::Error> {
    let name = command.first().map(String::as_str).unwrap_or_default();
    tokio::time::sleep(BEGINNING).await;
    let exit = match name {
        "cat" => {
            let (stdin, stdout) = (session.stdin.take(), session.stdout.take());
            if let (Some(mut stdin), Some(mut stdout)) = (stdin, stdout) {
                tokio::io::copy(&mut stdin, &mut stdout).await?;
            }
            Exit::Code(0)
        }
        "fail" => {
            if let Some(stderr) = &mut session.stderr {
                stderr.write_all(b"failing\n").await?;
            }
            Exit::Code(FAILURE)
        }
        "size" => {
            let size = session.resize.recv().await;
            let text = size.map(|s| format!("{}x{}\n", s.width, s.height));
            print(&mut session, &text.unwrap_or_default()).await?;
            Exit::Code(0)
        }
        "" => Exit::Failed("no command".to_owned()),
        _ => {
            print(&mut session, &(command.join(" ") + "\n")).await?;
            Exit::Code(0)
        }
    };
    session.finish(exit).await;
    Ok(())
}

async fn print(session: &mut Session, text: &str) -> Result<(), streams::Error> {
    if let Some(stdout) = &mut session.stdout {
        stdout.write_all(text.as_bytes()).await?;
    }
    Ok(())
}

fn forward(request: Request<Incoming>, asked: &[(String, String)]) -> Response<Body> {
    let named = said(asked, "port");
    let named = named.iter().flat_map(|ports| ports.split(','));
    let ports: Vec<u16> = named.filter_map(|port| port.parse().ok()).collect();
    let (response, pending) = match portforward::serve(request, &ports) {
        Ok(accepted) => accepted,
        Err(refused) => return refused.into_response(),
    };
    tokio::spawn(async move {
        let mut forwards = pending.forwards().await?;
        while let Some(one) = forwards.next().await {
            let (ours, theirs) = tokio::io::duplex(streams::STREAM_BUFFER_BYTES);
            tokio::spawn(one.join(theirs));
            tokio::spawn(async move {
                let (mut hears, mut says) = tokio::io::split(ours);
                // An error means that the client has left.
                let _ = tokio::io::copy(&mut hears, &mut says).await;
                let _ = says.shutdown().await;
            });
        }
        Ok::<(), streams::Error>(())
    });
    response
}
