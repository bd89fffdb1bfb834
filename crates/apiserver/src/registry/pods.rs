//! The two parts of a running pod's spec that may change, each through a subresource of its own.

use api::{FieldError, meta};
use serde_json::Value;

use super::Part;

/// Makes `after` the old pod with nothing changed but the part; gives what is wrong with the change.
pub(super) fn narrow(part: Part, after: &mut Value, before: &Value) -> Vec<FieldError> {
    let wanted = std::mem::replace(after, before.clone());
    let errors = match part {
        Part::EphemeralContainers => debug(after, &wanted),
        _ => {
            resize(after, &wanted);
            resizable(after, before)
        }
    };
    if after.get("spec") != before.get("spec") {
        let generation = meta::int_at(before, &["metadata", "generation"]).unwrap_or(0);
        meta::set(after, &["metadata", "generation"], (generation + 1).into());
    }
    errors
}

/// Ephemeral containers can be added, never changed or taken away.
fn debug(pod: &mut Value, wanted: &Value) -> Vec<FieldError> {
    const PATH: &str = "spec.ephemeralContainers";
    let new = meta::list_at(wanted, &["spec", "ephemeralContainers"]).to_vec();
    let mut errors = Vec::new();
    for old in meta::list_at(pod, &["spec", "ephemeralContainers"]) {
        let name = meta::str_at(old, &["name"]);
        let what = match new.iter().find(|c| meta::str_at(c, &["name"]) == name) {
            Some(same) if same == old => continue,
            Some(_) => "changed",
            None => "removed",
        };
        let why = format!("existing ephemeral containers {name:?} may not be {what}");
        errors.push(FieldError::forbidden(PATH, why));
    }
    meta::set(pod, &["spec", "ephemeralContainers"], new.into());
    errors
}

fn resize(pod: &mut Value, wanted: &Value) {
    for list in ["containers", "initContainers"] {
        let Some(containers) = pod
            .pointer_mut(&format!("/spec/{list}"))
            .and_then(Value::as_array_mut)
        else {
            continue;
        };
        for container in containers {
            let name = meta::str_at(container, &["name"]).to_owned();
            let new = meta::list_at(wanted, &["spec", list])
                .iter()
                .find(|c| meta::str_at(c, &["name"]) == name);
            for field in ["resources", "resizePolicy"] {
                match new.and_then(|c| c.get(field)) {
                    Some(value) => meta::set(container, &[field], value.clone()),
                    None => drop(meta::remove(container, &[field])),
                }
            }
        }
    }
}

/// Annotation of pods that a node runs by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// What may change while a pod runs.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Every broken rule of a change of resources.
fn resizable(new: &Value, old: &Value) -> Vec<FieldError> {
    if meta::annotation(old, MIRROR).is_some() {
        return vec![FieldError::forbidden("", "static pods cannot be resized")];
    }
    if meta::str_at(old, &["spec", "os", "name"]) == "windows" {
        return vec![FieldError::forbidden("", "windows pods cannot be resized")];
    }
    let mut errors = Vec::new();
    let class = kinds::qos_class(old);
    if class != kinds::qos_class(new) {
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("spec", class, why));
    }
    let mut rest = (new.clone(), old.clone());
    for list in ["containers", "initContainers"] {
        let (now, then) = (
            meta::list_at(new, &["spec", list]),
            meta::list_at(old, &["spec", list]),
        );
        for (at, (now, then)) in now.iter().zip(then).enumerate() {
            for what in ["limits", "requests"] {
                if removed(now, then, what) {
                    let path = format!("spec.{list}[{at}].resources.{what}");
                    let why = format!("resource {what} cannot be removed");
                    errors.push(FieldError::forbidden(path, why));
                }
            }
            // Containers that end before others start have nothing to resize.
            let ends =
                list == "initContainers" && meta::str_at(then, &["restartPolicy"]) != "Always";
            if !ends {
                fixed(&mut rest.0, list, at);
                fixed(&mut rest.1, list, at);
            }
        }
    }
    if rest.0.get("spec") != rest.1.get("spec") {
        let why = "only cpu and memory resources are mutable";
        errors.push(FieldError::forbidden("spec", why));
    }
    errors
}

