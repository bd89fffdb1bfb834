//! Patches: JSON patch (RFC 6902), merge patch (RFC 7386) and Kubernetes' strategic merge patch.

mod json;
mod strategic;

use api::Kind;
use serde_json::Value;

pub use json::{MAX_OPERATIONS, json_patch};
pub use strategic::strategic_merge;

/// Applies a merge patch: nulls delete, objects merge, everything else replaces.
pub fn merge_patch(original: &Value, patch: &Value) -> Value {
    let mut out = original.clone();
    ::json_patch::merge(&mut out, patch);
    out
}

/// Whether the kind's objects can be patched strategically: custom ones cannot, for want of merge keys.
pub fn supports_strategic(kind: &Kind) -> bool {
    kind.custom.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merge_patches() {
        assert_eq!(
            merge_patch(
                &json!({"a": {"b": 1, "c": 2}}),
                &json!({"a": {"b": null}, "d": [1]})
            ),
            json!({"a": {"c": 2}, "d": [1]})
        );
    }
}
