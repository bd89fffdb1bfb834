//! What a change of a Job's status must hold to. Other controllers than ours may write it, so that whoever
//! waits for a Job can rely on its end being final. A rule is looked at only when what it is about changes:
//! a change of the spec may make the status wrong for a while.

use api::{FieldError, meta};
use serde_json::Value;

use super::rules::{index_spans, is_indexed};
use crate::cells::condition_is_true;
use crate::check::not_negative;

/// A Job before and after the change.
struct Change<'a> {
    new: &'a Value,
    old: &'a Value,
}

impl Change<'_> {
    fn status(&self, field: &str) -> Option<&Value> {
        meta::get(self.new, &["status", field])
    }

    fn differs(&self, field: &str) -> bool {
        self.status(field) != meta::get(self.old, &["status", field])
    }

    fn count(&self, field: &str) -> i64 {
        meta::int_at(self.new, &["status", field]).unwrap_or(0)
    }

    fn is(&self, condition: &str) -> bool {
        condition_is_true(self.new, condition)
    }

    fn was(&self, condition: &str) -> bool {
        condition_is_true(self.old, condition)
    }

    fn flips(&self, condition: &str) -> bool {
        self.is(condition) != self.was(condition)
    }

    fn is_finished(&self) -> bool {
        self.is("Complete") || self.is("Failed")
    }

    fn finishes(&self) -> bool {
        self.is_finished() != (self.was("Complete") || self.was("Failed"))
    }

    fn invalid(&self, field: &str, why: impl Into<String>) -> FieldError {
        let value = self.status(field).cloned().unwrap_or_default();
        FieldError::invalid(format!("status.{field}"), value, why)
    }
}

fn conditions(why: impl Into<String>) -> FieldError {
    FieldError::unshown("status.conditions", why)
}

/// Every broken rule of a change of a Job's status.
pub(super) fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let change = Change { new, old };
    let status = new.get("status").unwrap_or(&Value::Null);
    let counts = ["active", "succeeded", "failed", "ready", "terminating"];
    let mut errors = not_negative(status, "status", &counts);
    errors.extend(uncounted(status));
    errors.extend(ends(&change));
    errors.extend(finished(&change));
    errors.extend(indexes(&change));
    errors.extend(success(&change));
    errors.extend(lasting(&change));
    errors
}

/// Pods that ended but are not counted yet: each once.
fn uncounted(status: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = Vec::new();
    for field in ["succeeded", "failed"] {
        let all = meta::list_at(status, &["uncountedTerminatedPods", field]);
        for (i, uid) in all.iter().filter_map(Value::as_str).enumerate() {
            let at = format!("status.uncountedTerminatedPods.{field}[{i}]");
            if uid.is_empty() {
                errors.push(FieldError::invalid(at, uid, "must not be empty"));
            } else if seen.contains(&uid) {
                errors.push(FieldError::duplicate(at, uid));
            } else {
                seen.push(uid);
            }
        }
    }
    errors
}

/// How the conditions and the times of an end go together.
fn ends(change: &Change<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let complete = change.is("Complete");
    if complete && change.is("Failed") && (change.flips("Complete") || change.flips("Failed")) {
        errors.push(conditions(
            "cannot set Complete=True and Failed=true conditions",
        ));
    }
    let target = change.flips("Complete") || change.flips("FailureTarget");
    if complete && change.is("FailureTarget") && target {
        let why = "cannot set Complete=True and FailureTarget=true conditions";
        errors.push(conditions(why));
    }
    let (started, ended) = (change.status("startTime"), change.status("completionTime"));
    if change.flips("Complete") || change.differs("completionTime") {
        if ended.is_some() && !complete {
            let why = "cannot set completionTime when there is no Complete=True condition";
            errors.push(change.invalid("completionTime", why));
        }
        if ended.is_none() && complete {
            let why = "completionTime is required for Complete jobs";
            errors.push(FieldError::required("status.completionTime", why));
        }
    }
    let time = |value: Option<&Value>| api::time::parse(value?.as_str()?);
    if (change.differs("startTime") || change.differs("completionTime"))
        && time(ended)
            .zip(time(started))
            .is_some_and(|(end, start)| end < start)
    {
        let why = "completionTime cannot be set before startTime";
        errors.push(change.invalid("completionTime", why));
    }
    errors
}

/// What a Job that has ended no longer has.
fn finished(change: &Change<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !change.is_finished() {
        return errors;
    }
    let looked_at = |field| change.finishes() || change.differs(field);
    if change.count("active") > 0 && looked_at("active") {
        errors.push(change.invalid("active", "active>0 is invalid for finished job"));
    }
    if change.status("startTime").is_none() && looked_at("startTime") {
        let why = "startTime is required for finished job";
        errors.push(FieldError::required("status.startTime", why));
    }
    let uncounted = |field| {
        !meta::list_at(change.new, &["status", "uncountedTerminatedPods", field]).is_empty()
    };
    if (uncounted("succeeded") || uncounted("failed")) && looked_at("uncountedTerminatedPods") {
        let why = "uncountedTerminatedPods needs to be empty for finished job";
        errors.push(change.invalid("uncountedTerminatedPods", why));
    }
    errors
}

