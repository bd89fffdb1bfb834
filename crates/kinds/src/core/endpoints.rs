//! Endpoints, and EndpointSlices of the discovery group.

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::Value;

use crate::addresses::{of_family, qualified_host, special, valid_ip};
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
    let list = meta::list_at(obj, &["endpoints"]);
    if list.len() > SLICE_MAX {
        errors.push(FieldError::too_many("endpoints", list.len(), SLICE_MAX));
    }
    let kind = meta::str_at(obj, &["addressType"]);
    for (i, endpoint) in list.iter().take(SLICE_MAX).enumerate() {
        errors.extend(slice_endpoint(endpoint, kind, &format!("endpoints[{i}]")));
    }
    errors.extend(slice_port_rules(meta::list_at(obj, &["ports"])));
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
            "IPv4" | "IPv6" => {
                let wrong = of_family(address, kind == "IPv6", &at);
                let fits = wrong.is_empty();
                errors.extend(wrong);
                if fits {
                    errors.extend(special(address, &at));
                }
            }
            "FQDN" => errors.extend(qualified_host(address, &at)),
            _ => {}
        }
    }
    errors.extend(host_rules(endpoint, at));
    let hints = meta::list_at(endpoint, &["hints", "forZones"]);
    let path = format!("{at}.hints.forZones");
    if hints.len() > HINTS_MAX {
        errors.push(FieldError::too_many(&path, hints.len(), HINTS_MAX));
    }
    for (i, hint) in hints.iter().take(HINTS_MAX).enumerate() {
        let zone = meta::str_at(hint, &["name"]);
        let at = format!("{path}[{i}].name");
        if hints[..i]
            .iter()
            .any(|h| meta::str_at(h, &["name"]) == zone)
        {
            errors.push(FieldError::duplicate(&at, zone));
        }
        errors.extend(named(names::label_value(zone), &at, zone));
    }
    errors
}

/// Host and node of an endpoint or address.
fn host_rules(of: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(host) = of.get("hostname").and_then(Value::as_str) {
        let at = format!("{at}.hostname");
        if !host.is_empty() {
            errors.extend(named(names::dns1123_label(host), &at, host));
        }
    }
    if let Some(node) = of.get("nodeName").and_then(Value::as_str) {
        let at = format!("{at}.nodeName");
        errors.extend(named(names::dns1123_subdomain(node), &at, node));
    }
    errors
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
            {"addresses": ["::1", "127.0.0.1", "10.0.0.1"], "hostname": "A", "nodeName": "n_1"},
            {"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "a"}, {"name": "a"}]}}],
            "ports": [{"name": "a", "protocol": "TCP"}, {"name": "a", "protocol": "ICMP", "appProtocol": "x/y/z"}, {"name": "", "protocol": "UDP"}]});
        let errors: Vec<String> = validate_slice(&slice)
            .iter()
            .map(|e| format!("{}: {}", e.path, e.body()))
            .collect();
        let begin = [
            "endpoints[0].addresses: Required value: must contain at least 1 address",
            "endpoints[1].addresses[0]: Invalid value: \"::1\": must be a valid IPv4 address",
            "endpoints[1].addresses[1]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            "endpoints[1].hostname: Invalid value: \"A\": a lowercase RFC 1123 label must consist of",
            "endpoints[1].nodeName: Invalid value: \"n_1\": a lowercase RFC 1123 subdomain must consist of",
            "endpoints[2].hints.forZones[1].name: Duplicate value: \"a\"",
            "ports[1].name: Duplicate value: \"a\"",
            "ports[1].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            "ports[1].appProtocol: Invalid value: \"x/y/z\": a qualified name must consist of",
        ];
        assert_eq!(errors.len(), begin.len(), "{errors:#?}");
        for (error, begin) in errors.iter().zip(begin) {
            assert!(error.starts_with(begin), "{error}");
        }
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
