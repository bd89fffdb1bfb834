//! The scale subresource: replicas of a workload as `autoscaling/v1` Scale.

use api::custom::ScalePaths;
use api::selector::LabelSelector;
use api::{Status, meta};
use serde_json::{Value, json};

use super::{Fail, Part, Registry, Resource, Stored, Write};

/// Marks replicas that are not set, so that a patch which sets none is noticed: the smallest number there is.
const UNSET: i64 = i32::MIN as i64;

/// The Scale of an object: of `spec.replicas`, or of what `paths` say.
pub fn scale_of(object: &Value, revision: u64, paths: Option<&ScalePaths>) -> Value {
    let mut metadata = json!({"name": meta::name(object), "namespace": meta::namespace(object)});
    for field in ["uid", "creationTimestamp"] {
        if let Some(value) = meta::get(object, &["metadata", field]) {
            metadata[field] = value.clone();
        }
    }
    metadata["resourceVersion"] = revision.to_string().into();
    let at = |path: &[String]| {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        meta::get(object, &path)
    };
    let (wanted, there, selector) = match paths {
        None => (
            meta::int_at(object, &["spec", "replicas"]).unwrap_or(0),
            meta::int_at(object, &["status", "replicas"]),
            selector_text(object),
        ),
        Some(paths) => (
            at(&paths.spec).and_then(Value::as_i64).unwrap_or(UNSET),
            at(&paths.status).and_then(Value::as_i64),
            at(&paths.selector)
                .and_then(Value::as_str)
                .map(str::to_owned),
        ),
    };
    let mut status = json!({"replicas": there.unwrap_or(0)});
    if let Some(selector) = selector.filter(|s| !s.is_empty()) {
        status["selector"] = selector.into();
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": wanted},
        "status": status,
    })
}

fn paths_of(resource: &Resource) -> Option<&ScalePaths> {
    resource.kind.custom.as_ref()?.scale.as_ref()
}

fn selector_text(object: &Value) -> Option<String> {
    let selector = meta::get(object, &["spec", "selector"])?;
    let plain = selector.as_object()?.values().all(Value::is_string);
    let parsed = if plain {
        // A replication controller's selector is a map of labels.
        let pairs = selector
            .as_object()?
            .iter()
            .filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)));
        LabelSelector::from_map(pairs)
    } else {
        LabelSelector::from_value(selector).ok()?
    };
    Some(parsed.to_string())
}

impl Registry {
    /// The Scale of an object.
    ///
    /// # Errors
    /// 404 when there is no such object.
    pub async fn get_scale(&self, write: &Write<'_>) -> Result<Value, Fail> {
        let stored = self
            .get(write.resource, write.namespace, write.name)
            .await?;
        let object = write.resource.load(&stored)?;
        let paths = paths_of(write.resource);
        let scale = scale_of(&object, stored.revision, paths);
        if let Some(paths) = paths
            && meta::int_at(&scale, &["spec", "replicas"]) == Some(UNSET)
        {
            let why = format!(
                "the spec replicas field \".{}\" does not exist",
                paths.spec.join(".")
            );
            return Err(Box::new(Status::internal(why)));
        }
        Ok(scale)
    }

    /// Sets replicas to what `change` makes of the current Scale.
    ///
    /// # Errors
    /// As [`Registry::update`], and 422 for a negative number.
    pub async fn update_scale<F>(&self, write: &Write<'_>, mut change: F) -> Result<Value, Fail>
    where
        F: FnMut(&Value) -> Result<Value, Fail> + Send,
    {
        let paths = paths_of(write.resource);
        // Owners of the replicas come from the Scale, not from what becomes of the object.
        let inner = Write {
            owner: None,
            ..*write
        };
        let stored: Stored = self
            .update(&inner, Part::Main, |object| {
                let revision = meta::str_at(object, &["metadata", "resourceVersion"])
                    .parse()
                    .unwrap_or(0);
                let mut scale = scale_of(object, revision, paths);
                write.own_scale(object, &mut scale);
                let wanted = change(&scale)?;
                let replicas = meta::int_at(&wanted, &["spec", "replicas"]).unwrap_or(0);
                let path: Vec<&str> = match paths {
                    Some(paths) => paths.spec.iter().map(String::as_str).collect(),
                    None => vec!["spec", "replicas"],
                };
                if replicas == UNSET {
                    let why = format!(
                        "the spec replicas field \".{}\" cannot be empty",
                        path.join(".")
                    );
                    return Err(Box::new(Status::bad_request(why)));
                }
                if replicas < 0 {
                    let why = api::FieldError::invalid(
                        "spec.replicas",
                        replicas,
                        "must be greater than or equal to 0",
                    );
                    return Err(Box::new(Status::invalid(
                        "autoscaling",
                        "Scale",
                        write.name,
                        &[why],
                    )));
                }
                let mut object = object.clone();
                meta::set(&mut object, &path, replicas.into());
                // The client's precondition counts; without one the change applies to whatever is there.
                match meta::str_at(&wanted, &["metadata", "resourceVersion"]) {
                    "" => {
                        meta::remove(&mut object, &["metadata", "resourceVersion"]);
                    }
                    asked => meta::set(&mut object, &["metadata", "resourceVersion"], asked.into()),
                }
                write.disown_scale(&scale, wanted, &mut object);
                Ok(object)
            })
            .await?;
        let object = write.resource.load(&stored)?;
        Ok(scale_of(&object, stored.revision, paths))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_replicas_and_selector() {
        let d = json!({"metadata": {"name": "d", "namespace": "n", "uid": "u"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 2}});
        let s = scale_of(&d, 9, None);
        assert_eq!(s["spec"]["replicas"], 3);
        assert_eq!(s["status"], json!({"replicas": 2, "selector": "a=b"}));
        assert_eq!(s["metadata"]["resourceVersion"], "9");
        let rc = json!({"metadata": {"name": "d"}, "spec": {"selector": {"a": "b"}}});
        assert_eq!(scale_of(&rc, 1, None)["status"]["selector"], "a=b");
    }
}
