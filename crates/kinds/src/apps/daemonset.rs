//! DaemonSets.

use api::{FieldError, meta};
use serde_json::{Value, json};

use super::{Counts, default_template, empty_selector, mismatch, validate_lasting_template};
use crate::cells::Cell;
use crate::check::{
    at_most_whole, count_or_percent, count_or_share, immutable, internal, label_selector,
    not_negative,
};
use crate::simple::Simple;

const GENERATION: &str = "deprecated.daemonset.template.generation";
const TEMPLATE: &[&str] = &["spec", "template", "spec"];

/// Rules of DaemonSets.
pub(crate) static DAEMON_SETS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Int(&["status", "desiredNumberScheduled"]),
        Cell::Int(&["status", "currentNumberScheduled"]),
        Cell::Int(&["status", "numberReady"]),
        Cell::Int(&["status", "updatedNumberScheduled"]),
        Cell::Int(&["status", "numberAvailable"]),
        Cell::Labels(&["spec", "template", "spec", "nodeSelector"]),
        Cell::Age,
        Cell::Containers(TEMPLATE),
        Cell::Images(TEMPLATE),
        Cell::Selector(&["spec", "selector"]),
    ],
    generation: true,
    warnings: super::template_warnings,
    default,
    prepare: |new, old, _| count_templates(new, old),
    validate,
    validate_update: |new, old| {
        immutable(new, old, &["spec", "selector"])
            .into_iter()
            .collect()
    },
    validate_status: |new, old| COUNTS.validate(new, old),
    ..Simple::BASE
};

fn default(obj: &mut Value) {
    default_template(obj, &["spec", "template"]);
    if meta::str_at(obj, &["spec", "updateStrategy", "type"]) == "RollingUpdate" {
        let rolling = meta::object_at(obj, &["spec", "updateStrategy", "rollingUpdate"]);
        rolling.entry("maxUnavailable").or_insert_with(|| json!(1));
        rolling.entry("maxSurge").or_insert_with(|| json!(0));
    }
}

/// Counts the changes of the template in an annotation, which nobody else can write.
fn count_templates(new: &mut Value, old: Option<&Value>) {
    let template = |set| meta::get(set, &["spec", "template"]);
    let known = |set| {
        let count = meta::annotation(set, GENERATION)?.parse::<i64>().ok();
        count.filter(|count| *count > 0)
    };
    let count = match old {
        None => known(new).unwrap_or(1),
        Some(old) => {
            let changed = template(new) != template(old);
            known(old).unwrap_or(1) + i64::from(changed)
        }
    };
    let path = ["metadata", "annotations", GENERATION];
    meta::set(new, &path, count.to_string().into());
}

const COUNTS: Counts = Counts {
    all: &[
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
        "collisionCount",
    ],
    bounded: &[],
    available: "",
};

fn validate(obj: &Value) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let mut errors = spec
        .get("selector")
        .map(|selector| label_selector(selector, "spec.selector"))
        .unwrap_or_default();
    errors.extend(mismatch(spec).unwrap_or_default());
    errors.extend(empty_selector(spec, "daemonset"));
    errors.extend(validate_lasting_template(spec, "DaemonSet"));
    errors.extend(not_negative(spec, "spec", &["minReadySeconds"]));
    let strategy = spec.get("updateStrategy").unwrap_or(&Value::Null);
    errors.extend(validate_strategy(strategy, "spec.updateStrategy"));
    errors.extend(not_negative(spec, "spec", &["revisionHistoryLimit"]));
    errors
}

fn validate_strategy(strategy: &Value, at: &str) -> Vec<FieldError> {
    let rolling = strategy.get("rollingUpdate");
    match (meta::str_at(strategy, &["type"]), rolling) {
        ("OnDelete", _) => Vec::new(),
        ("RollingUpdate", None) => vec![FieldError::required(format!("{at}.rollingUpdate"), "")],
        ("RollingUpdate", Some(rolling)) => {
            validate_rolling(rolling, &format!("{at}.rollingUpdate"))
        }
        (kind, rolling) => {
            let shown = [
                ("Type", kind.into()),
                ("RollingUpdate", rolling.map(internal).into()),
            ];
            let allowed = &["RollingUpdate", "OnDelete"];
            let error = FieldError::not_supported(at, Value::Null, allowed);
            vec![error.showing(&shown)]
        }
    }
}

