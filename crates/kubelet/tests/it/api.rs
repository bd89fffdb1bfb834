//! An API server in memory, just good enough for the node agent: objects by kind, namespace and
//! name, watches, merge patches, graceful deletion of pods.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::util::BoxCloneSyncService;

type Key = (String, String, String);
type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Key, Value>,
    history: Vec<(u64, Key, &'static str, Value)>,
    /// Requests answered with 503.
    down: bool,
}

/// The server.
#[derive(Clone)]
pub struct Api {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

impl Default for Api {
    fn default() -> Self {
        Api {
            state: Arc::default(),
            changed: watch::Sender::new(0),
        }
    }
}

/// What a request is about.
struct Target {
    kind: String,
    namespace: String,
    name: String,
    status: bool,
    query: String,
}

fn target(request: &Request<Body>) -> Target {
    let path = request.uri().path().to_owned();
    let mut parts = path
        .trim_matches('/')
        .split('/')
        .skip(if path.starts_with("/apis/") { 3 } else { 2 })
        .peekable();
    let mut namespace = String::new();
    if parts.peek() == Some(&"namespaces") {
        parts.next();
        namespace = parts.next().unwrap_or_default().to_owned();
    }
    let mut next = || parts.next().unwrap_or_default().to_owned();
    let (kind, name, sub) = (next(), next(), next());
    Target {
        kind,
        namespace,
        name,
        status: sub == "status",
        query: request
            .uri()
            .query()
            .unwrap_or_default()
            .replace("%3D", "=")
            .replace("%2C", ","),
    }
}

impl Target {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    fn takes(&self, key: &Key, object: &Value) -> bool {
        let fields = self.parameter("fieldSelector").unwrap_or_default();
        let field_fits = fields.split(',').filter(|f| !f.is_empty()).all(|field| {
            let (path, value) = field.split_once('=').unwrap();
            let pointer = format!("/{}", path.replace('.', "/"));
            object.pointer(&pointer).and_then(Value::as_str) == Some(value)
        });
        key.0 == self.kind && (self.namespace.is_empty() || key.1 == self.namespace) && field_fits
    }

    fn key(&self) -> Key {
        (self.kind.clone(), self.namespace.clone(), self.name.clone())
    }
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut into[key], value);
        }
    }
}

fn reply(status: StatusCode, body: &Value) -> Reply {
    let body = Full::new(Bytes::from(body.to_string())).boxed_unsync();
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}

fn failure(code: u16, reason: &str) -> Reply {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason});
    reply(StatusCode::from_u16(code).unwrap(), &status)
}

impl Api {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn put(&self, state: &mut State, key: Key, what: &'static str, mut object: Value) -> Value {
        state.revision += 1;
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        if what == "DELETED" {
            state.objects.remove(&key);
        } else {
            state.objects.insert(key.clone(), object.clone());
        }
        state
            .history
            .push((state.revision, key, what, object.clone()));
        self.changed.send_replace(state.revision);
        object
    }

    /// Makes an object.
    pub fn create(&self, kind: &str, namespace: &str, mut object: Value) -> Value {
        let mut state = self.lock();
        let revision = state.revision;
        object["metadata"]["namespace"] = json!(namespace);
        object["metadata"]["uid"] = json!(format!("uid-{revision}"));
        object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        let name = object["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        self.put(
            &mut state,
            (kind.to_owned(), namespace.to_owned(), name),
            "ADDED",
            object,
        )
    }

    /// An object.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.lock()
            .objects
            .get(&(kind.to_owned(), namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    /// All objects of a kind.
    pub fn all(&self, kind: &str) -> Vec<Value> {
        self.lock()
            .objects
            .iter()
            .filter(|(key, _)| key.0 == kind)
            .map(|(_, o)| o.clone())
            .collect()
    }

    /// Deletes an object; a pod with grace is marked first.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str, grace: i64) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let mut state = self.lock();
        let Some(mut object) = state.objects.get(&key).cloned() else {
            return;
        };
        if kind == "pods" && grace > 0 {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            self.put(&mut state, key, "MODIFIED", object);
        } else {
            self.put(&mut state, key, "DELETED", object);
        }
    }

    /// Whether every request fails.
    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
    }

