//! The claims of a StatefulSet's pods: there before the pod, owned as the policy says.

use client::{Cache, Client, Error, Key, Recorder, write};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{Api, api::PostParams};
use serde_json::json;

use super::identity::{self, Keeper};
use crate::pods;

/// Whether the claims of a pod are there.
#[derive(Debug, PartialEq, Eq)]
pub enum Provided {
    /// They are.
    Ready,
    /// One goes with an earlier pod of that name.
    Stale,
    /// The one of this name is being deleted.
    Leaving(String),
}

/// Acts on claims.
pub struct Claims {
    /// Writes.
    pub client: Client,
    /// Tells of it.
    pub recorder: Recorder,
    /// Shows what was written.
    pub claims: Cache<PersistentVolumeClaim>,
}

impl Claims {
    fn api(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        write::namespaced(&self.client, namespace)
    }

    /// Makes the claims of an ordinal that are missing. Its pod may come when they are ready.
    pub async fn provide(
        &self,
        set: &StatefulSet,
        ordinal: u32,
        pod: &str,
    ) -> Result<Provided, Error> {
        for claim in identity::claims(set, ordinal) {
            let key = Key::of(&claim);
            let Some(known) = self.claims.get(&key)? else {
                self.create(set, &key, claim, ordinal, pod).await?;
                continue;
            };
            if identity::is_stale(&known, pod) {
                return Ok(Provided::Stale);
            }
            if known.metadata.deletion_timestamp.is_some() {
                return Ok(Provided::Leaving(key.name.to_string()));
            }
        }
        Ok(Provided::Ready)
    }

    async fn create(
        &self,
        set: &StatefulSet,
        key: &Key,
        mut claim: PersistentVolumeClaim,
        ordinal: u32,
        pod: &str,
    ) -> Result<(), Error> {
        if identity::keeper(set, ordinal) == Keeper::Set {
            let owner = crate::claim::owner_reference(set);
            claim.metadata.owner_references = Some(vec![owner]);
        }
        let whose = set.metadata.name.as_deref().unwrap_or_default();
        let name = &key.name;
        let made = self
            .api(&key.namespace)
            .create(&PostParams::default(), &claim)
            .await;
        match made {
            Ok(made) => {
                let message =
                    format!("Create Claim {name} Pod {pod} in StatefulSet {whose} success");
                self.recorder.normal(set, "SuccessfulCreate", message);
                self.claims.caught_up(write::revision_of(&made)).await
            }
            Err(e) => {
                // What the cache does not show yet has to be looked at: it may be going.
                let known = client::is_exists(&e);
                let why = Error::from(e).words();
                if !known {
                    let message = format!(
                        "Create Claim {name} for Pod {pod} in StatefulSet {whose} failed error: {why}"
                    );
                    self.recorder.warning(set, "FailedCreate", message);
                }
                Err(Error::Other(format!("failed to create PVC {name}: {why}")))
            }
        }
    }

    /// Makes claims again that are gone while their pod still waits for them.
    pub async fn replace_lost(&self, set: &StatefulSet, pods: &[Pod]) -> Result<(), Error> {
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let waits =
            |p: &&Pod| pods::phase(p) == "Pending" && p.metadata.deletion_timestamp.is_none();
        for pod in pods.iter().filter(waits) {
            let ordinal = identity::ordinal(set, pod);
            let ordinal = ordinal.filter(|o| identity::ordinals(set).contains(o));
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            if let Some(ordinal) = ordinal {
                self.provide(set, ordinal, name).await?;
            }
        }
        Ok(())
    }

    /// Makes the claims of pods go with whom the policy says.
    pub async fn keep_owners(&self, set: &StatefulSet, pods: &[Pod]) -> Result<(), Error> {
        for pod in pods {
            let Some(ordinal) = identity::ordinal(set, pod) else {
                continue;
            };
            for claim in identity::claims(set, ordinal) {
                let key = Key::of(&claim);
                let Some(known) = self.claims.get(&key)? else {
                    continue;
                };
                let owners = identity::owners(set, pod, ordinal, &known);
                let news = owners.is_some() || pods::phase(pod) == "Pending";
                if news && identity::has_conflict(set, pod, &known) {
                    let message = format!(
                        "PersistentVolumeClaim {} has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim",
                        key.name
                    );
                    self.recorder.warning(set, "ConflictingController", message);
                }
                let Some(owners) = owners else {
                    continue;
                };
                let patch = json!({"metadata": {
                    "uid": known.metadata.uid,
                    "resourceVersion": known.metadata.resource_version,
                    "ownerReferences": owners,
                }});
                let written = write::patch(&self.api(&key.namespace), &key.name, &patch).await?;
                self.claims
                    .caught_up(written.as_ref().map_or(0, write::revision_of))
                    .await?;
            }
        }
        Ok(())
    }
}
