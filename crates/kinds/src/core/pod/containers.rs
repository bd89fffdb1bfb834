//! Rules of the containers of a pod.

use std::collections::HashSet;

use api::{FieldError, Quantity, meta, names};
use serde_json::{Map, Value};

use super::security;
use super::told::{told_field, told_resource};
use crate::check::{self, NOT_NEGATIVE, named, one_of, one_of_if_set};
use crate::core::resources::{container_resource, is_huge_page, is_native, is_shared};
use crate::core::sources::descending;
use crate::metadata::masked;

/// How mounts reach from and into a container.
const PROPAGATIONS: &[&str] = &["Bidirectional", "HostToContainer", "None"];
/// Fields of a pod that its containers can be told.
const TOLD_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// What the containers of one pod share.
pub(super) struct Scope {
    volumes: HashSet<String>,
    host_network: bool,
    names: HashSet<String>,
    host_ports: HashSet<(String, String, i64)>,
}

impl Scope {
    /// A pod with volumes of these names, and no containers yet.
    pub(super) fn new(volumes: HashSet<String>, host_network: bool) -> Self {
        Self {
            volumes,
            host_network,
            names: HashSet::new(),
            host_ports: HashSet::new(),
        }
    }

    /// Every broken rule of the next container.
    pub(super) fn container(&mut self, c: &Value, at: &str, init: bool) -> Vec<FieldError> {
        let mut errors = self.identity(c, at);
        let policy = meta::str_at(c, &["terminationMessagePolicy"]);
        errors.extend(one_of(
            policy,
            format!("{at}.terminationMessagePolicy"),
            &["FallbackToLogsOnError", "File"],
        ));
        errors.extend(self.ports(meta::list_at(c, &["ports"]), &format!("{at}.ports")));
        errors.extend(validate_env(
            meta::list_at(c, &["env"]),
            &format!("{at}.env"),
        ));
        errors.extend(validate_env_from(
            meta::list_at(c, &["envFrom"]),
            &format!("{at}.envFrom"),
        ));
        errors.extend(self.mounts(c, &format!("{at}.volumeMounts")));
        errors.extend(security::of_container(c, at));
        errors.extend(one_of(
            meta::str_at(c, &["imagePullPolicy"]),
            format!("{at}.imagePullPolicy"),
            &["Always", "IfNotPresent", "Never"],
        ));
        errors.extend(validate_resources(
            c.get("resources"),
            &format!("{at}.resources"),
        ));
        errors.extend(one_of_if_set(
            meta::str_at(c, &["restartPolicy"]),
            format!("{at}.restartPolicy"),
            &["Always", "OnFailure", "Never"],
        ));
        errors.extend(validate_hooks(
            c,
            at,
            init && meta::str_at(c, &["restartPolicy"]) != "Always",
        ));
        errors
    }

