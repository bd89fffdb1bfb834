//! SPDY/3.1, the server's side, over any connection.
//!
//! ```text
//!            ┌────────── reader task ──────────┐
//!  peer ────►│ frames ─► stream buffer (64 KiB) │───► the stream's user
//!            └─────────────────────────────────┘
//!            ┌─ writer task ─┐   ┌ a pump per stream ┐
//!  peer ◄────│ queued frames │◄──│ stream buffer     │◄─── the stream's user
//!            └───────────────┘   └───────────────────┘
//! ```
//!
//! Flow control: the library that all SPDY clients of Kubernetes use neither grants nor obeys
//! windows. So windows are granted always, and obeyed from the moment the peer shows that it knows
//! them. Without them, a stream whose user does not read stops the whole connection once its buffer
//! is full, as upstream's server does.

mod frame;
mod headers;
mod reader;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

pub use headers::{Decoder, Encoder, HeaderError, Headers, MAX_HEADER_BYTES};

use crate::connection::{CLOSE_TIMEOUT, Connection, FRAME_BYTES, QUEUE_FRAMES};
use frame::{INITIAL_WINDOW, Out};

/// Streams of one connection that may be open at once; further ones are refused.
pub const MAX_STREAMS: usize = 1000;
/// Streams opened by the peer that wait to be accepted.
const ACCEPT_STREAMS: usize = 16;

/// A stream that the client opened.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: u32,
    headers: Headers,
    /// Its bytes both ways. Shut down, it tells the client that we are finished.
    pub(crate) io: DuplexStream,
}

impl Stream {
    /// A header's value; empty if it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        header(&self.headers, name)
    }
}

/// A header's value; empty if it is missing.
pub(crate) fn header<'a>(headers: &'a Headers, name: &str) -> &'a str {
    let found = headers.iter().find(|(have, _)| have == name);
    found.map_or("", |(_, value)| value)
}

/// What all tasks of a connection share.
struct Common {
    /// Whether the peer has shown that it knows windows.
    flow_control: AtomicBool,
    initial_window: AtomicU32,
    gone: CancellationToken,
}

/// Speaks SPDY on `io`. Gives the handle that keeps the connection open and the streams the client
/// opens; streams that come when nobody accepts them any more are refused. Streams for which
/// `passive` says so do not keep the connection open.
pub(crate) fn serve<I>(
    io: I,
    passive: fn(&Headers) -> bool,
) -> Result<(Connection, mpsc::Receiver<Stream>), crate::Error>
where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    let encoder = Encoder::new().map_err(|error| crate::Error::Protocol(error.to_string()))?;
    let (input, output) = tokio::io::split(io);
    let (queue, frames) = mpsc::channel(QUEUE_FRAMES);
    let (accept, accepted) = mpsc::channel(ACCEPT_STREAMS);
    let common = Arc::new(Common {
        flow_control: AtomicBool::new(false),
        initial_window: AtomicU32::new(INITIAL_WINDOW),
        gone: CancellationToken::new(),
    });
    let (gone, ended) = (common.gone.clone(), CancellationToken::new());
    let reader = reader::Reader::new(input, common, accept, queue.downgrade(), passive);
    let reading = tokio::spawn(reader.run());
    let connection = Connection::new(queue, gone.clone(), ended.clone());
    tokio::spawn(async move {
        let mut writer = Writer { output, encoder };
        tokio::select! {
            result = writer.run(frames) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "spdy connection broke");
                    gone.cancel();
                }
            }
            () = gone.cancelled() => {}
        }
        writer.goodbye().await;
        // The peer closes when it has read everything; closing before it does could lose the end.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, reading).await;
        gone.cancel();
        ended.cancel();
    });
    Ok((connection, accepted))
}

struct Writer<W> {
    output: tokio::io::WriteHalf<W>,
    encoder: Encoder,
}

