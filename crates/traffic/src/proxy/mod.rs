//! The service proxy: Services and EndpointSlices in, elements of nftables maps out.
//!
//! Each Service's share of the table follows purely from the Service and its slices ([`model`]); the changes between
//! two states follow purely from those ([`table`]); one transaction brings them to the kernel ([`apply`]). The rules
//! themselves ([`rules`]) hardly ever change. Nothing is done periodically.
//!
//! Invariants: a new connection goes to an endpoint of the newest state committed; established connections are left
//! alone; the table stays when the process ends, so that Services work while it is down.

mod apply;
mod forwarding;
mod model;
mod rules;
mod run;
mod table;
#[cfg(test)]
mod tests;

use ipnet::Ipv4Net;

pub use apply::Applier;
pub use model::{Audience, Backend, Frontend, Frontends, Otherwise, Place, Protocol, frontends};
pub use run::run;
pub use table::{ChainId, Changes, ElementId, Elements, SetId, StaleFlow, Table};

/// What the proxy needs to know of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of the nftables table (family ip): `styr-<cluster>`.
    pub table: String,
    /// The node's name, as in EndpointSlices.
    pub node_name: String,
    /// Range of the Services' addresses.
    pub service_cidr: Ipv4Net,
    /// Range of the pods of all nodes.
    pub pod_cidr: Ipv4Net,
    /// Range of the pods of this node.
    pub node_pod_cidr: Ipv4Net,
    /// Name of the bridge the node's pods hang on.
    pub bridge: String,
    /// Endpoints in this range answer nobody, so Services lead to others: pods of simulated nodes.
    pub unreachable: Option<Ipv4Net>,
}

/// Why the proxy cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's network cannot be set up.
    #[error(transparent)]
    Network(#[from] net::Error),
    /// The table cannot be set up.
    #[error(transparent)]
    Table(#[from] net::nft::BatchError),
    /// A task of the proxy failed.
    #[error("the proxy's task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Removes a cluster's table, and what it put into others'. Does nothing when there is none.
///
/// # Errors
/// When the kernel refuses.
pub fn cleanup(table: &str) -> Result<(), Error> {
    use net::nft::{Batch, Connection, Dumper, Family};
    let mut nft = Connection::open()?;
    forwarding::withdraw(&mut nft, table)?;
    if nft.tables(Family::Ip)?.iter().any(|t| t == table) {
        let mut batch = Batch::new(Family::Ip, table);
        batch.delete_table();
        nft.commit(&batch)?;
    }
    Ok(())
}
