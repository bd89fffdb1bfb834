//! Endpoints, and EndpointSlices of the discovery group.

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::Value;

use crate::addresses::{canonical_ip, is_v6, qualified_host, special, valid_ip};
use crate::cells::{Cell, first_of, or};
use crate::check::{named, one_of, port};
use crate::simple::Simple;

/// How many addresses a cell shows.
const SHOWN: usize = 3;
/// Most endpoints in one slice.
const SLICE_MAX: usize = 1000;
/// Most addresses of one endpoint of a slice.
const ADDRESSES_MAX: usize = 100;
/// Most ports of one slice.
const PORTS_MAX: usize = 20_000;
/// Most hints of one endpoint.
const HINTS_MAX: usize = 8;
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// Rules of Endpoints.
pub(crate) static ENDPOINTS: Simple = Simple {
    cells: &[Cell::Name, Cell::With(endpoints), Cell::Age],
    create_on_update: true,
    validate: validate_endpoints,
    ..Simple::BASE
};

/// Rules of EndpointSlices.
pub(crate) static SLICES: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Text(&["addressType"]),
        Cell::With(slice_ports),
        Cell::With(slice_addresses),
        Cell::Age,
    ],
    generation: true,
    prepare: drop_topology,
    validate: validate_slice,
    validate_update: |new, old| {
        crate::check::immutable(new, old, &["addressType"])
            .into_iter()
            .collect()
    },
    ..Simple::BASE
};

fn join_host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

fn endpoints(obj: &Value, _now: Timestamp) -> Value {
    let mut shown = Vec::new();
    for subset in meta::list_at(obj, &["subsets"]) {
        let ips: Vec<&str> = meta::list_at(subset, &["addresses"])
            .iter()
            .map(|a| meta::str_at(a, &["ip"]))
            .collect();
        let ports = meta::list_at(subset, &["ports"]);
        if ports.is_empty() {
            shown.extend(ips.iter().map(|ip| (*ip).to_owned()));
        }
        for port in ports {
            let number = meta::int_at(port, &["port"]).unwrap_or(0);
            shown.extend(ips.iter().map(|ip| join_host_port(ip, number)));
        }
    }
    or(first_of(&shown, SHOWN), "<none>").into()
}

fn slice_ports(obj: &Value, _now: Timestamp) -> Value {
    let print =
        |p: &Value| meta::int_at(p, &["port"]).map_or_else(|| "*".to_owned(), |n| n.to_string());
    let ports: Vec<String> = meta::list_at(obj, &["ports"]).iter().map(print).collect();
    or(first_of(&ports, SHOWN), "<unset>").into()
}

fn slice_addresses(obj: &Value, _now: Timestamp) -> Value {
    let addresses: Vec<String> = meta::list_at(obj, &["endpoints"])
        .iter()
        .flat_map(|e| {
            meta::list_at(e, &["addresses"])
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
        })
        .collect();
    or(first_of(&addresses, SHOWN), "<unset>").into()
}

fn validate_slice(obj: &Value) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = one_of(
        meta::str_at(obj, &["addressType"]),
        "addressType",
        &["FQDN", "IPv4", "IPv6"],
    )
    .into_iter()
    .collect();
    errors.extend(slice_port_rules(meta::list_at(obj, &["ports"])));
    let list = meta::list_at(obj, &["endpoints"]);
    if list.len() > SLICE_MAX {
        errors.push(FieldError::too_many("endpoints", list.len(), SLICE_MAX));
        return errors;
    }
    let kind = meta::str_at(obj, &["addressType"]);
    for (i, endpoint) in list.iter().enumerate() {
        errors.extend(slice_endpoint(endpoint, kind, &format!("endpoints[{i}]")));
    }
    errors
}

fn slice_endpoint(endpoint: &Value, kind: &str, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let addresses = meta::list_at(endpoint, &["addresses"]);
    let path = format!("{at}.addresses");
    if addresses.is_empty() {
        let why = "must contain at least 1 address";
        errors.push(FieldError::required(&path, why));
    } else if addresses.len() > ADDRESSES_MAX {
        errors.push(FieldError::too_many(&path, addresses.len(), ADDRESSES_MAX));
    }
    for (i, address) in addresses.iter().filter_map(Value::as_str).enumerate() {
        let at = format!("{path}[{i}]");
        match kind {
            "IPv4" | "IPv6" => errors.extend(slice_ip(address, kind, &path, &at)),
            "FQDN" => errors.extend(qualified_host(address, &at)),
            _ => {}
        }
    }
    errors.extend(node_rules(endpoint, at));
    if let Some(host) = endpoint.get("hostname").and_then(Value::as_str) {
        let at = format!("{at}.hostname");
        errors.extend(named(names::dns1123_label(host), &at, host));
    }
    let wrong = hints(endpoint, "forZones", names::label_value, at);
    match wrong {
        Err(too_many) => errors.push(too_many),
        Ok(wrong) => {
            errors.extend(wrong);
            let nodes = hints(endpoint, "forNodes", names::dns1123_subdomain, at);
            errors.extend(nodes.unwrap_or_else(|too_many| vec![too_many]));
        }
    }
    errors
}

