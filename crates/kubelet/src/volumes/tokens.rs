//! Service account tokens for pods, asked for once and renewed at 80 % of their life.

use std::collections::HashMap;
use std::sync::Mutex;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::api::PostParams;

use crate::pod;

/// Seconds that a token lives unless asked otherwise.
const DEFAULT_LIFE: i64 = 3600;
/// A token is renewed at this part of its life, in percent.
const RENEW_PERCENT: i32 = 80;
/// A token is renewed when it is so old, however long it lives.
const RENEW_AFTER: SignedDuration = SignedDuration::from_hours(24);
/// After a failed renewal the old token is used so long before the next try.
const RETRY: SignedDuration = SignedDuration::from_secs(30);

/// A token and when to ask for the next one.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token.
    pub token: String,
    /// When it is to be renewed.
    pub refresh_at: Timestamp,
    expires_at: Timestamp,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    uid: String,
    account: String,
    audience: Option<String>,
    seconds: i64,
}

/// Tokens in use.
#[derive(Debug, Default)]
pub struct Tokens {
    by_key: Mutex<HashMap<Key, Token>>,
}

impl Tokens {
    /// A token for `pod` as `source` wants it, from the cache while it is fresh.
    ///
    /// # Errors
    /// The API server's, if there is no token that still holds.
    pub async fn get(
        &self,
        client: &kube::Client,
        pod: &Pod,
        source: &ServiceAccountTokenProjection,
    ) -> Result<Token, String> {
        let key = Key {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            account: pod::spec(pod)
                .service_account_name
                .clone()
                .unwrap_or_else(|| "default".into()),
            audience: source.audience.clone(),
            seconds: source.expiration_seconds.unwrap_or(DEFAULT_LIFE),
        };
        let now = Timestamp::now();
        let known = self.lock().get(&key).cloned();
        if let Some(token) = known.clone().filter(|t| t.refresh_at > now) {
            return Ok(token);
        }
        let fresh = match request(client, pod, &key, now).await {
            Ok(token) => token,
            Err(error) => match known.filter(|t| t.expires_at > now) {
                Some(old) => Token {
                    refresh_at: now + RETRY,
                    ..old
                },
                None => return Err(error.to_string()),
            },
        };
        self.lock().insert(key, fresh.clone());
        Ok(fresh)
    }

    /// Forgets the tokens of a pod that is gone.
    pub fn forget(&self, uid: &str) {
        self.lock().retain(|key, _| key.uid != uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Token>> {
        self.by_key
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn request(
    client: &kube::Client,
    pod: &Pod,
    key: &Key,
    now: Timestamp,
) -> kube::Result<Token> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let api = kube::Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: key.audience.clone().map(|a| vec![a]),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: pod.metadata.name.clone(),
                uid: Some(key.uid.clone()),
            }),
            expiration_seconds: Some(key.seconds),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let answer = api
        .create_token_request(&key.account, &PostParams::default(), &request)
        .await?;
    let status = answer.status.unwrap_or_default();
    let life = SignedDuration::from_secs(key.seconds);
    let expires_at = status.expiration_timestamp.map_or(now + life, |t| t.0);
    let life = expires_at
        .duration_since(now)
        .min(RENEW_AFTER * 100 / RENEW_PERCENT);
    Ok(Token {
        token: status.token.unwrap_or_default(),
        refresh_at: now + life * RENEW_PERCENT / 100,
        expires_at,
    })
}
