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
    json_patch::patch(&mut out, &patch).map_err(|e| unprocessable(&refusal(&e, &patch)))?;
    Ok(out)
}

fn unprocessable(why: &str) -> Status {
    Status::failure(
        422,
        "Invalid",
        format!("the server rejected our request due to an error in our request: {why}"),
    )
}

/// What upstream's patch library says of a failed operation.
fn refusal(error: &json_patch::PatchError, patch: &json_patch::Patch) -> String {
    use json_patch::{PatchErrorKind, PatchOperation as Op};
    let name = match patch.0.get(error.operation) {
        Some(Op::Add(_)) => "add",
        Some(Op::Remove(_)) => "remove",
        Some(Op::Replace(_)) => "replace",
        Some(Op::Move(_)) => "move",
        Some(Op::Copy(_)) => "copy",
        Some(Op::Test(_)) | None => "test",
    };
    match error.kind {
        PatchErrorKind::TestFailed => format!("testing value {} failed", error.path),
        _ if name == "remove" => format!(
            "remove operation does not apply: doc is missing path: {:?}: missing value",
            error.path.to_string()
        ),
        _ => format!(
            "{name} operation does not apply: doc is missing path: {}: missing value",
            error.path
        ),
    }
}

/// Applies a merge patch: nulls delete, objects merge, everything else replaces.
pub fn merge_patch(original: &Value, patch: &Value) -> Value {
    let mut out = original.clone();
    json_patch::merge(&mut out, patch);
    out
}

/// Whether the kind's objects can be patched strategically: custom ones cannot, for want of merge keys.
pub fn supports_strategic(kind: &Kind) -> bool {
    kind.schema.name().starts_with("io.k8s.")
}