/// An address in a list of such; the newer kind has to be written as it is printed.
fn slice_ip(address: &str, kind: &str, list: &str, at: &str) -> Vec<FieldError> {
    let v6 = kind == "IPv6";
    let mut errors = match v6 {
        true => canonical_ip(address, at),
        false => valid_ip(address, at),
    };
    if errors.is_empty() {
        if is_v6(address) != v6 {
            let why = format!("must be an {kind} address");
            errors.push(FieldError::invalid(list, address, why));
        }
        errors.extend(special(address, at));
    }
    errors
}

/// The names that an endpoint is meant for; an error alone: they are too many to look at.
fn hints(
    endpoint: &Value,
    field: &str,
    rule: fn(&str) -> Vec<String>,
    at: &str,
) -> Result<Vec<FieldError>, FieldError> {
    let all = meta::list_at(endpoint, &["hints", field]);
    let path = format!("{at}.hints.{field}");
    if all.len() > HINTS_MAX {
        return Err(FieldError::too_many(path, all.len(), HINTS_MAX));
    }
    let mut errors = Vec::new();
    let mut seen = Vec::new();
    for (i, hint) in all.iter().enumerate() {
        let name = meta::str_at(hint, &["name"]);
        let at = format!("{path}[{i}].name");
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(&at, name));
        }
        seen.push(name);
        errors.extend(named(rule(name), &at, name));
    }
    Ok(errors)
}

/// The host of an address.
fn host_rules(of: &Value, at: &str) -> Vec<FieldError> {
    let host = meta::str_at(of, &["hostname"]);
    if host.is_empty() {
        return Vec::new();
    }
    named(names::dns1123_label(host), &format!("{at}.hostname"), host)
}

/// The node of an endpoint or address.
fn node_rules(of: &Value, at: &str) -> Vec<FieldError> {
    let Some(node) = of.get("nodeName").and_then(Value::as_str) else {
        return Vec::new();
    };
    let at = format!("{at}.nodeName");
    named(names::dns1123_subdomain(node), &at, node)
}

/// What of a slice was used before there were fields for it.
fn drop_topology(new: &mut Value, old: Option<&Value>, _: Timestamp) {
    if old.is_some_and(|old| old.get("endpoints") == new.get("endpoints")) {
        return;
    }
    let all = new.get_mut("endpoints").and_then(Value::as_array_mut);
    for endpoint in all.into_iter().flatten() {
        meta::remove(endpoint, &["deprecatedTopology"]);
    }
}

fn slice_port_rules(ports: &[Value]) -> Vec<FieldError> {
    if ports.len() > PORTS_MAX {
        return vec![FieldError::too_many("ports", ports.len(), PORTS_MAX)];
    }
    let mut errors = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = format!("ports[{i}]");
        let name = meta::str_at(port, &["name"]);
        let path = format!("{at}.name");
        if !name.is_empty() {
            errors.extend(named(names::dns1123_label(name), &path, name));
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(&path, name));
        }
        errors.extend(port_rules(port, &at));
    }
    errors
}

/// Protocols of a port.
fn port_rules(port: &Value, at: &str) -> Vec<FieldError> {
    let protocol = meta::str_at(port, &["protocol"]);
    let mut errors: Vec<FieldError> = one_of(protocol, format!("{at}.protocol"), &PROTOCOLS)
        .into_iter()
        .collect();
    if let Some(application) = port.get("appProtocol").and_then(Value::as_str) {
        let at = format!("{at}.appProtocol");
        let why = names::qualified_name(application);
        errors.extend(named(why, &at, application));
    }
    errors
}

