//! Secrets that hold an account's token: fills in what they lack, and deletes them with their
//! account, which names them only while they are there.

use std::{collections::BTreeMap, fmt, sync::Arc};

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, cache::Entry, write};
use futures::future::BoxFuture;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ObjectReference, Secret, ServiceAccount},
};
use serde_json::{Value, json};

use crate::{AccountToken, Context, Controller};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "tokens-controller",
    run,
};

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const TOKEN: &str = "token";
const CA: &str = "ca.crt";
const NAMESPACE: &str = "namespace";

/// A secret, and the account it says it is of: of a secret that is gone, that can be read nowhere.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Held {
    secret: Key,
    account: String,
}

impl Held {
    fn of(entry: &Entry) -> Option<Self> {
        let secret = entry.decode::<Secret>().ok()?;
        Some(Self {
            secret: entry.key.clone(),
            account: account_of(&secret).to_owned(),
        })
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.secret.fmt(f)
    }
}

struct Tokens {
    context: Context,
    accounts: Cache<ServiceAccount>,
    secrets: Cache<Secret>,
}

/// The Secrets that hold tokens.
pub(crate) fn scope() -> Scope {
    Scope::all().fields(format!("type={TYPE}"))
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let accounts = context.caches.get::<ServiceAccount>(Scope::all());
        let secrets = context.caches.get::<Secret>(scope());
        accounts.synced().await;
        secrets.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        secrets.on_change(move |change| {
            let held = change.latest().and_then(|entry| Held::of(entry));
            held.into_iter().for_each(|held| to.add(held));
        });
        let (to, all) = (queue.clone(), secrets.clone());
        accounts.on_change(move |change| {
            // An account that comes, goes or is made anew decides about its secrets.
            let uid = |e: &Option<Arc<Entry>>| e.as_ref().map(|e| e.uid.clone());
            if uid(&change.old) != uid(&change.new) {
                let secrets = all.entries_in(&change.key.namespace);
                let held = secrets.iter().filter_map(|entry| Held::of(entry));
                held.for_each(|held| to.add(held));
            }
        });
        let reconciler = Tokens {
            context: context.clone(),
            accounts,
            secrets,
        };
        context.work(reconciler, queue).await;
    })
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> &'a str {
    let all = secret.metadata.annotations.as_ref();
    all.and_then(|a| a.get(key)).map_or("", String::as_str)
}

/// The name of the account whose token a secret holds.
pub(crate) fn account_of(secret: &Secret) -> &str {
    annotation(secret, ACCOUNT)
}

/// Whether a secret is of this account, and not of an earlier one of its name.
pub(crate) fn is_of(secret: &Secret, account: &ServiceAccount) -> bool {
    let uid = annotation(secret, ACCOUNT_UID);
    uid.is_empty() || account.metadata.uid.as_deref() == Some(uid)
}

/// The patch that fills in what a secret lacks; `token` is asked for one only if there is none.
fn plan(
    secret: &Secret,
    account: &ServiceAccount,
    ca: &str,
    token: impl FnOnce() -> Option<String>,
) -> Option<Value> {
    let none = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&none);
    let has = |key: &str| data.get(key).is_some_and(|v| !v.0.is_empty());
    let is = |key: &str, value: &str| data.get(key).is_some_and(|v| v.0 == value.as_bytes());
    let mut patch = serde_json::Map::new();
    let mut set = |key: &str, value: &str| {
        patch.insert(key.into(), json!(ByteString(value.as_bytes().to_vec())));
    };
    if !ca.is_empty() && !is(CA, ca) {
        set(CA, ca);
    }
    if !has(NAMESPACE) {
        set(
            NAMESPACE,
            secret.metadata.namespace.as_deref().unwrap_or_default(),
        );
    }
    if !has(TOKEN)
        && let Some(token) = token()
    {
        set(TOKEN, &token);
    }
    let uid = account.metadata.uid.as_deref().unwrap_or_default();
    let known = annotation(secret, ACCOUNT_UID) == uid;
    if patch.is_empty() && known {
        return None;
    }
    let meta = json!({"uid": secret.metadata.uid,
        "resourceVersion": secret.metadata.resource_version, "annotations": {ACCOUNT_UID: uid}});
    Some(json!({"metadata": meta, "data": patch}))
}

impl Reconcile for Tokens {
    type Key = Held;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, held: &Held) -> Result<Requeue, Error> {
        let key = &held.secret;
        let Some(secret) = self.secrets.get(key)? else {
            self.forget(held).await?;
            return Ok(Requeue::OnChange);
        };
        let name = account_of(&secret);
        if name.is_empty() || secret.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::OnChange);
        }
        let account_key = Key::new(key.namespace.clone(), name);
        let mut account = self.accounts.get(&account_key)?;
        if account.as_ref().is_none_or(|a| !is_of(&secret, a)) {
            // The cache may lag behind.
            let api = write::namespaced::<ServiceAccount>(&self.context.client, &key.namespace);
            account = write::tolerate_missing(api.get(name).await)?;
        }
        let api = write::namespaced::<Secret>(&self.context.client, &key.namespace);
        let Some(account) = account.filter(|a| is_of(&secret, a)) else {
            write::delete(&api, &key.name, secret.metadata.uid.as_deref()).await?;
            return Ok(Requeue::OnChange);
        };
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let of = AccountToken {
            namespace: key.namespace.to_string(),
            account: name.to_owned(),
            account_uid: text(&account.metadata.uid),
            secret: key.name.to_string(),
            secret_uid: text(&secret.metadata.uid),
        };
        let mut failure = None;
        let token = || {
            let signed = self.context.config.sign_token.as_ref()?(&of);
            signed.map_err(|why| failure = Some(why)).ok()
        };
        let ca = self.context.config.root_ca.as_str();
        if let Some(patch) = plan(&secret, &account, ca, token)
            && let Some(written) = write::patch(&api, &key.name, &patch).await?
        {
            self.secrets.caught_up(write::revision_of(&written)).await?;
        }
        failure.map_or(Ok(Requeue::OnChange), |why| Err(Error::Other(why)))
    }
}

