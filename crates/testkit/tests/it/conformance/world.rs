//! A cluster of one test and requests to it in a line each: bytes over HTTP, as any client sends them.

use std::time::Duration;

use apiserver::InProcess;
use apiserver::auth::{MASTERS, UserInfo};
use apiserver::http::body::{self, ResponseBody};
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use testkit::{Cluster, FakeNode, Parts, eventually};
use tower::Service;

/// How long a test waits for an event of a watch.
const PATIENCE: Duration = Duration::from_secs(120);
/// Types of patches.
pub const MERGE: &str = "application/merge-patch+json";
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub const JSON: &str = "application/json-patch+json";
pub const APPLY: &str = "application/apply-patch+yaml";

/// A cluster and one who may do everything in it.
pub struct World {
    pub cluster: Cluster,
    user: InProcess,
    nodes: Vec<FakeNode>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl World {
    /// An API server alone.
    pub async fn api() -> Self {
        let parts = Parts {
            controllers: false,
            scheduler: false,
        };
        let world = Self::of(Cluster::with(parts).await.unwrap());
        let account = json!({"metadata": {"name": "default"}});
        world
            .create("/api/v1/namespaces/default/serviceaccounts", account)
            .await;
        world
    }

    /// With controllers, scheduler and these nodes.
    pub async fn whole(nodes: &[&str]) -> Self {
        let mut world = Self::of(Cluster::start().await.unwrap());
        for name in nodes {
            world
                .nodes
                .push(world.cluster.add_node(name).await.unwrap());
        }
        world
    }

    /// Around this cluster.
    pub fn of(cluster: Cluster) -> Self {
        let user = cluster
            .api
            .in_process(UserInfo::new("conformance", &[MASTERS]));
        let nodes = Vec::new();
        Self {
            cluster,
            user,
            nodes,
        }
    }

    pub async fn raw(&self, request: Request<Vec<u8>>) -> http::Response<ResponseBody> {
        self.user
            .clone()
            .call(request.map(body::full))
            .await
            .unwrap()
    }

    pub async fn send(&self, method: &str, path: &str, kind: &str, bytes: Vec<u8>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind);
        self.answer(request.body(bytes).unwrap()).await
    }

    /// Gets `path` as `accept`.
    pub async fn accept(&self, path: &str, accept: &str) -> Answer {
        let request = Request::builder().uri(path).header("accept", accept);
        self.answer(request.body(Vec::new()).unwrap()).await
    }

