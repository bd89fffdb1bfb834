//! Turns a request's credentials into a [`UserInfo`]: client certificates (common name is the
//! user, organizations are the groups) and service-account tokens.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use store::Store;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::UserInfo;
use super::tokens::{BoundObject, Claims, TokenIssuer};

/// Group of every service account.
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// What a request brings to say who it is from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credentials<'a> {
    /// The user of the client certificate, which TLS verified against the client CA.
    pub certificate: Option<&'a Arc<UserInfo>>,
    /// Token of an `Authorization: Bearer` header.
    pub bearer: Option<&'a str>,
}

/// The credentials are not good; the request is answered 401.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Unauthorized")]
pub struct Unauthenticated;

/// Checks credentials.
#[derive(Clone)]
pub struct Authenticator {
    store: Arc<dyn Store>,
    tokens: TokenIssuer,
}

impl Authenticator {
    /// An authenticator that trusts tokens of `tokens` whose subjects are still in `store`.
    pub fn new(store: Arc<dyn Store>, tokens: TokenIssuer) -> Self {
        Self { store, tokens }
    }

    /// Who the request is from; anonymous when it brings nothing.
    ///
    /// # Errors
    /// When it brings a token that is not good.
    pub async fn authenticate(
        &self,
        credentials: Credentials<'_>,
        now: i64,
    ) -> Result<Arc<UserInfo>, Unauthenticated> {
        if let Some(user) = credentials.certificate {
            return Ok(user.clone());
        }
        match credentials.bearer {
            Some(token) => self
                .token_user(token, &[], now)
                .await
                .map(|(user, _)| user)
                .ok_or(Unauthenticated),
            None => Ok(Arc::new(UserInfo::anonymous())),
        }
    }

    /// The service account behind `token` and the token's audiences, for TokenReview; `None`
    /// when the token is not good for `audiences` (empty: the API server).
    pub async fn token_user(
        &self,
        token: &str,
        audiences: &[String],
        now: i64,
    ) -> Option<(Arc<UserInfo>, Vec<String>)> {
        let verified = self.tokens.verify(token, audiences, now)?;
        let claims = &verified.claims;
        let bound = &claims.kubernetes;
        let namespace = &bound.namespace;
        let checks = [
            ("serviceaccounts", Some(&bound.serviceaccount)),
            ("pods", bound.pod.as_ref()),
            ("secrets", bound.secret.as_ref()),
        ];
        for (resource, object) in checks {
            if let Some(object) = object
                && !self
                    .lives(&format!("/registry/{resource}/{namespace}"), object)
                    .await
            {
                return None;
            }
        }
        let user = verified.user(|| service_account_user(claims)).clone();
        Some((user, claims.aud.clone()))
    }

    async fn lives(&self, folder: &str, object: &BoundObject) -> bool {
        let key = Bytes::from(format!("{folder}/{}", object.name));
        let Ok((Some(kv), _)) = self.store.get(&key, None).await else {
            return false;
        };
        // A value encrypted at rest (a Secret) cannot be read here; its presence must do.
        metadata_uid(&kv.value).is_none_or(|uid| uid == object.uid)
    }
}

fn metadata_uid(value: &[u8]) -> Option<String> {
    // Only what is needed is kept: this is read for each request of a token.
    #[derive(Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        uid: Option<String>,
    }
    serde_json::from_slice::<Object>(value).ok()?.metadata.uid
}

/// The user that a client certificate names.
pub fn certificate_user(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups: Vec<&str> = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .collect();
    Some(UserInfo::new(name, &groups))
}

fn service_account_user(claims: &Claims) -> UserInfo {
    let bound = &claims.kubernetes;
    let namespace_group = format!("{SERVICE_ACCOUNTS}:{}", bound.namespace);
    let mut user = UserInfo::new(&claims.sub, &[SERVICE_ACCOUNTS, &namespace_group]);
    user.uid.clone_from(&bound.serviceaccount.uid);
    let mut note = |key: &str, value: &str| {
        let key = format!("authentication.kubernetes.io/{key}");
        user.extra.insert(key, vec![value.to_owned()]);
    };
    note("credential-id", &format!("JTI={}", claims.jti));
    if let Some(pod) = &bound.pod {
        note("pod-name", &pod.name);
        note("pod-uid", &pod.uid);
    }
    if let Some(node) = &bound.node {
        note("node-name", &node.name);
        note("node-uid", &node.uid);
    }
    user
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    #[test]
    fn a_certificates_common_name_and_organizations_are_user_and_groups() {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "jane");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "devs");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let user = certificate_user(certificate.der()).unwrap();
        assert_eq!(user.name, "jane");
        assert!(user.in_group("devs") && user.in_group("system:authenticated"));
        assert_eq!(certificate_user(b"garbage"), None);
    }
}
