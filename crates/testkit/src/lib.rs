//! A cluster in one process for tests: the real API server over a store in memory, the real
//! controllers and scheduler, and nodes that only pretend to run pods.
//!
//! Nothing outside the process is touched; everything ends with the [`Cluster`].

mod agent;
mod node;
mod served;
mod simulation;
mod wait;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::Context;
use apiserver::{
    ApiServer,
    auth::{BoundObject, MASTERS, TokenIssuer, TokenRequest, UserInfo},
};
use client::{Client, Clock};
use k8s_openapi::api::core::v1::ServiceAccount;
use store::{Embedded, RangeRequest, Store};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use node::FakeNode;
pub use served::Served;
pub use wait::{eventually, object, objects};

/// Logs as `RUST_LOG` says, shown with the output of a failed test.
fn log() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_test_writer()
        .try_init();
}

/// A certificate that signs others, and its key, both PEM.
fn authority() -> anyhow::Result<(String, String)> {
    let key = rcgen::KeyPair::generate().context("a key")?;
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let name = rcgen::DnType::CommonName;
    params.distinguished_name.push(name, "testkit");
    let certificate = params.self_signed(&key).context("an authority")?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// The token of a Secret.
fn sign(tokens: &TokenIssuer, of: &controllers::AccountToken, now: i64) -> Result<String, String> {
    let request = TokenRequest {
        namespace: of.namespace.clone(),
        name: of.account.clone(),
        uid: of.account_uid.clone(),
        secret: Some(BoundObject {
            name: of.secret.clone(),
            uid: of.secret_uid.clone(),
        }),
        ..TokenRequest::default()
    };
    let signed = tokens.issue_for_secret(request, now);
    signed.map_err(|e| e.to_string())
}

/// What a test cluster consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Run the controllers.
    pub controllers: bool,
    /// Run the scheduler.
    pub scheduler: bool,
}

/// A running cluster.
pub struct Cluster {
    /// The API server.
    pub api: Arc<ApiServer>,
    /// Its store.
    pub store: Arc<Embedded>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    simulates: AtomicBool,
    agents: agent::Trust,
}

impl Cluster {
    /// Starts a cluster with controllers and scheduler, without nodes.
    ///
    /// # Errors
    /// When the API server does not start.
    pub async fn start() -> anyhow::Result<Self> {
        Self::with(Parts {
            controllers: true,
            scheduler: true,
        })
        .await
    }

    /// Starts a cluster of these parts.
    ///
    /// # Errors
    /// When the API server does not start.
    pub async fn with(parts: Parts) -> anyhow::Result<Self> {
        Self::at(parts, Clock::system()).await
    }

    /// Starts a cluster whose server and controllers go by `clock`; what they wait for comes
    /// after as much real time as it said when they began to wait.
    ///
    /// # Errors
    /// When the API server does not start.
    pub async fn at(parts: Parts, clock: Clock) -> anyhow::Result<Self> {
        Self::over(Embedded::in_memory(), parts, clock).await
    }

    /// As [`Cluster::at`], over this store.
    ///
    /// # Errors
    /// When the API server does not start.
    pub async fn over(store: Arc<Embedded>, parts: Parts, clock: Clock) -> anyhow::Result<Self> {
        log();
        let key = rcgen::KeyPair::generate()
            .context("a signing key")?
            .serialize_pem();
        let tokens = TokenIssuer::new("https://kubernetes.default.svc.cluster.local", &key)?;
        let time = clock.clone();
        let agents = agent::Trust::new()?;
        let config = apiserver::Config {
            clock: Arc::new(move || time.now()),
            kubelet_tls: Some(agents.client.clone()),
            ..apiserver::Config::new(tokens)
        };
        let signer = config.tokens.clone();
        let api = ApiServer::new(config, store.clone()).await?;
        let cluster = Self {
            api,
            store,
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            simulates: AtomicBool::new(false),
            agents,
        };
        if parts.controllers {
            cluster.start_controllers(clock, signer)?;
            cluster.has_account().await?;
        }
        if parts.scheduler {
            cluster.schedule(scheduler::Configuration::default());
        }
        Ok(cluster)
    }

