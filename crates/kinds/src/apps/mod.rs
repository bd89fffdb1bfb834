//! Kinds of the apps group, and ReplicationControllers.

pub(crate) mod daemonset;
pub(crate) mod deployment;
pub(crate) mod replicaset;
pub(crate) mod statefulset;

use api::{FieldError, meta};
use serde_json::Value;

use crate::core::pod::{default_spec, spec_warnings, validate_template};

/// Fills in the pod template at a path.
pub(crate) fn default_template(obj: &mut Value, path: &[&str]) {
    let spec = path
        .iter()
        .try_fold(obj, |v, key| v.get_mut(key))
        .and_then(|t| t.get_mut("spec"));
    if let Some(spec) = spec {
        default_spec(spec);
    }
}

/// Warnings about the pod template of a workload.
pub(crate) fn template_warnings(obj: &Value) -> Vec<String> {
    meta::get(obj, &["spec", "template", "spec"])
        .map(|spec| spec_warnings(spec, "spec.template.spec"))
        .unwrap_or_default()
}

/// Rules of a template whose pods are kept running: `what` is the kind, in upstream's words.
pub(crate) fn validate_lasting_template(spec: &Value, what: &str) -> Vec<FieldError> {
    let mut errors = validate_template(spec.get("template"), "spec.template");
    let policy = meta::str_at(spec, &["template", "spec", "restartPolicy"]);
    if policy != "Always" {
        errors.push(FieldError::not_supported(
            "spec.template.spec.restartPolicy",
            policy,
            &["Always"],
        ));
    }
    if meta::get(spec, &["template", "spec", "activeDeadlineSeconds"]).is_some() {
        errors.push(FieldError::forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            format!("activeDeadlineSeconds in {what} is not Supported"),
        ));
    }
    errors
}
