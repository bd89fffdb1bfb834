//! Rules of Jobs that have indexes and policies of failure and success.

use api::{FieldError, meta};
use serde_json::Value;

use crate::check::{named, not_negative, one_of, prefixed_path};

/// Most pods at once, and most failed indexes, of a Job with indexes.
const INDEXED_MAX: i64 = 100_000;
/// Most rules of a policy.
const RULES_MAX: usize = 20;
/// Most exit codes of one rule.
const CODES_MAX: usize = 255;
/// Most patterns of conditions of one rule.
const PATTERNS_MAX: usize = 20;

/// Completions above which a Job with limits per index is held to lower bounds.
const MANY_COMPLETIONS: i64 = 100_000;
/// Most pods at once, and most failed indexes, of a Job with limits per index and many completions.
const MANY_BOUND: i64 = 10_000;
/// Longest list of indexes of a rule of success, in bytes.
const INDEXES_BYTES: usize = 64 << 10;
/// Longest name of what manages a Job, in bytes.
const MANAGER_MAX: usize = 63;

/// One of the allowed values; when there is none, they are told.
fn one_of_told(value: &str, path: String, allowed: &[&str]) -> Option<FieldError> {
    if value.is_empty() {
        let quoted: Vec<String> = allowed.iter().map(|a| format!("{a:?}")).collect();
        let why = format!("valid values: [{}]", quoted.join(" "));
        return Some(FieldError::required(path, why));
    }
    one_of(value, path, allowed)
}

/// `managedBy`.
pub(super) fn managed_by(spec: &Value, at: &str) -> Vec<FieldError> {
    let Some(manager) = spec.get("managedBy").and_then(Value::as_str) else {
        return Vec::new();
    };
    let at = format!("{at}.managedBy");
    let mut errors = prefixed_path(manager, &at);
    if manager.len() > MANAGER_MAX {
        errors.push(FieldError::too_long(at, MANAGER_MAX));
    }
    errors
}

pub(super) fn is_indexed(spec: &Value) -> bool {
    meta::str_at(spec, &["completionMode"]) == "Indexed"
}

/// What is meant for Jobs with indexes, and what they need.
pub(super) fn indexed(spec: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let number = |field: &str| meta::int_at(spec, &[field]);
    let path = |field: &str| format!("{at}.{field}");
    if is_indexed(spec) {
        if number("completions").is_none() {
            let why = "when completion mode is Indexed";
            errors.push(FieldError::required(path("completions"), why));
        }
        if let Some(n) = number("parallelism").filter(|n| *n > INDEXED_MAX) {
            let why = format!(
                "must be less than or equal to {INDEXED_MAX} when completion mode is Indexed"
            );
            errors.push(FieldError::invalid(path("parallelism"), n, why));
        }
        let (failed, all) = (number("maxFailedIndexes"), number("completions"));
        if let (Some(failed), Some(all)) = (failed, all)
            && failed > all
        {
            let why = "must be less than or equal to completions";
            errors.push(FieldError::invalid(path("maxFailedIndexes"), failed, why));
        }
        if let Some(n) = failed.filter(|n| *n > INDEXED_MAX) {
            let why = format!("must be less than or equal to {INDEXED_MAX}");
            errors.push(FieldError::invalid(path("maxFailedIndexes"), n, why));
        }
        if spec.get("backoffLimitPerIndex").is_some() && all.is_some_and(|n| n > MANY_COMPLETIONS) {
            errors.extend(many(spec, at));
        }
    } else {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(n) = number(field) {
                let why = "requires indexed completion mode";
                errors.push(FieldError::invalid(path(field), n, why));
            }
        }
    }
    errors
}

/// The lower bounds of a Job with many completions and limits per index.
fn many(spec: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if spec.get("maxFailedIndexes").is_none() {
        let why = format!("must be specified when completions is above {MANY_COMPLETIONS}");
        errors.push(FieldError::required(format!("{at}.maxFailedIndexes"), why));
    }
    for field in ["parallelism", "maxFailedIndexes"] {
        if let Some(n) = meta::int_at(spec, &[field]).filter(|n| *n > MANY_BOUND) {
            let why = format!(
                "must be less than or equal to {MANY_BOUND} when completions are above {MANY_COMPLETIONS} and used with backoff limit per index"
            );
            errors.push(FieldError::invalid(format!("{at}.{field}"), n, why));
        }
    }
    errors
}

