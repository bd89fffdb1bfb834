//! The claim behind the devices that a pod asks for as extended resources: made for the node that
//! the pod gets, named in its status.

use std::{collections::BTreeMap, sync::Arc};

use client::{Error, Key, is_not_found, write};
use k8s_openapi::{
    api::{
        core::v1::ContainerExtendedResourceRequest,
        core::v1::Pod,
        resource::v1::{DeviceClaim, ResourceClaim, ResourceClaimSpec},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::DynamicResources;
use crate::{devices::extended, framework::Status, node::NodeSpec, pod::PodInfo};

/// On a claim: that it stands for extended resources.
const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";
/// What the claim is called until it has a name.
const UNNAMED: &str = "<extended-resources>";

/// What is known of the claim of a pod.
pub(super) enum Extended {
    /// It is to be made.
    Wanted,
    /// It was made for a node that the pod did not get.
    Left(Arc<ResourceClaim>),
}

/// The claim for a node.
#[derive(Clone)]
pub(super) struct Special {
    pub claim: Arc<ResourceClaim>,
    /// Which container uses what of it.
    pub uses: Vec<ContainerExtendedResourceRequest>,
}

fn is_controlled_by(claim: &ResourceClaim, pod: &PodInfo) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.any(|o| o.controller == Some(true) && *o.uid == **pod.uid())
}

impl DynamicResources {
    /// Whether devices can stand for a resource that the pod asks for, and what is there of its
    /// claim.
    pub(super) fn extended(&self, pod: &PodInfo) -> Option<Extended> {
        if pod.containers.is_empty() {
            return None;
        }
        let wanted = pod.footprint.requested.scalar.iter();
        let mut wanted = wanted.filter(|(name, n)| **n > 0 && extended::is_extended(name));
        wanted.find(|(name, _)| self.devices.class_of_resource(name).is_some())?;
        let left = self.devices.claims.find(&pod.key.namespace, |claim| {
            let annotations = claim.metadata.annotations.as_ref();
            annotations.is_some_and(|a| a.contains_key(ANNOTATION)) && is_controlled_by(claim, pod)
        });
        Some(left.map_or(Extended::Wanted, Extended::Left))
    }

    /// The claim that the pod needs on a node; `None`: the node has what it asks for otherwise.
    pub(super) fn special(
        &self,
        pod: &PodInfo,
        node: &NodeSpec,
    ) -> Result<Option<Special>, Status> {
        let mut classes = BTreeMap::new();
        for (name, amount) in &pod.footprint.requested.scalar {
            if *amount == 0 || !extended::is_extended(name) {
                continue;
            }
            let there = node.allocatable.scalar.get(name);
            match self.devices.class_of_resource(name) {
                Some(class) if there.is_none_or(|n| *n == 0) => {
                    classes.insert(
                        name.clone(),
                        class.metadata.name.clone().unwrap_or_default(),
                    );
                }
                None if there.is_none() => return Err(Status::unresolvable("cannot fit resource")),
                _ => {}
            }
        }
        if classes.is_empty() {
            return Ok(None);
        }
        let (requests, uses) = extended::requests(&pod.containers, &classes);
        let devices = DeviceClaim {
            requests: Some(requests),
            ..DeviceClaim::default()
        };
        let claim = ResourceClaim {
            metadata: ObjectMeta {
                name: Some(UNNAMED.to_owned()),
                namespace: Some(pod.key.namespace.to_string()),
                // Of nobody else's: until the claim is made, this stands for it.
                uid: Some(format!("{UNNAMED}{}", pod.uid())),
                generate_name: Some(format!("{}-extended-resources-", pod.key.name)),
                annotations: Some([(ANNOTATION.to_owned(), "true".to_owned())].into()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Pod".to_owned(),
                    name: pod.key.name.to_string(),
                    uid: pod.uid().to_string(),
                    controller: Some(true),
                    block_owner_deletion: None,
                }]),
                ..ObjectMeta::default()
            },
            spec: Some(ResourceClaimSpec {
                devices: Some(devices),
            }),
            status: None,
        };
        Ok(Some(Special {
            claim: Arc::new(claim),
            uses,
        }))
    }

    /// Makes the claim.
    pub(super) async fn create(&self, special: &Special) -> Result<Arc<ResourceClaim>, Error> {
        let mut new = ResourceClaim::clone(&special.claim);
        new.metadata.name = None;
        new.metadata.uid = None;
        let namespace = new.metadata.namespace.clone().unwrap_or_default();
        let api = write::namespaced::<ResourceClaim>(&self.client, &namespace);
        let made = api.create(&PostParams::default(), &new).await?;
        let made = Arc::new(made);
        self.devices.claims.set(&Key::of(&*made), Arc::clone(&made));
        Ok(made)
    }

    /// Tells the pod which claim stands for its resources.
    pub(super) async fn tell_pod(
        &self,
        pod: &PodInfo,
        special: &Special,
        claim: &ResourceClaim,
    ) -> Result<(), Error> {
        let api = write::namespaced::<Pod>(&self.client, &pod.key.namespace);
        let body = json!({
            "metadata": {"uid": &**pod.uid()},
            "status": {"extendedResourceClaimStatus": {
                "requestMappings": special.uses,
                "resourceClaimName": claim.metadata.name,
            }},
        });
        let params = PatchParams::default();
        let body = Patch::Merge(&body);
        api.patch_status(&pod.key.name, &params, &body).await?;
        Ok(())
    }

    /// The claim is of no use for where the pod may go now.
    pub(super) fn delete_later(&self, claim: Arc<ResourceClaim>) {
        let key = Key::of(&*claim);
        let api = write::namespaced::<ResourceClaim>(&self.client, &key.namespace);
        self.tasks.spawn(async move {
            let body = json!({"metadata": {"uid": claim.metadata.uid, "finalizers": null}});
            let params = PatchParams::default();
            let body = Patch::Merge(&body);
            let freed = api.patch(&key.name, &params, &body).await;
            let deleted = match freed {
                Err(e) if is_not_found(&e) => Ok(false),
                Err(e) => Err(e),
                Ok(_) => write::delete(&api, &key.name, claim.metadata.uid.as_deref()).await,
            };
            if let Err(error) = deleted {
                tracing::warn!(claim = %key, %error, "not deleted");
            }
        });
    }
}
