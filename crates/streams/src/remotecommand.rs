//! Exec and attach: a command's standard streams, its terminal's size and how it ended.
//!
//! What a transport calls them: streams with a `streamType` header over SPDY; channels 0 (stdin),
//! 1 (stdout), 2 (stderr), 3 (error) and 4 (resize) over WebSocket.

use std::time::Duration;

use http::{Request, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::connection::Connection;
use crate::handshake::{self, Refused, Transport};
use crate::spdy::{self, Headers};
use crate::websocket::{self, Channel, Encoding};
use crate::{Body, Error, status};

/// How long a client may take to open its streams.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// Terminal sizes that wait to be applied.
const RESIZE_QUEUE: usize = 8;
/// Largest message about a terminal's size, in bytes.
const MAX_RESIZE_BYTES: usize = 4 << 10;

const V1: &str = "channel.k8s.io";
const V1_BASE64: &str = "base64.channel.k8s.io";
const V2: &str = "v2.channel.k8s.io";
const V3: &str = "v3.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const V4_BASE64: &str = "v4.base64.channel.k8s.io";
const V5: &str = "v5.channel.k8s.io";
/// What SPDY clients may speak; v5 is v4 there.
const SPDY_PROTOCOLS: [&str; 5] = [V5, V4, V3, V2, V1];
/// What WebSocket clients may speak; one that names nothing means the first version.
const WEBSOCKET_PROTOCOLS: [&str; 6] = [V5, V4, V4_BASE64, V1, V1_BASE64, ""];

/// Which streams the client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// It sends standard input.
    pub stdin: bool,
    /// It wants standard output.
    pub stdout: bool,
    /// It wants standard error; a terminal has none.
    pub stderr: bool,
    /// The command runs on a terminal, whose size the client tells.
    pub tty: bool,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code; 0 is success. For a signal, the shells' 128 + n.
    Code(i32),
    /// It could not be run or attached to; upstream says `error executing command in container: …`.
    Failed(String),
}

/// A session that begins once the response has been sent.
#[must_use]
pub struct Pending {
    upgrade: OnUpgrade,
    transport: Transport,
    options: Options,
}

/// The streams of a running command. Whoever copies a stream may take it out.
pub struct Session {
    /// What the client sends; ends when the client is finished or gone. Read only.
    pub stdin: Option<DuplexStream>,
    /// Towards the client. Write only; dropped or shut down, it ends for the client.
    pub stdout: Option<DuplexStream>,
    /// Likewise.
    pub stderr: Option<DuplexStream>,
    /// Sizes of the client's terminal, the first one included. Nothing comes without a terminal.
    pub resize: mpsc::Receiver<TerminalSize>,
    error: DuplexStream,
    json_status: bool,
    connection: Connection,
    _stop: DropGuard,
}

/// Accepts a request for exec or attach. The response must be sent for the session to begin.
///
/// # Errors
/// With the response for a client that does not ask for an upgrade or for no protocol known here.
pub fn serve<B>(
    mut request: Request<B>,
    options: Options,
) -> Result<(Response<Body>, Pending), Refused> {
    let mut options = options;
    options.stderr &= !options.tty;
    if !(options.stdin || options.stdout || options.stderr) {
        let reason = "you must specify at least 1 of stdin, stdout, stderr".to_owned();
        return Err(Refused::new(http::StatusCode::BAD_REQUEST, reason));
    }
    let (response, transport) =
        handshake::negotiate(request.headers(), &SPDY_PROTOCOLS, &WEBSOCKET_PROTOCOLS)?;
    let upgrade = hyper::upgrade::on(&mut request);
    let pending = Pending {
        upgrade,
        transport,
        options,
    };
    Ok((response, pending))
}

impl Pending {
    /// Waits for the client's streams.
    ///
    /// # Errors
    /// If the connection breaks or the client does not open its streams in time.
    pub async fn session(self) -> Result<Session, Error> {
        let io = TokioIo::new(self.upgrade.await?);
        let streams = match self.transport {
            Transport::Spdy(protocol) => spdy_streams(io, protocol, self.options).await?,
            Transport::WebSocket(protocol) => websocket_streams(io, protocol, self.options).await,
        };
        Ok(streams.into_session())
    }
}

/// The streams as a transport gives them.
struct Streams {
    connection: Connection,
    stdin: Option<DuplexStream>,
    stdout: Option<DuplexStream>,
    stderr: Option<DuplexStream>,
    resize: Option<DuplexStream>,
    error: DuplexStream,
    json_status: bool,
}

impl Streams {
    fn into_session(self) -> Session {
        let stop = CancellationToken::new();
        let (sizes, resize) = mpsc::channel(RESIZE_QUEUE);
        if let Some(stream) = self.resize {
            let stop = stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = read_sizes(stream, sizes) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        Session {
            stdin: self.stdin,
            stdout: self.stdout,
            stderr: self.stderr,
            resize,
            error: self.error,
            json_status: self.json_status,
            connection: self.connection,
            _stop: stop.drop_guard(),
        }
    }
}

impl Session {
    /// Resolves when the client has left, for commands that should not go on without it.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        self.connection.gone().cancelled_owned()
    }

