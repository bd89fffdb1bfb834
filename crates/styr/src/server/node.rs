//! Starts the node's parts: container runtime, agent, service proxy and DNS.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use oci::cri::v1::runtime_service_client::RuntimeServiceClient;
use oci::cri::v1::{
    ListContainersRequest, ListPodSandboxRequest, StopContainerRequest, StopPodSandboxRequest,
};
use oci::images::PullOptions;

use super::control_plane::ControlPlane;
use super::supervise::Supervisor;
use crate::config::Cluster;
use crate::network::HostNetwork;
use crate::pki::Pki;

/// How long a container may take to end when the cluster is stopped, before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// What the node is made from.
pub struct Parts<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Its authority.
    pub pki: &'a Pki,
    /// Its pod network.
    pub network: Arc<HostNetwork>,
    /// Its API.
    pub control_plane: &'a ControlPlane,
}

impl Parts<'_> {
    /// Opens the runtime and starts the components.
    ///
    /// # Errors
    /// When the runtime cannot be opened.
    pub async fn start(self, supervisor: &mut Supervisor) -> anyhow::Result<()> {
        let runtime = open_runtime(self.cluster, self.network.clone()).await?;
        self.start_proxy(supervisor);
        let _ = (runtime, self.pki);
        Ok(())
    }

    fn start_proxy(&self, supervisor: &mut Supervisor) {
        let cluster = self.cluster;
        let config = traffic::proxy::Config {
            table: cluster.table(),
            node_name: cluster.choices.node_name.clone(),
            service_cidr: cluster.choices.service_cidr,
            pod_cidr: cluster.choices.pod_cidr,
            node_pod_cidr: cluster.choices.node_cidr,
            bridge: cluster.bridge(),
        };
        let caches = client::Caches::new(self.control_plane.client("system:kube-proxy", &[]));
        supervisor.run("service proxy", move |shutdown| {
            let (caches, config) = (caches.clone(), config.clone());
            async move {
                let (ready, _) = tokio::sync::oneshot::channel();
                traffic::proxy::run(caches, config, ready, shutdown).await?;
                Ok(())
            }
        });
    }
}

async fn open_runtime(
    cluster: &Cluster,
    network: Arc<HostNetwork>,
) -> anyhow::Result<Arc<oci::Runtime>> {
    let mut config = oci::Config::new(
        cluster.path("oci"),
        cluster.path("run"),
        cluster.cgroup(),
        network,
    );
    config.pull = PullOptions {
        certificates: extra_authorities(cluster),
        ..PullOptions::default()
    };
    oci::Runtime::open(config)
        .await
        .context("opening the container runtime")
}

/// Authorities of registries the user trusts besides the system's: `certs.d/*.crt` in the
/// cluster's folder.
fn extra_authorities(cluster: &Cluster) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(cluster.path("certs.d"));
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.path().extension().is_some_and(|x| x == "crt"))
        .filter_map(|e| std::fs::read(e.path()).ok())
        .collect()
}

/// Stops every container and sandbox of the cluster, whose server no longer runs. Their records
/// stay, so that the next start knows what ran.
///
/// # Errors
/// When the runtime cannot be opened or a sandbox cannot be stopped.
pub async fn stop_pods(cluster: &Cluster) -> anyhow::Result<()> {
    let network = HostNetwork::attach(cluster)?;
    let runtime = open_runtime(cluster, network).await?;
    let client = RuntimeServiceClient::new(runtime.runtime_service());
    let containers = client
        .clone()
        .list_containers(ListContainersRequest::default())
        .await?
        .into_inner()
        .containers;
    let stops = containers.into_iter().map(|container| {
        let mut client = client.clone();
        async move {
            let request = StopContainerRequest {
                container_id: container.id,
                timeout: i64::try_from(STOP_GRACE.as_secs()).unwrap_or(i64::MAX),
            };
            client.stop_container(request).await
        }
    });
    futures::future::try_join_all(stops).await?;
    let sandboxes = client
        .clone()
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await?
        .into_inner()
        .items;
    let stops = sandboxes.into_iter().map(|sandbox| {
        let mut client = client.clone();
        let request = StopPodSandboxRequest {
            pod_sandbox_id: sandbox.id,
        };
        async move { client.stop_pod_sandbox(request).await }
    });
    futures::future::try_join_all(stops).await?;
    Ok(())
}