/// `podFailurePolicy`.
pub(super) fn failure_policy(spec: &Value, at: &str) -> Vec<FieldError> {
    let Some(policy) = spec.get("podFailurePolicy") else {
        return Vec::new();
    };
    let mut errors = Vec::new();
    let rules = meta::list_at(policy, &["rules"]);
    let at = format!("{at}.podFailurePolicy.rules");
    if rules.len() > RULES_MAX {
        errors.push(FieldError::too_many(&at, rules.len(), RULES_MAX));
    }
    for (i, rule) in rules.iter().enumerate() {
        errors.extend(failure_rule(rule, spec, &format!("{at}[{i}]")));
    }
    errors
}

fn failure_rule(rule: &Value, spec: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let action = meta::str_at(rule, &["action"]);
    let path = format!("{at}.action");
    let per_index = spec.get("backoffLimitPerIndex").is_some();
    if action == "FailIndex" && !per_index {
        let why = "requires the backoffLimitPerIndex to be set";
        errors.push(FieldError::invalid(path, action, why));
    } else {
        let allowed = &["Count", "FailIndex", "FailJob", "Ignore"];
        errors.extend(one_of_told(action, path, allowed));
    }
    let codes = rule.get("onExitCodes");
    let patterns = meta::list_at(rule, &["onPodConditions"]);
    if let Some(codes) = codes {
        errors.extend(exit_codes(codes, spec, &format!("{at}.onExitCodes")));
    }
    let path = format!("{at}.onPodConditions");
    if patterns.len() > PATTERNS_MAX {
        errors.push(FieldError::too_many(&path, patterns.len(), PATTERNS_MAX));
    }
    for (i, pattern) in patterns.iter().enumerate() {
        let kind = meta::str_at(pattern, &["type"]);
        let at = format!("{path}[{i}].type");
        errors.extend(named(api::names::qualified_name(kind), &at, kind));
        let allowed = &["False", "True", "Unknown"];
        let status = meta::str_at(pattern, &["status"]);
        errors.extend(one_of_told(status, format!("{path}[{i}].status"), allowed));
    }
    if codes.is_some() && !patterns.is_empty() {
        let why = "specifying both OnExitCodes and OnPodConditions is not supported";
        errors.push(FieldError::unshown(at, why));
    }
    if codes.is_none() && patterns.is_empty() {
        let why = "specifying one of OnExitCodes and OnPodConditions is required";
        errors.push(FieldError::unshown(at, why));
    }
    errors
}

fn exit_codes(codes: &Value, spec: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let operator = meta::str_at(codes, &["operator"]);
    let operators = &["In", "NotIn"];
    errors.extend(one_of_told(operator, format!("{at}.operator"), operators));
    if let Some(container) = codes.get("containerName").and_then(Value::as_str) {
        let of = |list: &str| meta::list_at(spec, &["template", "spec", list]).iter();
        let mut all = of("containers").chain(of("initContainers"));
        if !all.any(|c| meta::str_at(c, &["name"]) == container) {
            let why = "must be one of the container or initContainer names in the pod template";
            errors.push(FieldError::invalid(
                format!("{at}.containerName"),
                container,
                why,
            ));
        }
    }
    let values = meta::list_at(codes, &["values"]);
    let at = format!("{at}.values");
    if values.is_empty() {
        let why = "at least one value is required";
        let none = codes.get("values").cloned().unwrap_or_default();
        errors.push(FieldError::invalid(&at, none, why));
    } else if values.len() > CODES_MAX {
        errors.push(FieldError::too_many(&at, values.len(), CODES_MAX));
    }
    for (i, value) in values.iter().enumerate() {
        let path = format!("{at}[{i}]");
        if operator == "In" && value == 0 {
            let why = "must not be 0 for the In operator";
            errors.push(FieldError::invalid(&path, 0, why));
        }
        if values[..i].contains(value) {
            errors.push(FieldError::duplicate(&path, value.clone()));
        }
    }
    let numbers: Vec<i64> = values.iter().filter_map(Value::as_i64).collect();
    if !numbers.is_sorted() {
        let why = "must be ordered";
        errors.push(FieldError::invalid(&at, values.to_vec(), why));
    }
    errors
}

