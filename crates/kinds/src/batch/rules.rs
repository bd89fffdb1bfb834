//! Rules of Jobs that have indexes and policies of failure and success.

use api::{FieldError, meta};
use serde_json::Value;

use crate::check::{named, one_of};

/// Most pods at once, and most failed indexes, of a Job with indexes.
const INDEXED_MAX: i64 = 100_000;
/// Most rules of a policy.
const RULES_MAX: usize = 20;
/// Most exit codes of one rule.
const CODES_MAX: usize = 255;
/// Most patterns of conditions of one rule.
const PATTERNS_MAX: usize = 20;

fn is_indexed(spec: &Value) -> bool {
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
    } else {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(n) = number(field) {
                let why = "requires indexed completion mode";
                errors.push(FieldError::invalid(path(field), n, why));
            }
        }
    }
    if number("maxFailedIndexes").is_some() && number("backoffLimitPerIndex").is_none() {
        let why = "when maxFailedIndexes is specified";
        errors.push(FieldError::required(path("backoffLimitPerIndex"), why));
    }
    errors
}

/// `podFailurePolicy`.
pub(super) fn failure_policy(spec: &Value, at: &str) -> Vec<FieldError> {
    let Some(policy) = spec.get("podFailurePolicy") else {
        return Vec::new();
    };
    let mut errors = Vec::new();
    let restart = meta::str_at(spec, &["template", "spec", "restartPolicy"]);
    if restart != "Never" {
        let why = "only \"Never\" is supported when podFailurePolicy is specified";
        let path = format!("{at}.template.spec.restartPolicy");
        errors.push(FieldError::invalid(path, restart, why));
    }
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
        errors.extend(one_of(action, path, allowed));
    }
    let codes = rule.get("onExitCodes");
    let patterns = meta::list_at(rule, &["onPodConditions"]);
    if codes.is_some() && !patterns.is_empty() {
        let why = "specifying both OnExitCodes and OnPodConditions is not supported";
        errors.push(FieldError::unshown(at, why));
    }
    if codes.is_none() && patterns.is_empty() {
        let why = "specifying one of OnExitCodes and OnPodConditions is required";
        errors.push(FieldError::unshown(at, why));
    }
    if let Some(codes) = codes {
        errors.extend(exit_codes(codes, spec, &format!("{at}.onExitCodes")));
    }
    let at = format!("{at}.onPodConditions");
    if patterns.len() > PATTERNS_MAX {
        errors.push(FieldError::too_many(&at, patterns.len(), PATTERNS_MAX));
    }
    for (i, pattern) in patterns.iter().enumerate() {
        let kind = meta::str_at(pattern, &["type"]);
        let path = format!("{at}[{i}].type");
        errors.extend(named(api::names::qualified_name(kind), &path, kind));
        let allowed = &["False", "True", "Unknown"];
        let status = meta::str_at(pattern, &["status"]);
        errors.extend(one_of(status, format!("{at}[{i}].status"), allowed));
    }
    errors
}

fn exit_codes(codes: &Value, spec: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let operator = meta::str_at(codes, &["operator"]);
    let operators = &["In", "NotIn"];
    errors.extend(one_of(operator, format!("{at}.operator"), operators));
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
        errors.push(FieldError::invalid(&at, Value::Array(Vec::new()), why));
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
    } else if rules.len() > RULES_MAX {
        errors.push(FieldError::too_many(&at, rules.len(), RULES_MAX));
    }
    let all = meta::int_at(spec, &["completions"]).unwrap_or(0);
    for (i, rule) in rules.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let (count, indexes) = (
            meta::int_at(rule, &["succeededCount"]),
            rule.get("succeededIndexes").and_then(Value::as_str),
        );
        if count.is_none() && indexes.is_none() {
            let why = "at least one of succeededCount or succeededIndexes must be specified";
            errors.push(FieldError::required(&at, why));
        }
        if let Some(n) = count.filter(|n| *n < 0) {
            let why = crate::check::NOT_NEGATIVE;
            errors.push(FieldError::invalid(format!("{at}.succeededCount"), n, why));
        }
        if let Some(n) = count.filter(|n| *n > all) {
            let why = format!(
                "must be less than or equal to {all} (the number of specified completions)"
            );
            errors.push(FieldError::invalid(format!("{at}.succeededCount"), n, why));
        }
        if let Some(text) = indexes
            && let Err(why) = index_set(text, all)
        {
            let why = format!("error parsing succeededIndexes: {why}");
            errors.push(FieldError::invalid(
                format!("{at}.succeededIndexes"),
                text,
                why,
            ));
        }
    }
    errors
}

/// Whether a text is a list of ascending indexes and spans below `all`.
fn index_set(text: &str, all: i64) -> Result<(), String> {
    let number = |n: &str| {
        n.parse::<i64>()
            .map_err(|_| format!("cannot convert string to integer for index: {n:?}"))
    };
    let mut last = -1;
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let ends: Vec<&str> = part.split('-').collect();
        if ends.len() > 2 {
            return Err(format!(
                "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
            ));
        }
        let first = number(ends[0])?;
        if last >= first {
            return Err(format!(
                "non-increasing order, previous: {last}, current: {first}"
            ));
        }
        last = first;
        if let Some(end) = ends.get(1) {
            last = number(end)?;
            if last <= first {
                return Err(format!(
                    "non-increasing order, previous: {first}, current: {last}"
                ));
            }
        }
        if last >= all {
            return Err(format!("too large index: {part:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn all(errors: Vec<FieldError>) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn indexes() {
        assert_eq!(
            all(indexed(
                &json!({"completionMode": "Indexed", "parallelism": 100_001, "maxFailedIndexes": 1}),
                "spec"
            )),
            [
                "spec.completions: Required value: when completion mode is Indexed",
                "spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed",
                "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified"
            ]
        );
        assert_eq!(
            all(indexed(&json!({"backoffLimitPerIndex": 1}), "spec")),
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
        let errors = all(failure_policy(
            &json!({"template": template, "podFailurePolicy": {"rules": rules}}),
            "spec",
        ));
        let begin = [
            "spec.template.spec.restartPolicy: Invalid value: \"OnFailure\": only \"Never\" is supported when podFailurePolicy is specified".to_owned(),
            format!("{at}[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set"),
            format!("{at}[0].onExitCodes.containerName: Invalid value: \"x\": must be one of the container or initContainer names in the pod template"),
            format!("{at}[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator"),
            format!("{at}[0].onExitCodes.values[2]: Duplicate value: 1"),
            format!("{at}[0].onExitCodes.values: Invalid value: [1,0,1]: must be ordered"),
            format!("{at}[1].action: Unsupported value: \"Odd\": supported values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\""),
            format!("{at}[1].onPodConditions[0].type: Invalid value: \"a b\": "),
            format!("{at}[1].onPodConditions[0].status: Unsupported value: \"Maybe\""),
            format!("{at}[2]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required"),
        ];
        assert_eq!(errors.len(), begin.len(), "{errors:#?}");
        for (error, begin) in errors.iter().zip(begin) {
            assert!(error.starts_with(&begin), "{error}");
        }
    }

    #[test]
    fn policies_of_success() {
        let of = |rule: Value| {
            let spec = json!({"completionMode": "Indexed", "completions": 5, "successPolicy": {"rules": [rule]}});
            all(success_policy(&spec, "spec"))
        };
        assert_eq!(
            of(json!({"succeededIndexes": "0,2-4", "succeededCount": 1})),
            [""; 0]
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
