//! What callers rely on, one test each.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use store::{
    Batch, CommitError, Embedded, EventKind, Expect, HistoryLimits, MAX_VALUE_BYTES, MemoryDisk,
    OpenError, Options, RangeRequest, ReadError, Store, Watch, prefix_end,
};

use crate::{commit, delete, expecting, put};

async fn next(watch: &mut Watch) -> Result<Batch, ReadError> {
    let item = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
    item.expect("the watch wakes").expect("the watch goes on")
}

#[tokio::test]
async fn preconditions_decide_and_report_what_is_there() {
    let store = Embedded::in_memory();
    assert_eq!(store.revision(), 1);
    let create = expecting("/r/a/x", Expect::Absent, put("/r/a/x", "1"));
    assert_eq!(store.commit(create.clone()).await.unwrap(), 2);
    match store.commit(create).await {
        Err(CommitError::Conflict { key, current }) => {
            assert_eq!(key, "/r/a/x");
            assert_eq!(current.map(|kv| kv.mod_revision), Some(2));
        }
        other => panic!("{other:?}"),
    }
    let update = |at| expecting("/r/a/x", Expect::ModRevision(at), put("/r/a/x", "2"));
    assert_eq!(store.commit(update(2)).await.unwrap(), 3);
    assert!(store.commit(update(2)).await.is_err());
    let kv = store.get(b"/r/a/x", None).await.unwrap().0.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
    let gone = expecting("/r/a/y", Expect::ModRevision(3), delete("/r/a/y"));
    assert!(matches!(
        store.commit(gone).await,
        Err(CommitError::Conflict { current: None, .. })
    ));
    // Nothing changes, so the revision stays.
    assert_eq!(
        store.commit(commit(vec![delete("/r/a/y")])).await.unwrap(),
        3
    );
}

#[tokio::test]
async fn limits_are_told() {
    let store = Embedded::in_memory();
    let value = vec![0; MAX_VALUE_BYTES + 1];
    let error = store.commit(commit(vec![put("/r/a/x", value)])).await;
    assert!(matches!(
        error,
        Err(CommitError::TooLarge { what: "value", .. })
    ));
    let many = (0..9).map(|n| put(&format!("/r/a/{n}"), vec![0; 1 << 20]));
    let error = store.commit(commit(many.collect())).await;
    assert!(matches!(
        error,
        Err(CommitError::TooLarge { what: "commit", .. })
    ));
}

#[tokio::test]
async fn pages_of_one_revision_do_not_move() {
    let store = Embedded::in_memory();
    for n in 0..10 {
        let write = commit(vec![put(&format!("/r/a/{n}"), "old")]);
        store.commit(write).await.unwrap();
    }
    let page = |start: Bytes, at| RangeRequest {
        start,
        end: prefix_end(b"/r/a/"),
        limit: 4,
        at,
    };
    let first = store.range(page("/r/a/".into(), None)).await.unwrap();
    assert_eq!((first.kvs.len(), first.more, first.count), (4, true, 10));
    let change = vec![
        delete("/r/a/5"),
        put("/r/a/6", "new"),
        put("/r/a/55", "new"),
    ];
    store.commit(commit(change)).await.unwrap();
    let second = page("/r/a/4".into(), Some(first.revision));
    let second = store.range(second).await.unwrap();
    let keys: Vec<_> = second.kvs.iter().map(|kv| kv.key.clone()).collect();
    assert_eq!(keys, ["/r/a/4", "/r/a/5", "/r/a/6", "/r/a/7"]);
    assert!(second.kvs.iter().all(|kv| kv.value == "old"));
    assert_eq!((second.revision, second.count), (first.revision, 6));
    let future = store.range(page("/r/a/".into(), Some(99))).await;
    assert_eq!(future, Err(ReadError::Future { current: 12 }));
}

#[tokio::test]
async fn a_scan_goes_on_at_its_revision_whatever_is_written_meanwhile() {
    const KEYS: usize = 1_000;
    let store = Embedded::in_memory();
    let key = |n: usize| format!("/r/a/{n:04}");
    for n in 0..KEYS {
        store
            .commit(commit(vec![put(&key(n), "old")]))
            .await
            .unwrap();
    }
    let scan = store.scan("/r/a/".into(), prefix_end(b"/r/a/"), None);
    let mut scan = scan.await.unwrap();
    let mut all = scan.next().await.unwrap().unwrap();
    assert!(all.len() < KEYS, "a piece is not the whole");
    for n in 0..KEYS {
        let change = match n % 2 {
            0 => put(&key(n), "new"),
            _ => delete(&key(n)),
        };
        store.commit(commit(vec![change])).await.unwrap();
    }
    while let Some(piece) = scan.next().await {
        all.extend(piece.unwrap());
    }
    assert_eq!(all.len(), KEYS);
    assert!(all.iter().all(|kv| kv.value == "old"));
    let future = store.scan("/r/a/".into(), Bytes::new(), Some(9_999)).await;
    assert!(matches!(future, Err(ReadError::Future { .. })));
}

