//! Every namespace has a service account `default`.

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use k8s_openapi::{
    api::core::v1::{Namespace, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::api::PostParams;

use crate::{Context, Controller};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "service-account-controller",
    run,
};

const ACCOUNT: &str = "default";

struct Accounts {
    context: Context,
    namespaces: Cache<Namespace>,
    accounts: Cache<ServiceAccount>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let namespaces = context.caches.get::<Namespace>(Scope::all());
        let accounts = context.caches.get::<ServiceAccount>(Scope::all());
        let queue = Queue::default();
        let to = queue.clone();
        namespaces.on_change(move |change| to.add(change.key.clone()));
        let to = queue.clone();
        accounts.on_change(move |change| {
            if change.new.is_none() && &*change.key.name == ACCOUNT {
                to.add(Key::cluster(change.key.namespace.clone()));
            }
        });
        accounts.synced().await;
        let reconciler = Accounts {
            context: context.clone(),
            namespaces,
            accounts,
        };
        context.work(reconciler, queue).await;
    })
}

impl Reconcile for Accounts {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let live = self.namespaces.entry(key).is_some_and(|n| !n.deleting);
        if !live || self.accounts.contains(&Key::new(key.name.clone(), ACCOUNT)) {
            return Ok(Requeue::OnChange);
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(ACCOUNT.into()),
                namespace: Some(key.name.to_string()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        let api = write::namespaced(&self.context.client, &key.name);
        match write::tolerate_existing(api.create(&PostParams::default(), &account).await) {
            Ok(_) => {}
            Err(e) if client::is_not_found(&e) || client::is_forbidden_by_termination(&e) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(Requeue::OnChange)
    }
}
