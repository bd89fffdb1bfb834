//! Configuration of the agent: filled once by whoever starts it, passed down, never changed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Port of the node API unless configured otherwise.
pub const DEFAULT_PORT: u16 = 10250;
/// Pods a node takes unless configured otherwise.
pub const DEFAULT_MAX_PODS: u32 = 110;

/// All the agent needs to know.
#[derive(Debug)]
pub struct Config {
    /// Name of the Node object, lower case.
    pub node_name: String,
    /// Internal address of the node.
    pub node_ip: IpAddr,
    /// Pod network of this node, written to the Node's spec when it is first registered.
    pub pod_cidr: Option<String>,
    /// The agent's own folder (`pods/` below it).
    pub root: PathBuf,
    /// Folder of container logs.
    pub log_root: PathBuf,
    /// Cgroup under which pods go, such as `/styr-dev`.
    pub cgroup_root: String,
    /// Addresses of the cluster's DNS.
    pub cluster_dns: Vec<String>,
    /// Domain of the cluster, such as `cluster.local`.
    pub cluster_domain: String,
    /// Folder of static pod manifests, if any.
    pub static_pod_dir: Option<PathBuf>,
    /// Where the node API listens; `None` leaves it out.
    pub listen: Option<SocketAddr>,
    /// Certificates of the node API.
    pub tls: Option<Tls>,
    /// Labels for the Node besides the usual ones.
    pub labels: BTreeMap<String, String>,
    /// Whether the control plane runs on this node too.
    pub control_plane: bool,
    /// Most pods.
    pub max_pods: u32,
    /// Version to report, such as `v1.37.0`.
    pub version: String,
}

/// Certificates of the node API.
#[derive(Debug)]
pub struct Tls {
    /// Server certificate, followed by intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// Authorities whose client certificates are trusted.
    pub client_ca: Vec<CertificateDer<'static>>,
}
