//! Clients other than kubectl: plain WebSocket channels, as the client libraries use them.

use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::server;

const EXEC: &str = "/api/v1/namespaces/default/pods/web/exec";

async fn connect(path: &str, protocol: &str) -> WebSocketStream<TcpStream> {
    let address = server::start().await;
    let mut request = format!("ws://{address}{path}")
        .into_client_request()
        .unwrap();
    let protocol = protocol.parse().unwrap();
    request
        .headers_mut()
        .insert("sec-websocket-protocol", protocol);
    let io = TcpStream::connect(address).await.unwrap();
    client_async(request, io).await.unwrap().0
}

/// All messages until the server closes.
async fn rest(mut socket: WebSocketStream<TcpStream>) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        messages.push(message);
    }
    messages
}

#[tokio::test]
async fn channels_are_numbered() {
    let path = format!("{EXEC}?command=sh&command=-c&command=echo+hi&stdout=1&stderr=1");
    let messages = rest(connect(&path, "v4.channel.k8s.io").await).await;
    assert_eq!(messages[0], Message::binary(vec![1]));
    assert_eq!(messages[1], Message::binary(b"\x01hi\n".to_vec()));
    let status = b"\x03{\"metadata\":{},\"status\":\"Success\"}".to_vec();
    assert_eq!(messages[2], Message::binary(status));
    assert!(matches!(messages[3], Message::Close(Some(_))));
    let messages = rest(connect(&path, "base64.channel.k8s.io").await).await;
    assert_eq!(messages[..2], [Message::text("1"), Message::text("1aGkK")]);
}

#[tokio::test]
async fn input_ends_when_its_channel_is_closed() {
    let path = format!("{EXEC}?command=cat&stdin=1&stdout=1");
    let mut socket = connect(&path, "v5.channel.k8s.io").await;
    for message in [&b"\x00one "[..], b"\x00two", &[255, 0]] {
        socket
            .send(Message::binary(message.to_vec()))
            .await
            .unwrap();
    }
    let messages = rest(socket).await;
    let output = messages.iter().filter_map(|message| match message {
        Message::Binary(bytes) => bytes.strip_prefix(&[1]),
        _ => None,
    });
    assert_eq!(output.collect::<Vec<_>>().concat(), b"one two");
}

#[tokio::test]
async fn ports_are_named_in_advance() {
    let target = crate::kubectl::reverser().await;
    let pod = "/api/v1/namespaces/default/pods/web/portforward";
    let mut socket = connect(&format!("{pod}?ports={target}"), "v4.channel.k8s.io").await;
    let [low, high] = target.to_le_bytes();
    let mut greetings = [
        socket.next().await.unwrap().unwrap(),
        socket.next().await.unwrap().unwrap(),
    ];
    greetings.sort_by_key(|message| message.clone().into_data().to_vec());
    let expected = [vec![0, low, high], vec![1, low, high]];
    assert_eq!(greetings, expected.map(Message::binary));
    let data = Message::binary(b"\x00abc".to_vec());
    socket.send(data).await.unwrap();
    socket.close(None).await.unwrap();
    // The client cannot end one direction only, so its leaving ends the connection.
    rest(socket).await;
}
