//! The downward API: fields of a pod and resources of its containers as text. Pure.

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::pod;
use crate::quantity::{self, Amounts};

/// What a container may be told about where it runs.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Name of the node.
    pub node_name: String,
    /// Addresses of the node, the main one first.
    pub host_ips: Vec<String>,
    /// Addresses of the pod, the main one first.
    pub pod_ips: Vec<String>,
    /// What the node has for pods; the default of limits that are not set.
    pub allocatable: Amounts,
}

/// The value of a field such as `metadata.name` or `metadata.labels['app']`.
///
/// # Errors
/// The text that upstream shows for a field it does not know.
pub fn field(pod: &Pod, path: &str, place: &Place) -> Result<String, String> {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(unsupported(path)),
        };
        let value = map.as_ref().and_then(|m| m.get(key));
        return Ok(value.cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => format_map(meta.labels.iter().flatten()),
        "metadata.annotations" => format_map(meta.annotations.iter().flatten()),
        "spec.nodeName" => place.node_name.clone(),
        "spec.serviceAccountName" => text(&pod::spec(pod).service_account_name),
        "status.hostIP" => place.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => place.host_ips.join(","),
        "status.podIP" => place.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => place.pod_ips.join(","),
        _ => return Err(unsupported(path)),
    })
}

fn unsupported(path: &str) -> String {
    format!("unsupported fieldPath: {path}")
}

/// `map['key']` as its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once('[')?;
    let key = rest.strip_suffix(']')?;
    let unquoted = key
        .strip_prefix('\'')
        .and_then(|k| k.strip_suffix('\''))
        .or_else(|| key.strip_prefix('"').and_then(|k| k.strip_suffix('"')))?;
    Some((map, unquoted))
}

/// Lines `key="value"` as in downward API files.
fn format_map<'a>(entries: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let lines: Vec<_> = entries
        .map(|(key, value)| format!("{key}={}", quote(value)))
        .collect();
    lines.join("\n")
}

/// A string as Go quotes it.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of a `resourceFieldRef`, divided by its divisor and rounded up.
///
/// # Errors
/// The text that upstream shows for an unknown resource or container.
pub fn resource(
    pod: &Pod,
    selector: &ResourceFieldSelector,
    own: Option<&Container>,
    place: &Place,
) -> Result<String, String> {
    let container = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => pod::containers(pod)
            .map(|(_, c)| c)
            .find(|c| c.name == name),
        None => own,
    }
    .ok_or_else(|| {
        let name = selector.container_name.as_deref().unwrap_or_default();
        format!("container {name} not found")
    })?;
    let (kind, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref());
    let requests = resources.and_then(|r| r.requests.as_ref());
    let amount = match kind {
        "limits" => quantity::milli_of(limits, name)
            .filter(|m| *m != 0)
            .or_else(|| quantity::milli_of(Some(&place.allocatable), name)),
        "requests" => quantity::milli_of(requests, name).or(quantity::milli_of(limits, name)),
        _ => {
            return Err(format!(
                "unsupported container resource : {}",
                selector.resource
            ));
        }
    }
    .unwrap_or(0);
    let divisor = selector
        .divisor
        .as_ref()
        .map(quantity::milli)
        .filter(|d| *d > 0)
        .unwrap_or(1000);
    Ok((amount.div_euclid(divisor) + i64::from(amount.rem_euclid(divisor) != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"a": "1", "b": "say \"x\"\n"}},
            "spec": {"serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}}}]}
        }))
        .unwrap()
    }

    #[test]
    fn fields() {
        let place = Place {
            node_name: "node".into(),
            pod_ips: vec!["1.2.3.4".into(), "::1".into()],
            ..Place::default()
        };
        let cases = [
            ("metadata.name", "p"),
            ("metadata.labels['a']", "1"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "a=\"1\"\nb=\"say \\\"x\\\"\\n\""),
            ("spec.nodeName", "node"),
            ("spec.serviceAccountName", "sa"),
            ("status.podIP", "1.2.3.4"),
            ("status.podIPs", "1.2.3.4,::1"),
        ];
        for (path, value) in cases {
            assert_eq!(
                field(&sample(), path, &place).as_deref(),
                Ok(value),
                "{path}"
            );
        }
        assert!(field(&sample(), "spec.restartPolicy", &place).is_err());
    }

    #[test]
    fn resources_divide_and_round_up() {
        let pod = sample();
        let mut place = Place::default();
        place.allocatable.insert(
            "cpu".into(),
            k8s_openapi::apimachinery::pkg::api::resource::Quantity("2".into()),
        );
        let own = Some(&pod::spec(&pod).containers[0]);
        let cases = [
            ("limits.memory", "1Mi", "64"),
            ("limits.memory", "1", "67108864"),
            ("requests.cpu", "1", "1"),
            ("requests.cpu", "1m", "250"),
            ("requests.memory", "1Mi", "64"),
            ("limits.cpu", "1", "2"),
        ];
        for (name, divisor, value) in cases {
            let selector =
                serde_json::from_value(json!({"resource": name, "divisor": divisor})).unwrap();
            assert_eq!(
                resource(&pod, &selector, own, &place).as_deref(),
                Ok(value),
                "{name}/{divisor}"
            );
        }
    }
}