    /// The name, which no other container has, and the image.
    fn identity(&mut self, c: &Value, at: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let name = meta::str_at(c, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else {
            errors.extend(named(
                names::dns1123_label(name),
                &format!("{at}.name"),
                name,
            ));
            if !self.names.insert(name.to_owned()) {
                errors.push(FieldError::duplicate(format!("{at}.name"), name));
            }
        }
        let image = meta::str_at(c, &["image"]);
        if image.is_empty() {
            errors.push(FieldError::required(format!("{at}.image"), ""));
        } else if image.trim() != image {
            errors.push(FieldError::invalid(
                format!("{at}.image"),
                image,
                "must not have leading or trailing whitespace",
            ));
        }
        errors
    }

    fn ports(&mut self, ports: &[Value], at: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut seen = HashSet::new();
        for (i, p) in ports.iter().enumerate() {
            let at = format!("{at}[{i}]");
            let (name, protocol) = (meta::str_at(p, &["name"]), meta::str_at(p, &["protocol"]));
            let (number, host) = (
                meta::int_at(p, &["containerPort"]).unwrap_or(0),
                meta::int_at(p, &["hostPort"]).unwrap_or(0),
            );
            if !name.is_empty() {
                errors.extend(named(names::port_name(name), &format!("{at}.name"), name));
                if !seen.insert(name) {
                    errors.push(FieldError::duplicate(format!("{at}.name"), name));
                }
            }
            if number == 0 {
                errors.push(FieldError::required(format!("{at}.containerPort"), ""));
            } else {
                errors.extend(check::port(number, format!("{at}.containerPort")));
            }
            if host != 0 {
                errors.extend(check::port(host, format!("{at}.hostPort")));
                if self.host_network && host != number {
                    errors.push(FieldError::invalid(
                        format!("{at}.hostPort"),
                        host,
                        "must match `containerPort` when `hostNetwork` is true",
                    ));
                }
                let key = (
                    meta::str_at(p, &["hostIP"]).to_owned(),
                    protocol.to_owned(),
                    host,
                );
                if !self.host_ports.insert(key) {
                    errors.push(FieldError::duplicate(
                        format!("{at}.hostPort"),
                        format!("{protocol}/{host}"),
                    ));
                }
            }
            errors.extend(one_of(
                protocol,
                format!("{at}.protocol"),
                &["SCTP", "TCP", "UDP"],
            ));
        }
        errors
    }

    fn mounts(&self, container: &Value, list: &str) -> Vec<FieldError> {
        let mounts = meta::list_at(container, &["volumeMounts"]);
        let mut errors = Vec::new();
        let mut paths = HashSet::new();
        for (i, mount) in mounts.iter().enumerate() {
            let at = format!("{list}[{i}]");
            let (name, path) = (
                meta::str_at(mount, &["name"]),
                meta::str_at(mount, &["mountPath"]),
            );
            if name.is_empty() {
                errors.push(FieldError::required(format!("{at}.name"), ""));
            }
            if !self.volumes.contains(name) {
                errors.push(FieldError::not_found(format!("{at}.name"), name));
            }
            if path.is_empty() {
                errors.push(FieldError::required(format!("{at}.mountPath"), ""));
            }
            if !paths.insert(path) {
                errors.push(FieldError::invalid(
                    format!("{at}.mountPath"),
                    path,
                    "must be unique",
                ));
            }
            let propagation = meta::str_at(mount, &["mountPropagation"]);
            let at_propagation = format!("{list}.mountPropagation");
            if propagation == "Bidirectional" && !security::is_privileged(container) {
                let why =
                    "Bidirectional mount propagation is available only to privileged containers";
                errors.push(FieldError::forbidden(at_propagation, why));
            } else {
                errors.extend(one_of_if_set(propagation, at_propagation, PROPAGATIONS));
            }
            for field in ["subPath", "subPathExpr"] {
                // Upstream leaves out which mount it is.
                let path = meta::str_at(mount, &[field]);
                errors.extend(descending(path, &format!("{list}.{field}")));
            }
            if !meta::str_at(mount, &["subPath"]).is_empty()
                && !meta::str_at(mount, &["subPathExpr"]).is_empty()
            {
                errors.push(FieldError::invalid(
                    format!("{at}.subPathExpr"),
                    meta::str_at(mount, &["subPathExpr"]),
                    "subPathExpr and subPath are mutually exclusive",
                ));
            }
        }
        errors
    }
}

fn validate_env(env: &[Value], at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, var) in env.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let name = meta::str_at(var, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else {
            errors.extend(named(
                names::env_var_name(name),
                &format!("{at}.name"),
                name,
            ));
        }
        let Some(from) = var.get("valueFrom") else {
            continue;
        };
        errors.extend(validate_value_from(from, var, &format!("{at}.valueFrom")));
    }
    errors
}

