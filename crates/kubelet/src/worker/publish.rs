//! Sending a pod's status to the API server, and deleting the pod there when it has ended.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

/// Conditions that the agent decides; others belong to others.
pub const OWNED: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

/// The object in the API that shows a pod: the pod itself, or a static pod's mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiObject {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Unique id; empty if not known.
    pub uid: String,
}

/// Whether the object was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Yes.
    Yes,
    /// It is gone, or another has its name.
    Gone,
}

/// The patch that turns `from` into `to`: fields that went are nulled, conditions of others left out.
pub fn patch(uid: &str, from: &PodStatus, to: &PodStatus) -> serde_json::Result<Value> {
    let old = serde_json::to_value(from)?;
    let mut new = serde_json::to_value(to)?;
    if let Some(fields) = new.as_object_mut() {
        for (key, _) in old.as_object().into_iter().flatten() {
            if !fields.contains_key(key) {
                fields.insert(key.clone(), Value::Null);
            }
        }
        if let Some(Value::Array(conditions)) = fields.get_mut("conditions") {
            conditions.retain(|c| c["type"].as_str().is_some_and(|t| OWNED.contains(&t)));
            for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
                for key in ["reason", "message"] {
                    condition.entry(key).or_insert(Value::Null);
                }
            }
        }
    }
    let mut out = json!({ "status": new });
    if !uid.is_empty() {
        out["metadata"] = json!({ "uid": uid });
    }
    Ok(out)
}

fn api(client: &kube::Client, object: &ApiObject) -> Api<Pod> {
    Api::namespaced(client.clone(), &object.namespace)
}

fn gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 || status.code == 409)
}

/// Sends `to`, where the server has `from`.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn send(
    client: &kube::Client,
    object: &ApiObject,
    from: &PodStatus,
    to: &PodStatus,
) -> Result<Found, kube::Error> {
    let patch = patch(&object.uid, from, to).map_err(kube::Error::SerdeError)?;
    let sent = api(client, object)
        .patch_status(
            &object.name,
            &PatchParams::default(),
            &Patch::Strategic(patch),
        )
        .await;
    match sent {
        Ok(_) => Ok(Found::Yes),
        Err(error) if gone(&error) => Ok(Found::Gone),
        Err(error) => Err(error),
    }
}

/// Deletes the object for good: nothing of it runs any more.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn delete(client: &kube::Client, object: &ApiObject) -> Result<(), kube::Error> {
    let preconditions = Preconditions {
        uid: (!object.uid.is_empty()).then(|| object.uid.clone()),
        resource_version: None,
    };
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    match api(client, object).delete(&object.name, &params).await {
        Err(error) if !gone(&error) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_null_what_went_and_leave_others_alone() {
        let from: PodStatus =
            serde_json::from_value(json!({"reason": "X", "phase": "Pending"})).unwrap();
        let to: PodStatus = serde_json::from_value(json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "example.com/gate", "status": "True"}]}))
        .unwrap();
        let patch = patch("u", &from, &to).unwrap();
        assert_eq!(patch["metadata"]["uid"], "u");
        assert_eq!(
            (&patch["status"]["reason"], &patch["status"]["phase"]),
            (&Value::Null, &json!("Running"))
        );
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 1);
        assert!(conditions[0].as_object().unwrap().contains_key("message"));
    }
}
