//! Starts the store, the API server, the controllers and the scheduler.

use std::net::SocketAddrV4;
use std::sync::Arc;

use anyhow::Context;
use apiserver::ApiServer;
use apiserver::auth::{BoundObject, MASTERS, TokenIssuer, TokenRequest, UserInfo};
use client::{Caches, Clock};
use controllers::{SignToken, certificates::Authority, volumes::MachineFolders};
use store::Embedded;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::supervise::Supervisor;
use super::tls;
use crate::config::{CLUSTER_DOMAIN, Cluster};
use crate::pki::{Pki, PkiError, Subject};
use crate::scheduling;

/// The part of the cluster every other part talks to.
pub struct ControlPlane {
    /// The API server.
    pub api: Arc<ApiServer>,
    /// Its store.
    pub store: Arc<Embedded>,
    tokens: TokenIssuer,
}

/// Who the API server is to others that it passes requests on to.
fn front_proxy(pki: &Pki) -> Result<apiserver::FrontProxy, PkiError> {
    let front = pki.front_proxy()?;
    let client = front.kept(
        "front-proxy-client",
        &Subject {
            name: "front-proxy-client",
            group: None,
            dns: &[],
            addresses: &[],
        },
    )?;
    Ok(apiserver::FrontProxy {
        authority: front.ca_certificate().to_owned(),
        certificate: client.certificate,
        key: client.key,
    })
}

impl ControlPlane {
    /// Opens the store and starts the API server over it.
    ///
    /// # Errors
    /// When the store is damaged or locked, or a key is.
    pub async fn open(cluster: &Cluster, pki: &Pki) -> anyhow::Result<Self> {
        let dir = cluster.path("store");
        let store = Embedded::open(&dir, store::Options::default())
            .await
            .with_context(|| format!("opening the store in {}", dir.display()))?;
        let issuer = format!("https://kubernetes.default.svc.{CLUSTER_DOMAIN}");
        let tokens = TokenIssuer::new(&issuer, &pki.kept_key("service-account")?)?;
        let mut config = apiserver::Config::new(tokens.clone());
        config.service_cidr = cluster.choices.service_cidr.into();
        config.advertise_address = cluster.node_ip().into();
        config.advertise_port = cluster.api_address_for_pods().port();
        config.encryption_key = Some(pki.encryption_key()?);
        config.kubelet_tls = Some(tls::kubelet_client(pki)?);
        config.client_authority = Some(pki.ca_certificate().to_owned());
        config.front_proxy = Some(front_proxy(pki)?);
        let api = ApiServer::new(config, store.clone())
            .await
            .context("starting the API server")?;
        Ok(Self { api, store, tokens })
    }

    /// Serves the API on this machine and to pods until `shutdown`.
    ///
    /// # Errors
    /// When an address is taken.
    pub async fn serve(
        &self,
        cluster: &Cluster,
        pki: &Pki,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let tls = tls::api_server(pki, cluster)?;
        for address in [cluster.api_address(), cluster.api_address_for_pods()] {
            let listener = bind(address).await?;
            let (api, tls, shutdown) = (self.api.clone(), tls.clone(), shutdown.clone());
            tokio::spawn(async move { api.serve(listener, tls, shutdown).await });
        }
        Ok(())
    }

    /// A client that acts as `user`.
    pub fn client(&self, user: &str, groups: &[&str]) -> client::Client {
        client::in_process(self.api.in_process(UserInfo::new(user, groups)))
    }

    /// Starts the controllers, the scheduler and the simulation of nodes. They share one set of
    /// caches: a large cluster is held, and followed, once.
    ///
    /// # Errors
    /// When the scheduler's configuration file makes no sense.
    pub fn start_deciders(
        &self,
        cluster: &Cluster,
        pki: &Pki,
        supervisor: &mut Supervisor,
    ) -> anyhow::Result<()> {
        let caches = Caches::new(self.client("system:kube-controller-manager", &[MASTERS]));
        let config = controllers::Config {
            cluster_cidr: Some(cluster.choices.pod_cidr.into()),
            node_cidr_prefix: cluster.choices.node_cidr.prefix_len(),
            root_ca: pki.ca_certificate().to_owned(),
            authority: authority(pki),
            sign_token: Some(signs(self.tokens.clone())),
            volumes: Some(Arc::new(MachineFolders::new(cluster.path("volumes")))),
            caches: Some(caches.clone()),
            ..controllers::Config::default()
        };
        let client = self.client("system:kube-controller-manager", &[MASTERS]);
        supervisor.run("controllers", move |shutdown| {
            let (client, config) = (client.clone(), config.clone());
            async move {
                controllers::run(client, config, shutdown).await;
                Ok(())
            }
        });
        let client = self.client("system:kube-scheduler", &[]);
        let config = scheduler::Config {
            configuration: scheduling::configuration(cluster)?,
            caches: Some(caches.clone()),
            ..scheduler::Config::default()
        };
        supervisor.run("scheduler", move |shutdown| {
            let (client, config) = (client.clone(), config.clone());
            async move {
                scheduler::run(client, config, shutdown).await;
                Ok(())
            }
        });
        let client = self.client("system:simulation", &[MASTERS]);
        let config = sim::Config {
            version: apiserver::GIT_VERSION.to_owned(),
            clock: Clock::system(),
            caches: Some(caches),
        };
        supervisor.run("simulated nodes", move |shutdown| {
            let (client, config) = (client.clone(), config.clone());
            async move {
                sim::run(client, config, shutdown).await;
                Ok(())
            }
        });
        Ok(())
    }
}

/// Signs what is asked for through the API with the cluster's own authority.
fn authority(pki: &Pki) -> Option<Arc<Authority>> {
    let (certificate, key) = pki.authority();
    match Authority::new(certificate, key) {
        Ok(authority) => Some(Arc::new(authority)),
        Err(error) => {
            tracing::error!(%error, "no certificates will be signed");
            None
        }
    }
}

/// Signs the tokens of Secrets.
fn signs(tokens: TokenIssuer) -> SignToken {
    Arc::new(move |of| {
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
        let now = client::Clock::system().now().as_second();
        let signed = tokens.issue_for_secret(request, now);
        signed.map_err(|e| e.to_string())
    })
}

async fn bind(address: SocketAddrV4) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))
}
