//! Which storage class a claim or a volume names: an annotation of old times goes before its specification.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::meta;

/// Names the class of a claim or volume, as it once was.
pub const ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// The class, by annotations and specification; empty: none.
pub fn named<'a>(
    annotations: Option<&'a BTreeMap<String, String>>,
    spec: Option<&'a str>,
) -> &'a str {
    let older = annotations.and_then(|a| a.get(ANNOTATION));
    older.map(String::as_str).or(spec).unwrap_or_default()
}

/// The class that an object names; empty: none.
pub fn of(object: &Value) -> &str {
    let today = || meta::str_at(object, &["spec", "storageClassName"]);
    meta::annotation(object, ANNOTATION).unwrap_or_else(today)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_annotation_goes_first() {
        for (annotation, spec, expected) in [
            (None, None, ""),
            (None, Some("new"), "new"),
            (Some("old"), None, "old"),
            (Some("old"), Some("new"), "old"),
            (Some(""), Some("new"), ""),
        ] {
            let annotations: BTreeMap<String, String> = annotation
                .map(|a| (ANNOTATION.into(), a.into()))
                .into_iter()
                .collect();
            assert_eq!(named(Some(&annotations), spec), expected);
            let object = json!({"metadata": {"annotations": annotations},
                "spec": {"storageClassName": spec}});
            assert_eq!(of(&object), expected);
        }
        assert_eq!(named(None, Some("new")), "new");
    }
}
