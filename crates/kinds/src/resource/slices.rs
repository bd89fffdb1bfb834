//! What drivers may offer.

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::{Map, Value};

use super::{driver, each, name_of, qualified, repeated, required};
use crate::check::named;

/// Most devices of a slice.
const DEVICES_MAX: usize = 128;
/// The same if any of them has taints, counters or lists of values.
const RICH_DEVICES_MAX: usize = 64;
/// Most sets of counters.
const COUNTER_SETS_MAX: usize = 8;
/// Most counters of a set, and of a device in one.
const COUNTERS_MAX: usize = 32;
/// Most sets of counters that a device takes from.
const CONSUMED_MAX: usize = 2;
/// Most attributes and capacities of a device together.
const FACTS_MAX: usize = 32;
/// Most values of the attributes of a device.
const VALUES_MAX: usize = 48;
/// Longest value of an attribute, in bytes.
const VALUE_MAX: usize = 64;
/// Most taints of a device.
const TAINTS_MAX: usize = 16;
/// Longest name of a pool, in bytes.
const POOL_MAX: usize = 253;
/// Fields that hold the value of an attribute; the latter four hold several.
const KINDS: [&str; 8] = [
    "bool", "int", "string", "version", "bools", "ints", "strings", "versions",
];
/// The same in the order in which upstream declares, and so shows, them.
const DECLARED: [&str; 8] = [
    "int", "bool", "string", "version", "ints", "bools", "strings", "versions",
];

fn items<'a>(of: &'a Value, field: &str) -> &'a [Value] {
    meta::list_at(of, &[field])
}

fn entries<'a>(of: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let map = of.get(field).and_then(Value::as_object);
    map.into_iter().flat_map(Map::iter)
}

/// A taint that does not say since when it is there is there since now.
fn stamp(taint: &mut Value, now: Timestamp) {
    if taint["timeAdded"].is_null() {
        taint["timeAdded"] = api::time::format(now).into();
    }
}

/// The taints of a slice's devices say since when they are there.
pub(super) fn stamp_all(slice: &mut Value, now: Timestamp) {
    let devices = slice.pointer_mut("/spec/devices");
    for device in devices.and_then(Value::as_array_mut).into_iter().flatten() {
        let taints = device.get_mut("taints").and_then(Value::as_array_mut);
        for taint in taints.into_iter().flatten() {
            stamp(taint, now);
        }
    }
}

/// A rule with another effect has it since now, unless it says otherwise.
pub(super) fn stamp_rule(rule: &mut Value, old: Option<&Value>, now: Timestamp) {
    let Some(taint) = rule.pointer_mut("/spec/taint") else {
        return;
    };
    if let Some(old) = old.and_then(|old| old.pointer("/spec/taint"))
        && old["effect"] != taint["effect"]
        && old["timeAdded"] == taint["timeAdded"]
    {
        taint["timeAdded"] = Value::Null;
    }
    stamp(taint, now);
}

/// Every broken rule of a ResourceSlice.
pub(super) fn validate(obj: &Value) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let mut errors = driver(meta::str_at(spec, &["driver"]), "spec.driver");
    errors.extend(pool(spec.get("pool").unwrap_or(&Value::Null)));
    errors.extend(place(spec));
    if spec.get("sharedCounters").is_some() && spec.get("devices").is_some() {
        let why = "only one of `sharedCounters` or `devices` is allowed";
        errors.push(FieldError::invalid("spec", "", why));
    }
    let devices = items(spec, "devices");
    let most = if devices.iter().any(is_rich) {
        RICH_DEVICES_MAX
    } else {
        DEVICES_MAX
    };
    let chosen = meta::bool_at(spec, &["perDeviceNodeSelection"]);
    errors.extend(each(devices, "spec.devices", most, |d, at| {
        device(d, at, chosen)
    }));
    errors.extend(repeated(devices, "spec.devices", name_of));
    let sets = items(spec, "sharedCounters");
    let at = "spec.sharedCounters";
    errors.extend(each(sets, at, COUNTER_SETS_MAX, |set, at| {
        counters(set, "name", at)
    }));
    errors.extend(repeated(sets, at, name_of));
    errors
}

