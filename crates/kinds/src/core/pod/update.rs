//! What of a pod may change once it exists.

use api::{FieldError, meta};
use serde_json::Value;

const MESSAGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Every broken rule of a change of a pod.
pub(super) fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for list in ["containers", "initContainers"] {
        let (is, was) = (
            meta::list_at(new, &["spec", list]).len(),
            meta::list_at(old, &["spec", list]).len(),
        );
        if is != was {
            let detail = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(format!("spec.{list}"), detail));
        }
    }
    if !errors.is_empty() {
        return errors;
    }
    errors.extend(active_deadline(new, old));
    errors.extend(scheduling_gates(new, old));
    errors.extend(tolerations(new, old));
    let (mut is, was) = (new.clone(), old);
    allow(&mut is, was);
    if is.get("spec") != was.get("spec") {
        let changed = changes(is.get("spec"), was.get("spec"), "spec");
        errors.push(FieldError::forbidden(
            "spec",
            format!("{MESSAGE}\nchanged: {}", changed.join(", ")),
        ));
    }
    errors
}

/// Puts what may change back to what it was.
fn allow(new: &mut Value, old: &Value) {
    for list in ["containers", "initContainers"] {
        let was = meta::list_at(old, &["spec", list]);
        let is = new
            .get_mut("spec")
            .and_then(|s| s.get_mut(list))
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten();
        for (container, before) in is.zip(was) {
            put_back(container, before, &["image"]);
        }
    }
    let gated = !meta::list_at(old, &["spec", "schedulingGates"]).is_empty();
    let mut fields = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    if gated {
        // While gates hold a pod back, its placement may still be narrowed.
        fields.extend(["nodeSelector", "affinity"]);
    }
    if meta::int_at(old, &["spec", "terminationGracePeriodSeconds"]).is_some_and(|n| n < 0)
        && meta::int_at(new, &["spec", "terminationGracePeriodSeconds"]) == Some(1)
    {
        fields.push("terminationGracePeriodSeconds");
    }
    for field in fields {
        put_back(new, old, &["spec", field]);
    }
}

fn put_back(new: &mut Value, old: &Value, path: &[&str]) {
    match meta::get(old, path) {
        Some(value) => meta::set(new, path, value.clone()),
        None => {
            meta::remove(new, path);
        }
    }
}

fn active_deadline(new: &Value, old: &Value) -> Option<FieldError> {
    let path = ["spec", "activeDeadlineSeconds"];
    let (is, was) = (meta::int_at(new, &path), meta::int_at(old, &path));
    match (is, was) {
        (Some(is), Some(was)) if is > was => Some(FieldError::invalid(
            "spec.activeDeadlineSeconds",
            is,
            format!("must be less than or equal to previous value {was}"),
        )),
        (None, Some(_)) => Some(FieldError::invalid(
            "spec.activeDeadlineSeconds",
            Value::Null,
            "must not update from a positive integer to nil value",
        )),
        _ => None,
    }
}

fn scheduling_gates(new: &Value, old: &Value) -> Vec<FieldError> {
    let was = meta::list_at(old, &["spec", "schedulingGates"]);
    let added = |(i, gate): (usize, &Value)| {
        (!was.contains(gate)).then(|| {
            FieldError::forbidden(
                format!("spec.schedulingGates[{i}].name"),
                "only deletion is allowed, but found new scheduling gate",
            )
        })
    };
    meta::list_at(new, &["spec", "schedulingGates"])
        .iter()
        .enumerate()
        .filter_map(added)
        .collect()
}

fn tolerations(new: &Value, old: &Value) -> Option<FieldError> {
    let is = meta::list_at(new, &["spec", "tolerations"]);
    // A toleration may be added, or have its seconds changed.
    let same = |a: &Value, b: &Value| {
        ["key", "operator", "value", "effect"]
            .iter()
            .all(|f| meta::str_at(a, &[f]) == meta::str_at(b, &[f]))
    };
    let kept = meta::list_at(old, &["spec", "tolerations"])
        .iter()
        .all(|t| is.iter().any(|n| same(n, t)));
    (!kept).then(|| {
        FieldError::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        )
    })
}

/// Paths at which two trees differ, in the order of the first.
fn changes(new: Option<&Value>, old: Option<&Value>, at: &str) -> Vec<String> {
    match (new, old) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let mut keys: Vec<&String> = a
                .keys()
                .chain(b.keys().filter(|k| !a.contains_key(*k)))
                .collect();
            keys.retain(|k| a.get(*k) != b.get(*k));
            keys.iter()
                .flat_map(|k| changes(a.get(*k), b.get(*k), &format!("{at}.{k}")))
                .collect()
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) if a.len() == b.len() => {
            let pairs = a.iter().zip(b).enumerate().filter(|(_, (x, y))| x != y);
            pairs
                .flat_map(|(i, (x, y))| changes(Some(x), Some(y), &format!("{at}[{i}]")))
                .collect()
        }
        _ => vec![at.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_some_fields_may_change() {
        let old = json!({"spec": {"containers": [{"name": "a", "image": "x"}], "tolerations": [{"key": "k"}], "nodeName": "n", "activeDeadlineSeconds": 10}});
        let with = |path: &str, value: Value| {
            let mut new = old.clone();
            *new.pointer_mut(path).unwrap() = value;
            validate(&new, &old)
        };
        assert!(with("/spec/containers/0/image", json!("y")).is_empty());
        assert!(with("/spec/activeDeadlineSeconds", json!(5)).is_empty());
        assert!(with("/spec/tolerations", json!([{"key": "k"}, {"key": "l"}])).is_empty());
        assert_eq!(with("/spec/activeDeadlineSeconds", json!(50)).len(), 1);
        assert_eq!(with("/spec/tolerations", json!([{"key": "l"}])).len(), 1);
        let errors = with("/spec/nodeName", json!("m"));
        assert!(
            errors[0]
                .to_string()
                .starts_with("spec: Forbidden: pod updates may not change fields other than"),
            "{errors:?}"
        );
        assert!(errors[0].detail.ends_with("changed: spec.nodeName"));
        assert_eq!(with("/spec/containers", json!([])).len(), 1);
    }
}
