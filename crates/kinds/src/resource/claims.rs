//! What claims may ask for.

use std::collections::BTreeMap;

use api::{FieldError, meta, names};
use serde_json::Value;

use super::{
    CONFIGS_MAX, configuration, each, fully_qualified, name_of, repeated, required, selectors,
};

/// Most requests of a claim.
const REQUESTS_MAX: usize = 32;
/// Most alternatives of a request.
const ALTERNATIVES_MAX: usize = 8;
/// Most constraints of a claim.
const CONSTRAINTS_MAX: usize = 32;
/// Most tolerations of a request.
const TOLERATIONS_MAX: usize = 16;

/// Names of requests, with those of their alternatives.
type Names<'a> = BTreeMap<&'a str, Vec<&'a str>>;

/// Every broken rule of a claim's spec.
pub(super) fn validate(spec: Option<&Value>, at: &str) -> Vec<FieldError> {
    let devices = spec.and_then(|s| s.get("devices")).unwrap_or(&Value::Null);
    let at = |field: &str| format!("{at}.devices.{field}");
    let list = |field: &str| meta::list_at(devices, &[field]);
    let name = |of: &'_ Value| -> String { meta::str_at(of, &["name"]).to_owned() };
    let owned: Vec<(String, Vec<String>)> = list("requests")
        .iter()
        .map(|r| {
            let subs = meta::list_at(r, &["firstAvailable"]);
            (name(r), subs.iter().map(name).collect())
        })
        .collect();
    let known: Names<'_> = owned
        .iter()
        .map(|(name, subs)| (name.as_str(), subs.iter().map(String::as_str).collect()))
        .collect();
    let mut errors = each(list("requests"), &at("requests"), REQUESTS_MAX, request);
    errors.extend(repeated(list("requests"), &at("requests"), name_of));
    errors.extend(each(
        list("constraints"),
        &at("constraints"),
        CONSTRAINTS_MAX,
        |c, at| constraint(c, at, &known),
    ));
    errors.extend(each(list("config"), &at("config"), CONFIGS_MAX, |c, at| {
        let mut errors = references(c, at, &known);
        errors.extend(configuration(c, at));
        errors
    }));
    errors
}

fn request(request: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = own_name(request, at);
    let alternatives = meta::list_at(request, &["firstAvailable"]);
    let one = "exactly one of `exactly` or `firstAvailable` is required";
    match (request.get("exactly"), alternatives.is_empty()) {
        (None, true) => errors.push(FieldError::required(at, one)),
        (Some(_), false) => {
            let why = format!("{one}, but multiple fields are set");
            errors.push(FieldError::invalid(at, Value::Null, why));
        }
        (Some(exact), true) => errors.extend(device(exact, &format!("{at}.exactly"))),
        (None, false) => {
            let at = format!("{at}.firstAvailable");
            errors.extend(each(alternatives, &at, ALTERNATIVES_MAX, |sub, at| {
                let mut errors = own_name(sub, at);
                errors.extend(device(sub, at));
                errors
            }));
            errors.extend(repeated(alternatives, &at, name_of));
        }
    }
    errors
}

fn own_name(of: &Value, at: &str) -> Vec<FieldError> {
    let name = meta::str_at(of, &["name"]);
    required(name, &format!("{at}.name"), names::dns1123_label)
}

fn device(request: &Value, at: &str) -> Vec<FieldError> {
    let class = meta::str_at(request, &["deviceClassName"]);
    let path = format!("{at}.deviceClassName");
    let mut errors = required(class, &path, names::dns1123_subdomain);
    errors.extend(selectors(request, at));
    let count = meta::int_at(request, &["count"]).unwrap_or(0);
    let path = format!("{at}.count");
    match meta::str_at(request, &["allocationMode"]) {
        "All" if count != 0 => {
            let why = "must not be specified when allocationMode is 'All'";
            errors.push(FieldError::invalid(path, count, why));
        }
        "ExactCount" if count <= 0 => {
            let why = "must be greater than zero";
            errors.push(FieldError::invalid(path, count, why));
        }
        "All" | "ExactCount" => {}
        other => errors.push(FieldError::not_supported(
            format!("{at}.allocationMode"),
            other,
            &["All", "ExactCount"],
        )),
    }
    let tolerations = meta::list_at(request, &["tolerations"]);
    let path = format!("{at}.tolerations");
    errors.extend(each(tolerations, &path, TOLERATIONS_MAX, toleration));
    errors
}

fn toleration(toleration: &Value, at: &str) -> Vec<FieldError> {
    let text = |field: &str| meta::str_at(toleration, &[field]);
    let mut errors = Vec::new();
    let key = text("key");
    if !key.is_empty() {
        let why = names::qualified_name(key);
        errors.extend(crate::check::named(why, &format!("{at}.key"), key));
    }
    match (text("operator"), text("value")) {
        ("Exists", value) if !value.is_empty() => {
            let why = "must be empty for operator `Exists`";
            errors.push(FieldError::invalid(format!("{at}.value"), value, why));
        }
        ("Equal", value) => {
            let why = names::label_value(value);
            errors.extend(crate::check::named(why, &format!("{at}.value"), value));
        }
        ("Exists", _) => {}
        ("", _) => errors.push(FieldError::required(format!("{at}.operator"), "")),
        (other, _) => errors.push(FieldError::not_supported(
            format!("{at}.operator"),
            other,
            &["Equal", "Exists"],
        )),
    }
    let effect = text("effect");
    let effects = &["NoExecute", "NoSchedule", "None"];
    let at = format!("{at}.effect");
    errors.extend(crate::check::one_of_if_set(effect, at, effects));
    errors
}

