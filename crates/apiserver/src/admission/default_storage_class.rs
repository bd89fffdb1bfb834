//! Claims that name no storage class get the default one.

use api::{meta, storage_class};
use serde_json::Value;

use super::{Admitted, Plugin, Review};

const DEFAULTS: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

/// The plugin.
pub struct DefaultStorageClass;

impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates("", "persistentvolumeclaims")
    }

    fn mutate<'a>(&'a self, review: &'a Review<'a>, object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async move {
            let named = meta::get(object, &["spec", "storageClassName"]).is_some()
                || meta::annotation(object, storage_class::ANNOTATION).is_some();
            if named {
                return Ok(());
            }
            let classes = review
                .registry
                .read_all(("storage.k8s.io", "v1", "storageclasses"), "")
                .await?;
            if let Some(name) = newest_default(&classes, &DEFAULTS) {
                meta::set(object, &["spec", "storageClassName"], name.into());
            }
            Ok(())
        })
    }
}

/// The newest class that one of these annotations makes the default one; of several of one age the first by name.
pub(super) fn newest_default<'a>(classes: &'a [Value], marks: &[&str]) -> Option<&'a str> {
    let is_default = |c: &&Value| marks.iter().any(|a| meta::annotation(c, a) == Some("true"));
    let created = |c: &Value| meta::str_at(c, &["metadata", "creationTimestamp"]).to_owned();
    classes
        .iter()
        .filter(is_default)
        .min_by(|a, b| {
            created(b)
                .cmp(&created(a))
                .then_with(|| meta::name(a).cmp(meta::name(b)))
        })
        .map(meta::name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_default_wins() {
        let class = |name: &str, created: &str, default: &str| json!({"metadata": {"name": name, "creationTimestamp": created, "annotations": {(DEFAULTS[0]): default}}});
        let classes = [
            class("a", "2020", "true"),
            class("b", "2021", "true"),
            class("c", "2022", "false"),
        ];
        assert_eq!(newest_default(&classes, &DEFAULTS), Some("b"));
        assert_eq!(newest_default(&classes[2..], &DEFAULTS), None);
        assert_eq!(newest_default(&classes, &DEFAULTS[1..]), None);
    }
}
