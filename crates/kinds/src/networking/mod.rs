//! Ingresses, network policies and addresses of the networking group.

use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::{Value, json};

use crate::cells::{Cell, join, or, text};
use crate::check::{immutable, label_selector, one_of, port};
use crate::simple::Simple;

/// How many hosts a cell shows.
const HOSTS_SHOWN: usize = 3;
const PATH_TYPES: &[&str] = &["Exact", "ImplementationSpecific", "Prefix"];

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
    validate: validate_ingress,
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
    default: default_policy,
    validate: validate_policy,
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

fn validate_ingress(obj: &Value) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let mut errors = Vec::new();
    let rules = meta::list_at(spec, &["rules"]);
    if rules.is_empty() && spec.get("defaultBackend").is_none() {
        errors.push(FieldError::invalid(
            "spec",
            json!(spec),
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    if let Some(backend) = spec.get("defaultBackend") {
        errors.extend(validate_backend(backend, "spec.defaultBackend"));
    }
    for (i, rule) in rules.iter().enumerate() {
        errors.extend(validate_host(
            meta::str_at(rule, &["host"]),
            &format!("spec.rules[{i}].host"),
        ));
        let Some(http) = rule.get("http") else {
            continue;
        };
        let paths = meta::list_at(http, &["paths"]);
        if paths.is_empty() {
            errors.push(FieldError::required(
                format!("spec.rules[{i}].http.paths"),
                "",
            ));
        }
        for (j, path) in paths.iter().enumerate() {
            errors.extend(validate_path(
                path,
                &format!("spec.rules[{i}].http.paths[{j}]"),
            ));
        }
    }
    errors
}

fn validate_host(host: &str, at: &str) -> Vec<FieldError> {
    if host.is_empty() {
        return Vec::new();
    }
    if host.parse::<std::net::IpAddr>().is_ok() {
        return vec![FieldError::invalid(
            at,
            host,
            "must be a DNS name, not an IP address",
        )];
    }
    let bare = host.strip_prefix("*.").unwrap_or(host);
    crate::check::named(api::names::dns1123_subdomain(bare), at, host)
}

fn validate_path(path: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = meta::str_at(path, &["pathType"]);
    if kind.is_empty() {
        errors.push(FieldError::required(
            format!("{at}.pathType"),
            "pathType must be specified",
        ));
    } else {
        errors.extend(one_of(kind, format!("{at}.pathType"), PATH_TYPES));
    }
    let value = meta::str_at(path, &["path"]);
    let free = value.is_empty() && kind == "ImplementationSpecific";
    if !value.starts_with('/') && !free {
        errors.push(FieldError::invalid(
            format!("{at}.path"),
            value,
            "must be an absolute path",
        ));
    }
    errors.extend(validate_backend(
        path.get("backend").unwrap_or(&Value::Null),
        &format!("{at}.backend"),
    ));
    errors
}

fn validate_backend(backend: &Value, at: &str) -> Vec<FieldError> {
    let (service, resource) = (backend.get("service"), backend.get("resource"));
    let Some(service) = service else {
        return if resource.is_some() {
            Vec::new()
        } else {
            vec![FieldError::required(
                at,
                "resource or service backend is required",
            )]
        };
    };
    let mut errors = Vec::new();
    if resource.is_some() {
        errors.push(FieldError::invalid(
            at,
            "",
            "cannot set both resource and service backends",
        ));
    }
    if meta::str_at(service, &["name"]).is_empty() {
        errors.push(FieldError::required(format!("{at}.service.name"), ""));
    }
    let (name, number) = (
        meta::str_at(service, &["port", "name"]),
        meta::int_at(service, &["port", "number"]).unwrap_or(0),
    );
    match (name.is_empty(), number) {
        (true, 0) => errors.push(FieldError::required(at, "port name or number is required")),
        (true, n) => errors.extend(port(n, format!("{at}.service.port.number"))),
        (false, 0) => errors.extend(crate::check::named(
            api::names::port_name(name),
            &format!("{at}.service.port.name"),
            name,
        )),
        (false, _) => errors.push(FieldError::invalid(
            at,
            "",
            "cannot set both port name & port number",
        )),
    }
    errors
}

fn default_policy(obj: &mut Value) {
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

fn validate_policy(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(selector) = meta::get(obj, &["spec", "podSelector"]) {
        errors.extend(label_selector(selector, "spec.podSelector"));
    }
    for (i, kind) in meta::list_at(obj, &["spec", "policyTypes"])
        .iter()
        .filter_map(Value::as_str)
        .enumerate()
    {
        errors.extend(one_of(
            kind,
            format!("spec.policyTypes[{i}]"),
            &["Egress", "Ingress"],
        ));
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in meta::list_at(obj, &["spec", direction]).iter().enumerate() {
            for (j, peer) in meta::list_at(rule, &[peers]).iter().enumerate() {
                let at = format!("spec.{direction}[{i}].{peers}[{j}]");
                let block = peer.get("ipBlock").is_some();
                let selectors =
                    peer.get("podSelector").is_some() || peer.get("namespaceSelector").is_some();
                if !block && !selectors {
                    errors.push(FieldError::required(at, "must specify a peer"));
                } else if block && selectors {
                    errors.push(FieldError::forbidden(
                        at,
                        "may not specify both ipBlock and another peer",
                    ));
                }
            }
        }
    }
    errors
}
