//! Owners of a workload's replicas, seen from its scale and back.
//!
//! The scale subresource is another kind in another version, but its replicas are a field of the workload: who
//! owns the one owns the other.

use serde_json::Value;

use super::managers::{self, Entry};
use super::path::PathElement;
use super::set::Set;

/// Version of Scale.
const SCALE_VERSION: &str = "autoscaling/v1";
/// Where a Scale has its replicas.
const SCALE_REPLICAS: &[&str] = &["spec", "replicas"];

fn path(fields: &[&str]) -> Vec<PathElement> {
    fields.iter().map(|f| PathElement::field(f)).collect()
}

/// The list of owners of a Scale, from that of the object it scales.
///
/// # Errors
/// For lists that make no sense.
pub fn to_scale(managed: Option<&Value>, replicas: &[&str]) -> Result<Option<Value>, String> {
    let replicas = path(replicas);
    let entries = managers::decode(managed)?
        .into_iter()
        .filter(|e| e.set().has(&replicas))
        .map(|mut e| {
            e.manager.api_version = SCALE_VERSION.to_owned();
            e.own(Set::of_fields(&[SCALE_REPLICAS]));
            e
        })
        .collect();
    Ok(managers::encode(entries))
}

/// The list of owners of the scaled object after that of its Scale became `scale`.
///
/// # Errors
/// For lists that make no sense.
pub fn from_scale(
    managed: Option<&Value>,
    scale: Option<&Value>,
    api_version: &str,
    replicas: &[&str],
) -> Result<Option<Value>, String> {
    let own = Set::of_fields(&[replicas]);
    let replicas = path(replicas);
    let mut scale = managers::decode(scale)?;
    let mut out: Vec<Entry> = Vec::new();
    for mut entry in managers::decode(managed)? {
        if entry.set().has(&replicas) {
            let same = scale.iter().position(|s| {
                let mut then = entry.manager.clone();
                then.api_version = SCALE_VERSION.to_owned();
                s.manager.is(&then)
            });
            match same {
                Some(at) => {
                    scale.remove(at);
                }
                None => entry.lose(&own),
            }
        }
        if !entry.set().is_empty() {
            out.push(entry);
        }
    }
    for mut entry in scale {
        if entry.set().has(&path(SCALE_REPLICAS)) {
            entry.manager.api_version = api_version.to_owned();
            entry.own(own.clone());
            out.push(entry);
        }
    }
    Ok(managers::encode(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(name: &str, version: &str, fields: Value, subresource: Option<&str>) -> Value {
        let mut entry = json!({"manager": name, "operation": "Update", "apiVersion": version, "fieldsType": "FieldsV1", "fieldsV1": fields});
        if let Some(subresource) = subresource {
            entry["subresource"] = subresource.into();
        }
        entry
    }

    #[test]
    fn replicas_change_hands() {
        let replicas = json!({"f:spec": {"f:replicas": {}}});
        let both = json!({"f:spec": {"f:replicas": {}, "f:paused": {}}});
        let parent = json!([entry("kubectl", "apps/v1", both, None)]);
        let at = &["spec", "replicas"];
        let scale = to_scale(Some(&parent), at).unwrap().unwrap();
        assert_eq!(
            scale,
            json!([entry("kubectl", "autoscaling/v1", replicas.clone(), None)])
        );
        assert_eq!(
            from_scale(Some(&parent), Some(&scale), "apps/v1", at).unwrap(),
            Some(parent.clone())
        );
        let taken = json!([entry(
            "hpa",
            "autoscaling/v1",
            replicas.clone(),
            Some("scale")
        )]);
        assert_eq!(
            from_scale(Some(&parent), Some(&taken), "apps/v1", at).unwrap(),
            Some(json!([
                entry("hpa", "apps/v1", replicas, Some("scale")),
                entry(
                    "kubectl",
                    "apps/v1",
                    json!({"f:spec": {"f:paused": {}}}),
                    None
                )
            ]))
        );
    }
}
