//! Endpoints, and EndpointSlices of the discovery group.

use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::Value;

use crate::cells::{Cell, first_of, or};
use crate::check::one_of;
use crate::simple::Simple;

/// How many addresses a cell shows.
const SHOWN: usize = 3;
/// Most endpoints in one slice.
const SLICE_MAX: usize = 1000;

/// Rules of Endpoints.
pub(crate) static ENDPOINTS: Simple = Simple {
    cells: &[Cell::Name, Cell::With(endpoints), Cell::Age],
    create_on_update: true,
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
    for (i, endpoint) in list.iter().enumerate() {
        if meta::list_at(endpoint, &["addresses"]).is_empty() {
            errors.push(FieldError::required(
                format!("endpoints[{i}].addresses"),
                "must contain at least 1 address",
            ));
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
}
