//! What a Service must hold to.

use std::collections::HashSet;

use api::{FieldError, meta, names};
use serde_json::Value;

use super::{NONE, has_node_ports};
use crate::addresses::{special, valid_ip, valid_range};
use crate::cells::text;
use crate::check::{self, named, one_of, port};
use crate::metadata::validate_labels;

/// Longest time that a client sticks to an endpoint, in seconds.
const AFFINITY_SECONDS_MAX: i64 = 86_400;
/// Most addresses of a service: one of each family.
const ADDRESSES_MAX: usize = 2;
const LOCAL_OR_CLUSTER: &[&str] = &["Cluster", "Local"];
const BALANCER_ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
const RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const MODE_ANNOTATION: &str = "service.kubernetes.io/topology-mode";
const HINTS_ANNOTATION: &str = "service.kubernetes.io/topology-aware-hints";

/// Whether the service has no address of its own.
pub(super) fn is_headless(service: &Value) -> bool {
    matches!(meta::list_at(service, &["spec", "clusterIPs"]), [only] if only == NONE)
}

/// Whether the service is reached from outside of the cluster.
pub(super) fn is_external(spec: &Value) -> bool {
    let kind = meta::str_at(spec, &["type"]);
    let addresses = !meta::list_at(spec, &["externalIPs"]).is_empty();
    has_node_ports(kind) || (kind == "ClusterIP" && addresses)
}

/// Whether a port tells which nodes have endpoints.
pub(super) fn needs_health_check(spec: &Value) -> bool {
    meta::str_at(spec, &["type"]) == "LoadBalancer"
        && meta::str_at(spec, &["externalTrafficPolicy"]) == "Local"
}

/// Every broken rule.
pub(super) fn validate(service: &Value) -> Vec<FieldError> {
    let spec = service.get("spec").unwrap_or(&Value::Null);
    let headless = is_headless(service);
    let kind = meta::str_at(spec, &["type"]);
    let list = meta::list_at(spec, &["ports"]);
    let mut errors: Vec<FieldError> = topology(service).into_iter().collect();
    if list.is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if has_node_ports(kind) && headless {
        let why = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid("spec.clusterIPs[0]", NONE, why));
    }
    if kind == "ExternalName" {
        errors.extend(external_name(spec));
    }
    errors.extend(ports(list));
    errors.extend(validate_labels(spec.get("selector"), "spec.selector"));
    errors.extend(affinity(spec));
    errors.extend(cluster_ips(service));
    errors.extend(external_ips(spec));
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    errors.extend(one_of(kind, "spec.type", &kinds));
    errors.extend(port_numbers(list, kind));
    errors.extend(source_ranges(service));
    errors.extend(balancer(spec));
    errors.extend(traffic(spec));
    errors
}

/// The older and the newer annotation say the same.
fn topology(service: &Value) -> Option<FieldError> {
    let mode = meta::annotation(service, MODE_ANNOTATION)?;
    let hints = meta::annotation(service, HINTS_ANNOTATION)?;
    let why = format!("must match annotations[{HINTS_ANNOTATION}] when both are specified");
    let at = format!("metadata.annotations[{MODE_ANNOTATION}]");
    (mode != hints).then(|| FieldError::invalid(at, mode, why))
}

fn external_name(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let set = match spec.get(field) {
            None | Some(Value::Null) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(_) => true,
        };
        if set {
            let why = "may not be set for ExternalName services";
            errors.push(FieldError::forbidden(format!("spec.{field}"), why));
        }
    }
    let name = meta::str_at(spec, &["externalName"]);
    let bare = name.strip_suffix('.').unwrap_or(name);
    let at = "spec.externalName";
    if bare.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else {
        errors.extend(named(names::dns1123_subdomain(bare), at, bare));
    }
    errors
}

