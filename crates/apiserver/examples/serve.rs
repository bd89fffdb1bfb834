//! An API server over a store in memory, for trying clients: `serve PORT KUBECONFIG`.
//!
//! Writes a kubeconfig of a cluster administrator and serves on loopback until interrupted.

use std::sync::Arc;

use apiserver::auth::TokenIssuer;
use apiserver::{ApiServer, Config};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_util::sync::CancellationToken;

type Error = Box<dyn std::error::Error + Send + Sync>;

struct Pki {
    ca: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn ca() -> Result<Pki, Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "ca");
    let ca = params.self_signed(&key)?.der().clone();
    Ok(Pki {
        ca,
        issuer: Issuer::new(params, key),
    })
}

fn leaf(
    pki: &Pki,
    name: &str,
    organization: &str,
    sans: &[&str],
) -> Result<(CertificateDer<'static>, KeyPair), Error> {
    let key = KeyPair::generate()?;
    let mut params =
        CertificateParams::new(sans.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params
        .distinguished_name
        .push(DnType::OrganizationName, organization);
    Ok((params.signed_by(&key, &pki.issuer)?.der().clone(), key))
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

fn b64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let port: u16 = args.next().ok_or("usage: serve PORT KUBECONFIG")?.parse()?;
    let kubeconfig = args.next().ok_or("usage: serve PORT KUBECONFIG")?;
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();

    let pki = ca()?;
    let (server_cert, server_key) =
        leaf(&pki, "kube-apiserver", "styr", &["127.0.0.1", "localhost"])?;
    let (admin_cert, admin_key) = leaf(&pki, "admin", "system:masters", &[])?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pki.ca.clone())?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
    let mut tls = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server_cert], key)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

    let tokens = TokenIssuer::new(
        "https://kubernetes.default.svc.cluster.local",
        &KeyPair::generate()?.serialize_pem(),
    )?;
    let mut config = Config::new(tokens);
    config.encryption_key = Some([7; 32]);
    config.advertise_port = port;
    let started = std::time::Instant::now();
    let server = ApiServer::new(config, store::Embedded::in_memory()).await?;
    println!("started in {:?}", started.elapsed());

    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\nclusters:\n- name: test\n  cluster:\n    server: https://127.0.0.1:{port}\n    certificate-authority-data: {}\ncontexts:\n- name: test\n  context: {{cluster: test, user: admin}}\nusers:\n- name: admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        b64(&pem("CERTIFICATE", &pki.ca)),
        b64(&pem("CERTIFICATE", &admin_cert)),
        b64(&admin_key.serialize_pem()),
    );
    std::fs::write(&kubeconfig, text)?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    server.serve(listener, Arc::new(tls), shutdown).await;
    Ok(())
}
