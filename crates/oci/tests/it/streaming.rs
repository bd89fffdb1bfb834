//! Exec, attach and port-forward over WebSocket, as a client speaks it.

use futures::{SinkExt, StreamExt};
use oci::cri::v1;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::world::{PATIENCE, World, shell};

const FOREVER: &str = "while :; do sleep 1; done";

struct Stream {
    socket: WebSocketStream<TcpStream>,
    /// What has arrived on each channel.
    received: [Vec<u8>; 4],
}

impl Stream {
    async fn connect(url: &str, protocol: &str) -> Self {
        let url = url.replace("http://", "ws://");
        let mut request = url.as_str().into_client_request().unwrap();
        let header = protocol.parse().unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", header);
        let address = request.uri().authority().unwrap().to_string();
        let tcp = TcpStream::connect(address).await.unwrap();
        let (socket, _) = tokio_tungstenite::client_async(request, tcp).await.unwrap();
        Self {
            socket,
            received: Default::default(),
        }
    }

    async fn send(&mut self, channel: u8, bytes: &[u8]) {
        let mut message = vec![channel];
        message.extend_from_slice(bytes);
        self.socket.send(Message::binary(message)).await.unwrap();
    }

    /// Receives one message; `false` at the end.
    async fn receive(&mut self) -> bool {
        let next = tokio::time::timeout(PATIENCE, self.socket.next()).await;
        match next.expect("nothing comes") {
            Some(Ok(Message::Binary(bytes))) => {
                if let Some((channel, data)) = bytes.split_first()
                    && let Some(received) = self.received.get_mut(usize::from(*channel))
                {
                    received.extend_from_slice(data);
                }
                true
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => false,
            Some(Ok(_)) => true,
        }
    }

    async fn until(&mut self, channel: usize, text: &str) {
        while !String::from_utf8_lossy(&self.received[channel]).contains(text) {
            let more = self.receive().await;
            assert!(more, "{text:?} does not come: {:?}", self.text(channel));
        }
    }

    async fn end(&mut self) {
        while self.receive().await {}
    }

    fn text(&self, channel: usize) -> String {
        String::from_utf8_lossy(&self.received[channel]).into_owned()
    }
}

async fn exec(world: &mut World, container: &str, script: &str, tty: bool) -> Stream {
    let request = v1::ExecRequest {
        container_id: container.into(),
        cmd: vec!["sh".into(), "-c".into(), script.into()],
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    let url = world.client.exec(request).await.unwrap().into_inner().url;
    Stream::connect(&url, "v5.channel.k8s.io").await
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_streams_both_ways_and_tells_the_exit_code() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("exec-stream").await;
    let id = world.script(&sandbox, "main", FOREVER).await;
    let mut stream = exec(&mut world, &id, "cat; echo end >&2; exit 6", false).await;
    stream.send(0, b"first ").await;
    stream.until(1, "first").await;
    stream.send(0, b"second").await;
    // Version 5: channel 0 is at its end.
    stream.send(255, &[0]).await;
    stream.end().await;
    assert_eq!(stream.text(1), "first second");
    assert_eq!(stream.text(2), "end\n");
    assert!(
        stream.text(3).contains("\"message\":\"6\""),
        "{}",
        stream.text(3)
    );

    let mut stream = exec(&mut world, &id, "head -c 5000000 /dev/zero", false).await;
    stream.end().await;
    assert_eq!(stream.received[1].len(), 5_000_000);
    assert!(stream.text(3).contains("Success"), "{}", stream.text(3));

    let request = v1::ExecRequest {
        container_id: id,
        cmd: vec!["nonesuch".into()],
        stdout: true,
        ..Default::default()
    };
    let url = world.client.exec(request).await.unwrap().into_inner().url;
    let mut stream = Stream::connect(&url, "v5.channel.k8s.io").await;
    stream.end().await;
    assert!(
        stream
            .text(3)
            .contains("executable file not found in $PATH"),
        "{}",
        stream.text(3)
    );
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_size_and_an_echo() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("terminal").await;
    let id = world.script(&sandbox, "main", FOREVER).await;
    let script = "tty; read x; stty size; echo got $x; read y";
    let mut stream = exec(&mut world, &id, script, true).await;
    stream.until(1, "/dev/pts/").await;
    stream.send(4, br#"{"Width":133,"Height":44}"#).await;
    // The size goes its own way; give it time to arrive before the input does.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    stream.send(0, b"hello\n").await;
    stream.until(1, "44 133").await;
    stream.until(1, "got hello").await;
    stream.send(0, &[4]).await;
    stream.end().await;
    assert!(
        stream.text(3).contains("\"message\":\"1\""),
        "{}",
        stream.text(3)
    );
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_follows_output_and_gives_input() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("attach").await;
    let mut config = shell("once", "cat; echo done");
    config.stdin = true;
    config.stdin_once = true;
    let id = world.create(&sandbox, config).await;
    world.start(&id).await;
    let request = |id: &str, tty| v1::AttachRequest {
        container_id: id.into(),
        stdin: true,
        tty,
        stdout: true,
        stderr: !tty,
    };
    let url = world
        .client
        .attach(request(&id, false))
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut stream = Stream::connect(&url, "v5.channel.k8s.io").await;
    let watcher = v1::AttachRequest {
        container_id: id.clone(),
        stdout: true,
        ..Default::default()
    };
    let url = world.client.attach(watcher).await.unwrap().into_inner().url;
    let mut watcher = Stream::connect(&url, "v5.channel.k8s.io").await;
    // Attached for sure once something has come.
    stream.send(0, b"one\n").await;
    stream.until(1, "one").await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    stream.send(0, b"two\n").await;
    watcher.until(1, "two").await;
    stream.send(255, &[0]).await;
    stream.end().await;
    watcher.end().await;
    assert_eq!(stream.text(1), "one\ntwo\ndone\n");
    assert!(watcher.text(1).ends_with("two\ndone\n"));
    assert_eq!(world.wait(&id).await.exit_code, 0);

    let mut config = shell("terminal", "echo prompt; read x; echo got $x");
    config.stdin = true;
    config.stdin_once = true;
    config.tty = true;
    let id = world.create(&sandbox, config).await;
    world.start(&id).await;
    // The first client comes after the prompt, and sees it.
    while world.log(&id).await.is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let url = world
        .client
        .attach(request(&id, true))
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut stream = Stream::connect(&url, "v5.channel.k8s.io").await;
    stream.until(1, "prompt").await;
    stream.send(0, b"word\n").await;
    stream.until(1, "got word").await;
    stream.end().await;
    world.wait(&id).await;
    let log = world.log(&id).await;
    assert!(
        log.iter().any(|line| line.starts_with("stdout F got word")),
        "{log:?}"
    );
    world.close().await;
}

/// Binds inside the sandbox by way of the name of its network, and echoes one connection.
fn serve_inside(netns: std::path::PathBuf) -> u16 {
    std::thread::spawn(move || {
        let file = std::fs::File::open(netns).unwrap();
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = stream.try_clone().unwrap();
            let _ = std::io::copy(&mut reader, &mut stream);
        });
        port
    })
    .join()
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded_into_the_network() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("ports").await;
    let port = serve_inside(world.dir.join("run/netns").join(&sandbox));
    let request = v1::PortForwardRequest {
        pod_sandbox_id: sandbox.clone(),
        port: vec![i32::from(port), 1],
    };
    let url = world
        .client
        .port_forward(request)
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut stream = Stream::connect(&url, "v4.channel.k8s.io").await;
    stream.send(0, b"through").await;
    stream.until(0, "through").await;
    assert_eq!(stream.received[0][..2], port.to_le_bytes());
    // Nobody listens on port 1.
    stream.until(3, "refused").await;
    drop(stream);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_works_once() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("once").await;
    let id = world.script(&sandbox, "main", FOREVER).await;
    let request = v1::ExecRequest {
        container_id: id,
        cmd: vec!["cat".into()],
        stdout: true,
        ..Default::default()
    };
    let url = world.client.exec(request).await.unwrap().into_inner().url;
    Stream::connect(&url, "v5.channel.k8s.io").await.end().await;
    let ws = url.replace("http://", "ws://");
    let request = ws.as_str().into_client_request().unwrap();
    let address = request.uri().authority().unwrap().to_string();
    let tcp = TcpStream::connect(address).await.unwrap();
    let error = tokio_tungstenite::client_async(request, tcp)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
    world.close().await;
}