fn constraint(constraint: &Value, at: &str, known: &Names<'_>) -> Vec<FieldError> {
    let mut errors = references(constraint, at, known);
    let fields = ["matchAttribute", "distinctAttribute"];
    let set = fields.into_iter().find_map(|field| {
        let name = constraint.get(field)?.as_str()?;
        Some((format!("{at}.{field}"), name))
    });
    match set {
        Some((at, name)) => errors.extend(fully_qualified(name, &at)),
        None => {
            let why = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
            errors.push(FieldError::required(at, why));
        }
    }
    errors
}

/// Requests that a constraint or configuration is about.
fn references(of: &Value, at: &str, known: &Names<'_>) -> Vec<FieldError> {
    let all = meta::list_at(of, &["requests"]);
    let at = format!("{at}.requests");
    let mut errors = each(all, &at, REQUESTS_MAX, |name, at| {
        reference(name.as_str().unwrap_or_default(), at, known)
    });
    errors.extend(repeated(all, &at, Value::clone));
    errors
}

fn reference(name: &str, at: &str, known: &Names<'_>) -> Vec<FieldError> {
    let parts: Vec<&str> = name.split('/').collect();
    let found = match parts[..] {
        [request] => known.contains_key(request),
        [request, sub] => known.get(request).is_some_and(|subs| subs.contains(&sub)),
        _ => false,
    };
    let mut errors = Vec::new();
    if parts.len() <= 2 {
        let odd = parts.iter();
        errors.extend(odd.flat_map(|part| required(part, at, names::dns1123_label)));
    }
    if !found {
        let why = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
        errors.push(FieldError::invalid(at, name, why));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(devices: Value) -> Vec<String> {
        let spec = json!({"devices": devices});
        let errors = validate(Some(&spec), "spec");
        errors.iter().map(ToString::to_string).collect()
    }

    fn exact(name: &str) -> Value {
        json!({"name": name, "exactly": {"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1}})
    }

    #[test]
    fn what_can_be_asked_for() {
        let sub = json!({"name": "s", "deviceClassName": "c", "allocationMode": "All"});
        assert_eq!(
            of(
                json!({"requests": [exact("a"), {"name": "b", "firstAvailable": [sub]}],
                "constraints": [{"requests": ["a", "b/s"], "matchAttribute": "gpu.io/model"}],
                "config": [{"requests": ["b"], "opaque": {"driver": "gpu.io", "parameters": {}}}]})
            ),
            [""; 0]
        );
        assert_eq!(of(json!({})), [""; 0]);
    }

    #[test]
    fn what_cannot() {
        let requests = "spec.devices.requests";
        assert_eq!(
            of(
                json!({"requests": [exact("a"), exact("a"), {"name": ""}, {"name": "d", "exactly": {}, "firstAvailable": [{}]},
                {"name": "e", "exactly": {"deviceClassName": "C", "allocationMode": "All", "count": 2,
                    "tolerations": [{"key": "k", "operator": "Exists", "value": "v"}, {"operator": "Is", "effect": "Explode"}]}}]})
            ),
            [
                format!("{requests}[2].name: Required value"),
                format!(
                    "{requests}[2]: Required value: exactly one of `exactly` or `firstAvailable` is required"
                ),
                format!(
                    "{requests}[3]: Invalid value: null: exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set"
                ),
                format!(
                    "{requests}[4].exactly.deviceClassName: Invalid value: \"C\": {}",
                    names::dns1123_subdomain("C")[0]
                ),
                format!(
                    "{requests}[4].exactly.count: Invalid value: 2: must not be specified when allocationMode is 'All'"
                ),
                format!(
                    "{requests}[4].exactly.tolerations[0].value: Invalid value: \"v\": must be empty for operator `Exists`"
                ),
                format!(
                    "{requests}[4].exactly.tolerations[1].operator: Unsupported value: \"Is\": supported values: \"Equal\", \"Exists\""
                ),
                format!(
                    "{requests}[4].exactly.tolerations[1].effect: Unsupported value: \"Explode\": supported values: \"NoExecute\", \"NoSchedule\", \"None\""
                ),
                format!("{requests}[1]: Duplicate value: \"a\""),
            ]
        );
        let hint = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
        assert_eq!(
            of(
                json!({"requests": [exact("a")], "constraints": [{"requests": ["a/x", "a/b/c"], "matchAttribute": "model"}, {}]})
            ),
            [
                format!(
                    "spec.devices.constraints[0].requests[0]: Invalid value: \"a/x\": {hint}"
                ),
                format!(
                    "spec.devices.constraints[0].requests[1]: Invalid value: \"a/b/c\": {hint}"
                ),
                "spec.devices.constraints[0].matchAttribute: Invalid value: \"model\": a fully qualified name must be a domain and a name separated by a slash".to_owned(),
                "spec.devices.constraints[1]: Required value: exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set".to_owned(),
            ]
        );
    }
}
