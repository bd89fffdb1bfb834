//! What is filled in for pods and pod templates, where it depends on other fields.

use api::{Quantity, meta};
use serde_json::{Map, Value, json};

/// Fills in a pod spec wherever it occurs.
pub(crate) fn default_spec(spec: &mut Value) {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items(spec, list) {
            default_container(container);
        }
    }
    for volume in items(spec, "volumes") {
        default_volume(volume);
    }
    // The old name of the field mirrors the new one, in both directions.
    let (new, old) = (
        meta::str_at(spec, &["serviceAccountName"]).to_owned(),
        meta::str_at(spec, &["serviceAccount"]).to_owned(),
    );
    if new.is_empty() && !old.is_empty() {
        meta::set(spec, &["serviceAccountName"], old.into());
    } else if !new.is_empty() && new != old {
        meta::set(spec, &["serviceAccount"], new.into());
    }
}

/// Fills in what Pods have and templates do not.
pub(super) fn default_pod(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec") else {
        return;
    };
    let host_network = meta::bool_at(spec, &["hostNetwork"]);
    for list in ["initContainers", "containers"] {
        for container in items(spec, list) {
            requests_from_limits(container);
            for port in items(container, "ports").filter(|_| host_network) {
                if meta::int_at(port, &["hostPort"]).unwrap_or(0) == 0
                    && let Some(number) = port.get("containerPort").cloned()
                {
                    meta::set(port, &["hostPort"], number);
                }
            }
        }
    }
    pod_level_requests(spec);
}

fn items<'a>(value: &'a mut Value, list: &str) -> impl Iterator<Item = &'a mut Value> {
    value
        .get_mut(list)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

fn default_container(container: &mut Value) {
    if meta::str_at(container, &["imagePullPolicy"]).is_empty() {
        let policy = pull_policy(meta::str_at(container, &["image"]));
        meta::set(container, &["imagePullPolicy"], policy.into());
    }
}

/// `Always` for images whose content may change under their name.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn default_volume(volume: &mut Value) {
    let Some(map) = volume.as_object_mut() else {
        return;
    };
    if map.keys().all(|k| k == "name") {
        map.insert("emptyDir".to_owned(), json!({}));
    }
    if let Some(image) = map
        .get_mut("image")
        .filter(|i| meta::str_at(i, &["pullPolicy"]).is_empty())
    {
        let policy = pull_policy(meta::str_at(image, &["reference"]));
        meta::set(image, &["pullPolicy"], policy.into());
    }
}

fn requests_from_limits(container: &mut Value) {
    let Some(limits) = meta::get(container, &["resources", "limits"])
        .and_then(Value::as_object)
        .cloned()
    else {
        return;
    };
    let requests = meta::object_at(container, &["resources", "requests"]);
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
    if requests.is_empty() {
        meta::remove(container, &["resources", "requests"]);
    }
}

/// Pod-level limits without requests: what the containers request together, or else the limits.
fn pod_level_requests(spec: &mut Value) {
    let Some(limits) = meta::get(spec, &["resources", "limits"])
        .and_then(Value::as_object)
        .cloned()
    else {
        return;
    };
    let mut totals: Map<String, Value> = Map::new();
    for name in limits.keys() {
        let mut sum = Quantity::default();
        for container in meta::list_at(spec, &["containers"]) {
            sum += crate::check::quantity(container, &["resources", "requests", name])
                .unwrap_or_default();
        }
        if !sum.is_zero() {
            totals.insert(name.clone(), sum.to_string().into());
        }
    }
    let requests = meta::object_at(spec, &["resources", "requests"]);
    for (name, limit) in limits {
        let value = totals.remove(&name).unwrap_or(limit);
        requests.entry(name).or_insert(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.0", "IfNotPresent"),
            ("r:5000/nginx", "Always"),
            ("r:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:ab", "IfNotPresent"),
            ("nginx:latest@sha256:ab", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn specs() {
        let mut pod = json!({"spec": {"hostNetwork": true, "serviceAccount": "s", "volumes": [{"name": "a"}],
            "containers": [{"image": "x", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}}]}});
        default_spec(&mut pod["spec"]);
        default_pod(&mut pod);
        assert_eq!(
            pod["spec"]["volumes"][0],
            json!({"name": "a", "emptyDir": {}})
        );
        assert_eq!(pod["spec"]["serviceAccountName"], "s");
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["ports"][0]["hostPort"], 80);
        assert_eq!(
            container["resources"]["requests"],
            json!({"cpu": "500m", "memory": "1Gi"})
        );
    }
}
