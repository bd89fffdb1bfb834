//! Torn and damaged files, compaction, and a full disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use store::{CommitError, Embedded, OpenError, Options, RangeRequest, Store};

use crate::{commit, delete, put};

async fn open(dir: &Path) -> Arc<Embedded> {
    let options = Options {
        compact_bytes: 1 << 20,
        ..Options::default()
    };
    Embedded::open(dir, options).await.unwrap()
}

/// The store's files of a kind, oldest first.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("log")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    found.sort();
    found
}

async fn has(store: &Embedded, key: &str) -> bool {
    store.get(key.as_bytes(), None).await.unwrap().0.is_some()
}

/// Writes two commits, lets `change` do something to the log's bytes, and opens again. `change`
/// also gets where the second commit's record begins.
async fn reopened(change: impl Fn(&mut Vec<u8>, usize)) -> Result<Arc<Embedded>, OpenError> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    store
        .commit(commit(vec![put("/r/a/x", vec![1; 5000])]))
        .await
        .unwrap();
    let log = files(dir.path(), "log").pop().unwrap();
    let second = std::fs::metadata(&log).unwrap().len();
    store
        .commit(commit(vec![put("/r/a/y", vec![2; 20_000])]))
        .await
        .unwrap();
    store.close().await;
    let mut bytes = std::fs::read(&log).unwrap();
    change(&mut bytes, usize::try_from(second).unwrap());
    std::fs::write(&log, bytes).unwrap();
    Embedded::open(dir.path(), Options::default()).await
}

#[tokio::test]
async fn a_torn_last_write_is_cut_off() {
    for cut in [1, 15, 16, 17, 4096, 20_000] {
        let store = reopened(|bytes, second| bytes.truncate(second + cut))
            .await
            .unwrap();
        assert_eq!(store.revision(), 2, "cut {cut}");
        assert!(has(&store, "/r/a/x").await && !has(&store, "/r/a/y").await);
        // The store goes on from there.
        let revision = store
            .commit(commit(vec![put("/r/a/z", "v")]))
            .await
            .unwrap();
        assert_eq!(revision, 3);
        store.close().await;
    }
    // Blocks reach the disk in any order: a block in the middle is missing, the end is there.
    for hole in [0, 4096, 15_000] {
        let zero = |bytes: &mut Vec<u8>, second: usize| bytes[second + hole..][..4096].fill(0);
        let store = reopened(zero).await.unwrap();
        assert!(has(&store, "/r/a/x").await && !has(&store, "/r/a/y").await);
        store.close().await;
    }
}

#[tokio::test]
async fn damage_is_told_and_not_taken_for_a_torn_write() {
    for at in [8, 12, 100, 3000] {
        let flipped = reopened(|bytes, _| bytes[at] ^= 1).await;
        assert!(
            matches!(flipped, Err(OpenError::Damaged { .. })),
            "byte {at}"
        );
    }
}

#[tokio::test]
async fn the_log_is_compacted_and_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for n in 0..400 {
        let key = format!("/r/a/{}", n % 20);
        let write = match n % 7 {
            0 => delete(&key),
            _ => put(&key, vec![n as u8; 20_000]),
        };
        store.commit(commit(vec![write])).await.unwrap();
    }
    let all = RangeRequest {
        start: "/".into(),
        end: "0".into(),
        limit: 0,
        at: None,
    };
    let before = store.range(all.clone()).await.unwrap();
    store.close().await;
    assert_eq!(files(dir.path(), "snap").len(), 1);
    let logs = files(dir.path(), "log");
    let bytes: u64 = logs.iter().map(|log| log.metadata().unwrap().len()).sum();
    assert!(bytes < 5 << 20, "{bytes} bytes of logs for 8 MB written");
    let store = open(dir.path()).await;
    assert_eq!(store.range(all).await.unwrap(), before);
    store.close().await;
    // A store whose files were taken away is not an empty one.
    for log in files(dir.path(), "log") {
        std::fs::remove_file(log).unwrap();
    }
    let robbed = Embedded::open(dir.path(), Options::default()).await;
    assert!(matches!(robbed, Err(OpenError::Damaged { .. })));
}

/// Tells the test binary to be the process that fills a disk of its own.
const FILLER: &str = "STORE_TEST_FILLER";

/// Not a test of its own: mounts a small file system that nobody else sees, and fills it.
#[test]
fn filler() {
    let Ok(dir) = std::env::var(FILLER) else {
        return;
    };
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let size = Some("size=4m");
    mount(Some("tmpfs"), &*dir, Some("tmpfs"), MsFlags::empty(), size).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(fill(Path::new(&dir)));
    println!("filled and emptied");
}

async fn fill(dir: &Path) {
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![0; 2 << 20]).unwrap();
    let store = Embedded::open(&dir.join("store"), Options::default())
        .await
        .unwrap();
    let mut written = 0;
    let error = loop {
        let key = format!("/r/a/{written}");
        match store
            .commit(commit(vec![put(&key, vec![7; 100_000])]))
            .await
        {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CommitError::NoSpace(_)), "{error}");
    let (revision, refused) = (store.revision(), format!("/r/a/{written}"));
    assert!(written > 5 && has(&store, "/r/a/0").await);
    assert!(!has(&store, &refused).await);
    std::fs::remove_file(&ballast).unwrap();
    let again = store.commit(commit(vec![put("/r/a/again", "v")])).await;
    assert_eq!(again.unwrap(), revision + 1);
    store.close().await;
    let store = Embedded::open(&dir.join("store"), Options::default())
        .await
        .unwrap();
    assert_eq!(store.revision(), revision + 1);
    assert!(has(&store, "/r/a/again").await && !has(&store, &refused).await);
    store.close().await;
}

#[test]
fn a_full_disk_stops_commits_only() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting a small disk needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["disk::filler", "--exact", "--nocapture"])
        .env(FILLER, dir.path())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stdout.contains("filled and emptied"), "{stdout}{stderr}");
}
