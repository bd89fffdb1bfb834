//! The API server under load over TLS: `wrk` beside it on the same cores, lists, watchers and
//! server-side apply.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::{Figure, figures};

/// Connections of `wrk`.
const CONNECTIONS: &str = "64";
/// How long one run of `wrk` lasts.
const LOAD: &str = "10s";
/// What Rusternetes (a Kubernetes API server in Rust on etcd) reached on such a machine, requests a second.
const PEER: &str = "rusternetes";
const PEER_CREATES: f64 = 2_926.0;
const PEER_GETS: f64 = 13_241.0;
/// Pods of a list.
const PODS: usize = 10_000;
/// Lists at once, and of how many pods.
const LISTS: usize = 10;
const MANY_PODS: usize = 150_000;
/// How long memory settles before it is measured.
const SETTLE: Duration = Duration::from_secs(15);
/// Requests under way at once while objects are made.
const FILLERS: usize = 64;
/// Watchers of one resource.
const WATCHERS: usize = 1_000;
/// Writes a second that they watch, and for how long.
const WRITES: usize = 500;
const WATCHED: Duration = Duration::from_secs(10);
/// Applies in one run.
const APPLIES: usize = 500;

/// Durable creates and reads by `wrk`.
pub fn load(runs: usize) -> anyhow::Result<Vec<Figure>> {
    ensure!(
        Path::new("/usr/bin/wrk").exists(),
        "wrk is not installed: apt-get install wrk"
    );
    let server = Server::start()?;
    let script = |name: &str, text: String| -> anyhow::Result<PathBuf> {
        let path = server.cluster.folder().join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    };
    let head = format!(
        "wrk.headers['Authorization'] = 'Bearer {}'\nwrk.headers['Content-Type'] = 'application/json'\n",
        server.token
    );
    let get = script("get.lua", head.clone())?;
    let (mut creates, mut tails, mut gets) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        let create = script("create.lua", head.clone() + &create_script(run))?;
        let path = "/api/v1/namespaces/default/configmaps";
        let report = Report::of(&server, &create, path)?;
        creates.push(report.rate);
        tails.push(report.p99);
        let path = "/api/v1/namespaces/default/configmaps/kube-root-ca.crt";
        gets.push(Report::of(&server, &get, path)?.rate);
    }
    Ok(vec![
        Figure::new("api_creates", "requests/s", creates).beside(PEER, PEER_CREATES),
        Figure::new("api_create_p99", "ms", tails),
        Figure::new("api_gets", "requests/s", gets).beside(PEER, PEER_GETS),
    ])
}

/// A script that creates ConfigMaps of 1 KB, each of another name.
fn create_script(run: usize) -> String {
    let filler = "x".repeat(900);
    format!(
        "local threads = 0
function setup(thread) thread:set('id', threads); threads = threads + 1 end
function init() made = 0 end
function request()
  made = made + 1
  return wrk.format('POST', nil, nil, string.format(
    '{{\"metadata\":{{\"name\":\"r{run}-%d-%d\"}},\"data\":{{\"filler\":\"{filler}\"}}}}', id, made))
end
"
    )
}

/// What `wrk` says at its end.
struct Report {
    /// Requests a second.
    rate: f64,
    /// Latency of the slowest in a hundred, in milliseconds.
    p99: f64,
}

impl Report {
    fn of(server: &Server, script: &Path, path: &str) -> anyhow::Result<Self> {
        let output = Command::new("/usr/bin/wrk")
            .args(["--threads", "2", "--connections", CONNECTIONS])
            .args(["--duration", LOAD, "--latency", "--script"])
            .arg(script)
            .arg(format!("{}{path}", server.url))
            .output()
            .context("starting wrk")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains("Non-2xx") || text.contains("Socket errors") {
            bail!("not every request was answered well:\n{text}");
        }
        Self::parse(&text).with_context(|| format!("wrk said:\n{text}"))
    }

    fn parse(text: &str) -> Option<Self> {
        let after = |label: &str| {
            let rest = text.split(label).nth(1)?;
            rest.split_whitespace().next()
        };
        Some(Self {
            rate: after("Requests/sec:")?.parse().ok()?,
            p99: millis(after("99%")?)?,
        })
    }
}

