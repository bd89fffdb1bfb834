//! Patches: JSON patch (RFC 6902), merge patch (RFC 7386) and Kubernetes' strategic merge patch.

mod strategic;

use api::{Kind, Status};
use serde_json::Value;

pub use strategic::strategic_merge;

/// Most operations a JSON patch may have, as upstream bounds it.
pub const MAX_OPERATIONS: usize = 10_000;

/// Applies a JSON patch.
///
/// # Errors
/// 400 for what is no patch, 413 for too many operations, 422 when an operation does not apply.
pub fn json_patch(original: &Value, patch: &Value) -> Result<Value, Status> {
    let operations = patch.as_array().map_or(0, Vec::len);
    if operations > MAX_OPERATIONS {
        let why = format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {operations}"
        );
        return Err(Status::too_large(why));
    }
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    let mut out = original.clone();
    // Upstream says no more than this, whichever operation fails.
    let refused = "the server rejected our request due to an error in our request";
    json_patch::patch(&mut out, &patch).map_err(|_| Status::failure(422, "Invalid", refused))?;
    Ok(out)
}

/// Applies a merge patch: nulls delete, objects merge, everything else replaces.
pub fn merge_patch(original: &Value, patch: &Value) -> Value {
    let mut out = original.clone();
    json_patch::merge(&mut out, patch);
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
    fn json_patches() {
        let obj = json!({"a": [1, 2], "b": {"c/d": 1}});
        let patch = json!([{"op": "test", "path": "/a/0", "value": 1}, {"op": "add", "path": "/a/-", "value": 3}, {"op": "replace", "path": "/b/c~1d", "value": 2}]);
        assert_eq!(
            json_patch(&obj, &patch).unwrap(),
            json!({"a": [1, 2, 3], "b": {"c/d": 2}})
        );
        let failed =
            json_patch(&obj, &json!([{"op": "test", "path": "/a/0", "value": 5}])).unwrap_err();
        assert_eq!((failed.code, failed.reason.as_str()), (422, "Invalid"));
        assert_eq!(
            json_patch(&obj, &json!([{"op": "remove", "path": "/x"}]))
                .unwrap_err()
                .code,
            422
        );
        assert_eq!(json_patch(&obj, &json!({"a": 1})).unwrap_err().code, 400);
        let many: Vec<Value> = (0..=MAX_OPERATIONS)
            .map(|_| json!({"op": "test", "path": "/a/0", "value": 1}))
            .collect();
        assert_eq!(json_patch(&obj, &Value::Array(many)).unwrap_err().code, 413);
    }

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
