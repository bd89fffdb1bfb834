//! Aggregation: group-versions of the API that other servers serve, reached through this one.
//!
//! APIService objects say who serves what. One task follows them and the services they name: it keeps the table of routes
//! ([`Routes`]) and the Available conditions, and registers what this server serves itself ([`local`]). Everything is decided
//! from the objects as they are; a timer asks other servers again, because nothing tells when one stops to answer.

mod check;
pub(crate) mod discovery;
mod forward;
mod identity;
mod local;
mod specs;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use api::meta;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use codec::openapi::Foreign;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::Value;
use store::{EventKind, KeyValue, RangeRequest, ReadError, prefix_end};
use tokio::time::Instant;

use crate::bootstrap::ensure;
use crate::config::FrontProxy;
use crate::http::request_info::RequestInfo;
use crate::proxy::tls::{self, Trust};
use crate::registry::{DeleteOptions, Fail, Myself, Part, Registry, Write, read_failure};
use check::Verdict;
use local::Step;
use specs::Spec;

const PREFIX: &str = "/registry/apiregistration.k8s.io/apiservices/";
const SERVICES: &str = "/registry/services/";
const SLICES: &str = "/registry/discovery.k8s.io/endpointslices/";
const RESOURCE: (&str, &str, &str) = ("apiregistration.k8s.io", "v1", "apiservices");
/// How often other servers are asked whether they still answer.
const RESYNC: Duration = Duration::from_secs(30);
/// Wait before a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Most servers asked, and objects made, at once.
const CONCURRENCY: usize = 16;

/// A group-version that another server serves.
#[derive(Clone)]
pub(crate) struct Remote {
    pub group: String,
    pub version: String,
    /// Namespace of its service.
    pub namespace: String,
    /// Its service.
    pub service: String,
    /// Port of the service.
    pub port: u16,
    /// TLS towards it, or why there is none.
    pub tls: Result<Arc<rustls::ClientConfig>, String>,
    /// Whether requests are passed on.
    pub available: bool,
    /// The APIResourceList it answered with last.
    pub resources: Option<Value>,
    /// What it says about itself.
    pub said: Option<Arc<Foreign>>,
    /// How much its group, and its version within, matter.
    priority: (i64, i64),
}

impl Remote {
    /// What an APIService says; `None` if it is about this server.
    fn of(object: &Value, front: Option<&FrontProxy>) -> Option<Self> {
        let spec = object.get("spec")?;
        let service = spec.get("service").filter(|s| s.is_object())?;
        let text = |at: &Value, field: &str| meta::str_at(at, &[field]).to_owned();
        let port = meta::int_at(service, &["port"]).and_then(|p| u16::try_from(p).ok());
        Some(Self {
            group: text(spec, "group"),
            version: text(spec, "version"),
            namespace: text(service, "namespace"),
            service: text(service, "name"),
            port: port.unwrap_or(443),
            tls: tls_of(spec, front),
            available: false,
            resources: None,
            said: None,
            priority: (
                meta::int_at(spec, &["groupPriorityMinimum"]).unwrap_or(0),
                meta::int_at(spec, &["versionPriority"]).unwrap_or(0),
            ),
        })
    }

    /// The name its certificate must be for.
    fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }

    /// Where its discovery document is.
    fn path(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }
}

fn tls_of(spec: &Value, front: Option<&FrontProxy>) -> Result<Arc<rustls::ClientConfig>, String> {
    let bundle = STANDARD
        .decode(meta::str_at(spec, &["caBundle"]))
        .map_err(|e| e.to_string())?;
    let trust = if meta::bool_at(spec, &["insecureSkipTLSVerify"]) {
        Trust::Anyone
    } else {
        Trust::Roots(&bundle)
    };
    tls::client(trust, front.map(FrontProxy::identity)).map_err(|e| e.to_string())
}

/// What other servers serve.
#[derive(Default)]
pub(crate) struct Routes(Vec<Remote>);

