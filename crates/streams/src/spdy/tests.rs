//! A little client against the server, over a pipe.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

struct Client {
    io: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
}

impl Client {
    fn start() -> (Self, Connection, mpsc::Receiver<Stream>) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (connection, accepted) = serve(theirs, |_| false).unwrap();
        let client = Self {
            io: ours,
            encoder: Encoder::new().unwrap(),
            decoder: Decoder::default(),
        };
        (client, connection, accepted)
    }

    async fn control(&mut self, kind: u8, flags: u8, body: &[u8]) {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let head = [0x80, 3, 0, kind, flags, length[1], length[2], length[3]];
        self.io.write_all(&[&head, body].concat()).await.unwrap();
    }

    async fn open(&mut self, id: u32, kind: &str) {
        let headers = vec![("streamtype".to_owned(), kind.to_owned())];
        let block = self.encoder.encode(&headers).unwrap();
        let body = [&id.to_be_bytes()[..], &[0; 6], &block].concat();
        self.control(1, 0, &body).await;
    }

    async fn data(&mut self, id: u32, flags: u8, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        let head = [&id.to_be_bytes()[..], &[flags], &length[1..]].concat();
        self.io.write_all(&[&head, bytes].concat()).await.unwrap();
    }

    /// The next frame: first word, flags, body.
    async fn frame(&mut self) -> (u32, u8, Vec<u8>) {
        let mut head = [0; 8];
        let read = self.io.read_exact(&mut head);
        tokio::time::timeout(Duration::from_secs(5), read)
            .await
            .unwrap()
            .unwrap();
        let [a, b, c, d, flags, x, y, z] = head;
        let mut body = vec![0; u32::from_be_bytes([0, x, y, z]) as usize];
        self.io.read_exact(&mut body).await.unwrap();
        (u32::from_be_bytes([a, b, c, d]), flags, body)
    }
}

const REPLY: u32 = 0x8003_0002;
const RESET: u32 = 0x8003_0003;
const PING: u32 = 0x8003_0006;
const GOAWAY: u32 = 0x8003_0007;
const WINDOW: u32 = 0x8003_0009;

#[tokio::test]
async fn a_stream_lives_and_ends() {
    let (mut client, connection, mut accepted) = Client::start();
    client.open(1, "data").await;
    let mut stream = accepted.recv().await.unwrap();
    assert_eq!(stream.header("streamtype"), "data");
    let (kind, _, body) = client.frame().await;
    assert_eq!((kind, &body[..4]), (REPLY, &[0, 0, 0, 1][..]));
    assert!(client.decoder.decode(&body[4..]).unwrap().is_empty());

    client.data(1, 0, b"ping").await;
    client.data(1, 1, b"!").await;
    let mut text = String::new();
    stream.io.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "ping!");
    stream.io.write_all(b"pong").await.unwrap();
    drop(stream);
    assert_eq!(client.frame().await, (1, 0, b"pong".to_vec()));
    assert_eq!(client.frame().await, (1, 1, vec![]));

    client.control(6, 0, &[0, 0, 0, 7]).await;
    assert_eq!(client.frame().await, (PING, 0, vec![0, 0, 0, 7]));
    let finished = tokio::spawn(connection.finish());
    assert_eq!(client.frame().await.0, GOAWAY);
    drop(client);
    finished.await.unwrap();
}

#[tokio::test]
async fn windows_are_granted_and_obeyed_once_the_peer_knows_them() {
    let (mut client, _connection, mut accepted) = Client::start();
    client.open(1, "data").await;
    let mut stream = accepted.recv().await.unwrap();
    assert_eq!(client.frame().await.0, REPLY);
    client.data(1, 0, &[7; 40_000]).await;
    let (kind, _, body) = client.frame().await;
    assert_eq!((kind, &body[..4]), (WINDOW, &[0, 0, 0, 1][..]));
    // A settings frame: the initial window is 10 bytes.
    let setting = [0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 10];
    client.control(4, 0, &setting).await;
    client.control(6, 0, &[0, 0, 0, 1]).await;
    assert_eq!(client.frame().await.0, PING);
    stream.io.write_all(&[1; 15]).await.unwrap();
    assert_eq!(client.frame().await, (1, 0, vec![1; 10]));
    client.control(9, 0, &[0, 0, 0, 1, 0, 0, 0, 100]).await;
    assert_eq!(client.frame().await, (1, 0, vec![1; 5]));
}

#[tokio::test]
async fn a_reset_ends_the_stream_for_its_user() {
    let (mut client, _connection, mut accepted) = Client::start();
    client.open(1, "data").await;
    let mut stream = accepted.recv().await.unwrap();
    client.control(3, 0, &[0, 0, 0, 1, 0, 0, 0, 5]).await;
    assert_eq!(stream.io.read(&mut [0; 8]).await.unwrap(), 0);
    while stream.io.write_all(&[0; 1024]).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_breaks_the_protocol_is_refused() {
    let (mut client, connection, accepted) = Client::start();
    client.open(2, "data").await;
    let (kind, _, body) = client.frame().await;
    assert_eq!((kind, body), (RESET, vec![0, 0, 0, 2, 0, 0, 0, 1]));
    drop(accepted);
    client.open(3, "data").await;
    let (kind, _, body) = client.frame().await;
    assert_eq!((kind, body), (RESET, vec![0, 0, 0, 3, 0, 0, 0, 3]));
    // Another version of the protocol.
    let head = [0x80, 2, 0, 6, 0, 0, 0, 4];
    client.io.write_all(&head).await.unwrap();
    connection.gone().cancelled().await;
}

#[tokio::test]
async fn a_peer_that_leaves_ends_everything() {
    let (mut client, connection, mut accepted) = Client::start();
    client.open(1, "data").await;
    let mut stream = accepted.recv().await.unwrap();
    drop(client);
    assert_eq!(stream.io.read(&mut [0; 8]).await.unwrap(), 0);
    connection.gone().cancelled().await;
    connection.finish().await;
}
