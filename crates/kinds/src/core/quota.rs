//! ResourceQuotas and LimitRanges.

use api::{FieldError, meta};
use serde_json::{Map, Value};

use crate::cells::{Cell, text};
use crate::check::{NOT_NEGATIVE, one_of, quantity};
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
    ..Simple::BASE
};

/// Rules of LimitRanges.
pub(crate) static LIMITS: Simple = Simple {
    cells: &[Cell::Name, Cell::CreatedAt],
    default: default_limits,
    validate: validate_limits,
    create_on_update: true,
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
/// Resources that quotas count or sum, without a group in their names.
const RESOURCES: [&str; 18] = [
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
];
/// Of them, those that count.
const COUNTED: [&str; 9] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

fn validate_quota(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let hard = meta::get(obj, &["spec", "hard"]).and_then(Value::as_object);
    for (name, value) in hard.into_iter().flatten() {
        let at = format!("spec.hard[{name}]");
        errors.extend(crate::check::named(
            api::names::qualified_name(name),
            &at,
            name,
        ));
        let known = RESOURCES.contains(&name.as_str()) || name == "services.nodeports";
        if !name.contains('/')
            && !known
            && !name.starts_with("hugepages-")
            && !name.starts_with("requests.hugepages-")
        {
            let why = "must be a standard resource for quota";
            errors.push(FieldError::invalid(&at, name.as_str(), why));
        }
        let Some(amount) = quantity(obj, &["spec", "hard", name]) else {
            continue;
        };
        if amount.is_negative() {
            errors.push(FieldError::invalid(&at, value.clone(), NOT_NEGATIVE));
        }
        let counts = COUNTED.contains(&name.as_str()) || name.starts_with("count/");
        if counts && !amount.is_integer() {
            errors.push(FieldError::invalid(
                &at,
                value.clone(),
                "must be an integer",
            ));
        }
    }
    errors.extend(scope_rules(obj));
    errors
}

fn scope_rules(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let scopes = meta::list_at(obj, &["spec", "scopes"]);
    let has = |name: &str| scopes.iter().any(|s| s == name);
    for scope in scopes.iter().filter_map(Value::as_str) {
        if !SCOPES.contains(&scope) {
            let all = scopes.to_vec();
            errors.push(FieldError::invalid("spec.scopes", all, "unsupported scope"));
        }
    }
    for (a, b) in [
        ("BestEffort", "NotBestEffort"),
        ("Terminating", "NotTerminating"),
    ] {
        if has(a) && has(b) {
            let why = "conflicting scopes";
            errors.push(FieldError::invalid("spec.scopes", scopes.to_vec(), why));
        }
    }
    let expressions = meta::list_at(obj, &["spec", "scopeSelector", "matchExpressions"]);
    for (i, expression) in expressions.iter().enumerate() {
        let at = format!("spec.scopeSelector.matchExpressions[{i}]");
        let scope = meta::str_at(expression, &["scopeName"]);
        if !SCOPES.contains(&scope) {
            let why = "unsupported scope";
            errors.push(FieldError::invalid(format!("{at}.scopeName"), scope, why));
        }
        let values = meta::list_at(expression, &["values"]);
        let operator = meta::str_at(expression, &["operator"]);
        let plain = !matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if plain && SCOPES.contains(&scope) && operator != "Exists" {
            let why = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(FieldError::invalid(format!("{at}.operator"), operator, why));
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.push(FieldError::required(format!("{at}.values"), why));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector";
                errors.push(FieldError::invalid(
                    format!("{at}.values"),
                    values.to_vec(),
                    why,
                ));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                let why = "not a valid selector operator";
                errors.push(FieldError::invalid(format!("{at}.operator"), other, why));
            }
        }
    }
    errors
}

fn default_limits(obj: &mut Value) {
    let items = obj
        .get_mut("spec")
        .and_then(|s| s.get_mut("limits"))
        .and_then(Value::as_array_mut);
    for item in items
        .into_iter()
        .flatten()
        .filter(|i| meta::str_at(i, &["type"]) == "Container")
    {
        fill(item, "max", "default");
        fill(item, "default", "defaultRequest");
        fill(item, "min", "defaultRequest");
    }
}

fn fill(item: &mut Value, from: &str, to: &str) {
    let Some(source) = item.get(from).and_then(Value::as_object).cloned() else {
        return;
    };
    let target = meta::object_at(item, &[to]);
    for (name, value) in source {
        target.entry(name).or_insert(value);
    }
}

