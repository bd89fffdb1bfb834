//! Every namespace has a ConfigMap `kube-root-ca.crt` with the cluster's authority, so that pods
//! can verify the API server.

use std::collections::BTreeMap;

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::{Context, Controller};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "root-ca-cert-publisher",
    run,
};

const NAME: &str = "kube-root-ca.crt";
const FIELD: &str = "ca.crt";
const NOTE: &str = "kubernetes.io/description";
const NOTE_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when \
    using internal endpoints such as the internal service IP or kubernetes.default.svc. No other \
    usage is guaranteed across distributions of Kubernetes clusters.";

struct Publisher {
    context: Context,
    namespaces: Cache<Namespace>,
    maps: Cache<ConfigMap>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let namespaces = context.caches.get::<Namespace>(Scope::all());
        let only = Scope::all().fields(format!("metadata.name={NAME}"));
        let maps = context.caches.get::<ConfigMap>(only);
        let queue = Queue::default();
        let to = queue.clone();
        namespaces.on_change(move |change| to.add(change.key.clone()));
        let to = queue.clone();
        maps.on_change(move |change| to.add(Key::cluster(change.key.namespace.clone())));
        maps.synced().await;
        let reconciler = Publisher {
            context: context.clone(),
            namespaces,
            maps,
        };
        context.work(reconciler, queue).await;
    })
}

impl Publisher {
    fn wanted(&self, namespace: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                namespace: Some(namespace.to_owned()),
                annotations: Some(BTreeMap::from([(NOTE.into(), NOTE_TEXT.into())])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(
                FIELD.into(),
                self.context.config.root_ca.clone(),
            )])),
            ..ConfigMap::default()
        }
    }
}

/// What makes of a map, whatever somebody did to it, what it is to be; `None`: it is that.
fn repair(found: &ConfigMap, wanted: &ConfigMap) -> Option<Value> {
    let annotations = found.metadata.annotations.as_ref();
    let is_noted = annotations.is_some_and(|a| a.get(NOTE).is_some_and(|note| !note.is_empty()));
    if found.data == wanted.data && is_noted {
        return None;
    }
    let data = write::merge_patch(found.data.as_ref(), wanted.data.as_ref()?);
    let mut patch = json!({"metadata": {
        "uid": found.metadata.uid,
        "annotations": wanted.metadata.annotations,
    }});
    if let Some(data) = data {
        patch["data"] = data;
    }
    Some(patch)
}

impl Reconcile for Publisher {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let live = self.namespaces.entry(key).is_some_and(|n| !n.deleting);
        if !live || self.context.config.root_ca.is_empty() {
            return Ok(Requeue::OnChange);
        }
        let wanted = self.wanted(&key.name);
        let api = write::namespaced::<ConfigMap>(&self.context.client, &key.name);
        let written = match self.maps.get(&Key::new(key.name.clone(), NAME))? {
            None => api.create(&PostParams::default(), &wanted).await.map(drop),
            Some(found) => match repair(&found, &wanted) {
                None => return Ok(Requeue::OnChange),
                Some(patch) => write::patch(&api, NAME, &patch).await.map(drop),
            },
        };
        match written {
            Err(e) if client::is_not_found(&e) || client::is_forbidden_by_termination(&e) => {}
            Err(e) if client::is_exists(&e) => {}
            other => other?,
        }
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_stays_of_what_others_write() {
        let map = |data: Value, note: &str| -> ConfigMap {
            let annotations = json!({NOTE: note});
            let meta = json!({"name": NAME, "uid": "u", "annotations": annotations});
            serde_json::from_value(json!({"metadata": meta, "data": data})).unwrap()
        };
        let wanted = map(json!({"ca.crt": "a"}), "why");
        for (data, note, expected) in [
            (json!({"ca.crt": "a"}), "anything", None),
            (json!({"ca.crt": "a"}), "", Some(Value::Null)),
            (json!({"ca.crt": "b"}), "why", Some(json!({"ca.crt": "a"}))),
            (
                json!({"ca.crt": "a", "more": "b"}),
                "why",
                Some(json!({"more": null})),
            ),
            (Value::Null, "why", Some(json!({"ca.crt": "a"}))),
        ] {
            let patch = repair(&map(data.clone(), note), &wanted);
            assert_eq!(patch.map(|p| p["data"].clone()), expected, "{data} {note}");
        }
    }
}
