//! Events do not stay: each is deleted one hour (by default) after it was last written.
//!
//! One task follows the events' keys and holds them in order of expiry, which is the order of writing. It wakes when
//! the oldest is due, but not more often than [`SWEEP_INTERVAL`], so that an idle cluster stays idle.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use api::meta;
use bytes::Bytes;
use futures::StreamExt;
use store::{Commit, EventKind, Expect, KeyValue, Mutation, RangeRequest, prefix_end};
use tokio::time::Instant;

use crate::registry::Registry;

const PREFIX: &[u8] = b"/registry/events/";
/// Shortest time between two sweeps, unless events live shorter.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// Most writes of events followed; older ones expire early.
const MAX_FOLLOWED: usize = 200_000;
/// Most events deleted by one commit.
const BATCH: usize = 256;

struct Due {
    at: Instant,
    key: Bytes,
    revision: u64,
}

/// Starts the task; it ends with the server.
pub fn expire(registry: Arc<Registry>) {
    tokio::spawn(async move {
        let stop = registry.stop.clone();
        stop.run_until_cancelled(async {
            while let Err(error) = follow(&registry).await {
                tracing::debug!(%error, "event expiry starts again");
                tokio::time::sleep(SWEEP_INTERVAL).await;
            }
        })
        .await;
    });
}

/// Age of an event that was there before the server started.
fn age(registry: &Registry, kv: &KeyValue) -> Duration {
    let object = serde_json::from_slice(&kv.value).unwrap_or_default();
    let times = [
        ["lastTimestamp"].as_slice(),
        &["eventTime"],
        &["metadata", "creationTimestamp"],
    ];
    let written = times
        .iter()
        .map(|path| meta::str_at(&object, path))
        .find(|t| !t.is_empty());
    let seconds = written
        .and_then(|t| api::time::seconds_since(t, registry.now()))
        .unwrap_or(0);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

async fn follow(registry: &Registry) -> Result<(), store::ReadError> {
    let (store, ttl) = (registry.store(), registry.config().event_ttl);
    let start = Bytes::from_static(PREFIX);
    let range = RangeRequest {
        end: prefix_end(&start),
        start: start.clone(),
        limit: 0,
        at: None,
    };
    let found = store.range(range).await?;
    let now = Instant::now();
    let mut old: Vec<Due> = found
        .kvs
        .iter()
        .map(|kv| Due {
            at: now + ttl.saturating_sub(age(registry, kv)),
            key: kv.key.clone(),
            revision: kv.mod_revision,
        })
        .collect();
    old.sort_by_key(|due| due.at);
    let mut queue = VecDeque::from(old);
    let mut watch = store.watch(start, found.revision)?;
    let mut swept = now;
    let pause = SWEEP_INTERVAL.min(ttl);
    loop {
        let over = queue.len().saturating_sub(MAX_FOLLOWED);
        queue
            .iter_mut()
            .take(over)
            .for_each(|due| due.at = due.at.min(swept));
        let wake = queue.front().map(|due| due.at.max(swept + pause));
        let due = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            batch = watch.next() => {
                let Some(batch) = batch else { return Ok(()) };
                let at = Instant::now() + ttl;
                let written = batch?.events.into_iter().filter(|e| e.kind == EventKind::Put);
                queue.extend(written.map(|e| Due { at, key: e.kv.key, revision: e.kv.mod_revision }));
            }
            () = due => {
                swept = Instant::now();
                sweep(registry, &mut queue, swept).await;
            }
        }
    }
}

async fn sweep(registry: &Registry, queue: &mut VecDeque<Due>, now: Instant) {
    while queue.front().is_some_and(|due| due.at <= now) {
        let mut batch = Commit::default();
        while batch.mutations.len() < BATCH
            && let Some(due) = queue.pop_front_if(|due| due.at <= now)
        {
            // An event written again since has a later place in the queue.
            let current = registry.store().get(&due.key, None).await;
            if !matches!(current, Ok((Some(ref kv), _)) if kv.mod_revision == due.revision) {
                continue;
            }
            batch
                .expect
                .push((due.key.clone(), Expect::ModRevision(due.revision)));
            batch.mutations.push(Mutation::Delete { key: due.key });
        }
        if batch.mutations.is_empty() {
            continue;
        }
        let single = batch.expect.clone();
        if registry.store().commit(batch).await.is_ok() {
            continue;
        }
        // One of them changed just now: delete the others one by one.
        for (key, expect) in single {
            let one = Commit {
                expect: vec![(key.clone(), expect)],
                mutations: vec![Mutation::Delete { key }],
            };
            if let Err(error) = registry.store().commit(one).await {
                tracing::debug!(%error, "an event was not expired");
            }
        }
    }
}
