//! Deployments.

use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::{Value, json};

use super::{default_template, validate_lasting_template};
use crate::cells::{Cell, render};
use crate::check::{count_or_percent, immutable, not_negative, one_of, percent, workload_selector};
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
        let mut errors = not_negative(
            spec,
            "spec",
            &[
                "replicas",
                "minReadySeconds",
                "revisionHistoryLimit",
                "progressDeadlineSeconds",
            ],
        );
        errors.extend(workload_selector(spec, "deployment"));
        errors.extend(validate_lasting_template(spec, "ReplicaSet"));
        errors.extend(validate_strategy(
            spec.get("strategy").unwrap_or(&Value::Null),
        ));
        let (deadline, ready) = (
            meta::int_at(spec, &["progressDeadlineSeconds"]),
            meta::int_at(spec, &["minReadySeconds"]).unwrap_or(0),
        );
        if let Some(n) = deadline.filter(|n| *n >= 0 && *n <= ready) {
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
    let kind = meta::str_at(strategy, &["type"]);
    let at = "spec.strategy.rollingUpdate";
    let rolling = strategy.get("rollingUpdate");
    match kind {
        "Recreate" if rolling.is_some() => {
            return vec![FieldError::forbidden(
                at,
                "may not be specified when strategy `type` is 'Recreate'",
            )];
        }
        "RollingUpdate" if rolling.is_none() => {
            return vec![FieldError::required(
                at,
                "this should be defaulted and never be nil",
            )];
        }
        "RollingUpdate" => {}
        _ => {
            return one_of(kind, "spec.strategy.type", &["Recreate", "RollingUpdate"])
                .into_iter()
                .collect();
        }
    }
    let (surge, unavailable) = (
        rolling.and_then(|r| r.get("maxSurge")),
        rolling.and_then(|r| r.get("maxUnavailable")),
    );
    let mut errors = count_or_percent(unavailable, &format!("{at}.maxUnavailable"));
    errors.extend(count_or_percent(surge, &format!("{at}.maxSurge")));
    let is_zero =
        |v: Option<&Value>| v.is_none_or(|v| v.as_i64() == Some(0) || percent(v) == Some(0));
    if is_zero(surge) && is_zero(unavailable) {
        errors.push(FieldError::invalid(
            format!("{at}.maxUnavailable"),
            unavailable.cloned().unwrap_or_default(),
            "may not be 0 when `maxSurge` is 0",
        ));
    }
    if let Some(v) = unavailable.filter(|v| percent(v).is_some_and(|p| p > 100)) {
        errors.push(FieldError::invalid(
            format!("{at}.maxUnavailable"),
            v.clone(),
            "must not be greater than 100%",
        ));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(Deployment.validate(&obj), vec![]);
        for (path, value, text) in [
            (
                "/spec/replicas",
                json!(-1),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                "/spec/template/metadata/labels",
                json!({"x": "y"}),
                "spec.template.metadata.labels: Invalid value: {\"x\":\"y\"}: `selector` does not match template `labels`",
            ),
            (
                "/spec/selector",
                json!({}),
                "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
            ),
            (
                "/spec/template/spec/restartPolicy",
                json!("Never"),
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
            (
                "/spec/strategy/type",
                json!("Recreate"),
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ),
            (
                "/spec/template/spec/containers/0/image",
                json!(""),
                "spec.template.spec.containers[0].image: Required value",
            ),
        ] {
            let mut bad = obj.clone();
            *bad.pointer_mut(path).unwrap() = value;
            let errors: Vec<String> = Deployment
                .validate(&bad)
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(errors, [text], "{path}");
        }
        let mut other = obj.clone();
        other["spec"]["selector"] = json!({"matchLabels": {"c": "d"}});
        assert_eq!(
            Deployment.validate_update(&other, &obj)[0].detail,
            "field is immutable"
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
