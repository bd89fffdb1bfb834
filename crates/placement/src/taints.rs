//! What tolerations say of taints.

use k8s_openapi::api::{
    core::v1::{Taint, Toleration},
    resource::v1::{DeviceTaint, DeviceToleration},
};

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    let own = toleration.value.as_deref().unwrap_or_default();
    let value = taint.value.as_deref().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => own == value,
        "Exists" => true,
        "Gt" => integers(value, own).is_some_and(|(taint, own)| taint > own),
        "Lt" => integers(value, own).is_some_and(|(taint, own)| taint < own),
        _ => false,
    }
}

/// Whether a toleration covers a taint of a device.
pub fn tolerates_device(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let given = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    given(&toleration.effect).is_none_or(|e| e == taint.effect)
        && given(&toleration.key).is_none_or(|k| k == taint.key)
        && match toleration.operator.as_deref().unwrap_or("Equal") {
            "Exists" => true,
            "" | "Equal" => given(&toleration.value) == given(&taint.value),
            _ => false,
        }
}

fn integers(a: &str, b: &str) -> Option<(i64, i64)> {
    Some((a.parse().ok()?, b.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn operators_compare_the_values() {
        let tolerates = |toleration: Value| {
            let taint = json!({"key": "k", "value": "5", "effect": "NoSchedule"});
            let taint: Taint = serde_json::from_value(taint).unwrap();
            let toleration: Toleration = serde_json::from_value(toleration).unwrap();
            tolerates(&toleration, &taint)
        };
        for (toleration, expected) in [
            (json!({"key": "k", "value": "5"}), true),
            (
                json!({"key": "k", "operator": "Equal", "value": "6"}),
                false,
            ),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (
                json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}),
                false,
            ),
            (json!({"key": "other", "operator": "Exists"}), false),
            (json!({"key": "k", "operator": "Gt", "value": "4"}), true),
            (json!({"key": "k", "operator": "Lt", "value": "4"}), false),
            (json!({"key": "k", "operator": "Lt", "value": "x"}), false),
        ] {
            assert_eq!(tolerates(toleration.clone()), expected, "{toleration}");
        }
    }
}
