//! Channels multiplexed over WebSocket messages, as `channel.k8s.io` and its successors define:
//! the first byte of a message is the number of its channel. In the base64 variants messages are
//! text, the number is a digit and the rest is encoded.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf,
};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::CancellationToken;

use crate::STREAM_BUFFER_BYTES;
use crate::connection::{CLOSE_TIMEOUT, Connection, FRAME_BYTES, IDLE_TIMEOUT, QUEUE_FRAMES};

/// Largest message taken, in bytes.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Buffer of a connection that is allocated at once, in bytes.
const READ_BUFFER_BYTES: usize = 16 << 10;
/// In v5, a message to this channel closes the channel that its second byte names.
const CLOSE_CHANNEL: u8 = 255;

type Socket<I> = WebSocketStream<I>;

async fn socket<I: AsyncRead + AsyncWrite + Unpin>(io: I) -> Socket<I> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// How messages carry channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encoding {
    pub(crate) base64: bool,
    /// Whether channel 255 closes others (v5).
    pub(crate) close: bool,
}

impl Encoding {
    fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(1 + bytes.len().div_ceil(3) * 4);
            text.push(char::from(b'0' + channel));
            STANDARD.encode_string(bytes, &mut text);
            return Message::text(text);
        }
        let mut message = BytesMut::with_capacity(1 + bytes.len());
        message.put_u8(channel);
        message.extend_from_slice(bytes);
        Message::Binary(message.freeze())
    }

    /// The channel and its bytes; `None` for what is no message of a channel.
    fn decode(self, message: Message) -> Option<(u8, Bytes)> {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            _ => return None,
        };
        if bytes.is_empty() {
            return None;
        }
        let first = bytes.split_to(1)[0];
        if !self.base64 {
            return Some((first, bytes));
        }
        let channel = first.checked_sub(b'0')?;
        let bytes = STANDARD.decode(bytes).ok()?;
        Some((channel, bytes.into()))
    }
}

/// What a channel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    /// The client only sends on it; it does not keep the connection open.
    In,
    /// The server sends on it.
    Out,
    /// The server sends on it when the others have ended: clients take what comes here for the end of all.
    Last,
}

/// Opens the channels on an upgraded connection. `hello` is the channel that gets an empty message
/// at once: clients take it for the sign that the connection stands.
pub(crate) async fn serve<I>(
    io: I,
    encoding: Encoding,
    channels: &[Channel],
    hello: &[u8],
) -> (Connection, Vec<DuplexStream>)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sink, source) = socket(io).await.split();
    let (queue, messages) = mpsc::channel(QUEUE_FRAMES);
    let (gone, ended) = (CancellationToken::new(), CancellationToken::new());
    let mut users = Vec::new();
    let mut inbound = Vec::new();
    for channel in hello {
        // The queue is empty and longer than there are channels to greet.
        let _ = queue.try_send(encoding.encode(*channel, &[]));
    }
    // Cancelled by whoever is the last to drop a guard of it.
    let others_ended = CancellationToken::new();
    let others = Arc::new(others_ended.clone().drop_guard());
    for (number, kind) in (0..).zip(channels) {
        let (ours, theirs) = tokio::io::duplex(STREAM_BUFFER_BYTES);
        let (from_user, to_user) = tokio::io::split(ours);
        users.push(theirs);
        inbound.push(Some(to_user));
        let (sends, waits) = match kind {
            Channel::In => continue,
            Channel::Out => (Some(others.clone()), None),
            Channel::Last => (None, Some(others_ended.clone())),
        };
        let (queue, gone) = (queue.clone(), gone.clone());
        tokio::spawn(async move {
            let sending = async {
                if let Some(others_ended) = waits {
                    others_ended.cancelled().await;
                }
                pump(from_user, number, encoding, queue).await;
            };
            tokio::select! {
                () = sending => {}
                () = gone.cancelled() => {}
            }
            drop(sends);
        });
    }
    drop(others);
    let connection = Connection::new(queue, gone.clone(), ended.clone());
    let reading = tokio::spawn(read(source, encoding, inbound, gone.clone()));
    tokio::spawn(async move {
        write(sink, messages, &gone).await;
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, reading).await;
        gone.cancel();
        ended.cancel();
    });
    (connection, users)
}

async fn pump(
    mut user: ReadHalf<DuplexStream>,
    channel: u8,
    encoding: Encoding,
    queue: mpsc::Sender<Message>,
) {
    let mut buffer = BytesMut::with_capacity(FRAME_BYTES);
    while let Ok(1..) = user.read_buf(&mut buffer).await {
        let message = encoding.encode(channel, &buffer);
        buffer.clear();
        if queue.send(message).await.is_err() {
            return;
        }
    }
}

