//! Bootstrap tokens: deletes those that have expired, and signs what newcomers read before they
//! can trust anybody with each of the others.

mod jws;

use std::{collections::BTreeMap, time::Duration};

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use serde_json::{Value, json};

use crate::{Context, Controller};

/// Deletes expired tokens.
pub const CLEANER: Controller = Controller {
    name: "token-cleaner",
    run: run_cleaner,
};
/// Signs the cluster's description.
pub const SIGNER: Controller = Controller {
    name: "bootstrap-signer",
    run: run_signer,
};

const TYPE: &str = "bootstrap.kubernetes.io/token";
const SECRETS: &str = "kube-system";
const PREFIX: &str = "bootstrap-token-";
const PUBLIC: &str = "kube-public";
const CLUSTER_INFO: &str = "cluster-info";
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE: &str = "jws-kubeconfig-";

fn tokens(context: &Context) -> Cache<Secret> {
    let scope = Scope::all()
        .namespace(SECRETS)
        .fields(format!("type={TYPE}"));
    context.caches.get::<Secret>(scope)
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    let ByteString(bytes) = secret.data.as_ref()?.get(key)?;
    String::from_utf8(bytes.clone()).ok()
}

/// How long a token still holds; `None`: for ever. What cannot be read holds no longer.
fn left(secret: &Secret, now: Timestamp) -> Option<SignedDuration> {
    let expiration = text(secret, "expiration").filter(|e| !e.is_empty())?;
    let at: Result<Timestamp, _> = expiration.parse();
    Some(at.map_or(SignedDuration::ZERO, |at| at.duration_since(now)))
}

struct Cleaner {
    context: Context,
    tokens: Cache<Secret>,
}

fn run_cleaner(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let tokens = tokens(&context);
        tokens.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        tokens.on_change(move |change| to.add(change.key.clone()));
        let reconciler = Cleaner {
            context: context.clone(),
            tokens,
        };
        context.work(reconciler, queue).await;
    })
}

impl Reconcile for Cleaner {
    type Key = Key;

    fn name(&self) -> &'static str {
        CLEANER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let now = self.context.now();
        let Some(secret) = self.tokens.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let Some(left) = left(&secret, now) else {
            return Ok(Requeue::OnChange);
        };
        if left.is_positive() {
            let left = Duration::try_from(left).unwrap_or_default();
            return Ok(Requeue::After(left));
        }
        let api = write::namespaced::<Secret>(&self.context.client, SECRETS);
        write::delete(&api, &key.name, secret.metadata.uid.as_deref()).await?;
        Ok(Requeue::OnChange)
    }
}

/// The identifier and secret of a token that may sign.
fn signing_token(secret: &Secret, now: Timestamp) -> Option<(String, String)> {
    let name = secret.metadata.name.as_deref()?;
    let id = text(secret, "token-id")?;
    let key = text(secret, "token-secret").filter(|s| !s.is_empty())?;
    let named = name.strip_prefix(PREFIX) == Some(id.as_str());
    let allowed = text(secret, "usage-bootstrap-signing").as_deref() == Some("true");
    let holds = left(secret, now).is_none_or(|l| l.is_positive());
    (named && allowed && holds).then_some((id, key))
}

/// The signatures that are missing, wrong or of tokens that are gone, as a patch of the data.
fn plan(map: &ConfigMap, tokens: &[(String, String)]) -> Option<Value> {
    let data = map.data.clone().unwrap_or_default();
    let content = data.get(KUBECONFIG)?;
    let wanted: BTreeMap<String, String> = tokens
        .iter()
        .map(|(id, key)| (format!("{SIGNATURE}{id}"), jws::detached(content, id, key)))
        .collect();
    let stale = data
        .keys()
        .filter(|k| k.starts_with(SIGNATURE) && !wanted.contains_key(*k));
    let mut patch: serde_json::Map<String, Value> =
        stale.map(|k| (k.clone(), Value::Null)).collect();
    let changed = wanted.iter().filter(|(k, v)| data.get(*k) != Some(v));
    patch.extend(changed.map(|(k, v)| (k.clone(), json!(v))));
    (!patch.is_empty()).then(|| json!({"data": patch}))
}

