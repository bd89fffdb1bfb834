//! Deployments.

use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::{Value, json};

use super::{Counts, default_template, selector_and_template, validate_lasting_template};
use crate::cells::{Cell, render};
use crate::check::{
    at_most_whole, count_or_percent, count_or_share, immutable, internal, not_negative,
};
use crate::strategy::Strategy;

/// Rules of Deployments.
pub(crate) struct Deployment;

impl Strategy for Deployment {
    fn default(&self, obj: &mut Value) {
        default_template(obj, &["spec", "template"]);
        if meta::str_at(obj, &["spec", "strategy", "type"]) == "RollingUpdate" {
            let rolling = meta::object_at(obj, &["spec", "strategy", "rollingUpdate"]);
            for field in ["maxUnavailable", "maxSurge"] {
                rolling.entry(field).or_insert_with(|| json!("25%"));
            }
        }
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        let spec = obj.get("spec").unwrap_or(&Value::Null);
        let mut errors = not_negative(spec, "spec", &["replicas"]);
        errors.extend(selector_and_template(
            spec,
            "deployment",
            "invalid label selector",
            || validate_lasting_template(spec, "ReplicaSet"),
        ));
        errors.extend(validate_strategy(
            spec.get("strategy").unwrap_or(&Value::Null),
        ));
        let counts = [
            "minReadySeconds",
            "revisionHistoryLimit",
            "progressDeadlineSeconds",
        ];
        errors.extend(not_negative(spec, "spec", &counts));
        let (deadline, ready) = (
            meta::int_at(spec, &["progressDeadlineSeconds"]),
            meta::int_at(spec, &["minReadySeconds"]).unwrap_or(0),
        );
        if let Some(n) = deadline.filter(|n| *n <= ready) {
            errors.push(FieldError::invalid(
                "spec.progressDeadlineSeconds",
                n,
                "must be greater than minReadySeconds",
            ));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        immutable(new, old, &["spec", "selector"])
            .into_iter()
            .collect()
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        COUNTS.validate(new, old)
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        super::template_warnings(obj)
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Option<Vec<Value>> {
        Some(render(CELLS, obj, now))
    }

    fn has_generation(&self) -> bool {
        true
    }
}

const COUNTS: Counts = Counts {
    all: &[
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "collisionCount",
    ],
    bounded: &["updatedReplicas", "readyReplicas", "availableReplicas"],
    available: "cannot be greater than readyReplicas",
};

const CELLS: &[Cell] = &[
    Cell::Name,
    Cell::With(ready),
    Cell::Int(&["status", "updatedReplicas"]),
    Cell::Int(&["status", "availableReplicas"]),
    Cell::Age,
    Cell::Containers(&["spec", "template", "spec"]),
    Cell::Images(&["spec", "template", "spec"]),
    Cell::Selector(&["spec", "selector"]),
];

/// Ready of wanted replicas.
pub(super) fn ready(obj: &Value, _now: Timestamp) -> Value {
    let number = |path: &[&str]| meta::int_at(obj, path).unwrap_or(0);
    format!(
        "{}/{}",
        number(&["status", "readyReplicas"]),
        number(&["spec", "replicas"])
    )
    .into()
}

fn validate_strategy(strategy: &Value) -> Vec<FieldError> {
    let at = "spec.strategy.rollingUpdate";
    let rolling = strategy.get("rollingUpdate");
    match (meta::str_at(strategy, &["type"]), rolling) {
        ("Recreate", None) => Vec::new(),
        ("Recreate", Some(_)) => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            vec![FieldError::forbidden(at, why)]
        }
        ("RollingUpdate", None) => {
            let why = "this should be defaulted and never be nil";
            vec![FieldError::required(at, why)]
        }
        ("RollingUpdate", Some(rolling)) => validate_rolling(rolling, at),
        (kind, rolling) => {
            let shown = [
                ("Type", kind.into()),
                ("RollingUpdate", rolling.map(internal).into()),
            ];
            let allowed = &["Recreate", "RollingUpdate"];
            let error = FieldError::not_supported("spec.strategy", Value::Null, allowed);
            vec![error.showing(&shown)]
        }
    }
}

fn validate_rolling(rolling: &Value, at: &str) -> Vec<FieldError> {
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    let path = format!("{at}.maxUnavailable");
    let mut errors = count_or_percent(unavailable, &path);
    errors.extend(count_or_percent(surge, &format!("{at}.maxSurge")));
    if count_or_share(unavailable) == 0 && count_or_share(surge) == 0 {
        let value = unavailable.cloned().unwrap_or_default();
        let why = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid(&path, value, why));
    }
    errors.extend(at_most_whole(unavailable, &path));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_rules, assert_updates};

    fn deployment() -> Value {
        let mut obj = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "strategy": {"type": "RollingUpdate"},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
                "containers": [{"name": "c", "image": "i:1", "terminationMessagePolicy": "File"}]}}}});
        Deployment.default(&mut obj);
        obj
    }

    #[test]
    fn defaults_and_rules() {
        let obj = deployment();
        assert_eq!(
            obj["spec"]["strategy"]["rollingUpdate"],
            json!({"maxUnavailable": "25%", "maxSurge": "25%"})
        );
        assert_eq!(
            obj["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"],
            "IfNotPresent"
        );
        let at = "spec.strategy.rollingUpdate";
        assert_rules(
            &obj,
            |o| Deployment.validate(o),
            &[
                (
                    json!({"/spec/replicas": -1}),
                    &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
                ),
                (
                    json!({"/spec/template/metadata/labels": {"x": "y"}}),
                    &[
                        "spec.template.metadata.labels: Invalid value: {\"x\":\"y\"}: `selector` does not match template `labels`",
                    ],
                ),
                (
                    json!({"/spec/selector": {}}),
                    &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
                ),
                (
                    json!({"/spec/selector": null}),
                    &[
                        "spec.selector: Required value",
                        "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
                    ],
                ),
                (
                    json!({"/spec/selector": {"matchExpressions": [{"key": "a", "operator": "Is", "values": ["a b"]}]}}),
                    &[
                        "spec.selector.matchExpressions[0].operator: Invalid value: \"Is\": not a valid selector operator",
                        "spec.selector.matchExpressions[0].values[0]: Invalid value: \"a b\": a valid label must be…",
                        "spec.selector: Invalid value: {\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"Is\",\"values\":[\"a b\"]}]}: invalid label selector",
                    ],
                ),
                (
                    json!({"/spec/template/spec/restartPolicy": "Never"}),
                    &[
                        "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                    ],
                ),
                (
                    json!({"/spec/template/spec/activeDeadlineSeconds": 5}),
                    &[
                        "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicaSet is not Supported",
                    ],
                ),
                (
                    json!({"/spec/template/spec/ephemeralContainers": [{"name": "e"}]}),
                    &[
                        "spec.template.spec.ephemeralContainers: Forbidden: ephemeral containers not allowed in pod template",
                    ],
                ),
                (
                    json!({"/spec/template/spec/containers/0/image": ""}),
                    &["spec.template.spec.containers[0].image: Required value"],
                ),
                (
                    json!({"/spec/strategy/type": "Recreate"}),
                    &[
                        "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
                    ],
                ),
                (
                    json!({"/spec/strategy": {"type": "Odd"}}),
                    &[
                        "spec.strategy: Unsupported value: {\"Type\":\"Odd\",\"RollingUpdate\":null}: supported values: \"Recreate\", \"RollingUpdate\"",
                    ],
                ),
                (
                    json!({"/spec/strategy/rollingUpdate": {"maxUnavailable": "x", "maxSurge": 0}}),
                    &[
                        &format!(
                            "{at}.maxUnavailable: Invalid value: \"x\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"
                        ),
                        &format!(
                            "{at}.maxUnavailable: Invalid value: \"x\": may not be 0 when `maxSurge` is 0"
                        ),
                    ],
                ),
                (
                    json!({"/spec/strategy/rollingUpdate": {"maxUnavailable": "101%", "maxSurge": -1}}),
                    &[
                        &format!(
                            "{at}.maxSurge: Invalid value: -1: must be greater than or equal to 0"
                        ),
                        &format!(
                            "{at}.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%"
                        ),
                    ],
                ),
                (
                    json!({"/spec/minReadySeconds": -1, "/spec/revisionHistoryLimit": -1, "/spec/progressDeadlineSeconds": -2}),
                    &[
                        "spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0",
                        "spec.revisionHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
                        "spec.progressDeadlineSeconds: Invalid value: -2: must be greater than or equal to 0",
                        "spec.progressDeadlineSeconds: Invalid value: -2: must be greater than minReadySeconds",
                    ],
                ),
            ],
        );
        assert_updates(
            &obj,
            |new, old| Deployment.validate_update(new, old),
            &[
                (
                    json!({"/spec/replicas": 5, "/spec/template/metadata/labels/c": "d"}),
                    &[],
                ),
                (
                    json!({"/spec/selector": {"matchLabels": {"c": "d"}}}),
                    &[
                        "spec.selector: Invalid value: {\"matchLabels\":{\"c\":\"d\"}}: field is immutable",
                    ],
                ),
            ],
        );
    }

    #[test]
    fn a_status_counts_what_can_be() {
        let old = json!({"status": {"replicas": 2, "readyReplicas": 2, "availableReplicas": 1, "collisionCount": 2}});
        assert_updates(
            &old,
            |new, old| Deployment.validate_status_update(new, old),
            &[
                (
                    json!({"/status/readyReplicas": 3, "/status/unavailableReplicas": -1}),
                    &[
                        "status.unavailableReplicas: Invalid value: -1: must be greater than or equal to 0",
                        "status.readyReplicas: Invalid value: 3: cannot be greater than status.replicas",
                    ],
                ),
                (
                    json!({"/status/readyReplicas": 0}),
                    &[
                        "status.availableReplicas: Invalid value: 1: cannot be greater than readyReplicas",
                    ],
                ),
                (json!({"/status/collisionCount": 3}), &[]),
                (
                    json!({"/status/collisionCount": 1}),
                    &["status.collisionCount: Invalid value: 1: cannot be decremented"],
                ),
                (
                    json!({"/status/collisionCount": null}),
                    &["status.collisionCount: Invalid value: 0: cannot be decremented"],
                ),
            ],
        );
    }

    #[test]
    fn rows() {
        let mut obj = deployment();
        obj["status"] = json!({"readyReplicas": 1, "updatedReplicas": 1});
        obj["metadata"]["creationTimestamp"] = "1970-01-01T00:00:00Z".into();
        assert_eq!(
            Value::Array(Deployment.row(&obj, Timestamp::UNIX_EPOCH).unwrap()),
            json!(["d", "1/1", 1, 0, "0s", "c", "i:1", "a=b"])
        );
    }
}
