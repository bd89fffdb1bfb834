//! Who this server is to other API servers: the front-proxy certificate, and where they learn to trust it.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};

use crate::bootstrap::ensure;
use crate::config::FrontProxy;
use crate::proxy::tls::Identity;
use crate::registry::{Fail, Part, Registry};

/// Common name of the certificate; other servers accept no other one.
const CLIENT: &str = "front-proxy-client";

impl FrontProxy {
    /// A fresh authority and a certificate of it.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn generate() -> Result<Self, rcgen::Error> {
        let named = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params
        };
        let mut authority = named("front-proxy-ca");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let mut client = named(CLIENT);
        client.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = client.signed_by(&key, &issuer)?;
        Ok(Self {
            authority: issuer.pem(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    pub(super) fn identity(&self) -> Identity<'_> {
        Identity {
            certificate: &self.certificate,
            key: &self.key,
        }
    }
}

/// Publishes what other servers need to know to trust this one and its clients.
///
/// # Errors
/// When the ConfigMap cannot be written.
pub(super) async fn publish(registry: &Arc<Registry>) -> Result<(), Fail> {
    let config = registry.config();
    let mut data = json!({});
    if let Some(authority) = &config.client_authority {
        data["client-ca-file"] = authority.as_str().into();
    }
    if let Some(front) = &config.front_proxy {
        data["requestheader-allowed-names"] = json!([CLIENT]).to_string().into();
        data["requestheader-client-ca-file"] = front.authority.as_str().into();
        data["requestheader-extra-headers-prefix"] = json!(["X-Remote-Extra-"]).to_string().into();
        data["requestheader-group-headers"] = json!(["X-Remote-Group"]).to_string().into();
        data["requestheader-uid-headers"] = json!(["X-Remote-Uid"]).to_string().into();
        data["requestheader-username-headers"] = json!(["X-Remote-User"]).to_string().into();
    }
    let name = "extension-apiserver-authentication";
    let map = json!({"kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "kube-system"}, "data": data});
    ensure(registry, map).await?;
    super::change(
        registry,
        ("", "v1", "configmaps"),
        ("kube-system", name),
        Part::Main,
        |current| {
            let mut next = current.clone();
            let all = api::meta::object_at(&mut next, &["data"]);
            if let Value::Object(data) = &data {
                all.extend(data.clone());
            }
            Ok(next)
        },
    )
    .await
}
