//! Port-forward: any number of byte streams to ports of a pod over one connection.
//!
//! Over SPDY, and over SPDY tunnelled in WebSocket messages, each forwarded connection is a pair of
//! streams, data and error, with the same `requestID`. Over plain WebSocket channels the ports are
//! given in advance; port n has channels 2n (data) and 2n + 1 (error), each of which begins with
//! the port number.

use std::collections::HashMap;
use std::time::Duration;

use http::{Request, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, copy, split};
use tokio::sync::mpsc;

use crate::connection::Connection;
use crate::handshake::{self, Refused, Transport};
use crate::spdy;
use crate::websocket::{self, Channel, Encoding};
use crate::{Body, Error};

const V1: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const V4_BASE64: &str = "v4.base64.channel.k8s.io";

/// Ports that one connection over plain WebSocket channels may name.
const MAX_PORTS: usize = 100;
/// Streams that may wait for the other one of their pair.
const MAX_UNPAIRED: usize = 100;
/// How long a client may go on sending to a port that has nothing more to say; socat's default.
const LINGER: Duration = Duration::from_millis(500);

/// A connection that begins once the response has been sent.
#[must_use]
pub struct Pending {
    upgrade: OnUpgrade,
    transport: Transport,
    ports: Vec<u16>,
}

/// The connections that a client wants forwarded.
pub struct Forwards {
    source: Source,
    connection: Connection,
}

enum Source {
    Spdy(mpsc::Receiver<spdy::Stream>, HashMap<String, Half>),
    Channels(std::vec::IntoIter<Forward>),
}

/// One of the two streams of a connection, until the other comes.
struct Half {
    port: u16,
    is_error: bool,
    io: DuplexStream,
}

/// One connection to forward.
pub struct Forward {
    /// The port in the pod.
    pub port: u16,
    data: DuplexStream,
    error: DuplexStream,
}

/// Accepts a port-forward request. The response must be sent for it to begin. `ports` are those of
/// the request's URL, which only clients on plain WebSocket channels name (others give none).
///
/// # Errors
/// With the response for a client that does not ask for an upgrade or for no protocol known here.
pub fn serve<B>(
    mut request: Request<B>,
    ports: &[u16],
) -> Result<(Response<Body>, Pending), Refused> {
    let websocket: &[&str] = match ports.is_empty() {
        true => &[TUNNEL],
        false => &[TUNNEL, V4, V4_BASE64, ""],
    };
    let (response, transport) = handshake::negotiate(request.headers(), &[V1], websocket)?;
    if ports.len() > MAX_PORTS {
        let reason = format!("more than {MAX_PORTS} ports");
        return Err(Refused::new(http::StatusCode::BAD_REQUEST, reason));
    }
    let pending = Pending {
        upgrade: hyper::upgrade::on(&mut request),
        transport,
        ports: ports.to_vec(),
    };
    Ok((response, pending))
}

impl Pending {
    /// Waits for the connection.
    ///
    /// # Errors
    /// If it breaks.
    pub async fn forwards(self) -> Result<Forwards, Error> {
        let io = TokioIo::new(self.upgrade.await?);
        let (connection, source) = match self.transport {
            Transport::Spdy(_) => spdy_source(io)?,
            Transport::WebSocket(TUNNEL) => spdy_source(websocket::tunnel(io).await)?,
            Transport::WebSocket(protocol) => {
                let encoding = Encoding {
                    base64: protocol == V4_BASE64,
                    close: false,
                };
                let channels = vec![Channel::Out; 2 * self.ports.len()];
                let (connection, streams) = websocket::serve(io, encoding, &channels, &[]).await;
                let forwards = pair_channels(&self.ports, streams).await;
                (connection, Source::Channels(forwards.into_iter()))
            }
        };
        Ok(Forwards { source, connection })
    }
}

fn spdy_source<I>(io: I) -> Result<(Connection, Source), Error>
where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    let (connection, accepted) = spdy::serve(io, |_| false)?;
    Ok((connection, Source::Spdy(accepted, HashMap::new())))
}

