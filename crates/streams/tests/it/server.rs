//! A fake API server on loopback: discovery and one pod for kubectl to find, exec as a child
//! process, port-forward to loopback; and a second server that only tunnels to the first, as the
//! API server does to the node and the node to the runtime.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Stdio;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use streams::remotecommand::{self, Exit, Options};
use streams::{Error, portforward, upgrade};
use tokio::io::{AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

type Answer = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

/// Starts both servers; gives the address of the tunnelling one.
pub(crate) async fn start() -> SocketAddr {
    let runtime = listen(|request| async move { answer(request) }).await;
    listen(move |request| tunnel(request, runtime)).await
}

async fn listen<F, R>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Answer> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let answer = answer(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(io), service)
                    .with_upgrades();
                let _ = connection.await;
            });
        }
    });
    address
}

async fn tunnel(request: Request<Incoming>, to: SocketAddr) -> Answer {
    let io = TcpStream::connect(to).await.unwrap();
    upgrade::proxy(request, io).await.unwrap()
}

fn boxed(response: Response<streams::Body>) -> Answer {
    response.map(|body| body.map_err(|never| match never {}).boxed_unsync())
}

fn answer(request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let pod = "/api/v1/namespaces/default/pods/web";
    match path.strip_prefix(pod) {
        Some("/exec") => exec(request),
        Some("/portforward") => forward(request),
        _ => boxed(document(&path)),
    }
}

fn document(path: &str) -> Response<streams::Body> {
    let value = match path {
        "/api" => json!({ "kind": "APIVersions", "versions": ["v1"] }),
        "/apis" => json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] }),
        "/api/v1" => json!({
            "kind": "APIResourceList",
            "groupVersion": "v1",
            "resources": [{
                "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod",
                "verbs": ["get", "list"], "shortNames": ["po"],
            }],
        }),
        "/api/v1/namespaces/default/pods/web" => json!({
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": { "name": "web", "namespace": "default", "uid": "1" },
            "spec": { "containers": [{ "name": "web", "image": "web" }] },
            "status": { "phase": "Running" },
        }),
        _ => Value::Null,
    };
    let mut response = Response::new(Full::from(value.to_string()));
    if value.is_null() {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", json);
    response
}

/// The values of a query parameter.
fn values(query: &str, name: &str) -> Vec<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let hits = pairs.filter(|(have, _)| *have == name);
    hits.map(|(_, value)| unescape(value)).collect()
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [a, b, tail @ ..]) => {
                let digits = String::from_utf8_lossy(&[*a, *b]).into_owned();
                bytes.push(u8::from_str_radix(&digits, 16).unwrap());
                rest = tail;
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(*first),
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn exec(request: Request<Incoming>) -> Answer {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let wants = |name| values(&query, name).iter().any(|v| v == "true" || v == "1");
    let options = Options {
        stdin: wants("stdin"),
        stdout: wants("stdout"),
        stderr: wants("stderr"),
        tty: wants("tty"),
    };
    let (response, pending) = match remotecommand::serve(request, options) {
        Ok(accepted) => accepted,
        Err(refused) => return boxed(refused.into_response()),
    };
    let command = values(&query, "command");
    tokio::spawn(async move {
        if let Err(error) = run(pending, command, options).await {
            eprintln!("exec: {error}");
        }
    });
    boxed(response)
}

/// Runs the command on this machine. With a terminal it only tells the terminal's size.
async fn run(
    pending: remotecommand::Pending,
    command: Vec<String>,
    options: Options,
) -> Result<(), Error> {
    let mut session = pending.session().await?;
    if options.tty {
        let size = session.resize.recv().await;
        let size = size.map(|size| format!("size {}x{}\r\n", size.width, size.height));
        if let (Some(stdout), Some(size)) = (&mut session.stdout, size) {
            stdout.write_all(size.as_bytes()).await?;
        }
        session.finish(Exit::Code(0)).await;
        return Ok(());
    }
    let spawned = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let reason = format!("error executing command in container: {error}");
            session.finish(Exit::Failed(reason)).await;
            return Ok(());
        }
    };
    let (mut from, mut to) = (session.stdin.take(), child.stdin.take());
    let input = tokio::spawn(async move {
        if let (Some(from), Some(to)) = (&mut from, &mut to) {
            let _ = copy(from, to).await;
        }
    });
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut out, mut err) = (session.stdout.take(), session.stderr.take());
    let copy_out = async {
        if let Some(out) = &mut out {
            let _ = copy(&mut stdout, out).await;
        }
    };
    let copy_err = async {
        if let Some(err) = &mut err {
            let _ = copy(&mut stderr, err).await;
        }
    };
    tokio::join!(copy_out, copy_err);
    drop((out, err));
    let code = child.wait().await?.code().unwrap_or(255);
    session.finish(Exit::Code(code)).await;
    input.abort();
    Ok(())
}

fn forward(request: Request<Incoming>) -> Answer {
    let ports = values(request.uri().query().unwrap_or_default(), "ports");
    let ports: Vec<u16> = ports.iter().filter_map(|port| port.parse().ok()).collect();
    let (response, pending) = match portforward::serve(request, &ports) {
        Ok(accepted) => accepted,
        Err(refused) => return boxed(refused.into_response()),
    };
    tokio::spawn(async move {
        let mut forwards = pending.forwards().await?;
        while let Some(forward) = forwards.next().await {
            tokio::spawn(async move {
                match TcpStream::connect(("127.0.0.1", forward.port)).await {
                    Ok(io) => forward.join(io).await,
                    Err(error) => forward.fail(&format!("no way: {error}")).await,
                }
            });
        }
        Ok::<(), Error>(())
    });
    boxed(response)
}
