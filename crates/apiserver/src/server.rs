//! The server's parts and their start.

use std::sync::{Arc, OnceLock};

use store::{ReadError, Store};
use tokio::sync::Semaphore;

use crate::admission::Chain;
use crate::aggregation::Aggregation;
use crate::auth::{Authenticator, Authorizer, secret_token::Uses};
use crate::config::{Config, FrontProxy};
use crate::metrics::Metrics;
use crate::openapi::OpenApi;
use crate::registry::{Fail, Registry, Transformer};

/// Most reading requests of clients at once (upstream: 400).
const MAX_READS: usize = 400;
/// Most writing requests of clients at once (upstream: 200).
const MAX_WRITES: usize = 200;

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be read.
    #[error("cannot read the store: {0}")]
    Read(#[from] ReadError),
    /// An object every cluster has could not be made.
    #[error("cannot create the cluster's own objects: {0}")]
    Bootstrap(Fail),
    /// No front-proxy certificate could be made.
    #[error("cannot make the front-proxy certificate: {0}")]
    FrontProxy(#[from] rcgen::Error),
}

/// An API server over one store.
pub struct ApiServer {
    pub(crate) registry: Arc<Registry>,
    pub(crate) authenticator: Authenticator,
    pub(crate) authorizer: Authorizer,
    pub(crate) metrics: Metrics,
    pub(crate) openapi: OpenApi,
    pub(crate) aggregation: Arc<Aggregation>,
    pub(crate) reads: Arc<Semaphore>,
    pub(crate) writes: Arc<Semaphore>,
}

impl ApiServer {
    /// Builds the server, makes the objects every cluster has, and starts what runs beside requests (following of
    /// authorization rules, expiry of events).
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn new(mut config: Config, store: Arc<dyn Store>) -> Result<Arc<Self>, StartError> {
        if config.front_proxy.is_none() {
            config.front_proxy = Some(FrontProxy::generate()?);
        }
        let tokens = config.tokens.clone();
        let transformer = Transformer::new(config.encryption_key.as_ref());
        let authorizer = Arc::new(OnceLock::new());
        let chain = Chain::standard(authorizer.clone());
        let registry = Arc::new(Registry::new(config, store.clone(), chain));
        crate::bootstrap::run(&registry)
            .await
            .map_err(StartError::Bootstrap)?;
        crate::custom::start(&registry)
            .await
            .map_err(StartError::Bootstrap)?;
        let decides = Authorizer::start(store.clone()).await?;
        let decides = authorizer.get_or_init(|| decides).clone();
        let aggregation = crate::aggregation::start(&registry)
            .await
            .map_err(StartError::Bootstrap)?;
        let uses = Uses::follow(registry.clone());
        let server = Arc::new(Self {
            aggregation,
            authenticator: Authenticator::new(store.clone(), tokens, transformer, uses),
            authorizer: decides,
            metrics: Metrics::new(),
            openapi: OpenApi::default(),
            reads: Arc::new(Semaphore::new(MAX_READS)),
            writes: Arc::new(Semaphore::new(MAX_WRITES)),
            registry,
        });
        crate::bootstrap::events::expire(server.registry.clone());
        Ok(server)
    }

    /// Ends every watch and the work beside requests; requests go on being answered.
    pub fn stop_streams(&self) {
        self.registry.stop.cancel();
    }
}
