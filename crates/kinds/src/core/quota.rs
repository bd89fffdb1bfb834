//! ResourceQuotas.

use api::{FieldError, meta};
use serde_json::{Value, json};

use crate::cells::{Cell, text};
use crate::check::quantity;
use crate::core::resources::{amount, is_counted_or_summed, resource_name};
use crate::simple::Simple;

/// Rules of ResourceQuotas.
pub(crate) static QUOTAS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::With(|o, _| used(o, false)),
        Cell::With(|o, _| used(o, true)),
        Cell::Age,
    ],
    validate: validate_quota,
    validate_update: |new, old| {
        let scopes = |of| {
            let mut all: Vec<String> = meta::list_at(of, &["spec", "scopes"])
                .iter()
                .filter_map(|s| s.as_str().map(str::to_owned))
                .collect();
            all.sort();
            all
        };
        let changed = (scopes(new) != scopes(old)).then(|| {
            let is = meta::list_at(new, &["spec", "scopes"]).to_vec();
            FieldError::invalid("spec.scopes", is, crate::check::IMMUTABLE)
        });
        changed.into_iter().collect()
    },
    validate_status: |new, _| {
        let mut errors = amounts(new, ["status", "hard"]);
        errors.extend(amounts(new, ["status", "used"]));
        errors
    },
    ..Simple::BASE
};

fn used(obj: &Value, limits: bool) -> Value {
    let hard = meta::get(obj, &["status", "hard"]).and_then(Value::as_object);
    let mut names: Vec<&String> = hard
        .into_iter()
        .flatten()
        .map(|(k, _)| k)
        .filter(|k| k.starts_with("limits.") == limits)
        .collect();
    names.sort();
    let cell = |n: &&String| {
        format!(
            "{n}: {}/{}",
            crate::cells::or(text(obj, &["status", "used", n]), "0"),
            text(obj, &["status", "hard", n])
        )
    };
    names.iter().map(cell).collect::<Vec<_>>().join(", ").into()
}

/// Scopes of quotas, and resources that each can hold together with.
const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
/// Resources of quotas that pods ask for.
const OF_PODS: [&str; 6] = [
    "cpu",
    "limits.cpu",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.memory",
];

fn is_quota_resource(name: &str) -> bool {
    is_counted_or_summed(name)
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
}

/// Whether a quota of the scope can hold a resource that all clusters know.
fn fits(scope: &str, name: &str) -> bool {
    match scope {
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => name == "pods" || OF_PODS.contains(&name),
        "BestEffort" => name == "pods",
        _ => true,
    }
}

fn validate_quota(obj: &Value) -> Vec<FieldError> {
    let mut errors = amounts(obj, ["spec", "hard"]);
    errors.extend(scopes(obj));
    errors.extend(selected_scopes(obj));
    errors
}

/// Rules of amounts of resources that are held or used.
fn amounts(obj: &Value, path: [&str; 2]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let all = meta::get(obj, &path).and_then(Value::as_object);
    for name in all.into_iter().flat_map(|all| all.keys()) {
        let at = format!("{}[{name}]", path.join("."));
        errors.extend(resource_name(name, &at));
        if !name.contains('/') && !is_quota_resource(name) {
            let why = "must be a standard resource for quota";
            errors.push(FieldError::invalid(&at, name.as_str(), why));
        }
        if let Some(quantity) = quantity(obj, &[path[0], path[1], name]) {
            errors.extend(amount(name, &quantity, &at));
        }
    }
    errors
}

/// The resources of a quota that all clusters know, sorted.
fn known_resources(obj: &Value) -> Vec<&str> {
    let hard = meta::get(obj, &["spec", "hard"]).and_then(Value::as_object);
    let names = hard.into_iter().flat_map(|h| h.keys());
    let mut names: Vec<&str> = names
        .map(String::as_str)
        .filter(|n| is_quota_resource(n))
        .collect();
    names.sort_unstable();
    names
}

fn conflict(given: &[&str]) -> bool {
    let has = |name: &str| given.contains(&name);
    (has("BestEffort") && has("NotBestEffort")) || (has("Terminating") && has("NotTerminating"))
}

fn scopes(obj: &Value) -> Vec<FieldError> {
    let all = meta::list_at(obj, &["spec", "scopes"]);
    let given: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
    let mut errors = Vec::new();
    let mut refuse = |why: &str| errors.push(FieldError::invalid("spec.scopes", all.to_vec(), why));
    for scope in &given {
        if !SCOPES.contains(scope) {
            refuse("unsupported scope");
        }
        for _ in known_resources(obj)
            .iter()
            .filter(|name| !fits(scope, name))
        {
            refuse("unsupported scope applied to resource");
        }
    }
    if conflict(&given) {
        refuse("conflicting scopes");
    }
    errors
}