fn is_rich(device: &Value) -> bool {
    let lists = |a: &Value| KINDS[4..].iter().any(|kind| a.get(*kind).is_some());
    !items(device, "taints").is_empty()
        || !items(device, "consumesCounters").is_empty()
        || entries(device, "attributes").any(|(_, a)| lists(a))
}

fn pool(pool: &Value) -> Vec<FieldError> {
    let name = meta::str_at(pool, &["name"]);
    let at = "spec.pool.name";
    let mut errors = Vec::new();
    if name.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else {
        if name.len() > POOL_MAX {
            errors.push(FieldError::too_long(at, POOL_MAX));
        }
        for part in name.split('/') {
            errors.extend(named(names::dns1123_subdomain(part), at, part));
        }
    }
    let number = |field: &str| meta::int_at(pool, &[field]).unwrap_or(0);
    let mut refuse = |field: &str, why: &str| {
        let at = format!("spec.pool.{field}");
        errors.push(FieldError::invalid(at, number(field), why));
    };
    if number("resourceSliceCount") <= 0 {
        refuse("resourceSliceCount", "must be greater than zero");
    }
    if number("generation") < 0 {
        refuse("generation", "must be greater than or equal to zero");
    }
    errors
}

/// Where something is: the fields that say so, and what is wrong with them.
fn told(of: &Value, at: &str, empty: &str) -> (Vec<&'static str>, Vec<FieldError>) {
    let (mut set, mut errors) = (Vec::new(), Vec::new());
    if let Some(name) = of.get("nodeName").and_then(Value::as_str) {
        let at = format!("{at}.nodeName");
        if name.is_empty() {
            errors.push(FieldError::invalid(at, name, empty));
        } else {
            set.push("`nodeName`");
            errors.extend(named(names::dns1123_subdomain(name), &at, name));
        }
    }
    if of.get("nodeSelector").is_some_and(Value::is_object) {
        set.push("`nodeSelector`");
    }
    match of.get("allNodes").and_then(Value::as_bool) {
        Some(true) => set.push("`allNodes`"),
        Some(false) => {
            let at = format!("{at}.allNodes");
            let why = "must be either unset or set to true";
            errors.push(FieldError::invalid(at, false, why));
        }
        None => {}
    }
    (set, errors)
}

fn place(spec: &Value) -> Vec<FieldError> {
    let empty = "must be either unset or set to a non-empty string";
    let (mut set, mut errors) = told(spec, "spec", empty);
    let terms = meta::get(spec, &["nodeSelector", "nodeSelectorTerms"]);
    if let Some(Value::Array(terms)) = terms
        && terms.len() != 1
    {
        let why = "must have exactly one node selector term";
        let at = "spec.nodeSelector.nodeSelectorTerms";
        errors.push(FieldError::invalid(at, terms.clone(), why));
    }
    match spec.get("perDeviceNodeSelection").and_then(Value::as_bool) {
        Some(true) => set.push("`perDeviceNodeSelection`"),
        Some(false) => {
            let why = "must be either unset or set to true";
            errors.push(FieldError::invalid(
                "spec.perDeviceNodeSelection",
                false,
                why,
            ));
        }
        None => {}
    }
    let one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match set.len() {
        0 => errors.push(FieldError::required("spec", one)),
        1 => {}
        _ => {
            let all = format!("{{{}}}", set.join(", "));
            let why = format!("{one}, but multiple fields are set");
            errors.push(FieldError::invalid("spec", all, why));
        }
    }
    errors
}

fn device(device: &Value, at: &str, chosen: bool) -> Vec<FieldError> {
    let name = meta::str_at(device, &["name"]);
    let mut errors = required(name, &format!("{at}.name"), names::dns1123_label);
    errors.extend(facts(device, at));
    let taints = items(device, "taints");
    errors.extend(each(taints, &format!("{at}.taints"), TAINTS_MAX, taint));
    let consumed = items(device, "consumesCounters");
    let path = format!("{at}.consumesCounters");
    errors.extend(each(consumed, &path, CONSUMED_MAX, |c, at| {
        counters(c, "counterSet", at)
    }));
    errors.extend(repeated(consumed, &path, |c| {
        meta::str_at(c, &["counterSet"]).into()
    }));
    let (set, wrong) = told(device, at, "must not be empty");
    if chosen {
        errors.extend(wrong);
        let one = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
        match set.len() {
            0 => errors.push(FieldError::required(at, one)),
            1 => {}
            _ => {
                let all = format!("{{{}}}", set.join(", "));
                errors.push(FieldError::invalid(at, all, one));
            }
        }
    } else if !set.is_empty() || !wrong.is_empty() {
        let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
        errors.push(FieldError::invalid(at, Value::Null, why));
    }
    errors
}

