//! Reading of a pod what the scheduler looks at. Managed fields and the statuses of containers are half of a pod and
//! nothing to it, and each pod is read at least twice: when it comes and when it has a node.

use api::fields;
use client::{Entry, Error};
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodResourceClaimStatus, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use serde::{Deserialize, de::DeserializeOwned};

#[derive(Deserialize)]
struct Lean {
    metadata: Meta,
    #[serde(default)]
    spec: Option<PodSpec>,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    owner_references: Option<Vec<OwnerReference>>,
    #[serde(default)]
    creation_timestamp: Option<Time>,
    #[serde(default)]
    deletion_timestamp: Option<Time>,
    #[serde(default)]
    generation: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    phase: Option<String>,
    #[serde(default)]
    conditions: Option<Vec<PodCondition>>,
    #[serde(default)]
    start_time: Option<Time>,
    #[serde(default)]
    nominated_node_name: Option<String>,
    #[serde(default)]
    resource_claim_statuses: Option<Vec<PodResourceClaimStatus>>,
}

impl Lean {
    /// Reads nothing but these fields, of text as the server stores it; `None`: it is to be read as any other.
    fn found(text: &[u8]) -> Option<Self> {
        const PATHS: [fields::Path<'static>; 10] = [
            &["metadata", "ownerReferences"],
            &["metadata", "creationTimestamp"],
            &["metadata", "deletionTimestamp"],
            &["metadata", "generation"],
            &["spec"],
            &["status", "phase"],
            &["status", "conditions"],
            &["status", "startTime"],
            &["status", "nominatedNodeName"],
            &["status", "resourceClaimStatuses"],
        ];
        let [
            owners,
            created,
            deleted,
            generation,
            spec,
            phase,
            conditions,
            started,
            nominated,
            claims,
        ] = fields::find(text, &PATHS)?;
        Some(Self {
            metadata: Meta {
                owner_references: read(owners)?,
                creation_timestamp: read(created)?,
                deletion_timestamp: read(deleted)?,
                generation: read(generation)?,
            },
            spec: read(spec)?,
            status: Some(Status {
                phase: read(phase)?,
                conditions: read(conditions)?,
                start_time: read(started)?,
                nominated_node_name: read(nominated)?,
                resource_claim_statuses: read(claims)?,
            }),
        })
    }
}

/// What is written in a field that may be absent; `None`: it could not be read.
fn read<T: DeserializeOwned>(text: Option<&[u8]>) -> Option<Option<T>> {
    text.map_or(Some(None), |text| serde_json::from_slice(text).ok())
}

/// The pod with no more in it than is looked at here.
pub fn pod(entry: &Entry) -> Result<Pod, Error> {
    let lean = match Lean::found(entry.bytes()) {
        Some(lean) => lean,
        None => entry.view()?,
    };
    let labels = entry.labels.iter();
    let labels = labels.map(|(k, v)| (k.to_string(), v.to_string()));
    let metadata = ObjectMeta {
        name: Some(entry.key.name.to_string()),
        namespace: Some(entry.key.namespace.to_string()),
        uid: Some(entry.uid.to_string()),
        resource_version: Some(entry.revision.to_string()),
        labels: Some(labels.collect()),
        owner_references: lean.metadata.owner_references,
        creation_timestamp: lean.metadata.creation_timestamp,
        deletion_timestamp: lean.metadata.deletion_timestamp,
        generation: lean.metadata.generation,
        ..ObjectMeta::default()
    };
    let status = lean.status.map(|s| PodStatus {
        phase: s.phase,
        conditions: s.conditions,
        start_time: s.start_time,
        nominated_node_name: s.nominated_node_name,
        resource_claim_statuses: s.resource_claim_statuses,
        ..PodStatus::default()
    });
    Ok(Pod {
        metadata,
        spec: lean.spec,
        status,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::{PodInfo, footprint};

    #[test]
    fn a_lean_pod_is_scheduled_as_the_whole_one() {
        let object = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "generation": 2,
                "labels": {"app": "x"}, "annotations": {"a": "b"},
                "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-02T00:00:00Z",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "o", "controller": true}],
                "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}],
            },
            "spec": {
                "schedulerName": "s", "priority": 5, "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}], "nodeSelector": {"disk": "ssd"},
                "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}},
                    "ports": [{"containerPort": 80, "hostPort": 80}]}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "p"}}],
            },
            "status": {
                "resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "a-gpu"}],
                "phase": "Pending", "startTime": "2026-01-01T00:00:01Z", "nominatedNodeName": "m",
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no"},
                    {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}],
                "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0}],
            },
        });
        for text in [object.to_string(), format!("{object:#}")] {
            let entry = client::cache::parse_entry(text.as_bytes()).unwrap();
            let (lean, whole) = (pod(&entry).unwrap(), entry.decode::<Pod>().unwrap());
            let of = |pod: &Pod| footprint(pod, pod.spec.as_ref().unwrap());
            assert_eq!(of(&lean), of(&whole));
            let of = |pod: &Pod| format!("{:?}", PodInfo::of(pod).unwrap());
            assert_eq!(of(&lean), of(&whole));
        }
    }
}
