//! Rules of a pod spec.

use std::collections::HashSet;

use api::{FieldError, meta, names};
use serde_json::{Map, Value};

use super::volumes::validate_volumes;
use crate::check::{self, NOT_NEGATIVE, named, one_of, one_of_if_set};
use crate::metadata::{validate_annotations, validate_labels};

/// Rules of a pod template at a path.
pub(crate) fn validate_template(template: Option<&Value>, at: &str) -> Vec<FieldError> {
    let empty = Value::Object(Map::new());
    let template = template.unwrap_or(&empty);
    let mut errors = validate_labels(
        meta::get(template, &["metadata", "labels"]),
        &format!("{at}.labels"),
    );
    errors.extend(validate_annotations(
        meta::get(template, &["metadata", "annotations"]),
        &format!("{at}.annotations"),
    ));
    errors.extend(validate_spec(
        template.get("spec").unwrap_or(&empty),
        &format!("{at}.spec"),
    ));
    errors
}

/// Rules of a pod spec at a path.
pub(super) fn validate_spec(spec: &Value, at: &str) -> Vec<FieldError> {
    let (volume_names, mut errors) =
        validate_volumes(meta::list_at(spec, &["volumes"]), &format!("{at}.volumes"));
    let containers = meta::list_at(spec, &["containers"]);
    if containers.is_empty() {
        errors.push(FieldError::required(format!("{at}.containers"), ""));
    }
    let mut scope = Scope {
        volumes: volume_names,
        host_network: meta::bool_at(spec, &["hostNetwork"]),
        names: HashSet::new(),
        host_ports: HashSet::new(),
    };
    for list in ["containers", "initContainers"] {
        for (i, container) in meta::list_at(spec, &[list]).iter().enumerate() {
            errors.extend(scope.container(
                container,
                &format!("{at}.{list}[{i}]"),
                list == "initContainers",
            ));
        }
    }
    errors.extend(one_of(
        meta::str_at(spec, &["restartPolicy"]),
        format!("{at}.restartPolicy"),
        &["Always", "OnFailure", "Never"],
    ));
    let dns = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    errors.extend(one_of(
        meta::str_at(spec, &["dnsPolicy"]),
        format!("{at}.dnsPolicy"),
        &dns,
    ));
    if meta::str_at(spec, &["dnsPolicy"]) == "None"
        && meta::list_at(spec, &["dnsConfig", "nameservers"]).is_empty()
    {
        errors.push(FieldError::required(
            format!("{at}.dnsConfig.nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        ));
    }
    errors.extend(validate_scalars(spec, at));
    errors.extend(validate_tolerations(
        meta::list_at(spec, &["tolerations"]),
        &format!("{at}.tolerations"),
    ));
    errors.extend(validate_affinity(
        spec.get("affinity"),
        &format!("{at}.affinity"),
    ));
    errors.extend(validate_spread(
        meta::list_at(spec, &["topologySpreadConstraints"]),
        &format!("{at}.topologySpreadConstraints"),
    ));
    errors
}

fn validate_scalars(spec: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = check::not_negative(spec, at, &["terminationGracePeriodSeconds"]);
    if let Some(n) = meta::int_at(spec, &["activeDeadlineSeconds"])
        .filter(|n| !(1..=i64::from(i32::MAX)).contains(n))
    {
        let detail = format!("must be between 1 and {}, inclusive", i32::MAX);
        errors.push(FieldError::invalid(
            format!("{at}.activeDeadlineSeconds"),
            n,
            detail,
        ));
    }
    type Rule = (&'static str, fn(&str) -> Vec<String>);
    let rules: [Rule; 6] = [
        ("serviceAccountName", names::dns1123_subdomain),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ];
    for (field, rule) in rules {
        let value = meta::str_at(spec, &[field]);
        if !value.is_empty() {
            errors.extend(named(rule(value), &format!("{at}.{field}"), value));
        }
    }
    errors.extend(validate_labels(
        spec.get("nodeSelector"),
        &format!("{at}.nodeSelector"),
    ));
    for (i, secret) in meta::list_at(spec, &["imagePullSecrets"])
        .iter()
        .enumerate()
    {
        if meta::str_at(secret, &["name"]).is_empty() {
            errors.push(FieldError::required(
                format!("{at}.imagePullSecrets[{i}].name"),
                "name must not be empty",
            ));
        }
    }
    errors
}

/// What the containers of one pod share.
struct Scope {
    volumes: HashSet<String>,
    host_network: bool,
    names: HashSet<String>,
    host_ports: HashSet<(String, String, i64)>,
}

impl Scope {
    fn container(&mut self, c: &Value, at: &str, init: bool) -> Vec<FieldError> {
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
        errors.extend(self.mounts(
            meta::list_at(c, &["volumeMounts"]),
            &format!("{at}.volumeMounts"),
        ));
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
        let sidecar = meta::str_at(c, &["restartPolicy"]) == "Always";
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            if let Some(value) = c.get(probe) {
                if init && !sidecar {
                    errors.push(FieldError::forbidden(
                        format!("{at}.{probe}"),
                        "may not be set for init containers without restartPolicy=Always",
                    ));
                } else {
                    errors.extend(validate_probe(
                        value,
                        &format!("{at}.{probe}"),
                        probe != "readinessProbe",
                    ));
                }
            }
        }
        errors.extend(validate_lifecycle(
            c.get("lifecycle"),
            &format!("{at}.lifecycle"),
            init && !sidecar,
        ));
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

    fn mounts(&self, mounts: &[Value], at: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut paths = HashSet::new();
        for (i, mount) in mounts.iter().enumerate() {
            let at = format!("{at}[{i}]");
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
            for field in ["subPath", "subPathExpr"] {
                errors.extend(local_path(
                    meta::str_at(mount, &[field]),
                    &format!("{at}.{field}"),
                ));
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

/// A relative path that stays below where it is used.
pub(super) fn local_path(path: &str, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if path.starts_with('/') {
        errors.push(FieldError::invalid(at, path, "must be a relative path"));
    }
    if path.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(at, path, "must not contain '..'"));
    }
    errors
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
        let at = format!("{at}.valueFrom");
        let sources = from.as_object().map_or(0, Map::len);
        if sources == 0 {
            errors.push(FieldError::invalid(&at, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"));
        } else if !meta::str_at(var, &["value"]).is_empty() {
            errors.push(FieldError::invalid(
                &at,
                "",
                "may not be specified when `value` is not empty",
            ));
        } else if sources > 1 {
            errors.push(FieldError::invalid(
                &at,
                "",
                "may not have more than one field specified at a time",
            ));
        }
        for reference in ["configMapKeyRef", "secretKeyRef"] {
            let Some(selector) = from.get(reference) else {
                continue;
            };
            for field in ["name", "key"] {
                if meta::str_at(selector, &[field]).is_empty() {
                    errors.push(FieldError::required(
                        format!("{at}.{reference}.{field}"),
                        "",
                    ));
                }
            }
        }
        if from
            .get("fieldRef")
            .is_some_and(|f| meta::str_at(f, &["fieldPath"]).is_empty())
        {
            errors.push(FieldError::required(format!("{at}.fieldRef.fieldPath"), ""));
        }
    }
    errors
}

fn validate_env_from(sources: &[Value], at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let refs: Vec<&str> = ["configMapRef", "secretRef"]
            .into_iter()
            .filter(|r| source.get(*r).is_some())
            .collect();
        match refs.as_slice() {
            [] => errors.push(FieldError::invalid(
                &at,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            [one] => {
                if meta::str_at(source, &[one, "name"]).is_empty() {
                    errors.push(FieldError::required(format!("{at}.{one}.name"), ""));
                }
            }
            _ => errors.push(FieldError::invalid(
                &at,
                "",
                "may not have more than one field specified at a time",
            )),
        }
    }
    errors
}

/// Requests and limits: not negative, requests within limits.
pub(super) fn validate_resources(resources: Option<&Value>, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let Some(resources) = resources else {
        return errors;
    };
    for what in ["limits", "requests"] {
        for (name, value) in meta::get(resources, &[what])
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            if check::quantity(resources, &[what, name]).is_some_and(|q| q.is_negative()) {
                errors.push(FieldError::invalid(
                    format!("{at}.{what}[{name}]"),
                    value.clone(),
                    NOT_NEGATIVE,
                ));
            }
            let standard = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
                || name.starts_with("hugepages-");
            if !standard && !name.contains('/') {
                errors.push(FieldError::invalid(
                    format!("{at}.{what}[{name}]"),
                    name.as_str(),
                    "must be a standard resource type or fully qualified",
                ));
                errors.push(FieldError::invalid(
                    format!("{at}.{what}[{name}]"),
                    name.as_str(),
                    "must be a standard resource for containers",
                ));
            }
        }
    }
    for (name, value) in meta::get(resources, &["requests"])
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let (request, limit) = (
            check::quantity(resources, &["requests", name]),
            check::quantity(resources, &["limits", name]),
        );
        let extended = name.contains('/') && !name.contains("kubernetes.io/");
        match (request, limit) {
            (Some(request), Some(limit)) if extended && request != limit => {
                errors.push(FieldError::invalid(
                    format!("{at}.requests"),
                    value.clone(),
                    format!("must be equal to {name} limit of {limit}"),
                ));
            }
            (Some(request), Some(limit)) if request > limit => {
                errors.push(FieldError::invalid(
                    format!("{at}.requests"),
                    value.clone(),
                    format!("must be less than or equal to {name} limit of {limit}"),
                ));
            }
            (Some(_), None) if extended => {
                errors.push(FieldError::required(
                    format!("{at}.limits"),
                    "Limit must be set for non overcommitable resources",
                ));
            }
            _ => {}
        }
    }
    errors
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

fn validate_lifecycle(lifecycle: Option<&Value>, at: &str, forbidden: bool) -> Vec<FieldError> {
    let Some(lifecycle) = lifecycle else {
        return Vec::new();
    };
    if forbidden {
        return vec![FieldError::forbidden(
            at,
            "may not be set for init containers without restartPolicy=Always",
        )];
    }
    ["postStart", "preStop"]
        .iter()
        .filter_map(|hook| {
            Some(validate_handler(
                lifecycle.get(*hook)?,
                &format!("{at}.{hook}"),
                false,
            ))
        })
        .flatten()
        .collect()
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

fn validate_tolerations(tolerations: &[Value], at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, t) in tolerations.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let (key, operator, value, effect) = (
            meta::str_at(t, &["key"]),
            meta::str_at(t, &["operator"]),
            meta::str_at(t, &["value"]),
            meta::str_at(t, &["effect"]),
        );
        if !key.is_empty() {
            errors.extend(named(names::qualified_name(key), &format!("{at}.key"), key));
        }
        if key.is_empty() && operator != "Exists" {
            errors.push(FieldError::invalid(format!("{at}.operator"), operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\""));
        }
        if t.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            errors.push(FieldError::invalid(
                format!("{at}.effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        match operator {
            "Exists" if !value.is_empty() => {
                errors.push(FieldError::invalid(
                    format!("{at}.operator"),
                    value,
                    "value must be empty when `operator` is 'Exists'",
                ));
            }
            "" | "Equal" | "Exists" | "Lt" | "Gt" => {}
            other => errors.push(FieldError::not_supported(
                format!("{at}.operator"),
                other,
                &["Equal", "Exists"],
            )),
        }
        errors.extend(one_of_if_set(
            effect,
            format!("{at}.effect"),
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
        ));
    }
    errors
}

fn validate_affinity(affinity: Option<&Value>, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let Some(affinity) = affinity else {
        return errors;
    };
    let required = [
        "nodeAffinity",
        "requiredDuringSchedulingIgnoredDuringExecution",
    ];
    if let Some(selector) = meta::get(affinity, &required)
        && meta::list_at(selector, &["nodeSelectorTerms"]).is_empty()
    {
        let path = format!("{at}.{}.nodeSelectorTerms", required.join("."));
        errors.push(FieldError::required(
            path,
            "must have at least one node selector term",
        ));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (i, term) in meta::list_at(affinity, &[kind, required[1]])
            .iter()
            .enumerate()
        {
            let path = format!("{at}.{kind}.{}[{i}]", required[1]);
            if meta::str_at(term, &["topologyKey"]).is_empty() {
                errors.push(FieldError::required(
                    format!("{path}.topologyKey"),
                    "can not be empty",
                ));
            }
            if let Some(selector) = term.get("labelSelector") {
                errors.extend(check::label_selector(
                    selector,
                    &format!("{path}.labelSelector"),
                ));
            }
        }
        for (i, weighted) in meta::list_at(
            affinity,
            &[kind, "preferredDuringSchedulingIgnoredDuringExecution"],
        )
        .iter()
        .enumerate()
        {
            let path = format!("{at}.{kind}.preferredDuringSchedulingIgnoredDuringExecution[{i}]");
            if let Some(w) = meta::int_at(weighted, &["weight"]).filter(|w| !(1..=100).contains(w))
            {
                errors.push(FieldError::invalid(
                    format!("{path}.weight"),
                    w,
                    "must be in the range 1-100",
                ));
            }
        }
    }
    errors
}

fn validate_spread(constraints: &[Value], at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, c) in constraints.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let skew = meta::int_at(c, &["maxSkew"]).unwrap_or(0);
        if skew <= 0 {
            errors.push(FieldError::invalid(
                format!("{at}.maxSkew"),
                skew,
                "must be greater than zero",
            ));
        }
        if meta::str_at(c, &["topologyKey"]).is_empty() {
            errors.push(FieldError::required(
                format!("{at}.topologyKey"),
                "can not be empty",
            ));
        }
        errors.extend(one_of(
            meta::str_at(c, &["whenUnsatisfiable"]),
            format!("{at}.whenUnsatisfiable"),
            &["DoNotSchedule", "ScheduleAnyway"],
        ));
    }
    errors
}
