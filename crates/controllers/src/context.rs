//! What every controller is given.

use std::{fmt, sync::Arc};

use client::{Caches, Client, Clock, Jitter, Queue, Reconcile, Recorder};
use ipnet::IpNet;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{certificates::Authority, volumes::Folders};

/// Gives each controller a client of its own identity.
pub type ClientOf = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// Whose token is to be signed, and which Secret will hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountToken {
    /// The namespace of both.
    pub namespace: String,
    /// The account.
    pub account: String,
    /// The account's uid.
    pub account_uid: String,
    /// The Secret.
    pub secret: String,
    /// The Secret's uid.
    pub secret_uid: String,
}

/// Signs tokens that last as long as their Secret; an error is told in words.
pub type SignToken = Arc<dyn Fn(&AccountToken) -> Result<String, String> + Send + Sync>;

/// What the controllers of a cluster need to know.
#[derive(Clone)]
pub struct Config {
    /// Addresses of pods; each node gets a part of it. `None`: nodes get none from here.
    pub cluster_cidr: Option<IpNet>,
    /// Prefix length of a node's part of `cluster_cidr`.
    pub node_cidr_prefix: u8,
    /// Certificate of the cluster's authority, as PEM, published to every namespace.
    pub root_ca: String,
    /// Signs the certificates that are asked for. `None`: nothing is signed.
    pub authority: Option<Arc<Authority>>,
    /// Signs the tokens of Secrets that ask for one. `None`: they get none.
    pub sign_token: Option<SignToken>,
    /// Folders of volumes made on demand by the default storage class. `None`: no such class.
    pub volumes: Option<Arc<dyn Folders>>,
    /// Workers of each controller.
    pub workers: usize,
    /// The wall clock.
    pub clock: Clock,
    /// Spreads retries and names.
    pub jitter: Jitter,
    /// Caches shared with other parts of this process; `None`: the controllers keep their own.
    pub caches: Option<Caches>,
    /// A client per controller name, whose writes it makes; `None`: all share one client.
    pub client_of: Option<ClientOf>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("cluster_cidr", &self.cluster_cidr)
            .field("node_cidr_prefix", &self.node_cidr_prefix)
            .field("volumes", &self.volumes.as_ref().map(|v| v.root()))
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}

impl Default for Config {
    /// No addresses for nodes, no authority, no volumes on demand, five workers.
    fn default() -> Self {
        Self {
            cluster_cidr: None,
            node_cidr_prefix: 24,
            root_ca: String::new(),
            authority: None,
            sign_token: None,
            volumes: None,
            workers: 5,
            clock: Clock::system(),
            jitter: Jitter::random(),
            caches: None,
            client_of: None,
        }
    }
}

/// A controller's surroundings. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// For writes, and reads that must not be stale.
    pub client: Client,
    /// Shared with all other controllers.
    pub caches: Caches,
    /// The cluster.
    pub config: Arc<Config>,
    /// Ends the controller.
    pub shutdown: CancellationToken,
    name: &'static str,
}

impl Context {
    pub(crate) fn new(client: Client, config: Config, shutdown: CancellationToken) -> Self {
        Self {
            caches: config
                .caches
                .clone()
                .unwrap_or_else(|| Caches::new(client.clone())),
            client,
            config: Arc::new(config),
            shutdown,
            name: "",
        }
    }

    pub(crate) fn for_controller(&self, name: &'static str) -> Self {
        let client = match &self.config.client_of {
            Some(client_of) => client_of(name),
            None => self.client.clone(),
        };
        Self {
            client,
            name,
            ..self.clone()
        }
    }

    /// The same, with a shutdown of its own that comes no later than this one's.
    pub(crate) fn child(&self) -> Self {
        Self {
            shutdown: self.shutdown.child_token(),
            ..self.clone()
        }
    }

    /// The present moment.
    pub fn now(&self) -> Timestamp {
        self.config.clock.now()
    }

    /// Records events under the controller's name.
    pub fn recorder(&self) -> Recorder {
        self.recorder_as(self.name)
    }

    /// Records events under the name that upstream gives them, where it is another one.
    pub(crate) fn recorder_as(&self, component: &str) -> Recorder {
        Recorder::new(
            self.client.clone(),
            component,
            "",
            self.config.clock.clone(),
        )
    }

    /// Works on `queue` until the shutdown.
    pub async fn work<R: Reconcile>(&self, reconciler: R, queue: Queue<R::Key>) {
        let workers = self.config.workers.max(1);
        client::run_workers(Arc::new(reconciler), queue, workers, self.shutdown.clone()).await;
    }
}