fn ports(list: &[Value]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = HashSet::new();
    for (i, p) in list.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        let name = meta::str_at(p, &["name"]);
        let path = format!("{at}.name");
        if !name.is_empty() {
            errors.extend(named(names::dns1123_label(name), &path, name));
            if !seen.insert(name) {
                errors.push(FieldError::duplicate(path, name));
            }
        } else if list.len() > 1 {
            errors.push(FieldError::required(path, ""));
        }
        let number = meta::int_at(p, &["port"]).unwrap_or(0);
        errors.extend(port(number, format!("{at}.port")));
        errors.extend(one_of(
            meta::str_at(p, &["protocol"]),
            format!("{at}.protocol"),
            &["SCTP", "TCP", "UDP"],
        ));
        // None is the port itself.
        if let Some(target) = p.get("targetPort") {
            errors.extend(check::port_or_name(target, &format!("{at}.targetPort")));
        }
        if let Some(protocol) = p.get("appProtocol").and_then(Value::as_str) {
            let at = format!("{at}.appProtocol");
            errors.extend(named(names::qualified_name(protocol), &at, protocol));
        }
    }
    errors
}

/// Numbers of ports: where node ports may be, and that none is there twice.
fn port_numbers(list: &[Value], kind: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let number = |p: &Value, field: &str| meta::int_at(p, &[field]).unwrap_or(0);
    let node_port = |i: usize| format!("spec.ports[{i}].nodePort");
    let on_nodes = || {
        list.iter()
            .enumerate()
            .filter(|(_, p)| number(p, "nodePort") != 0)
    };
    if kind == "ClusterIP" {
        let why = "may not be used when `type` is 'ClusterIP'";
        errors.extend(on_nodes().map(|(i, _)| FieldError::forbidden(node_port(i), why)));
    }
    let mut seen = HashSet::new();
    for (i, p) in on_nodes() {
        let number = number(p, "nodePort");
        if !seen.insert((meta::str_at(p, &["protocol"]), number)) {
            errors.push(FieldError::duplicate(node_port(i), number));
        }
    }
    let mut seen = HashSet::new();
    for (i, p) in list.iter().enumerate() {
        let (protocol, number) = (meta::str_at(p, &["protocol"]), number(p, "port"));
        if !seen.insert((protocol, number)) {
            let shown = [
                ("Name", "".into()),
                ("Protocol", protocol.into()),
                ("AppProtocol", Value::Null),
                ("Port", number.into()),
                ("TargetPort", 0.into()),
                ("NodePort", 0.into()),
            ];
            let error = FieldError::duplicate(format!("spec.ports[{i}]"), Value::Null);
            errors.push(error.showing(&shown));
        }
    }
    errors
}

fn affinity(spec: &Value) -> Vec<FieldError> {
    let kind = meta::str_at(spec, &["sessionAffinity"]);
    let mut errors: Vec<FieldError> = one_of(kind, "spec.sessionAffinity", &["ClientIP", NONE])
        .into_iter()
        .collect();
    let at = "spec.sessionAffinityConfig";
    let config = spec.get("sessionAffinityConfig");
    if kind == NONE && config.is_some() {
        let why = "must not be set when session affinity is None";
        errors.push(FieldError::forbidden(at, why));
    }
    if kind != "ClientIP" {
        return errors;
    }
    let required = |at: String| FieldError::required(at, "when session affinity type is ClientIP");
    let timeout = format!("{at}.clientIP.timeoutSeconds");
    let client = config.and_then(|c| c.get("clientIP"));
    let seconds = client.and_then(|c| meta::int_at(c, &["timeoutSeconds"]));
    errors.extend(match (config, client, seconds) {
        (None, ..) => Some(required(at.to_owned())),
        (_, None, _) => Some(required(format!("{at}.clientIP"))),
        (.., None) => Some(required(timeout)),
        (.., Some(n)) if !(1..=AFFINITY_SECONDS_MAX).contains(&n) => {
            let why = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
            Some(FieldError::invalid(timeout, n, why))
        }
        _ => None,
    });
    errors
}

