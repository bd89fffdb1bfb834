//! The node agent against a runtime and an API server that live in memory.

mod api;
mod pods;
mod runtime;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use kubelet::{Config, Cri};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use api::Api;
use runtime::Runtime;

/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node: its runtime, its API server, and an agent that can be started and killed.
struct World {
    api: Api,
    runtime: Runtime,
    dir: tempfile::TempDir,
    agent: Option<AbortOnDropHandle<()>>,
}

impl World {
    fn new() -> World {
        World {
            api: Api::default(),
            runtime: Runtime::default(),
            dir: tempfile::tempdir().unwrap(),
            agent: None,
        }
    }

    fn start_agent(&mut self) {
        let client = client::in_process(self.api.service());
        let cri = Cri::new(self.runtime.service(), self.runtime.service());
        let config = config(self.dir.path());
        let stop = CancellationToken::new();
        let task =
            tokio::spawn(async move { kubelet::run(client, cri, config, stop).await.unwrap() });
        self.agent = Some(AbortOnDropHandle::new(task));
    }

    /// As by `kill -9`: nothing is tidied up.
    fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// Waits until the pod is as `holds` wants it.
    async fn pod(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..PATIENCE.as_millis() / 10 {
            if let Some(pod) = self.api.get("pods", "default", name) {
                if holds(&pod) {
                    return pod;
                }
                last = pod;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} is not {what}: {last:#}");
    }

    /// Waits until `holds`.
    async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        for _ in 0..PATIENCE.as_millis() / 10 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not {what}; runtime: {:#?}", self.runtime.log());
    }
}

fn config(dir: &Path) -> Config {
    Config {
        node_name: "node".into(),
        node_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        pod_cidr: Some("10.42.0.0/24".into()),
        root: dir.join("kubelet"),
        log_root: dir.join("logs"),
        cgroup_root: "/none".into(),
        cluster_dns: vec!["10.43.0.10".into()],
        cluster_domain: "cluster.local".into(),
        static_pod_dir: Some(dir.join("manifests")),
        listen: None,
        tls: None,
        labels: std::collections::BTreeMap::new(),
        control_plane: false,
        max_pods: 110,
        version: "v0".into(),
    }
}
