//! Service-account tokens: signed ES256 JWTs bound to an audience, a lifetime and, if asked, a
//! pod, node or secret, with upstream's claims.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::UserInfo;

/// Shortest lifetime that may be asked for, in seconds (upstream: 10 minutes).
pub const MIN_LIFETIME_SECONDS: i64 = 600;
/// Longest lifetime that is granted, in seconds.
pub const MAX_LIFETIME_SECONDS: i64 = 365 * 24 * 3600;
/// Lifetime when none is asked for, in seconds.
pub const DEFAULT_LIFETIME_SECONDS: i64 = 3600;

/// Lifetime of a token in a Secret, in seconds: a hundred years, for it ends with the Secret.
const SECRET_LIFETIME_SECONDS: i64 = 100 * 365 * 24 * 3600;

/// Most tokens whose signature is remembered as good; some 2 KB each.
const REMEMBERED_TOKENS: usize = 8192;

/// Why a key could not be used.
#[derive(Debug, thiserror::Error)]
#[error("service account signing key: {0}")]
pub struct KeyError(String);

/// An object a token stands and falls with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundObject {
    /// Object name.
    pub name: String,
    /// Object uid; a later object of the same name does not revive the token.
    pub uid: String,
}

/// What a token is to say.
#[derive(Clone, Debug, Default)]
pub struct TokenRequest {
    /// Namespace of the service account.
    pub namespace: String,
    /// Name of the service account.
    pub name: String,
    /// Uid of the service account.
    pub uid: String,
    /// Audiences; empty means the API server itself.
    pub audiences: Vec<String>,
    /// Lifetime in seconds.
    pub lifetime_seconds: i64,
    /// Pod the token is bound to.
    pub pod: Option<BoundObject>,
    /// Secret the token is bound to.
    pub secret: Option<BoundObject>,
    /// Node the token is bound to, or the node of its pod.
    pub node: Option<BoundObject>,
}

/// The claims of a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    /// Audiences.
    pub aud: Vec<String>,
    /// Expiry, seconds since the epoch.
    pub exp: i64,
    /// Issue time, seconds since the epoch.
    pub iat: i64,
    /// Issuer URL.
    pub iss: String,
    /// Unique id of the token.
    pub jti: String,
    /// Kubernetes' own claims.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: KubernetesClaims,
    /// Not valid before, seconds since the epoch.
    pub nbf: i64,
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub sub: String,
}

impl Claims {
    /// Whether it is the token that its Secret holds, not one that is merely bound to a Secret.
    pub fn is_held(&self) -> bool {
        self.kubernetes.secret.is_some() && self.exp - self.iat > MAX_LIFETIME_SECONDS
    }
}

/// The `kubernetes.io` claim.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KubernetesClaims {
    /// Namespace of the service account.
    pub namespace: String,
    /// Node the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<BoundObject>,
    /// Pod the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<BoundObject>,
    /// Secret the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<BoundObject>,
    /// The service account itself.
    pub serviceaccount: BoundObject,
}

/// Signs and verifies service-account tokens.
#[derive(Clone)]
pub struct TokenIssuer {
    inner: Arc<Inner>,
}

struct Inner {
    issuer: String,
    key_id: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    jwk: Value,
    remembered: Remembered,
}

/// A token whose signature and issuer are good.
pub struct Verified {
    /// What it says.
    pub claims: Claims,
    /// Whom it makes of its bearer.
    user: OnceLock<Arc<UserInfo>>,
}

impl Verified {
    /// Whom it makes of its bearer, as `make` says the first time.
    pub fn user(&self, make: impl FnOnce() -> UserInfo) -> &Arc<UserInfo> {
        self.user.get_or_init(|| Arc::new(make()))
    }
}

/// Digest of a token.
type TokenDigest = [u8; 32];

/// Tokens whose signature and issuer were found good: checking them again would cost more than most
/// requests do. What passes with time (expiry, deleted subjects) is never remembered.
#[derive(Default)]
struct Remembered {
    tokens: RwLock<HashMap<TokenDigest, Arc<Verified>>>,
}

impl Remembered {
    fn get(&self, token: &TokenDigest) -> Option<Arc<Verified>> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        tokens.get(token).cloned()
    }

    fn insert(&self, token: TokenDigest, found: Arc<Verified>, now: i64) {
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= REMEMBERED_TOKENS {
            tokens.retain(|_, token| now < token.claims.exp);
        }
        if tokens.len() >= REMEMBERED_TOKENS {
            tokens.clear();
        }
        tokens.insert(token, found);
    }
}

