//! Creating many objects and noticing what becomes of them, at as little cost as may be: the
//! machine that is measured is the one that measures.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, ServiceAccount};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::bulk::Bulk;

/// The cluster may take so long for one step.
const PATIENCE: Duration = Duration::from_secs(900);
/// Wait between looks at what has no watch of its own here.
const PAUSE: Duration = Duration::from_millis(200);

/// A connection to the cluster under load.
#[derive(Clone)]
pub struct Load {
    /// For anything that is not bulk.
    pub client: kube::Client,
    bulk: Bulk,
}

impl Load {
    /// Connects as the kubeconfig's user.
    pub async fn connect(kubeconfig: &str) -> anyhow::Result<Self> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let options = KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        config.read_timeout = None;
        let bulk = Bulk::new(&config)?;
        let client = kube::Client::try_from(config)?;
        Ok(Self { client, bulk })
    }

    /// Sends one request and drops the answer's body.
    pub async fn send(&self, method: &str, path: &str, body: Vec<u8>) -> anyhow::Result<()> {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(Body::from(body))?;
        let response = self.client.send(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!(
                "{method} {path}: {status}: {}",
                String::from_utf8_lossy(&body)
            );
        }
        Ok(())
    }

    /// Creates `count` objects of one shape.
    pub async fn create(&self, path: &str, shape: &Value, count: usize) -> anyhow::Result<()> {
        let body = serde_json::to_vec(shape)?;
        match count {
            1 => self.send("POST", path, body).await,
            _ => self.bulk.post(path, body.into(), count).await,
        }
    }

    /// Simulates nodes and waits until all are ready. The real node takes no pods.
    pub async fn nodes(&self, count: u32, profile: &str) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        for node in nodes.list(&Default::default()).await? {
            let name = node.metadata.name.unwrap_or_default();
            nodes.cordon(&name).await?;
        }
        let map = sim::Settings::config_map(count, profile);
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), sim::NAMESPACE);
        let params = PatchParams::apply("bench").force();
        maps.patch(sim::NAME, &params, &Patch::Apply(map)).await?;
        // Taints of nodes that were just made go a moment after.
        let ours = kube::api::ListParams::default().labels(&format!("{}=true", sim::LABEL));
        until("simulated nodes", || async {
            let all = nodes.list(&ours).await?.items;
            let free = |n: &Node| {
                let taints = n.spec.iter().flat_map(|s| s.taints.iter().flatten());
                taints
                    .filter(|t| t.key.starts_with("node.kubernetes.io/"))
                    .count()
                    == 0
            };
            Ok(all.len() == count as usize && all.iter().all(free))
        })
        .await
    }

    /// Makes a namespace in which pods can be made.
    pub async fn namespace(&self, name: &str) -> anyhow::Result<()> {
        let all: Api<Namespace> = Api::all(self.client.clone());
        let object: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        all.create(&PostParams::default(), &object).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), name);
        until("the default service account", || async {
            Ok(accounts.get_opt("default").await?.is_some())
        })
        .await
    }

    /// Notices when so many pods of a namespace have a node: as each enters the selection of pods
    /// that have one, the watch says ADDED once.
    pub async fn bound(
        &self,
        namespace: &str,
        count: usize,
    ) -> anyhow::Result<JoinHandle<anyhow::Result<Instant>>> {
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        let selector = "fieldSelector=spec.nodeName%21%3D";
        self.added(&path, selector, count).await
    }

    async fn added(
        &self,
        path: &str,
        selector: &str,
        count: usize,
    ) -> anyhow::Result<JoinHandle<anyhow::Result<Instant>>> {
        let seconds = PATIENCE.as_secs();
        let uri = format!("{path}?watch=true&timeoutSeconds={seconds}&{selector}");
        let request = http::Request::get(uri).body(Body::empty())?;
        let mut body = self.client.send(request).await?.into_body();
        Ok(tokio::spawn(async move {
            let mut seen = 0;
            let mut line = Head::default();
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame?.into_data() else {
                    continue;
                };
                seen += line.added(&data);
                if seen >= count {
                    return Ok(Instant::now());
                }
            }
            bail!("the watch ended after {seen} of {count}")
        }))
    }
}

/// Counts lines that begin with an ADDED event in a stream of pieces.
#[derive(Default)]
struct Head {
    start: Vec<u8>,
    decided: bool,
}

impl Head {
    fn added(&mut self, data: &[u8]) -> usize {
        const ADDED: &[u8] = br#"{"type":"ADDED""#;
        let mut count = 0;
        let mut rest = data;
        while !rest.is_empty() {
            let end = rest.iter().position(|b| *b == b'\n');
            let piece = &rest[..end.unwrap_or(rest.len())];
            if !self.decided {
                let missing = ADDED.len() - self.start.len();
                self.start
                    .extend_from_slice(&piece[..missing.min(piece.len())]);
                if self.start.len() == ADDED.len() {
                    self.decided = true;
                    count += usize::from(self.start == ADDED);
                }
            }
            match end {
                Some(end) => {
                    self.start.clear();
                    self.decided = false;
                    rest = &rest[end + 1..];
                }
                None => rest = &[],
            }
        }
        count
    }
}

/// Looks until it is so.
pub async fn until<F>(what: &str, mut look: impl FnMut() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<bool>>,
{
    let waited = async {
        while !look().await? {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    };
    let limited = tokio::time::timeout(PATIENCE, waited).await;
    limited.with_context(|| format!("waited in vain for {what}"))?
}

/// Does something again and again until it is told to stop.
pub fn every<F>(
    interval: Duration,
    load: &Load,
    act: impl Fn(Arc<Load>, u64) -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let load = Arc::new(load.clone());
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(interval);
        for turn in 0.. {
            ticks.tick().await;
            if let Err(error) = act(load.clone(), turn).await {
                eprintln!("beside the load: {error:#}");
            }
        }
    })
}