/// Sends messages until nobody can queue any more, then says goodbye.
async fn write<I: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<Socket<I>, Message>,
    mut messages: mpsc::Receiver<Message>,
    gone: &CancellationToken,
) {
    let sending = async {
        while let Some(message) = messages.recv().await {
            sink.send(message).await?;
        }
        let normal = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        sink.send(Message::Close(Some(normal))).await
    };
    let result: Result<(), WsError> = tokio::select! {
        result = sending => result,
        () = gone.cancelled() => return,
    };
    if let Err(error) = result {
        tracing::debug!(%error, "websocket broke");
        gone.cancel();
    }
}

/// Hands messages to the users of their channels until the peer is gone.
async fn read<I: AsyncRead + AsyncWrite + Unpin>(
    mut source: SplitStream<Socket<I>>,
    encoding: Encoding,
    mut users: Vec<Option<WriteHalf<DuplexStream>>>,
    gone: CancellationToken,
) {
    let reading = async {
        while let Ok(Some(Ok(message))) = tokio::time::timeout(IDLE_TIMEOUT, source.next()).await {
            let Some((channel, bytes)) = encoding.decode(message) else {
                continue;
            };
            if encoding.close && channel == CLOSE_CHANNEL {
                let user = bytes.first().and_then(|at| users.get_mut(usize::from(*at)));
                if let Some(mut user) = user.and_then(Option::take) {
                    let _ = user.shutdown().await;
                }
                continue;
            }
            let Some(slot) = users.get_mut(usize::from(channel)) else {
                continue;
            };
            if let Some(user) = slot
                && user.write_all(&bytes).await.is_err()
            {
                *slot = None;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = gone.cancelled() => {}
    }
    for user in users.iter_mut().flatten() {
        let _ = user.shutdown().await;
    }
    gone.cancel();
}

/// Carries a byte stream in binary messages, both ways: what SPDY is tunnelled in. Gives the
/// stream's other end.
pub(crate) async fn tunnel<I>(io: I) -> DuplexStream
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sink, mut source) = socket(io).await.split();
    let (ours, theirs) = tokio::io::duplex(STREAM_BUFFER_BYTES);
    let (mut from_user, mut to_user) = tokio::io::split(ours);
    let over = Arc::new(CancellationToken::new());
    let reading = over.clone();
    tokio::spawn(async move {
        let read = async {
            while let Ok(Some(Ok(message))) =
                tokio::time::timeout(IDLE_TIMEOUT, source.next()).await
            {
                if let Message::Binary(bytes) = message
                    && to_user.write_all(&bytes).await.is_err()
                {
                    break;
                }
            }
        };
        tokio::select! {
            () = read => {}
            () = reading.cancelled() => {}
        }
        let _ = to_user.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = BytesMut::with_capacity(FRAME_BYTES);
        while let Ok(1..) = from_user.read_buf(&mut buffer).await {
            if sink
                .send(Message::Binary(buffer.split().freeze()))
                .await
                .is_err()
            {
                break;
            }
            buffer.reserve(FRAME_BYTES);
        }
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, sink.send(Message::Close(None))).await;
        tokio::time::sleep(CLOSE_TIMEOUT).await;
        over.cancel();
    });
    theirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_channel_comes_last() {
        let (io, peer) = tokio::io::duplex(STREAM_BUFFER_BYTES);
        let encoding = Encoding {
            base64: false,
            close: false,
        };
        let channels = [Channel::Out, Channel::Last];
        let (connection, mut users) = serve(io, encoding, &channels, &[]).await;
        let (mut last, mut first) = (users.pop().unwrap(), users.pop().unwrap());
        let much = vec![b'x'; STREAM_BUFFER_BYTES];
        first.write_all(&much).await.unwrap();
        drop(first);
        last.write_all(b"end").await.unwrap();
        drop(last);
        let finish = tokio::spawn(connection.finish());
        let mut client = WebSocketStream::from_raw_socket(peer, Role::Client, None).await;
        let mut seen = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            seen.extend(encoding.decode(message));
        }
        assert_eq!(seen.pop(), Some((1, Bytes::from_static(b"end"))));
        let bytes: Vec<u8> = seen.into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert_eq!(bytes, much);
        finish.await.unwrap();
    }

    #[test]
    fn messages_carry_their_channel() {
        for base64 in [false, true] {
            let encoding = Encoding {
                base64,
                close: false,
            };
            let message = encoding.encode(2, b"oops\n");
            let decoded = encoding.decode(message);
            assert_eq!(decoded, Some((2, Bytes::from_static(b"oops\n"))));
        }
        let text = Encoding {
            base64: true,
            close: false,
        };
        assert_eq!(text.encode(1, b"hi"), Message::text("1aGk="));
        assert_eq!(text.decode(Message::text("1###")), None);
        assert_eq!(text.decode(Message::text("")), None);
    }
}
