//! resource.k8s.io: devices, their classes, and claims of them.

mod claims;
mod slices;

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::{Value, json};

use crate::cells::{Cell, join, since};
use crate::check::{immutable, named};
use crate::simple::Simple;

/// Longest expression, in bytes.
const EXPRESSION_MAX: usize = 10 * 1024;
/// Longest parameters of a driver, in bytes.
const PARAMETERS_MAX: usize = 10 * 1024;
/// Most selectors of a request or class.
const SELECTORS_MAX: usize = 32;
/// Most configurations of a claim or class.
const CONFIGS_MAX: usize = 32;
/// Longest name of a driver, in bytes.
const DRIVER_MAX: usize = 63;
/// Longest name of an attribute or capacity, in bytes.
const ID_MAX: usize = 32;

/// ResourceClaims.
pub(crate) static CLAIMS: Simple = Simple {
    cells: &[Cell::Name, Cell::With(claim_state), Cell::Age],
    default: |obj| default_requests(obj, &["spec"]),
    validate_create: |obj| claims::validate(obj.get("spec"), "spec"),
    validate_update: |new, old| immutable(new, old, &["spec"]).into_iter().collect(),
    ..Simple::BASE
};

/// ResourceClaimTemplates.
pub(crate) static CLAIM_TEMPLATES: Simple = Simple {
    cells: &[Cell::Name, Cell::Age],
    default: |obj| default_requests(obj, &["spec", "spec"]),
    validate_create: |obj| claims::validate(meta::get(obj, &["spec", "spec"]), "spec.spec"),
    validate_update: |new, old| immutable(new, old, &["spec"]).into_iter().collect(),
    ..Simple::BASE
};

/// DeviceClasses.
pub(crate) static DEVICE_CLASSES: Simple = Simple {
    cells: &[Cell::Name, Cell::Age],
    generation: true,
    validate: validate_class,
    ..Simple::BASE
};

/// ResourceSlices.
pub(crate) static SLICES: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::TextOr(&["spec", "nodeName"], "<unset>"),
        Cell::Text(&["spec", "driver"]),
        Cell::Text(&["spec", "pool", "name"]),
        Cell::Age,
    ],
    labels: &[
        ("spec.nodeName", &["spec", "nodeName"]),
        ("spec.driver", &["spec", "driver"]),
    ],
    generation: true,
    prepare: |slice, _, now| slices::stamp_all(slice, now),
    validate: slices::validate,
    validate_update: |new, old| {
        let fixed: [&[&str]; 3] = [
            &["spec", "pool", "name"],
            &["spec", "driver"],
            &["spec", "nodeName"],
        ];
        let changed = fixed.into_iter().filter_map(|p| immutable(new, old, p));
        changed.collect()
    },
    ..Simple::BASE
};

/// DeviceTaintRules.
pub(crate) static TAINT_RULES: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Text(&["spec", "taint", "key"]),
        Cell::Text(&["spec", "taint", "value"]),
        Cell::Text(&["spec", "taint", "effect"]),
        Cell::With(|o, now| since(o, &["spec", "taint", "timeAdded"], now).into()),
        Cell::Age,
    ],
    generation: true,
    prepare: slices::stamp_rule,
    validate: |obj| {
        let taint = meta::get(obj, &["spec", "taint"]).unwrap_or(&Value::Null);
        slices::taint(taint, "spec.taint")
    },
    ..Simple::BASE
};

fn claim_state(obj: &Value, _now: Timestamp) -> Value {
    let mut states = Vec::new();
    if meta::get(obj, &["metadata", "deletionTimestamp"]).is_some() {
        states.push("deleted");
    }
    let allocated = meta::get(obj, &["status", "allocation"]).is_some();
    states.push(if !allocated {
        "pending"
    } else if meta::list_at(obj, &["status", "reservedFor"]).is_empty() {
        "allocated"
    } else {
        "allocated,reserved"
    });
    join(states, ",").into()
}

