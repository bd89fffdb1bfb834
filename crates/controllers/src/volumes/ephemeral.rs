//! Makes the claims of volumes that come and go with their pod.
//!
//! The pod owns such a claim, so that the garbage collector deletes it after the pod. A claim of that name that
//! somebody else has made is never used: the pod waits until it is gone.

use client::{Cache, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, write};
use futures::future::BoxFuture;
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::api::PostParams;

use crate::{Context, Controller, claim, pods};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "ephemeral-volume-controller",
    run,
};

struct Ephemeral {
    context: Context,
    recorder: Recorder,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let pods = context.caches.get::<Pod>(Scope::all());
        let claims = context.caches.get::<PersistentVolumeClaim>(Scope::all());
        claims.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        pods.on_change(move |change| {
            let asks = change.new.as_ref().is_some_and(|e| e.has(&pods::EPHEMERAL));
            if asks {
                to.add(change.key.clone());
            }
        });
        let to = queue.clone();
        claims.on_change(move |change| {
            let gone = change.old.as_ref().filter(|_| change.new.is_none());
            let owner = gone.and_then(|e| e.controller());
            if let Some(pod) = owner.filter(|o| o.kind == "Pod") {
                to.add(Key::new(change.key.namespace.clone(), pod.name.as_str()));
            }
        });
        let reconciler = Ephemeral {
            recorder: context.recorder_as("ephemeral_volume"),
            context: context.clone(),
            pods,
            claims,
        };
        context.work(reconciler, queue).await;
    })
}

/// The claims that a pod is to have, by the names of its volumes.
fn wanted(pod: &Pod) -> Vec<(&str, PersistentVolumeClaim)> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    let made = volumes.into_iter().flatten().filter_map(|volume| {
        let template = volume.ephemeral.as_ref()?.volume_claim_template.clone()?;
        let given = template.metadata.unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let metadata = ObjectMeta {
            name: Some(format!("{name}-{}", volume.name)),
            namespace: pod.metadata.namespace.clone(),
            labels: given.labels,
            annotations: given.annotations,
            owner_references: Some(vec![claim::owner_reference(pod)]),
            ..ObjectMeta::default()
        };
        let claim = PersistentVolumeClaim {
            metadata,
            spec: Some(template.spec),
            status: None,
        };
        Some((volume.name.as_str(), claim))
    });
    made.collect()
}

impl Ephemeral {
    async fn provide(&self, pod: &Pod, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let key = Key::of(claim);
        if let Some(known) = self.claims.get(&key)? {
            return match crate::claim::is_of(&known, pod) {
                true => Ok(()),
                false => Err(Error::Other(format!(
                    "PVC {key} was not created for pod {} (pod is not owner)",
                    Key::of(pod)
                ))),
            };
        }
        let api = write::namespaced(&self.context.client, &key.namespace);
        let made = api.create(&PostParams::default(), claim).await?;
        self.claims.caught_up(write::revision_of(&made)).await
    }
}

impl Reconcile for Ephemeral {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let pod = self.pods.get(key)?;
        let Some(pod) = pod.filter(|p| p.metadata.deletion_timestamp.is_none()) else {
            return Ok(Requeue::OnChange);
        };
        for (volume, claim) in wanted(&pod) {
            if let Err(failure) = self.provide(&pod, &claim).await {
                let message = format!("ephemeral volume {volume}: {}", failure.words());
                self.recorder.warning(&pod, "FailedBinding", message);
                return Err(failure);
            }
        }
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::claim::is_of;

    #[test]
    fn a_claim_is_made_as_the_pod_says_and_is_the_pods_own() {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
            "resources": {"requests": {"storage": "1Gi"}}});
        let pod = |uid: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "n", "uid": uid},
                "spec": {"containers": [], "volumes": [
                    {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {
                        "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}, "spec": spec}}},
                    {"name": "other", "emptyDir": {}}]},
            }))
            .unwrap()
        };
        let mine = pod("u");
        let all = wanted(&mine);
        let [(volume, claim)] = all.as_slice() else {
            panic!("{all:?}");
        };
        assert_eq!(*volume, "scratch");
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u",
            "controller": true, "blockOwnerDeletion": true});
        let expected = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "p-scratch", "namespace": "n", "labels": {"a": "b"},
                "annotations": {"c": "d"}, "ownerReferences": [owner]},
            "spec": spec});
        assert_eq!(serde_json::to_value(claim).unwrap(), expected);
        assert!(is_of(claim, &mine) && !is_of(claim, &pod("later")));
    }
}
