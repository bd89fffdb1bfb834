//! Connections to the ports of a sandbox, made from inside its network.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use streams::portforward::{Forward, Pending};

use super::Runtime;

/// How long a port may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// Serves one client.
pub async fn serve(runtime: Arc<Runtime>, sandbox: String, pending: Pending) {
    let mut forwards = match pending.forwards().await {
        Ok(forwards) => forwards,
        Err(error) => {
            tracing::debug!(%error, "a client left before forwarding a port");
            return;
        }
    };
    while let Some(forward) = forwards.next().await {
        let namespace = match runtime.find_sandbox(&sandbox) {
            Some(sandbox) if sandbox.is_ready() => {
                (!sandbox.host_network()).then(|| runtime.netns(&sandbox.id()))
            }
            _ => {
                let reason = format!("sandbox {sandbox} is not running");
                forward.fail(&reason).await;
                continue;
            }
        };
        tokio::spawn(one(forward, namespace, sandbox.clone(), forwards.gone()));
    }
}

async fn one(
    forward: Forward,
    namespace: Option<PathBuf>,
    sandbox: String,
    gone: impl Future<Output = ()>,
) {
    let port = forward.port;
    match connect(namespace, port).await {
        Ok(stream) => tokio::select! {
            () = forward.join(stream) => {}
            () = gone => {}
        },
        Err(error) => {
            let reason = format!(
                "error forwarding port {port} to pod {sandbox}, uid : failed to execute \
                 portforward in network namespace: failed to connect to localhost:{port} inside \
                 namespace {sandbox:?}, {error}"
            );
            forward.fail(&reason).await;
        }
    }
}

async fn connect(namespace: Option<PathBuf>, port: u16) -> io::Result<tokio::net::TcpStream> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A thread of its own, since it ends up in another network.
    std::thread::Builder::new()
        .name("port-forward".into())
        .spawn(move || {
            let _ = sender.send(connect_inside(namespace.as_deref(), port));
        })?;
    let stream = receiver
        .await
        .map_err(|_| io::Error::other("connecting was interrupted"))??;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

/// Enters the network for the rest of the thread's life and connects to its loopback.
fn connect_inside(namespace: Option<&Path>, port: u16) -> io::Result<TcpStream> {
    if let Some(path) = namespace {
        setns(std::fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    }
    let to = |address: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT);
    to(Ipv4Addr::LOCALHOST.into())
        .or_else(|error| to(Ipv6Addr::LOCALHOST.into()).map_err(|_| error))
}
