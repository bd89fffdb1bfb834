//! The node agent: runs the pods that the API server assigns to this node.
//!
//! It sees the cluster through the API alone and containers through CRI v1 alone. One task per pod
//! ([`worker`]) observes, plans ([`plan`], pure) and acts; everything that can be decided without
//! I/O is a pure module beside it (`status`, `env`, `dns`, `hosts`, `resources`, `security`).
//!
//! Invariants:
//! - the agent may be killed at any instant: what runs is found again by the labels and annotations
//!   on it ([`labels`]), what is mounted by `/proc/self/mountinfo`;
//! - a running container is never restarted because the agent or the API server was;
//! - nothing polls: the API is watched, the runtime sends events, files have inotify, and the rest
//!   is timers that somebody waits for.

mod admission;
mod agent;
pub mod backoff;
mod clock;
pub mod config;
mod container_config;
pub mod cri;
mod dns;
mod downward;
mod env;
mod fsnotify;
mod hosts;
mod images;
mod labels;
mod logs;
mod machine;
mod node;
mod observe;
pub mod plan;
pub mod pod;
mod pods;
mod probes;
mod quantity;
mod refs;
mod resources;
mod sandbox;
mod security;
mod server;
mod services;
mod static_pods;
mod status;
mod volumes;
mod watching;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use client::{Clock, Recorder};
use oci::cri::v1::VersionRequest;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use admission::Admission;
use agent::{Agent, SharedAgent};
pub use config::{Config, Tls};
pub use cri::Cri;
use machine::Machine;
use volumes::Host;
use volumes::tokens::Tokens;

/// Runtime changes kept for followers of logs.
const CHANGES_KEPT: usize = 256;
/// Delay between two tries to reach the runtime at the start.
const RUNTIME_RETRY: Duration = Duration::from_millis(200);
/// Tries to reach the runtime at the start.
const RUNTIME_TRIES: u32 = 50;

/// Why the agent could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime does not answer.
    #[error("the container runtime does not answer: {0}")]
    Runtime(#[from] cri::CriError),
    /// A folder could not be made or inotify is not available.
    #[error("preparing {what}: {source}")]
    Prepare {
        /// What was being prepared.
        what: String,
        /// The reason.
        source: std::io::Error,
    },
    /// The node API's address is taken.
    #[error("listening on {address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The reason.
        source: std::io::Error,
    },
    /// The certificates of the node API cannot be used.
    #[error("certificates of the node API: {0}")]
    Tls(#[from] rustls::Error),
}

/// Runs the node agent until `shutdown`. Containers go on running after it.
///
/// # Errors
/// When the agent cannot start; once it runs, failures are retried.
pub async fn run(
    client: client::Client,
    cri: Cri,
    mut config: Config,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let tls = config.tls.take();
    let listen = config.listen;
    let agent = prepare(client.clone(), cri, config).await?;
    let directory = Arc::new(pods::Directory::default());
    let mut tasks = tokio::task::JoinSet::new();
    if let (Some(address), Some(tls)) = (listen, tls) {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| Error::Listen { address, source })?;
        let (agent, directory, stop) = (agent.clone(), directory.clone(), shutdown.clone());
        tasks.spawn(async move { server::serve(agent, directory, listener, tls, stop).await });
    }
    let (services, stop) = (agent.clone(), shutdown.clone());
    tasks.spawn(async move {
        services.services.run(client, stop).await;
        Ok(())
    });
    let (node, stop) = (agent.clone(), shutdown.clone());
    tasks.spawn(async move {
        node::run(node, stop).await;
        Ok(())
    });
    tasks.spawn(async move {
        pods::run(agent, directory, shutdown).await;
        Ok(())
    });
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(result) => result?,
            Err(error) => tracing::error!(%error, "a part of the node agent broke off"),
        }
    }
    Ok(())
}

async fn prepare(client: client::Client, cri: Cri, config: Config) -> Result<SharedAgent, Error> {
    for dir in [config.root.join("pods"), config.log_root.clone()] {
        std::fs::create_dir_all(&dir).map_err(|source| Error::Prepare {
            what: dir.display().to_string(),
            source,
        })?;
    }
    let notify = fsnotify::FsNotify::new().map_err(|source| Error::Prepare {
        what: "inotify".to_owned(),
        source,
    })?;
    let version = runtime_version(&cri).await?;
    let machine = Machine::probe(&config.root);
    let resolver = dns::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    Ok(Arc::new(Agent {
        host: Host {
            root: config.root.clone(),
            client: client.clone(),
            config_maps: refs::Refs::new(client.clone()),
            secrets: refs::Refs::new(client.clone()),
            tokens: Tokens::default(),
        },
        recorder: Recorder::new(
            client.clone(),
            "kubelet",
            &config.node_name,
            Clock::system(),
        ),
        admission: Admission::new(&machine.allocatable(config.max_pods)),
        images: images::Images::new(cri.clone()),
        services: services::Services::default(),
        machine,
        runtime_name: version.runtime_name,
        runtime_version: version.runtime_version,
        changes: broadcast::Sender::new(CHANGES_KEPT),
        notify,
        resolver,
        client,
        cri,
        config,
    }))
}

async fn runtime_version(cri: &Cri) -> Result<oci::cri::v1::VersionResponse, Error> {
    let mut tries = 0;
    loop {
        match cri
            .version(VersionRequest {
                version: "v1".into(),
            })
            .await
        {
            Ok(version) => return Ok(version),
            Err(error) if tries >= RUNTIME_TRIES => return Err(error.into()),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(RUNTIME_RETRY).await;
    }
}