fn validate_value_from(from: &Value, var: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(field) = from.get("fieldRef") {
        errors.extend(told_field(field, TOLD_FIELDS, &format!("{at}.fieldRef")));
    }
    if let Some(resource) = from.get("resourceFieldRef") {
        let at = format!("{at}.resourceFieldRef");
        errors.extend(told_resource(resource, false, &at));
    }
    for reference in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(selector) = from.get(reference) {
            errors.extend(key_selector(selector, &format!("{at}.{reference}")));
        }
    }
    let sources = from.as_object().map_or(0, Map::len);
    let why = if sources == 0 {
        "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
    } else if !meta::str_at(var, &["value"]).is_empty() {
        "may not be specified when `value` is not empty"
    } else if sources > 1 {
        "may not have more than one field specified at a time"
    } else {
        return errors;
    };
    errors.push(FieldError::invalid(at, "", why));
    errors
}

/// A key of a ConfigMap or Secret.
fn key_selector(selector: &Value, at: &str) -> Vec<FieldError> {
    let (name, key) = (
        meta::str_at(selector, &["name"]),
        meta::str_at(selector, &["key"]),
    );
    let mut errors = named(names::dns1123_subdomain(name), &format!("{at}.name"), name);
    let at = format!("{at}.key");
    if key.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else {
        errors.extend(named(names::config_map_key(key), &at, key));
    }
    errors
}

fn validate_env_from(sources: &[Value], at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        let own = format!("{at}[{i}]");
        let prefix = meta::str_at(source, &["prefix"]);
        if !prefix.is_empty() {
            let why = names::env_var_name(prefix);
            errors.extend(named(why, &format!("{own}.prefix"), prefix));
        }
        let refs = ["configMapRef", "secretRef"];
        let given: Vec<&str> = refs
            .into_iter()
            .filter(|r| source.get(*r).is_some())
            .collect();
        for reference in &given {
            let name = meta::str_at(source, &[reference, "name"]);
            let at = format!("{own}.{reference}.name");
            if name.is_empty() {
                errors.push(FieldError::required(at, ""));
            } else {
                let why = masked(name, true, names::dns1123_subdomain);
                errors.extend(named(why, &at, name));
            }
        }
        // Upstream says this of the whole list.
        let why = match given.len() {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        errors.push(FieldError::invalid(at, "", why));
    }
    errors
}

/// Probes and lifecycle hooks; `forbidden` for init containers that run to their end.
fn validate_hooks(c: &Value, at: &str, forbidden: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let refusal = "may not be set for init containers without restartPolicy=Always";
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let at = format!("{at}.{probe}");
        match c.get(probe) {
            Some(_) if forbidden => errors.push(FieldError::forbidden(at, refusal)),
            Some(value) => errors.extend(validate_probe(value, &at, probe != "readinessProbe")),
            None => {}
        }
    }
    let at = format!("{at}.lifecycle");
    match c.get("lifecycle") {
        Some(_) if forbidden => errors.push(FieldError::forbidden(at, refusal)),
        Some(lifecycle) => errors.extend(validate_lifecycle(lifecycle, &at)),
        None => {}
    }
    errors
}

/// Requests and limits: not negative, of known or qualified resources, requests within limits.
pub(crate) fn validate_resources(resources: Option<&Value>, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let Some(resources) = resources else {
        return errors;
    };
    let entries = |what: &str| {
        resources
            .get(what)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
    };
    for what in ["limits", "requests"] {
        for (name, value) in entries(what) {
            let own = format!("{at}.{what}[{name}]");
            errors.extend(container_resource(name, &own));
            let amount = check::quantity(resources, &[what, name]);
            if amount.is_some_and(|q| q.is_negative()) {
                errors.push(FieldError::invalid(&own, value.clone(), NOT_NEGATIVE));
            }
            if !is_native(name) && amount.is_some_and(|q| !q.is_integer()) {
                let why = "must be an integer";
                errors.push(FieldError::invalid(&own, value.clone(), why));
            }
            if what == "requests" {
                errors.extend(within_limit(resources, name, at));
            }
            if let Some(amount) = amount.filter(|q| !of_whole_pages(name, q)) {
                let why = format!("{amount} is not positive integer multiple of {name}");
                errors.push(FieldError::invalid(own, amount.to_string(), why));
            }
        }
    }
    let any = |wanted: fn(&str) -> bool| {
        let mut all = entries("limits").chain(entries("requests"));
        all.any(|(name, _)| wanted(name))
    };
    if any(is_huge_page) && !any(|name| matches!(name, "cpu" | "memory")) {
        let why = "HugePages require cpu or memory";
        errors.push(FieldError::forbidden(at, why));
    }
    errors
}