impl Routes {
    fn new(remotes: Vec<Remote>) -> Self {
        Self(remotes)
    }

    /// Every route.
    pub fn all(&self) -> impl Iterator<Item = &Remote> {
        self.0.iter()
    }

    /// What other servers say about themselves, the most important first.
    pub fn said(&self) -> Vec<Arc<Foreign>> {
        let mut all: Vec<&Remote> = self.all().collect();
        all.sort_by_key(|r| (-r.priority.0, &r.group, -r.priority.1));
        all.into_iter().filter_map(|r| r.said.clone()).collect()
    }

    fn find(&self, group: &str, version: &str) -> Option<&Remote> {
        self.all()
            .find(|r| r.group == group && r.version == version)
    }
}

/// The table of routes, shared with whoever answers requests.
#[derive(Default)]
pub(crate) struct Aggregation(RwLock<Arc<Routes>>);

impl Aggregation {
    /// The routes as they are now.
    pub fn routes(&self) -> Arc<Routes> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The other server that a request is for.
    pub fn route(&self, info: &RequestInfo) -> Option<Remote> {
        let routes = self.routes();
        if routes.0.is_empty() {
            return None;
        }
        if info.is_resource {
            return routes.find(&info.group, &info.version).cloned();
        }
        let path: Vec<&str> = info.path.split('/').filter(|s| !s.is_empty()).collect();
        match path.as_slice() {
            ["apis", group, version] | ["openapi", "v3", "apis", group, version] => {
                routes.find(group, version).cloned()
            }
            _ => None,
        }
    }

    fn set(&self, routes: Routes) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(routes);
    }
}

/// Registers what this server serves, then follows APIServices until the store closes.
///
/// # Errors
/// When objects cannot be read or written.
pub(crate) async fn start(registry: &Arc<Registry>) -> Result<Arc<Aggregation>, Fail> {
    let aggregation = Arc::new(Aggregation::default());
    identity::publish(registry).await?;
    let mut follower = Follower {
        registry: registry.clone(),
        aggregation: aggregation.clone(),
        known: BTreeMap::new(),
        asked: BTreeMap::new(),
        changed: true,
        dirty: true,
    };
    let seen = follower.load().await.map_err(read_failure)?;
    follower.register().await?;
    follower.serve();
    tokio::spawn(follower.run(seen));
    Ok(aggregation)
}

/// Changes one of the server's own objects.
async fn change<F>(
    registry: &Arc<Registry>,
    (group, version, plural): (&str, &str, &str),
    (namespace, name): (&str, &str),
    part: Part,
    change: F,
) -> Result<(), Fail>
where
    F: FnMut(&Value) -> Result<Value, Fail> + Send,
{
    let resource = registry.resource(group, version, plural)?;
    let myself = Myself::default();
    let write = Write {
        subresource: if part == Part::Exact { "status" } else { "" },
        ..myself.write(registry, &resource, namespace, name)
    };
    registry.update(&write, part, change).await.map(drop)
}

/// What another server answered.
#[derive(Clone, Default)]
struct Answer {
    verdict: Verdict,
    resources: Option<Value>,
    spec: Spec,
}

/// Asks one server whether it answers, and if so what it says about itself.
async fn question(
    registry: Arc<Registry>,
    name: String,
    remote: Remote,
    last: Answer,
) -> (String, Answer) {
    let (verdict, resources) = check::check(&registry, &remote).await;
    let spec = if verdict.available {
        specs::fetch(&registry, &remote, last.spec).await
    } else {
        last.spec
    };
    let answer = Answer {
        verdict,
        resources: resources.or(last.resources),
        spec,
    };
    (name, answer)
}