    /// Pods cannot be made before their namespace has its account.
    async fn has_account(&self) -> anyhow::Result<()> {
        let accounts = client::write::namespaced::<ServiceAccount>(&self.client(), "default");
        eventually("the default service account", || async {
            Ok(accounts.get_opt("default").await?.map(drop))
        })
        .await
    }

    fn start_controllers(&self, clock: Clock, tokens: TokenIssuer) -> anyhow::Result<()> {
        let time = clock.clone();
        let (certificate, key) = authority()?;
        let signs = controllers::certificates::Authority::new(&certificate, &key)?;
        let config = controllers::Config {
            cluster_cidr: "10.42.0.0/16".parse().ok(),
            root_ca: certificate,
            authority: Some(Arc::new(signs)),
            sign_token: Some(Arc::new(move |of| {
                sign(&tokens, of, time.now().as_second())
            })),
            clock,
            ..controllers::Config::default()
        };
        let client = self.client_of("system:kube-controller-manager", &[MASTERS]);
        self.tasks
            .spawn(controllers::run(client, config, self.shutdown.clone()));
        Ok(())
    }

    /// Starts a scheduler of this configuration.
    pub fn schedule(&self, configuration: scheduler::Configuration) {
        let client = self.client_of("system:kube-scheduler", &[]);
        let config = scheduler::Config {
            configuration,
            ..scheduler::Config::default()
        };
        self.tasks
            .spawn(scheduler::run(client, config, self.shutdown.clone()));
    }

    /// A client that may do everything.
    pub fn client(&self) -> Client {
        self.client_of("testkit", &[MASTERS])
    }

    /// A client that acts as `user`.
    pub fn client_of(&self, user: &str, groups: &[&str]) -> Client {
        client::in_process(self.api.in_process(UserInfo::new(user, groups)))
    }

    /// Simulates `nodes` nodes of a profile written as YAML, beside those there are; another call
    /// changes the simulation. Answers when they are there and ready.
    ///
    /// # Errors
    /// When the profile is wrong or the nodes do not come.
    pub async fn simulate(&self, nodes: u32, profile: &str) -> anyhow::Result<()> {
        sim::Settings::new(nodes, profile)?;
        if !self.simulates.swap(true, Ordering::Relaxed) {
            let config = sim::Config {
                version: apiserver::GIT_VERSION.to_owned(),
                clock: client::Clock::system(),
                caches: None,
            };
            let client = self.client_of("system:simulation", &[MASTERS]);
            self.tasks
                .spawn(sim::run(client, config, self.shutdown.clone()));
        }
        simulation::ask(&self.client(), nodes, profile).await
    }

    /// Adds a node that pretends to run the pods it gets.
    ///
    /// # Errors
    /// When the node cannot be registered.
    pub async fn add_node(&self, name: &str) -> anyhow::Result<FakeNode> {
        FakeNode::start(self.client(), name, None).await
    }

    /// Adds such a node with a node API, so that there are logs and commands run in its pods.
    ///
    /// # Errors
    /// When the node cannot be registered or has no port to answer on.
    pub async fn add_node_with_agent(&self, name: &str) -> anyhow::Result<FakeNode> {
        let agent = agent::Agent::start(&self.agents).await?;
        FakeNode::start(self.client(), name, Some(agent)).await
    }

    /// Everything stored under `/registry/<prefix>`, one line an object: for failed tests.
    pub async fn dump(&self, prefix: &str) -> String {
        let start: Vec<u8> = format!("/registry/{prefix}").into_bytes();
        let end = store::prefix_end(&start);
        let range = RangeRequest {
            start: start.into(),
            end,
            limit: 0,
            at: None,
        };
        match self.store.range(range).await {
            Ok(found) => found
                .kvs
                .iter()
                .map(|kv| {
                    let key = String::from_utf8_lossy(&kv.key);
                    format!(
                        "{key} @{} {}\n",
                        kv.mod_revision,
                        String::from_utf8_lossy(&kv.value)
                    )
                })
                .collect(),
            Err(error) => format!("unreadable: {error}"),
        }
    }

    /// Ends controllers and scheduler and waits for them.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.api.stop_streams();
    }
}
