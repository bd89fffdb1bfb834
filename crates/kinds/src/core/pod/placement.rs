//! Where pods may be put: affinity, and how they spread.

use api::{FieldError, meta, names};
use serde_json::{Value, json};

use crate::check::{self, named, one_of, one_of_if_set};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Every broken rule of a pod's affinity.
pub(super) fn affinity(affinity: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(nodes) = affinity.get("nodeAffinity") {
        errors.extend(of_nodes(nodes, &format!("{at}.nodeAffinity")));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (i, term) in meta::list_at(affinity, &[kind, REQUIRED])
            .iter()
            .enumerate()
        {
            errors.extend(pod_term(term, &format!("{at}.{kind}.{REQUIRED}[{i}]")));
        }
        let preferred = meta::list_at(affinity, &[kind, PREFERRED]);
        for (i, weighted) in preferred.iter().enumerate() {
            let at = format!("{at}.{kind}.{PREFERRED}[{i}]");
            errors.extend(weight(weighted, &at));
            let term = weighted.get("podAffinityTerm").unwrap_or(&Value::Null);
            errors.extend(pod_term(term, &format!("{at}.podAffinityTerm")));
        }
    }
    errors
}

fn weight(weighted: &Value, at: &str) -> Option<FieldError> {
    let weight = meta::int_at(weighted, &["weight"]).unwrap_or(0);
    let why = "must be in the range 1-100";
    (!(1..=100).contains(&weight)).then(|| FieldError::invalid(format!("{at}.weight"), weight, why))
}

fn of_nodes(affinity: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(selector) = affinity.get(REQUIRED) {
        errors.extend(node_selector(selector, &format!("{at}.{REQUIRED}")));
    }
    for (i, term) in meta::list_at(affinity, &[PREFERRED]).iter().enumerate() {
        let at = format!("{at}.{PREFERRED}[{i}]");
        errors.extend(weight(term, &at));
        let preference = term.get("preference").unwrap_or(&Value::Null);
        errors.extend(node_term(preference, &format!("{at}.preference")));
    }
    errors
}

/// Every broken rule of a selector of nodes.
pub(crate) fn node_selector(selector: &Value, at: &str) -> Vec<FieldError> {
    let terms = meta::list_at(selector, &["nodeSelectorTerms"]);
    let at = format!("{at}.nodeSelectorTerms");
    if terms.is_empty() {
        let why = "must have at least one node selector term";
        return vec![FieldError::required(at, why)];
    }
    let all = terms.iter().enumerate();
    all.flat_map(|(i, term)| node_term(term, &format!("{at}[{i}]")))
        .collect()
}

fn node_term(term: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, expression) in meta::list_at(term, &["matchExpressions"])
        .iter()
        .enumerate()
    {
        errors.extend(by_label(expression, &format!("{at}.matchExpressions[{i}]")));
    }
    for (i, expression) in meta::list_at(term, &["matchFields"]).iter().enumerate() {
        errors.extend(by_field(expression, &format!("{at}.matchFields[{i}]")));
    }
    errors
}

fn by_label(expression: &Value, at: &str) -> Vec<FieldError> {
    let (key, operator) = (
        meta::str_at(expression, &["key"]),
        meta::str_at(expression, &["operator"]),
    );
    let values = meta::list_at(expression, &["values"]);
    let path = format!("{at}.values");
    let mut errors = Vec::new();
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            let why = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.push(FieldError::required(path, why));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(path, why));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errors.push(FieldError::required(path, why));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => {
            let why = "not a valid selector operator";
            errors.push(FieldError::invalid(format!("{at}.operator"), other, why));
        }
    }
    errors.extend(named(names::qualified_name(key), &format!("{at}.key"), key));
    errors
}

fn by_field(expression: &Value, at: &str) -> Vec<FieldError> {
    let (key, operator) = (
        meta::str_at(expression, &["key"]),
        meta::str_at(expression, &["operator"]),
    );
    let values = meta::list_at(expression, &["values"]);
    let mut errors = Vec::new();
    match operator {
        "In" | "NotIn" => {
            if values.len() != 1 {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.push(FieldError::required(format!("{at}.values"), why));
            }
        }
        other => {
            let why = "not a valid selector operator";
            errors.push(FieldError::invalid(format!("{at}.operator"), other, why));
        }
    }
    if key != "metadata.name" {
        let why = "not a valid field selector key";
        errors.push(FieldError::invalid(format!("{at}.key"), key, why));
        return errors;
    }
    for (i, value) in values.iter().filter_map(Value::as_str).enumerate() {
        let why = names::dns1123_subdomain(value);
        errors.extend(named(why, &format!("{at}.values[{i}]"), value));
    }
    errors
}

fn topology_key(of: &Value, at: &str) -> Vec<FieldError> {
    let key = meta::str_at(of, &["topologyKey"]);
    let at = format!("{at}.topologyKey");
    if key.is_empty() {
        return vec![FieldError::required(at, "can not be empty")];
    }
    named(names::qualified_name(key), &at, key)
}

fn pod_term(term: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = term.get(field) {
            errors.extend(check::label_selector(selector, &format!("{at}.{field}")));
        }
    }
    let namespaces = meta::list_at(term, &["namespaces"]).iter();
    for namespace in namespaces.filter_map(Value::as_str) {
        let at = format!("{at}.namespace");
        errors.extend(named(names::dns1123_label(namespace), &at, namespace));
    }
    errors.extend(topology_key(term, at));
    errors
}

