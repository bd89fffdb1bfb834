//! An exec connection in memory: the handshake is made here, what follows is the fuzzer's.

use std::convert::Infallible;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use streams::remotecommand::{self, Exit, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Longest life of one connection, in the runtime's own time.
const LIFE: Duration = Duration::from_secs(120);
/// Bytes under way in either direction.
const PIPE_BYTES: usize = 1 << 20;

/// Sends `sent` after `head` and the server's answer to it; the command echoes what it gets.
pub fn exec(head: &str, sent: Vec<u8>) {
    // Time stands still unless all wait, so that no input takes long.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let (client, server) = tokio::io::duplex(PIPE_BYTES);
        let serving = tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(server), service_fn(command))
                .with_upgrades(),
        );
        let _ = tokio::time::timeout(LIFE, talk(client, head, sent)).await;
        let _ = tokio::time::timeout(LIFE, serving).await;
    });
}

async fn command(request: Request<Incoming>) -> Result<http::Response<streams::Body>, Infallible> {
    let options = Options {
        stdin: true,
        stdout: true,
        stderr: true,
        ..Options::default()
    };
    let (response, pending) = match remotecommand::serve(request, options) {
        Ok(accepted) => accepted,
        Err(refused) => return Ok(refused.into_response()),
    };
    tokio::spawn(async move {
        let Ok(mut session) = pending.session().await else {
            return;
        };
        if let (Some(mut input), Some(mut output)) = (session.stdin.take(), session.stdout.take()) {
            let _ = tokio::time::timeout(LIFE, tokio::io::copy(&mut input, &mut output)).await;
        }
        session.finish(Exit::Code(0)).await;
    });
    Ok(response)
}

async fn talk(client: DuplexStream, head: &str, sent: Vec<u8>) {
    let (mut read, mut write) = tokio::io::split(client);
    if write.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        match read.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(_) => return,
        }
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "the handshake failed");
    let send = async {
        let _ = write.write_all(&sent).await;
        let _ = write.shutdown().await;
    };
    let receive = async { tokio::io::copy(&mut read, &mut tokio::io::sink()).await };
    let _ = tokio::join!(send, receive);
}
