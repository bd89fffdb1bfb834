//! Volumes, claims and classes of attributes are protected from their first moment on: were it left to the
//! controllers, what is deleted at once could go while it is used.

use api::meta;
use serde_json::Value;

use super::{Admitted, Operation, Plugin, Review};

/// What is protected (group, resource), and the finalizer that does it.
const PROTECTED: [(&str, &str, &str); 3] = [
    ("", "persistentvolumes", "kubernetes.io/pv-protection"),
    ("", "persistentvolumeclaims", "kubernetes.io/pvc-protection"),
    (
        "storage.k8s.io",
        "volumeattributesclasses",
        "kubernetes.io/vac-protection",
    ),
];

/// The plugin.
pub struct StorageObjectInUseProtection;

fn finalizer(review: &Review<'_>) -> Option<&'static str> {
    let found = PROTECTED.iter().find(|(g, r, _)| review.is(g, r));
    found.map(|(_, _, finalizer)| *finalizer)
}

impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.operation == Operation::Create && finalizer(review).is_some()
    }

    fn mutate<'a>(&'a self, review: &'a Review<'a>, object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async move {
            if let Some(finalizer) = finalizer(review) {
                protect(object, finalizer);
            }
            Ok(())
        })
    }
}

fn protect(object: &mut Value, finalizer: &str) {
    let path = ["metadata", "finalizers"];
    let mut all = meta::list_at(object, &path).to_vec();
    if all.iter().all(|f| f != finalizer) {
        all.push(finalizer.into());
        meta::set(object, &path, all.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_finalizer_is_added_once_after_those_that_are_there() {
        for (given, expected) in [
            (json!({}), json!(["p"])),
            (json!({"finalizers": null}), json!(["p"])),
            (json!({"finalizers": ["a"]}), json!(["a", "p"])),
            (json!({"finalizers": ["p", "a"]}), json!(["p", "a"])),
        ] {
            let mut object = json!({"metadata": given});
            protect(&mut object, "p");
            assert_eq!(object["metadata"]["finalizers"], expected);
        }
    }
}