struct Signer {
    context: Context,
    tokens: Cache<Secret>,
    maps: Cache<ConfigMap>,
}

fn run_signer(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let tokens = tokens(&context);
        let scope = Scope::all()
            .namespace(PUBLIC)
            .fields(format!("metadata.name={CLUSTER_INFO}"));
        let maps = context.caches.get::<ConfigMap>(scope);
        tokens.synced().await;
        maps.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        maps.on_change(move |change| to.add(change.key.clone()));
        let to = queue.clone();
        tokens.on_change(move |_| to.add(Key::new(PUBLIC, CLUSTER_INFO)));
        let reconciler = Signer {
            context: context.clone(),
            tokens,
            maps,
        };
        context.work(reconciler, queue).await;
    })
}

impl Reconcile for Signer {
    type Key = Key;

    fn name(&self) -> &'static str {
        SIGNER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(map) = self.maps.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let now = self.context.now();
        let all = self.tokens.list();
        let tokens: Vec<_> = all.iter().filter_map(|s| signing_token(s, now)).collect();
        let Some(patch) = plan(&map, &tokens) else {
            return Ok(Requeue::OnChange);
        };
        let api = write::namespaced::<ConfigMap>(&self.context.client, PUBLIC);
        if let Some(written) = write::patch(&api, &key.name, &patch).await? {
            self.maps.caught_up(write::revision_of(&written)).await?;
        }
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, data: &[(&str, &str)]) -> Secret {
        let data = data
            .iter()
            .map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec())));
        Secret {
            metadata: kube::core::ObjectMeta {
                name: Some(name.into()),
                ..Default::default()
            },
            data: Some(data.collect()),
            ..Secret::default()
        }
    }

    #[test]
    fn tokens_end_and_sign_as_they_may() {
        let now = Timestamp::from_second(100).unwrap();
        let token = |expiration: &str, usage: &str| {
            secret(
                "bootstrap-token-abcdef",
                &[
                    ("token-id", "abcdef"),
                    ("token-secret", "s"),
                    ("expiration", expiration),
                    ("usage-bootstrap-signing", usage),
                ],
            )
        };
        for (expiration, usage, seconds, signs) in [
            ("1970-01-01T00:02:00Z", "true", Some(20), true),
            ("1970-01-01T00:01:00Z", "true", Some(-40), false),
            ("soon", "true", Some(0), false),
            ("", "true", None, true),
            ("", "false", None, false),
        ] {
            let token = token(expiration, usage);
            assert_eq!(
                left(&token, now).map(|l| l.as_secs()),
                seconds,
                "{expiration}"
            );
            assert_eq!(signing_token(&token, now).is_some(), signs, "{expiration}");
        }
        let misnamed = secret(
            "bootstrap-token-other",
            &[
                ("token-id", "abcdef"),
                ("token-secret", "s"),
                ("usage-bootstrap-signing", "true"),
            ],
        );
        assert_eq!(signing_token(&misnamed, now), None);
    }

    #[test]
    fn signatures_follow_the_tokens() {
        let map =
            |data: Value| -> ConfigMap { serde_json::from_value(json!({"data": data})).unwrap() };
        let tokens = [("abcdef".to_owned(), "secret".to_owned())];
        let first = plan(
            &map(json!({"kubeconfig": "x", "jws-kubeconfig-gone": "y"})),
            &tokens,
        )
        .unwrap();
        assert_eq!(first["data"]["jws-kubeconfig-gone"], Value::Null);
        let signature = first["data"]["jws-kubeconfig-abcdef"].clone();
        assert!(signature.as_str().unwrap().contains(".."));
        let signed = map(json!({"kubeconfig": "x", "jws-kubeconfig-abcdef": signature}));
        assert_eq!(plan(&signed, &tokens), None);
        assert_eq!(plan(&map(json!({})), &tokens), None);
    }
}