/// Whether a resource that had an amount has none any more.
fn removed(new: &Value, old: &Value, what: &str) -> bool {
    let amounts = |c: &Value| {
        let map = meta::get(c, &["resources", what]).and_then(Value::as_object);
        map.cloned().unwrap_or_default()
    };
    let now = amounts(new);
    amounts(old).keys().any(|name| !now.contains_key(name))
}

/// Leaves what cannot change of a container.
fn fixed(pod: &mut Value, list: &str, at: usize) {
    for what in ["limits", "requests"] {
        let path = format!("/spec/{list}/{at}/resources/{what}");
        if let Some(amounts) = pod.pointer_mut(&path).and_then(Value::as_object_mut) {
            amounts.retain(|name, _| !RESIZABLE.contains(&name.as_str()));
        }
    }
    let path = format!("/spec/{list}/{at}/resources");
    if let Some(resources) = pod.pointer_mut(&path).and_then(Value::as_object_mut) {
        resources.retain(|_, v| v.as_object().is_none_or(|m| !m.is_empty()));
        if resources.is_empty()
            && let Some(container) = pod
                .pointer_mut(&format!("/spec/{list}/{at}"))
                .and_then(Value::as_object_mut)
        {
            container.remove("resources");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_part_changes() {
        let old = json!({"spec": {"nodeName": "n", "containers": [{"name": "a", "image": "i"}]}});
        let mut new = json!({"spec": {"nodeName": "m", "containers": [{"name": "a", "image": "j", "resources": {"limits": {"cpu": "1"}}}],
            "ephemeralContainers": [{"name": "d", "image": "x"}]}});
        let mut resized = new.clone();
        assert!(narrow(Part::EphemeralContainers, &mut new, &old).is_empty());
        assert_eq!(
            new,
            json!({"spec": {"nodeName": "n", "containers": [{"name": "a", "image": "i"}],
            "ephemeralContainers": [{"name": "d", "image": "x"}]}, "metadata": {"generation": 1}})
        );
        narrow(Part::Resize, &mut resized, &old);
        assert_eq!(
            resized["spec"],
            json!({"nodeName": "n", "containers": [{"name": "a", "image": "i", "resources": {"limits": {"cpu": "1"}}}]})
        );
        assert_eq!(resized["metadata"]["generation"], 1);
        let mut without = old.clone();
        assert_eq!(
            narrow(Part::EphemeralContainers, &mut without, &new).len(),
            1
        );
    }

    #[test]
    fn resources_change_within_their_bounds() {
        let with = |resources: Value| json!({"spec": {"containers": [{"name": "a", "resources": resources}]}});
        let check = |old: Value, new: Value| -> Vec<String> {
            let mut after = with(new);
            let errors = narrow(Part::Resize, &mut after, &with(old));
            errors
                .into_iter()
                .map(|e| format!("{}: {}", e.path, e.detail))
                .collect()
        };
        let burstable = json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}});
        let more = json!({"limits": {"cpu": "3", "memory": "2Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}});
        assert!(check(burstable.clone(), more).is_empty());
        let less = json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1", "memory": "1Gi"}});
        assert_eq!(
            check(burstable.clone(), less),
            ["spec.containers[0].resources.limits: resource limits cannot be removed"]
        );
        let even = json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "2", "memory": "1Gi"}});
        assert_eq!(
            check(burstable.clone(), even),
            ["spec: Pod QOS Class may not change as a result of resizing"]
        );
        let other = json!({"limits": {"cpu": "2", "memory": "1Gi", "ephemeral-storage": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}});
        assert_eq!(
            check(burstable, other),
            ["spec: only cpu and memory resources are mutable"]
        );
    }
}