/// Scopes that are selected by expressions. Upstream leaves out which expression it is.
fn selected_scopes(obj: &Value) -> Vec<FieldError> {
    let at = "spec.scopeSelector.matchExpressions";
    let Some(selector) = meta::get(obj, &["spec", "scopeSelector"]) else {
        return Vec::new();
    };
    let mut errors = Vec::new();
    let mut given = Vec::new();
    for expression in meta::list_at(selector, &["matchExpressions"]) {
        let scope = meta::str_at(expression, &["scopeName"]);
        if !SCOPES.contains(&scope) {
            let why = "unsupported scope";
            errors.push(FieldError::invalid(format!("{at}.scopeName"), scope, why));
        }
        for _ in known_resources(obj)
            .iter()
            .filter(|name| !fits(scope, name))
        {
            let shown = json!({"MatchExpressions": internal_list(selector)});
            let why = "unsupported scope applied to resource";
            errors.push(FieldError::invalid(at, shown, why));
        }
        errors.extend(operator(expression, scope, at));
        given.push(scope);
    }
    if conflict(&given) {
        let scopes = meta::get(obj, &["spec", "scopes"]).cloned();
        let why = "conflicting scopes";
        errors.push(FieldError::invalid(at, scopes.unwrap_or_default(), why));
    }
    errors
}

fn internal_list(selector: &Value) -> Vec<Value> {
    let all = meta::list_at(selector, &["matchExpressions"]).iter();
    all.map(crate::check::internal).collect()
}

fn operator(expression: &Value, scope: &str, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let values = meta::list_at(expression, &["values"]);
    let operator = meta::str_at(expression, &["operator"]);
    let plain = !matches!(scope, "PriorityClass" | "VolumeAttributesClass");
    let (own, list) = (format!("{at}.operator"), format!("{at}.values"));
    if plain && SCOPES.contains(&scope) && operator != "Exists" {
        let why = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
        errors.push(FieldError::invalid(&own, operator, why));
    }
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            let why =
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
            errors.push(FieldError::required(list, why));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let why =
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
            errors.push(FieldError::invalid(list, values.to_vec(), why));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => {
            let why = "not a valid selector operator";
            errors.push(FieldError::invalid(own, other, why));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_rules, assert_updates};

    #[test]
    fn quotas() {
        let quota = json!({"spec": {"hard": {"pods": "5", "requests.nvidia.com/gpu": "1", "count/jobs.batch": 3, "gold.storageclass.storage.k8s.io/requests.storage": "1Gi", "limits.cpu": "2", "hugepages-2Mi": "4Mi"}}});
        let at = "spec.scopeSelector.matchExpressions";
        assert_rules(
            &quota,
            validate_quota,
            &[
                (
                    json!({"/spec/hard": {"pods": "1500m", "money": "5", "secrets": "-1", "storage": "1"}}),
                    &[
                        "spec.hard[money]: Invalid value: \"money\": must be a standard resource type or fully qualified",
                        "spec.hard[money]: Invalid value: \"money\": must be a standard resource for quota",
                        "spec.hard[pods]: Invalid value: \"1500m\": must be an integer",
                        "spec.hard[secrets]: Invalid value: \"-1\": must be greater than or equal to 0",
                        "spec.hard[storage]: Invalid value: \"storage\": must be a standard resource for quota",
                    ],
                ),
                (
                    json!({"/spec/hard": {"pods": "1"}, "/spec/scopes": ["BestEffort", "NotBestEffort", "Odd"]}),
                    &[
                        "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\",\"Odd\"]: unsupported scope",
                        "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\",\"Odd\"]: conflicting scopes",
                    ],
                ),
                (
                    json!({"/spec/hard": {"cpu": "1"}, "/spec/scopes": ["BestEffort"]}),
                    &[
                        "spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource",
                    ],
                ),
                (
                    json!({"/spec/hard": {"pods": "1"}, "/spec/scopeSelector/matchExpressions": [
                {"scopeName": "Terminating", "operator": "In"}, {"scopeName": "x", "operator": "Is"}, {"scopeName": "PriorityClass", "operator": "Exists", "values": ["a"]}]}),
                    &[
                        &format!(
                            "{at}.operator: Invalid value: \"In\": must be 'Exists' when scope is any of…"
                        ),
                        &format!(
                            "{at}.values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"
                        ),
                        &format!("{at}.scopeName: Invalid value: \"x\": unsupported scope"),
                        &format!(
                            "{at}.operator: Invalid value: \"Is\": not a valid selector operator"
                        ),
                        &format!(
                            "{at}.values: Invalid value: [\"a\"]: must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector"
                        ),
                    ],
                ),
            ],
        );
        assert_updates(
            &quota,
            QUOTAS.validate_update,
            &[(
                json!({"/spec/scopes": ["BestEffort"]}),
                &["spec.scopes: Invalid value: [\"BestEffort\"]: field is immutable"],
            )],
        );
        assert_updates(
            &quota,
            QUOTAS.validate_status,
            &[(
                json!({"/status/used": {"pods": "-1"}}),
                &["status.used[pods]: Invalid value: \"-1\": must be greater than or equal to 0"],
            )],
        );
    }
}