fn validate_endpoints(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, subset) in meta::list_at(obj, &["subsets"]).iter().enumerate() {
        let at = format!("subsets[{i}]");
        let ready = meta::list_at(subset, &["addresses"]);
        let waiting = meta::list_at(subset, &["notReadyAddresses"]);
        if ready.is_empty() && waiting.is_empty() {
            let why = "must specify `addresses` or `notReadyAddresses`";
            errors.push(FieldError::required(&at, why));
        }
        for (field, all) in [("addresses", ready), ("notReadyAddresses", waiting)] {
            for (j, address) in all.iter().enumerate() {
                let at = format!("{at}.{field}[{j}]");
                let ip = meta::str_at(address, &["ip"]);
                errors.extend(valid_ip(ip, &format!("{at}.ip")));
                errors.extend(host_rules(address, &at));
                errors.extend(node_rules(address, &at));
                errors.extend(special(ip, &format!("{at}.ip")));
            }
        }
        let ports = meta::list_at(subset, &["ports"]);
        for (j, one) in ports.iter().enumerate() {
            let at = format!("{at}.ports[{j}]");
            let name = meta::str_at(one, &["name"]);
            let path = format!("{at}.name");
            if !name.is_empty() {
                errors.extend(named(names::dns1123_label(name), &path, name));
            } else if ports.len() > 1 {
                errors.push(FieldError::required(&path, ""));
            }
            let number = meta::int_at(one, &["port"]).unwrap_or(0);
            errors.extend(port(number, format!("{at}.port")));
            errors.extend(port_rules(one, &at));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn cells() {
        let now = Timestamp::UNIX_EPOCH;
        let addresses: Vec<Value> = (1..6)
            .map(|i| json!({"ip": format!("10.0.0.{i}")}))
            .collect();
        let obj = json!({"subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]});
        assert_eq!(
            endpoints(&obj, now),
            "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more..."
        );
        assert_eq!(endpoints(&json!({}), now), "<none>");
        assert_eq!(
            slice_ports(&json!({"ports": [{"port": 80}, {}]}), now),
            "80,*"
        );
    }

    #[test]
    fn everything_wrong_with_a_slice_is_told() {
        let slice = json!({"addressType": "IPv4", "endpoints": [
            {"addresses": []},
            {"addresses": ["::2", "127.0.0.1", "10.0.0.1", "10.0.0.01"], "hostname": "", "nodeName": "n_1"},
            {"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "a"}, {"name": "a"}],
                "forNodes": [{"name": "b"}, {"name": "B"}, {"name": "b"}]}}],
            "ports": [{"name": "a", "protocol": "TCP"}, {"name": "a", "protocol": "ICMP", "appProtocol": "x/y/z"}, {"name": "", "protocol": "UDP"}]});
        let errors: Vec<String> = validate_slice(&slice)
            .iter()
            .map(|e| format!("{}: {}", e.path, e.body()))
            .collect();
        let begin = [
            "ports[1].name: Duplicate value: \"a\"",
            "ports[1].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            "ports[1].appProtocol: Invalid value: \"x/y/z\": a qualified name must consist of",
            "endpoints[0].addresses: Required value: must contain at least 1 address",
            "endpoints[1].addresses: Invalid value: \"::2\": must be an IPv4 address",
            "endpoints[1].addresses[1]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            "endpoints[1].addresses[3]: Invalid value: \"10.0.0.01\": must not have leading 0s",
            "endpoints[1].nodeName: Invalid value: \"n_1\": a lowercase RFC 1123 subdomain must consist of",
            "endpoints[1].hostname: Invalid value: \"\": a lowercase RFC 1123 label must consist of",
            "endpoints[2].hints.forZones[1].name: Duplicate value: \"a\"",
            "endpoints[2].hints.forNodes[1].name: Invalid value: \"B\": a lowercase RFC 1123 subdomain must consist of",
            "endpoints[2].hints.forNodes[2].name: Duplicate value: \"b\"",
        ];
        assert_eq!(errors.len(), begin.len(), "{errors:#?}");
        for (error, begin) in errors.iter().zip(begin) {
            assert!(error.starts_with(begin), "{error}");
        }
    }

    #[test]
    fn newer_addresses_are_written_as_they_are_printed() {
        let at = "endpoints[0].addresses[0]";
        for (address, why) in [
            ("fd00::1", ""),
            ("FD00::1", "must be in canonical form (\"fd00::1\")"),
            ("10.0.0.1", "must be an IPv6 address"),
            (
                "x",
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
        ] {
            let found = slice_ip(address, "IPv6", "endpoints[0].addresses", at);
            let found: Vec<&str> = found.iter().map(|e| e.detail.as_str()).collect();
            let expected: Vec<&str> = Some(why).filter(|w| !w.is_empty()).into_iter().collect();
            assert_eq!(found, expected, "{address}");
        }
    }

    #[test]
    fn topology_of_old_goes_with_the_next_change_of_endpoints() {
        let slice = |address: &str| json!({"endpoints": [{"addresses": [address], "deprecatedTopology": {"a": "b"}}]});
        let now = Timestamp::UNIX_EPOCH;
        let is_kept = |old: Option<&Value>| {
            let mut new = slice("10.0.0.1");
            drop_topology(&mut new, old, now);
            new["endpoints"][0].get("deprecatedTopology").is_some()
        };
        assert!(!is_kept(None) && !is_kept(Some(&slice("10.0.0.2"))));
        assert!(is_kept(Some(&slice("10.0.0.1"))));
    }

    #[test]
    fn everything_wrong_with_endpoints_is_told() {
        let odd = json!({"subsets": [{"ports": [{"port": 0, "protocol": "TCP"}, {"port": 80, "name": "b"}]},
            {"addresses": [{"ip": "10.0.0"}, {"ip": "fe80::1"}]}]});
        let errors: Vec<String> = validate_endpoints(&odd)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            errors,
            [
                "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
                "subsets[0].ports[0].name: Required value",
                "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "subsets[0].ports[1].protocol: Required value",
                "subsets[1].addresses[0].ip: Invalid value: \"10.0.0\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "subsets[1].addresses[0].ip: Invalid value: \"10.0.0\": must be a valid IP address",
                "subsets[1].addresses[1].ip: Invalid value: \"fe80::1\": may not be in the link-local range (169.254.0.0/16, fe80::/10)"
            ]
        );
    }
}