/// `successPolicy`.
pub(super) fn success_policy(spec: &Value, at: &str) -> Vec<FieldError> {
    let Some(policy) = spec.get("successPolicy") else {
        return Vec::new();
    };
    let path = format!("{at}.successPolicy");
    if !is_indexed(spec) {
        let why = "requires indexed completion mode";
        return vec![FieldError::invalid(path, policy.clone(), why)];
    }
    let rules = meta::list_at(policy, &["rules"]);
    let at = format!("{path}.rules");
    let mut errors = Vec::new();
    if rules.is_empty() {
        let why = "at least one rules must be specified when the successPolicy is specified";
        errors.push(FieldError::required(&at, why));
    }
    if rules.len() > RULES_MAX {
        errors.push(FieldError::too_many(&at, rules.len(), RULES_MAX));
    }
    let all = meta::int_at(spec, &["completions"]).unwrap_or(0);
    for (i, rule) in rules.iter().enumerate() {
        errors.extend(success_rule(rule, all, &format!("{at}[{i}]")));
    }
    errors
}

fn success_rule(rule: &Value, all: i64, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let count = meta::int_at(rule, &["succeededCount"]);
    let indexes = rule.get("succeededIndexes").and_then(Value::as_str);
    if count.is_none() && indexes.is_none() {
        let why = "at least one of succeededCount or succeededIndexes must be specified";
        errors.push(FieldError::required(at, why));
    }
    let mut listed = 0;
    if let Some(text) = indexes {
        let at = format!("{at}.succeededIndexes");
        if text.len() > INDEXES_BYTES {
            errors.push(FieldError::too_long(&at, INDEXES_BYTES));
        }
        match index_spans(text, all) {
            Ok(spans) => listed = spans.iter().map(|(first, last)| last - first + 1).sum(),
            Err(why) => {
                let why = format!("error parsing succeededIndexes: {why}");
                errors.push(FieldError::invalid(at, text, why));
            }
        }
    }
    let Some(count) = count else {
        return errors;
    };
    errors.extend(not_negative(rule, at, &["succeededCount"]));
    let mut bound = |most: i64, of: &str| {
        if count > most {
            let why = format!("must be less than or equal to {most} (the number of {of})");
            let at = format!("{at}.succeededCount");
            errors.push(FieldError::invalid(at, count, why));
        }
    };
    bound(all, "specified completions");
    if indexes.is_some() {
        bound(listed, "indexes in the specified succeededIndexes field");
    }
    errors
}

