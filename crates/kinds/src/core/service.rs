//! Services.

use std::collections::HashSet;

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::{Value, json};

use crate::cells::{age, labels, or, text};
use crate::check::{self, named, one_of, port};
use crate::metadata::{masked, validate_labels};
use crate::strategy::{Ctx, Strategy};

/// Seconds that a client sticks to an endpoint unless told otherwise.
const AFFINITY_SECONDS: i64 = 10_800;
const NONE: &str = "None";

/// Rules of Services.
pub(crate) struct Service;

impl Strategy for Service {
    fn allows_create_on_update(&self) -> bool {
        true
    }

    fn default(&self, service: &mut Value) {
        let Some(spec) = service.get_mut("spec") else {
            return;
        };
        let kind = text(spec, &["type"]);
        default_affinity(spec);
        for port in spec
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let unset = match port.get("targetPort") {
                None | Some(Value::Null) => true,
                Some(Value::Number(n)) => n.as_i64() == Some(0),
                Some(Value::String(s)) => s.is_empty(),
                Some(_) => false,
            };
            if unset && let Some(number) = port.get("port").cloned() {
                meta::set(port, &["targetPort"], number);
            }
        }
        let set = |spec: &mut Value, field: &str, value: Value| {
            if text(spec, &[field]).is_empty() {
                meta::set(spec, &[field], value);
            }
        };
        let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
            || (kind == "ClusterIP" && !meta::list_at(spec, &["externalIPs"]).is_empty());
        if external {
            set(spec, "externalTrafficPolicy", "Cluster".into());
        }
        if has_cluster_ip(&kind) {
            set(spec, "internalTrafficPolicy", "Cluster".into());
        }
        if kind == "LoadBalancer" {
            set(spec, "allocateLoadBalancerNodePorts", true.into());
        }
    }

    fn prepare_create(&self, service: &mut Value, _ctx: &Ctx<'_>) {
        service["status"] = json!({"loadBalancer": {}});
        normalize_cluster_ips(service, None);
        default_families(service);
        drop_unused(service);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, _ctx: &Ctx<'_>) {
        keep_allocated(new, old);
        normalize_cluster_ips(new, Some(old));
        default_families(new);
        drop_unused(new);
        if new.get("status").is_none() {
            new["status"] = json!({"loadBalancer": {}});
        }
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        // 1.34 relaxed names of services to RFC 1123 labels behind a gate that is off; RFC 1035 holds.
        masked(name, prefix, names::dns1035_label)
    }

    fn validate(&self, service: &Value) -> Vec<FieldError> {
        validate(service.get("spec").unwrap_or(&Value::Null))
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let kind = |o: &Value| text(o, &["spec", "type"]);
        let (is, was) = (
            meta::list_at(new, &["spec", "clusterIPs"]),
            meta::list_at(old, &["spec", "clusterIPs"]),
        );
        let mut errors = Vec::new();
        if has_cluster_ip(&kind(new))
            && has_cluster_ip(&kind(old))
            && !was.is_empty()
            && is.first() != was.first()
        {
            errors.push(FieldError::invalid(
                "spec.clusterIPs[0]",
                is.first().cloned().unwrap_or_default(),
                "may not change once set",
            ));
        }
        if kind(new) == "LoadBalancer" && kind(old) == "LoadBalancer" {
            errors.extend(
                check::immutable(new, old, &["spec", "loadBalancerClass"]).map(|mut e| {
                    e.detail = "may not change once set".to_owned();
                    e
                }),
            );
        }
        errors
    }

    fn row(&self, service: &Value, now: Timestamp) -> Option<Vec<Value>> {
        Some(vec![
            meta::name(service).into(),
            text(service, &["spec", "type"]).into(),
            or(
                meta::list_at(service, &["spec", "clusterIPs"])
                    .first()
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned(),
                "<none>",
            )
            .into(),
            external_ip(service).into(),
            or(ports(service), "<none>").into(),
            age(service, now).into(),
            labels(meta::get(service, &["spec", "selector"])).into(),
        ])
    }

    fn field_labels(&self) -> crate::simple::FieldLabels {
        &[
            ("spec.clusterIP", &["spec", "clusterIP"]),
            ("spec.type", &["spec", "type"]),
        ]
    }
}

