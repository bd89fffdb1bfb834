//! What a NetworkPolicy must hold to.

use api::{FieldError, meta, names};
use serde_json::{Value, json};

use crate::addresses::{holds, range, valid_range};
use crate::check::{label_selector, named, one_of_if_set, port};

const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const TYPES: [&str; 2] = ["Ingress", "Egress"];

pub(super) fn default(obj: &mut Value) {
    if meta::list_at(obj, &["spec", "policyTypes"]).is_empty() && obj.get("spec").is_some() {
        let egress = !meta::list_at(obj, &["spec", "egress"]).is_empty();
        let types = if egress {
            json!(["Ingress", "Egress"])
        } else {
            json!(["Ingress"])
        };
        meta::set(obj, &["spec", "policyTypes"], types);
    }
}

/// Every broken rule.
pub(super) fn validate(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(selector) = meta::get(obj, &["spec", "podSelector"]) {
        errors.extend(label_selector(selector, "spec.podSelector"));
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in meta::list_at(obj, &["spec", direction]).iter().enumerate() {
            let at = format!("spec.{direction}[{i}]");
            for (j, port) in meta::list_at(rule, &["ports"]).iter().enumerate() {
                errors.extend(port_rules(port, &format!("{at}.ports[{j}]")));
            }
            for (j, peer) in meta::list_at(rule, &[peers]).iter().enumerate() {
                errors.extend(peer_rules(peer, &format!("{at}.{peers}[{j}]")));
            }
        }
    }
    let types = meta::list_at(obj, &["spec", "policyTypes"]);
    if types.len() > TYPES.len() {
        let why = "may not specify more than two policyTypes";
        let at = "spec.policyTypes";
        errors.push(FieldError::invalid(at, types.to_vec(), why));
        return errors;
    }
    for (i, kind) in types.iter().filter_map(Value::as_str).enumerate() {
        if !TYPES.contains(&kind) {
            let at = format!("spec.policyTypes[{i}]");
            errors.push(FieldError::not_supported(at, kind, &TYPES));
        }
    }
    errors
}

fn port_rules(rule: &Value, at: &str) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = one_of_if_set(
        meta::str_at(rule, &["protocol"]),
        format!("{at}.protocol"),
        &PROTOCOLS,
    )
    .into_iter()
    .collect();
    let end = meta::int_at(rule, &["endPort"]);
    let (own, last) = (format!("{at}.port"), format!("{at}.endPort"));
    let refuse = |n: i64, why: &str| FieldError::invalid(&last, n, why);
    match rule.get("port") {
        Some(Value::Number(n)) => {
            let first = n.as_i64().unwrap_or(0);
            errors.extend(port(first, own));
            if let Some(end) = end {
                if end < first {
                    // Upstream shows the port here.
                    errors.push(refuse(first, "must be greater than or equal to `port`"));
                }
                errors.extend(port(end, last));
            }
        }
        Some(name) => {
            if let Some(end) = end {
                errors.push(refuse(
                    end,
                    "may not be specified when `port` is non-numeric",
                ));
            }
            let name = name.as_str().unwrap_or_default();
            errors.extend(named(names::port_name(name), &own, name));
        }
        None => errors.extend(
            end.map(|end| refuse(end, "may not be specified when `port` is not specified")),
        ),
    }
    errors
}

fn peer_rules(peer: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut selected = false;
    for field in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = peer.get(field) {
            selected = true;
            errors.extend(label_selector(selector, &format!("{at}.{field}")));
        }
    }
    if let Some(block) = peer.get("ipBlock") {
        errors.extend(block_rules(block, &format!("{at}.ipBlock")));
        if selected {
            let why = "may not specify both ipBlock and another peer";
            errors.push(FieldError::forbidden(at, why));
        }
    } else if !selected {
        errors.push(FieldError::required(at, "must specify a peer"));
    }
    errors
}

fn block_rules(block: &Value, at: &str) -> Vec<FieldError> {
    let whole = meta::str_at(block, &["cidr"]);
    let path = format!("{at}.cidr");
    if whole.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let mut errors = valid_range(whole, &path);
    let Some(outer) = range(whole) else {
        return errors;
    };
    let excepted = meta::list_at(block, &["except"]);
    for (i, part) in excepted.iter().filter_map(Value::as_str).enumerate() {
        let path = format!("{at}.except[{i}]");
        errors.extend(valid_range(part, &path));
        if range(part).is_some_and(|inner| !holds(outer, inner)) {
            let why = "must be a strict subset of `cidr`";
            errors.push(FieldError::invalid(path, part, why));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_wrong_is_told() {
        let odd = json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress", "Sideways"], "ingress": [{
            "ports": [{"protocol": "ICMP", "port": 0, "endPort": -1}, {"port": "http", "endPort": 5}, {"endPort": 5}, {"port": 5, "endPort": 9}],
            "from": [{}, {"ipBlock": {"cidr": ""}}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "11.0.0.0/16", "x"]}, "podSelector": {}}]}]}});
        let errors: Vec<String> = validate(&odd).iter().map(ToString::to_string).collect();
        let at = "spec.ingress[0]";
        assert_eq!(
            errors,
            [
                format!("{at}.ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"TCP\", \"UDP\", \"SCTP\""),
                format!("{at}.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"),
                format!("{at}.ports[0].endPort: Invalid value: 0: must be greater than or equal to `port`"),
                format!("{at}.ports[0].endPort: Invalid value: -1: must be between 1 and 65535, inclusive"),
                format!("{at}.ports[1].endPort: Invalid value: 5: may not be specified when `port` is non-numeric"),
                format!("{at}.ports[2].endPort: Invalid value: 5: may not be specified when `port` is not specified"),
                format!("{at}.from[0]: Required value: must specify a peer"),
                format!("{at}.from[1].ipBlock.cidr: Required value"),
                format!("{at}.from[2].ipBlock.except[1]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`"),
                format!("{at}.from[2].ipBlock.except[2]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
                format!("{at}.from[2]: Forbidden: may not specify both ipBlock and another peer"),
                "spec.policyTypes[1]: Unsupported value: \"Sideways\": supported values: \"Ingress\", \"Egress\"".to_owned(),
            ]
        );
    }
}
