//! Claims of volumes may ask for more only where their class lets volumes grow.

use api::{Quantity, meta, storage_class};
use serde_json::Value;

use super::{Admitted, Operation, Plugin, Review};

const CLASSES: (&str, &str, &str) = ("storage.k8s.io", "v1", "storageclasses");
const NOT_BOUND: &str = "Only bound persistent volume claims can be expanded";
const NOT_ALLOWED: &str = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";

/// The plugin.
pub struct PersistentVolumeClaimResize;

impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.operation == Operation::Update && review.is("", "persistentvolumeclaims")
    }

    fn validate<'a>(&'a self, review: &'a Review<'a>, object: &'a Value) -> Admitted<'a> {
        Box::pin(async move {
            let Some(old) = review.old.filter(|old| grows(old, object)) else {
                return Ok(());
            };
            if meta::str_at(old, &["status", "phase"]) != "Bound" {
                return Err(review.forbidden(NOT_BOUND));
            }
            let name = storage_class::of(object);
            let found = if name.is_empty() || name != storage_class::of(old) {
                None
            } else {
                review.registry.read(CLASSES, "", name).await?
            };
            let allows = |c: &Value| c["allowVolumeExpansion"] == Value::Bool(true);
            if found.as_ref().is_some_and(allows) {
                return Ok(());
            }
            Err(review.forbidden(NOT_ALLOWED))
        })
    }
}

/// Whether more is asked for than before.
fn grows(old: &Value, new: &Value) -> bool {
    let size = |claim| {
        let text = meta::str_at(claim, &["spec", "resources", "requests", "storage"]);
        text.parse::<Quantity>().unwrap_or_default()
    };
    size(new) > size(old)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_are_compared_as_quantities() {
        let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        assert!(grows(&claim("1Gi"), &claim("2Gi")));
        assert!(!grows(&claim("1Gi"), &claim("1024Mi")));
        assert!(!grows(&claim("2Gi"), &claim("1Gi")));
    }
}
