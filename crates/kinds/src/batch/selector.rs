//! The selector of a Job, which is its own unless the client says that it brings one.

use api::selector::LabelSelector;
use api::{FieldError, meta};
use serde_json::{Value, json};

use crate::apps::mismatch;
use crate::check::label_selector;

const UID: &str = "batch.kubernetes.io/controller-uid";
/// The labels of a Job's pods, with whether they name its identifier rather than the Job; those without a
/// prefix are older. In the order in which they are looked at.
const LABELS: [(&str, bool); 4] = [
    ("controller-uid", true),
    ("job-name", false),
    (UID, true),
    ("batch.kubernetes.io/job-name", false),
];

fn is_manual(job: &Value) -> bool {
    meta::bool_at(job, &["spec", "manualSelector"])
}

fn own_labels(job: &Value) -> [(&'static str, String); 4] {
    let value = |is_uid| {
        if is_uid {
            meta::uid(job)
        } else {
            meta::name(job)
        }
    };
    LABELS.map(|(label, is_uid)| (label, value(is_uid).to_owned()))
}

/// Makes the pods of the Job carry its labels and the Job select them. What the client set stays, and is
/// refused later if it says something else.
pub(super) fn generate(job: &mut Value) {
    if is_manual(job) {
        return;
    }
    // Labels that came from the template follow it.
    let template = ["spec", "template", "metadata", "labels"];
    let labels = |path: &[&str]| {
        meta::get(job, path).filter(|l| l.as_object().is_some_and(|m| !m.is_empty()))
    };
    let follows = labels(&["metadata", "labels"]) == labels(&template);
    for (label, value) in own_labels(job) {
        let labels = meta::object_at(job, &template);
        labels.entry(label).or_insert_with(|| value.into());
    }
    let uid = meta::uid(job).to_owned();
    let selected = meta::object_at(job, &["spec", "selector", "matchLabels"]);
    selected.entry(UID).or_insert_with(|| uid.into());
    if let Some(labels) = meta::get(job, &template).cloned().filter(|_| follows) {
        meta::set(job, &["metadata", "labels"], labels);
    }
}

/// What breaks the rules of a selector that the server made.
pub(super) fn generated(job: &Value) -> Vec<FieldError> {
    let Some(selector) = meta::get(job, &["spec", "selector"]).filter(|_| !is_manual(job)) else {
        return Vec::new();
    };
    let mut errors = Vec::new();
    if meta::uid(job).is_empty() {
        errors.push(FieldError::required("metadata.uid", ""));
    }
    let own = own_labels(job);
    let labels = meta::get(job, &["spec", "template", "metadata", "labels"]);
    for (label, value) in &own {
        let at = format!("spec.template.metadata.labels[{label}]");
        let why = format!("must be '{value}'");
        match labels.and_then(|l| l.get(*label)) {
            None => errors.push(FieldError::required(at, why)),
            Some(is) if is != value.as_str() => {
                errors.push(FieldError::invalid(at, json!(labels), why));
            }
            Some(_) => {}
        }
    }
    let own: Value = own
        .into_iter()
        .map(|(label, value)| (label.to_owned(), json!(value)))
        .collect();
    if LabelSelector::from_value(selector).is_ok_and(|s| !s.matches(&own)) {
        let why = "`selector` not auto-generated";
        errors.push(FieldError::invalid("spec.selector", selector.clone(), why));
    }
    errors
}

/// What breaks the rules of any selector of a Job.
pub(super) fn validate(spec: &Value) -> Vec<FieldError> {
    let mut errors = match spec.get("selector") {
        None => vec![FieldError::required("spec.selector", "")],
        Some(selector) => label_selector(selector, "spec.selector"),
    };
    errors.extend(mismatch(spec).unwrap_or_default());
    errors
}
