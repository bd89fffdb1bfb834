//! The streams of exec, attach and port-forward, as every Kubernetes client speaks them: SPDY/3.1
//! and WebSocket, the server's side.
//!
//! Only the end that has the container terminates these protocols ([`remotecommand`],
//! [`portforward`]). Whoever stands between (API server, node agent) tunnels the upgraded
//! connection byte for byte with [`upgrade::proxy`] and knows nothing of what is inside.
//!
//! Both transports come down to one shape: a connection that carries [`tokio::io::DuplexStream`]s
//! of bounded size. A reader that does not read stops the peer through these buffers and TCP.
//!
//! ```no_run
//! use http::{Request, Response};
//! use hyper::body::Incoming;
//! use streams::remotecommand::{self, Exit, Options};
//! use streams::Body;
//! use tokio::io::AsyncWriteExt;
//!
//! // A hyper service of a container runtime: says hello on stdout and exits with 3.
//! async fn exec(request: Request<Incoming>) -> Response<Body> {
//!     let options = Options { stdout: true, ..Options::default() };
//!     let (response, pending) = match remotecommand::serve(request, options) {
//!         Ok(accepted) => accepted,
//!         Err(refused) => return refused.into_response(),
//!     };
//!     tokio::spawn(async move {
//!         // The client's streams are there once the response has gone out.
//!         let mut session = pending.session().await?;
//!         if let Some(stdout) = &mut session.stdout {
//!             stdout.write_all(b"hello\n").await?;
//!         }
//!         session.finish(Exit::Code(3)).await;
//!         Ok::<(), streams::Error>(())
//!     });
//!     response
//! }
//! ```

mod connection;
mod handshake;
pub mod portforward;
pub mod remotecommand;
pub mod spdy;
mod status;
pub mod upgrade;
mod websocket;

pub use handshake::Refused;

/// The body of the responses made here: empty for an upgrade, a line of text for a refusal.
pub type Body = http_body_util::Full<bytes::Bytes>;

/// Bytes that a stream holds for a reader that is slow, in each direction.
pub const STREAM_BUFFER_BYTES: usize = 64 << 10;

/// Why a stream connection failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection broke.
    #[error("connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// The HTTP connection could not be upgraded.
    #[error("unable to upgrade: {0}")]
    Upgrade(#[from] hyper::Error),
    /// The client did not open all streams in time.
    #[error("timed out waiting for client to create streams")]
    StreamsTimeout,
    /// The peer broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
}