/// `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`.
fn cluster_ips(service: &Value) -> Vec<FieldError> {
    let spec = service.get("spec").unwrap_or(&Value::Null);
    if meta::str_at(spec, &["type"]) == "ExternalName" {
        return Vec::new();
    }
    let at = "spec.clusterIPs";
    let all = meta::list_at(spec, &["clusterIPs"]);
    let refuse = |why: &str| FieldError::invalid(at, all.to_vec(), why);
    let single = text(spec, &["clusterIP"]);
    let mut errors = Vec::new();
    match all.first() {
        None if !single.is_empty() => errors.push(FieldError::required(at, "")),
        Some(_) if single.is_empty() => {
            errors.push(refuse("must be empty when `clusterIP` is not specified"));
        }
        Some(first) if *first != single => {
            errors.push(refuse("first value must match `clusterIP`"));
        }
        _ => {}
    }
    errors.extend(families(spec));
    let mut odd = false;
    for (i, ip) in all.iter().filter_map(Value::as_str).enumerate() {
        let wrong = match (i, ip) {
            (0, NONE) if all.len() > 1 => vec![refuse("'None' must be the first and only value")],
            (0, NONE) => Vec::new(),
            _ => valid_ip(ip, &format!("{at}[{i}]")),
        };
        odd |= !wrong.is_empty();
        errors.extend(wrong);
    }
    if all.len() > ADDRESSES_MAX {
        errors.push(refuse("may only hold up to 2 values"));
    }
    if odd {
        return errors;
    }
    let both = all.iter().any(is_v6) && !all.iter().all(is_v6);
    if all.len() > 1 && !both {
        let why = "may specify no more than one IP for each IP family";
        errors.push(refuse(why));
    }
    errors
}

/// Addresses that are not of the families that the service asks for. What is stored is taken as it is: the
/// families of an address that was chosen here are those of the cluster.
pub(super) fn unlike_families(service: &Value) -> Vec<FieldError> {
    let spec = service.get("spec").unwrap_or(&Value::Null);
    if is_headless(service) || meta::str_at(spec, &["type"]) == "ExternalName" {
        return Vec::new();
    }
    let wanted = meta::list_at(spec, &["ipFamilies"]);
    let given = meta::list_at(spec, &["clusterIPs"]);
    let mut errors = Vec::new();
    for (i, (ip, family)) in given.iter().zip(wanted).enumerate() {
        let fits = if is_v6(ip) { "IPv6" } else { "IPv4" };
        if let Some(family) = family
            .as_str()
            .filter(|f| f.starts_with("IPv") && *f != fits)
        {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            let at = format!("spec.clusterIPs[{i}]");
            errors.push(FieldError::invalid(at, ip.clone(), why));
        }
    }
    errors
}

fn is_v6(ip: &Value) -> bool {
    ip.as_str().is_some_and(|ip| ip.contains(':'))
}

fn families(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let all = meta::list_at(spec, &["ipFamilies"]);
    for (i, family) in all.iter().enumerate() {
        let at = format!("spec.ipFamilies[{i}]");
        let name = family.as_str().unwrap_or_default();
        let known = ["IPv4", "IPv6"];
        if !known.contains(&name) {
            errors.push(FieldError::not_supported(&at, name, &known));
        }
        if all[..i].contains(family) {
            errors.push(FieldError::duplicate(at, name));
        }
    }
    errors.extend(check::one_of_if_set(
        meta::str_at(spec, &["ipFamilyPolicy"]),
        "spec.ipFamilyPolicy",
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
    ));
    errors
}

fn external_ips(spec: &Value) -> Vec<FieldError> {
    let all = meta::list_at(spec, &["externalIPs"]).iter();
    let told = |(i, ip): (usize, &str)| {
        let at = format!("spec.externalIPs[{i}]");
        let wrong = valid_ip(ip, &at);
        if wrong.is_empty() {
            special(ip, &at)
        } else {
            wrong
        }
    };
    all.filter_map(Value::as_str)
        .enumerate()
        .flat_map(told)
        .collect()
}

