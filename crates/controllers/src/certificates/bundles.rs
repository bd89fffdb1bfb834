//! The authority behind the API server's certificate, as a ClusterTrustBundle that pods can have mounted.
//!
//! Its name tells its content, so that another authority makes another bundle; the one before goes.

use aws_lc_rs::digest;
use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use k8s_openapi::{
    api::certificates::v1::{ClusterTrustBundle, ClusterTrustBundleSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, api::PostParams};
use serde_json::json;

use crate::{Context, Controller};

/// Publishes the bundle.
pub const CONTROLLER: Controller = Controller {
    name: "kube-apiserver-serving-clustertrustbundle-publisher",
    run,
};

const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";
const NAME_PREFIX: &str = "kubernetes.io:kube-apiserver-serving:";
/// Bytes of the content's hash that its name tells.
const HASH_LEN: usize = 12;

struct Publisher {
    context: Context,
    bundles: Cache<ClusterTrustBundle>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if context.config.root_ca.is_empty() {
            return context.shutdown.cancelled().await;
        }
        let scope = Scope::all().fields(format!("spec.signerName={SIGNER}"));
        let bundles = context.caches.get::<ClusterTrustBundle>(scope);
        let queue = Queue::default();
        let to = queue.clone();
        bundles.on_change(move |_| to.add(Key::cluster(SIGNER)));
        bundles.synced().await;
        queue.add(Key::cluster(SIGNER));
        let publisher = Publisher {
            context: context.clone(),
            bundles,
        };
        context.work(publisher, queue).await;
    })
}

fn bundle(authority: &str) -> ClusterTrustBundle {
    let hash = digest::digest(&digest::SHA256, authority.as_bytes());
    let hash = hash.as_ref().iter().take(HASH_LEN);
    let hash: String = hash.map(|byte| format!("{byte:02x}")).collect();
    ClusterTrustBundle {
        metadata: ObjectMeta {
            name: Some(format!("{NAME_PREFIX}{hash}")),
            ..ObjectMeta::default()
        },
        spec: ClusterTrustBundleSpec {
            signer_name: Some(SIGNER.into()),
            trust_bundle: authority.to_owned(),
        },
    }
}

impl Reconcile for Publisher {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, _: &Key) -> Result<Requeue, Error> {
        let wanted = bundle(&self.context.config.root_ca);
        let all = self.bundles.list();
        let same = |b: &&ClusterTrustBundle| b.metadata.name == wanted.metadata.name;
        let api: Api<ClusterTrustBundle> = write::cluster(&self.context.client);
        let name = |b: &ClusterTrustBundle| b.metadata.name.clone().unwrap_or_default();
        match all.iter().find(same) {
            None => {
                let made = api.create(&PostParams::default(), &wanted).await;
                write::tolerate_existing(made)?;
            }
            Some(found) if found.spec.trust_bundle != wanted.spec.trust_bundle => {
                let patch = json!({"metadata": {"uid": found.metadata.uid},
                    "spec": {"trustBundle": wanted.spec.trust_bundle}});
                write::patch(&api, &name(found), &patch).await?;
            }
            Some(_) => {}
        }
        for stale in all.iter().filter(|b| !same(b)) {
            write::delete(&api, &name(stale), stale.metadata.uid.as_deref()).await?;
        }
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_tells_the_content() {
        let name = |text: &str| bundle(text).metadata.name.unwrap();
        assert_eq!(
            name("abc"),
            "kubernetes.io:kube-apiserver-serving:ba7816bf8f01cfea414140de"
        );
        assert_ne!(name("abc"), name("abd"));
    }
}
