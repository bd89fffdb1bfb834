//! Serving on a socket: TLS, HTTP/1.1 and HTTP/2 on one port, upgrades, and a clean end.

use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::body;
use super::handler::Peer;
use crate::ApiServer;
use crate::auth::authenticate::certificate_user;

/// Longest time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for the headers of a request to arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most streams of one HTTP/2 connection (upstream: 250).
const MAX_STREAMS: u32 = 250;
/// Largest header list of a request in bytes.
const MAX_HEADER_BYTES: u32 = 1 << 20;
/// How often a quiet HTTP/2 connection is probed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// Longest time requests under way may take after shutdown began.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Most connections at once; further ones wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 16_384;
/// Pause after the kernel refused a connection, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl ApiServer {
    /// Serves on `listener` until `shutdown` is cancelled, then lets requests under way finish for a few seconds.
    ///
    /// Client certificates are the business of `tls`: when it asks for them, the verified one is what the
    /// authenticator sees.
    pub async fn serve(
        self: &Arc<Self>,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: CancellationToken,
    ) {
        let acceptor = TlsAcceptor::from(tls);
        let graceful = Arc::new(GracefulShutdown::new());
        let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = accept(&listener, &slots) => accepted,
            };
            let Some((socket, peer, slot)) = accepted else {
                continue;
            };
            let (server, acceptor, shutdown) = (self.clone(), acceptor.clone(), shutdown.clone());
            let watcher = graceful.watcher();
            tokio::spawn(async move {
                let work = server.connection(socket, peer, acceptor, shutdown, watcher);
                if let Err(error) = work.await {
                    tracing::debug!(%peer, %error, "connection ended");
                }
                drop(slot);
            });
        }
        self.stop_streams();
        if let Some(graceful) = Arc::into_inner(graceful) {
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await;
        }
    }

    async fn connection(
        self: Arc<Self>,
        socket: TcpStream,
        address: std::net::SocketAddr,
        acceptor: TlsAcceptor,
        shutdown: CancellationToken,
        watcher: hyper_util::server::graceful::Watcher,
    ) -> Result<(), body::BoxError> {
        socket.set_nodelay(true)?;
        let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await??;
        // The client's own certificate comes first.
        let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let user = certificates.first().and_then(|der| certificate_user(der));
        let peer = Peer::Socket {
            user: user.map(Arc::new),
            address,
        };
        let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let (server, peer) = (self.clone(), peer.clone());
            async move {
                let request = request.map(body::boxed);
                Ok::<_, std::convert::Infallible>(server.handle(request, peer).await)
            }
        });
        let builder = builder();
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
        drop(shutdown);
        watcher.watch(connection).await
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<tokio::sync::Semaphore>,
) -> Option<(
    TcpStream,
    std::net::SocketAddr,
    tokio::sync::OwnedSemaphorePermit,
)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((socket, address)) => Some((socket, address, slot)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL);
    builder
}
