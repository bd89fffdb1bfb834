//! The administrator's way to the API server, for commands that ask a running cluster.

use anyhow::Context;
use kube::config::{
    AuthInfo, Context as KubeContext, KubeConfigOptions, Kubeconfig, NamedAuthInfo,
};
use kube::config::{Cluster as KubeCluster, NamedCluster, NamedContext};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::config::Cluster;
use crate::pki::{Pair, Pki, PkiError, Subject};

/// The administrator's certificate.
///
/// # Errors
/// When the cluster's keys cannot be read or written.
pub fn admin_pair(pki: &Pki) -> Result<Pair, PkiError> {
    pki.kept(
        "admin",
        &Subject {
            name: "kubernetes-admin",
            group: Some("system:masters"),
            dns: &[],
            addresses: &[],
        },
    )
}

/// A client that may do everything. Must be called inside a tokio runtime.
///
/// # Errors
/// When the cluster's keys cannot be read.
pub fn admin(cluster: &Cluster) -> anyhow::Result<kube::Client> {
    let pki = Pki::open(&cluster.path("pki"))?;
    let pair = admin_pair(&pki)?;
    let encode = |text: &str| STANDARD.encode(text);
    let kubeconfig = Kubeconfig {
        clusters: vec![NamedCluster {
            name: cluster.name.clone(),
            cluster: Some(KubeCluster {
                server: Some(format!("https://{}", cluster.api_address())),
                certificate_authority_data: Some(encode(pki.ca_certificate())),
                ..KubeCluster::default()
            }),
            ..NamedCluster::default()
        }],
        auth_infos: vec![NamedAuthInfo {
            name: cluster.name.clone(),
            auth_info: Some(AuthInfo {
                client_certificate_data: Some(encode(&pair.certificate)),
                client_key_data: Some(encode(&pair.key).into()),
                ..AuthInfo::default()
            }),
            ..NamedAuthInfo::default()
        }],
        contexts: vec![NamedContext {
            name: cluster.name.clone(),
            context: Some(KubeContext {
                cluster: cluster.name.clone(),
                user: Some(cluster.name.clone()),
                ..KubeContext::default()
            }),
            ..NamedContext::default()
        }],
        current_context: Some(cluster.name.clone()),
        ..Kubeconfig::default()
    };
    let options = KubeConfigOptions::default();
    let config =
        futures::executor::block_on(kube::Config::from_custom_kubeconfig(kubeconfig, &options))?;
    kube::Client::try_from(config).context("connecting to the API server")
}