/// Attributes and capacities.
fn facts(device: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let values = |attribute: &Value| -> usize {
        let several: usize = KINDS[4..].iter().map(|k| items(attribute, k).len()).sum();
        several.max(1)
    };
    let all = entries(device, "attributes").count() + entries(device, "capacity").count();
    if all > FACTS_MAX {
        let why =
            format!("the total number of attributes and capacities must not exceed {FACTS_MAX}");
        errors.push(FieldError::invalid(at, all, why));
    }
    let all: usize = entries(device, "attributes").map(|(_, a)| values(a)).sum();
    if all > VALUES_MAX {
        let why = format!("the total number of attribute values must not exceed {VALUES_MAX}");
        errors.push(FieldError::invalid(at, all, why));
    }
    for (name, value) in entries(device, "attributes") {
        let path = format!("{at}.attributes");
        errors.extend(qualified(name, &path));
        errors.extend(attribute(value, &format!("{path}[{name}]")));
    }
    let shared = meta::bool_at(device, &["allowMultipleAllocations"]);
    for (name, value) in entries(device, "capacity") {
        let path = format!("{at}.capacity");
        errors.extend(qualified(name, &path));
        if !shared && value.get("requestPolicy").is_some() {
            let at = format!("{path}[{name}].requestPolicy");
            let why = "allowMultipleAllocations must be true";
            errors.push(FieldError::forbidden(at, why));
        }
    }
    errors
}

fn attribute(attribute: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let set = KINDS.iter().filter(|kind| attribute.get(**kind).is_some());
    let mut count = 0;
    for kind in set {
        count += 1;
        let path = format!("{at}.{kind}");
        match &attribute[*kind] {
            Value::Array(several) => {
                if several.is_empty() {
                    let why = "must not be empty if specified";
                    errors.push(FieldError::invalid(path.as_str(), several.clone(), why));
                }
                for (i, one) in several.iter().enumerate() {
                    errors.extend(value(one, *kind == "versions", &format!("{path}[{i}]")));
                }
            }
            one => errors.extend(value(one, *kind == "version", &path)),
        }
    }
    if count != 1 {
        let error = FieldError::invalid(at, "", "exactly one value must be specified");
        let given = DECLARED
            .iter()
            .map(|kind| (*kind, attribute[*kind].clone()));
        let given: Vec<(&str, Value)> = given.filter(|(_, value)| !value.is_null()).collect();
        errors.push(match count {
            0 => error,
            _ => error.showing(&given),
        });
    }
    errors
}

fn value(value: &Value, is_version: bool, at: &str) -> Vec<FieldError> {
    let Some(text) = value.as_str() else {
        return Vec::new();
    };
    let mut errors = Vec::new();
    if is_version && cel::Value::semver(text).is_none() {
        let why = "must be a string compatible with semver.org spec 2.0.0";
        errors.push(FieldError::invalid(at, text, why));
    }
    if text.len() > VALUE_MAX {
        errors.push(FieldError::too_long(at, VALUE_MAX));
    }
    errors
}

/// A set of counters, by the field that names it.
fn counters(of: &Value, field: &str, at: &str) -> Vec<FieldError> {
    let name = meta::str_at(of, &[field]);
    let mut errors = required(name, &format!("{at}.{field}"), names::dns1123_label);
    let path = format!("{at}.counters");
    let all = entries(of, "counters").count();
    match all {
        0 => errors.push(FieldError::required(path.as_str(), "")),
        n if n > COUNTERS_MAX => {
            errors.push(FieldError::too_many(path.as_str(), n, COUNTERS_MAX));
        }
        _ => {}
    }
    for (name, _) in entries(of, "counters").take(COUNTERS_MAX) {
        errors.extend(named(names::dns1123_label(name), &path, name));
    }
    errors
}

