//! Sees every commit of the store in its order, keeps a trace and its hash, and checks the
//! invariants that hold at every moment.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::{Method, Request, StatusCode};
use kube::client::Body;
use serde_json::Value;
use store::{Embedded, Event, EventKind, Store, Watch};
use tokio::time::Instant;

use crate::checks::{self, Invariant};
use crate::network::Party;
use crate::work::Place;
use crate::world::{Change, Name, World, text};

/// Lines of the trace that are kept for a failure.
const TRACE_LINES: usize = 60_000;
/// Failures that are told.
const FAILURES: usize = 20;

/// The oracle.
pub struct Oracle {
    state: Mutex<State>,
    start: Instant,
}

struct State {
    world: World,
    checks: Vec<Box<dyn Invariant>>,
    failures: Vec<String>,
    trace: VecDeque<String>,
    hash: u64,
    revision: u64,
    commits: u64,
    /// Commits that a cluster at rest has no reason for.
    real_changes: u64,
    /// The trace is shown as it comes.
    shown: bool,
    /// With whole objects.
    with_objects: bool,
}

impl Oracle {
    /// One that has seen nothing; time counts from now. `shown`: the trace is printed as it comes.
    pub fn new(shown: bool) -> Arc<Self> {
        let state = State {
            world: World::default(),
            checks: checks::all(),
            failures: Vec::new(),
            trace: VecDeque::new(),
            hash: 0xcbf2_9ce4_8422_2325,
            revision: 0,
            commits: 0,
            real_changes: 0,
            shown,
            with_objects: shown && std::env::var_os("STYR_OBJECTS").is_some(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
            start: Instant::now(),
        })
    }

    /// Takes in what a store holds before anything happens.
    pub async fn load(&self, store: &Embedded) {
        let all = store::RangeRequest {
            start: Bytes::from_static(b"/registry/"),
            end: store::prefix_end(b"/registry/"),
            limit: 0,
            at: None,
        };
        let Ok(found) = store.range(all).await else {
            return;
        };
        let mut state = self.lock();
        state.revision = found.revision;
        for kv in found.kvs {
            if let Some((kind, name, object)) = parse(&kv.value) {
                state.world.put(&kind, name, object);
            }
        }
    }

    /// Follows a store to its end or until it is read no more.
    pub fn follow(self: &Arc<Self>, store: &Embedded) -> Follower {
        let after = self.lock().revision;
        let watch = store.watch(Bytes::from_static(b"/registry/"), after);
        Follower {
            oracle: self.clone(),
            watch: watch.ok(),
        }
    }

    /// Virtual time since the start.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Adds a line to the trace.
    pub fn note(&self, line: &str) {
        let now = self.now();
        self.lock().trace(now, line, b"");
    }

    /// An invariant is broken.
    pub fn fail(&self, what: String) {
        let now = self.now();
        self.lock().fail(now, what);
    }

    /// The user was told that there is such an object now, or none.
    pub fn wish(&self, place: &Place, there: bool) {
        let mut state = self.lock();
        let wishes = &mut state.world.wishes;
        if place.kind == "Namespace" && !there {
            wishes.retain(|other, _| other.namespace != place.name);
        }
        wishes.insert(place.clone(), there);
    }

    /// The user is at an object again, and has not been told yet what became of it.
    pub fn doubt(&self, place: &Place) {
        self.lock().world.wishes.remove(place);
    }

    /// A request is on its way to the server.
    pub fn sent(&self, party: Party, request: &Request<Body>) {
        let mut state = self.lock();
        let State { checks, world, .. } = &mut *state;
        for check in checks {
            check.sent(world, party, request.method(), request.uri().path());
        }
    }

    /// The server has answered a request that writes.
    pub fn carried_out(&self, party: Party, what: &str, status: StatusCode, body: &[u8]) {
        let now = self.now();
        let mut state = self.lock();
        if !status.is_success() {
            let said: Value = serde_json::from_slice(body).unwrap_or_default();
            let line = format!("{party:?}: {what} -> {status} {}", text(&said, "/message"));
            state.trace(now, &line, b"");
            return;
        }
        let newest = revision_in(body).unwrap_or(0);
        if newest > state.revision {
            // The watch that tells of it is read before anything else happens to this revision.
            state.trace(
                now,
                &format!("{party:?}: {what} -> {newest}, not seen yet"),
                b"",
            );
        }
    }

