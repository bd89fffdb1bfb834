//! What an API server is told at start.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use rand::Rng;

use crate::auth::TokenIssuer;

/// Where the time comes from.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Where the random parts of generated names come from.
pub type Roll = Arc<dyn Fn() -> u32 + Send + Sync>;

/// The front-proxy certificate, all in PEM.
#[derive(Clone)]
pub struct FrontProxy {
    /// The authority that other servers trust.
    pub authority: String,
    /// A certificate of it.
    pub certificate: String,
    /// The certificate's key.
    pub key: String,
}

/// Configuration of an [`ApiServer`](crate::ApiServer).
#[derive(Clone)]
pub struct Config {
    /// Range of cluster IPs; its first address is that of the `kubernetes` service.
    pub service_cidr: IpNet,
    /// Range of node ports.
    pub node_ports: RangeInclusive<u16>,
    /// Address at which nodes and pods reach this server: the endpoint of the `kubernetes` service.
    pub advertise_address: IpAddr,
    /// Port at which nodes and pods reach this server.
    pub advertise_port: u16,
    /// Key that secrets are sealed with at rest; none leaves them readable.
    pub encryption_key: Option<[u8; 32]>,
    /// Signs and verifies service-account tokens.
    pub tokens: TokenIssuer,
    /// TLS towards kubelets, with the client certificate they trust; without it node streams answer 503.
    pub kubelet_tls: Option<Arc<rustls::ClientConfig>>,
    /// Who this server is to other API servers that it passes requests on to; made afresh at start if none is given.
    pub front_proxy: Option<FrontProxy>,
    /// Authority of client certificates in PEM, published for other API servers.
    pub client_authority: Option<String>,
    /// How long events are kept.
    pub event_ttl: Duration,
    /// The clock of all time stamps.
    pub clock: Clock,
    /// The dice of generated names.
    pub roll: Roll,
}

impl Config {
    /// The usual values: service range 10.43.0.0/16, node ports 30000 to 32767, events kept for one hour.
    pub fn new(tokens: TokenIssuer) -> Self {
        Self {
            service_cidr: IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 43, 0, 0), 16)),
            node_ports: 30000..=32767,
            advertise_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            advertise_port: 6443,
            encryption_key: None,
            tokens,
            kubelet_tls: None,
            front_proxy: None,
            client_authority: None,
            event_ttl: Duration::from_secs(3600),
            clock: Arc::new(Timestamp::now),
            roll: Arc::new(|| rand::rng().random()),
        }
    }
}