impl<W: AsyncWrite> Writer<W> {
    /// Sends frames until nobody can queue any more.
    async fn run(&mut self, mut frames: mpsc::Receiver<Out>) -> std::io::Result<()> {
        let mut bytes = BytesMut::new();
        while let Some(first) = frames.recv().await {
            let mut next = Some(first);
            while let Some(out) = next {
                let encoder = &mut self.encoder;
                out.encode(&mut bytes, || encoder.encode(&Headers::new()))?;
                next = frames.try_recv().ok();
            }
            self.output.write_all_buf(&mut bytes).await?;
            self.output.flush().await?;
        }
        Ok(())
    }

    /// Tells the peer that this is the end. It may have gone long ago, so errors mean nothing.
    async fn goodbye(&mut self) {
        let mut bytes = BytesMut::new();
        let out = Out::GoAway { last: 0, status: 0 };
        if out.encode(&mut bytes, || Ok(Vec::new())).is_ok() {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, async {
                self.output.write_all(&bytes).await?;
                self.output.shutdown().await
            })
            .await;
        }
    }
}

/// The part of a stream that sends to the client.
struct Outbound {
    stream: u32,
    window: Mutex<i64>,
    granted: Notify,
    /// The peer reset the stream.
    reset: CancellationToken,
    done: AtomicBool,
    common: Arc<Common>,
}

impl Outbound {
    fn new(stream: u32, common: Arc<Common>) -> Self {
        let window = common.initial_window.load(Ordering::Relaxed);
        Self {
            stream,
            window: Mutex::new(i64::from(window)),
            granted: Notify::new(),
            reset: CancellationToken::new(),
            done: AtomicBool::new(false),
            common,
        }
    }

    fn grant(&self, delta: i64) {
        *self.window.lock().unwrap_or_else(PoisonError::into_inner) += delta;
        self.granted.notify_one();
    }

    /// Takes room for up to `wanted` bytes, waiting for the peer to grant some.
    async fn room(&self, wanted: usize) -> usize {
        loop {
            {
                let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
                let room = usize::try_from(*window).unwrap_or(0).min(wanted);
                let room = match self.common.flow_control.load(Ordering::Relaxed) {
                    true => room,
                    false => wanted,
                };
                if room > 0 {
                    *window -= i64::try_from(room).unwrap_or(i64::MAX);
                    return room;
                }
            }
            self.granted.notified().await;
        }
    }

    /// Carries what the stream's user writes to the queue of frames, until the user is finished,
    /// the peer resets the stream, or the connection is gone.
    async fn pump(self: Arc<Self>, user: ReadHalf<DuplexStream>, queue: Queue) {
        tokio::select! {
            () = self.carry(user, &queue) => {}
            () = self.reset.cancelled() => {}
            () = self.common.gone.cancelled() => {}
        }
        self.done.store(true, Ordering::Relaxed);
    }

    async fn carry(&self, mut user: ReadHalf<DuplexStream>, queue: &Queue) {
        let stream = self.stream;
        let mut buffer = BytesMut::with_capacity(FRAME_BYTES);
        while let Ok(1..) = user.read_buf(&mut buffer).await {
            let mut bytes = buffer.split().freeze();
            while !bytes.is_empty() {
                let room = self.room(bytes.len()).await;
                let bytes = bytes.split_to(room);
                if !queue.send(Out::Data { stream, bytes }).await {
                    return;
                }
            }
            buffer.reserve(FRAME_BYTES);
        }
        queue.send(Out::Fin { stream }).await;
    }
}

/// A way to the writer, which keeps the connection open or does not.
enum Queue {
    Holding(mpsc::Sender<Out>),
    Passive(mpsc::WeakSender<Out>),
}

impl Queue {
    /// Whether the frame was queued; if not, the connection has ended.
    async fn send(&self, out: Out) -> bool {
        match self {
            Self::Holding(queue) => queue.send(out).await.is_ok(),
            Self::Passive(queue) => match queue.upgrade() {
                Some(queue) => queue.send(out).await.is_ok(),
                None => false,
            },
        }
    }
}

#[cfg(test)]
mod tests;
