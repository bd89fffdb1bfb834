//! The node API: logs, exec, attach, port-forward, pods, stats and metrics over HTTPS. Everything but
//! `/healthz` needs a client certificate of the API server or of a cluster administrator.

mod auth;
mod logs;
mod metrics;
mod stats;
mod stream;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::agent::SharedAgent;
use crate::config::Tls;
use crate::pod;
use crate::pods::Directory;
use auth::Caller;

/// Connections served at the same time.
const MAX_CONNECTIONS: usize = 1024;
/// Time a client gets for its TLS handshake.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(10);

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, Failure>;

/// A refusal: status and text.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl Refusal {
    fn bad(text: impl Into<String>) -> Refusal {
        Refusal(StatusCode::BAD_REQUEST, text.into())
    }

    fn not_found(text: impl Into<String>) -> Refusal {
        Refusal(StatusCode::NOT_FOUND, text.into())
    }

    fn internal(error: impl std::fmt::Display) -> Refusal {
        Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

type Answer = Result<Response<Body>, Refusal>;

/// What the handlers need.
#[derive(Clone)]
struct Server {
    agent: SharedAgent,
    directory: Arc<Directory>,
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn text(kind: &str, body: impl Into<Bytes>) -> Answer {
    Response::builder()
        .header("content-type", kind)
        .body(full(body))
        .map_err(Refusal::internal)
}

/// Serves the node API until `shutdown`.
///
/// # Errors
/// When the certificates cannot be used.
pub async fn serve(
    agent: SharedAgent,
    directory: Arc<Directory>,
    listener: TcpListener,
    tls: Tls,
    shutdown: CancellationToken,
) -> Result<(), rustls::Error> {
    let acceptor = TlsAcceptor::from(Arc::new(auth::server_config(tls)?));
    let server = Server { agent, directory };
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return Ok(()),
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            continue;
        };
        let (server, acceptor, shutdown) = (server.clone(), acceptor.clone(), shutdown.clone());
        tokio::spawn(async move {
            let work = connection(server, acceptor, stream);
            if let Some(Err(error)) = shutdown.run_until_cancelled(work).await {
                tracing::debug!(%error, "a connection of the node API ended");
            }
            drop(permit);
        });
    }
}

async fn connection(
    server: Server,
    acceptor: TlsAcceptor,
    stream: TcpStream,
) -> Result<(), Failure> {
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let caller = Arc::new(auth::caller(stream.get_ref().1.peer_certificates()));
    let service = service_fn(move |request| {
        let (server, caller) = (server.clone(), caller.clone());
        async move { Ok::<_, std::convert::Infallible>(respond(&server, &caller, request).await) }
    });
    hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
}

async fn respond(server: &Server, caller: &Caller, request: Request<Incoming>) -> Response<Body> {
    let answer = match authorize(caller, request.uri().path()) {
        Ok(()) => route(server, request).await,
        Err(refusal) => Err(refusal),
    };
    answer.unwrap_or_else(|Refusal(status, message)| {
        let mut response = Response::new(full(message));
        *response.status_mut() = status;
        let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert("content-type", plain);
        response
    })
}

fn authorize(caller: &Caller, path: &str) -> Result<(), Refusal> {
    match caller {
        _ if path == "/healthz" => Ok(()),
        Caller::Trusted => Ok(()),
        Caller::Nobody => Err(Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".into())),
        Caller::Other(name) => Err(Refusal(
            StatusCode::FORBIDDEN,
            format!("Forbidden (user={name}, verb=*, resource=nodes)"),
        )),
    }
}

async fn route(server: &Server, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let parts: Vec<_> = path
        .split('/')
        .filter(|p| !p.is_empty())
        .map(decode)
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let get = request.method() == Method::GET;
    match parts.as_slice() {
        ["healthz", ..] if get => text("text/plain; charset=utf-8", "ok"),
        ["pods"] | ["runningpods"] if get => pods(server),
        ["containerLogs", namespace, name, container] if get => {
            logs::serve(server, namespace, name, container, &query).await
        }
        ["exec", namespace, name, container] | ["exec", namespace, name, _, container] => {
            stream::exec(server, namespace, name, container, &query, request).await
        }
        ["attach", namespace, name, container] | ["attach", namespace, name, _, container] => {
            stream::attach(server, namespace, name, container, &query, request).await
        }
        ["portForward", namespace, name] | ["portForward", namespace, name, _] => {
            stream::port_forward(server, namespace, name, &query, request).await
        }
        ["stats", "summary"] if get => stats::serve(server).await,
        ["metrics"] if get => metrics::own(server),
        ["metrics", "resource"] if get => metrics::resource(server).await,
        _ => Err(Refusal::not_found("404 page not found")),
    }
}

fn pods(server: &Server) -> Answer {
    let pods: Vec<_> = server
        .directory
        .all()
        .iter()
        .map(|p| pod::clone_without_managed_fields(p))
        .collect();
    let list =
        serde_json::json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods });
    text("application/json", list.to_string())
}

/// Parameters of a query, in order; names may repeat.
struct Query(HashMap<String, Vec<String>>);

impl Query {
    fn parse(text: &str) -> Query {
        let mut out: HashMap<String, Vec<String>> = HashMap::new();
        for pair in text.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = value.replace('+', " ");
            out.entry(decode(name)).or_default().push(decode(&value));
        }
        Query(out)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.first().map(String::as_str)
    }

    fn all(&self, name: &str) -> &[String] {
        self.0.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// True for `1` and `true`, under either name.
    fn flag(&self, names: [&str; 2]) -> bool {
        names
            .iter()
            .any(|name| matches!(self.get(name), Some("1" | "true")))
    }
}

/// Undoes percent encoding.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%')
            .then(|| {
                text.get(at + 1..at + 3)
                    .and_then(|h| u8::from_str_radix(h, 16).ok())
            })
            .flatten();
        out.push(hex.unwrap_or(bytes[at]));
        at += if hex.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let query = Query::parse("command=sh&command=-c&command=echo%20a%2Bb+c&input=1&tty=true&x");
        assert_eq!(query.all("command"), ["sh", "-c", "echo a+b c"]);
        assert!(
            query.flag(["input", "stdin"]) && query.flag(["tty", "tty"]) && !query.flag(["x", "y"])
        );
        assert_eq!(query.get("x"), Some(""));
        assert_eq!(decode("%zz%4"), "%zz%4");
    }

    #[test]
    fn only_health_is_open() {
        assert!(authorize(&Caller::Nobody, "/healthz").is_ok());
        assert_eq!(
            authorize(&Caller::Nobody, "/pods").unwrap_err().0,
            StatusCode::UNAUTHORIZED
        );
        let other = Caller::Other("system:node:x".into());
        assert_eq!(
            authorize(&other, "/exec/a/b/c").unwrap_err().0,
            StatusCode::FORBIDDEN
        );
        assert!(authorize(&Caller::Trusted, "/exec/a/b/c").is_ok());
    }
}
