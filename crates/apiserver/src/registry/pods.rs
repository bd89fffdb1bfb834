//! The two parts of a running pod's spec that may change, each through a subresource of its own.

use api::{FieldError, meta};
use serde_json::Value;

use super::Part;

/// Makes `after` the old pod with nothing changed but the part; gives what is wrong with the change.
pub(super) fn narrow(part: Part, after: &mut Value, before: &Value) -> Vec<FieldError> {
    let wanted = std::mem::replace(after, before.clone());
    match part {
        Part::EphemeralContainers => debug(after, &wanted),
        _ => {
            resize(after, &wanted);
            Vec::new()
        }
    }
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
            "ephemeralContainers": [{"name": "d", "image": "x"}]}})
        );
        narrow(Part::Resize, &mut resized, &old);
        assert_eq!(
            resized["spec"],
            json!({"nodeName": "n", "containers": [{"name": "a", "image": "i", "resources": {"limits": {"cpu": "1"}}}]})
        );
        let mut without = old.clone();
        assert_eq!(
            narrow(Part::EphemeralContainers, &mut without, &new).len(),
            1
        );
    }
}
