//! Ingresses, network policies and addresses of the networking group.

mod ingress;
mod policy;

use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::Value;

use crate::addresses::{range, valid_range};
use crate::cells::{Cell, join, or, text};
use crate::check::immutable;
use crate::simple::Simple;

/// How many hosts a cell shows.
const HOSTS_SHOWN: usize = 3;

/// Rules of Ingresses.
pub(crate) static INGRESSES: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::With(class),
        Cell::With(hosts),
        Cell::With(address),
        Cell::With(ports),
        Cell::Age,
    ],
    generation: true,
    validate: ingress::validate,
    ..Simple::BASE
};

/// Rules of IngressClasses.
pub(crate) static INGRESS_CLASSES: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Text(&["spec", "controller"]),
        Cell::With(parameters),
        Cell::Age,
    ],
    generation: true,
    default: |obj| {
        if let Some(parameters) = obj
            .get_mut("spec")
            .and_then(|s| s.get_mut("parameters"))
            .filter(|p| p.get("scope").is_none())
        {
            meta::set(parameters, &["scope"], "Cluster".into());
        }
    },
    validate: ingress::validate_class,
    validate_update: |new, old| {
        immutable(new, old, &["spec", "controller"])
            .into_iter()
            .collect()
    },
    ..Simple::BASE
};

/// Rules of NetworkPolicies.
pub(crate) static POLICIES: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Selector(&["spec", "podSelector"]),
        Cell::Age,
    ],
    generation: true,
    default: policy::default,
    validate: policy::validate,
    ..Simple::BASE
};

/// Rules of IPAddresses.
pub(crate) static IP_ADDRESSES: Simple = Simple {
    cells: &[Cell::Name, Cell::With(parent), Cell::Age],
    labels: &[],
    validate_update: |new, old| {
        immutable(new, old, &["spec", "parentRef"])
            .into_iter()
            .collect()
    },
    name: |name| {
        if name.parse::<std::net::IpAddr>().is_ok() {
            Vec::new()
        } else {
            vec!["not a valid ip address".to_owned()]
        }
    },
    ..Simple::BASE
};

/// Rules of ServiceCIDRs.
pub(crate) static SERVICE_CIDRS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::With(|o, _| {
            join(
                meta::list_at(o, &["spec", "cidrs"])
                    .iter()
                    .filter_map(Value::as_str),
                ",",
            )
            .into()
        }),
        Cell::Age,
    ],
    validate: validate_service_cidr,
    validate_update: service_ranges_stay,
    ..Simple::BASE
};

fn class(obj: &Value, _now: Timestamp) -> Value {
    let annotated = meta::annotation(obj, "kubernetes.io/ingress.class").unwrap_or("<none>");
    or(text(obj, &["spec", "ingressClassName"]), annotated).into()
}

fn hosts(obj: &Value, _now: Timestamp) -> Value {
    let hosts: Vec<String> = meta::list_at(obj, &["spec", "rules"])
        .iter()
        .map(|r| text(r, &["host"]))
        .filter(|h| !h.is_empty())
        .collect();
    or(crate::cells::first_of(&hosts, HOSTS_SHOWN), "*").into()
}

fn address(obj: &Value, _now: Timestamp) -> Value {
    let ingress = meta::list_at(obj, &["status", "loadBalancer", "ingress"]);
    let all: Vec<String> = ingress
        .iter()
        .map(|i| or(text(i, &["ip"]), &text(i, &["hostname"])))
        .filter(|a| !a.is_empty())
        .collect();
    all.join(",").into()
}

fn ports(obj: &Value, _now: Timestamp) -> Value {
    if meta::list_at(obj, &["spec", "tls"]).is_empty() {
        "80"
    } else {
        "80, 443"
    }
    .into()
}

fn parameters(obj: &Value, _now: Timestamp) -> Value {
    let Some(p) = meta::get(obj, &["spec", "parameters"]) else {
        return "<none>".into();
    };
    let group = text(p, &["apiGroup"]);
    let kind = text(p, &["kind"]);
    let qualified = if group.is_empty() {
        kind
    } else {
        format!("{kind}.{group}")
    };
    format!("{qualified}/{}", text(p, &["name"])).into()
}

fn parent(obj: &Value, _now: Timestamp) -> Value {
    let p = meta::get(obj, &["spec", "parentRef"]).unwrap_or(&Value::Null);
    let (group, resource) = (text(p, &["group"]), text(p, &["resource"]));
    let resource = if group.is_empty() {
        resource
    } else {
        format!("{resource}.{group}")
    };
    let all = [resource, text(p, &["namespace"]), text(p, &["name"])];
    all.into_iter()
        .filter(|s| !s.is_empty())
        .collect::<Vec<_>>()
        .join("/")
        .into()
}

fn validate_service_cidr(obj: &Value) -> Vec<FieldError> {
    let at = "spec.cidrs";
    let all = meta::list_at(obj, &["spec", "cidrs"]);
    if all.is_empty() {
        return vec![FieldError::required(at, "at least one CIDR required")];
    }
    let mut errors = Vec::new();
    let texts = || all.iter().filter_map(Value::as_str);
    if all.len() > 2 {
        let why = "may only hold up to 2 values";
        errors.push(FieldError::invalid(at, all.to_vec(), why));
    } else if let [Some(a), Some(b)] = texts().map(range).collect::<Vec<_>>()[..]
        && a.0.is_ipv4() == b.0.is_ipv4()
    {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.push(FieldError::invalid(at, all.to_vec(), why));
    }
    for (i, text) in texts().enumerate() {
        errors.extend(valid_range(text, &format!("{at}[{i}]")));
    }
    errors
}

/// A range of the other family may be added, nothing else changes.
fn service_ranges_stay(new: &Value, old: &Value) -> Vec<FieldError> {
    let cidrs = |of| meta::list_at(of, &["spec", "cidrs"]);
    let (is, was) = (cidrs(new), cidrs(old));
    if was.len() == 1 && is.len() == 2 && is[0] == was[0] {
        return Vec::new();
    }
    immutable(new, old, &["spec", "cidrs"])
        .into_iter()
        .collect()
}
