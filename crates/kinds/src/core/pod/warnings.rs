//! What of a pod spec is accepted but hardly meant.

use std::collections::HashMap;

use api::meta;
use serde_json::Value;

use crate::check::quantity;

/// Warnings about a pod spec at a path.
pub(crate) fn spec_warnings(spec: &Value, at: &str) -> Vec<String> {
    let mut out = Vec::new();
    if meta::int_at(spec, &["terminationGracePeriodSeconds"]).is_some_and(|n| n < 0) {
        out.push(format!("{at}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    for list in ["initContainers", "containers"] {
        for (i, container) in meta::list_at(spec, &[list]).iter().enumerate() {
            container_warnings(container, &format!("{at}.{list}[{i}]"), &mut out);
        }
    }
    out
}

fn container_warnings(container: &Value, at: &str, out: &mut Vec<String>) {
    for what in ["requests", "limits"] {
        for name in ["memory", "ephemeral-storage"] {
            if let Some(q) =
                quantity(container, &["resources", what, name]).filter(|q| !q.is_integer())
            {
                let words = format!(
                    "fractional byte value {:?} is invalid, must be an integer",
                    q.to_string()
                );
                out.push(format!("{at}.resources.{what}[{name}]: {words}"));
            }
        }
    }
    let mut values: HashMap<&str, &Value> = HashMap::new();
    for (i, var) in meta::list_at(container, &["env"]).iter().enumerate() {
        let name = meta::str_at(var, &["name"]);
        if values.insert(name, var).is_some() {
            out.push(format!("{at}.env[{i}]: hides previous definition of {name:?}, which may be dropped when using apply"));
        }
    }
    let mut ports: HashMap<(i64, &str), usize> = HashMap::new();
    for (i, port) in meta::list_at(container, &["ports"]).iter().enumerate() {
        let key = (
            meta::int_at(port, &["containerPort"]).unwrap_or(0),
            meta::str_at(port, &["protocol"]),
        );
        if let Some(first) = ports.insert(key, i) {
            out.push(format!(
                "{at}.ports[{i}]: duplicate port definition with {at}.ports[{first}]"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_hardly_meant() {
        let spec = json!({"containers": [{"env": [{"name": "A"}, {"name": "A"}], "resources": {"limits": {"memory": "100m"}},
            "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}]}]});
        assert_eq!(
            spec_warnings(&spec, "spec"),
            [
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
            ]
        );
    }
}