struct Follower {
    registry: Arc<Registry>,
    aggregation: Arc<Aggregation>,
    /// APIServices by name.
    known: BTreeMap<String, Value>,
    /// What other servers answered last, by the name of their APIService.
    asked: BTreeMap<String, Answer>,
    /// Whether APIServices or what this server serves changed.
    changed: bool,
    /// Whether other servers are to be asked again.
    dirty: bool,
}

impl Follower {
    async fn load(&mut self) -> Result<u64, ReadError> {
        let range = RangeRequest {
            start: Bytes::from_static(PREFIX.as_bytes()),
            end: prefix_end(PREFIX.as_bytes()),
            limit: 0,
            at: None,
        };
        let all = self.registry.store().range(range).await?;
        self.known.clear();
        all.kvs.iter().for_each(|kv| self.put(kv));
        Ok(all.revision)
    }

    fn put(&mut self, kv: &KeyValue) {
        let Ok(value) = self.registry.open(kv).and_then(|stored| stored.value()) else {
            return;
        };
        let name = meta::name(&value).to_owned();
        self.changed = true;
        let old = self.known.insert(name, value.clone());
        if old.is_none_or(|old| old["spec"] != value["spec"]) && is_remote(&value) {
            self.dirty = true;
        }
    }

    /// Makes, changes and removes the APIServices of what this server serves.
    async fn register(&mut self) -> Result<(), Fail> {
        let resources = self.registry.resources();
        let desired = local::desired(resources.kinds());
        let known = &self.known;
        let steps = local::plan(&desired, |name| known.get(name), known.values());
        let registry = &self.registry;
        stream::iter(steps.into_iter().map(|step| act(registry, step)))
            .buffer_unordered(CONCURRENCY)
            .try_collect::<Vec<()>>()
            .await
            .map(drop)
    }

    /// Publishes the routes.
    fn serve(&self) {
        let front = self.registry.config().front_proxy.as_ref();
        let routed = |(name, object): (&String, &Value)| {
            let mut remote = Remote::of(object, front)?;
            if let Some(answer) = self.asked.get(name) {
                remote.available = answer.verdict.available;
                remote.resources = answer.resources.clone();
                remote.said = answer.spec.said.clone();
            }
            Some(remote)
        };
        let routes = self.known.iter().filter_map(routed).collect();
        self.aggregation.set(Routes::new(routes));
    }

    /// Asks every other server whether it answers, and tells.
    async fn ask(&mut self) -> Result<(), Fail> {
        let front = self.registry.config().front_proxy.as_ref();
        let questions: Vec<_> = self
            .known
            .iter()
            .filter_map(|(name, object)| {
                let remote = Remote::of(object, front)?;
                let last = self.asked.get(name).cloned().unwrap_or_default();
                let registry = self.registry.clone();
                Some(question(registry, name.clone(), remote, last))
            })
            .collect();
        let answers = stream::iter(questions).buffer_unordered(CONCURRENCY);
        self.asked = answers.collect().await;
        self.serve();
        let asked: Vec<(String, Verdict)> = self
            .asked
            .iter()
            .map(|(name, answer)| (name.clone(), answer.verdict.clone()))
            .collect();
        for (name, verdict) in asked {
            self.tell(&name, &verdict).await?;
        }
        Ok(())
    }

    /// Writes the Available condition if it says something else.
    async fn tell(&self, name: &str, verdict: &Verdict) -> Result<(), Fail> {
        let reason = (verdict.reason, verdict.message.as_str());
        let now = self.registry.now();
        let told = change(
            &self.registry,
            RESOURCE,
            ("", name),
            Part::Exact,
            |current| {
                let mut next = current.clone();
                kinds::set_condition(&mut next, "Available", verdict.available, reason, now);
                Ok(next)
            },
        );
        match told.await {
            Err(status) if status.code != 404 => Err(status),
            _ => Ok(()),
        }
    }

    async fn run(mut self, mut seen: u64) {
        loop {
            match self.follow(seen).await {
                ReadError::Compacted { .. } => {}
                _ => return,
            }
            match self.load().await {
                Ok(revision) => seen = revision,
                Err(_) => return,
            }
            self.dirty = true;
        }
    }

