//! The reading side of a SPDY connection: owns the table of streams.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::frame::{self, Body, Head, MAX_CONTROL_BYTES, Out, Reset};
use super::{Common, Decoder, Headers, MAX_STREAMS, Outbound, Queue, Stream};
use crate::connection::{FRAME_BYTES, IDLE_TIMEOUT};
use crate::{Error, STREAM_BUFFER_BYTES};

/// The part of a stream that receives from the client.
struct Inbound {
    /// Towards the stream's user; `None` once the client is finished or the user has left.
    user: Option<WriteHalf<DuplexStream>>,
    outbound: Arc<Outbound>,
    /// Bytes received that the client has not been granted anew.
    ungranted: u32,
}

pub(super) struct Reader<R> {
    input: ReadHalf<R>,
    decoder: Decoder,
    streams: HashMap<u32, Inbound>,
    last: u32,
    common: Arc<Common>,
    accept: mpsc::Sender<Stream>,
    queue: mpsc::WeakSender<Out>,
    passive: fn(&Headers) -> bool,
}

impl<R: AsyncRead + Send + 'static> Reader<R> {
    pub(super) fn new(
        input: ReadHalf<R>,
        common: Arc<Common>,
        accept: mpsc::Sender<Stream>,
        queue: mpsc::WeakSender<Out>,
        passive: fn(&Headers) -> bool,
    ) -> Self {
        Self {
            input,
            decoder: Decoder::default(),
            streams: HashMap::new(),
            last: 0,
            common,
            accept,
            queue,
            passive,
        }
    }

    /// Reads until the peer has closed, breaks the protocol, or everything is over.
    pub(super) async fn run(mut self) {
        let gone = self.common.gone.clone();
        let result = tokio::select! {
            result = self.read() => result,
            () = gone.cancelled() => Ok(()),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "spdy connection ended");
        }
        for stream in self.streams.values_mut() {
            if let Some(mut user) = stream.user.take() {
                let _ = user.shutdown().await;
            }
        }
        gone.cancel();
    }

    async fn read(&mut self) -> Result<(), Error> {
        loop {
            let mut head = [0; 8];
            let read = self.input.read_exact(&mut head);
            let read = tokio::time::timeout(IDLE_TIMEOUT, read).await;
            match read {
                Err(_) => return Err(Error::Protocol("idle for too long".into())),
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Ok(());
                }
                Ok(result) => result?,
            };
            match Head::parse(head) {
                Some(Head::Data {
                    stream,
                    flags,
                    length,
                }) => {
                    self.data(stream, flags, length).await?;
                }
                Some(Head::Control {
                    kind,
                    flags,
                    length,
                }) => {
                    if length > MAX_CONTROL_BYTES {
                        let reason = format!("control frame of {length} bytes");
                        return Err(Error::Protocol(reason));
                    }
                    let mut body = vec![0; length];
                    self.input.read_exact(&mut body).await?;
                    self.control(kind, flags, &body).await?;
                }
                None => return Err(Error::Protocol("not SPDY/3".into())),
            }
        }
    }

    async fn send(&mut self, out: Out) {
        if let Some(queue) = self.queue.upgrade() {
            // An error means that the writer has ended; the reader will soon.
            let _ = queue.send(out).await;
        }
    }

    /// Hands the data to the stream's user piece by piece, waiting for it to read.
    async fn data(&mut self, id: u32, flags: u8, length: usize) -> Result<(), Error> {
        let mut buffer = vec![0; length.min(FRAME_BYTES)];
        let mut left = length;
        while left > 0 {
            let piece = &mut buffer[..left.min(FRAME_BYTES)];
            self.input.read_exact(piece).await?;
            left -= piece.len();
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            if let Some(user) = &mut stream.user
                && user.write_all(piece).await.is_err()
            {
                // Nobody reads this stream any more; what still comes is dropped.
                stream.user = None;
            }
            stream.ungranted += u32::try_from(piece.len()).unwrap_or(0);
            if stream.ungranted >= frame::INITIAL_WINDOW / 2 {
                let delta = std::mem::take(&mut stream.ungranted);
                self.send(Out::Window { stream: id, delta }).await;
            }
        }
        if flags & frame::FLAG_FIN != 0 {
            self.finished(id).await;
        }
        Ok(())
    }

    /// The client sends nothing more on the stream.
    async fn finished(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && let Some(mut user) = stream.user.take()
        {
            let _ = user.shutdown().await;
        }
    }

    async fn control(&mut self, kind: u16, flags: u8, bytes: &[u8]) -> Result<(), Error> {
        let mut body = Body(bytes);
        match kind {
            frame::SYN_STREAM => self.open(flags, body).await?,
            frame::SYN_REPLY | frame::HEADERS => {
                let id = body.stream();
                // Of no use, but the compression goes on from here.
                self.headers(body.0)?;
                if flags & frame::FLAG_FIN != 0 {
                    self.finished(id).await;
                }
            }
            frame::RST_STREAM => {
                if let Some(stream) = self.streams.remove(&body.stream()) {
                    stream.outbound.reset.cancel();
                }
            }
            frame::SETTINGS => self.settings(body),
            frame::PING => {
                let id = body.number();
                // The client's pings are odd; an even one would answer ours.
                if id % 2 == 1 {
                    self.send(Out::Ping { id }).await;
                }
            }
            frame::WINDOW_UPDATE => {
                self.common.flow_control.store(true, Ordering::Relaxed);
                let (id, delta) = (body.stream(), body.stream());
                if let Some(stream) = self.streams.get(&id) {
                    stream.outbound.grant(i64::from(delta));
                }
            }
            // After GOAWAY the client opens nothing; what is open goes on. Unknown frames are to
            // be ignored.
            _ => {}
        }
        Ok(())
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, Error> {
        let headers = self.decoder.decode(block);
        headers.map_err(|error| Error::Protocol(error.to_string()))
    }

    fn settings(&mut self, mut body: Body<'_>) {
        let count = body.number() as usize;
        for _ in 0..count.min(body.0.len() / 8) {
            let (id, value) = (body.number() & 0x00ff_ffff, body.stream());
            if id == frame::SETTING_INITIAL_WINDOW {
                self.common.flow_control.store(true, Ordering::Relaxed);
                let old = self.common.initial_window.swap(value, Ordering::Relaxed);
                for stream in self.streams.values() {
                    stream.outbound.grant(i64::from(value) - i64::from(old));
                }
            }
        }
    }

    async fn open(&mut self, flags: u8, mut body: Body<'_>) -> Result<(), Error> {
        let id = body.stream();
        // The associated stream, then priority and slot, mean nothing here.
        body.number();
        let headers = self.headers(body.0.get(2..).unwrap_or_default())?;
        let over = |s: &Inbound| s.user.is_none() && s.outbound.done.load(Ordering::Relaxed);
        self.streams.retain(|_, stream| !over(stream));
        if id.is_multiple_of(2) || id <= self.last {
            let status = Reset::ProtocolError;
            self.send(Out::Reset { stream: id, status }).await;
            return Ok(());
        }
        self.last = id;
        let refuse = Out::Reset {
            stream: id,
            status: Reset::RefusedStream,
        };
        if self.streams.len() >= MAX_STREAMS || self.accept.is_closed() {
            self.send(refuse).await;
            return Ok(());
        }
        let Some(queue) = self.queue.upgrade() else {
            return Ok(());
        };
        let (ours, io) = tokio::io::duplex(STREAM_BUFFER_BYTES);
        let (from_user, mut to_user) = tokio::io::split(ours);
        let outbound = Arc::new(Outbound::new(id, self.common.clone()));
        let stream = Stream { id, headers, io };
        let queue = match (self.passive)(&stream.headers) {
            true => Queue::Passive(queue.downgrade()),
            false => Queue::Holding(queue),
        };
        if flags & frame::FLAG_UNIDIRECTIONAL == 0 {
            // Before the stream's user can send anything.
            queue.send(Out::Reply { stream: id }).await;
            tokio::spawn(outbound.clone().pump(from_user, queue));
        } else {
            outbound.done.store(true, Ordering::Relaxed);
        }
        let finished = flags & frame::FLAG_FIN != 0;
        if finished {
            let _ = to_user.shutdown().await;
        }
        let inbound = Inbound {
            user: (!finished).then_some(to_user),
            outbound,
            ungranted: 0,
        };
        self.streams.insert(id, inbound);
        if self.accept.send(stream).await.is_err() {
            self.streams.remove(&id);
            self.send(refuse).await;
        }
        Ok(())
    }
}