/// Every broken rule of a taint of devices.
pub(super) fn taint(taint: &Value, at: &str) -> Vec<FieldError> {
    let text = |field: &str| meta::str_at(taint, &[field]);
    let mut errors = Vec::new();
    // What names a taint is a label, with its value.
    let (key, value) = (text("key"), text("value"));
    errors.extend(named(names::qualified_name(key), &format!("{at}.key"), key));
    if !value.is_empty() {
        let at = format!("{at}.value");
        errors.extend(named(names::label_value(value), &at, value));
    }
    let effects = &["NoExecute", "NoSchedule", "None"];
    errors.extend(crate::check::one_of(
        text("effect"),
        format!("{at}.effect"),
        effects,
    ));
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(spec: Value) -> Vec<String> {
        let errors = validate(&json!({"spec": spec}));
        errors.iter().map(ToString::to_string).collect()
    }

    fn slice(devices: Value) -> Value {
        json!({"driver": "gpu.io", "nodeName": "n", "pool": {"name": "n", "resourceSliceCount": 1, "generation": 0},
            "devices": devices})
    }

    #[test]
    fn what_can_be_offered() {
        assert_eq!(
            of(slice(
                json!([{"name": "gpu-0", "attributes": {"model": {"string": "a"}, "gpu.io/v": {"version": "1.2.3"}, "l": {"ints": [1, 2]}},
                "capacity": {"memory": {"value": "1Gi"}}, "taints": [{"key": "k", "effect": "NoSchedule"}],
                "consumesCounters": [{"counterSet": "s", "counters": {"c": {"value": "1"}}}]}])
            )),
            [""; 0]
        );
        let mut counters = slice(Value::Null);
        counters.as_object_mut().unwrap().remove("devices");
        counters["sharedCounters"] = json!([{"name": "s", "counters": {"c": {"value": "1"}}}]);
        assert_eq!(of(counters), [""; 0]);
    }

    #[test]
    fn what_cannot() {
        let one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
        assert_eq!(
            of(json!({})),
            [
                "spec.driver: Required value",
                "spec.pool.name: Required value",
                "spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero",
                &format!("spec: Required value: {one}"),
            ]
        );
        let mut both = slice(json!([]));
        both["allNodes"] = true.into();
        assert_eq!(
            of(both),
            [format!(
                "spec: Invalid value: \"{{`nodeName`, `allNodes`}}\": {one}, but multiple fields are set"
            )]
        );
        assert_eq!(
            of(slice(
                json!([{"name": "a", "attributes": {"x": {}, "y": {"int": 1, "bool": true}, "z": {"version": "1"}, "w": {"strings": []}},
                    "capacity": {"c": {"value": "1", "requestPolicy": {}}}, "nodeName": "n"}, {"name": "a"}])
            )),
            [
                "spec.devices[0].attributes[w].strings: Invalid value: []: must not be empty if specified",
                "spec.devices[0].attributes[x]: Invalid value: \"\": exactly one value must be specified",
                "spec.devices[0].attributes[y]: Invalid value: {\"int\":1,\"bool\":true}: exactly one value must be specified",
                "spec.devices[0].attributes[z].version: Invalid value: \"1\": must be a string compatible with semver.org spec 2.0.0",
                "spec.devices[0].capacity[c].requestPolicy: Forbidden: allowMultipleAllocations must be true",
                "spec.devices[0]: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
                "spec.devices[1]: Duplicate value: \"a\"",
            ]
        );
        let plain: Vec<Value> = (0..65).map(|i| json!({"name": format!("d{i}")})).collect();
        assert_eq!(of(slice(json!(plain))), [""; 0]);
        let mut rich = plain;
        rich[0]["taints"] = json!([{"key": "k", "effect": "None"}]);
        assert_eq!(
            of(slice(json!(rich))),
            ["spec.devices: Too many: 65: must have at most 64 items"]
        );
    }
}
