//! Starts the node's parts: container runtime, agent, service proxy and DNS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apiserver::auth::MASTERS;
use oci::cri::v1::runtime_service_client::RuntimeServiceClient;
use oci::cri::v1::{
    ListContainersRequest, ListPodSandboxRequest, StopContainerRequest, StopPodSandboxRequest,
};
use oci::images::PullOptions;

use super::control_plane::ControlPlane;
use super::supervise::Supervisor;
use super::{dns_service, tls};
use crate::config::{CLUSTER_DOMAIN, Cluster, DNS_PORT, KUBELET_PORT};
use crate::network::HostNetwork;
use crate::pki::Pki;

/// How long a container may take to end when the cluster is stopped, before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// What the node is made from.
pub struct Parts<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Its authority.
    pub pki: &'a Arc<Pki>,
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
        self.start_dns(supervisor).await?;
        self.start_agent(&runtime, supervisor)
    }

    fn start_agent(
        &self,
        runtime: &Arc<oci::Runtime>,
        supervisor: &mut Supervisor,
    ) -> anyhow::Result<()> {
        let name = format!("system:node:{}", self.cluster.choices.node_name);
        let client = self.control_plane.client(&name, &["system:nodes"]);
        let cri = kubelet::Cri::new(runtime.runtime_service(), runtime.image_service());
        // Signed now, so that a failure ends the start; again at each restart of the component.
        tls::kubelet_server(self.pki, self.cluster)?;
        let (cluster, pki) = (self.cluster.clone(), self.pki.clone());
        supervisor.run("node agent", move |shutdown| {
            let (client, cri) = (client.clone(), cri.clone());
            let config = agent_config(&cluster, &pki);
            async move {
                kubelet::run(client, cri, config?, shutdown).await?;
                Ok(())
            }
        });
        Ok(())
    }

    async fn start_dns(&self, supervisor: &mut Supervisor) -> anyhow::Result<()> {
        let cluster = self.cluster;
        let caches = client::Caches::new(
            self.control_plane
                .client("system:serviceaccount:kube-system:coredns", &[]),
        );
        let address = SocketAddr::from((cluster.node_ip(), DNS_PORT));
        let config = traffic::dns::Config {
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
            cluster_ranges: vec![cluster.choices.service_cidr, cluster.choices.pod_cidr],
            upstreams: traffic::dns::Upstreams::File("/etc/resolv.conf".into()),
        };
        supervisor.run("DNS", move |shutdown| {
            let (caches, config) = (caches.clone(), config.clone());
            async move {
                let sockets = traffic::dns::Sockets::bind(address).await?;
                let (ready, _) = tokio::sync::oneshot::channel();
                traffic::dns::run(caches, sockets, config, ready, shutdown).await?;
                Ok(())
            }
        });
        self.publish_dns().await
    }

    /// Makes the Service `kube-dns`, whose endpoint is this node's DNS server.
    async fn publish_dns(&self) -> anyhow::Result<()> {
        let client = self.control_plane.client("system:admin", &[MASTERS]);
        dns_service::publish(&client, self.cluster)
            .await
            .context("making the kube-dns service")
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
            unreachable: sim::RANGE.parse().ok(),
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

fn agent_config(cluster: &Cluster, pki: &Pki) -> anyhow::Result<kubelet::config::Config> {
    Ok(kubelet::config::Config {
        node_name: cluster.choices.node_name.clone(),
        node_ip: cluster.node_ip().into(),
        pod_cidr: Some(cluster.choices.node_cidr.to_string()),
        root: cluster.path("kubelet"),
        log_root: cluster.path("logs/pods"),
        cgroup_root: cluster.cgroup(),
        cluster_dns: vec![cluster.dns_ip().to_string()],
        cluster_domain: CLUSTER_DOMAIN.to_owned(),
        static_pod_dir: Some(cluster.path("manifests")),
        listen: Some(SocketAddr::from((cluster.node_ip(), KUBELET_PORT))),
        tls: Some(tls::kubelet_server(pki, cluster)?),
        labels: std::collections::BTreeMap::new(),
        control_plane: true,
        max_pods: kubelet::config::DEFAULT_MAX_PODS,
        version: apiserver::GIT_VERSION.to_owned(),
    })
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