/// The first and last index of each part of a list of ascending indexes and spans below `all`, or why it is
/// no such list.
pub(super) fn index_spans(text: &str, all: i64) -> Result<Vec<(i64, i64)>, String> {
    let number = |n: &str| match n.parse::<i64>() {
        Ok(index) if index >= all => Err(format!("too large index: {n:?}")),
        Ok(index) => Ok(index),
        Err(_) => Err(format!("cannot convert string to integer for index: {n:?}")),
    };
    let rising = |before: i64, index: i64| {
        let why = format!("non-increasing order, previous: {before}, current: {index}");
        if before < index { Ok(()) } else { Err(why) }
    };
    let mut spans: Vec<(i64, i64)> = Vec::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let ends: Vec<&str> = part.split('-').collect();
        if ends.len() > 2 {
            return Err(format!(
                "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
            ));
        }
        let first = number(ends[0])?;
        let last = ends.get(1).map_or(Ok(first), |end| number(end))?;
        if ends.len() == 2 {
            rising(first, last)?;
        }
        if let Some((_, before)) = spans.last() {
            rising(*before, first)?;
        }
        spans.push((first, last));
    }
    Ok(spans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_texts, texts};
    use serde_json::json;

    #[test]
    fn indexes() {
        assert_eq!(
            texts(&indexed(
                &json!({"completionMode": "Indexed", "parallelism": 100_001, "maxFailedIndexes": 1}),
                "spec"
            )),
            [
                "spec.completions: Required value: when completion mode is Indexed",
                "spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed"
            ]
        );
        assert_eq!(
            texts(&indexed(&json!({"backoffLimitPerIndex": 1}), "spec")),
            ["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"]
        );
    }

    #[test]
    fn policies_of_failure() {
        let template =
            json!({"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "c"}]}});
        let rules = json!([
            {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1, 0, 1], "containerName": "x"}},
            {"action": "Odd", "onPodConditions": [{"type": "a b", "status": "Maybe"}]},
            {"action": "Ignore"}]);
        let at = "spec.podFailurePolicy.rules";
        let errors = texts(&failure_policy(
            &json!({"template": template, "podFailurePolicy": {"rules": rules}}),
            "spec",
        ));
        let begin = [
            format!(
                "{at}[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set"
            ),
            format!(
                "{at}[0].onExitCodes.containerName: Invalid value: \"x\": must be one of the container or initContainer names in the pod template"
            ),
            format!(
                "{at}[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator"
            ),
            format!("{at}[0].onExitCodes.values[2]: Duplicate value: 1"),
            format!("{at}[0].onExitCodes.values: Invalid value: [1,0,1]: must be ordered"),
            format!(
                "{at}[1].action: Unsupported value: \"Odd\": supported values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\""
            ),
            format!("{at}[1].onPodConditions[0].type: Invalid value: \"a b\": "),
            format!("{at}[1].onPodConditions[0].status: Unsupported value: \"Maybe\""),
            format!(
                "{at}[2]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required"
            ),
        ];
        assert_eq!(errors.len(), begin.len(), "{errors:#?}");
        for (error, begin) in errors.iter().zip(begin) {
            assert!(error.starts_with(&begin), "{error}");
        }
    }

    #[test]
    fn many_completions_have_lower_bounds() {
        let spec = json!({"completionMode": "Indexed", "completions": 100_001, "parallelism": 10_001, "backoffLimitPerIndex": 1});
        let why = "when completions are above 100000 and used with backoff limit per index";
        assert_texts(
            &indexed(&spec, "spec"),
            &[
                "spec.maxFailedIndexes: Required value: must be specified when completions is above 100000",
                &format!(
                    "spec.parallelism: Invalid value: 10001: must be less than or equal to 10000 {why}"
                ),
            ],
            &"no bound of failed indexes",
        );
        let managed = json!({"managedBy": "me"});
        let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        assert_texts(
            &managed_by(&managed, "spec"),
            &[&format!("spec.managedBy: Invalid value: \"me\": {why}")],
            &managed,
        );
        let rule = json!({"podFailurePolicy": {"rules": [{"onExitCodes": {"values": []}}]}});
        let at = "spec.podFailurePolicy.rules[0]";
        assert_texts(
            &failure_policy(&rule, "spec"),
            &[
                &format!(
                    "{at}.action: Required value: valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"
                ),
                &format!(
                    "{at}.onExitCodes.operator: Required value: valid values: [\"In\" \"NotIn\"]"
                ),
                &format!(
                    "{at}.onExitCodes.values: Invalid value: []: at least one value is required"
                ),
            ],
            &"what is required is told",
        );
    }

    #[test]
    fn policies_of_success() {
        let of = |rule: Value| {
            let spec = json!({"completionMode": "Indexed", "completions": 5, "successPolicy": {"rules": [rule]}});
            texts(&success_policy(&spec, "spec"))
        };
        assert_eq!(
            of(json!({"succeededIndexes": "0,2-4", "succeededCount": 1})),
            [""; 0]
        );
        assert_eq!(
            of(json!({"succeededIndexes": "0,2-3", "succeededCount": 4})),
            [
                "spec.successPolicy.rules[0].succeededCount: Invalid value: 4: must be less than or equal to 3 (the number of indexes in the specified succeededIndexes field)"
            ]
        );
        for odd in ["2-1", "1,1", "5", "a", "1-2-3"] {
            assert_eq!(of(json!({"succeededIndexes": odd})).len(), 1, "{odd}");
        }
        assert_eq!(
            of(json!({})),
            [
                "spec.successPolicy.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified"
            ]
        );
    }
}
