//! Writing to the API server, tolerant of what is normal: objects that have gone meanwhile,
//! and somebody else who was faster.

use std::{fmt::Debug, future::Future, time::Duration};

use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::{
    Api, Resource,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::Request,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Client, error};

/// Tries of [`retry_on_conflict`].
const CONFLICT_TRIES: u32 = 5;
/// Wait between them.
const CONFLICT_WAIT: Duration = Duration::from_millis(10);

/// The collection of a namespaced kind.
pub fn namespaced<K>(client: &Client, namespace: &str) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), namespace)
}

/// The collection of a cluster-scoped kind.
pub fn cluster<K>(client: &Client) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
{
    Api::all(client.clone())
}

/// `Ok(None)` where the object is gone.
///
/// # Errors
/// Any other failure.
pub fn tolerate_missing<T>(result: kube::Result<T>) -> kube::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if error::is_not_found(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// `Ok(None)` where the object exists already.
///
/// # Errors
/// Any other failure.
pub fn tolerate_existing<T>(result: kube::Result<T>) -> kube::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if error::is_exists(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// What is read of the answer to a patch. The object itself comes by the watch anyway, and decoding it costs more than
/// all else that a client does for a write.
#[derive(Debug, Clone, Deserialize)]
pub struct Written {
    metadata: WrittenMetadata,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenMetadata {
    #[serde(default)]
    resource_version: String,
}

/// What has a revision.
pub trait Revisioned {
    /// Its resource version.
    fn resource_version(&self) -> Option<&str>;
}

impl Revisioned for Written {
    fn resource_version(&self) -> Option<&str> {
        Some(&self.metadata.resource_version)
    }
}

impl<K: Resource> Revisioned for K {
    fn resource_version(&self) -> Option<&str> {
        self.meta().resource_version.as_deref()
    }
}

/// Merges `patch` (a JSON merge patch) into the status of `name`; `None` if the object is gone.
///
/// # Errors
/// Any failure other than that.
pub async fn patch_status<K, P>(
    api: &Api<K>,
    name: &str,
    patch: &P,
) -> kube::Result<Option<Written>>
where
    K: Resource + Clone,
    P: Serialize + Debug,
{
    let request = Request::new(api.resource_url()).patch_subresource(
        "status",
        name,
        &PatchParams::default(),
        &Patch::Merge(patch),
    );
    send(api, request).await
}

/// Merges `patch` (a JSON merge patch) into `name`; `None` if the object is gone.
///
/// # Errors
/// Any failure other than that.
pub async fn patch<K, P>(api: &Api<K>, name: &str, patch: &P) -> kube::Result<Option<Written>>
where
    K: Resource + Clone,
    P: Serialize + Debug,
{
    let request =
        Request::new(api.resource_url()).patch(name, &PatchParams::default(), &Patch::Merge(patch));
    send(api, request).await
}

async fn send<K: Resource + Clone>(
    api: &Api<K>,
    request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> kube::Result<Option<Written>> {
    let request = request.map_err(kube::Error::BuildRequest)?;
    tolerate_missing(api.clone().into_client().request(request).await)
}

/// Deletes `name` if it still is the object of this uid; fine if it is gone or another one. Answers
/// whether it was there.
///
/// # Errors
/// Any failure other than those.
pub async fn delete<K>(api: &Api<K>, name: &str, uid: Option<&str>) -> kube::Result<bool>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let params = DeleteParams {
        preconditions: uid.map(|uid| Preconditions {
            uid: Some(uid.into()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Ok(_) => Ok(true),
        Err(e) if error::is_not_found(&e) => Ok(false),
        Err(e) if uid.is_some() && error::is_conflict(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Runs `attempt` (read, change, write) until it ends otherwise than with a conflict, five
/// times at most.
///
/// # Errors
/// The last failure.
pub async fn retry_on_conflict<T, F, A>(mut attempt: A) -> kube::Result<T>
where
    A: FnMut() -> F,
    F: Future<Output = kube::Result<T>>,
{
    for _ in 1..CONFLICT_TRIES {
        match attempt().await {
            Err(e) if error::is_conflict(&e) => tokio::time::sleep(CONFLICT_WAIT).await,
            other => return other,
        }
    }
    attempt().await
}

/// The resource version of an object as a revision; 0 where it has none.
pub fn revision_of(object: &impl Revisioned) -> u64 {
    object
        .resource_version()
        .and_then(|r| r.parse().ok())
        .unwrap_or(0)
}

/// The JSON merge patch that turns `old` into `new`; `None` where they are the same.
pub fn merge_patch<T: Serialize>(old: Option<&T>, new: &T) -> Option<Value> {
    let old = old
        .and_then(|o| serde_json::to_value(o).ok())
        .unwrap_or(Value::Null);
    let new = serde_json::to_value(new).unwrap_or(Value::Null);
    (old != new).then(|| difference(&old, new))
}

fn difference(old: &Value, new: Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, &new) else {
        return new;
    };
    let mut patch = serde_json::Map::new();
    for (key, value) in new {
        match old.get(key) {
            Some(before) if before == value => {}
            before => {
                let before = before.unwrap_or(&Value::Null);
                patch.insert(key.clone(), difference(before, value.clone()));
            }
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merge_patches_say_what_differs() {
        for (old, new, expected) in [
            (
                json!({"a": 1, "b": {"c": 1, "d": 2}}),
                json!({"a": 1, "b": {"c": 1, "d": 2}}),
                None,
            ),
            (
                json!({"a": 1, "x": 2}),
                json!({"a": 3}),
                Some(json!({"a": 3, "x": null})),
            ),
            (
                json!({"b": {"c": 1, "d": [1]}}),
                json!({"b": {"d": [2]}, "n": {"o": 1}}),
                Some(json!({"b": {"c": null, "d": [2]}, "n": {"o": 1}})),
            ),
            (Value::Null, json!({"a": 1}), Some(json!({"a": 1}))),
        ] {
            assert_eq!(merge_patch(Some(&old), &new), expected);
        }
    }
}
