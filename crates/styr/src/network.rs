//! Gives the container runtime its pod network: addresses, interface pairs and the bridge of
//! `net`, behind the trait by which `oci` asks for them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use net::ipam::Ipam;
use net::pod::PodNet;
use oci::{NetworkError, SandboxMeta, SandboxNetwork};

use crate::config::Cluster;

/// Name of the interface inside a pod.
const POD_INTERFACE: &str = "eth0";

/// The pod network of one cluster on this host.
pub struct HostNetwork {
    bridge: String,
    gateway: std::net::Ipv4Addr,
    mtu: u32,
    ipam: Arc<Ipam>,
}

impl HostNetwork {
    /// Makes the bridge, or brings it to its state, and opens the addresses.
    ///
    /// # Errors
    /// When the kernel or the file system refuses.
    pub fn open(cluster: &Cluster) -> net::Result<Arc<Self>> {
        let bridge = net::Bridge::ensure(&cluster.bridge(), cluster.gateway())?;
        bridge.route(cluster.choices.service_cidr)?;
        Self::attach(cluster)
    }

    /// Opens the addresses without touching the bridge: enough for tearing down.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn attach(cluster: &Cluster) -> net::Result<Arc<Self>> {
        let ipam = Ipam::open(
            &addresses(cluster),
            cluster.choices.node_cidr,
            cluster.node_ip(),
        )?;
        Ok(Arc::new(Self {
            bridge: cluster.bridge(),
            gateway: cluster.node_ip(),
            mtu: net::host::mtu()?,
            ipam: Arc::new(ipam),
        }))
    }

    /// Takes the bridge and the services' rules away.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(cluster: &Cluster) -> net::Result<()> {
        net::Bridge::remove(&cluster.bridge())
    }

    fn connect(&self, sandbox_id: &str, netns: &Path) -> net::Result<IpAddr> {
        let address = self.ipam.allocate(sandbox_id)?;
        net::pod::setup(&PodNet {
            bridge: &self.bridge,
            netns,
            ifname: POD_INTERFACE,
            address,
            gateway: self.gateway,
            mtu: self.mtu,
            sandbox_id,
        })?;
        Ok(IpAddr::V4(address))
    }
}

fn addresses(cluster: &Cluster) -> PathBuf {
    cluster.path("run/addresses.json")
}

impl SandboxNetwork for HostNetwork {
    fn setup<'a>(
        &'a self,
        sandbox_id: &'a str,
        netns: &'a Path,
        _meta: SandboxMeta,
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, NetworkError>> {
        Box::pin(async move {
            // Netlink answers within the call, in well under a millisecond each.
            match tokio::task::block_in_place(|| self.connect(sandbox_id, netns)) {
                Ok(address) => Ok(vec![address]),
                Err(error) => Err(NetworkError::new(error)),
            }
        })
    }

    fn teardown<'a>(
        &'a self,
        sandbox_id: &'a str,
        _netns: &'a Path,
    ) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move {
            tokio::task::block_in_place(|| {
                net::pod::teardown(sandbox_id)?;
                self.ipam.release(sandbox_id)
            })
            .map_err(NetworkError::new)
        })
    }
}
