//! Turns a request's credentials into a [`UserInfo`]: client certificates (common name is the
//! user, organizations are the groups), service-account tokens and bootstrap tokens.

use std::sync::Arc;

use api::time;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use store::Store;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::UserInfo;
use super::bootstrap_token::{self, BootstrapToken};
use super::secret_token::{Holder, NOT_HELD, Uses};
use super::tokens::{BoundObject, Claims, TokenIssuer};
use crate::registry::Transformer;

/// How long tokens of an object that is being deleted stay good after its grace period, in seconds.
const DELETION_LEEWAY_SECONDS: i64 = 60;
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
    transformer: Transformer,
    uses: Uses,
}

impl Authenticator {
    /// An authenticator that trusts tokens of `tokens` whose subjects are still in `store`, and those that Secrets in
    /// it allow, as `transformer` opens them; notes in `uses` which of those it saw.
    pub fn new(
        store: Arc<dyn Store>,
        tokens: TokenIssuer,
        transformer: Transformer,
        uses: Uses,
    ) -> Self {
        Self {
            store,
            tokens,
            transformer,
            uses,
        }
    }

    /// Who the request is from; anonymous when it brings nothing.
    ///
    /// # Errors
    /// When it brings a token that is not good.
    pub async fn authenticate(
        &self,
        credentials: Credentials<'_>,
        now: Timestamp,
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

    /// Who is behind `token` and the token's audiences, for TokenReview; `None` when the token is
    /// not good for `audiences` (empty: the API server).
    pub async fn token_user(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Option<(Arc<UserInfo>, Vec<String>)> {
        if let Some(token) = BootstrapToken::parse(token) {
            // Such a token is for the API server alone, whatever it is asked about.
            let ours = self.tokens.issuer().to_owned();
            let for_us = audiences.is_empty() || audiences.contains(&ours);
            let user = self.bootstrapper(token, now).await.filter(|_| for_us);
            return user.map(|user| (Arc::new(user), vec![ours]));
        }
        let verified = self.tokens.verify(token, audiences, now.as_second())?;
        let claims = &verified.claims;
        let bound = &claims.kubernetes;
        // A pod's token names its node, too, but does not fall with it.
        let node = bound.node.as_ref().filter(|_| bound.pod.is_none());
        let namespace = Some(bound.namespace.as_str());
        let checks = [
            ("serviceaccounts", namespace, Some(&bound.serviceaccount)),
            ("pods", namespace, bound.pod.as_ref()),
            ("secrets", namespace, bound.secret.as_ref()),
            ("nodes", None, node),
        ];
        for (folder, namespace, object) in checks {
            if let Some(object) = object
                && !self.lives(folder, namespace, object, now).await
            {
                return None;
            }
        }
        if claims.is_held() && !self.is_held(claims, token, now).await {
            return None;
        }
        let user = verified.user(|| service_account_user(claims)).clone();
        Some((user, claims.aud.clone()))
    }

    async fn bootstrapper(&self, token: BootstrapToken<'_>, now: Timestamp) -> Option<UserInfo> {
        let name = token.secret_name();
        let namespace = Some(bootstrap_token::NAMESPACE);
        let secret = self.value("secrets", namespace, &name).await?;
        let secret = serde_json::from_slice(&secret).ok()?;
        match token.user(&secret, now) {
            Ok(user) => Some(user),
            Err(why) => {
                tracing::info!("bootstrap secret {name} matching bearer token {why}");
                None
            }
        }
    }

    /// Whether the Secret of a token holds it, and lets it be used.
    async fn is_held(&self, claims: &Claims, token: &str, now: Timestamp) -> bool {
        let namespace = claims.kubernetes.namespace.as_str();
        let Some(BoundObject { name, uid }) = &claims.kubernetes.secret else {
            return false;
        };
        let secret = self.value("secrets", Some(namespace), name).await;
        let Some(holder) = secret.and_then(|s| serde_json::from_slice::<Holder>(&s).ok()) else {
            return false;
        };
        let allowed = holder.allows(token);
        if let Err(why) = allowed {
            tracing::info!("secret {namespace}/{name} of a token {why}");
        }
        if allowed != Err(NOT_HELD) {
            self.uses.note(&holder, namespace, name, uid, now);
        }
        allowed.is_ok()
    }

    /// Whether an object is still the one that a token was bound to.
    async fn lives(
        &self,
        folder: &str,
        namespace: Option<&str>,
        bound: &BoundObject,
        now: Timestamp,
    ) -> bool {
        let Some(value) = self.value(folder, namespace, &bound.name).await else {
            return false;
        };
        let Ok(Object { metadata }) = serde_json::from_slice::<Object>(&value) else {
            return false;
        };
        let deleted = metadata.deletion_timestamp.as_deref().and_then(time::parse);
        let gone =
            deleted.is_some_and(|at| at.as_second() + DELETION_LEEWAY_SECONDS < now.as_second());
        metadata.uid == bound.uid && !gone
    }

    async fn value(&self, folder: &str, namespace: Option<&str>, name: &str) -> Option<Bytes> {
        let namespace = namespace.map(|n| format!("{n}/")).unwrap_or_default();
        let key = Bytes::from(format!("/registry/{folder}/{namespace}{name}"));
        let (found, _) = self.store.get(&key, None).await.ok()?;
        self.transformer.open(&key, found?.value).ok()
    }
}

/// What is needed of the object a token is bound to; no more is kept, for this is read for each request of a token.
#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    uid: String,
    #[serde(default)]
    deletion_timestamp: Option<String>,
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