fn has_cluster_ip(kind: &str) -> bool {
    matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn has_node_ports(kind: &str) -> bool {
    matches!(kind, "NodePort" | "LoadBalancer")
}

fn default_affinity(spec: &mut Value) {
    match meta::str_at(spec, &["sessionAffinity"]) {
        "ClientIP" => {
            let path = ["sessionAffinityConfig", "clientIP", "timeoutSeconds"];
            if meta::int_at(spec, &path).is_none() {
                meta::set(spec, &path, AFFINITY_SECONDS.into());
            }
        }
        _ => {
            meta::remove(spec, &["sessionAffinityConfig"]);
        }
    }
}

/// Keeps addresses and ports that were allocated, where the client left them out.
fn keep_allocated(new: &mut Value, old: &Value) {
    let kind = |o: &Value| text(o, &["spec", "type"]);
    if has_cluster_ip(&kind(new)) && has_cluster_ip(&kind(old)) {
        let none_given = text(new, &["spec", "clusterIP"]).is_empty()
            && meta::list_at(new, &["spec", "clusterIPs"]).is_empty();
        if none_given {
            copy(new, old, &["spec", "clusterIP"]);
            copy(new, old, &["spec", "clusterIPs"]);
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if meta::get(new, &["spec", field]).is_none() {
                copy(new, old, &["spec", field]);
            }
        }
    }
    if has_node_ports(&kind(new)) && has_node_ports(&kind(old)) {
        keep_node_ports(new, old);
        let path = ["spec", "healthCheckNodePort"];
        if meta::int_at(new, &path).unwrap_or(0) == 0
            && meta::str_at(new, &["spec", "externalTrafficPolicy"]) == "Local"
        {
            copy(new, old, &path);
        }
    }
}

fn keep_node_ports(new: &mut Value, old: &Value) {
    let was: Vec<Value> = meta::list_at(old, &["spec", "ports"]).to_vec();
    let is = new
        .get_mut("spec")
        .and_then(|s| s.get_mut("ports"))
        .and_then(Value::as_array_mut);
    let Some(is) = is else { return };
    let mut used: HashSet<i64> = is
        .iter()
        .filter_map(|p| meta::int_at(p, &["nodePort"]))
        .collect();
    for port in is {
        if meta::int_at(port, &["nodePort"]).unwrap_or(0) != 0 {
            continue;
        }
        let same = |p: &&Value| {
            meta::int_at(p, &["port"]) == meta::int_at(port, &["port"])
                && meta::str_at(p, &["protocol"]) == meta::str_at(port, &["protocol"])
        };
        let kept = was
            .iter()
            .find(same)
            .and_then(|p| meta::int_at(p, &["nodePort"]));
        if let Some(number) = kept.filter(|n| *n != 0 && used.insert(*n)) {
            meta::set(port, &["nodePort"], number.into());
        }
    }
}

fn copy(new: &mut Value, old: &Value, path: &[&str]) {
    if let Some(value) = meta::get(old, path) {
        meta::set(new, path, value.clone());
    }
}

/// Families a service asks for when it says nothing: those of its addresses, else IPv4 alone.
fn default_families(service: &mut Value) {
    if !has_cluster_ip(meta::str_at(service, &["spec", "type"])) {
        return;
    }
    if meta::list_at(service, &["spec", "ipFamilies"]).is_empty() {
        let family = |ip: &Value| {
            if ip.as_str().is_some_and(|ip| ip.contains(':')) {
                "IPv6"
            } else {
                "IPv4"
            }
        };
        let mut families: Vec<&str> = meta::list_at(service, &["spec", "clusterIPs"])
            .iter()
            .map(family)
            .collect();
        families.dedup();
        if families.is_empty() {
            families.push("IPv4");
        }
        meta::set(service, &["spec", "ipFamilies"], json!(families));
    }
    if meta::get(service, &["spec", "ipFamilyPolicy"]).is_none() {
        meta::set(service, &["spec", "ipFamilyPolicy"], "SingleStack".into());
    }
}

/// `clusterIP` and the first of `clusterIPs` are one thing under two names.
fn normalize_cluster_ips(new: &mut Value, old: Option<&Value>) {
    let single = text(new, &["spec", "clusterIP"]);
    let first = meta::list_at(new, &["spec", "clusterIPs"])
        .first()
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let was = old
        .map(|o| text(o, &["spec", "clusterIP"]))
        .unwrap_or_default();
    if !single.is_empty() && (first.is_empty() || (single != was && first == was)) {
        // A changed single address takes the list along.
        meta::set(new, &["spec", "clusterIPs"], json!([single]));
    } else if single.is_empty() && !first.is_empty() {
        meta::set(new, &["spec", "clusterIP"], first.into());
    }
}

/// Drops what a service of this type cannot have.
fn drop_unused(service: &mut Value) {
    let kind = text(service, &["spec", "type"]);
    if !has_cluster_ip(&kind) {
        for field in [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ] {
            meta::remove(service, &["spec", field]);
        }
    }
    if !has_node_ports(&kind) {
        let ports = service
            .get_mut("spec")
            .and_then(|s| s.get_mut("ports"))
            .and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten() {
            meta::remove(port, &["nodePort"]);
        }
        if meta::list_at(service, &["spec", "externalIPs"]).is_empty() {
            meta::remove(service, &["spec", "externalTrafficPolicy"]);
        }
        meta::remove(service, &["spec", "healthCheckNodePort"]);
    }
    if kind != "LoadBalancer" {
        meta::remove(service, &["spec", "allocateLoadBalancerNodePorts"]);
        meta::remove(service, &["spec", "loadBalancerClass"]);
        if meta::get(service, &["status", "loadBalancer"]).is_some() {
            meta::set(service, &["status", "loadBalancer"], json!({}));
        }
    }
}

fn validate(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = text(spec, &["type"]);
    let headless = text(spec, &["clusterIP"]) == NONE;
    let list = meta::list_at(spec, &["ports"]);
    if list.is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    match kind.as_str() {
        "LoadBalancer" | "NodePort" if headless => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid("spec.clusterIPs[0]", NONE, detail));
        }
        "ExternalName" => {
            let name = text(spec, &["externalName"]);
            if name.is_empty() {
                errors.push(FieldError::required("spec.externalName", ""));
            } else {
                let bare = name.strip_suffix('.').unwrap_or(&name);
                errors.extend(named(
                    names::dns1123_subdomain(bare),
                    "spec.externalName",
                    &name,
                ));
            }
        }
        _ => {}
    }
    errors.extend(validate_ports(list, &kind, headless));
    errors.extend(validate_labels(spec.get("selector"), "spec.selector"));
    errors.extend(one_of(
        meta::str_at(spec, &["sessionAffinity"]),
        "spec.sessionAffinity",
        &["ClientIP", NONE],
    ));
    errors.extend(one_of(
        &kind,
        "spec.type",
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
    ));
    errors.extend(validate_addresses(spec));
    errors
}

