//! Objects between the versions of a custom resource whose definition names a conversion webhook.
//!
//! What is read is brought into the served version before anything else looks at it, what is written into the stored one
//! just before it is committed. The webhook may change anything but an object's identity: metadata other than labels and
//! annotations stays as it was.

use std::time::Duration;

use api::{Status, meta};
use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};

use super::{Fail, Registry, Resource, Stored, new_uid};
use crate::webhook;

/// Longest time a webhook may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Most objects sent at once.
const BATCH: usize = 500;
/// Versions of reviews that can be written, best first.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

impl Registry {
    /// Stored objects in the served version, as far as only a webhook can bring them there.
    ///
    /// # Errors
    /// 500 in upstream's words when the webhook fails.
    pub fn converted<'a>(
        &'a self,
        resource: &'a Resource,
        mut all: Vec<Stored>,
    ) -> BoxFuture<'a, Result<Vec<Stored>, Fail>> {
        // Boxed, because finding the webhook's service reads objects, which may be converted themselves.
        Box::pin(async move {
            let Some(hook) = resource.webhook() else {
                return Ok(all);
            };
            let foreign: Vec<usize> = (0..all.len())
                .filter(|at| !resource.is_written_as_served(&all[*at].bytes))
                .collect();
            let desired = resource.kind.api_version();
            for batch in foreign.chunks(BATCH) {
                let objects: Result<Vec<Value>, Fail> =
                    batch.iter().map(|at| all[*at].value()).collect();
                let done = self.convert(hook, &desired, objects?).await?;
                for (at, mut object) in batch.iter().zip(done) {
                    if let Some(custom) = &resource.kind.custom {
                        codec::custom::refresh(&mut object, custom);
                    }
                    all[*at].bytes = codec::canonical(&object);
                }
            }
            Ok(all)
        })
    }

    /// The same for one object.
    ///
    /// # Errors
    /// As [`Self::converted`].
    pub async fn converted_one(&self, resource: &Resource, stored: Stored) -> Result<Stored, Fail> {
        if resource.webhook().is_none() {
            return Ok(stored);
        }
        let mut one = self.converted(resource, vec![stored]).await?;
        one.pop()
            .ok_or_else(|| Box::new(Status::internal("no object was converted")))
    }

    /// The bytes to store of an object that hooks are done with, and those to answer with.
    ///
    /// # Errors
    /// As [`Self::converted`].
    pub(super) async fn storable(
        &self,
        resource: &Resource,
        object: &Value,
    ) -> Result<(Bytes, Bytes), Fail> {
        let desired = resource.stored_version();
        let (Some(hook), true) = (resource.webhook(), desired != resource.kind.api_version())
        else {
            let bytes = resource.encode(object);
            return Ok((bytes.clone(), bytes));
        };
        let done = self.convert(hook, &desired, vec![object.clone()]).await?;
        let stored = done.first().map(codec::canonical).unwrap_or_default();
        Ok((stored, codec::canonical(object)))
    }

    /// Whether an object is stored in the version that objects are stored in now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) async fn is_stored_version(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<bool, Fail> {
        let Some(stored) = self.find_stored(resource, namespace, name).await? else {
            return Ok(true);
        };
        let object = stored.value()?;
        Ok(meta::str_at(&object, &["apiVersion"]) == resource.stored_version())
    }

    async fn convert(
        &self,
        hook: &Value,
        desired: &str,
        objects: Vec<Value>,
    ) -> Result<Vec<Value>, Fail> {
        let about = objects.first().map(described).unwrap_or_default();
        let fail = |why: String| {
            Box::new(Status::internal(format!(
                "conversion webhook for {about} {why}"
            )))
        };
        let offered = meta::list_at(hook, &["conversionReviewVersions"]);
        let review = offered
            .iter()
            .filter_map(Value::as_str)
            .find(|v| REVIEWS.contains(v))
            .ok_or_else(|| fail("failed: no supported conversion review versions".into()))?;
        let (uid, version) = (new_uid(), format!("apiextensions.k8s.io/{review}"));
        let request = json!({
            "kind": "ConversionReview", "apiVersion": version,
            "request": {"uid": uid, "desiredAPIVersion": desired, "objects": objects},
        });
        let config = hook.get("clientConfig").unwrap_or(&Value::Null);
        let answer = webhook::post(self, config, &request, TIMEOUT)
            .await
            .map_err(|why| fail(format!("failed: {why}")))?;
        let done = read(&answer, &version, &uid).map_err(|why| fail(format!("failed: {why}")))?;
        if done.len() != objects.len() {
            let why = format!(
                "returned {} objects, expected {}",
                done.len(),
                objects.len()
            );
            return Err(fail(why));
        }
        let pairs = objects.iter().zip(done).enumerate();
        pairs
            .map(|(at, (before, after))| {
                accept(before, after, desired).map_err(|why| {
                    fail(format!(
                        "returned invalid converted object at index {at}: {why}"
                    ))
                })
            })
            .collect()
    }
}

/// Group, version and kind as Go prints them.
fn described(object: &Value) -> String {
    let text = |field| meta::str_at(object, &[field]);
    format!("{}, Kind={}", text("apiVersion"), text("kind"))
}

