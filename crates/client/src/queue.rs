//! Work queues of keys.
//!
//! Invariants:
//! - a key is in the queue at most once, however often it is added;
//! - a key being worked on is not handed out again until it is [`Queue::done`]; if it was added
//!   meanwhile, it is handed out once more after;
//! - nothing is lost: the queue is bounded by the number of distinct keys, not by a length.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::Jitter;

/// How long a failed key waits: `base` doubled with each failure in a row, at most `max`, and
/// up to a tenth more.
#[derive(Clone, Debug)]
pub struct Backoff {
    /// Wait after the first failure.
    pub base: Duration,
    /// Longest wait.
    pub max: Duration,
    /// Spreads the waits.
    pub jitter: Jitter,
}

impl Default for Backoff {
    /// 5 ms to 1000 s, as Kubernetes' controllers use.
    fn default() -> Self {
        Self {
            base: Duration::from_millis(5),
            max: Duration::from_secs(1000),
            jitter: Jitter::random(),
        }
    }
}

const JITTER_FACTOR: f64 = 0.1;

impl Backoff {
    /// The wait before the next try after `failures` failures in a row (at least one).
    pub fn after(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(30);
        let wait = self.base.saturating_mul(1 << doublings).min(self.max);
        self.jitter.stretch(wait, JITTER_FACTOR)
    }
}

struct State<T> {
    ready: VecDeque<T>,
    /// In `ready`, or to go there when done.
    dirty: HashSet<T>,
    processing: HashSet<T>,
    /// When each waiting key is due, and the reverse; the number keeps equal times apart.
    delayed: BTreeMap<(Instant, u64), T>,
    due: HashMap<T, (Instant, u64)>,
    failures: HashMap<T, u32>,
    sequence: u64,
    closed: bool,
}

/// A deduplicating, delaying queue of keys. Cheap to clone; clones share the queue.
pub struct Queue<T> {
    state: Arc<Mutex<State<T>>>,
    wake: Arc<Notify>,
    backoff: Backoff,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
            wake: Arc::clone(&self.wake),
            backoff: self.backoff.clone(),
        }
    }
}

impl<T: Clone + Eq + Hash> Default for Queue<T> {
    fn default() -> Self {
        Self::new(Backoff::default())
    }
}

impl<T: Clone + Eq + Hash> Queue<T> {
    /// An empty queue.
    pub fn new(backoff: Backoff) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashSet::new(),
            delayed: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            sequence: 0,
            closed: false,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            wake: Arc::new(Notify::new()),
            backoff,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for `key` to be worked on as soon as may be.
    pub fn add(&self, key: T) {
        self.lock().add(key);
        self.wake.notify_one();
    }