fn default_requests(obj: &mut Value, spec: &[&str]) {
    let spec = spec.iter().try_fold(obj, |v, key| v.get_mut(key));
    let requests = spec
        .and_then(|s| s.get_mut("devices"))
        .and_then(|d| d.get_mut("requests"))
        .and_then(Value::as_array_mut);
    for request in requests.into_iter().flatten() {
        if let Some(exact) = request.get_mut("exactly") {
            default_count(exact);
        }
        for sub in request
            .get_mut("firstAvailable")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            default_count(sub);
        }
    }
}

fn default_count(request: &mut Value) {
    if meta::str_at(request, &["allocationMode"]) == "ExactCount"
        && meta::int_at(request, &["count"]).unwrap_or(0) == 0
    {
        meta::set(request, &["count"], json!(1));
    }
}

fn validate_class(obj: &Value) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let mut errors = selectors(spec, "spec");
    errors.extend(each(
        meta::list_at(spec, &["config"]),
        "spec.config",
        CONFIGS_MAX,
        configuration,
    ));
    let resource = meta::str_at(spec, &["extendedResourceName"]);
    if !resource.is_empty() {
        let at = "spec.extendedResourceName";
        errors.extend(named(names::qualified_name(resource), at, resource));
    }
    errors
}

/// Every broken rule of the items of a list that is not too long.
fn each(
    items: &[Value],
    at: &str,
    most: usize,
    rule: impl Fn(&Value, &str) -> Vec<FieldError>,
) -> Vec<FieldError> {
    if items.len() > most {
        return vec![FieldError::too_many(at, items.len(), most)];
    }
    let all = items.iter().enumerate();
    all.flat_map(|(i, item)| rule(item, &format!("{at}[{i}]")))
        .collect()
}

/// Items that say what earlier ones said.
fn repeated(items: &[Value], at: &str, key: impl Fn(&Value) -> Value) -> Vec<FieldError> {
    let keys: Vec<Value> = items.iter().map(key).collect();
    let again = |(i, key): (usize, &Value)| {
        let known = keys[..i].contains(key);
        known.then(|| FieldError::duplicate(format!("{at}[{i}]"), key.clone()))
    };
    keys.iter().enumerate().filter_map(again).collect()
}

fn name_of(item: &Value) -> Value {
    meta::str_at(item, &["name"]).into()
}

/// A name that must be there.
fn required(name: &str, at: &str, rule: fn(&str) -> Vec<String>) -> Vec<FieldError> {
    match name {
        "" => vec![FieldError::required(at, "")],
        name => named(rule(name), at, name),
    }
}

fn driver(name: &str, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if name.len() > DRIVER_MAX {
        errors.push(FieldError::too_long(at, DRIVER_MAX));
    }
    let lower = |n: &str| names::dns1123_subdomain(&n.to_lowercase());
    errors.extend(required(name, at, lower));
    errors
}

/// Expressions that choose devices.
fn selectors(of: &Value, at: &str) -> Vec<FieldError> {
    let all = meta::list_at(of, &["selectors"]);
    each(all, &format!("{at}.selectors"), SELECTORS_MAX, selector)
}

fn selector(selector: &Value, at: &str) -> Vec<FieldError> {
    let Some(cel) = selector.get("cel") else {
        return vec![FieldError::required(format!("{at}.cel"), "")];
    };
    let expression = meta::str_at(cel, &["expression"]);
    let at = format!("{at}.cel.expression");
    if expression.len() > EXPRESSION_MAX {
        // What is too long is not compiled.
        return vec![FieldError::too_long(at, EXPRESSION_MAX)];
    }
    match cel::device::compile(expression) {
        Err(why) => vec![FieldError::invalid(at, expression, why)],
        Ok(program) if cel::device::most(&program) > cel::device::COST_MAX => {
            vec![FieldError::forbidden(at, "too complex, exceeds cost limit")]
        }
        Ok(_) => Vec::new(),
    }
}