/// The texts that list indexes.
fn indexes(change: &Change<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let text = |field| change.status(field).and_then(Value::as_str);
    let (completed, failed) = (text("completedIndexes"), text("failedIndexes"));
    let spec = change.new.get("spec").unwrap_or(&Value::Null);
    let all = meta::int_at(spec, &["completions"]);
    let per_index = spec.get("backoffLimitPerIndex").is_some();
    let unreadable = |field: &str, text: Option<&str>| {
        let why = index_spans(text?, all?).err()?;
        Some(change.invalid(field, format!("error parsing {field}: {why}")))
    };
    let (new_completed, new_failed) = (
        change.differs("completedIndexes"),
        change.differs("failedIndexes"),
    );
    if new_completed {
        errors.extend(unreadable("completedIndexes", completed));
    }
    if new_failed && per_index {
        errors.extend(unreadable("failedIndexes", failed));
    }
    if new_completed && completed.is_some_and(|c| !c.is_empty()) && !is_indexed(spec) {
        let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.push(change.invalid("completedIndexes", why));
    }
    if new_failed && failed.is_some() && !per_index {
        let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.push(change.invalid("failedIndexes", why));
    }
    if (new_completed || new_failed)
        && let (Some(completed), Some(failed), Some(all)) = (completed, failed, all)
        && let (Ok(completed), Ok(failed)) = (index_spans(completed, all), index_spans(failed, all))
    {
        let common =
            |(a, b): (&(i64, i64), &(i64, i64))| (a.0 <= b.1 && b.0 <= a.1).then_some(a.0.max(b.0));
        let pairs = completed
            .iter()
            .flat_map(|c| failed.iter().map(move |f| (c, f)));
        if let Some(index) = pairs.filter_map(common).min() {
            let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
            errors.push(change.invalid("failedIndexes", why));
        }
    }
    errors
}

/// When enough has succeeded.
fn success(change: &Change<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let met = change.is("SuccessCriteriaMet");
    if met && change.is("Failed") {
        let why = "cannot set SuccessCriteriaMet=True and Failed=true conditions";
        errors.push(conditions(why));
    }
    if met && change.is("FailureTarget") {
        let why = "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions";
        errors.push(conditions(why));
    }
    let policy = meta::get(change.new, &["spec", "successPolicy"]).is_some();
    if policy && !met && change.is("Complete") {
        let why =
            "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
        errors.push(conditions(why));
    }
    errors
}

