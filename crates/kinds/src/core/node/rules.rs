//! What a Node must hold to.

use api::{FieldError, meta, names};
use serde_json::{Value, json};

use crate::addresses::{range, valid_range};
use crate::check::{internal, named, one_of, quantity};
use crate::core::resources::amount;

const CIDRS: [&str; 2] = ["spec", "podCIDRs"];
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Every broken rule of the specification.
pub(super) fn spec(node: &Value) -> Vec<FieldError> {
    let mut errors = taints(node);
    let cidrs = meta::list_at(node, &CIDRS);
    for (i, text) in cidrs.iter().filter_map(Value::as_str).enumerate() {
        errors.extend(valid_range(text, &format!("spec.podCIDRs[{i}]")));
    }
    if cidrs.len() > 1 && !is_pair(cidrs) {
        let why = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid("spec.podCIDRs", cidrs.to_vec(), why));
    }
    errors
}

/// Whether these are one range of each family.
fn is_pair(cidrs: &[Value]) -> bool {
    let family = |text: &Value| range(text.as_str()?).map(|(ip, _)| ip.is_ipv4());
    match cidrs {
        [one, other] => family(one) != family(other),
        _ => false,
    }
}

/// Upstream looks for them below the metadata.
fn taints(node: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = Vec::new();
    for (i, taint) in meta::list_at(node, &["spec", "taints"]).iter().enumerate() {
        let at = format!("metadata.taints[{i}]");
        let [key, value, effect] = ["key", "value", "effect"].map(|f| meta::str_at(taint, &[f]));
        let path = format!("{at}.key");
        errors.extend(named(names::qualified_name(key), &path, key));
        let why = names::label_value(value);
        if !why.is_empty() {
            let path = format!("{at}.value");
            errors.push(FieldError::invalid(path, value, why.join(";")));
        }
        errors.extend(one_of(effect, format!("{at}.effect"), &EFFECTS));
        if seen.contains(&(key, effect)) {
            let added = taint.get("timeAdded");
            let whole = json!({"Key": key, "Value": value, "Effect": effect, "TimeAdded": added});
            let mut error = FieldError::duplicate(&at, whole);
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(error);
        }
        seen.push((key, effect));
    }
    errors
}

/// Every broken rule of the status.
pub(super) fn status(node: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for list in ["capacity", "allocatable"] {
        let all = meta::get(node, &["status", list]).and_then(Value::as_object);
        for name in all.into_iter().flat_map(|all| all.keys()) {
            if let Some(quantity) = quantity(node, &["status", list, name]) {
                errors.extend(amount(name, &quantity, &format!("status.{list}.{name}")));
            }
        }
    }
    let swap = ["status", "nodeInfo", "swap", "capacity"];
    if let Some(capacity) = meta::int_at(node, &swap).filter(|c| *c <= 0) {
        let why = "must be greater than zero";
        let path = "metadata.nodeSwapStatus.capacity";
        errors.push(FieldError::invalid(path, capacity, why));
    }
    errors.extend(features(node));
    errors
}

/// Names of features that the node's agent says it has: sorted, each once.
fn features(node: &Value) -> Vec<FieldError> {
    let all = meta::list_at(node, &["status", "declaredFeatures"]);
    let mut errors = Vec::new();
    let mut last: Option<&str> = None;
    for (i, name) in all.iter().filter_map(Value::as_str).enumerate() {
        let at = format!("status.declaredFeatures[{i}]");
        match last {
            Some(last) if last == name => errors.push(FieldError::duplicate(&at, name)),
            Some(last) if last > name => {
                let why = "list must be sorted alphabetically";
                errors.push(FieldError::invalid(&at, name, why));
            }
            _ => {}
        }
        if let Some(why) = odd_feature(name) {
            let why = format!("invalid feature name {name:?}: {why}");
            errors.push(FieldError::invalid(at, name, why));
        }
        last = Some(name);
    }
    errors
}

fn odd_feature(name: &str) -> Option<&'static str> {
    let letters = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric());
    let part = |part: &str| letters(part) && part.starts_with(|c: char| c.is_ascii_alphabetic());
    if name.len() > NAME_MAX {
        Some("must be no more than 253 characters")
    } else if !name.starts_with(|c: char| c.is_ascii_uppercase()) || !name.split('/').all(part) {
        Some(
            "must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes",
        )
    } else {
        None
    }
}

/// The characters of the longest name of a feature.
const NAME_MAX: usize = 253;

/// Every broken rule of a change.
pub(super) fn change(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = addresses(new);
    errors.extend(cidrs_stay(new, old));
    let provider = |of| meta::str_at(of, &["spec", "providerID"]);
    let why = match (provider(old), provider(new)) {
        ("", _) => None,
        (_, "") => Some("field cannot be cleared once set"),
        (was, is) => (was != is).then_some("field cannot be modified once set"),
    };
    errors.extend(why.map(|why| FieldError::invalid("spec.providerID", Value::Null, why)));
    let external = |of| meta::str_at(of, &["spec", "externalID"]);
    if external(new) != external(old) {
        let why = "may not be updated";
        errors.push(FieldError::forbidden("spec.externalID", why));
    }
    errors
}

