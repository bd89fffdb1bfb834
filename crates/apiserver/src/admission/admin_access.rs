//! Devices are had for administration, beside whoever uses them, only in namespaces that are meant
//! for it.

use api::{FieldError, Status, meta};
use serde_json::Value;

use super::{Admitted, Operation, Plugin, Review};

const GROUP: &str = "resource.k8s.io";
const NAMESPACES: (&str, &str, &str) = ("", "v1", "namespaces");
const LABEL: &str = "resource.kubernetes.io/admin-access";

/// The plugin.
pub struct DeviceAdminAccess;

impl Plugin for DeviceAdminAccess {
    fn name(&self) -> &'static str {
        "DeviceAdminAccess"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.resource.kind.group == GROUP
    }

    fn validate<'a>(&'a self, review: &'a Review<'a>, object: &'a Value) -> Admitted<'a> {
        Box::pin(async move {
            let Some(field) = newly_wanted(review, object) else {
                return Ok(());
            };
            let namespace = review
                .registry
                .read(NAMESPACES, "", review.namespace)
                .await?;
            let label = |n: &Value| n["metadata"]["labels"][LABEL] == "true";
            if namespace.as_ref().is_some_and(label) {
                return Ok(());
            }
            let why = format!(
                "admin access to devices requires the `{LABEL}: true` label on the containing namespace"
            );
            let error = FieldError::forbidden(&field, why);
            let kind = &review.resource.kind.kind;
            let status = Status::invalid(GROUP, kind, review.name, &[error]);
            Err(Box::new(status))
        })
    }
}

/// Where access is asked for or granted that was not there before.
fn newly_wanted(review: &Review<'_>, object: &Value) -> Option<String> {
    let created = review.operation == Operation::Create;
    match (review.resource.kind.resource.as_str(), review.subresource) {
        ("resourceclaims", "") if created => requested(object, &["spec", "devices", "requests"]),
        ("resourceclaimtemplates", "") if created => {
            requested(object, &["spec", "spec", "devices", "requests"])
        }
        ("resourceclaims", "status") => {
            let was = review.old.is_some_and(|old| granted(old).is_some());
            granted(object).filter(|_| !was)
        }
        _ => None,
    }
}

/// The first request of a list that asks for it.
fn requested(object: &Value, path: &[&str]) -> Option<String> {
    let wants = |r: &Value| r["exactly"]["adminAccess"] == true || r["adminAccess"] == true;
    let index = meta::list_at(object, path).iter().position(wants)?;
    Some(format!("spec.devices.requests[{index}].adminAccess"))
}

/// The first device that a claim was given for it.
fn granted(claim: &Value) -> Option<String> {
    let path = ["status", "allocation", "devices", "results"];
    let has = |r: &Value| r["adminAccess"] == true;
    let index = meta::list_at(claim, &path).iter().position(has)?;
    Some(format!(
        "status.allocation.devices.results[{index}].adminAccess"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_that_asks_is_named() {
        let path = ["spec", "devices", "requests"];
        for (requests, expected) in [
            (
                json!([{"name": "a", "exactly": {"adminAccess": false}}]),
                None,
            ),
            (
                json!([{"name": "a"}, {"exactly": {"adminAccess": true}}]),
                Some(1),
            ),
            (json!([{"name": "a", "adminAccess": true}]), Some(0)),
        ] {
            let claim = json!({"spec": {"devices": {"requests": requests}}});
            let expected = expected.map(|i: u8| format!("spec.devices.requests[{i}].adminAccess"));
            assert_eq!(requested(&claim, &path), expected, "{claim}");
        }
    }
}