/// What stays once it is said.
fn lasting(change: &Change<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for condition in ["Failed", "Complete", "FailureTarget"] {
        if change.was(condition) && !change.is(condition) {
            let why = format!("cannot disable the terminal {condition}=True condition");
            errors.push(conditions(why));
        }
    }
    let spec = change.new.get("spec").unwrap_or(&Value::Null);
    // Jobs with as many pods at once as indexes can be made smaller.
    let elastic = is_indexed(spec) && spec.get("completions") == spec.get("parallelism");
    let shrinks =
        |field| change.count(field) < meta::int_at(change.old, &["status", field]).unwrap_or(0);
    for (field, looked_at) in [("failed", true), ("succeeded", !elastic)] {
        if looked_at && shrinks(field) {
            let value = change.count(field);
            let why = format!("cannot decrease the {field} counter");
            errors.push(FieldError::invalid(format!("status.{field}"), value, why));
        }
    }
    let known = |field| meta::get(change.old, &["status", field]).is_some();
    if change.differs("completionTime")
        && known("completionTime")
        && change.status("completionTime").is_some()
    {
        errors.push(change.invalid("completionTime", "completionTime cannot be mutated"));
    }
    if change.differs("startTime") && known("startTime") && !meta::bool_at(spec, &["suspend"]) {
        let why = "startTime cannot be removed for unsuspended job";
        errors.push(FieldError::required("status.startTime", why));
    }
    let (met, was_met) = (
        change.is("SuccessCriteriaMet"),
        change.was("SuccessCriteriaMet"),
    );
    if was_met && !met {
        errors.push(conditions(
            "cannot disable the SuccessCriteriaMet=True condition",
        ));
    }
    if change.was("Complete") && !was_met && met {
        let why = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        errors.push(conditions(why));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_updates;
    use serde_json::json;

    fn is(conditions: &[&str]) -> Value {
        conditions
            .iter()
            .map(|c| json!({"type": c, "status": "True"}))
            .collect()
    }

    #[test]
    fn an_end_is_whole() {
        let running = json!({"spec": {"completions": 1, "parallelism": 1},
            "status": {"active": 1, "startTime": "2026-01-01T00:00:10Z", "failed": 2}});
        let done = |more: Value| {
            let mut all = json!({"/status/active": null, "/status/conditions": is(&["SuccessCriteriaMet", "Complete"]),
                "/status/completionTime": "2026-01-01T00:01:00Z"});
            all.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            all
        };
        assert_updates(
            &running,
            validate,
            &[
                (done(json!({})), &[]),
                (
                    done(json!({"/status/active": 1})),
                    &["status.active: Invalid value: 1: active>0 is invalid for finished job"],
                ),
                (
                    done(json!({"/status/completionTime": null})),
                    &[
                        "status.completionTime: Required value: completionTime is required for Complete jobs",
                    ],
                ),
                (
                    done(json!({"/status/completionTime": "2026-01-01T00:00:01Z"})),
                    &[
                        "status.completionTime: Invalid value: \"2026-01-01T00:00:01Z\": completionTime cannot be set before startTime",
                    ],
                ),
                (
                    done(json!({"/status/startTime": null})),
                    &[
                        "status.startTime: Required value: startTime is required for finished job",
                        "status.startTime: Required value: startTime cannot be removed for unsuspended job",
                    ],
                ),
                (
                    done(
                        json!({"/status/conditions": is(&["Complete", "Failed", "FailureTarget"])}),
                    ),
                    &[
                        "status.conditions: Invalid value: cannot set Complete=True and Failed=true conditions",
                        "status.conditions: Invalid value: cannot set Complete=True and FailureTarget=true conditions",
                    ],
                ),
                (
                    done(json!({"/status/uncountedTerminatedPods": {"succeeded": ["a", "a", ""]}})),
                    &[
                        "status.uncountedTerminatedPods.succeeded[1]: Duplicate value: \"a\"",
                        "status.uncountedTerminatedPods.succeeded[2]: Invalid value: \"\": must not be empty",
                        "status.uncountedTerminatedPods: Invalid value: {\"succeeded\":[\"a\",\"a\",\"\"]}: uncountedTerminatedPods needs to be empty for finished job",
                    ],
                ),
                (
                    json!({"/status/completionTime": "2026-01-01T00:01:00Z"}),
                    &[
                        "status.completionTime: Invalid value: \"2026-01-01T00:01:00Z\": cannot set completionTime when there is no Complete=True condition",
                    ],
                ),
                (
                    json!({"/status/failed": 1, "/status/succeeded": -1}),
                    &[
                        "status.succeeded: Invalid value: -1: must be greater than or equal to 0",
                        "status.failed: Invalid value: 1: cannot decrease the failed counter",
                        "status.succeeded: Invalid value: -1: cannot decrease the succeeded counter",
                    ],
                ),
                (
                    json!({"/status/conditions": is(&["SuccessCriteriaMet", "Failed"])}),
                    &[
                        "status.active: Invalid value: 1: active>0 is invalid for finished job",
                        "status.conditions: Invalid value: cannot set SuccessCriteriaMet=True and Failed=true conditions",
                    ],
                ),
            ],
        );
    }

    #[test]
    fn an_end_is_final() {
        let done = json!({"spec": {"completions": 1}, "status": {"succeeded": 1, "startTime": "2026-01-01T00:00:00Z",
            "completionTime": "2026-01-01T00:01:00Z", "conditions": is(&["Complete"])}});
        assert_updates(
            &done,
            validate,
            &[
                (
                    json!({"/status/conditions": [], "/status/completionTime": null}),
                    &[
                        "status.conditions: Invalid value: cannot disable the terminal Complete=True condition",
                    ],
                ),
                (
                    json!({"/status/completionTime": "2026-01-01T00:02:00Z"}),
                    &[
                        "status.completionTime: Invalid value: \"2026-01-01T00:02:00Z\": completionTime cannot be mutated",
                    ],
                ),
                (
                    json!({"/status/conditions": is(&["Complete", "SuccessCriteriaMet"])}),
                    &[
                        "status.conditions: Invalid value: cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions",
                    ],
                ),
            ],
        );
    }

    #[test]
    fn indexes_are_lists() {
        let job = json!({"spec": {"completionMode": "Indexed", "completions": 5, "backoffLimitPerIndex": 1}, "status": {}});
        assert_updates(
            &job,
            validate,
            &[
                (
                    json!({"/status/completedIndexes": "0,2-4", "/status/failedIndexes": "1"}),
                    &[],
                ),
                (
                    json!({"/status/completedIndexes": "5"}),
                    &[
                        "status.completedIndexes: Invalid value: \"5\": error parsing completedIndexes: too large index: \"5\"",
                    ],
                ),
                (
                    json!({"/status/completedIndexes": "0-2", "/status/failedIndexes": "1-3"}),
                    &[
                        "status.failedIndexes: Invalid value: \"1-3\": failedIndexes and completedIndexes overlap at index: 1",
                    ],
                ),
                (
                    json!({"/spec/backoffLimitPerIndex": null, "/status/failedIndexes": ""}),
                    &[
                        "status.failedIndexes: Invalid value: \"\": cannot set non-null failedIndexes when backoffLimitPerIndex is null",
                    ],
                ),
                (
                    json!({"/spec/completionMode": null, "/status/completedIndexes": "1"}),
                    &[
                        "status.completedIndexes: Invalid value: \"1\": cannot set non-empty completedIndexes when non-indexed completion mode",
                    ],
                ),
            ],
        );
    }
}