/// A duration as `wrk` writes it, in milliseconds.
fn millis(text: &str) -> Option<f64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    match unit {
        "us" => Some(number / 1e3),
        "ms" => Some(number),
        "s" => Some(number * 1e3),
        _ => None,
    }
}

/// A list of ten thousand pods as JSON, to the last byte.
pub fn list(runs: usize) -> anyhow::Result<Vec<Figure>> {
    let server = Server::start()?;
    server.runtime.block_on(async {
        let client = &server.client;
        // Of no scheduler that runs here: these pods only lie there.
        let made = futures::stream::iter(0..PODS).map(|n| create_pod(client, n));
        made.buffer_unordered(FILLERS).try_collect::<()>().await?;
        let mut values = Vec::new();
        for _ in 0..runs {
            let began = Instant::now();
            let bytes = read_list(client).await?;
            values.push(began.elapsed());
            ensure!(bytes > PODS * 500, "the list has {bytes} bytes only");
        }
        Ok(vec![Figure::millis("list_10k_pods", &values)])
    })
}

async fn create_pod(client: &kube::Client, n: usize) -> anyhow::Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{n}"), "namespace": "default", "labels": {"app": format!("a{}", n % 100)}},
        "spec": {
            "schedulerName": "nobody", "automountServiceAccountToken": false,
            "containers": [{
                "name": "main", "image": "nginx:1.0", "ports": [{"containerPort": 80}],
                "env": [{"name": "A", "value": "b"}],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            }],
        },
    });
    let request = http::Request::post("/api/v1/namespaces/default/pods")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(&pod)?.into())?;
    ensure!(
        client.send(request).await?.status().is_success(),
        "pod {n} was refused"
    );
    Ok(())
}

/// Memory that ten lists of 150,000 pods at once take from the server.
pub fn lists(_runs: usize) -> anyhow::Result<Vec<Figure>> {
    let server = Server::start()?;
    server.runtime.block_on(async {
        let client = &server.client;
        let made = futures::stream::iter(0..MANY_PODS).map(|n| create_pod(client, n));
        made.buffer_unordered(FILLERS).try_collect::<()>().await?;
        anyhow::Ok(())
    })?;
    // Both what is freed later and what only now settles down would blur the difference.
    std::thread::sleep(SETTLE);
    server.forget_peak()?;
    let before = server.memory();
    let began = Instant::now();
    server.runtime.block_on(async {
        let lists = (0..LISTS).map(|_| read_list(&server.client));
        let sizes = futures::future::try_join_all(lists).await?;
        let small = sizes.iter().any(|bytes| *bytes < MANY_PODS * 500);
        ensure!(!small, "a list was too short: {sizes:?}");
        anyhow::Ok(())
    })?;
    let took = began.elapsed();
    let extra = server.peak() - before;
    Ok(vec![
        Figure::new("lists_10x150k_memory", "MB", vec![extra / 1e6]),
        Figure::millis("lists_10x150k", &[took]),
    ])
}

/// Reads the list of all pods; gives its size in bytes.
async fn read_list(client: &kube::Client) -> anyhow::Result<usize> {
    let request = http::Request::get("/api/v1/pods").body(kube::client::Body::empty())?;
    let mut body = client.send(request).await?.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, |data| data.len());
    }
    Ok(bytes)
}

/// A thousand watchers: from before the write is sent until each has its event.
pub fn watch(_runs: usize) -> anyhow::Result<Vec<Figure>> {
    let server = Server::start()?;
    let (before, after, mut delays) = server.runtime.block_on(watched(&server))?;
    delays.sort_unstable();
    let at = |share: f64| {
        let index = (delays.len() as f64 * share) as usize;
        Duration::from_micros(delays.get(index).copied().unwrap_or_default().into())
    };
    Ok(vec![
        Figure::millis("watch_median", &[at(0.5)]),
        Figure::millis("watch_p99", &[at(0.99)]),
        Figure::new("watch_memory_growth", "MB", vec![(after - before) / 1e6]),
    ])
}

/// When each write was sent off, in microseconds since the start.
type Sent = Arc<Vec<AtomicU64>>;

