//! Claims that ask for more than they have: volumes made here grow at once, the others are for
//! their driver's resizer.
//!
//! ```text
//! asks for more ──> Resizing ──> the volume says so ──> the claim says so, no condition left
//! ```

use client::{
    Cache, Error, EventType, Key, Queue, Reconcile, Recorder, Requeue, Scope, events, write,
};
use futures::future::BoxFuture;
use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim},
    apimachinery::pkg::api::resource::Quantity as Text,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::provision;
use crate::{Context, Controller};

/// Grows volumes.
pub const CONTROLLER: Controller = Controller {
    name: "expand-controller",
    run,
};

const RESIZING: &str = "Resizing";

/// What is to be done about a claim.
#[derive(Debug, PartialEq)]
enum Act {
    Nothing,
    /// Somebody else will see to it.
    Wait,
    /// The volume grows to this size.
    Grow(Text),
}

/// Decides; `ours`: the volume was made here.
fn plan(claim: &PersistentVolumeClaim, ours: bool) -> Act {
    let status = claim.status.clone().unwrap_or_default();
    let spec = claim.spec.clone().unwrap_or_default();
    let storage = |all: Option<std::collections::BTreeMap<String, Text>>| all?.remove("storage");
    let asked = storage(spec.resources.and_then(|r| r.requests));
    let has = storage(status.capacity);
    let (Some(asked), Some(has), Some("Bound")) = (asked, has, status.phase.as_deref()) else {
        return Act::Nothing;
    };
    let size = |text: &Text| {
        text.0
            .parse::<api::quantity::Quantity>()
            .unwrap_or_default()
    };
    if size(&asked) <= size(&has) {
        return Act::Nothing;
    }
    if ours { Act::Grow(asked) } else { Act::Wait }
}

struct Expander {
    context: Context,
    recorder: Recorder,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let claims = context.caches.get::<PersistentVolumeClaim>(Scope::all());
        let volumes = context.caches.get::<PersistentVolume>(Scope::all());
        volumes.synced().await;
        claims.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        claims.on_change(move |change| {
            if change.new.is_some() {
                to.add(change.key.clone());
            }
        });
        let expander = Expander {
            recorder: context.recorder_as("volume_expand"),
            context: context.clone(),
            claims,
            volumes,
        };
        context.work(expander, queue).await;
    })
}

impl Reconcile for Expander {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(claim) = self.claims.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone());
        let name = name.unwrap_or_default();
        let volume = self.volumes.get(&Key::cluster(name.as_str()))?;
        let Some(volume) = volume.filter(|v| is_bound_to(v, &claim)) else {
            return Ok(Requeue::OnChange);
        };
        match plan(&claim, provision::is_made_here(&volume)) {
            Act::Nothing => {}
            Act::Wait => self.recorder.event(
                &events::reference(&claim),
                EventType::Normal,
                "ExternalExpanding",
                "waiting for an external controller to expand this PVC",
            ),
            Act::Grow(size) => self.grow(key, &claim, &name, &size).await?,
        }
        Ok(Requeue::OnChange)
    }
}

fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    reference.is_some_and(|r| r.uid == claim.metadata.uid)
}

impl Expander {
    async fn grow(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        volume: &str,
        size: &Text,
    ) -> Result<(), Error> {
        self.say(
            key,
            claim,
            json!({
                "allocatedResources": {"storage": size},
                "allocatedResourceStatuses": {"storage": "ControllerResizeInProgress"},
            }),
            Some(json!({
                "type": RESIZING, "status": "True",
                "lastTransitionTime": api::time::format(self.context.now()),
            })),
        )
        .await?;
        let api: Api<PersistentVolume> = write::cluster(&self.context.client);
        let body = json!({"spec": {"capacity": {"storage": size}}});
        write::patch(&api, volume, &body).await?;
        self.say(
            key,
            claim,
            json!({"capacity": {"storage": size}, "allocatedResourceStatuses": null}),
            None,
        )
        .await?;
        self.recorder.event(
            &events::reference(claim),
            EventType::Normal,
            "VolumeResizeSuccessful",
            format!("ExpandVolume succeeded for volume {key}"),
        );
        Ok(())
    }

    /// Writes the status of a claim, with this condition in place of any about resizing. Others' stay, whatever
    /// they say by now.
    async fn say(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        mut status: Value,
        condition: Option<Value>,
    ) -> Result<(), Error> {
        let none = || json!({"$patch": "delete", "type": RESIZING});
        status["conditions"] = json!([condition.unwrap_or_else(none)]);
        let api: Api<PersistentVolumeClaim> =
            write::namespaced(&self.context.client, &key.namespace);
        let body = json!({"metadata": {"uid": claim.metadata.uid}, "status": status});
        let params = PatchParams::default();
        let written = api
            .patch_status(&key.name, &params, &Patch::Strategic(body))
            .await;
        if let Some(written) = write::tolerate_missing(written)? {
            self.claims.caught_up(write::revision_of(&written)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_claims_that_ask_for_more_than_they_have_grow() {
        for (phase, asked, has, ours, expected) in [
            ("Bound", "2Gi", "1Gi", true, Act::Grow(Text("2Gi".into()))),
            ("Bound", "2Gi", "1Gi", false, Act::Wait),
            ("Bound", "1024Mi", "1Gi", true, Act::Nothing),
            ("Bound", "1Gi", "2Gi", true, Act::Nothing),
            ("Pending", "2Gi", "1Gi", true, Act::Nothing),
        ] {
            let claim = serde_json::from_value(json!({"metadata": {},
                "spec": {"resources": {"requests": {"storage": asked}}},
                "status": {"phase": phase, "capacity": {"storage": has}}}))
            .unwrap();
            assert_eq!(plan(&claim, ours), expected, "{phase} {asked} {has} {ours}");
        }
    }
}