    /// Reasons of the events about an object.
    pub fn reasons(&self, name: &str) -> Vec<String> {
        let about = |e: &Value| e["involvedObject"]["name"] == name;
        let events = self.all("events").into_iter().filter(about);
        events
            .map(|e| e["reason"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// As a transport for clients.
    pub fn service(&self) -> BoxCloneSyncService<Request<Body>, Reply, Infallible> {
        let api = self.clone();
        BoxCloneSyncService::new(tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok(api.serve(request).await) }
        }))
    }

    async fn serve(&self, request: Request<Body>) -> Reply {
        if self.lock().down {
            return failure(503, "ServiceUnavailable");
        }
        let target = target(&request);
        let method = request.method().clone();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        match (method, target.name.is_empty()) {
            (Method::GET, true) if target.parameter("watch").is_some() => self.watch(target),
            (Method::GET, true) => self.list(&target),
            (Method::GET, false) => match self.get(&target.kind, &target.namespace, &target.name) {
                Some(object) => reply(StatusCode::OK, &object),
                None => failure(404, "NotFound"),
            },
            (Method::POST, _) => self.post(&target, body),
            (Method::PATCH, _) => self.patch(&target, &body),
            (Method::DELETE, _) => {
                let grace = body["gracePeriodSeconds"].as_i64().unwrap_or(30);
                self.delete(&target.kind, &target.namespace, &target.name, grace);
                reply(
                    StatusCode::OK,
                    &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
                )
            }
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    fn list(&self, target: &Target) -> Reply {
        let state = self.lock();
        let items: Vec<_> = state
            .objects
            .iter()
            .filter(|(k, o)| target.takes(k, o))
            .map(|(_, o)| o.clone())
            .collect();
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": state.revision.to_string()}, "items": items});
        reply(StatusCode::OK, &list)
    }

    fn post(&self, target: &Target, object: Value) -> Reply {
        let name = object["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if self.get(&target.kind, &target.namespace, &name).is_some() {
            return failure(409, "AlreadyExists");
        }
        reply(
            StatusCode::CREATED,
            &self.create(&target.kind, &target.namespace, object),
        )
    }

    fn patch(&self, target: &Target, patch: &Value) -> Reply {
        let mut state = self.lock();
        let Some(mut object) = state.objects.get(&target.key()).cloned() else {
            return failure(404, "NotFound");
        };
        if target.status {
            let uid = &patch["metadata"]["uid"];
            if !uid.is_null() && *uid != object["metadata"]["uid"] {
                return failure(409, "Conflict");
            }
            merge(&mut object["status"], &patch["status"]);
        } else {
            merge(&mut object, patch);
        }
        reply(
            StatusCode::OK,
            &self.put(&mut state, target.key(), "MODIFIED", object),
        )
    }

    fn watch(&self, target: Target) -> Reply {
        let after = target
            .parameter("resourceVersion")
            .and_then(|r| r.parse().ok())
            .unwrap_or(0);
        let frames = self.events(target, after).map(|line| Ok(Frame::data(line)));
        let body = StreamBody::new(frames).boxed_unsync();
        Response::builder()
            .header("content-type", "application/json")
            .body(body)
            .unwrap()
    }

    fn events(&self, target: Target, after: u64) -> impl Stream<Item = Bytes> + Send + use<> {
        let start = (self.clone(), self.changed.subscribe(), target, after);
        futures::stream::unfold(start, |(api, mut changed, target, after)| async move {
            loop {
                changed.borrow_and_update();
                let mut lines = String::new();
                let mut seen = after;
                for (revision, key, what, object) in
                    api.lock().history.iter().filter(|(r, ..)| *r > after)
                {
                    seen = *revision;
                    if target.takes(key, object) {
                        lines.push_str(&format!("{}\n", json!({"type": what, "object": object})));
                    }
                }
                if !lines.is_empty() {
                    return Some((Bytes::from(lines), (api, changed, target, seen)));
                }
                changed.changed().await.ok()?;
            }
        })
    }
}
