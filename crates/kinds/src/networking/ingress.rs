//! What Ingresses and their classes must hold to.

use api::{FieldError, meta, names};
use serde_json::{Value, json};

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
    if host.parse::<std::net::IpAddr>().is_ok() {
        return vec![FieldError::invalid(
            at,
            host,
            "must be a DNS name, not an IP address",
        )];
    }
    named(host_name(host), at, host)
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
    if matches!(kind, "Exact" | "Prefix") {
        let path = format!("{at}.path");
        for part in ["//", "/./", "/../", "%2f", "%2F"] {
            if value.contains(part) {
                let why = format!("must not contain '{part}'");
                errors.push(FieldError::invalid(&path, value, why));
            }
        }
        for end in ["/..", "/."] {
            if value.ends_with(end) {
                let why = format!("cannot end with '{end}'");
                errors.push(FieldError::invalid(&path, value, why));
            }
        }
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
        return if let Some(resource) = resource {
            let part = |field: &&str| meta::str_at(resource, &[field]).is_empty();
            let missing = ["kind", "name"].into_iter().filter(part);
            let missing = missing.map(|f| FieldError::required(format!("{at}.resource.{f}"), ""));
            missing.collect()
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
    let at = |field: &str| format!("spec.parameters.{field}");
    let text = |field: &str| meta::str_at(parameters, &[field]);
    let group = text("apiGroup");
    if !group.is_empty() {
        let why = names::dns1123_subdomain(group);
        errors.extend(named(why, &at("apiGroup"), group));
    }
    for field in ["kind", "name"] {
        if text(field).is_empty() {
            errors.push(FieldError::required(at(field), ""));
        } else {
            let why = names::path_segment(text(field));
            errors.extend(named(why, &at(field), text(field)));
        }
    }
    let scopes = &["Cluster", "Namespace"];
    errors.extend(one_of(text("scope"), at("scope"), scopes));
    let namespace = text("namespace");
    match text("scope") {
        "Namespace" if namespace.is_empty() => {
            let why = "`parameters.scope` is set to 'Namespace'";
            errors.push(FieldError::required(at("namespace"), why));
        }
        "Cluster" if !namespace.is_empty() => {
            let why = "`parameters.scope` is set to 'Cluster'";
            errors.push(FieldError::forbidden(at("namespace"), why));
        }
        _ => {}
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn everything_wrong_is_told() {
        let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
        let odd = json!({"spec": {"ingressClassName": "", "rules": [
            {"host": "10.0.0.1"},
            {"host": "a.*.com", "http": {"paths": [
                {"path": "/a/../b", "pathType": "Prefix", "backend": backend},
                {"path": "b", "pathType": "Exact", "backend": {"resource": {"kind": "K"}}},
                {"path": "", "backend": {"service": {"name": "1s", "port": {}}}}]}}],
            "tls": [{"hosts": ["*.example.com", "a b"], "secretName": "S"}]}});
        let begin = [
            "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
            "spec.rules[1].host: Invalid value: \"a.*.com\": a wildcard DNS-1123 subdomain must start with '*.'",
            "spec.rules[1].http.paths[0].path: Invalid value: \"/a/../b\": must not contain '/../'",
            "spec.rules[1].http.paths[1].path: Invalid value: \"b\": must be an absolute path",
            "spec.rules[1].http.paths[1].backend.resource.name: Required value",
            "spec.rules[1].http.paths[2].pathType: Required value: pathType must be specified",
            "spec.rules[1].http.paths[2].path: Invalid value: \"\": must be an absolute path",
            "spec.rules[1].http.paths[2].backend.service.name: Invalid value: \"1s\": a DNS-1035 label must consist of",
            "spec.rules[1].http.paths[2].backend: Required value: port name or number is required",
            "spec.tls[0].hosts[1]: Invalid value: \"a b\": a lowercase RFC 1123 subdomain must consist of",
            "spec.tls[0].secretName: Invalid value: \"S\": a lowercase RFC 1123 subdomain must consist of",
            "spec.ingressClassName: Invalid value: \"\": a lowercase RFC 1123 subdomain must consist of",
        ];
        let errors = all(&validate(&odd));
        assert_eq!(errors.len(), begin.len(), "{errors:#?}");
        for (error, begin) in errors.iter().zip(begin) {
            assert!(error.starts_with(begin), "{error}");
        }
    }

    #[test]
    fn classes() {
        let class = |spec: Value| all(&validate_class(&json!({"spec": spec})));
        assert_eq!(class(json!({"controller": "example.com/c"})), [""; 0]);
        assert_eq!(
            class(json!({"controller": "c", "parameters": {"kind": "K", "scope": "Namespace"}})),
            [
                "spec.controller: Invalid value: \"c\": must be a domain-prefixed path (such as \"acme.io/foo\")",
                "spec.parameters.name: Required value",
                "spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"
            ]
        );
        assert_eq!(class(json!({})), ["spec.controller: Required value"]);
    }
}
