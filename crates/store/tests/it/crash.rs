//! Killed at any instant, the store has everything it acknowledged. The test binary runs itself as
//! the victim: a process that writes from eight threads and prints each key once it is committed.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use store::{Embedded, Expect, Options, Store};

use crate::{expecting, put};

const VICTIM: &str = "STORE_TEST_VICTIM";
const ROUNDS: u64 = 30;
const WRITERS: usize = 8;
/// Keys are written again and again, so that recovery must also give the newest value.
const KEYS: u64 = 50;

/// Compacts often, so that kills hit that too.
fn options() -> Options {
    Options {
        compact_bytes: 512 << 10,
        ..Options::default()
    }
}

/// Not a test of its own: what the victim process runs.
#[test]
fn victim() {
    let Ok(dir) = std::env::var(VICTIM) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WRITERS)
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = Embedded::open(Path::new(&dir), options()).await.unwrap();
        let writers = (0..WRITERS).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0.. {
                    let key = format!("/r/crash/{writer}/{}", n % KEYS);
                    let (kv, _) = store.get(key.as_bytes(), None).await.unwrap();
                    let expect =
                        kv.map_or(Expect::Absent, |kv| Expect::ModRevision(kv.mod_revision));
                    let value = vec![b'x'; 100 + (n as usize * 37) % 3000];
                    let write = expecting(&key, expect, put(&key, value));
                    let revision = store.commit(write).await.unwrap();
                    // One write call a line, so that a line is whole or absent.
                    println!("{key} {revision}");
                }
            })
        });
        futures::future::join_all(writers).await;
    });
}

/// Runs the victim for a while, kills it, and notes what it acknowledged.
fn kill_round(dir: &Path, after: Duration, acknowledged: &mut HashMap<String, u64>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["crash::victim", "--exact", "--nocapture"])
        .env(VICTIM, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reader = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    for line in reader.join().unwrap() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [key, revision] = words[..]
            && let (true, Ok(revision)) = (key.starts_with("/r/crash/"), revision.parse::<u64>())
        {
            let seen = acknowledged.entry(key.to_owned()).or_default();
            *seen = revision.max(*seen);
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut acknowledged = HashMap::new();
    let (mut newest, mut committed) = (0, 0);
    for round in 0..ROUNDS {
        // Spread over start, recovery and steady writing.
        let after = Duration::from_millis(20 + (round * 61) % 280);
        kill_round(dir.path(), after, &mut acknowledged);
        runtime.block_on(async {
            let store = Embedded::open(dir.path(), options()).await.unwrap();
            let revision = store.revision();
            assert!(revision >= newest, "{revision} after {newest}");
            newest = revision;
            for (key, acknowledged) in &acknowledged {
                let kv = store.get(key.as_bytes(), None).await.unwrap().0;
                let found = kv.map(|kv| kv.mod_revision);
                assert!(
                    found >= Some(*acknowledged),
                    "{key}: {found:?} < {acknowledged}"
                );
                assert!(Some(revision) >= found);
            }
            store.close().await;
        });
        committed = acknowledged.values().copied().max().unwrap_or(0);
    }
    assert!(committed > 100, "the victim hardly wrote: {committed}");
}
