//! The API of a test cluster on a TLS port of loopback, for clients outside of the process.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use apiserver::auth::MASTERS;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::Cluster;

/// A served API; the port closes when this is dropped.
pub struct Served {
    folder: TempDir,
    port: u16,
    shutdown: CancellationToken,
    _server: AbortOnDropHandle<()>,
}

impl Served {
    /// A kubeconfig of one who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// A folder of the test's own, which goes with this.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where it is served.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Cluster {
    /// Serves the API over TLS.
    ///
    /// # Errors
    /// When no port or file can be had.
    pub async fn serve(&self) -> anyhow::Result<Served> {
        // Another test may have been first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::Builder::new().prefix("styr-served-").tempdir()?;
        let tls = certificates(folder.path())?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let shutdown = CancellationToken::new();
        let (api, stop) = (self.api.clone(), shutdown.clone());
        let server = tokio::spawn(async move { api.serve(listener, tls, stop).await });
        let served = Served {
            folder,
            port,
            shutdown,
            _server: AbortOnDropHandle::new(server),
        };
        let text = kubeconfig(&served.url());
        std::fs::write(served.kubeconfig(), text).context("the kubeconfig")?;
        Ok(served)
    }
}

/// Makes an authority, the server's certificate, and the files of a client.
fn certificates(folder: &Path) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "ca");
    let ca = params.self_signed(&key)?;
    let issuer = Issuer::new(params, key);
    let leaf = |name: &str, group: &str| -> anyhow::Result<_> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        let subject = &mut params.distinguished_name;
        subject.push(DnType::CommonName, name);
        subject.push(DnType::OrganizationName, group);
        Ok((params.signed_by(&key, &issuer)?, key))
    };
    let (client, client_key) = leaf("test-admin", MASTERS)?;
    std::fs::write(folder.join("ca.crt"), ca.pem())?;
    std::fs::write(folder.join("client.crt"), client.pem())?;
    std::fs::write(folder.join("client.key"), client_key.serialize_pem())?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone())?;
    let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()?;
    let (server, server_key) = leaf("kube-apiserver", "")?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
    let mut config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Paths in it are beside it.
fn kubeconfig(url: &str) -> String {
    format!(
        "apiVersion: v1
kind: Config
current-context: test
clusters:
- name: test
  cluster: {{server: \"{url}\", certificate-authority: ca.crt}}
users:
- name: test
  user: {{client-certificate: client.crt, client-key: client.key}}
contexts:
- name: test
  context: {{cluster: test, user: test, namespace: default}}
"
    )
}
