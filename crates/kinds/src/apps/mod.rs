//! Kinds of the apps group, and ReplicationControllers.

pub(crate) mod daemonset;
pub(crate) mod deployment;
pub(crate) mod replicaset;
pub(crate) mod statefulset;

use api::selector::LabelSelector;
use api::{FieldError, meta};
use serde_json::Value;

use crate::check::{label_selector, not_decremented, not_negative};
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

/// The error of a selector that does not match the labels of the template; `Err` if it cannot be read.
/// No selector at all matches nothing.
pub(crate) fn mismatch(spec: &Value) -> Result<Option<FieldError>, ()> {
    let labels = meta::get(spec, &["template", "metadata", "labels"]);
    let matches = match spec.get("selector") {
        None => false,
        Some(selector) => {
            let selector = LabelSelector::from_value(selector).map_err(|_| ())?;
            let none = Value::Object(serde_json::Map::new());
            selector.matches(labels.unwrap_or(&none))
        }
    };
    let error = || {
        FieldError::invalid(
            "spec.template.metadata.labels",
            labels.cloned().unwrap_or_default(),
            "`selector` does not match template `labels`",
        )
    };
    Ok((!matches).then(error))
}

/// Whether the selector of a workload is there, but selects everything.
fn empty_selector(spec: &Value, kind: &str) -> Option<FieldError> {
    let selector = spec.get("selector")?;
    let labels = meta::get(selector, &["matchLabels"]).and_then(Value::as_object);
    let none = labels.is_none_or(serde_json::Map::is_empty)
        && meta::list_at(selector, &["matchExpressions"]).is_empty();
    let why = format!("empty selector is invalid for {kind}");
    none.then(|| FieldError::invalid("spec.selector", selector.clone(), why))
}

/// Rules of a selector that must be there, and of the template it must match (`of_template` has those of the
/// template alone). `unreadable` is said of a selector that cannot be read.
fn selector_and_template(
    spec: &Value,
    kind: &str,
    unreadable: &str,
    of_template: impl FnOnce() -> Vec<FieldError>,
) -> Vec<FieldError> {
    let at = "spec.selector";
    let mut errors = match spec.get("selector") {
        None => vec![FieldError::required(at, "")],
        Some(selector) => label_selector(selector, at),
    };
    errors.extend(empty_selector(spec, kind));
    match mismatch(spec) {
        Ok(error) => {
            errors.extend(error);
            errors.extend(of_template());
        }
        Err(()) => {
            let selector = spec.get("selector").cloned().unwrap_or_default();
            errors.push(FieldError::invalid(at, selector, unreadable));
        }
    }
    errors
}

/// What the status of a workload counts.
struct Counts {
    /// Fields that are never negative.
    all: &'static [&'static str],
    /// Fields that are never more than `replicas`.
    bounded: &'static [&'static str],
    /// What is said when more replicas are available than ready; nothing if that is not looked at.
    available: &'static str,
}

impl Counts {
    fn validate(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let status = new.get("status").unwrap_or(&Value::Null);
        let mut errors = not_negative(status, "status", self.all);
        let count = |field: &str| meta::int_at(status, &[field]).unwrap_or(0);
        let refuse =
            |field: &str, why| FieldError::invalid(format!("status.{field}"), count(field), why);
        let more = self.bounded.iter().filter(|f| count(f) > count("replicas"));
        errors.extend(more.map(|f| refuse(f, "cannot be greater than status.replicas")));
        if !self.available.is_empty() && count("availableReplicas") > count("readyReplicas") {
            errors.push(refuse("availableReplicas", self.available));
        }
        if self.all.contains(&"collisionCount") {
            errors.extend(not_decremented(new, old, "collisionCount"));
        }
        errors
    }
}