fn validate_addresses(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let not_ip = |path: String, ip: &str| {
        FieldError::invalid(
            path,
            ip,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        )
    };
    for (i, ip) in meta::list_at(spec, &["clusterIPs"])
        .iter()
        .filter_map(Value::as_str)
        .enumerate()
    {
        if ip != NONE && !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
            errors.push(not_ip(format!("spec.clusterIPs[{i}]"), ip));
        }
    }
    for (i, ip) in meta::list_at(spec, &["externalIPs"])
        .iter()
        .filter_map(Value::as_str)
        .enumerate()
    {
        match ip.parse::<std::net::IpAddr>() {
            Err(_) => errors.push(not_ip(format!("spec.externalIPs[{i}]"), ip)),
            Ok(ip) if ip.is_unspecified() || ip.is_loopback() => {
                errors.push(FieldError::invalid(
                    format!("spec.externalIPs[{i}]"),
                    ip.to_string(),
                    "may not be unspecified or in the loopback range",
                ));
            }
            Ok(_) => {}
        }
    }
    errors
}

fn validate_ports(list: &[Value], kind: &str, headless: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (mut seen_names, mut seen, mut seen_node) =
        (HashSet::new(), HashSet::new(), HashSet::new());
    for (i, p) in list.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        let (name, protocol) = (meta::str_at(p, &["name"]), meta::str_at(p, &["protocol"]));
        let number = meta::int_at(p, &["port"]).unwrap_or(0);
        if name.is_empty() {
            if list.len() > 1 {
                errors.push(FieldError::required(format!("{at}.name"), ""));
            }
        } else {
            errors.extend(named(
                names::dns1123_label(name),
                &format!("{at}.name"),
                name,
            ));
            if !seen_names.insert(name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), name));
            }
        }
        errors.extend(port(number, format!("{at}.port")));
        errors.extend(one_of(
            protocol,
            format!("{at}.protocol"),
            &["SCTP", "TCP", "UDP"],
        ));
        if !headless || p.get("targetPort").is_some() {
            errors.extend(check::port_or_name(
                p.get("targetPort").unwrap_or(&Value::Null),
                &format!("{at}.targetPort"),
            ));
        }
        if !seen.insert((protocol, number)) {
            errors.push(FieldError::duplicate(
                &at,
                json!({"port": number, "protocol": protocol}),
            ));
        }
        let node_port = meta::int_at(p, &["nodePort"]).unwrap_or(0);
        if node_port != 0 && !has_node_ports(kind) {
            errors.push(FieldError::forbidden(
                format!("{at}.nodePort"),
                format!("may not be used when `type` is '{kind}'"),
            ));
        } else if node_port != 0 && !seen_node.insert((protocol, node_port)) {
            errors.push(FieldError::duplicate(format!("{at}.nodePort"), node_port));
        }
    }
    errors
}

