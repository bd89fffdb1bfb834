//! The engine against a model: a plain list of all states there ever were.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use proptest::prelude::*;
use store::{
    Commit, CommitError, Embedded, EventKind, Expect, KeyValue, Mutation, RangeRequest, Revision,
    Store, prefix_end,
};

type Keys = BTreeMap<Bytes, KeyValue>;

const PREFIXES: [&str; 6] = ["", "/r/", "/r/a/", "/r/a/n/", "/r/a/n/k1", "/r/b/"];

fn key() -> impl Strategy<Value = Bytes> {
    (0..3_usize, 0..2_usize, 0..4_usize)
        .prop_map(|(r, n, k)| format!("/r/{}/{}/k{k}", ["a", "b", "c"][r], ["n", "m"][n]).into())
}

fn one_commit() -> impl Strategy<Value = Commit> {
    let expect = prop_oneof![
        Just(Expect::Any),
        Just(Expect::Absent),
        (1..40_u64).prop_map(Expect::ModRevision),
    ];
    let mutation = prop_oneof![
        3 => (key(), any::<u8>()).prop_map(|(key, v)| Mutation::Put { key, value: vec![v].into() }),
        1 => key().prop_map(|key| Mutation::Delete { key }),
    ];
    let expects = prop::collection::vec((key(), expect), 0..2);
    (expects, prop::collection::vec(mutation, 0..4))
        .prop_map(|(expect, mutations)| Commit { expect, mutations })
}

/// What the engine promises, done naively. `None` is a conflict.
fn apply(keys: &Keys, revision: Revision, commit: &Commit) -> Option<(Keys, Revision)> {
    for (key, expect) in &commit.expect {
        let at = keys.get(key).map(|kv| kv.mod_revision);
        let met = match expect {
            Expect::Any => true,
            Expect::Absent => at.is_none(),
            Expect::ModRevision(wanted) => at == Some(*wanted),
        };
        if !met {
            return None;
        }
    }
    let (mut next, mut changed) = (keys.clone(), false);
    for mutation in &commit.mutations {
        match mutation {
            Mutation::Delete { key } => changed |= next.remove(key).is_some(),
            Mutation::Put { key, value } => {
                changed = true;
                let old = next.get(key);
                let kv = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: old.map_or(revision + 1, |kv| kv.create_revision),
                    mod_revision: revision + 1,
                    version: old.map_or(1, |kv| kv.version + 1),
                };
                next.insert(key.clone(), kv);
            }
        }
    }
    Some((next, revision + u64::from(changed)))
}

/// All pages of a prefix at a revision.
async fn list(store: &Embedded, prefix: &str, at: Revision, limit: usize) -> Vec<KeyValue> {
    let end = prefix_end(prefix.as_bytes());
    let mut start = Bytes::copy_from_slice(prefix.as_bytes());
    let mut all: Vec<KeyValue> = Vec::new();
    loop {
        let request = RangeRequest {
            start: start.clone(),
            end: end.clone(),
            limit,
            at: Some(at),
        };
        let page = store.range(request).await.unwrap();
        assert_eq!(page.revision, at);
        assert_eq!(page.more, page.count > page.kvs.len() as u64);
        all.extend(page.kvs);
        match all.last() {
            Some(last) if page.more => start = [&last.key[..], b"\0"].concat().into(),
            _ => return all,
        }
    }
}

/// The same in one scan.
async fn scan(store: &Embedded, prefix: &str, at: Revision) -> Vec<KeyValue> {
    let (start, end) = (prefix.to_owned().into(), prefix_end(prefix.as_bytes()));
    let scan = store.scan(start, end, Some(at)).await.unwrap();
    assert_eq!(scan.revision(), at);
    scan.map(Result::unwrap).concat().await
}

fn with_prefix(keys: &Keys, prefix: &str) -> Vec<KeyValue> {
    let hits = keys
        .values()
        .filter(|kv| kv.key.starts_with(prefix.as_bytes()));
    hits.cloned().collect()
}

async fn check(commits: Vec<Commit>, limit: usize) {
    let store = Embedded::in_memory();
    let mut states: Vec<Keys> = vec![Keys::new(), Keys::new()];
    for commit in &commits {
        let revision = (states.len() - 1) as u64;
        let now = &states[states.len() - 1];
        match (
            apply(now, revision, commit),
            store.commit(commit.clone()).await,
        ) {
            (None, Err(CommitError::Conflict { key, current })) => {
                assert_eq!(current.as_ref(), now.get(&key));
            }
            (Some((next, expected)), Ok(got)) => {
                assert_eq!(got, expected);
                if got > revision {
                    states.push(next);
                }
            }
            (model, engine) => panic!("{model:?} but {engine:?}"),
        }
    }
    for (revision, keys) in states.iter().enumerate().skip(1) {
        for prefix in PREFIXES {
            let listed = list(&store, prefix, revision as u64, limit).await;
            assert_eq!(listed, with_prefix(keys, prefix), "{prefix} at {revision}");
            let scanned = scan(&store, prefix, revision as u64).await;
            assert_eq!(scanned, listed, "{prefix} at {revision}");
            replay(&store, prefix, revision as u64, &states).await;
        }
        for (key, kv) in keys {
            let got = store.get(key, Some(revision as u64)).await.unwrap();
            assert_eq!(got, (Some(kv.clone()), revision as u64));
        }
    }
}

/// A watch from `after` leads from the state then to the state now, one revision after another.
async fn replay(store: &Embedded, prefix: &str, after: Revision, states: &[Keys]) {
    let mut watch = store
        .watch(Bytes::copy_from_slice(prefix.as_bytes()), after)
        .unwrap();
    watch.request_progress();
    let batch = watch.next().await.unwrap().unwrap();
    assert_eq!(batch.revision, (states.len() - 1) as u64);
    assert!(watch.next().now_or_never().is_none(), "nothing comes twice");
    let mut keys = states[after as usize].clone();
    for (at, event) in batch.events.iter().enumerate() {
        let kv = &event.kv;
        assert!(kv.mod_revision > after && kv.key.starts_with(prefix.as_bytes()));
        assert_eq!(event.prev.as_ref(), keys.get(&kv.key));
        match event.kind {
            EventKind::Put => keys.insert(kv.key.clone(), kv.clone()),
            EventKind::Delete => keys.remove(&kv.key),
        };
        let next = batch.events.get(at + 1);
        if next.is_none_or(|next| next.kv.mod_revision > kv.mod_revision) {
            let then = &states[kv.mod_revision as usize];
            assert_eq!(with_prefix(&keys, prefix), with_prefix(then, prefix));
        }
    }
    let now = &states[states.len() - 1];
    assert_eq!(with_prefix(&keys, prefix), with_prefix(now, prefix));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_engine_is_the_model(
        commits in prop::collection::vec(one_commit(), 1..30),
        limit in 0..4_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(check(commits, limit));
    }
}
