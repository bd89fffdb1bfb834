//! What happened lately: the events that watches replay and that undo the tree for reads at an
//! older revision.
//!
//! Events are kept once, in a ring per *segment* (the first two path segments of the key, such as
//! `/registry/pods/`), so that a busy resource does not push out the history of a quiet one. A
//! watcher is a cursor into the ring. Watchers of one *topic* (the prefix watched, up to its last
//! slash) share one wake-up channel, and a commit wakes only the topics it touches.
//!
//! Invariant: a segment holds every event of its keys with a revision over its `base`; a topic with
//! `evicted` = R has lost events up to R at most, so cursors at R or later miss nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::types::{Event, KeyValue, Revision, prefix_end};

/// Bounds of the history; what exceeds one of them is forgotten, oldest first.
#[derive(Clone, Debug)]
pub struct HistoryLimits {
    /// Events kept for a segment.
    pub segment_events: usize,
    /// Bytes of superseded values (and event overhead) kept for a segment.
    pub segment_bytes: usize,
    /// The same over all segments.
    pub total_bytes: usize,
    /// Events older than this are forgotten at the next commit.
    pub age: Duration,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self {
            segment_events: 100_000,
            segment_bytes: 64 << 20,
            total_bytes: 128 << 20,
            age: Duration::from_secs(300),
        }
    }
}

/// What an event costs beside the value it supersedes, in bytes.
const EVENT_OVERHEAD: usize = 256;
/// Dead topics are swept out when the table has grown to this many, or to twice the living.
const TOPICS_SWEEP: usize = 256;

struct Record {
    event: Event,
    /// Counts all events of the store: orders the events of one commit over segments.
    seq: u64,
    at: Instant,
    cost: usize,
}

impl Record {
    fn revision(&self) -> Revision {
        self.event.kv.mod_revision
    }
}

struct Segment {
    records: VecDeque<Record>,
    base: Revision,
    bytes: usize,
}

/// What the watchers of one prefix share.
pub(crate) struct Topic {
    prefix: Bytes,
    touched: watch::Sender<Revision>,
    evicted: AtomicU64,
}

impl Topic {
    pub(crate) fn subscribe(&self) -> watch::Receiver<Revision> {
        self.touched.subscribe()
    }

    /// The newest revision of an event of this topic that is no longer kept.
    pub(crate) fn evicted(&self) -> Revision {
        self.evicted.load(Ordering::Relaxed)
    }

    fn evict(&self, revision: Revision) {
        self.evicted.fetch_max(revision, Ordering::Relaxed);
    }

    pub(crate) fn wake(&self, revision: Revision) {
        self.touched.send_replace(revision);
    }
}

pub(crate) struct History {
    limits: HistoryLimits,
    segments: HashMap<Bytes, Segment>,
    topics: HashMap<Bytes, Weak<Topic>>,
    topics_sweep: usize,
    /// Revision at which the store was opened: base of segments without events since.
    floor: Revision,
    seq: u64,
    bytes: usize,
}

impl History {
    pub(crate) fn new(limits: HistoryLimits, floor: Revision) -> Self {
        Self {
            limits,
            segments: HashMap::new(),
            topics: HashMap::new(),
            topics_sweep: TOPICS_SWEEP,
            floor,
            seq: 0,
            bytes: 0,
        }
    }

    /// Adds the events of one group of commits and returns the topics to wake.
    pub(crate) fn append(&mut self, events: Vec<Event>, now: Instant) -> Vec<Arc<Topic>> {
        let mut woken: HashMap<Bytes, Arc<Topic>> = HashMap::new();
        for event in events {
            self.each_topic(&event.kv.key.clone(), |topic| {
                if !woken.contains_key(&topic.prefix) {
                    woken.insert(topic.prefix.clone(), topic);
                }
            });
            self.push(event, now);
        }
        self.evict(now);
        woken.into_values().collect()
    }

