//! StatefulSets.

use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::{Value, json};

use super::{default_template, deployment::ready, validate_lasting_template};
use crate::cells::{Cell, render};
use crate::check::{not_negative, one_of, workload_selector};
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
        let mut errors = not_negative(spec, "spec", &["replicas", "minReadySeconds"]);
        errors.extend(one_of(
            meta::str_at(spec, &["podManagementPolicy"]),
            "spec.podManagementPolicy",
            &["OrderedReady", "Parallel"],
        ));
        errors.extend(one_of(
            meta::str_at(spec, &["updateStrategy", "type"]),
            "spec.updateStrategy",
            &["RollingUpdate", "OnDelete"],
        ));
        errors.extend(workload_selector(spec, "statefulset"));
        errors.extend(validate_template_with_claims(spec));
        errors
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