impl TokenIssuer {
    /// An issuer that signs with the P-256 key in `pem` (PKCS #8).
    ///
    /// # Errors
    /// When the key is no such key.
    pub fn new(issuer: &str, pem: &str) -> Result<Self, KeyError> {
        let pair = KeyPair::from_pem(pem).map_err(|e| KeyError(e.to_string()))?;
        let signing =
            EncodingKey::from_ec_pem(pem.as_bytes()).map_err(|e| KeyError(e.to_string()))?;
        // An uncompressed P-256 point: 0x04, x, y.
        let point = pair.der_bytes();
        let (Some(x), Some(y)) = (point.get(1..33), point.get(33..65)) else {
            return Err(KeyError("not a P-256 key".to_owned()));
        };
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(pair.subject_public_key_info()));
        let verifying =
            DecodingKey::from_ec_components(&x, &y).map_err(|e| KeyError(e.to_string()))?;
        let jwk = json!({
            "use": "sig", "kty": "EC", "kid": key_id, "crv": "P-256", "alg": "ES256",
            "x": x, "y": y,
        });
        Ok(Self {
            inner: Arc::new(Inner {
                issuer: issuer.to_owned(),
                key_id,
                signing,
                verifying,
                jwk,
                remembered: Remembered::default(),
            }),
        })
    }

    /// The issuer URL, also the audience of tokens for the API server.
    pub fn issuer(&self) -> &str {
        &self.inner.issuer
    }

    /// Signs a token at `now` (seconds since the epoch); gives it and its expiry.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue(
        &self,
        request: TokenRequest,
        now: i64,
        id: String,
    ) -> Result<(String, i64), KeyError> {
        let lifetime = request
            .lifetime_seconds
            .clamp(MIN_LIFETIME_SECONDS, MAX_LIFETIME_SECONDS);
        self.sign(request, now, lifetime, id)
    }

    /// Signs the token that a Secret holds: it is good as long as the Secret and the account are.
    ///
    /// # Errors
    /// When the request names no Secret, or when signing fails.
    pub fn issue_for_secret(&self, request: TokenRequest, now: i64) -> Result<String, KeyError> {
        if request.secret.is_none() {
            return Err(KeyError("a lasting token needs a secret".to_owned()));
        }
        let id = crate::registry::new_uid();
        let signed = self.sign(request, now, SECRET_LIFETIME_SECONDS, id)?;
        Ok(signed.0)
    }

    fn sign(
        &self,
        request: TokenRequest,
        now: i64,
        lifetime: i64,
        id: String,
    ) -> Result<(String, i64), KeyError> {
        let audiences = if request.audiences.is_empty() {
            vec![self.inner.issuer.clone()]
        } else {
            request.audiences
        };
        let claims = Claims {
            aud: audiences,
            exp: now + lifetime,
            iat: now,
            iss: self.inner.issuer.clone(),
            jti: id,
            nbf: now,
            sub: format!(
                "system:serviceaccount:{}:{}",
                request.namespace, request.name
            ),
            kubernetes: KubernetesClaims {
                namespace: request.namespace,
                node: request.node,
                pod: request.pod,
                secret: request.secret,
                serviceaccount: BoundObject {
                    name: request.name,
                    uid: request.uid,
                },
            },
        };
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.inner.key_id.clone());
        let token = jsonwebtoken::encode(&header, &claims, &self.inner.signing)
            .map_err(|e| KeyError(e.to_string()))?;
        Ok((token, claims.exp))
    }

    /// The claims of `token` when its signature, issuer and times are good and it is for one of
    /// `audiences` (empty: for the API server); `None` when it is none of ours.
    pub fn verify(&self, token: &str, audiences: &[String], now: i64) -> Option<Arc<Verified>> {
        let digest: TokenDigest = Sha256::digest(token).into();
        let verified = match self.inner.remembered.get(&digest) {
            Some(verified) => verified,
            None => {
                let verified = Arc::new(Verified {
                    claims: self.signed(token)?,
                    user: OnceLock::new(),
                });
                self.inner.remembered.insert(digest, verified.clone(), now);
                verified
            }
        };
        let claims = &verified.claims;
        let for_us = if audiences.is_empty() {
            claims.aud.contains(&self.inner.issuer)
        } else {
            claims.aud.iter().any(|a| audiences.contains(a))
        };
        let good = for_us && claims.nbf <= now && now < claims.exp;
        good.then_some(verified)
    }

    /// The claims of a token that we signed, whenever that was.
    fn signed(&self, token: &str) -> Option<Claims> {
        let mut checks = Validation::new(Algorithm::ES256);
        checks.validate_exp = false;
        checks.validate_aud = false;
        checks.set_issuer(&[&self.inner.issuer]);
        let token = jsonwebtoken::decode::<Claims>(token, &self.inner.verifying, &checks);
        Some(token.ok()?.claims)
    }

    /// The JSON Web Key Set document.
    pub fn jwks(&self) -> Value {
        json!({"keys": [self.inner.jwk]})
    }

    /// The OpenID discovery document; `jwks_uri` is where [`Self::jwks`] is served.
    pub fn openid_configuration(&self, jwks_uri: &str) -> Value {
        json!({
            "issuer": self.inner.issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

    fn issuer() -> TokenIssuer {
        let pem = KeyPair::generate().unwrap().serialize_pem();
        TokenIssuer::new(ISSUER, &pem).unwrap()
    }

    fn request() -> TokenRequest {
        TokenRequest {
            namespace: "default".into(),
            name: "app".into(),
            uid: "u1".into(),
            lifetime_seconds: 3600,
            ..TokenRequest::default()
        }
    }

    #[test]
    fn a_token_in_a_secret_lasts_and_names_it() {
        let issuer = issuer();
        assert!(issuer.issue_for_secret(request(), 1000).is_err());
        let secret = BoundObject {
            name: "s".into(),
            uid: "u2".into(),
        };
        let of = TokenRequest {
            secret: Some(secret.clone()),
            ..request()
        };
        let token = issuer.issue_for_secret(of, 1000).unwrap();
        let later = 1000 + 2 * MAX_LIFETIME_SECONDS;
        let claims = &issuer.verify(&token, &[], later).unwrap().claims;
        assert_eq!(claims.kubernetes.secret, Some(secret.clone()));
        assert!(claims.is_held());
        let bound = TokenRequest {
            secret: Some(secret),
            lifetime_seconds: MAX_LIFETIME_SECONDS,
            ..request()
        };
        let (token, _) = issuer.issue(bound, 1000, "id".into()).unwrap();
        assert!(!issuer.verify(&token, &[], 1000).unwrap().claims.is_held());
    }

    #[test]
    fn a_token_is_good_until_it_expires() {
        let issuer = issuer();
        let (token, expiry) = issuer.issue(request(), 1_000, "id".into()).unwrap();
        assert_eq!(expiry, 4_600);
        let claims = &issuer.verify(&token, &[], 4_599).unwrap().claims;
        assert_eq!(claims.sub, "system:serviceaccount:default:app");
        assert_eq!(claims.kubernetes.serviceaccount.uid, "u1");
        assert!(issuer.verify(&token, &[], 4_600).is_none());
        assert!(issuer.verify(&token, &[], 999).is_none());
    }

    #[test]
    fn a_token_for_another_audience_or_from_another_key_is_refused() {
        let issuer = issuer();
        let vault = TokenRequest {
            audiences: vec!["vault".into()],
            ..request()
        };
        let (token, _) = issuer.issue(vault, 0, "id".into()).unwrap();
        assert!(issuer.verify(&token, &[], 1).is_none());
        assert!(issuer.verify(&token, &["vault".into()], 1).is_some());
        let (foreign, _) = self::issuer().issue(request(), 0, "id".into()).unwrap();
        assert!(issuer.verify(&foreign, &[], 1).is_none());
        assert!(issuer.verify("not.a.token", &[], 1).is_none());
    }

    #[test]
    fn the_remembered_are_bounded_and_the_living_stay() {
        let remembered = Remembered::default();
        let (token, _) = issuer().issue(request(), 0, "id".into()).unwrap();
        let payload = URL_SAFE_NO_PAD
            .decode(token.split('.').nth(1).unwrap())
            .unwrap();
        let token = |exp: i64| {
            Arc::new(Verified {
                claims: Claims {
                    exp,
                    ..serde_json::from_slice(&payload).unwrap()
                },
                user: OnceLock::new(),
            })
        };
        let digest = |n: usize| Sha256::digest(n.to_be_bytes()).into();
        remembered.insert(digest(0), token(100), 1);
        for n in 1..=REMEMBERED_TOKENS {
            remembered.insert(digest(n), token(10), 20);
        }
        assert!(remembered.get(&digest(0)).is_some());
        assert!(remembered.get(&digest(1)).is_none());
        for n in 0..=REMEMBERED_TOKENS * 2 {
            remembered.insert(digest(n), token(100), 20);
        }
        assert!(remembered.tokens.read().unwrap().len() <= REMEMBERED_TOKENS);
    }

    #[test]
    fn lifetimes_are_clamped_to_the_allowed_range() {
        let issuer = issuer();
        let short = TokenRequest {
            lifetime_seconds: 1,
            ..request()
        };
        assert_eq!(
            issuer.issue(short, 0, "id".into()).unwrap().1,
            MIN_LIFETIME_SECONDS
        );
    }
}