/// Who may use a load balancer: a field, or else an annotation.
fn source_ranges(service: &Value) -> Vec<FieldError> {
    let spec = service.get("spec").unwrap_or(&Value::Null);
    let is_balancer = meta::str_at(spec, &["type"]) == "LoadBalancer";
    let mut errors = Vec::new();
    let ranges = meta::list_at(spec, &["loadBalancerSourceRanges"]);
    if !ranges.is_empty() {
        // Upstream writes the field with a capital in errors.
        let at = "spec.LoadBalancerSourceRanges";
        if !is_balancer {
            errors.push(FieldError::forbidden(at, BALANCER_ONLY));
        }
        for (i, range) in ranges.iter().filter_map(Value::as_str).enumerate() {
            errors.extend(valid_range(range.trim(), &format!("{at}[{i}]")));
        }
    } else if let Some(ranges) = meta::annotation(service, RANGES_ANNOTATION) {
        let at = format!("metadata.annotations[{RANGES_ANNOTATION}]");
        if !is_balancer {
            errors.push(FieldError::forbidden(&at, BALANCER_ONLY));
        }
        let ranges = ranges.trim();
        for range in ranges.split(',').filter(|_| !ranges.is_empty()) {
            errors.extend(valid_range(range.trim(), &at));
        }
    }
    errors
}

fn balancer(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = "spec.loadBalancerClass";
    let class = spec.get("loadBalancerClass").and_then(Value::as_str);
    let allocate = spec.get("allocateLoadBalancerNodePorts").is_some();
    if meta::str_at(spec, &["type"]) == "LoadBalancer" {
        if !allocate {
            errors.push(FieldError::required("allocateLoadBalancerNodePorts", ""));
        }
        if let Some(class) = class {
            errors.extend(named(names::qualified_name(class), at, class));
        }
        return errors;
    }
    if allocate {
        let at = "spec.allocateLoadBalancerNodePorts";
        errors.push(FieldError::forbidden(at, BALANCER_ONLY));
    }
    if class.is_some() {
        errors.push(FieldError::forbidden(at, BALANCER_ONLY));
    }
    errors
}

