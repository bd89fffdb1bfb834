//! Durable commits per second: `commit_bench [DIR] [SECONDS] [WRITERS]`. Writers of 2 KB values,
//! each waiting for its own commit, on the disk that holds DIR (default: the current folder).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use store::{Commit, Embedded, Mutation, Options, RangeRequest, Store};

const VALUE_BYTES: usize = 2048;

/// The allocator of the program that the store is part of.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let parent = args.next().unwrap_or_else(|| ".".into());
    let seconds: f64 = args.next().map_or(Ok(5.0), |text| text.parse())?;
    let writers: usize = args.next().map_or(Ok(128), |text| text.parse())?;
    let dir = tempfile::tempdir_in(parent)?;
    let store = Embedded::open(dir.path(), Options::default()).await?;
    let written = written_bytes()?;
    let latencies = write(&store, writers, Duration::from_secs_f64(seconds)).await?;
    let total = latencies.len();
    let written = written_bytes()? - written;
    println!("commits {:.0} 1/s", total as f64 / seconds);
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        let at = ((total as f64 * share) as usize).min(total - 1);
        println!("commit_{name} {:.2} ms", latencies[at].as_secs_f64() * 1e3);
    }
    let payload = (total * VALUE_BYTES) as f64;
    println!("write_amplification {:.2} x", written as f64 / payload);
    let start = Instant::now();
    let all = store.range(RangeRequest {
        start: Bytes::from_static(b"/"),
        end: Bytes::new(),
        limit: 0,
        at: None,
    });
    let keys = all.await?.kvs.len();
    println!(
        "list {:.0} keys/s",
        keys as f64 / start.elapsed().as_secs_f64()
    );
    store.close().await;
    drop(store);
    let start = Instant::now();
    let store = Embedded::open(dir.path(), Options::default()).await?;
    println!(
        "reopen_{keys}_keys {:.0} ms",
        start.elapsed().as_secs_f64() * 1e3
    );
    store.close().await;
    Ok(())
}

/// Bytes this process has made the disk write.
fn written_bytes() -> Result<u64, Box<dyn std::error::Error>> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.unwrap_or("0").parse()?)
}

/// Writes for a while; gives the sorted latencies of all commits.
async fn write(
    store: &Arc<Embedded>,
    writers: usize,
    span: Duration,
) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let next = Arc::new(AtomicU64::new(0));
    let end = Instant::now() + span;
    let tasks: Vec<_> = (0..writers)
        .map(|_| {
            let (store, next) = (store.clone(), next.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while Instant::now() < end {
                    let n = next.fetch_add(1, Ordering::Relaxed) % 100_000;
                    let put = Mutation::Put {
                        key: format!("/registry/pods/default/pod-{n:06}").into(),
                        value: vec![b'x'; VALUE_BYTES].into(),
                    };
                    let commit = Commit {
                        expect: Vec::new(),
                        mutations: vec![put],
                    };
                    let start = Instant::now();
                    store.commit(commit).await?;
                    latencies.push(start.elapsed());
                }
                Ok::<_, store::CommitError>(latencies)
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await??);
    }
    all.sort_unstable();
    Ok(all)
}
