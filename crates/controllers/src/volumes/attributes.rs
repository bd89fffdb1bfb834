//! Classes of attributes that claims or volumes name do not go until that ends.

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::VolumeAttributesClass,
};

use super::protection::{Act, decide, patch, write_finalizers};
use crate::{Context, Controller};

/// Protects classes of attributes.
pub const CONTROLLER: Controller = Controller {
    name: "volumeattributesclass-protection-controller",
    run,
};

const FINALIZER: &str = "kubernetes.io/vac-protection";

struct Classes {
    context: Context,
    classes: Cache<VolumeAttributesClass>,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let classes = context.caches.get::<VolumeAttributesClass>(Scope::all());
        let claims = context.caches.get::<PersistentVolumeClaim>(Scope::all());
        let volumes = context.caches.get::<PersistentVolume>(Scope::all());
        claims.synced().await;
        volumes.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        classes.on_change(move |change| to.add(change.key.clone()));
        let look_at_doomed = {
            let (to, all) = (queue.clone(), classes.clone());
            move || {
                let doomed = all.entries().into_iter().filter(|e| e.deleting);
                doomed.for_each(|e| to.add(e.key.clone()));
            }
        };
        let again = look_at_doomed.clone();
        claims.on_change(move |_| again());
        volumes.on_change(move |_| look_at_doomed());
        let reconciler = Classes {
            context: context.clone(),
            classes,
            claims,
            volumes,
        };
        context.work(reconciler, queue).await;
    })
}

/// Whether a claim has or is to get the attributes of a class.
fn claim_names(claim: &PersistentVolumeClaim, class: &str) -> bool {
    let spec = claim.spec.as_ref();
    let status = claim.status.as_ref();
    let asked = spec.and_then(|s| s.volume_attributes_class_name.as_deref());
    let has = status.and_then(|s| s.current_volume_attributes_class_name.as_deref());
    let change = status.and_then(|s| s.modify_volume_status.as_ref());
    let target = change.and_then(|m| m.target_volume_attributes_class_name.as_deref());
    [asked, has, target].contains(&Some(class))
}

fn volume_names(volume: &PersistentVolume, class: &str) -> bool {
    let spec = volume.spec.as_ref();
    spec.and_then(|s| s.volume_attributes_class_name.as_deref()) == Some(class)
}

impl Classes {
    fn is_named(&self, class: &str) -> bool {
        let word = format!("\"{class}\"");
        let claims = self.claims.entries();
        let mut claims = claims.iter().filter(|e| e.mentions(&word));
        let volumes = self.volumes.entries();
        let mut volumes = volumes.iter().filter(|e| e.mentions(&word));
        // What cannot be read is not let go of.
        claims.any(|e| e.decode().map_or(true, |c| claim_names(&c, class)))
            || volumes.any(|e| e.decode().map_or(true, |v| volume_names(&v, class)))
    }
}

impl Reconcile for Classes {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(entry) = self.classes.entry(key) else {
            return Ok(Requeue::OnChange);
        };
        let act = decide(&entry, FINALIZER, || self.is_named(&key.name));
        if act != Act::Nothing {
            let api = write::cluster::<VolumeAttributesClass>(&self.context.client);
            write_finalizers(&api, &entry, patch(&entry, FINALIZER, &act)).await?;
        }
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn claims_name_classes_that_they_want_have_or_get() {
        let claim = |spec: Value, status: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).unwrap()
        };
        let change = json!({"modifyVolumeStatus": {"status": "Pending",
            "targetVolumeAttributesClassName": "gold"}});
        for (spec, status, expected) in [
            (json!({}), json!({}), false),
            (
                json!({"volumeAttributesClassName": "gold"}),
                json!({}),
                true,
            ),
            (
                json!({"volumeAttributesClassName": "tin"}),
                json!({}),
                false,
            ),
            (
                json!({}),
                json!({"currentVolumeAttributesClassName": "gold"}),
                true,
            ),
            (json!({}), change, true),
        ] {
            let claim = claim(spec, status);
            assert_eq!(claim_names(&claim, "gold"), expected, "{claim:?}");
        }
    }
}