/// Every broken rule of how pods spread.
pub(super) fn spread(constraints: &[Value], at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, constraint) in constraints.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let number = |field: &str| meta::int_at(constraint, &[field]);
        let text = |of: &Value, field: &str| meta::str_at(of, &[field]).to_owned();
        let mut positive = |field: &str, n: i64| {
            if n <= 0 {
                let at = format!("{at}.{field}");
                errors.push(FieldError::invalid(at, n, "must be greater than zero"));
            }
        };
        positive("maxSkew", number("maxSkew").unwrap_or(0));
        if let Some(n) = number("minDomains") {
            positive("minDomains", n);
        }
        errors.extend(topology_key(constraint, &at));
        let action = text(constraint, "whenUnsatisfiable");
        errors.extend(one_of(
            &action,
            format!("{at}.whenUnsatisfiable"),
            &["DoNotSchedule", "ScheduleAnyway"],
        ));
        if let Some(n) = number("minDomains").filter(|_| action == "ScheduleAnyway") {
            let why =
                "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
            errors.push(FieldError::invalid(format!("{at}.minDomains"), n, why));
        }
        let pair = |c: &Value| (text(c, "topologyKey"), text(c, "whenUnsatisfiable"));
        if constraints[..i].iter().any(|c| pair(c) == pair(constraint)) {
            let shown = format!("{{{}, {action}}}", text(constraint, "topologyKey"));
            let at = format!("{at}.{{topologyKey, whenUnsatisfiable}}");
            errors.push(FieldError::duplicate(at, json!(shown)));
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let policy = meta::str_at(constraint, &[field]);
            errors.extend(one_of_if_set(
                policy,
                format!("{at}.{field}"),
                &["Honor", "Ignore"],
            ));
        }
        if let Some(selector) = constraint.get("labelSelector") {
            errors.extend(check::label_selector(
                selector,
                &format!("{at}.labelSelector"),
            ));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::texts;

    #[test]
    fn affinities() {
        let good = json!({
            "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "a.b/c", "operator": "In", "values": ["d"]}, {"key": "e", "operator": "Gt", "values": ["1"]}],
                    "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]},
                PREFERRED: [{"weight": 1, "preference": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}]},
            "podAffinity": {PREFERRED: [{"weight": 100, "podAffinityTerm": {"topologyKey": "z"}}]}});
        assert_eq!(texts(&affinity(&good, "spec.affinity")), [""; 0]);
        let odd = json!({
            "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["b"]}, {"key": "a", "operator": "Gt"}, {"key": "a", "operator": "Like"}],
                    "matchFields": [{"key": "spec.x", "operator": "In", "values": ["n", "m"]}]}]},
                PREFERRED: [{"weight": 0, "preference": {}}]},
            "podAntiAffinity": {REQUIRED: [{"namespaces": ["A"]}], PREFERRED: [{"weight": 101, "podAffinityTerm": {"topologyKey": ""}}]}});
        let nodes = format!("nodeAffinity.{REQUIRED}.nodeSelectorTerms[0]");
        assert_eq!(
            texts(&affinity(&odd, "a")),
            [
                format!(
                    "a.{nodes}.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
                ),
                format!(
                    "a.{nodes}.matchExpressions[1].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                ),
                format!(
                    "a.{nodes}.matchExpressions[2].values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'"
                ),
                format!(
                    "a.{nodes}.matchExpressions[3].operator: Invalid value: \"Like\": not a valid selector operator"
                ),
                format!(
                    "a.{nodes}.matchFields[0].values: Required value: must be only one value when `operator` is 'In' or 'NotIn' for node field selector"
                ),
                format!(
                    "a.{nodes}.matchFields[0].key: Invalid value: \"spec.x\": not a valid field selector key"
                ),
                format!(
                    "a.nodeAffinity.{PREFERRED}[0].weight: Invalid value: 0: must be in the range 1-100"
                ),
                format!(
                    "a.podAntiAffinity.{REQUIRED}[0].namespace: Invalid value: \"A\": {}",
                    names::dns1123_label("A")[0]
                ),
                format!(
                    "a.podAntiAffinity.{REQUIRED}[0].topologyKey: Required value: can not be empty"
                ),
                format!(
                    "a.podAntiAffinity.{PREFERRED}[0].weight: Invalid value: 101: must be in the range 1-100"
                ),
                format!(
                    "a.podAntiAffinity.{PREFERRED}[0].podAffinityTerm.topologyKey: Required value: can not be empty"
                ),
            ]
        );
    }

    #[test]
    fn constraints() {
        let constraint =
            json!({"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway"});
        assert_eq!(
            texts(&spread(std::slice::from_ref(&constraint), "s")),
            [""; 0]
        );
        let mut odd = constraint.clone();
        odd["maxSkew"] = 0.into();
        odd["minDomains"] = 0.into();
        odd["nodeTaintsPolicy"] = "Maybe".into();
        assert_eq!(
            texts(&spread(&[constraint, odd], "s")),
            [
                "s[1].maxSkew: Invalid value: 0: must be greater than zero",
                "s[1].minDomains: Invalid value: 0: must be greater than zero",
                "s[1].minDomains: Invalid value: 0: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway",
                "s[1].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{z, ScheduleAnyway}\"",
                "s[1].nodeTaintsPolicy: Unsupported value: \"Maybe\": supported values: \"Honor\", \"Ignore\"",
            ]
        );
    }
}