    /// Acts on the objects and waits for changes, until a watch breaks.
    async fn follow(&mut self, seen: u64) -> ReadError {
        let store = self.registry.store().clone();
        let mut watches = Vec::new();
        for prefix in [PREFIX, SERVICES, SLICES] {
            match store.watch(Bytes::from_static(prefix.as_bytes()), seen) {
                Ok(watch) => watches.push(watch),
                Err(error) => return error,
            }
        }
        let mut events = stream::select_all(watches);
        let mut changes = self.registry.changes();
        let mut due = Instant::now() + RESYNC;
        loop {
            let settled = self.settle().await;
            let remote = self.known.values().any(is_remote);
            tokio::select! {
                batch = events.next() => match batch {
                    Some(Ok(batch)) => batch.events.iter().for_each(|event| self.take(event)),
                    Some(Err(error)) => return error,
                    None => return ReadError::Closed,
                },
                told = changes.changed() => match told {
                    Ok(()) => self.changed = true,
                    Err(_) => return ReadError::Closed,
                },
                () = self.registry.stop.cancelled() => return ReadError::Closed,
                () = tokio::time::sleep_until(due), if remote && settled => {
                    self.dirty = true;
                    due = Instant::now() + RESYNC;
                }
                () = tokio::time::sleep(RETRY), if !settled => {}
            }
        }
    }

    /// `false` asks for another try.
    async fn settle(&mut self) -> bool {
        let registered = if std::mem::take(&mut self.changed) {
            let registered = self.register().await;
            self.serve();
            registered
        } else {
            Ok(())
        };
        let asked = if std::mem::take(&mut self.dirty) {
            self.ask().await
        } else {
            Ok(())
        };
        match registered.and(asked) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(error = error.message, "cannot keep APIServices in step");
                (self.changed, self.dirty) = (true, true);
                false
            }
        }
    }

    fn take(&mut self, event: &store::Event) {
        let key = std::str::from_utf8(&event.kv.key).unwrap_or_default();
        if let Some(name) = key.strip_prefix(PREFIX) {
            match event.kind {
                EventKind::Put => self.put(&event.kv),
                EventKind::Delete => {
                    self.changed = true;
                    self.known.remove(name);
                    self.asked.remove(name);
                }
            }
            return;
        }
        // A service, or a slice of one, in a namespace where other servers run.
        let namespace = [SERVICES, SLICES]
            .iter()
            .find_map(|p| key.strip_prefix(p))
            .and_then(|rest| rest.split('/').next());
        let concerns = |o: &Value| {
            Some(meta::str_at(o, &["spec", "service", "namespace"])) == namespace && is_remote(o)
        };
        if self.known.values().any(concerns) {
            self.dirty = true;
        }
    }
}

fn is_remote(object: &Value) -> bool {
    meta::get(object, &["spec", "service"]).is_some_and(Value::is_object)
}

async fn act(registry: &Arc<Registry>, step: Step) -> Result<(), Fail> {
    match step {
        Step::Create(object) => ensure(registry, object).await,
        Step::Respec(name, spec) => {
            let respec = |current: &Value| {
                let mut next = current.clone();
                next["spec"] = spec.clone();
                Ok(next)
            };
            change(registry, RESOURCE, ("", &name), Part::Main, respec).await
        }
        Step::Delete(name) => {
            let resource = registry.resource(RESOURCE.0, RESOURCE.1, RESOURCE.2)?;
            let myself = Myself::default();
            let write = myself.write(registry, &resource, "", &name);
            let options =
                DeleteOptions::parse(&Value::Null, &crate::http::request_info::Query::default())?;
            match registry.delete(&write, &options).await {
                Err(status) if status.code != 404 => Err(status),
                _ => Ok(()),
            }
        }
    }
}