    pub async fn answer(&self, request: Request<Vec<u8>>) -> Answer {
        let (parts, body) = self.raw(request).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "application/json", Vec::new()).await
    }

    pub async fn post(&self, path: &str, object: &Value) -> Answer {
        let bytes = serde_json::to_vec(object).unwrap();
        self.send("POST", path, "application/json", bytes).await
    }

    pub async fn put(&self, path: &str, object: &Value) -> Answer {
        let bytes = serde_json::to_vec(object).unwrap();
        self.send("PUT", path, "application/json", bytes).await
    }

    pub async fn patch(&self, path: &str, kind: &str, patch: &Value) -> Answer {
        let bytes = serde_json::to_vec(patch).unwrap();
        self.send("PATCH", path, kind, bytes).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.delete_with(path, json!({})).await
    }

    /// Deletes with these options.
    pub async fn delete_with(&self, path: &str, options: Value) -> Answer {
        let mut options = options;
        options["kind"] = "DeleteOptions".into();
        options["apiVersion"] = "v1".into();
        let bytes = serde_json::to_vec(&options).unwrap();
        self.send("DELETE", path, "application/json", bytes).await
    }

    /// Creates what must be accepted.
    pub async fn create(&self, path: &str, object: Value) -> Value {
        self.post(path, &object).await.ok(201)
    }

    /// The object, which must be there.
    pub async fn object(&self, path: &str) -> Value {
        self.get(path).await.ok(200)
    }

    /// The items of a list.
    pub async fn items(&self, path: &str) -> Vec<Value> {
        match self.object(path).await["items"].take() {
            Value::Array(items) => items,
            other => panic!("no items: {other}"),
        }
    }

    /// Merges into an object, which must be accepted.
    pub async fn merge(&self, path: &str, patch: Value) -> Value {
        self.patch(path, MERGE, &patch).await.ok(200)
    }

    /// Reads, changes and writes back, again when another wrote between.
    pub async fn update(&self, path: &str, change: impl Fn(&mut Value)) -> Value {
        loop {
            let mut object = self.object(path).await;
            change(&mut object);
            let answer = self.put(path, &object).await;
            if answer.code != 409 {
                return answer.ok(200);
            }
        }
    }

    /// Waits until the answer to a GET is right.
    pub async fn until(&self, path: &str, right: impl Fn(&Value) -> bool) -> Value {
        let waited = eventually(path, || async {
            let answer = self.get(path).await;
            anyhow::ensure!(right(&answer.body), "last: {}", answer.body);
            Ok(Some(answer.body))
        });
        waited.await.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Waits until a list has so many items.
    pub async fn until_count(&self, path: &str, count: usize) -> Vec<Value> {
        let right = |list: &Value| list["items"].as_array().is_some_and(|i| i.len() == count);
        match self.until(path, right).await["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        }
    }

    /// Waits until there is nothing.
    pub async fn until_gone(&self, path: &str) {
        self.until(path, |answer| answer["code"] == 404).await;
    }

    pub async fn watch(&self, path: &str) -> Events {
        let request = Request::builder().uri(path).body(Vec::new()).unwrap();
        let response = self.raw(request).await;
        assert_eq!(response.status(), 200);
        Events {
            body: response.into_body(),
            rest: Vec::new(),
        }
    }
}

impl Answer {
    /// The body, if the code is this.
    #[track_caller]
    pub fn ok(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{:#}", self.body);
        self.body
    }

    /// The message of a Status of this code.
    #[track_caller]
    pub fn refused(self, code: u16) -> String {
        assert_eq!(self.code, code, "{:#}", self.body);
        assert_eq!(self.body["kind"], "Status");
        self.body["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// Lines of a watch.
pub struct Events {
    body: ResponseBody,
    rest: Vec<u8>,
}

impl Events {
    /// The next event.
    pub async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame());
            let frame = frame
                .await
                .expect("no event came")
                .expect("the watch ended");
            self.rest
                .extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// The object of the next event, which must be of this type.
    #[track_caller]
    pub fn expect(&mut self, kind: &'static str) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        async move {
            let mut event = self.next().await;
            assert_eq!(event["type"], kind, "at {caller}: {event:#}");
            event["object"].take()
        }
    }

    /// Skips to an event of this type whose object is right.
    pub async fn find(&mut self, kind: &str, right: impl Fn(&Value) -> bool) -> Value {
        loop {
            let mut event = self.next().await;
            if event["type"] == kind && right(&event["object"]) {
                return event["object"].take();
            }
        }
    }
}

/// Text at a JSON pointer, or nothing.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub fn version(object: &Value) -> &str {
    text(object, "/metadata/resourceVersion")
}

/// A namespaced collection in `default`.
pub fn at(group_version: &str, plural: &str) -> String {
    let root = root(group_version);
    format!("{root}/namespaces/default/{plural}")
}

/// Path of a group's version.
pub fn root(group_version: &str) -> String {
    match group_version {
        "v1" => "/api/v1".to_owned(),
        other => format!("/apis/{other}"),
    }
}

/// A template of a pod of one container with these labels.
pub fn template(labels: &Value) -> Value {
    json!({"metadata": {"labels": labels},
        "spec": {"containers": [{"name": "c", "image": "registry.k8s.io/pause:3.10"}]}})
}