/// Addresses are there once each.
pub(super) fn addresses(node: &Value) -> Vec<FieldError> {
    let all = meta::list_at(node, &["status", "addresses"]);
    let again = all
        .iter()
        .enumerate()
        .filter(|(i, a)| all[..*i].contains(a));
    let error = |(i, a): (usize, &Value)| {
        FieldError::duplicate(format!("status.addresses[{i}]"), internal(a))
    };
    again.map(error).collect()
}

/// Ranges are given once; an error for each that changes.
fn cidrs_stay(new: &Value, old: &Value) -> Vec<FieldError> {
    let (is, was) = (meta::list_at(new, &CIDRS), meta::list_at(old, &CIDRS));
    let changes = match was.len() {
        0 => 0,
        n if n != is.len() => 1,
        _ => was.iter().zip(is).filter(|(was, is)| was != is).count(),
    };
    let why = "node updates may not change podCIDR except from \"\" to valid";
    vec![FieldError::forbidden("spec.podCIDRs", why); changes]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_rules, assert_updates};

    fn node() -> Value {
        json!({"metadata": {"name": "n"},
            "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"], "providerID": "p://1",
                "taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {"capacity": {"cpu": "2", "pods": "110"}, "declaredFeatures": ["A", "B/c"],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}})
    }

    #[test]
    fn what_is_wrong_with_a_node_is_told() {
        let rules = |node: &Value| [spec(node), status(node)].concat();
        assert_rules(
            &node(),
            rules,
            &[
                (
                    json!({"/spec/taints/1": {"key": "k", "effect": "NoSchedule"},
                        "/spec/taints/2": {"key": "", "value": "a b", "effect": "Never"}}),
                    &[
                        "metadata.taints[1]: Duplicate value: {\"Effect\":\"NoSchedule\",\"Key\":\"k\",\"TimeAdded\":null,\"Value\":\"\"}: taints must be unique by key and effect pair",
                        "metadata.taints[2].key: Invalid value: \"\": …",
                        "metadata.taints[2].key: Invalid value: \"\": …",
                        "metadata.taints[2].value: Invalid value: \"a b\": …",
                        "metadata.taints[2].effect: Unsupported value: \"Never\": …",
                    ],
                ),
                (
                    json!({"/spec/podCIDRs/0": "10.0.0.1/24"}),
                    &[
                        "spec.podCIDRs[0]: Invalid value: \"10.0.0.1/24\": must not have bits set beyond the prefix length",
                    ],
                ),
                (
                    json!({"/spec/podCIDRs/1": "10.0.1.0/24"}),
                    &[
                        "spec.podCIDRs: Invalid value: [\"10.0.0.0/24\",\"10.0.1.0/24\"]: may specify no more than one CIDR for each IP family",
                    ],
                ),
                (json!({"/spec/podCIDRs/1": "fd00::/64"}), &[]),
                (
                    json!({"/status/capacity/cpu": "-1", "/status/capacity/pods": "1500m"}),
                    &[
                        "status.capacity.cpu: Invalid value: \"-1\": must be greater than or equal to 0",
                        "status.capacity.pods: Invalid value: \"1500m\": must be an integer",
                    ],
                ),
                (
                    json!({"/status/declaredFeatures": ["B", "A", "A", "a/b"]}),
                    &[
                        "status.declaredFeatures[1]: Invalid value: \"A\": list must be sorted alphabetically",
                        "status.declaredFeatures[2]: Duplicate value: \"A\"",
                        "status.declaredFeatures[3]: Invalid value: \"a/b\": invalid feature name \"a/b\": must start with…",
                    ],
                ),
                (
                    json!({"/status/nodeInfo/swap/capacity": 0}),
                    &[
                        "metadata.nodeSwapStatus.capacity: Invalid value: 0: must be greater than zero",
                    ],
                ),
            ],
        );
    }

    #[test]
    fn what_is_given_once_stays() {
        let stays = "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid";
        assert_updates(
            &node(),
            change,
            &[
                (json!({"/spec/podCIDRs/0": "10.0.1.0/24"}), &[stays]),
                (json!({"/spec/podCIDRs": null}), &[stays]),
                (
                    json!({"/spec/providerID": "p://2"}),
                    &["spec.providerID: Invalid value: null: field cannot be modified once set"],
                ),
                (
                    json!({"/spec/providerID": null}),
                    &["spec.providerID: Invalid value: null: field cannot be cleared once set"],
                ),
                (
                    json!({"/spec/externalID": "x"}),
                    &["spec.externalID: Forbidden: may not be updated"],
                ),
                (
                    json!({"/status/addresses/1": {"type": "InternalIP", "address": "10.0.0.1"}}),
                    &[
                        "status.addresses[1]: Duplicate value: {\"Address\":\"10.0.0.1\",\"Type\":\"InternalIP\"}",
                    ],
                ),
            ],
        );
        let bare = json!({"metadata": {"name": "n"}, "spec": {}});
        assert_eq!(change(&node(), &bare).len(), 0);
    }
}
