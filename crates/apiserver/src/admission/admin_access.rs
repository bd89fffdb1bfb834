//! Devices are had for administration, beside whoever uses them, only in namespaces that are meant
//! for it.

use api::{FieldError, Status, meta};
use serde_json::Value;

use super::{Admitted, Operation, Plugin, Review};

const NAMESPACES: (&str, &str, &str) = ("", "v1", "namespaces");
const LABEL: &str = "resource.kubernetes.io/admin-access";

/// The plugin.
pub struct DeviceAdminAccess;

impl Plugin for DeviceAdminAccess {
    fn name(&self) -> &'static str {
        "DeviceAdminAccess"
    }

    fn validate<'a>(&'a self, review: &'a Review<'a>, object: &'a Value) -> Admitted<'a> {
        Box::pin(async move {
            let group = "resource.k8s.io";
            let path: &[&str] = if review.is(group, "resourceclaims") {
                &["spec", "devices", "requests"]
            } else if review.is(group, "resourceclaimtemplates") {
                &["spec", "spec", "devices", "requests"]
            } else {
                return Ok(());
            };
            if review.operation != Operation::Create || !wants_it(meta::list_at(object, path)) {
                return Ok(());
            }
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
            let error = FieldError::forbidden("", why);
            let kind = &review.resource.kind.kind;
            let status = Status::invalid(group, kind, review.name, &[error]);
            Err(Box::new(status))
        })
    }
}

fn wants_it(requests: &[Value]) -> bool {
    let wants = |r: &Value| r["exactly"]["adminAccess"] == Value::Bool(true);
    requests.iter().any(wants)
}