    /// A piece of a watch is about to be delivered.
    pub fn watched(&self, piece: &[u8], seen: &mut u64) {
        for line in piece.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let Some(revision) = revision_in(line) else {
                continue;
            };
            if revision < *seen {
                self.fail(format!("a watch went back from {seen} to {revision}"));
            }
            *seen = revision;
        }
    }

    /// The node that a request of the nodes' agents is about.
    pub fn node_of(&self, party: Party, request: &Request<Body>) -> Option<String> {
        if party != Party::Nodes || request.method() == Method::GET {
            return None;
        }
        let parts: Vec<&str> = request.uri().path().split('/').collect();
        let after = |word: &str| parts.iter().position(|p| *p == word).map(|at| at + 1);
        if let Some(at) = after("leases").or_else(|| after("nodes")) {
            return parts.get(at).map(|name| (*name).to_owned());
        }
        let (namespace, name) = (after("namespaces")?, after("pods")?);
        let state = self.lock();
        let pod = state
            .world
            .get("Pod", parts.get(namespace)?, parts.get(name)?)?;
        Some(text(pod, "/spec/nodeName").to_owned())
    }

    /// What is not yet as it should be in the end.
    pub fn unsettled(&self) -> Vec<String> {
        let mut state = self.lock();
        let State { checks, world, .. } = &mut *state;
        checks.iter_mut().flat_map(|c| c.unsettled(world)).collect()
    }

    /// Looks at the cluster.
    pub fn with<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&self.lock().world)
    }

    /// What broke.
    pub fn failures(&self) -> Vec<String> {
        self.lock().failures.clone()
    }

    /// How many commits there were, and the hash of the trace.
    pub fn summary(&self) -> (u64, u64) {
        let state = self.lock();
        (state.commits, state.hash)
    }

    /// How many commits there were besides heartbeats and what expires by itself.
    pub fn real_changes(&self) -> u64 {
        self.lock().real_changes
    }

    /// The trace.
    pub fn trace(&self) -> String {
        let state = self.lock();
        let lines: Vec<&str> = state.trace.iter().map(String::as_str).collect();
        lines.join("\n")
    }

    fn take(&self, event: &Event) {
        let now = self.now();
        self.lock().take(now, event);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, now: Duration, event: &Event) {
        let revision = event.kv.mod_revision;
        if revision < self.revision {
            self.fail(now, format!("revision {revision} after {}", self.revision));
        }
        self.revision = revision;
        self.commits += 1;
        let Some((kind, name, object)) = parse(&event.kv.value) else {
            return;
        };
        let (old, new) = match event.kind {
            EventKind::Put => {
                let old = self.world.put(&kind, name.clone(), object);
                (old, self.world.get(&kind, &name.0, &name.1).cloned())
            }
            EventKind::Delete => (self.world.remove(&kind, &name), None),
        };
        let change = Change {
            kind: &kind,
            name: &name,
            old: old.as_ref(),
            new: new.as_ref(),
        };
        self.real_changes += u64::from(!["Lease", "Event"].contains(&change.kind));
        let line = line_of(&change, revision);
        self.trace(now, &line, &event.kv.value);
        if self.with_objects
            && let Some(new) = &new
        {
            println!("{new}");
        }
        let mut broken = Vec::new();
        for check in &mut self.checks {
            broken.extend(check.see(&self.world, &change).err());
        }
        broken.into_iter().for_each(|what| self.fail(now, what));
    }

    fn fail(&mut self, now: Duration, what: String) {
        self.trace(now, &format!("FAILURE {what}"), b"");
        if self.failures.len() < FAILURES {
            self.failures.push(format!("{now:.3?}: {what}"));
        }
    }

    fn trace(&mut self, now: Duration, line: &str, more: &[u8]) {
        let line = format!("{:>9.3} {line}", now.as_secs_f64());
        for byte in line.as_bytes().iter().chain(more) {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.shown {
            println!("{line}");
        }
        if self.trace.len() == TRACE_LINES {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }
}

/// The commits of one store on their way to the oracle.
pub struct Follower {
    oracle: Arc<Oracle>,
    watch: Option<Watch>,
}

impl Follower {
    /// Takes in commits as they come; ends with the store.
    pub async fn run(&mut self) {
        while let Some(watch) = &mut self.watch {
            match watch.next().await {
                Some(Ok(batch)) => batch.events.iter().for_each(|e| self.oracle.take(e)),
                Some(Err(error)) => {
                    self.oracle
                        .fail(format!("the trace is incomplete: {error}"));
                    return;
                }
                None => return,
            }
        }
    }

    /// Takes in what is there, without waiting: the last of a killed server.
    pub fn drain(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        while let Some(Some(Ok(batch))) = watch.next().now_or_never() {
            batch.events.iter().for_each(|e| self.oracle.take(e));
        }
    }
}

fn parse(value: &[u8]) -> Option<(String, Name, Value)> {
    let object: Value = serde_json::from_slice(value).ok()?;
    let kind = text(&object, "/kind").to_owned();
    let of = |pointer| text(&object, pointer).to_owned();
    let name = (of("/metadata/namespace"), of("/metadata/name"));
    (!kind.is_empty()).then_some((kind, name, object))
}

/// One line of a commit: what and, of a pod, the little that tells its life.
fn line_of(change: &Change<'_>, revision: u64) -> String {
    let (namespace, name) = change.name;
    let what = match (change.old, change.new) {
        (None, Some(_)) => "new",
        (Some(_), Some(_)) => "set",
        _ => "del",
    };
    let mut line = format!("{revision} {what} {} {namespace}/{name}", change.kind);
    if let Some(object) = change.new {
        for pointer in [
            "/spec/nodeName",
            "/status/phase",
            "/spec/replicas",
            "/reason",
            "/message",
        ] {
            match object.pointer(pointer) {
                Some(Value::String(value)) => line.push_str(&format!(" {value}")),
                Some(Value::Number(value)) => line.push_str(&format!(" {value}")),
                _ => {}
            }
        }
        if crate::world::has_condition(object, "Ready") {
            line.push_str(" ready");
        }
        if crate::world::is_going(object) {
            line.push_str(" going");
        }
    }
    line
}

/// The resourceVersion that an object, or the object of a watch's event, carries.
fn revision_in(text: &[u8]) -> Option<u64> {
    const MARK: &[u8] = b"\"resourceVersion\":\"";
    let at = text.windows(MARK.len()).position(|window| window == MARK)?;
    let digits = text.get(at + MARK.len()..)?;
    let digits = digits.split(|b| *b == b'"').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
