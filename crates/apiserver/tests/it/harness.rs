//! A server over a store in memory, and requests in one line.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use apiserver::auth::{MASTERS, TokenIssuer, UserInfo};
use apiserver::http::body::{self, Response, ResponseBody};
use apiserver::{ApiServer, Config, InProcess};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use rcgen::KeyPair;
use serde_json::{Value, json};
use tower::Service;

/// A server and its transport.
pub struct Cluster {
    pub server: Arc<ApiServer>,
    pub store: Arc<store::Embedded>,
    admin: InProcess,
}

/// An answer, read to its end.
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

fn key() -> &'static str {
    static KEY: OnceLock<String> = OnceLock::new();
    KEY.get_or_init(|| KeyPair::generate().unwrap().serialize_pem())
}

pub async fn cluster() -> Cluster {
    cluster_with(|_| {}).await
}

pub async fn cluster_with(change: impl FnOnce(&mut Config)) -> Cluster {
    start(store::Embedded::in_memory(), change).await
}

/// Another server over a store that is in use.
pub async fn cluster_over(store: Arc<store::Embedded>) -> Cluster {
    start(store, |_| {}).await
}

async fn start(store: Arc<store::Embedded>, change: impl FnOnce(&mut Config)) -> Cluster {
    let tokens = TokenIssuer::new("https://kubernetes.default.svc.cluster.local", key()).unwrap();
    let mut config = Config::new(tokens);
    config.encryption_key = Some([3; 32]);
    change(&mut config);
    let server = ApiServer::new(config, store.clone()).await.unwrap();
    let admin = server.in_process(UserInfo::new("admin", &[MASTERS]));
    Cluster {
        server,
        store,
        admin,
    }
}

pub async fn read(response: Response) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    Answer {
        code: parts.status.as_u16(),
        headers: parts.headers,
        body,
    }
}

impl Cluster {
    pub fn user(&self, name: &str, groups: &[&str]) -> InProcess {
        self.server.in_process(UserInfo::new(name, groups))
    }

    pub async fn raw(&self, request: Request<Vec<u8>>) -> Response {
        let request = request.map(body::full);
        self.admin.clone().call(request).await.unwrap()
    }

    pub async fn send(&self, method: &str, uri: &str, content_type: &str, body: &Value) -> Answer {
        let bytes = if body.is_null() {
            Vec::new()
        } else {
            serde_json::to_vec(body).unwrap()
        };
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("content-type", content_type)
            .body(bytes)
            .unwrap();
        read(self.raw(request).await).await
    }

    pub async fn get(&self, uri: &str) -> Answer {
        self.send("GET", uri, "application/json", &Value::Null)
            .await
    }

    pub async fn post(&self, uri: &str, body: &Value) -> Answer {
        self.send("POST", uri, "application/json", body).await
    }

    pub async fn put(&self, uri: &str, body: &Value) -> Answer {
        self.send("PUT", uri, "application/json", body).await
    }

    pub async fn delete(&self, uri: &str) -> Answer {
        self.send("DELETE", uri, "application/json", &Value::Null)
            .await
    }

    pub async fn merge(&self, uri: &str, body: &Value) -> Answer {
        self.send("PATCH", uri, "application/merge-patch+json", body)
            .await
    }

    /// Creates an object that must be accepted.
    pub async fn create(&self, uri: &str, body: &Value) -> Value {
        let answer = self.post(uri, body).await;
        assert_eq!(answer.code, StatusCode::CREATED, "{}", answer.body);
        answer.body
    }

    pub async fn watch(&self, uri: &str) -> Events {
        let request = Request::builder().uri(uri).body(Vec::new()).unwrap();
        let response = self.raw(request).await;
        assert_eq!(response.status(), 200);
        Events {
            body: response.into_body(),
            rest: Vec::new(),
        }
    }
}

/// Lines of a watch.
pub struct Events {
    body: ResponseBody,
    rest: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame())
                .await
                .expect("no event");
            self.rest
                .extend_from_slice(&frame?.unwrap().into_data().unwrap());
        }
    }

    /// Type and name of the next event.
    pub async fn step(&mut self) -> (String, String) {
        let event = self.next().await.expect("the watch ended");
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (
            text(&event["type"]),
            text(&event["object"]["metadata"]["name"]),
        )
    }
}

pub fn config_map(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"a": "b"}})
}

pub fn pod(name: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]}})
}

/// Makes the service account that pods need.
pub async fn with_account(cluster: &Cluster) {
    let account =
        json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "default"}});
    cluster
        .create("/api/v1/namespaces/default/serviceaccounts", &account)
        .await;
}

pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const PODS: &str = "/api/v1/namespaces/default/pods";
