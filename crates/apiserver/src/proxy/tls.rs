//! TLS towards pods, services and other API servers.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// Authorities that this machine trusts.
const MACHINE_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why there can be no TLS.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key in PEM cannot be read.
    #[error("unable to load root certificates: {0}")]
    Pem(String),
    /// The pieces do not fit.
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
    /// No root certificate is usable.
    #[error("unable to load root certificates: unable to parse bytes as PEM block")]
    NoRoots,
}

/// Whom a server's certificate must come from.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// Anybody.
    Anyone,
    /// One of these authorities, in PEM; the machine's own if there are none.
    Roots(&'a [u8]),
}

/// A certificate chain and its key, both in PEM.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// The chain.
    pub certificate: &'a str,
    /// The key.
    pub key: &'a str,
}

/// Accepts every certificate, but checks that the server has its key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Certificates of a bundle.
///
/// # Errors
/// When one of them is damaged.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| TlsError::Pem(e.to_string()))
}

/// A client's TLS.
///
/// # Errors
/// When a certificate or key cannot be used.
pub fn client(
    trust: Trust<'_>,
    identity: Option<Identity<'_>>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Anyone => Arc::new(Anyone(provider.clone())),
        Trust::Roots(pem) => {
            let machine;
            let pem = if pem.is_empty() {
                machine = std::fs::read(MACHINE_ROOTS).unwrap_or_default();
                &machine
            } else {
                pem
            };
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates(pem)?);
            if roots.is_empty() {
                return Err(TlsError::NoRoots);
            }
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|e| TlsError::Pem(e.to_string()))?
        }
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())
                .map_err(|e| TlsError::Pem(e.to_string()))?;
            builder.with_client_auth_cert(certificates(identity.certificate.as_bytes())?, key)?
        }
    };
    Ok(Arc::new(config))
}
