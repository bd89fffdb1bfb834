//! Ingresses, network policies and addresses of the networking group.

mod ingress;
mod policy;

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::{Value, json};

use crate::addresses::{canonical_ip, canonical_range, range};
use crate::cells::{Cell, join, or, text};
use crate::check::{immutable, named};
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
    validate_create: ingress::validate_create,
    validate_status: ingress::validate_status,
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
    changes_first: true,
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
    validate: validate_address,
    name: |name| {
        let errors = canonical_ip(name, "");
        errors.into_iter().map(|e| e.detail).collect()
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

fn validate_address(obj: &Value) -> Vec<FieldError> {
    let at = "spec.parentRef";
    let Some(parent) = meta::get(obj, &["spec", "parentRef"]) else {
        return vec![FieldError::required(at, "")];
    };
    let text = |field: &str| meta::str_at(parent, &[field]);
    let mut errors = Vec::new();
    if !text("group").is_empty() {
        let why = names::dns1123_subdomain(text("group"));
        errors.extend(named(why, &format!("{at}.group"), text("group")));
    }
    for (field, required) in [("resource", true), ("name", true), ("namespace", false)] {
        let at = format!("{at}.{field}");
        if !text(field).is_empty() {
            errors.extend(named(names::path_segment(text(field)), &at, text(field)));
        } else if required {
            errors.push(FieldError::required(at, ""));
        }
    }
    errors
}

fn validate_service_cidr(obj: &Value) -> Vec<FieldError> {
    let at = "spec.cidrs";
    let all = meta::list_at(obj, &["spec", "cidrs"]);
    let refuse = |why| vec![FieldError::invalid(at, json!({"CIDRs": all}), why)];
    let texts = || all.iter().filter_map(Value::as_str);
    match texts().map(range).collect::<Vec<_>>()[..] {
        [] => return vec![FieldError::required(at, "at least one CIDR required")],
        [_] => {}
        [Some((a, _)), Some((b, _))] if a.is_ipv4() != b.is_ipv4() => {}
        [_, _] => {
            return refuse(
                "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
            );
        }
        _ => return refuse("may only hold up to 2 values"),
    }
    let told = |(i, text)| canonical_range(text, &format!("{at}[{i}]"));
    texts().enumerate().flat_map(told).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_rules, assert_updates};

    #[test]
    fn addresses() {
        let address =
            json!({"spec": {"parentRef": {"resource": "services", "name": "s", "namespace": "n"}}});
        assert_rules(
            &address,
            IP_ADDRESSES.validate,
            &[
                (
                    json!({"/spec/parentRef": null}),
                    &["spec.parentRef: Required value"],
                ),
                (
                    json!({"/spec/parentRef": {"group": "A", "namespace": "a/b"}}),
                    &[
                        "spec.parentRef.group: Invalid value: \"A\": a lowercase RFC 1123 subdomain…",
                        "spec.parentRef.resource: Required value",
                        "spec.parentRef.name: Required value",
                        "spec.parentRef.namespace: Invalid value: \"a/b\": may not contain '/'",
                    ],
                ),
            ],
        );
        assert_eq!((IP_ADDRESSES.name)("2001:db8::1"), [""; 0]);
        assert_eq!(
            (IP_ADDRESSES.name)("2001:DB8::1"),
            ["must be in canonical form (\"2001:db8::1\")"]
        );
    }

    #[test]
    fn service_ranges() {
        let both = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        let range = json!({"spec": {"cidrs": ["10.0.0.0/16"]}});
        assert_rules(
            &range,
            SERVICE_CIDRS.validate,
            &[
                (
                    json!({"/spec/cidrs": []}),
                    &["spec.cidrs: Required value: at least one CIDR required"],
                ),
                (
                    json!({"/spec/cidrs": ["10.0.0.0/16", "fd00::/108", "fd01::/108"]}),
                    &[
                        "spec.cidrs: Invalid value: {\"CIDRs\":[\"10.0.0.0/16\",\"fd00::/108\",\"fd01::/108\"]}: may only hold up to 2 values",
                    ],
                ),
                (
                    json!({"/spec/cidrs": ["10.0.0.0/16", "10.1.0.0/16"]}),
                    &[&format!(
                        "spec.cidrs: Invalid value: {{\"CIDRs\":[\"10.0.0.0/16\",\"10.1.0.0/16\"]}}: {both}"
                    )],
                ),
                (
                    json!({"/spec/cidrs/0": "FD00::/108"}),
                    &[
                        "spec.cidrs[0]: Invalid value: \"FD00::/108\": must be in canonical form (\"fd00::/108\")",
                    ],
                ),
            ],
        );
        assert_updates(
            &range,
            SERVICE_CIDRS.validate_update,
            &[
                (json!({"/spec/cidrs": ["10.0.0.0/16", "fd00::/108"]}), &[]),
                (
                    json!({"/spec/cidrs": ["10.1.0.0/16"]}),
                    &["spec.cidrs: Invalid value: [\"10.1.0.0/16\"]: field is immutable"],
                ),
            ],
        );
    }
}