fn validate_rolling(rolling: &Value, at: &str) -> Vec<FieldError> {
    let fields = ["maxUnavailable", "maxSurge"].map(|f| (rolling.get(f), format!("{at}.{f}")));
    let counts = fields.iter().flat_map(|(v, at)| count_or_percent(*v, at));
    let mut errors: Vec<FieldError> = counts.collect();
    errors.extend(fields.iter().filter_map(|(v, at)| at_most_whole(*v, at)));
    let [(unavailable, first), (surge, second)] = fields;
    match (count_or_share(unavailable), count_or_share(surge)) {
        (0, 0) => {
            let why = "cannot be 0 when maxSurge is 0";
            errors.push(FieldError::required(first, why));
        }
        (0, _) | (_, 0) => {}
        _ => {
            let why = "may not be set when maxUnavailable is non-zero";
            let value = surge.cloned().unwrap_or_default();
            errors.push(FieldError::invalid(second, value, why));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_rules, assert_updates};

    #[test]
    fn rules() {
        let pod = json!({"restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "containers": [{"name": "c", "image": "i:1", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]});
        let mut set = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "updateStrategy": {"type": "RollingUpdate"},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}}});
        default(&mut set);
        let at = "spec.updateStrategy.rollingUpdate";
        assert_rules(
            &set,
            validate,
            &[
                (
                    json!({"/spec/selector": null}),
                    &[
                        "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
                    ],
                ),
                (
                    json!({"/spec/selector": {}}),
                    &["spec.selector: Invalid value: {}: empty selector is invalid for daemonset"],
                ),
                (
                    json!({"/spec/updateStrategy": {"type": "Odd"}}),
                    &[
                        "spec.updateStrategy: Unsupported value: {\"Type\":\"Odd\",\"RollingUpdate\":null}: supported values: \"RollingUpdate\", \"OnDelete\"",
                    ],
                ),
                (
                    json!({"/spec/updateStrategy/rollingUpdate": null}),
                    &[&format!("{at}: Required value")],
                ),
                (
                    json!({"/spec/updateStrategy/rollingUpdate/maxUnavailable": 0}),
                    &[&format!(
                        "{at}.maxUnavailable: Required value: cannot be 0 when maxSurge is 0"
                    )],
                ),
                (
                    json!({"/spec/updateStrategy/rollingUpdate/maxSurge": "200%"}),
                    &[
                        &format!(
                            "{at}.maxSurge: Invalid value: \"200%\": must not be greater than 100%"
                        ),
                        &format!(
                            "{at}.maxSurge: Invalid value: \"200%\": may not be set when maxUnavailable is non-zero"
                        ),
                    ],
                ),
                (
                    json!({"/spec/minReadySeconds": -1, "/spec/revisionHistoryLimit": -1}),
                    &[
                        "spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0",
                        "spec.revisionHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
                    ],
                ),
            ],
        );
        assert_updates(
            &json!({"status": {"collisionCount": 1}}),
            DAEMON_SETS.validate_status,
            &[(
                json!({"/status/collisionCount": 0, "/status/numberReady": -1}),
                &[
                    "status.numberReady: Invalid value: -1: must be greater than or equal to 0",
                    "status.collisionCount: Invalid value: 0: cannot be decremented",
                ],
            )],
        );
    }

    #[test]
    fn changes_of_the_template_are_counted() {
        let set = |image: &str, count: Option<&str>| {
            let annotations = count.map(|c| json!({GENERATION: c}));
            json!({"metadata": {"annotations": annotations}, "spec": {"template": {"image": image}}})
        };
        for (new, old, expected) in [
            (set("a", None), None, "1"),
            (set("a", Some("7")), None, "7"),
            (set("a", Some("x")), None, "1"),
            (set("a", Some("9")), Some(set("a", Some("3"))), "3"),
            (set("b", None), Some(set("a", Some("3"))), "4"),
            (set("b", None), Some(set("a", None)), "2"),
        ] {
            let mut found = new;
            count_templates(&mut found, old.as_ref());
            assert_eq!(meta::annotation(&found, GENERATION), Some(expected));
        }
    }
}
