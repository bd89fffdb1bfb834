//! StatefulSets.

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::{Value, json};

use super::{
    Counts, default_template, deployment::ready, selector_and_template, validate_lasting_template,
};
use crate::cells::{Cell, render};
use crate::check::{at_most_whole, count_or_percent, count_or_share, internal, not_negative};
use crate::metadata::masked;
use crate::strategy::Strategy;

/// Rules of StatefulSets.
pub(crate) struct StatefulSet;

const TEMPLATE: &[&str] = &["spec", "template", "spec"];
const MUTABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

impl Strategy for StatefulSet {
    fn default(&self, obj: &mut Value) {
        default_template(obj, &["spec", "template"]);
        if meta::str_at(obj, &["spec", "updateStrategy", "type"]) == "RollingUpdate" {
            meta::object_at(obj, &["spec", "updateStrategy", "rollingUpdate"])
                .entry("partition")
                .or_insert_with(|| json!(0));
        }
        let claims = obj
            .get_mut("spec")
            .and_then(|s| s.get_mut("volumeClaimTemplates"))
            .and_then(Value::as_array_mut);
        for claim in claims.into_iter().flatten() {
            // Upstream fills templates of claims in like claims.
            for (path, value) in [
                (&["apiVersion"][..], "v1"),
                (&["kind"][..], "PersistentVolumeClaim"),
                (&["status", "phase"][..], "Pending"),
            ] {
                if meta::str_at(claim, path).is_empty() {
                    meta::set(claim, path, value.into());
                }
            }
        }
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        let spec = obj.get("spec").unwrap_or(&Value::Null);
        let mut errors: Vec<FieldError> = pod_management(spec).into_iter().collect();
        errors.extend(update_strategy(
            spec.get("updateStrategy").unwrap_or(&Value::Null),
            "spec.updateStrategy",
        ));
        errors.extend(claim_retention(spec));
        errors.extend(not_negative(spec, "spec", &["replicas", "minReadySeconds"]));
        let ordinals = spec.get("ordinals").unwrap_or(&Value::Null);
        errors.extend(not_negative(ordinals, "spec.ordinals", &["start"]));
        errors.extend(selector_and_template(spec, "statefulset", "", || {
            validate_template_with_claims(spec)
        }));
        errors
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        // Pods have the name and a number as their host name.
        masked(name, prefix, names::dns1123_label)
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        COUNTS.validate(new, old)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let fixed = |o: &Value| {
            let mut spec = o.get("spec").cloned().unwrap_or_default();
            for field in MUTABLE {
                meta::remove(&mut spec, &[field]);
            }
            spec
        };
        if fixed(new) == fixed(old) {
            return Vec::new();
        }
        let message = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        vec![FieldError::forbidden("spec", message)]
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        super::template_warnings(obj)
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Option<Vec<Value>> {
        Some(render(
            &[
                Cell::Name,
                Cell::With(ready),
                Cell::Age,
                Cell::Containers(TEMPLATE),
                Cell::Images(TEMPLATE),
            ],
            obj,
            now,
        ))
    }

    fn has_generation(&self) -> bool {
        true
    }
}

const COUNTS: Counts = Counts {
    all: &[
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "availableReplicas",
        "observedGeneration",
        "collisionCount",
    ],
    bounded: &[
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "availableReplicas",
    ],
    available: "cannot be greater than status.readyReplicas",
};

fn pod_management(spec: &Value) -> Option<FieldError> {
    let at = "spec.podManagementPolicy";
    let why = "must be 'OrderedReady' or 'Parallel'";
    match meta::str_at(spec, &["podManagementPolicy"]) {
        "" => Some(FieldError::required(at, "")),
        "OrderedReady" | "Parallel" => None,
        other => Some(FieldError::invalid(at, other, why)),
    }
}

fn update_strategy(strategy: &Value, at: &str) -> Vec<FieldError> {
    let rolling = strategy.get("rollingUpdate");
    let path = format!("{at}.rollingUpdate");
    match (meta::str_at(strategy, &["type"]), rolling) {
        ("", _) => vec![FieldError::required(at, "")],
        ("OnDelete" | "RollingUpdate", None) => Vec::new(),
        ("OnDelete", Some(rolling)) => {
            let why = "only allowed for updateStrategy 'RollingUpdate'";
            vec![FieldError::invalid(path, internal(rolling), why)]
        }
        ("RollingUpdate", Some(rolling)) => {
            let mut errors = not_negative(rolling, &path, &["partition"]);
            let at = format!("{path}.maxUnavailable");
            let unavailable = rolling.get("maxUnavailable");
            errors.extend(count_or_percent(unavailable, &at));
            if let Some(none) = unavailable.filter(|v| count_or_share(Some(v)) == 0) {
                errors.push(FieldError::invalid(&at, none.clone(), "cannot be 0"));
            }
            errors.extend(at_most_whole(unavailable, &at));
            errors
        }
        (kind, rolling) => {
            let shown = [
                ("Type", kind.into()),
                ("RollingUpdate", rolling.map(internal).into()),
            ];
            let why = "must be 'RollingUpdate' or 'OnDelete'";
            vec![FieldError::invalid(at, Value::Null, why).showing(&shown)]
        }
    }
}

/// What becomes of the claims when the set, or a replica, goes.
fn claim_retention(spec: &Value) -> Vec<FieldError> {
    let at = "spec.persistentVolumeClaimRetentionPolicy";
    let Some(policy) = spec.get("persistentVolumeClaimRetentionPolicy") else {
        return Vec::new();
    };
    let odd = |when: &str| {
        let policy = meta::str_at(policy, &[when]);
        let allowed = &["Retain", "Delete"];
        let known = allowed.contains(&policy);
        (!known).then(|| FieldError::not_supported(format!("{at}.{when}"), policy, allowed))
    };
    let both = ["whenDeleted", "whenScaled"].into_iter();
    both.filter_map(odd).collect()
}

/// Containers may mount the claims as volumes, which the pod template itself does not have.
fn validate_template_with_claims(spec: &Value) -> Vec<FieldError> {
    let mut merged = spec.clone();
    let claims: Vec<Value> = meta::list_at(spec, &["volumeClaimTemplates"])
        .iter()
        .map(|c| json!({"name": meta::name(c), "persistentVolumeClaim": {"claimName": meta::name(c)}}))
        .collect();
    if !claims.is_empty() && merged.get("template").is_some() {
        let names: Vec<&str> = claims.iter().map(|c| meta::str_at(c, &["name"])).collect();
        let pod = meta::object_at(&mut merged, &["template", "spec"]);
        let volumes = pod.entry("volumes").or_insert_with(|| json!([]));
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.retain(|v| !names.contains(&meta::str_at(v, &["name"])));
            volumes.extend(claims.iter().cloned());
        }
    }
    validate_lasting_template(&merged, "StatefulSet")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_rules, assert_updates};

    fn set() -> Value {
        let pod = json!({"restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "containers": [{"name": "c", "image": "i:1", "imagePullPolicy": "Always", "terminationMessagePolicy": "File",
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]});
        json!({"spec": {"replicas": 1, "podManagementPolicy": "OrderedReady", "updateStrategy": {"type": "RollingUpdate"},
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}]}})
    }

    #[test]
    fn rules() {
        let at = "spec.updateStrategy.rollingUpdate";
        assert_rules(
            &set(),
            |set| StatefulSet.validate(set),
            &[
                (
                    json!({"/spec/podManagementPolicy": null}),
                    &["spec.podManagementPolicy: Required value"],
                ),
                (
                    json!({"/spec/podManagementPolicy": "Odd"}),
                    &[
                        "spec.podManagementPolicy: Invalid value: \"Odd\": must be 'OrderedReady' or 'Parallel'",
                    ],
                ),
                (
                    json!({"/spec/updateStrategy": null}),
                    &["spec.updateStrategy: Required value"],
                ),
                (
                    json!({"/spec/updateStrategy": {"type": "Odd"}}),
                    &[
                        "spec.updateStrategy: Invalid value: {\"Type\":\"Odd\",\"RollingUpdate\":null}: must be 'RollingUpdate' or 'OnDelete'",
                    ],
                ),
                (
                    json!({"/spec/updateStrategy": {"type": "OnDelete", "rollingUpdate": {"partition": 1}}}),
                    &[&format!(
                        "{at}: Invalid value: {{\"Partition\":1}}: only allowed for updateStrategy 'RollingUpdate'"
                    )],
                ),
                (
                    json!({"/spec/updateStrategy/rollingUpdate": {"partition": -1, "maxUnavailable": 0}}),
                    &[
                        &format!(
                            "{at}.partition: Invalid value: -1: must be greater than or equal to 0"
                        ),
                        &format!("{at}.maxUnavailable: Invalid value: 0: cannot be 0"),
                    ],
                ),
                (
                    json!({"/spec/updateStrategy/rollingUpdate": {"maxUnavailable": "101%"}}),
                    &[&format!(
                        "{at}.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%"
                    )],
                ),
                (
                    json!({"/spec/persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Keep", "whenScaled": "Delete"}}),
                    &[
                        "spec.persistentVolumeClaimRetentionPolicy.whenDeleted: Unsupported value: \"Keep\": supported values: \"Retain\", \"Delete\"",
                    ],
                ),
                (
                    json!({"/spec/replicas": -1, "/spec/minReadySeconds": -1, "/spec/ordinals": {"start": -1}}),
                    &[
                        "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                        "spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0",
                        "spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0",
                    ],
                ),
                (
                    json!({"/spec/selector": {}}),
                    &[
                        "spec.selector: Invalid value: {}: empty selector is invalid for statefulset",
                    ],
                ),
                (
                    json!({"/spec/selector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}),
                    &[
                        "spec.selector.matchExpressions[0].operator: Invalid value: \"Is\": not a valid selector operator",
                        "spec.selector: Invalid value: {\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"Is\"}]}",
                    ],
                ),
            ],
        );
        let name = |name| StatefulSet.validate_name(name, false).is_empty();
        assert_eq!((name("web"), name("web.example")), (true, false));
    }

    #[test]
    fn little_may_change() {
        let forbidden = "spec: Forbidden: updates to statefulset spec for fields other than…";
        assert_updates(
            &set(),
            |new, old| StatefulSet.validate_update(new, old),
            &[
                (
                    json!({"/spec/replicas": 3, "/spec/template/spec/containers/0/image": "i:2", "/spec/minReadySeconds": 5}),
                    &[],
                ),
                (json!({"/spec/serviceName": "s"}), &[forbidden]),
                (json!({"/spec/volumeClaimTemplates": []}), &[forbidden]),
            ],
        );
        let old = json!({"status": {"replicas": 2, "readyReplicas": 1}});
        assert_updates(
            &old,
            |new, old| StatefulSet.validate_status_update(new, old),
            &[(
                json!({"/status/availableReplicas": 2, "/status/updatedReplicas": 3}),
                &[
                    "status.updatedReplicas: Invalid value: 3: cannot be greater than status.replicas",
                    "status.availableReplicas: Invalid value: 2: cannot be greater than status.readyReplicas",
                ],
            )],
        );
    }
}
