//! What Ingresses and their classes must hold to.

use api::{FieldError, meta, names};
use serde_json::Value;

use crate::addresses::of_balancer;
use crate::check::{named, one_of, port, prefixed_path};

const PATH_TYPES: &[&str] = &["Exact", "ImplementationSpecific", "Prefix"];
/// Longest name of a host, in bytes.
const HOST_MAX: usize = 253;
/// Longest name of a controller, in bytes.
const CONTROLLER_MAX: usize = 250;

/// Every broken rule of an Ingress.
pub(super) fn validate(obj: &Value) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let mut errors = Vec::new();
    let rules = meta::list_at(spec, &["rules"]);
    if rules.is_empty() && spec.get("defaultBackend").is_none() {
        errors.push(FieldError::invalid(
            "spec",
            spec.get("rules").cloned().unwrap_or_default(),
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
    for (i, tls) in meta::list_at(spec, &["tls"]).iter().enumerate() {
        let at = format!("spec.tls[{i}]");
        let hosts = meta::list_at(tls, &["hosts"]);
        for (j, host) in hosts.iter().filter_map(Value::as_str).enumerate() {
            let at = format!("{at}.hosts[{j}]");
            errors.extend(named(host_name(host), &at, host));
        }
        let secret = meta::str_at(tls, &["secretName"]);
        if !secret.is_empty() {
            let at = format!("{at}.secretName");
            errors.extend(named(names::dns1123_subdomain(secret), &at, secret));
        }
    }
    if let Some(class) = spec.get("ingressClassName").and_then(Value::as_str) {
        let at = "spec.ingressClassName";
        errors.extend(named(names::dns1123_subdomain(class), at, class));
    }
    errors
}

fn validate_host(host: &str, at: &str) -> Vec<FieldError> {
    if host.is_empty() {
        return Vec::new();
    }
    let mut errors = Vec::new();
    if host.parse::<std::net::IpAddr>().is_ok() {
        let why = "must be a DNS name, not an IP address";
        errors.push(FieldError::invalid(at, host, why));
    }
    errors.extend(named(host_name(host), at, host));
    errors
}

/// A name of a host; its first label may stand for any.
fn host_name(host: &str) -> Vec<String> {
    if !host.contains('*') {
        return names::dns1123_subdomain(host);
    }
    let rest = host.strip_prefix("*.");
    let good = rest.is_some_and(|r| names::dns1123_subdomain(r).is_empty());
    if good && host.len() <= HOST_MAX {
        return Vec::new();
    }
    vec![
        "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".to_owned(),
    ]
}

fn validate_path(path: &Value, at: &str) -> Vec<FieldError> {
    let kind = meta::str_at(path, &["pathType"]);
    if kind.is_empty() {
        let why = "pathType must be specified";
        return vec![FieldError::required(format!("{at}.pathType"), why)];
    }
    let mut errors = match kind {
        "Exact" | "Prefix" | "ImplementationSpecific" => {
            path_text(path, kind, &format!("{at}.path"))
        }
        _ => vec![FieldError::not_supported(
            format!("{at}.pathType"),
            kind,
            PATH_TYPES,
        )],
    };
    errors.extend(validate_backend(
        path.get("backend").unwrap_or(&Value::Null),
        &format!("{at}.backend"),
    ));
    errors
}

fn path_text(path: &Value, kind: &str, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let value = meta::str_at(path, &["path"]);
    let free = kind == "ImplementationSpecific";
    let absent = free && value.is_empty();
    if !absent && !value.starts_with('/') {
        let why = "must be an absolute path";
        errors.push(FieldError::invalid(at, value, why));
    }
    if free {
        return errors;
    }
    for part in ["//", "/./", "/../", "%2f", "%2F"] {
        if value.contains(part) {
            let why = format!("must not contain '{part}'");
            errors.push(FieldError::invalid(at, value, why));
        }
    }
    for end in ["/..", "/."] {
        if value.ends_with(end) {
            let why = format!("cannot end with '{end}'");
            errors.push(FieldError::invalid(at, value, why));
        }
    }
    errors
}

fn validate_backend(backend: &Value, at: &str) -> Vec<FieldError> {
    let (service, resource) = (backend.get("service"), backend.get("resource"));
    let service = match (service, resource) {
        (Some(_), Some(_)) => {
            let why = "cannot set both resource and service backends";
            return vec![FieldError::invalid(at, "", why)];
        }
        (Some(service), None) => service,
        (None, Some(resource)) => return typed_reference(resource, &format!("{at}.resource")),
        (None, None) => {
            let why = "resource or service backend is required";
            return vec![FieldError::invalid(at, "", why)];
        }
    };
    let mut errors = Vec::new();
    let service_name = meta::str_at(service, &["name"]);
    let path = format!("{at}.service.name");
    if service_name.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        errors.extend(named(
            names::dns1035_label(service_name),
            &path,
            service_name,
        ));
    }
    let (name, number) = (
        meta::str_at(service, &["port", "name"]),
        meta::int_at(service, &["port", "number"]).unwrap_or(0),
    );
    match (name.is_empty(), number) {
        (true, 0) => errors.push(FieldError::required(at, "port name or number is required")),
        (true, n) => errors.extend(port(n, format!("{at}.service.port.number"))),
        (false, 0) => errors.extend(named(
            names::port_name(name),
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

/// Every broken rule of an IngressClass.
pub(super) fn validate_class(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let controller = meta::str_at(obj, &["spec", "controller"]);
    let at = "spec.controller";
    if controller.len() > CONTROLLER_MAX {
        errors.push(FieldError::too_long(at, CONTROLLER_MAX));
    }
    errors.extend(prefixed_path(controller, at));
    let Some(parameters) = meta::get(obj, &["spec", "parameters"]) else {
        return errors;
    };
    errors.extend(typed_reference(parameters, "spec.parameters"));
    let at = |field: &str| format!("spec.parameters.{field}");
    let scope = meta::str_at(parameters, &["scope"]);
    errors.extend(one_of(scope, at("scope"), &["Cluster", "Namespace"]));
    let namespace = parameters.get("namespace").and_then(Value::as_str);
    match (scope, namespace) {
        ("Namespace", None) => {
            let why = "`parameters.scope` is set to 'Namespace'";
            errors.push(FieldError::required(at("namespace"), why));
        }
        ("Namespace", Some(namespace)) => {
            let why = names::dns1123_label(namespace);
            errors.extend(named(why, &at("namespace"), namespace));
        }
        ("Cluster", Some(_)) => {
            let why = "`parameters.scope` is set to 'Cluster'";
            errors.push(FieldError::forbidden(at("namespace"), why));
        }
        _ => {}
    }
    errors
}

/// Group, kind and name of another object.
fn typed_reference(reference: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(group) = reference.get("apiGroup").and_then(Value::as_str) {
        let at = format!("{at}.apiGroup");
        errors.extend(named(names::dns1123_subdomain(group), &at, group));
    }
    for field in ["kind", "name"] {
        let at = format!("{at}.{field}");
        let value = meta::str_at(reference, &[field]);
        if value.is_empty() {
            errors.push(FieldError::required(at, format!("{field} is required")));
        } else {
            errors.extend(named(names::path_segment(value), &at, value));
        }
    }
    errors
}

/// The older annotation and the field name the same class.
pub(super) fn validate_create(obj: &Value) -> Vec<FieldError> {
    let annotated = meta::annotation(obj, "kubernetes.io/ingress.class");
    let class = meta::get(obj, &["spec", "ingressClassName"]).and_then(Value::as_str);
    let both = annotated
        .zip(class)
        .filter(|(annotated, class)| annotated != class);
    let refuse = |(annotated, _)| {
        let why = "must match `ingressClassName` when both are specified";
        FieldError::invalid("annotations.kubernetes.io/ingress.class", annotated, why)
    };
    both.map(refuse).into_iter().collect()
}

/// Every broken rule of an Ingress's status.
pub(super) fn validate_status(obj: &Value, _old: &Value) -> Vec<FieldError> {
    let ingress = meta::list_at(obj, &["status", "loadBalancer", "ingress"]);
    let told = |(i, one)| of_balancer(one, &format!("status.loadBalancer.ingress[{i}]"));
    ingress.iter().enumerate().flat_map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_rules;
    use serde_json::json;

    #[test]
    fn ingresses() {
        let path = json!({"path": "/a", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}});
        let ingress = json!({"spec": {"rules": [{"host": "example.com", "http": {"paths": [path]}}],
            "tls": [{"hosts": ["*.example.com"], "secretName": "s"}]}});
        let at = "spec.rules[0].http.paths[0]";
        let path = |field: &str| format!("/spec/rules/0/http/paths/0/{field}");
        assert_rules(
            &ingress,
            validate,
            &[
                (
                    json!({"/spec/rules": null}),
                    &[
                        "spec: Invalid value: null: either `defaultBackend` or `rules` must be specified",
                    ],
                ),
                (
                    json!({"/spec/rules/0/host": "10.0.0.1"}),
                    &[
                        "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
                    ],
                ),
                (
                    json!({"/spec/rules/0/host": "a.*.com"}),
                    &[
                        "spec.rules[0].host: Invalid value: \"a.*.com\": a wildcard DNS-1123 subdomain must start with '*.'…",
                    ],
                ),
                (
                    json!({"/spec/rules/0/http/paths": []}),
                    &["spec.rules[0].http.paths: Required value"],
                ),
                (
                    json!({path("path"): "/a/../b"}),
                    &[&format!(
                        "{at}.path: Invalid value: \"/a/../b\": must not contain '/../'"
                    )],
                ),
                (
                    json!({path("path"): "b/.", path("pathType"): "Exact"}),
                    &[
                        &format!("{at}.path: Invalid value: \"b/.\": must be an absolute path"),
                        &format!("{at}.path: Invalid value: \"b/.\": cannot end with '/.'"),
                    ],
                ),
                (
                    json!({path("path"): "", path("pathType"): "ImplementationSpecific"}),
                    &[],
                ),
                (
                    json!({path("path"): "x", path("pathType"): "Regex"}),
                    &[&format!(
                        "{at}.pathType: Unsupported value: \"Regex\": supported values: \"Exact\", \"ImplementationSpecific\", \"Prefix\""
                    )],
                ),
                (
                    json!({path("path"): "x", path("pathType"): null, path("backend"): {}}),
                    &[&format!(
                        "{at}.pathType: Required value: pathType must be specified"
                    )],
                ),
                (
                    json!({path("backend"): {}}),
                    &[&format!(
                        "{at}.backend: Invalid value: \"\": resource or service backend is required"
                    )],
                ),
                (
                    json!({path("backend/resource"): {}}),
                    &[&format!(
                        "{at}.backend: Invalid value: \"\": cannot set both resource and service backends"
                    )],
                ),
                (
                    json!({path("backend"): {"resource": {"apiGroup": "A", "kind": "K/"}}}),
                    &[
                        &format!(
                            "{at}.backend.resource.apiGroup: Invalid value: \"A\": a lowercase RFC 1123 subdomain…"
                        ),
                        &format!(
                            "{at}.backend.resource.kind: Invalid value: \"K/\": may not contain '/'"
                        ),
                        &format!("{at}.backend.resource.name: Required value: name is required"),
                    ],
                ),
                (
                    json!({path("backend/service"): {"name": "1s", "port": {}}}),
                    &[
                        &format!(
                            "{at}.backend.service.name: Invalid value: \"1s\": a DNS-1035 label must consist of…"
                        ),
                        &format!("{at}.backend: Required value: port name or number is required"),
                    ],
                ),
                (
                    json!({path("backend/service/port/name"): "http"}),
                    &[&format!(
                        "{at}.backend: Invalid value: \"\": cannot set both port name & port number"
                    )],
                ),
                (
                    json!({"/spec/tls/0": {"hosts": ["a b"], "secretName": "S"}, "/spec/ingressClassName": ""}),
                    &[
                        "spec.tls[0].hosts[0]: Invalid value: \"a b\": a lowercase RFC 1123 subdomain must consist of…",
                        "spec.tls[0].secretName: Invalid value: \"S\": a lowercase RFC 1123 subdomain must consist of…",
                        "spec.ingressClassName: Invalid value: \"\": a lowercase RFC 1123 subdomain must consist of…",
                    ],
                ),
            ],
        );
        assert_rules(
            &ingress,
            validate_create,
            &[(
                json!({"/metadata/annotations/kubernetes.io~1ingress.class": "a", "/spec/ingressClassName": "b"}),
                &[
                    "annotations.kubernetes.io/ingress.class: Invalid value: \"a\": must match `ingressClassName` when both are specified",
                ],
            )],
        );
        assert_rules(
            &ingress,
            |new| validate_status(new, &ingress),
            &[(
                json!({"/status/loadBalancer/ingress": [{"ip": "x"}, {"hostname": "a_b"}]}),
                &[
                    "status.loadBalancer.ingress[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                    "status.loadBalancer.ingress[1].hostname: Invalid value: \"a_b\": a lowercase RFC 1123 subdomain…",
                ],
            )],
        );
    }

    #[test]
    fn classes() {
        let class = json!({"spec": {"controller": "example.com/c", "parameters": {"kind": "K", "name": "n", "scope": "Cluster"}}});
        assert_rules(
            &class,
            validate_class,
            &[
                (
                    json!({"/spec/controller": ""}),
                    &["spec.controller: Required value"],
                ),
                (
                    json!({"/spec/controller": "c"}),
                    &[
                        "spec.controller: Invalid value: \"c\": must be a domain-prefixed path (such as \"acme.io/foo\")",
                    ],
                ),
                (
                    json!({"/spec/controller": "a.io/b c"}),
                    &[
                        "spec.controller: Invalid value: \"b c\": Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
                    ],
                ),
                (
                    json!({"/spec/parameters": {"scope": "Namespace"}}),
                    &[
                        "spec.parameters.kind: Required value: kind is required",
                        "spec.parameters.name: Required value: name is required",
                        "spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'",
                    ],
                ),
                (
                    json!({"/spec/parameters/scope": null}),
                    &["spec.parameters.scope: Required value"],
                ),
                (
                    json!({"/spec/parameters/namespace": "a"}),
                    &[
                        "spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'",
                    ],
                ),
            ],
        );
    }
}