    /// Tells the client, after all output, how the command ended and closes the connection. Resolves when
    /// the client has everything or has left: streams that were taken out must be dropped for that.
    pub async fn finish(mut self, exit: Exit) {
        drop((self.stdin, self.stdout, self.stderr));
        let text = match self.json_status {
            true => status::json(&exit).to_string(),
            false => status::text(&exit),
        };
        // An error means that the client has left.
        let _ = self.error.write_all(text.as_bytes()).await;
        drop(self.error);
        self.connection.finish().await;
    }
}

/// Streams on which only the client sends.
fn is_input(headers: &Headers) -> bool {
    matches!(spdy::header(headers, "streamtype"), "stdin" | "resize")
}

async fn spdy_streams(
    io: TokioIo<hyper::upgrade::Upgraded>,
    protocol: &str,
    options: Options,
) -> Result<Streams, Error> {
    let (connection, mut accepted) = spdy::serve(io, is_input)?;
    let resizes = options.tty && !matches!(protocol, V2 | V1 | "");
    let wanted = [true, options.stdin, options.stdout, options.stderr, resizes];
    let mut missing = wanted.iter().filter(|wanted| **wanted).count();
    let (mut stdin, mut stdout, mut stderr) = (None, None, None);
    let (mut resize, mut error) = (None, None);
    let all = async {
        while missing > 0 {
            let stream = accepted.recv().await?;
            let slot = match stream.header("streamtype") {
                "error" => &mut error,
                "stdin" => &mut stdin,
                "stdout" => &mut stdout,
                "stderr" => &mut stderr,
                "resize" => &mut resize,
                other => {
                    tracing::debug!(other, "unexpected stream type");
                    continue;
                }
            };
            if slot.replace(stream.io).is_none() {
                missing -= 1;
            }
        }
        Some(())
    };
    match tokio::time::timeout(STREAMS_TIMEOUT, all).await {
        Err(_) => return Err(Error::StreamsTimeout),
        Ok(None) => {
            return Err(Error::Protocol(
                "client left before its streams came".into(),
            ));
        }
        Ok(Some(())) => {}
    }
    let error = error.ok_or_else(|| Error::Protocol("client opened no error stream".into()))?;
    Ok(Streams {
        connection,
        stdin: stdin.filter(|_| options.stdin),
        stdout: stdout.filter(|_| options.stdout),
        stderr: stderr.filter(|_| options.stderr),
        resize,
        error,
        json_status: matches!(protocol, V5 | V4),
    })
}

async fn websocket_streams(
    io: TokioIo<hyper::upgrade::Upgraded>,
    protocol: &str,
    options: Options,
) -> Streams {
    let encoding = Encoding {
        base64: matches!(protocol, V4_BASE64 | V1_BASE64),
        close: protocol == V5,
    };
    let hello = match options {
        Options { stdout: true, .. } => 1,
        Options { stderr: true, .. } => 2,
        _ => 3,
    };
    let channels = [
        Channel::In,
        Channel::Out,
        Channel::Out,
        Channel::Last,
        Channel::In,
    ];
    let (connection, streams) = websocket::serve(io, encoding, &channels, &[hello]).await;
    let mut streams = streams.into_iter();
    let mut next = |wanted: bool| streams.next().filter(|_| wanted);
    let (stdin, stdout, stderr) = (
        next(options.stdin),
        next(options.stdout),
        next(options.stderr),
    );
    // There are five channels; a stream without an other end stands for the impossible.
    let error = next(true).unwrap_or_else(|| tokio::io::duplex(1).0);
    Streams {
        connection,
        stdin,
        stdout,
        stderr,
        resize: next(options.tty),
        error,
        json_status: matches!(protocol, V5 | V4 | V4_BASE64),
    }
}

/// Reads `{"Width":80,"Height":24}` again and again, however it is cut.
async fn read_sizes(mut stream: DuplexStream, sizes: mpsc::Sender<TerminalSize>) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 256];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        bytes.extend_from_slice(&buffer[..read]);
        let mut parsed = serde_json::Deserializer::from_slice(&bytes).into_iter();
        let mut used = 0;
        let mut found: Vec<TerminalSize> = Vec::new();
        let bad = loop {
            match parsed.next() {
                Some(Ok(size)) => found.push(size),
                Some(Err(error)) => break !error.is_eof(),
                None => break false,
            }
            used = parsed.byte_offset();
        };
        bytes.drain(..used);
        for size in found {
            if sizes.send(size).await.is_err() {
                return;
            }
        }
        if bad || bytes.len() > MAX_RESIZE_BYTES {
            tracing::debug!("a terminal size makes no sense");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sizes_are_read_however_they_are_cut() {
        let (mut client, server) = tokio::io::duplex(64);
        let (sizes, mut resize) = mpsc::channel(4);
        let reading = tokio::spawn(read_sizes(server, sizes));
        for piece in [
            "{\"Width\":80,\"Hei",
            "ght\":24}\n{\"Width\":1,\"Height\":2}",
            "\n",
        ] {
            client.write_all(piece.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
        }
        drop(client);
        reading.await.unwrap();
        let (width, height) = (80, 24);
        assert_eq!(resize.recv().await, Some(TerminalSize { width, height }));
        let (width, height) = (1, 2);
        assert_eq!(resize.recv().await, Some(TerminalSize { width, height }));
        assert_eq!(resize.recv().await, None);
    }
}