async fn watched(server: &Server) -> anyhow::Result<(f64, f64, Vec<u32>)> {
    let writes = WRITES * usize::try_from(WATCHED.as_secs())?;
    let sent: Sent = Arc::new((0..writes).map(|_| AtomicU64::new(0)).collect());
    let began = Instant::now();
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS {
        let request = http::Request::get("/api/v1/namespaces/default/secrets?watch=true")
            .body(kube::client::Body::empty())?;
        let body = server.client.send(request).await?.into_body();
        watchers.push(tokio::spawn(follow(body, sent.clone(), began)));
    }
    let before = server.memory();
    let secrets: Api<Secret> = Api::default_namespaced(server.client.clone());
    let mut tick = tokio::time::interval(Duration::from_secs(1) / u32::try_from(WRITES)?);
    let mut answers = tokio::task::JoinSet::new();
    for n in 0..writes {
        tick.tick().await;
        let (secrets, sent) = (secrets.clone(), sent.clone());
        answers.spawn(async move {
            let secret = serde_json::from_value(json!({"metadata": {"name": format!("w{n}")}}))?;
            sent[n].store(micros(began), Ordering::Relaxed);
            secrets.create(&PostParams::default(), &secret).await?;
            anyhow::Ok(())
        });
    }
    while let Some(written) = answers.join_next().await {
        written??;
    }
    let after = server.memory();
    let mut delays = Vec::with_capacity(writes * WATCHERS);
    for watcher in watchers {
        let seen = tokio::time::timeout(WATCHED, watcher).await;
        delays.append(&mut seen.context("not every event arrived")???);
    }
    Ok((before, after, delays))
}

fn micros(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Reads a watch until every write was seen; gives how long each took, in microseconds.
async fn follow(
    mut body: kube::client::Body,
    sent: Sent,
    began: Instant,
) -> anyhow::Result<Vec<u32>> {
    let name = memchr::memmem::Finder::new(b"\"name\":\"w");
    let mut delays = Vec::with_capacity(sent.len());
    let mut rest = Vec::new();
    while delays.len() < sent.len() {
        let frame = body.frame().await.context("the watch ended")??;
        let now = micros(began);
        rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        let mut start = 0;
        while let Some(end) = memchr::memchr(b'\n', &rest[start..]) {
            let line = &rest[start..start + end];
            start += end + 1;
            let Some(at) = name.find(line) else { continue };
            let digits = line[at + name.needle().len()..].iter();
            let digits = digits.take_while(|b| b.is_ascii_digit());
            let n = digits.fold(0, |n, digit| n * 10 + usize::from(digit - b'0'));
            let at = sent.get(n).context("a foreign object")?;
            let took = now.saturating_sub(at.load(Ordering::Relaxed));
            delays.push(u32::try_from(took).unwrap_or(u32::MAX));
        }
        rest.drain(..start);
    }
    Ok(delays)
}

/// CPU time of the whole server for one server-side apply of a Deployment with fifty fields: of the apply alone, where it
/// changes a label, which leaves the controller nothing to write; and with the status that the controller writes when
/// the specification changes.
pub fn apply(runs: usize) -> anyhow::Result<Vec<Figure>> {
    let server = Server::start()?;
    let labelled = |n: usize| {
        let mut object = deployment("labelled", 0);
        object["metadata"]["labels"]["turn"] = n.to_string().into();
        object
    };
    // It is there, and its controller is done with it, before anything is measured.
    server.apply(&labelled(0))?;
    std::thread::sleep(SETTLE);
    let (mut alone, mut with_controller) = (Vec::new(), Vec::new());
    for run in 0..runs {
        alone.push(server.applies(|n| labelled(run * APPLIES + n))?);
        let name = format!("d{run}");
        with_controller.push(server.applies(|n| deployment(&name, n))?);
    }
    Ok(vec![
        Figure::new("apply_cpu", "ms", alone),
        Figure::new("apply_cpu_with_controller", "ms", with_controller),
    ])
}

/// A Deployment whose container has fifty fields; paused, so that nothing else works on it.
fn deployment(name: &str, n: usize) -> Value {
    let env: Vec<Value> = (0..15)
        .map(|i| json!({"name": format!("E{i}"), "value": format!("{}", if i == 0 { n } else { i })}))
        .collect();
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {
            "paused": true, "replicas": 0,
            "selector": {"matchLabels": {"app": "bench"}},
            "template": {
                "metadata": {"labels": {"app": "bench"}},
                "spec": {"containers": [{
                    "name": "main", "image": "nginx:1.0", "imagePullPolicy": "IfNotPresent",
                    "command": ["nginx"], "args": ["-g", "daemon off;"], "workingDir": "/", "env": env,
                    "ports": [{"name": "http", "containerPort": 80}, {"name": "https", "containerPort": 443}],
                    "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}},
                    "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 5},
                    "livenessProbe": {"tcpSocket": {"port": 80}, "failureThreshold": 2},
                    "securityContext": {"runAsUser": 1000, "allowPrivilegeEscalation": false},
                }]},
            },
        },
    })
}