fn external_ip(service: &Value) -> String {
    let external: Vec<&str> = meta::list_at(service, &["spec", "externalIPs"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match meta::str_at(service, &["spec", "type"]) {
        "ClusterIP" | "NodePort" => or(external.join(","), "<none>"),
        "LoadBalancer" => {
            let ingress = meta::list_at(service, &["status", "loadBalancer", "ingress"]);
            let assigned: Vec<String> = ingress
                .iter()
                .map(|i| or(text(i, &["ip"]), &text(i, &["hostname"])))
                .filter(|t| !t.is_empty())
                .collect();
            let all: Vec<&str> = external
                .into_iter()
                .chain(assigned.iter().map(String::as_str))
                .collect();
            or(all.join(","), "<pending>")
        }
        "ExternalName" => text(service, &["spec", "externalName"]),
        _ => "<unknown>".to_owned(),
    }
}

fn ports(service: &Value) -> String {
    let print = |p: &Value| {
        let (number, protocol) = (
            meta::int_at(p, &["port"]).unwrap_or(0),
            meta::str_at(p, &["protocol"]),
        );
        match meta::int_at(p, &["nodePort"]).unwrap_or(0) {
            0 => format!("{number}/{protocol}"),
            node => format!("{number}:{node}/{protocol}"),
        }
    };
    meta::list_at(service, &["spec", "ports"])
        .iter()
        .map(print)
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ctx() -> Ctx<'static> {
        Ctx {
            kind: api::kind("", "v1", "services").unwrap(),
            subresource: "",
            now: Timestamp::UNIX_EPOCH,
        }
    }

    fn service(spec: Value) -> Value {
        let mut out = json!({"metadata": {"name": "s"}, "spec": spec});
        Service.default(&mut out);
        out
    }

    #[test]
    fn defaults() {
        let s = service(
            json!({"type": "NodePort", "sessionAffinity": "ClientIP", "ports": [{"port": 80, "protocol": "TCP"}]}),
        );
        assert_eq!(s["spec"]["ports"][0]["targetPort"], 80);
        assert_eq!(s["spec"]["externalTrafficPolicy"], "Cluster");
        assert_eq!(s["spec"]["internalTrafficPolicy"], "Cluster");
        assert_eq!(
            s["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"],
            10_800
        );
    }

    #[test]
    fn allocations_are_kept() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]}});
        Service.prepare_update(&mut new, &old, &ctx());
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.0.0.1"]));
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30000);
        assert!(Service.validate_update(&new, &old).is_empty());
        let mut moved = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.2"}});
        Service.prepare_update(&mut moved, &old, &ctx());
        assert_eq!(
            Service.validate_update(&moved, &old)[0].to_string(),
            r#"spec.clusterIPs[0]: Invalid value: "10.0.0.2": may not change once set"#
        );
        let mut plain = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000}]}});
        Service.prepare_update(&mut plain, &old, &ctx());
        assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
    }

    #[test]
    fn rules() {
        let base = json!({"type": "ClusterIP", "sessionAffinity": "None"});
        let with = |field: &str, value: Value| {
            let mut spec = base.clone();
            spec[field] = value;
            Service
                .validate(&service(spec))
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(with("selector", json!({})), ["spec.ports: Required value"]);
        assert!(with("clusterIP", json!("None")).is_empty());
        assert!(with("ports", json!([{"port": 80, "protocol": "TCP"}])).is_empty());
        assert!(with("ports", json!([{"name": "a", "port": 53, "protocol": "TCP"}, {"name": "b", "port": 53, "protocol": "UDP"}])).is_empty());
        assert_eq!(
            with("ports", json!([{"port": 0, "protocol": "TCP"}])).len(),
            2
        );
        assert_eq!(
            with(
                "ports",
                json!([{"port": 1, "protocol": "TCP"}, {"port": 2, "protocol": "TCP"}])
            ),
            [
                "spec.ports[0].name: Required value",
                "spec.ports[1].name: Required value"
            ]
        );
    }

    #[test]
    fn rows() {
        let mut s = service(
            json!({"type": "LoadBalancer", "clusterIPs": ["10.0.0.1"], "selector": {"b": "2", "a": "1"}, "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}),
        );
        s["metadata"]["creationTimestamp"] = "1970-01-01T00:00:00Z".into();
        let row = Service.row(&s, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(
            Value::Array(row),
            json!([
                "s",
                "LoadBalancer",
                "10.0.0.1",
                "<pending>",
                "80:30080/TCP",
                "0s",
                "a=1,b=2"
            ])
        );
    }
}
