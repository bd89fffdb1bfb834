//! The one thread or task that writes. It takes all commits that wait, checks their preconditions in
//! order against the tree as the earlier ones leave it, makes the whole group durable with one
//! sync, publishes it to readers and watchers, and only then answers.
//!
//! A group that fails to become durable is as if it had never been: the published tree is
//! untouched, and everybody in the group is told, those whose precondition failed too, as they
//! may have been measured against writes that did not happen.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

use crate::durable::{Durable, DurableError, Group};
use crate::history::History;
use crate::tree::Tree;
use crate::types::{Commit, CommitError, Event, EventKind, Expect, KeyValue, Mutation, Revision};

/// A group stops growing at so many bytes of keys and values.
const MAX_GROUP_BYTES: usize = 8 << 20;

/// What readers see. Everything in it is durable.
pub(crate) struct State {
    pub(crate) tree: Tree,
    pub(crate) revision: Revision,
    pub(crate) history: History,
    pub(crate) closed: bool,
}

/// The state behind its lock, which is held for moments only: readers clone the tree and go.
pub(crate) struct Shared(RwLock<State>);

impl Shared {
    pub(crate) fn new(state: State) -> Self {
        Self(RwLock::new(state))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds events and the tree they lead to, then wakes whom they concern.
    fn publish(&self, tree: Tree, revision: Revision, events: Vec<Event>) {
        let woken = {
            let mut state = self.write();
            state.tree = tree;
            state.revision = revision;
            state.history.append(events, Instant::now())
        };
        for topic in woken {
            topic.wake(revision);
        }
    }

    /// Tells everybody that nothing will come any more.
    fn close(&self) {
        let (topics, revision) = {
            let mut state = self.write();
            state.closed = true;
            (state.history.topics(), state.revision)
        };
        for topic in topics {
            topic.wake(revision);
        }
    }
}

/// A commit on its way to the committer.
pub(crate) struct Request {
    pub(crate) commit: Commit,
    pub(crate) reply: oneshot::Sender<Result<Revision, CommitError>>,
    /// Room in the queue, given back with the answer.
    pub(crate) _room: OwnedSemaphorePermit,
}

pub(crate) enum Message {
    Commit(Request),
    Close(oneshot::Sender<()>),
}

/// Runs until told to close or until nobody can send any more. `guard` is dropped last.
pub(crate) async fn run(
    mut durable: Box<dyn Durable>,
    shared: Arc<Shared>,
    mut queue: mpsc::Receiver<Message>,
    guard: Option<std::fs::File>,
) {
    let mut closing = None;
    while closing.is_none() {
        let Some(first) = queue.recv().await else {
            break;
        };
        let mut waiting = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Commit(request) => {
                    bytes += size(&request.commit);
                    waiting.push(request);
                }
                Message::Close(done) => {
                    closing = Some(done);
                    break;
                }
            }
            next = (bytes < MAX_GROUP_BYTES)
                .then(|| queue.try_recv().ok())
                .flatten();
        }
        process(durable.as_mut(), &shared, waiting);
    }
    shared.close();
    drop(durable);
    drop(guard);
    if let Some(done) = closing {
        // Nobody waiting for the end is fine.
        let _ = done.send(());
    }
}

/// What a mutation costs beside its key and value, in bytes: keeps commits of very many small ones
/// within the bounds of a record.
const MUTATION_OVERHEAD: usize = 64;

/// Bytes of keys and values in a commit, with a little for each.
pub(crate) fn size(commit: &Commit) -> usize {
    let expected: usize = commit.expect.iter().map(|(key, _)| key.len()).sum();
    let mutated = commit.mutations.iter().map(|mutation| match mutation {
        Mutation::Put { key, value } => MUTATION_OVERHEAD + key.len() + value.len(),
        Mutation::Delete { key } => MUTATION_OVERHEAD + key.len(),
    });
    expected + mutated.sum::<usize>()
}

