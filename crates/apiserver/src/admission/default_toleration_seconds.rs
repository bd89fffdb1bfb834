//! Pods tolerate an unreachable or not-ready node for five minutes unless they say otherwise.

use api::meta;
use serde_json::{Value, json};

use super::{Admitted, Plugin, Review};

/// Seconds a pod stays on such a node.
const SECONDS: i64 = 300;
const TAINTS: [&str; 2] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];

/// The plugin.
pub struct DefaultTolerationSeconds;

impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates("", "pods")
    }

    fn mutate<'a>(&'a self, _review: &'a Review<'a>, object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async move {
            complete(object);
            Ok(())
        })
    }
}

fn tolerates(toleration: &Value, taint: &str) -> bool {
    let key = meta::str_at(toleration, &["key"]);
    let effect = meta::str_at(toleration, &["effect"]);
    (key.is_empty() || key == taint) && matches!(effect, "" | "NoExecute")
}

fn complete(pod: &mut Value) {
    let mut tolerations = meta::list_at(pod, &["spec", "tolerations"]).to_vec();
    let missing: Vec<&str> = TAINTS
        .into_iter()
        .filter(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
        .collect();
    if missing.is_empty() {
        return;
    }
    tolerations.extend(missing.iter().map(
        |key| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}),
    ));
    meta::set(pod, &["spec", "tolerations"], tolerations.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_added() {
        let mut pod = json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]}});
        complete(&mut pod);
        let tolerations = pod["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(tolerations.len(), 2);
        assert_eq!(tolerations[1]["key"], "node.kubernetes.io/unreachable");
        let mut all = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        let before = all.clone();
        complete(&mut all);
        assert_eq!(all, before);
    }
}