/// Whether the amount of a resource is, for pages of a size, so many whole pages.
fn of_whole_pages(name: &str, amount: &Quantity) -> bool {
    let Some(size) = name.strip_prefix("hugepages-") else {
        return true;
    };
    let size = size.parse::<Quantity>().map_or(0, |q| q.value());
    size > 0 && amount.is_integer() && amount.value() % size == 0
}

/// A request must not exceed its limit; of what cannot be shared it must be the limit.
fn within_limit(resources: &Value, name: &str, at: &str) -> Option<FieldError> {
    let request = check::quantity(resources, &["requests", name])?;
    let limit = check::quantity(resources, &["limits", name]);
    let invalid = |detail: String| {
        Some(FieldError::invalid(
            format!("{at}.requests"),
            request.to_string(),
            detail,
        ))
    };
    match limit {
        Some(limit) if !is_shared(name) && request != limit => {
            invalid(format!("must be equal to {name} limit of {limit}"))
        }
        Some(limit) if request > limit => invalid(format!(
            "must be less than or equal to {name} limit of {limit}"
        )),
        None if !is_shared(name) => Some(FieldError::required(
            format!("{at}.limits"),
            "Limit must be set for non overcommitable resources",
        )),
        _ => None,
    }
}

fn validate_probe(probe: &Value, at: &str, success_is_one: bool) -> Vec<FieldError> {
    let mut errors = validate_handler(probe, at, true);
    errors.extend(check::not_negative(
        probe,
        at,
        &[
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ],
    ));
    if success_is_one
        && let Some(n) = meta::int_at(probe, &["successThreshold"]).filter(|n| *n != 1)
    {
        errors.push(FieldError::invalid(
            format!("{at}.successThreshold"),
            n,
            "must be 1",
        ));
    }
    if let Some(n) = meta::int_at(probe, &["terminationGracePeriodSeconds"]).filter(|n| *n <= 0) {
        errors.push(FieldError::invalid(
            format!("{at}.terminationGracePeriodSeconds"),
            n,
            "must be greater than 0",
        ));
    }
    errors
}

fn validate_lifecycle(lifecycle: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for hook in ["postStart", "preStop"] {
        if let Some(handler) = lifecycle.get(hook) {
            errors.extend(validate_handler(handler, &format!("{at}.{hook}"), false));
        }
    }
    errors
}

fn validate_handler(handler: &Value, at: &str, probe: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut count = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let Some(action) = handler.get(kind) else {
            continue;
        };
        let at = format!("{at}.{kind}");
        count += 1;
        if count > 1 {
            errors.push(FieldError::forbidden(
                &at,
                "may not specify more than 1 handler type",
            ));
            continue;
        }
        match kind {
            "exec" if meta::list_at(action, &["command"]).is_empty() => {
                errors.push(FieldError::required(format!("{at}.command"), ""))
            }
            "httpGet" => {
                if meta::str_at(action, &["path"]).is_empty() {
                    errors.push(FieldError::required(format!("{at}.path"), ""));
                }
                errors.extend(check::port_or_name(
                    action.get("port").unwrap_or(&Value::Null),
                    &format!("{at}.port"),
                ));
                errors.extend(one_of(
                    meta::str_at(action, &["scheme"]),
                    format!("{at}.scheme"),
                    &["HTTP", "HTTPS"],
                ));
            }
            "tcpSocket" => errors.extend(check::port_or_name(
                action.get("port").unwrap_or(&Value::Null),
                &format!("{at}.port"),
            )),
            "grpc" if probe => errors.extend(check::port(
                meta::int_at(action, &["port"]).unwrap_or(0),
                format!("{at}.port"),
            )),
            _ => {}
        }
    }
    if count == 0 {
        errors.push(FieldError::required(at, "must specify a handler type"));
    }
    errors
}