    fn push(&mut self, event: Event, now: Instant) {
        let cost = EVENT_OVERHEAD + event.prev.as_ref().map_or(0, |kv| kv.value.len());
        let floor = self.floor;
        let name = segment_of(&event.kv.key);
        if !self.segments.contains_key(name) {
            let segment = Segment {
                records: VecDeque::new(),
                base: floor,
                bytes: 0,
            };
            self.segments.insert(Bytes::copy_from_slice(name), segment);
        }
        if let Some(segment) = self.segments.get_mut(name) {
            self.seq += 1;
            segment.bytes += cost;
            segment.records.push_back(Record {
                event,
                seq: self.seq,
                at: now,
                cost,
            });
        }
        self.bytes += cost;
    }

    /// Forgets what the limits no longer allow.
    fn evict(&mut self, now: Instant) {
        let limits = self.limits.clone();
        let mut gone = Vec::new();
        for segment in self.segments.values_mut() {
            while let Some(first) = segment.records.front() {
                let over = segment.records.len() > limits.segment_events
                    || segment.bytes > limits.segment_bytes
                    || now.saturating_duration_since(first.at) > limits.age;
                if !over {
                    break;
                }
                gone.extend(segment.pop());
            }
        }
        self.bytes -= gone.iter().map(|record| record.cost).sum::<usize>();
        while self.bytes > limits.total_bytes {
            let Some(fattest) = self.segments.values_mut().max_by_key(|s| s.bytes) else {
                break;
            };
            // An eighth at a time, so that the search for the fattest is paid rarely.
            let target = fattest.bytes - fattest.bytes / 8;
            while fattest.bytes >= target {
                let Some(record) = fattest.pop() else { break };
                self.bytes -= record.cost;
                gone.push(record);
            }
        }
        for record in gone {
            let revision = record.revision();
            self.each_topic(&record.event.kv.key, |topic| topic.evict(revision));
        }
    }

    /// Calls `f` with each living topic that the key belongs to.
    fn each_topic(&mut self, key: &[u8], mut f: impl FnMut(Arc<Topic>)) {
        if self.topics.is_empty() {
            return;
        }
        let slashes = key.iter().enumerate().filter(|(_, b)| **b == b'/');
        for end in std::iter::once(0).chain(slashes.map(|(at, _)| at + 1)) {
            let Some(weak) = self.topics.get(&key[..end]) else {
                continue;
            };
            match weak.upgrade() {
                Some(topic) => f(topic),
                None => {
                    self.topics.remove(&key[..end]);
                }
            }
        }
    }

    /// The topic of a watched prefix, made if need be.
    pub(crate) fn topic(&mut self, prefix: &[u8], current: Revision) -> Arc<Topic> {
        let end = prefix
            .iter()
            .rposition(|b| *b == b'/')
            .map_or(0, |at| at + 1);
        let prefix = Bytes::copy_from_slice(&prefix[..end]);
        if let Some(topic) = self.topics.get(&prefix).and_then(Weak::upgrade) {
            return topic;
        }
        if self.topics.len() >= self.topics_sweep {
            self.topics.retain(|_, topic| topic.strong_count() > 0);
            self.topics_sweep = TOPICS_SWEEP.max(2 * self.topics.len());
        }
        let evicted = self.oldest(&prefix, &prefix_end(&prefix));
        let topic = Arc::new(Topic {
            prefix: prefix.clone(),
            touched: watch::Sender::new(current),
            evicted: AtomicU64::new(evicted),
        });
        self.topics.insert(prefix, Arc::downgrade(&topic));
        topic
    }

    /// Every living topic, to wake them all.
    pub(crate) fn topics(&self) -> Vec<Arc<Topic>> {
        self.topics.values().filter_map(Weak::upgrade).collect()
    }

    /// The oldest revision at which `start..end` can be read.
    pub(crate) fn oldest(&self, start: &[u8], end: &[u8]) -> Revision {
        let bases = self.within(start, end).map(|segment| segment.base);
        bases.max().unwrap_or(self.floor).max(self.floor)
    }