fn validate_limits(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, item) in meta::list_at(obj, &["spec", "limits"]).iter().enumerate() {
        let at = format!("spec.limits[{i}]");
        if let Some(e) = one_of(
            meta::str_at(item, &["type"]),
            format!("{at}.type"),
            &["Container", "PersistentVolumeClaim", "Pod"],
        ) {
            errors.push(e);
        }
        errors.extend(limit_type(item, &at));
        let earlier = meta::list_at(obj, &["spec", "limits"])[..i].iter();
        let kind = meta::str_at(item, &["type"]);
        if earlier
            .map(|l| meta::str_at(l, &["type"]))
            .any(|k| k == kind)
        {
            errors.push(FieldError::duplicate(format!("{at}.type"), kind));
        }
        let names: Map<String, Value> = ["min", "max", "default", "defaultRequest"]
            .iter()
            .filter_map(|f| item.get(*f)?.as_object().cloned())
            .flatten()
            .collect();
        for name in names.keys() {
            let value = |field: &str| quantity(item, &[field, name]);
            for (low, high) in [
                ("min", "max"),
                ("default", "max"),
                ("defaultRequest", "max"),
                ("defaultRequest", "default"),
            ] {
                if let (Some(a), Some(b)) = (value(low), value(high))
                    && a > b
                {
                    let words = |f: &str| match f {
                        "defaultRequest" => "default request".to_owned(),
                        other => other.to_owned(),
                    };
                    let detail = format!(
                        "{} value {a} is greater than {} value {b}",
                        words(low),
                        words(high)
                    );
                    errors.push(FieldError::invalid(
                        format!("{at}.{low}[{name}]"),
                        a.to_string(),
                        detail,
                    ));
                }
            }
        }
    }
    errors
}

/// What limits of a type must and may not say.
fn limit_type(item: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match meta::str_at(item, &["type"]) {
        "Pod" => {
            for field in ["default", "defaultRequest"] {
                if item
                    .get(field)
                    .and_then(Value::as_object)
                    .is_some_and(|m| !m.is_empty())
                {
                    let why = "may not be specified when `type` is 'Pod'";
                    errors.push(FieldError::forbidden(format!("{at}.{field}"), why));
                }
            }
        }
        "PersistentVolumeClaim" => {
            let has = |field: &str| meta::get(item, &[field, "storage"]).is_some();
            if !has("min") && !has("max") {
                let why =
                    "either minimum or maximum storage value is required, but neither was provided";
                errors.push(FieldError::required(at, why));
            }
        }
        _ => {}
    }
    let ratios = item.get("maxLimitRequestRatio").and_then(Value::as_object);
    for (name, value) in ratios.into_iter().flatten() {
        let ratio = quantity(item, &["maxLimitRequestRatio", name]);
        if let Some(ratio) = ratio.filter(|r| r.milli_value() < 1000) {
            let why = format!("ratio {ratio} is less than 1");
            let at = format!("{at}.maxLimitRequestRatio[{name}]");
            errors.push(FieldError::invalid(at, value.clone(), why));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::texts;
    use serde_json::json;

    #[test]
    fn quotas() {
        let good = json!({"spec": {"hard": {"pods": "5", "requests.nvidia.com/gpu": "1", "count/jobs.batch": 3, "gold.storageclass.storage.k8s.io/requests.storage": "1Gi", "limits.cpu": "2", "hugepages-2Mi": "4Mi"},
            "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}});
        assert_eq!(texts(&validate_quota(&good)), [""; 0]);
        let odd = json!({"spec": {"hard": {"pods": "1500m", "money": "5", "secrets": "-1"}, "scopes": ["BestEffort", "NotBestEffort", "Odd"],
            "scopeSelector": {"matchExpressions": [{"scopeName": "Terminating", "operator": "In"}, {"scopeName": "x", "operator": "Is"}]}}});
        assert_eq!(
            texts(&validate_quota(&odd)),
            [
                "spec.hard[pods]: Invalid value: \"1500m\": must be an integer",
                "spec.hard[money]: Invalid value: \"money\": must be a standard resource for quota",
                "spec.hard[secrets]: Invalid value: \"-1\": must be greater than or equal to 0",
                "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\",\"Odd\"]: unsupported scope",
                "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\",\"Odd\"]: conflicting scopes",
                "spec.scopeSelector.matchExpressions[0].operator: Invalid value: \"In\": must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
                "spec.scopeSelector.matchExpressions[0].values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                "spec.scopeSelector.matchExpressions[1].scopeName: Invalid value: \"x\": unsupported scope",
                "spec.scopeSelector.matchExpressions[1].operator: Invalid value: \"Is\": not a valid selector operator"
            ]
        );
        let quota = |scopes: Value| json!({"spec": {"scopes": scopes}});
        let changed = (QUOTAS.validate_update)(&quota(json!(["BestEffort"])), &quota(json!([])));
        assert_eq!(
            texts(&changed),
            ["spec.scopes: Invalid value: [\"BestEffort\"]: field is immutable"]
        );
    }

    #[test]
    fn limits() {
        let odd = json!({"spec": {"limits": [
            {"type": "Pod", "default": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "500m"}},
            {"type": "Pod"},
            {"type": "PersistentVolumeClaim"}]}});
        let errors = texts(&validate_limits(&odd));
        for wanted in [
            "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
            "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1",
            "spec.limits[1].type: Duplicate value: \"Pod\"",
            "spec.limits[2]: Required value: either minimum or maximum storage value is required, but neither was provided",
        ] {
            assert!(errors.iter().any(|e| e == wanted), "{wanted}: {errors:#?}");
        }
    }
}