    /// Asks for `key` to be worked on after `delay`, or earlier if it was asked for earlier.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.lock().delay(key, Instant::now() + delay);
        self.wake.notify_one();
    }

    /// Asks for `key` to be worked on again after a failure, later with each failure in a row.
    pub fn retry(&self, key: T) {
        let failures = {
            let mut state = self.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            *failures = failures.saturating_add(1);
            *failures
        };
        self.add_after(key, self.backoff.after(failures));
    }

    /// Ends the row of failures of `key`.
    pub fn forget(&self, key: &T) {
        self.lock().failures.remove(key);
    }

    /// How often `key` has failed in a row.
    pub fn failures(&self, key: &T) -> u32 {
        self.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// How many keys are ready to be worked on.
    pub fn len(&self) -> usize {
        self.lock().ready.len()
    }

    /// Whether no key is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is nothing ready, delayed or being worked on.
    pub fn is_idle(&self) -> bool {
        let state = self.lock();
        state.ready.is_empty() && state.delayed.is_empty() && state.processing.is_empty()
    }

    /// The next key, when there is one; `None` once the queue is closed. The caller owes a
    /// [`Queue::done`] for it.
    pub async fn next(&self) -> Option<T> {
        loop {
            let wake = self.wake.notified();
            let due = {
                let mut state = self.lock();
                state.promote(Instant::now());
                if state.closed {
                    self.wake.notify_one();
                    return None;
                }
                if let Some(key) = state.take() {
                    if !state.ready.is_empty() || !state.delayed.is_empty() {
                        self.wake.notify_one();
                    }
                    return Some(key);
                }
                state.delayed.keys().next().map(|(at, _)| *at)
            };
            match due {
                Some(at) => tokio::select! {
                    () = wake => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => wake.await,
            }
        }
    }

    /// Tells that the work on `key` has ended, well or not.
    pub fn done(&self, key: &T) {
        self.lock().done(key);
        self.wake.notify_one();
    }

    /// Makes every [`Queue::next`] answer `None`.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }
}

impl<T: Clone + Eq + Hash> State<T> {
    fn add(&mut self, key: T) {
        if let Some(at) = self.due.remove(&key) {
            self.delayed.remove(&at);
        }
        if self.closed || !self.dirty.insert(key.clone()) || self.processing.contains(&key) {
            return;
        }
        self.ready.push_back(key);
    }

    fn delay(&mut self, key: T, at: Instant) {
        if self.closed {
            return;
        }
        if let Some(earlier) = self.due.get(&key).copied() {
            if earlier.0 <= at {
                return;
            }
            self.delayed.remove(&earlier);
        }
        self.sequence += 1;
        self.due.insert(key.clone(), (at, self.sequence));
        self.delayed.insert((at, self.sequence), key);
    }

    fn promote(&mut self, now: Instant) {
        while let Some(first) = self.delayed.first_entry() {
            if first.key().0 > now {
                return;
            }
            let key = first.remove();
            self.due.remove(&key);
            self.add(key);
        }
    }

    fn take(&mut self) -> Option<T> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.processing.insert(key.clone());
        Some(key)
    }

    fn done(&mut self, key: &T) {
        self.processing.remove(key);
        if self.dirty.contains(key) {
            self.ready.push_back(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Queue<&'static str> {
        Queue::new(Backoff {
            jitter: Jitter::none(),
            ..Backoff::default()
        })
    }

    #[tokio::test]
    async fn a_key_is_handed_out_once_and_again_if_added_while_worked_on() {
        let q = queue();
        q.add("a");
        q.add("a");
        assert_eq!(q.next().await, Some("a"));
        q.add("a");
        q.add("b");
        assert_eq!(q.next().await, Some("b"));
        assert!(q.is_empty());
        q.done(&"a");
        assert_eq!(q.next().await, Some("a"));
        q.done(&"a");
        q.done(&"b");
        assert!(q.is_idle());
    }

    #[tokio::test]
    async fn delays_wait_and_the_earlier_wins() {
        let q = queue();
        let start = Instant::now();
        q.add_after("a", Duration::from_secs(60));
        q.add_after("a", Duration::from_millis(10));
        q.add_after("a", Duration::from_secs(30));
        assert_eq!(q.next().await, Some("a"));
        let waited = start.elapsed();
        assert!((10..5000).contains(&waited.as_millis()), "{waited:?}");
        q.done(&"a");
        assert!(q.is_idle());
    }

    #[tokio::test]
    async fn retries_back_off_until_forgotten() {
        let q = queue();
        for expected in [5, 10, 20, 40] {
            let start = Instant::now();
            q.retry("a");
            assert_eq!(q.next().await, Some("a"));
            assert!(start.elapsed().as_millis() >= expected);
            q.done(&"a");
        }
        q.forget(&"a");
        assert_eq!(q.failures(&"a"), 0);
        assert_eq!(q.backoff.after(60), Duration::from_secs(1000));
    }

    #[tokio::test]
    async fn many_workers_share_and_all_end_on_close() {
        let q = Queue::<u32>::default();
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let q = q.clone();
                tokio::spawn(async move {
                    let mut n = 0;
                    while let Some(key) = q.next().await {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        q.done(&key);
                        n += 1;
                    }
                    n
                })
            })
            .collect();
        for key in 0..100 {
            q.add(key);
        }
        while !q.is_idle() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        q.close();
        let mut total = 0;
        for worker in workers {
            total += worker.await.unwrap();
        }
        assert_eq!(total, 100);
    }
}
