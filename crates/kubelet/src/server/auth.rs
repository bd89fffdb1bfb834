//! Who calls the node API: decided by the client certificate alone.

use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::Tls;

/// Common name of the API server's certificate for node agents.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
/// Group of administrators.
const ADMINISTRATORS: &str = "system:masters";

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// No certificate.
    Nobody,
    /// A certificate of the cluster, of somebody who has no business here.
    Other(String),
    /// The API server or an administrator.
    Trusted,
}

/// TLS for the node API. Certificates are asked for, and checked if given.
///
/// # Errors
/// When a certificate or the key cannot be used.
pub fn server_config(tls: Tls) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in tls.client_ca {
        roots.add(authority)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(tls.chain, tls.key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Who holds the (already verified) certificate.
pub fn caller(chain: Option<&[CertificateDer<'_>]>) -> Caller {
    let Some(first) = chain.and_then(<[_]>::first) else {
        return Caller::Nobody;
    };
    let Ok((_, certificate)) = X509Certificate::from_der(first) else {
        return Caller::Nobody;
    };
    let subject = certificate.subject();
    let name = subject
        .iter_common_name()
        .find_map(|n| n.as_str().ok())
        .unwrap_or_default();
    let admin = subject
        .iter_organization()
        .any(|o| o.as_str() == Ok(ADMINISTRATORS));
    if admin || name == API_SERVER {
        Caller::Trusted
    } else {
        Caller::Other(name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn certificate(name: &str, group: &str) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
        params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .der()
            .clone()
    }

    #[test]
    fn callers() {
        assert_eq!(caller(None), Caller::Nobody);
        let cases = [
            ("kube-apiserver-kubelet-client", "x", Caller::Trusted),
            ("admin", "system:masters", Caller::Trusted),
            (
                "system:node:a",
                "system:nodes",
                Caller::Other("system:node:a".into()),
            ),
        ];
        for (name, group, want) in cases {
            assert_eq!(caller(Some(&[certificate(name, group)])), want, "{name}");
        }
    }
}
