//! The peer of the store's benchmark: a real etcd, over gRPC.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tonic::client::Grpc;
use tonic::transport::Channel;

use super::store::{SECONDS, VALUE_BYTES, WRITERS};

const CLIENT: &str = "127.0.0.1:23790";
const PEER: &str = "127.0.0.1:23800";
/// Connections the writers share, as an API server would.
const CONNECTIONS: usize = 8;
/// How long etcd may take to answer.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// `etcdserverpb.PutRequest`, as far as it is needed.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.PutResponse`; nothing of it is needed.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

struct Etcd(Child);

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Durable puts a second of one etcd member with its data in `folder`; `None` when etcd is not
/// installed.
pub fn puts_per_second(folder: &Path) -> anyhow::Result<Option<f64>> {
    let data = tempfile::tempdir_in(folder)?;
    let spawned = Command::new("etcd")
        .arg("--data-dir")
        .arg(data.path())
        .args(["--listen-client-urls", &format!("http://{CLIENT}")])
        .args(["--advertise-client-urls", &format!("http://{CLIENT}")])
        .args(["--listen-peer-urls", &format!("http://{PEER}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _etcd = match spawned {
        Ok(child) => Etcd(child),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("starting etcd"),
    };
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure()).map(Some)
}

async fn measure() -> anyhow::Result<f64> {
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(connect().await?);
    }
    let done = Arc::new(AtomicU64::new(0));
    let end = Instant::now() + Duration::from_secs(SECONDS);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (channel, done) = (channels[writer % CONNECTIONS].clone(), done.clone());
            tokio::spawn(write(channel, writer, done, end))
        })
        .collect();
    for writer in writers {
        writer.await??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / SECONDS as f64)
}

async fn connect() -> anyhow::Result<Channel> {
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        let channel = Channel::from_shared(format!("http://{CLIENT}"))?
            .connect()
            .await;
        match channel {
            Ok(channel) => {
                if put(channel.clone(), b"/first".to_vec()).await.is_ok() {
                    return Ok(channel);
                }
            }
            Err(error) if Instant::now() > deadline => return Err(error).context("reaching etcd"),
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn write(
    channel: Channel,
    writer: usize,
    done: Arc<AtomicU64>,
    end: Instant,
) -> anyhow::Result<()> {
    let mut number = 0u64;
    while Instant::now() < end {
        number += 1;
        let key = format!("/registry/configmaps/ns-{writer}/key-{number}");
        put(channel.clone(), key.into_bytes()).await?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn put(channel: Channel, key: Vec<u8>) -> anyhow::Result<()> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await?;
    let request = PutRequest {
        key,
        value: vec![b'x'; VALUE_BYTES],
    };
    let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
    grpc.unary(tonic::Request::new(request), path, codec)
        .await?;
    Ok(())
}