/// The secrets that an account names without this one, as a patch; `None`: it does not name it.
fn without(account: &ServiceAccount, secret: &str) -> Option<Value> {
    let all = account.secrets.as_deref().unwrap_or_default();
    let is_it = |s: &&ObjectReference| s.name.as_deref() == Some(secret);
    all.iter().find(is_it)?;
    let left: Vec<_> = all.iter().filter(|s| !is_it(s)).collect();
    let left = (!left.is_empty()).then_some(left);
    let meta = &account.metadata;
    Some(json!({
        "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
        "secrets": left,
    }))
}

impl Tokens {
    /// Takes a secret that is gone off its account, which the cache may not know yet: nothing would tell of the secret
    /// again.
    async fn forget(&self, Held { secret, account }: &Held) -> Result<(), Error> {
        if account.is_empty() {
            return Ok(());
        }
        let accounts = write::namespaced::<ServiceAccount>(&self.context.client, &secret.namespace);
        let account = write::tolerate_missing(accounts.get(account).await)?;
        let Some(patch) = account.as_ref().and_then(|a| without(a, &secret.name)) else {
            return Ok(());
        };
        // It may have been made anew, of another type even.
        let secrets = write::namespaced::<Secret>(&self.context.client, &secret.namespace);
        if secrets.get_metadata_opt(&secret.name).await?.is_none() {
            let name = account.and_then(|a| a.metadata.name).unwrap_or_default();
            write::patch(&accounts, &name, &patch).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::testing::{missing, stand_in};

    /// No watch tells of the secret once more when the account becomes known.
    #[tokio::test]
    async fn an_account_that_the_cache_does_not_know_yet_forgets_a_secret_too() {
        for (there, expected) in [(false, 1), (true, 0)] {
            let (client, writes) = stand_in(move |path, _| match path {
                "/api/v1/namespaces/n/serviceaccounts/bot" => Some(json!({
                    "metadata": {"name": "bot", "namespace": "n", "uid": "u"},
                    "secrets": [{"name": "s"}]})),
                "/api/v1/namespaces/n/secrets/s" if there => {
                    Some(json!({"metadata": {"name": "s", "namespace": "n"}}))
                }
                path => path.ends_with("/s").then(missing),
            });
            let context = Context::new(client, Default::default(), Default::default());
            let controller = Tokens {
                accounts: context.caches.get(Scope::all()),
                secrets: context.caches.get(scope()),
                context,
            };
            controller.secrets.synced().await;
            let held = Held {
                secret: Key::new("n", "s"),
                account: "bot".to_owned(),
            };
            controller.reconcile(&held).await.unwrap();
            assert_eq!(writes.load(Ordering::Relaxed), expected);
        }
    }

    #[test]
    fn accounts_name_no_secret_that_is_gone() {
        let account = |names: &[&str]| -> ServiceAccount {
            let secrets: Vec<_> = names.iter().map(|n| json!({"name": n})).collect();
            let meta = json!({"name": "a", "uid": "u", "resourceVersion": "7"});
            serde_json::from_value(json!({"metadata": meta, "secrets": secrets})).unwrap()
        };
        assert_eq!(without(&account(&["b"]), "a"), None);
        let patch = without(&account(&["a", "b"]), "a").unwrap();
        assert_eq!(patch["secrets"], json!([{"name": "b"}]));
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        let last = without(&account(&["a"]), "a").unwrap();
        assert_eq!(last["secrets"], Value::Null);
    }

    #[test]
    fn secrets_get_what_they_lack() {
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": "bot", "uid": "u"}})).unwrap();
        let secret = |uid: &str, data: Value| -> Secret {
            serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n",
                "annotations": {ACCOUNT: "bot", ACCOUNT_UID: uid}}, "data": data}))
            .unwrap()
        };
        let token = || Some("t".to_owned());
        let empty = secret("", json!({}));
        assert!(is_of(&empty, &account) && !is_of(&secret("other", json!({})), &account));
        let patch = plan(&empty, &account, "CA", token).unwrap();
        assert_eq!(
            patch["data"],
            json!({"ca.crt": "Q0E=", "namespace": "bg==", "token": "dA=="})
        );
        assert_eq!(patch["metadata"]["annotations"][ACCOUNT_UID], "u");
        let full = json!({"ca.crt": "Q0E=", "namespace": "bg==", "token": "dA=="});
        let never = || panic!("there is one");
        assert_eq!(
            plan(&secret("u", full.clone()), &account, "CA", never),
            None
        );
        let patch = plan(&secret("u", full), &account, "CB", never).unwrap();
        assert_eq!(patch["data"], json!({"ca.crt": "Q0I="}));
    }
}