/// A cluster with a client and a token of its administrator.
struct Server {
    cluster: Cluster,
    runtime: tokio::runtime::Runtime,
    client: kube::Client,
    url: String,
    token: String,
}

impl Server {
    fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::new()?;
        cluster.styr(&["up"])?;
        let runtime = tokio::runtime::Runtime::new()?;
        let (client, url) = runtime
            .block_on(async { anyhow::Ok((cluster.client().await?, cluster.url().await?)) })?;
        let token = runtime.block_on(administrator(&client))?;
        Ok(Self {
            cluster,
            runtime,
            client,
            url,
            token,
        })
    }

    fn apply(&self, object: &Value) -> anyhow::Result<()> {
        let body = serde_json::to_vec(object)?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!(
            "/apis/apps/v1/namespaces/default/deployments/{name}?fieldManager=bench&force=true"
        );
        let request = http::Request::patch(path)
            .header(http::header::CONTENT_TYPE, "application/apply-patch+yaml")
            .body(body.into())?;
        self.runtime.block_on(async {
            let (head, body) = self.client.send(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            let said = String::from_utf8_lossy(&body);
            ensure!(head.status.is_success(), "apply: {said}");
            Ok(())
        })
    }

    /// CPU time of the whole server for each of many applies, in milliseconds.
    fn applies(&self, object: impl Fn(usize) -> Value) -> anyhow::Result<f64> {
        let before = self.cpu();
        for n in 0..APPLIES {
            self.apply(&object(n))?;
        }
        Ok((self.cpu() - before) * 1e3 / APPLIES as f64)
    }

    fn memory(&self) -> f64 {
        let processes = self.cluster.processes();
        processes.into_iter().map(figures::resident_bytes).sum()
    }

    /// The most memory since [`Self::forget_peak`].
    fn peak(&self) -> f64 {
        let processes = self.cluster.processes();
        processes.into_iter().map(figures::peak_bytes).sum()
    }

    fn forget_peak(&self) -> anyhow::Result<()> {
        for process in self.cluster.processes() {
            std::fs::write(format!("/proc/{process}/clear_refs"), "5")?;
        }
        Ok(())
    }

    fn cpu(&self) -> f64 {
        let processes = self.cluster.processes();
        processes.into_iter().map(figures::cpu_seconds).sum()
    }
}

/// A token of a service account that may do everything.
async fn administrator(client: &kube::Client) -> anyhow::Result<String> {
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    let account = serde_json::from_value(json!({"metadata": {"name": "bench"}}))?;
    accounts.create(&PostParams::default(), &account).await?;
    let bindings = Api::<k8s_openapi::api::rbac::v1::ClusterRoleBinding>::all(client.clone());
    let binding = serde_json::from_value(json!({
        "metadata": {"name": "bench"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "bench", "namespace": "default"}],
    }))?;
    bindings.create(&PostParams::default(), &binding).await?;
    let request: TokenRequest =
        serde_json::from_value(json!({"spec": {"audiences": [], "expirationSeconds": 7200}}))?;
    let issued = accounts
        .create_token_request("bench", &PostParams::default(), &request)
        .await?;
    let token = issued.status.and_then(|status| status.token);
    token.context("no token was issued")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_wrk_are_read() {
        let text = "  Latency Distribution\n     50%    1.50ms\n     99%    2.10s \n  10 requests in 1s\nRequests/sec:   5123.45\n";
        let report = Report::parse(text).unwrap();
        assert_eq!((report.rate, report.p99), (5123.45, 2100.0));
        assert_eq!(millis("850us"), Some(0.85));
        assert!(Report::parse("").is_none());
    }
}