/// What a driver is told.
fn configuration(config: &Value, at: &str) -> Vec<FieldError> {
    let at = format!("{at}.opaque");
    let Some(opaque) = config.get("opaque") else {
        return vec![FieldError::required(at, "")];
    };
    let mut errors = driver(meta::str_at(opaque, &["driver"]), &format!("{at}.driver"));
    let at = format!("{at}.parameters");
    match opaque.get("parameters") {
        None | Some(Value::Null) => errors.push(FieldError::required(at, "")),
        Some(given) if given.to_string().len() > PARAMETERS_MAX => {
            errors.push(FieldError::too_long(at, PARAMETERS_MAX));
        }
        Some(Value::Object(_)) => {}
        Some(_) => {
            let why = "must be a valid JSON object";
            errors.push(FieldError::invalid(at, "<value omitted>", why));
        }
    }
    errors
}

/// The name of an attribute or capacity, with or without the domain of a driver.
fn qualified(name: &str, at: &str) -> Vec<FieldError> {
    let parts: Vec<&str> = name.split('/').collect();
    match parts[..] {
        [id] => identifier(id, at),
        [domain, id] => {
            let empty = |part: &str, what: &str| {
                let why = format!("the {what} must not be empty");
                part.is_empty().then(|| FieldError::invalid(at, "", why))
            };
            let mut errors: Vec<FieldError> = empty(domain, "domain").into_iter().collect();
            if errors.is_empty() {
                errors = driver(domain, at);
            }
            match empty(id, "name") {
                Some(error) => errors.push(error),
                None => errors.extend(identifier(id, at)),
            }
            errors
        }
        _ => vec![FieldError::invalid(
            at,
            name,
            "must not contain more than one slash",
        )],
    }
}

fn identifier(id: &str, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if id.len() > ID_MAX {
        errors.push(FieldError::too_long(at, ID_MAX));
    }
    let starts = id.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts || !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        let why = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";
        errors.push(FieldError::invalid(at, id, why));
    }
    errors
}

/// The name of an attribute or capacity, with its domain.
fn fully_qualified(name: &str, at: &str) -> Vec<FieldError> {
    let mut errors = qualified(name, at);
    if !name.contains('/') {
        let why = "a fully qualified name must be a domain and a name separated by a slash";
        errors.push(FieldError::invalid(at, name, why));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::texts;

    #[test]
    fn classes() {
        let of = |spec: Value| texts(&validate_class(&json!({"spec": spec})));
        let chosen = |e: &str| json!({"selectors": [{"cel": {"expression": e}}]});
        assert_eq!(of(chosen("device.driver == 'a.io'")), [""; 0]);
        let config = json!({"config": [{"opaque": {"driver": "a.io", "parameters": {"a": 1}}}]});
        assert_eq!(of(config), [""; 0]);
        let errors = of(chosen("device.nothing"));
        assert!(
            errors[0].starts_with("spec.selectors[0].cel.expression: Invalid value: \"device.nothing\": compilation failed: ERROR"),
            "{errors:?}"
        );
        let dear = "device.attributes['a.io'].all(a, device.attributes['a.io'].all(b, device.attributes['a.io'].all(c, device.attributes['a.io'].all(d, a == b && c == d))))";
        assert_eq!(
            of(chosen(dear)),
            ["spec.selectors[0].cel.expression: Forbidden: too complex, exceeds cost limit"]
        );
        assert_eq!(
            of(
                json!({"selectors": [{}], "config": [{}, {"opaque": {"driver": "", "parameters": [1]}}]})
            ),
            [
                "spec.selectors[0].cel: Required value",
                "spec.config[0].opaque: Required value",
                "spec.config[1].opaque.driver: Required value",
                "spec.config[1].opaque.parameters: Invalid value: \"<value omitted>\": must be a valid JSON object",
            ]
        );
        let many = json!({"selectors": vec![json!({}); 33]});
        assert_eq!(
            of(many),
            ["spec.selectors: Too many: 33: must have at most 32 items"]
        );
    }

    #[test]
    fn names_of_attributes() {
        for good in ["model", "_a1", "gpu.example.com/model"] {
            assert_eq!(texts(&qualified(good, "x")), [""; 0], "{good}");
        }
        for (odd, count) in [
            ("1a", 1),
            ("a/b/c", 1),
            ("/a", 1),
            ("a.io/", 1),
            ("A_/b-c", 2),
        ] {
            assert_eq!(qualified(odd, "x").len(), count, "{odd}");
        }
        assert_eq!(fully_qualified("model", "x").len(), 1);
    }
}