    fn within<'a>(&'a self, start: &'a [u8], end: &'a [u8]) -> impl Iterator<Item = &'a Segment> {
        let hit = move |name: &[u8]| {
            let name_end = prefix_end(name);
            (end.is_empty() || name < end) && (name_end.is_empty() || &name_end[..] > start)
        };
        self.segments
            .iter()
            .filter(move |(name, _)| hit(name))
            .map(|(_, segment)| segment)
    }

    /// The keys of `start..end` that changed after `revision`, each with what it held then. The
    /// caller has checked `revision` against [`History::oldest`].
    pub(crate) fn undo(
        &self,
        start: &[u8],
        end: &[u8],
        revision: Revision,
    ) -> HashMap<Bytes, Option<KeyValue>> {
        let mut undone = HashMap::new();
        for segment in self.within(start, end) {
            for record in segment.after(revision) {
                let key = &record.event.kv.key;
                if &key[..] >= start && (end.is_empty() || &key[..] < end) {
                    undone
                        .entry(key.clone())
                        .or_insert_with(|| record.event.prev.clone());
                }
            }
        }
        undone
    }

    /// Events of `prefix` after `revision` in order, at most `limit` of them except that a commit
    /// is never split; and whether more are left.
    pub(crate) fn events(
        &self,
        prefix: &[u8],
        revision: Revision,
        limit: usize,
    ) -> (Vec<Event>, bool) {
        if segment_of(prefix).iter().filter(|b| **b == b'/').count() == SEGMENT_SLASHES {
            let segment = self.segments.get(segment_of(prefix));
            let records = segment.into_iter().flat_map(|s| s.after(revision));
            return take_commits(records, prefix, limit);
        }
        let end = prefix_end(prefix);
        let segments = self.within(prefix, &end);
        let mut records: Vec<&Record> = segments.flat_map(|s| s.after(revision)).collect();
        records.sort_unstable_by_key(|record| record.seq);
        take_commits(records.into_iter(), prefix, limit)
    }
}

impl Segment {
    fn pop(&mut self) -> Option<Record> {
        let record = self.records.pop_front()?;
        self.bytes -= record.cost;
        self.base = self.base.max(record.revision());
        Some(record)
    }

    fn after(&self, revision: Revision) -> impl Iterator<Item = &Record> {
        let first = self.records.partition_point(|r| r.revision() <= revision);
        self.records.range(first..)
    }
}

fn take_commits<'a>(
    records: impl Iterator<Item = &'a Record>,
    prefix: &[u8],
    limit: usize,
) -> (Vec<Event>, bool) {
    let mut events: Vec<Event> = Vec::new();
    for record in records.filter(|r| r.event.kv.key.starts_with(prefix)) {
        let full = events.len() >= limit
            && (events.last()).is_some_and(|e| e.kv.mod_revision != record.revision());
        if full {
            return (events, true);
        }
        events.push(record.event.clone());
    }
    (events, false)
}

/// How many slashes the name of a segment has: `/registry/pods/`.
const SEGMENT_SLASHES: usize = 3;

/// The segment a key belongs to: up to its third slash, or its last if it has fewer.
fn segment_of(key: &[u8]) -> &[u8] {
    let slashes = key.iter().enumerate().filter(|(_, b)| **b == b'/');
    let last = slashes.take(SEGMENT_SLASHES).last();
    &key[..last.map_or(0, |(at, _)| at + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_the_first_two_path_segments() {
        for (key, segment) in [
            ("/registry/pods/default/a", "/registry/pods/"),
            ("/registry/apps/deployments/default/a", "/registry/apps/"),
            ("/registry/nodes", "/registry/"),
            ("plain", ""),
        ] {
            assert_eq!(segment_of(key.as_bytes()), segment.as_bytes(), "{key}");
        }
    }
}