/// The objects of an answer.
fn read(answer: &Value, version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let strict = version.ends_with("/v1");
    let text = |field| meta::str_at(answer, &[field]);
    if strict && (text("apiVersion"), text("kind")) != (version, "ConversionReview") {
        return Err(format!(
            "expected webhook response of {version}, Kind=ConversionReview, got {}",
            described(answer)
        ));
    }
    let Some(response) = answer.get("response").filter(|r| r.is_object()) else {
        return Err("no response provided".into());
    };
    let got = meta::str_at(response, &["uid"]);
    if strict && got != uid {
        return Err(format!("expected response.uid={uid:?}, got {got:?}"));
    }
    let status = meta::str_at(response, &["result", "status"]);
    if status != "Success" {
        return Err(match meta::str_at(response, &["result", "message"]) {
            "" => format!("response.result.status was '{status}', not 'Success'"),
            message => message.to_owned(),
        });
    }
    Ok(meta::list_at(response, &["convertedObjects"]).to_vec())
}

/// A converted object, if it is still the same one; its metadata is the old one but for labels and annotations.
fn accept(before: &Value, mut after: Value, desired: &str) -> Result<Value, String> {
    let version = meta::str_at(&after, &["apiVersion"]);
    if version != desired {
        return Err(format!(
            "invalid groupVersion (expected {desired}, received {version})"
        ));
    }
    let paths: [(&str, &[&str]); 4] = [
        ("kind", &["kind"]),
        ("name", &["metadata", "name"]),
        ("namespace", &["metadata", "namespace"]),
        ("UID", &["metadata", "uid"]),
    ];
    for (what, path) in paths {
        let (old, new) = (meta::str_at(before, path), meta::str_at(&after, path));
        if old != new {
            return Err(if what == "kind" {
                format!("invalid kind (expected {old}, received {new})")
            } else {
                format!("must have the same {what}: {old} != {new}")
            });
        }
    }
    let Some(said) = after.get("metadata").and_then(Value::as_object).cloned() else {
        return Err("missing metadata in converted object".into());
    };
    let mut metadata = before
        .get("metadata")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    for field in ["labels", "annotations"] {
        carry(&mut metadata, &said, field)?;
    }
    after["metadata"] = metadata.into();
    let problems = kinds::validate_labels_and_annotations(&after["metadata"]);
    if !problems.is_empty() {
        let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err(all.join(", "));
    }
    Ok(after)
}

fn carry(
    metadata: &mut Map<String, Value>,
    said: &Map<String, Value>,
    field: &str,
) -> Result<(), String> {
    match said.get(field) {
        None | Some(Value::Null) => {
            metadata.remove(field);
        }
        Some(Value::Object(map)) => {
            if let Some((key, _)) = map.iter().find(|(_, v)| !v.is_string()) {
                return Err(format!(
                    "metadata.{field}[{key}] must be a string in converted object"
                ));
            }
            metadata.insert(field.into(), map.clone().into());
        }
        Some(_) => return Err(format!("invalid metadata.{field} in converted object")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(version: &str, name: &str) -> Value {
        json!({"kind": "A", "apiVersion": format!("e.io/{version}"), "metadata": {"name": name, "uid": "u", "generation": 3, "labels": {"a": "1"}}})
    }

    #[test]
    fn only_labels_and_annotations_of_metadata_change() {
        let mut after = object("v2", "x");
        after["metadata"]["generation"] = 9.into();
        after["metadata"]["labels"] = json!({"b": "2"});
        let done = accept(&object("v1", "x"), after, "e.io/v2").unwrap();
        assert_eq!(
            done["metadata"],
            json!({"name": "x", "uid": "u", "generation": 3, "labels": {"b": "2"}})
        );
    }

    #[test]
    fn other_objects_are_refused() {
        let refused = |after: Value| accept(&object("v1", "x"), after, "e.io/v2").unwrap_err();
        assert_eq!(
            refused(object("v2", "y")),
            "must have the same name: x != y"
        );
        assert_eq!(
            refused(object("v3", "x")),
            "invalid groupVersion (expected e.io/v2, received e.io/v3)"
        );
        let mut other = object("v2", "x");
        other["metadata"]["labels"] = json!({"a": 1});
        assert_eq!(
            refused(other),
            "metadata.labels[a] must be a string in converted object"
        );
    }

    #[test]
    fn answers_are_for_the_request_that_was_sent() {
        let version = "apiextensions.k8s.io/v1";
        let answer = |result: Value| json!({"kind": "ConversionReview", "apiVersion": version, "response": {"uid": "1", "result": result, "convertedObjects": [{}]}});
        let good = answer(json!({"status": "Success"}));
        assert_eq!(read(&good, version, "1").unwrap().len(), 1);
        assert!(read(&good, version, "2").is_err());
        let failed = answer(json!({"status": "Failure", "message": "no"}));
        assert_eq!(read(&failed, version, "1").unwrap_err(), "no");
        assert!(read(&json!({}), version, "1").is_err());
    }
}