/// Each channel begins with its port, as two bytes, little end first.
async fn pair_channels(ports: &[u16], streams: Vec<DuplexStream>) -> Vec<Forward> {
    let mut forwards = Vec::new();
    let mut streams = streams.into_iter();
    for port in ports {
        let (Some(mut data), Some(mut error)) = (streams.next(), streams.next()) else {
            break;
        };
        for stream in [&mut data, &mut error] {
            // An error means that the client has left, which whoever forwards will see.
            let _ = stream.write_all(&port.to_le_bytes()).await;
        }
        let port = *port;
        forwards.push(Forward { port, data, error });
    }
    forwards
}

impl Forwards {
    /// The next connection to forward; `None` when the client has left. To be called again while
    /// earlier ones are under way.
    pub async fn next(&mut self) -> Option<Forward> {
        let gone = self.connection.gone();
        match &mut self.source {
            Source::Channels(forwards) => match forwards.next() {
                Some(forward) => Some(forward),
                None => {
                    gone.cancelled().await;
                    None
                }
            },
            Source::Spdy(accepted, halves) => loop {
                let stream = accepted.recv().await?;
                if let Some(forward) = pair(stream, halves) {
                    return Some(forward);
                }
            },
        }
    }

    /// Resolves when the client has left.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        self.connection.gone().cancelled_owned()
    }
}

/// Puts a new stream to its other half, or keeps it until that comes.
fn pair(stream: spdy::Stream, halves: &mut HashMap<String, Half>) -> Option<Forward> {
    let port = stream.header("port").parse().ok().filter(|port| *port > 0);
    let is_error = match stream.header("streamtype") {
        "error" => true,
        "data" => false,
        other => {
            tracing::debug!(other, "invalid stream type");
            return None;
        }
    };
    let port: u16 = port?;
    let request = match stream.header("requestid") {
        // Clients of the first days open the data stream right after the error stream.
        "" if is_error => stream.id.to_string(),
        "" => stream.id.saturating_sub(2).to_string(),
        request => request.to_owned(),
    };
    let io = stream.io;
    match halves.remove(&request) {
        Some(half) if half.is_error != is_error && half.port == port => {
            let (data, error) = match is_error {
                true => (half.io, io),
                false => (io, half.io),
            };
            Some(Forward { port, data, error })
        }
        _ => {
            if halves.len() < MAX_UNPAIRED {
                halves.insert(request, Half { port, is_error, io });
            }
            None
        }
    }
}

impl Forward {
    /// Carries bytes both ways between the client and `io`, the connection to the port, until the
    /// port has said everything. What breaks on the way ends the connection.
    ///
    /// A client that has nothing more to send still gets the rest of the answer. The other way
    /// round kubectl before 1.30 keeps its own connection open until the error stream ends, even
    /// when the data has, so both end together.
    pub async fn join<I: AsyncRead + AsyncWrite>(self, io: I) {
        let Self { data, error, .. } = self;
        let (mut from_client, mut to_client) = split(data);
        let (mut from_port, mut to_port) = split(io);
        let asking = async {
            // An error means that the port has closed, which ends the answer too.
            if copy(&mut from_client, &mut to_port).await.is_ok() {
                let _ = to_port.shutdown().await;
            }
        };
        let answering = async {
            // Either error means that there is nobody left to tell.
            let _ = copy(&mut from_port, &mut to_client).await;
            let _ = to_client.shutdown().await;
            drop(error);
        };
        tokio::pin!(asking, answering);
        tokio::select! {
            () = &mut asking => answering.await,
            () = &mut answering => {
                // Whatever is still under way after that has nobody to read it.
                let _ = tokio::time::timeout(LINGER, asking).await;
            }
        }
    }

    /// Ends the connection and tells the client why; upstream says
    /// `error forwarding port 80 to pod …, uid : …`.
    pub async fn fail(mut self, reason: &str) {
        // An error means that the client has left.
        let _ = self.error.write_all(reason.as_bytes()).await;
    }
}