fn process(durable: &mut dyn Durable, shared: &Shared, waiting: Vec<Request>) {
    let mut pending = Pending::new(&shared.read());
    let outcomes: Vec<_> = waiting
        .iter()
        .map(|request| pending.apply(&request.commit))
        .collect();
    if !pending.events.is_empty() {
        if let Err(error) = durable.append(&pending.group(), &pending.tree) {
            return refuse(waiting, &error);
        }
        shared.publish(pending.tree, pending.revision, pending.events);
    }
    for (request, outcome) in waiting.into_iter().zip(outcomes) {
        // A caller that no longer waits does not undo its commit.
        let _ = request.reply.send(outcome);
    }
}

fn refuse(waiting: Vec<Request>, error: &DurableError) {
    for request in waiting {
        let error = match error {
            DurableError::NoSpace(reason) => CommitError::NoSpace(reason.clone()),
            DurableError::Io(reason) => CommitError::Io(reason.clone()),
        };
        let _ = request.reply.send(Err(error));
    }
}

fn put(prev: Option<&Arc<KeyValue>>, kv: &Arc<KeyValue>) -> Event {
    Event {
        kind: EventKind::Put,
        kv: KeyValue::clone(kv),
        prev: prev.map(|kv| KeyValue::clone(kv)),
    }
}

fn delete(prev: &Arc<KeyValue>, revision: Revision) -> Event {
    let mut kv = KeyValue::clone(prev);
    kv.mod_revision = revision;
    Event {
        kind: EventKind::Delete,
        kv,
        prev: Some(KeyValue::clone(prev)),
    }
}

/// The state as the commits of the group leave it, not durable yet.
struct Pending {
    tree: Tree,
    revision: Revision,
    events: Vec<Event>,
    writes: HashMap<Bytes, Option<Arc<KeyValue>>>,
}

impl Pending {
    fn new(state: &State) -> Self {
        Self {
            tree: state.tree.clone(),
            revision: state.revision,
            events: Vec::new(),
            writes: HashMap::new(),
        }
    }

    fn apply(&mut self, commit: &Commit) -> Result<Revision, CommitError> {
        self.check(&commit.expect)?;
        let revision = self.revision + 1;
        let before = self.events.len();
        for mutation in &commit.mutations {
            match mutation {
                Mutation::Put { key, value } => self.put(key, value, revision),
                Mutation::Delete { key } => self.delete(key, revision),
            }
        }
        if self.events.len() > before {
            self.revision = revision;
        }
        Ok(self.revision)
    }

    fn check(&self, expect: &[(Bytes, Expect)]) -> Result<(), CommitError> {
        for (key, expect) in expect {
            let current = self.tree.get(key);
            let met = match expect {
                Expect::Any => true,
                Expect::Absent => current.is_none(),
                Expect::ModRevision(revision) => {
                    current.is_some_and(|kv| kv.mod_revision == *revision)
                }
            };
            if !met {
                return Err(CommitError::Conflict {
                    key: key.clone(),
                    current: current.map(|kv| KeyValue::clone(kv)),
                });
            }
        }
        Ok(())
    }

    fn put(&mut self, key: &Bytes, value: &Bytes, revision: Revision) {
        let prev = self.tree.get(key).cloned();
        let kv = Arc::new(KeyValue {
            // The tree's key lives on, so that the caller's does not pin a larger buffer.
            key: prev.as_ref().map_or_else(|| key.clone(), |p| p.key.clone()),
            value: value.clone(),
            create_revision: prev.as_ref().map_or(revision, |p| p.create_revision),
            mod_revision: revision,
            version: prev.as_ref().map_or(1, |p| p.version + 1),
        });
        self.events.push(put(prev.as_ref(), &kv));
        self.writes.insert(kv.key.clone(), Some(kv.clone()));
        self.tree.insert(kv);
    }

    fn delete(&mut self, key: &Bytes, revision: Revision) {
        let Some(prev) = self.tree.get(key).cloned() else {
            return;
        };
        self.events.push(delete(&prev, revision));
        self.writes.insert(prev.key.clone(), None);
        self.tree.remove(key);
    }

    fn group(&mut self) -> Group {
        Group {
            revision: self.revision,
            writes: std::mem::take(&mut self.writes).into_iter().collect(),
        }
    }
}
