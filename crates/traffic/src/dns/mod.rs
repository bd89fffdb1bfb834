//! The cluster's DNS: names of Services, endpoints and pods to addresses, and everything else from the host's resolvers.
//!
//! The zone ([`zone`]) is a compact projection of Services and EndpointSlices, kept up to date by watches; answers
//! ([`answer`]) follow purely from it and are given from memory. Other names are passed on ([`forward`]) as they came.
//!
//! Invariants: a name of the cluster never leaves the cluster; nothing is asked of a resolver that would ask us back;
//! a question always ends in an answer within five seconds.

mod answer;
mod forward;
mod server;
#[cfg(test)]
mod tests;
mod upstream;
mod zone;

use std::sync::{Arc, PoisonError};

use client::{Caches, Key};
use ipnet::Ipv4Net;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub use answer::{Domain, Outcome};
pub use server::Sockets;
pub use upstream::Upstreams;
pub use zone::{Endpoint, Found, Location, Port, Record, Target, Zone};

use crate::watch::ServiceWatch;
use forward::Forwarder;
use server::Handler;
use upstream::Pool;

/// What the DNS needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The cluster's domain, such as `cluster.local`.
    pub cluster_domain: String,
    /// Ranges of the cluster's Services and pods: reverse names of these addresses are the cluster's own, and resolvers
    /// with such an address are never asked, because they lead back here.
    pub cluster_ranges: Vec<Ipv4Net>,
    /// Who knows all other names.
    pub upstreams: Upstreams,
}

/// Why the DNS cannot work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster's domain is no domain name.
    #[error("{domain:?} is no domain name: {reason}")]
    Domain {
        /// What was given.
        domain: String,
        /// What is wrong with it.
        reason: hickory_proto::ProtoError,
    },
    /// The sockets are unusable.
    #[error("DNS sockets: {0}")]
    Sockets(#[from] std::io::Error),
}

/// Answers on `sockets` until `shutdown`. `ready` is told once every Service's name is known; until then no question is
/// answered, so that nobody is told that a name that exists does not.
///
/// # Errors
/// When the configuration or the sockets cannot be used.
pub async fn run(
    caches: Caches,
    sockets: Sockets,
    config: Config,
    ready: oneshot::Sender<()>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let domain = Domain::new(&config.cluster_domain, &config.cluster_ranges).map_err(|reason| {
        Error::Domain {
            domain: config.cluster_domain.clone(),
            reason,
        }
    })?;
    let pool = Pool::new(config.upstreams, sockets.address()?, config.cluster_ranges);
    let handler = Handler::new(domain, Forwarder::new(pool));
    let watch = ServiceWatch::start(&caches);
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = watch.synced() => {}
    }
    refresh(&handler, &watch);
    // Nobody may be waiting.
    let _ = ready.send(());
    let follow = async {
        loop {
            watch.changed().await;
            refresh(&handler, &watch);
        }
    };
    tokio::select! {
        () = server::serve(sockets, Arc::clone(&handler), shutdown) => {}
        () = follow => {}
    }
    Ok(())
}

fn refresh(handler: &Handler, watch: &ServiceWatch) {
    let changed: Vec<(Key, Option<Record>)> = watch
        .take()
        .into_iter()
        .map(|key| {
            let record = watch
                .look_up(&key)
                .and_then(|(service, slices)| Record::of(&service, &slices));
            (key, record)
        })
        .collect();
    let mut zone = handler.zone.write().unwrap_or_else(PoisonError::into_inner);
    for (key, record) in changed {
        zone.set(&key, record);
    }
}
