//! Services.

mod change;
mod rules;

use std::collections::HashSet;

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::{Value, json};

use crate::cells::{age, labels, or, text};
use crate::metadata::masked;
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
            if spec.get("allocateLoadBalancerNodePorts").is_none() {
                meta::set(spec, &["allocateLoadBalancerNodePorts"], true.into());
            }
            default_modes(service);
        }
    }

    fn prepare_create(&self, service: &mut Value, _ctx: &Ctx<'_>) {
        service["status"] = json!({"loadBalancer": {}});
        normalize_cluster_ips(service, None);
        default_families(service);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, _ctx: &Ctx<'_>) {
        keep_allocated(new, old);
        normalize_cluster_ips(new, Some(old));
        change::drop_unused(new, old);
        default_families(new);
        if new.get("status").is_none() {
            new["status"] = json!({"loadBalancer": {}});
        }
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        // 1.34 relaxed names of services to RFC 1123 labels behind a gate that is off; RFC 1035 holds.
        masked(name, prefix, names::dns1035_label)
    }

    fn validate(&self, service: &Value) -> Vec<FieldError> {
        rules::validate(service)
    }

    fn validate_create(&self, service: &Value) -> Vec<FieldError> {
        rules::unlike_families(service)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        change::validate(new, old)
    }

    fn changes_first(&self) -> bool {
        true
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        change::validate_status(new)
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

/// Addresses of load balancers are on the nodes themselves unless told otherwise.
fn default_modes(service: &mut Value) {
    let ingress = service
        .pointer_mut("/status/loadBalancer/ingress")
        .and_then(Value::as_array_mut);
    for one in ingress.into_iter().flatten() {
        if !meta::str_at(one, &["ip"]).is_empty() && one.get("ipMode").is_none() {
            meta::set(one, &["ipMode"], "VIP".into());
        }
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
            r#"spec.clusterIPs[0]: Invalid value: ["10.0.0.2"]: may not change once set"#
        );
        let mut plain = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000}]}});
        Service.prepare_update(&mut plain, &old, &ctx());
        assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
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