/// Where traffic goes. The port of health checks is chosen later if there is none.
fn traffic(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = "spec.externalTrafficPolicy";
    let policy = meta::str_at(spec, &["externalTrafficPolicy"]);
    if is_external(spec) {
        errors.extend(one_of(policy, at, LOCAL_OR_CLUSTER));
    } else if !policy.is_empty() {
        let why = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid(at, policy, why));
    }
    let at = "spec.healthCheckNodePort";
    if let Some(number) = meta::int_at(spec, &["healthCheckNodePort"]).filter(|n| *n != 0) {
        if needs_health_check(spec) {
            errors.extend(port(number, at));
        } else {
            let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(FieldError::invalid(at, number, why));
        }
    }
    let at = "spec.internalTrafficPolicy";
    match spec.get("internalTrafficPolicy").and_then(Value::as_str) {
        Some(policy) if !LOCAL_OR_CLUSTER.contains(&policy) => {
            errors.push(FieldError::not_supported(at, policy, LOCAL_OR_CLUSTER));
        }
        None if super::has_cluster_ip(meta::str_at(spec, &["type"])) => {
            errors.push(FieldError::required(at, ""));
        }
        _ => {}
    }
    if let Some(wanted) = spec.get("trafficDistribution").and_then(Value::as_str) {
        let known = ["PreferClose", "PreferSameNode", "PreferSameZone"];
        if !known.contains(&wanted) {
            let at = "spec.trafficDistribution";
            errors.push(FieldError::not_supported(at, wanted, &known));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_rules;
    use serde_json::json;

    fn service() -> Value {
        json!({"metadata": {"name": "s"}, "spec": {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "a", "port": 53, "protocol": "TCP", "targetPort": 53}, {"name": "b", "port": 53, "protocol": "UDP", "targetPort": "dns"}]}})
    }

    #[test]
    fn ports_and_names() {
        assert_rules(
            &service(),
            validate,
            &[
                (json!({"/spec/ports": []}), &["spec.ports: Required value"]),
                (
                    json!({"/spec/ports": [], "/spec/clusterIP": "None", "/spec/clusterIPs": ["None"]}),
                    &[],
                ),
                (
                    json!({"/spec/ports/0": {"port": 0, "protocol": "ICMP", "targetPort": "A_", "appProtocol": "a b"}}),
                    &[
                        "spec.ports[0].name: Required value",
                        "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                        "spec.ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                        "spec.ports[0].targetPort: Invalid value: \"A_\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
                        "spec.ports[0].targetPort: Invalid value: \"A_\": must contain at least one letter (a-z)",
                        "spec.ports[0].appProtocol: Invalid value: \"a b\": name part must consist of…",
                    ],
                ),
                (
                    json!({"/spec/ports/1": {"name": "a", "port": 53, "protocol": "TCP", "nodePort": 30000}}),
                    &[
                        "spec.ports[1].name: Duplicate value: \"a\"",
                        "spec.ports[1].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
                        "spec.ports[1]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":53,\"TargetPort\":0,\"NodePort\":0}",
                    ],
                ),
                (
                    json!({"/spec/type": "Odd"}),
                    &[
                        "spec.type: Unsupported value: \"Odd\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
                    ],
                ),
                (
                    json!({"/spec/sessionAffinity": "ClientIP"}),
                    &[
                        "spec.sessionAffinityConfig: Required value: when session affinity type is ClientIP",
                    ],
                ),
                (
                    json!({"/spec/sessionAffinity": "ClientIP", "/spec/sessionAffinityConfig/clientIP/timeoutSeconds": 86401}),
                    &[
                        "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400",
                    ],
                ),
                (
                    json!({"/metadata/annotations": {MODE_ANNOTATION: "Auto", HINTS_ANNOTATION: "Disabled"}}),
                    &[
                        "metadata.annotations[service.kubernetes.io/topology-mode]: Invalid value: \"Auto\": must match annotations[service.kubernetes.io/topology-aware-hints] when both are specified",
                    ],
                ),
            ],
        );
    }

    #[test]
    fn addresses() {
        assert_rules(
            &service(),
            validate,
            &[
                (
                    json!({"/spec/clusterIPs": []}),
                    &["spec.clusterIPs: Required value"],
                ),
                (
                    json!({"/spec/clusterIP": "10.0.0.2"}),
                    &[
                        "spec.clusterIPs: Invalid value: [\"10.0.0.1\"]: first value must match `clusterIP`",
                    ],
                ),
                (
                    json!({"/spec/clusterIP": null}),
                    &[
                        "spec.clusterIPs: Invalid value: [\"10.0.0.1\"]: must be empty when `clusterIP` is not specified",
                    ],
                ),
                (
                    json!({"/spec/clusterIPs": ["10.0.0.1", "10.0.0.2"]}),
                    &[
                        "spec.clusterIPs: Invalid value: [\"10.0.0.1\",\"10.0.0.2\"]: may specify no more than one IP for each IP family",
                    ],
                ),
                (
                    json!({"/spec/clusterIP": "None", "/spec/clusterIPs": ["None", "x"]}),
                    &[
                        "spec.clusterIPs: Invalid value: [\"None\",\"x\"]: 'None' must be the first and only value",
                        "spec.clusterIPs[1]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                    ],
                ),
                (
                    json!({"/spec/ipFamilies": ["IPv6", "IPv6", "IPv5"], "/spec/ipFamilyPolicy": "Some"}),
                    &[
                        "spec.ipFamilies[1]: Duplicate value: \"IPv6\"",
                        "spec.ipFamilies[2]: Unsupported value: \"IPv5\": supported values: \"IPv4\", \"IPv6\"",
                        "spec.ipFamilyPolicy: Unsupported value: \"Some\": supported values: \"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"",
                    ],
                ),
                (
                    json!({"/spec/externalIPs": ["x", "127.0.0.1"], "/spec/externalTrafficPolicy": "Cluster"}),
                    &[
                        "spec.externalIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                        "spec.externalIPs[1]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                    ],
                ),
                (
                    json!({"/spec/type": "ExternalName", "/spec/externalName": "a_b."}),
                    &[
                        "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
                        "spec.ipFamilies: Forbidden: may not be set for ExternalName services",
                        "spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services",
                        "spec.externalName: Invalid value: \"a_b\": a lowercase RFC 1123 subdomain…",
                    ],
                ),
            ],
        );
    }

    #[test]
    fn addresses_are_of_the_families_asked_for() {
        let why = "spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": expected an IPv6 value as indicated by `ipFamilies[0]`";
        assert_rules(
            &service(),
            unlike_families,
            &[
                (json!({"/spec/ipFamilies": ["IPv6"]}), &[why]),
                (
                    json!({"/spec/clusterIPs": ["None"], "/spec/ipFamilies": ["IPv6"]}),
                    &[],
                ),
                (
                    json!({"/spec/type": "ExternalName", "/spec/ipFamilies": ["IPv6"]}),
                    &[],
                ),
            ],
        );
    }

    #[test]
    fn from_outside() {
        let balancer = json!({"/spec/type": "LoadBalancer", "/spec/externalTrafficPolicy": "Local", "/spec/allocateLoadBalancerNodePorts": true});
        let balancer = crate::testing::changed(&service(), &balancer);
        assert_rules(
            &balancer,
            validate,
            &[
                (
                    json!({"/spec/clusterIP": "None", "/spec/clusterIPs": ["None"]}),
                    &[
                        "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for LoadBalancer services",
                    ],
                ),
                (
                    json!({"/spec/ports/0/nodePort": 30000, "/spec/ports/1/nodePort": 30000, "/spec/ports/1/protocol": "TCP", "/spec/ports/1/port": 54}),
                    &["spec.ports[1].nodePort: Duplicate value: 30000"],
                ),
                (
                    json!({"/spec/loadBalancerSourceRanges": [" 10.0.0.0/8 ", "10.0.0.1/8"]}),
                    &[
                        "spec.LoadBalancerSourceRanges[1]: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix length",
                    ],
                ),
                (
                    json!({"/spec/loadBalancerClass": "a b", "/spec/allocateLoadBalancerNodePorts": null}),
                    &[
                        "allocateLoadBalancerNodePorts: Required value",
                        "spec.loadBalancerClass: Invalid value: \"a b\": name part must consist of…",
                    ],
                ),
                (
                    json!({"/spec/healthCheckNodePort": 70000}),
                    &[
                        "spec.healthCheckNodePort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                    ],
                ),
                (
                    json!({"/spec/externalTrafficPolicy": "Odd", "/spec/internalTrafficPolicy": "Odd", "/spec/trafficDistribution": "Odd"}),
                    &[
                        "spec.externalTrafficPolicy: Unsupported value: \"Odd\": supported values: \"Cluster\", \"Local\"",
                        "spec.internalTrafficPolicy: Unsupported value: \"Odd\": supported values: \"Cluster\", \"Local\"",
                        "spec.trafficDistribution: Unsupported value: \"Odd\": supported values: \"PreferClose\", \"PreferSameNode\", \"PreferSameZone\"",
                    ],
                ),
            ],
        );
        let only = "may only be used when `type` is 'LoadBalancer'";
        assert_rules(
            &service(),
            validate,
            &[
                (
                    json!({"/spec/externalTrafficPolicy": "Local", "/spec/healthCheckNodePort": 5, "/spec/internalTrafficPolicy": null}),
                    &[
                        "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
                        "spec.healthCheckNodePort: Invalid value: 5: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
                        "spec.internalTrafficPolicy: Required value",
                    ],
                ),
                (
                    json!({"/spec/loadBalancerSourceRanges": ["10.0.0.0/8"], "/spec/allocateLoadBalancerNodePorts": true, "/spec/loadBalancerClass": "a"}),
                    &[
                        &format!("spec.LoadBalancerSourceRanges: Forbidden: {only}"),
                        &format!("spec.allocateLoadBalancerNodePorts: Forbidden: {only}"),
                        &format!("spec.loadBalancerClass: Forbidden: {only}"),
                    ],
                ),
                (
                    json!({"/metadata/annotations": {RANGES_ANNOTATION: "10.0.0.0/8, x"}}),
                    &[
                        &format!("metadata.annotations[{RANGES_ANNOTATION}]: Forbidden: {only}"),
                        &format!(
                            "metadata.annotations[{RANGES_ANNOTATION}]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
                        ),
                    ],
                ),
            ],
        );
    }
}
