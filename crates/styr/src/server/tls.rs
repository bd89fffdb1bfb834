//! TLS of the cluster: who serves with what, and whom each side trusts.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::config::{CLUSTER_DOMAIN, Cluster};
use crate::pki::{Pair, Pki, Subject};

/// What the API server serves with: any client may connect, and one with a certificate of the
/// cluster's authority is known by it.
///
/// # Errors
/// When a certificate cannot be signed.
pub fn api_server(pki: &Pki, cluster: &Cluster) -> anyhow::Result<Arc<ServerConfig>> {
    let services = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let mut dns: Vec<String> = services.iter().map(|s| (*s).to_owned()).collect();
    dns.push(format!("kubernetes.default.svc.{CLUSTER_DOMAIN}"));
    dns.push("localhost".to_owned());
    dns.push(cluster.choices.node_name.clone());
    let addresses: [IpAddr; 4] = [
        [127, 0, 0, 1].into(),
        std::net::Ipv6Addr::LOCALHOST.into(),
        cluster.node_ip().into(),
        cluster.kubernetes_ip().into(),
    ];
    let pair = pki.sign(&Subject {
        name: "kube-apiserver",
        group: None,
        dns: &dns,
        addresses: &addresses,
    })?;
    let clients = WebPkiClientVerifier::builder(Arc::new(roots(pki)?))
        .allow_unauthenticated()
        .build()
        .context("trusting the cluster's authority")?;
    let (chain, key) = parse(&pair)?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What the API server calls nodes with.
///
/// # Errors
/// When a certificate cannot be signed.
pub fn kubelet_client(pki: &Pki) -> anyhow::Result<Arc<ClientConfig>> {
    let pair = pki.sign(&Subject {
        name: "kube-apiserver-kubelet-client",
        group: Some("system:masters"),
        dns: &[],
        addresses: &[],
    })?;
    let (chain, key) = parse(&pair)?;
    let config = ClientConfig::builder()
        .with_root_certificates(roots(pki)?)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// What the node serves its API with.
///
/// # Errors
/// When a certificate cannot be signed.
pub fn kubelet_server(pki: &Pki, cluster: &Cluster) -> anyhow::Result<kubelet::config::Tls> {
    let node = &cluster.choices.node_name;
    let pair = pki.sign(&Subject {
        name: &format!("system:node:{node}"),
        group: Some("system:nodes"),
        dns: std::slice::from_ref(node),
        addresses: &[cluster.node_ip().into()],
    })?;
    let (chain, key) = parse(&pair)?;
    Ok(kubelet::config::Tls {
        chain,
        key,
        client_ca: vec![authority(pki)?],
    })
}

fn authority(pki: &Pki) -> anyhow::Result<CertificateDer<'static>> {
    Ok(CertificateDer::from_pem_slice(
        pki.ca_certificate().as_bytes(),
    )?)
}

fn roots(pki: &Pki) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(authority(pki)?)?;
    Ok(roots)
}

fn parse(pair: &Pair) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?))
}