#[tokio::test]
async fn watches_replay_follow_and_tell_progress() {
    let store = Embedded::in_memory();
    let write = |key: &'static str| store.commit(commit(vec![put(key, key)]));
    write("/r/a/x").await.unwrap();
    let after = write("/r/b/x").await.unwrap();
    write("/r/a/y").await.unwrap();
    let mut watch = store.watch("/r/a/".into(), after).unwrap();
    let batch = next(&mut watch).await.unwrap();
    assert_eq!(batch.events.len(), 1);
    assert_eq!(batch.events[0].kv.key, "/r/a/y");
    // Somebody else's write brings no batch, but asked-for progress tells of it.
    let other = write("/r/b/y").await.unwrap();
    watch.request_progress();
    let batch = next(&mut watch).await.unwrap();
    assert_eq!((batch.events.len(), batch.revision), (0, other));
    let at = store.commit(commit(vec![delete("/r/a/x")])).await.unwrap();
    let batch = next(&mut watch).await.unwrap();
    let event = &batch.events[0];
    assert_eq!(event.kind, EventKind::Delete);
    assert_eq!(
        (event.kv.mod_revision, &event.kv.value[..]),
        (at, &b"/r/a/x"[..])
    );
    store.close().await;
    assert_eq!(next(&mut watch).await, Err(ReadError::Closed));
    assert!(matches!(write("/r/a/z").await, Err(CommitError::Closed)));
    assert_eq!(store.get(b"/r/a/x", None).await, Err(ReadError::Closed));
}

#[tokio::test]
async fn a_watch_that_falls_behind_is_told_so() {
    let history = HistoryLimits {
        segment_events: 10,
        ..HistoryLimits::default()
    };
    let store = Embedded::in_memory_with(Options {
        history,
        ..Options::default()
    });
    let write = |key: String| store.commit(commit(vec![put(&key, "v")]));
    let mut slow = store.watch("/registry/a/".into(), 1).unwrap();
    let mut quiet = store.watch("/registry/a/quiet/".into(), 1).unwrap();
    for n in 0..20 {
        write(format!("/registry/a/{n}")).await.unwrap();
    }
    let oldest = ReadError::Compacted { oldest: 11 };
    assert_eq!(next(&mut slow).await, Err(oldest.clone()));
    assert!(slow.next().await.is_none());
    assert_eq!(store.watch("/registry/a/".into(), 5).err(), Some(oldest));
    // Its own topic has lost nothing, and another resource's history is untouched.
    write("/registry/a/quiet/x".into()).await.unwrap();
    assert_eq!(next(&mut quiet).await.unwrap().events.len(), 1);
    assert!(store.watch("/registry/b/".into(), 1).is_ok());
}

#[tokio::test]
async fn a_thousand_watchers_cost_a_cursor_each() {
    let store = Embedded::in_memory();
    let watches: Vec<_> = (0..1000)
        .map(|_| store.watch("/registry/pods/".into(), 1).unwrap())
        .collect();
    let readers: Vec<_> = watches
        .into_iter()
        .map(|mut watch| {
            tokio::spawn(async move {
                let mut seen = 0;
                while seen < 100 {
                    seen += next(&mut watch).await.unwrap().events.len();
                }
            })
        })
        .collect();
    for n in 0..100 {
        let write = commit(vec![put(&format!("/registry/pods/d/{n}"), "v")]);
        store.commit(write).await.unwrap();
    }
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test]
async fn only_one_opener() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Options::default())
        .await
        .unwrap();
    let revision = store
        .commit(commit(vec![put("/r/a/x", "v")]))
        .await
        .unwrap();
    match Embedded::open(dir.path(), Options::default()).await {
        Err(OpenError::Locked { path }) => assert_eq!(path, dir.path().join("lock")),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("opened twice"),
    }
    store.close().await;
    let again = Embedded::open(dir.path(), Options::default())
        .await
        .unwrap();
    assert_eq!(again.revision(), revision);
    let kv = again.get(b"/r/a/x", None).await.unwrap().0.unwrap();
    assert_eq!((&kv.value[..], kv.mod_revision), (&b"v"[..], revision));
    again.close().await;
}

#[tokio::test]
async fn a_disk_in_memory_outlives_its_store_which_writes_no_more_once_it_is_taken_away() {
    let disk = MemoryDisk::default();
    let first = Embedded::on_memory_disk(&disk, &Options::default());
    let written = first.commit(commit(vec![put("/r/a/x", "v")])).await;
    assert_eq!(written.unwrap(), 2);
    disk.detach();
    let late = first.commit(commit(vec![put("/r/a/x", "late")])).await;
    assert!(matches!(late, Err(CommitError::Io(_))), "{late:?}");
    let second = Embedded::on_memory_disk(&disk, &Options::default());
    assert_eq!(second.revision(), disk.revision());
    let kv = second.get(b"/r/a/x", None).await.unwrap().0.unwrap();
    assert_eq!((&kv.value[..], kv.mod_revision), (&b"v"[..], 2));
    assert!(second.watch("/r/a/".into(), 1).is_err(), "its past is lost");
}
