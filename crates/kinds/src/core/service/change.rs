//! What an update of a Service may change, and what it drops that the new type has no use for.

use std::collections::HashSet;

use api::{FieldError, meta};
use serde_json::{Value, json};

use super::has_node_ports;
use super::rules::{is_external, is_headless, needs_health_check, unlike_families};
use crate::addresses::of_balancer;
use crate::cells::text;

const ONCE: &str = "may not change once set";

fn is_balancer(service: &Value) -> bool {
    meta::str_at(service, &["spec", "type"]) == "LoadBalancer"
}

fn is_name(service: &Value) -> bool {
    meta::str_at(service, &["spec", "type"]) == "ExternalName"
}

/// Drops what the old type needed and the new one does not, unless the client changed it as well: that is an error,
/// which is told later.
pub(super) fn drop_unused(new: &mut Value, old: &Value) {
    let same = |new: &Value, field: &str| {
        meta::get(new, &["spec", field]) == meta::get(old, &["spec", field])
    };
    if !is_name(old) && is_name(new) {
        if same(new, "clusterIP") && same(new, "clusterIPs") {
            meta::remove(new, &["spec", "clusterIP"]);
            meta::remove(new, &["spec", "clusterIPs"]);
        }
        drop_if(new, same, &["ipFamilies", "ipFamilyPolicy"]);
    }
    let (is, was) = (
        new.get("spec").cloned().unwrap_or_default(),
        old.get("spec").unwrap_or(&Value::Null),
    );
    let kind = |spec: &Value| has_node_ports(meta::str_at(spec, &["type"]));
    if kind(was) && !kind(&is) && node_ports(new).is_subset(&node_ports(old)) {
        let ports = new.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten() {
            meta::remove(port, &["nodePort"]);
        }
    }
    if needs_health_check(was) && !needs_health_check(&is) {
        drop_if(new, same, &["healthCheckNodePort"]);
    }
    if is_balancer(old) && !is_balancer(new) {
        drop_if(
            new,
            same,
            &["allocateLoadBalancerNodePorts", "loadBalancerClass"],
        );
    }
    if is_external(was) && !is_external(&is) {
        drop_if(new, same, &["externalTrafficPolicy"]);
    }
    if !is_balancer(new) && meta::get(new, &["status", "loadBalancer"]).is_some() {
        meta::set(new, &["status", "loadBalancer"], json!({}));
    }
}

fn drop_if(new: &mut Value, same: impl Fn(&Value, &str) -> bool, fields: &[&str]) {
    for field in fields {
        if same(new, field) {
            meta::remove(new, &["spec", field]);
        }
    }
}

fn node_ports(service: &Value) -> HashSet<i64> {
    let all = meta::list_at(service, &["spec", "ports"]).iter();
    all.filter_map(|p| meta::int_at(p, &["nodePort"]).filter(|n| *n != 0))
        .collect()
}

/// Every broken rule of the change.
pub(super) fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !is_name(new) && !is_name(old) {
        let (is, was) = (is_headless(new), is_headless(old));
        if !(is && was) {
            errors.extend(addresses(new, old));
        }
        if !is && !was {
            errors.extend(families(new, old));
        }
    }
    let asked = |of| ["clusterIPs", "ipFamilies"].map(|f| meta::get(of, &["spec", f]));
    if asked(new) != asked(old) {
        errors.extend(unlike_families(new));
    }
    let class = |of| meta::get(of, &["spec", "loadBalancerClass"]);
    if is_balancer(new) && is_balancer(old) && class(new) != class(old) {
        let is = class(new).cloned().unwrap_or_default();
        errors.push(FieldError::invalid("spec.loadBalancerClass", is, ONCE));
    }
    let health = |of: &Value| {
        let spec = of.get("spec").filter(|s| needs_health_check(s));
        spec.map(|s| meta::int_at(s, &["healthCheckNodePort"]).unwrap_or(0))
    };
    // One that is not there yet is chosen later.
    if let (Some(is), Some(was)) = (health(new), health(old))
        && is != was
        && was != 0
    {
        let why = "field is immutable";
        errors.push(FieldError::forbidden("spec.healthCheckNodePort", why));
    }
    errors
}

/// The second address comes and goes with the policy; the first stays.
fn addresses(new: &Value, old: &Value) -> Vec<FieldError> {
    let of = |service| meta::list_at(service, &["spec", "clusterIPs"]);
    let (is, was) = (of(new), of(old));
    let refuse = |i: usize, why: &str| {
        FieldError::invalid(format!("spec.clusterIPs[{i}]"), is.to_vec(), why)
    };
    let mut errors = Vec::new();
    if is.len() == was.len() {
        let changed = (0..is.len()).filter(|i| is[*i] != was[*i]);
        return changed.map(|i| refuse(i, ONCE)).collect();
    }
    if is.is_empty() {
        errors.push(refuse(0, "primary clusterIP can not be unset"));
    }
    if is
        .first()
        .zip(was.first())
        .is_some_and(|(is, was)| is != was)
    {
        errors.push(refuse(0, ONCE));
    }
    if is.len() == 1 && was.len() > 1 {
        errors.extend(released(new, "clusterIP"));
    }
    errors
}

fn families(new: &Value, old: &Value) -> Vec<FieldError> {
    let of = |service| meta::list_at(service, &["spec", "ipFamilies"]);
    let (is, was) = (of(new), of(old));
    let refuse = |why: &str| FieldError::invalid("spec.ipFamilies[0]", is.to_vec(), why);
    let mut errors = Vec::new();
    if is.len() == was.len() {
        let changed = is.iter().zip(was).filter(|(is, was)| is != was);
        return changed.map(|_| refuse(ONCE)).collect();
    }
    if was.len() > is.len() && meta::list_at(new, &["spec", "clusterIPs"]).is_empty() {
        errors.push(refuse("primary ipFamily can not be unset"));
    }
    if is
        .first()
        .zip(was.first())
        .is_some_and(|(is, was)| is != was)
    {
        errors.push(refuse(ONCE));
    }
    if is.len() == 1 && was.len() > 1 {
        errors.extend(released(new, "ipFamily"));
    }
    errors
}

/// Whoever gives up the second one has to say that one is enough.
fn released(new: &Value, what: &str) -> Option<FieldError> {
    let policy = meta::get(new, &["spec", "ipFamilyPolicy"]);
    let why = format!("must be set to 'SingleStack' when releasing the secondary {what}");
    let shown = policy.cloned().unwrap_or_default();
    (policy.is_none_or(|p| p != "SingleStack"))
        .then(|| FieldError::invalid("spec.ipFamilyPolicy", shown, why))
}

/// Every broken rule of the status.
pub(super) fn validate_status(service: &Value) -> Vec<FieldError> {
    let ingress = meta::list_at(service, &["status", "loadBalancer", "ingress"]);
    let at = "status.loadBalancer.ingress";
    if text(service, &["spec", "type"]) != "LoadBalancer" && !ingress.is_empty() {
        let why = "may only be used when `spec.type` is 'LoadBalancer'";
        return vec![FieldError::forbidden(at, why)];
    }
    let all = ingress.iter().enumerate();
    all.flat_map(|(i, one)| of_balancer(one, &format!("{at}[{i}]")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_rules, assert_updates, changed};

    fn service() -> Value {
        json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001,
            "allocateLoadBalancerNodePorts": true, "loadBalancerClass": "a", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4", "ipMode": "VIP"}]}}})
    }

    #[test]
    fn what_stays() {
        assert_updates(
            &service(),
            validate,
            &[
                (
                    json!({"/spec/clusterIPs": ["10.0.0.1", "fd00::2"]}),
                    &[
                        "spec.clusterIPs[1]: Invalid value: [\"10.0.0.1\",\"fd00::2\"]: may not change once set",
                    ],
                ),
                (
                    json!({"/spec/clusterIPs": ["10.0.0.2"], "/spec/ipFamilies": ["IPv4"]}),
                    &[
                        "spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set",
                        "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be set to 'SingleStack' when releasing the secondary clusterIP",
                        "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be set to 'SingleStack' when releasing the secondary ipFamily",
                    ],
                ),
                (
                    json!({"/spec/clusterIPs": ["10.0.0.1"], "/spec/ipFamilies": ["IPv4"], "/spec/ipFamilyPolicy": "SingleStack"}),
                    &[],
                ),
                (
                    json!({"/spec/clusterIPs": []}),
                    &["spec.clusterIPs[0]: Invalid value: []: primary clusterIP can not be unset"],
                ),
                (
                    json!({"/spec/ipFamilies": ["IPv6"], "/spec/ipFamilyPolicy": "SingleStack"}),
                    &[
                        "spec.ipFamilies[0]: Invalid value: [\"IPv6\"]: may not change once set",
                        "spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": expected an IPv6 value as indicated by `ipFamilies[0]`",
                    ],
                ),
                (
                    json!({"/spec/loadBalancerClass": "b", "/spec/healthCheckNodePort": 30002}),
                    &[
                        "spec.loadBalancerClass: Invalid value: \"b\": may not change once set",
                        "spec.healthCheckNodePort: Forbidden: field is immutable",
                    ],
                ),
                (
                    json!({"/spec/type": "ExternalName", "/spec/clusterIPs": []}),
                    &[],
                ),
            ],
        );
    }

    #[test]
    fn what_goes_with_the_type() {
        let old = service();
        let after = |changes: Value| {
            let mut new = changed(&old, &changes);
            drop_unused(&mut new, &old);
            new["spec"].clone()
        };
        let name = after(json!({"/spec/type": "ExternalName"}));
        assert_eq!(
            name,
            json!({"type": "ExternalName", "ports": [{"port": 80, "protocol": "TCP"}]})
        );
        let plain = after(json!({"/spec/type": "ClusterIP"}));
        assert!(plain.get("externalTrafficPolicy").is_none() && plain.get("clusterIPs").is_some());
        // What the client changed as well stays, and is refused.
        let odd = after(
            json!({"/spec/type": "ClusterIP", "/spec/ports/0/nodePort": 30005, "/spec/loadBalancerClass": "b"}),
        );
        assert_eq!(
            (&odd["ports"][0]["nodePort"], &odd["loadBalancerClass"]),
            (&json!(30005), &json!("b"))
        );
    }

    #[test]
    fn statuses() {
        let at = "status.loadBalancer.ingress";
        assert_rules(
            &service(),
            validate_status,
            &[
                (
                    json!({"/spec/type": "NodePort"}),
                    &[&format!(
                        "{at}: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"
                    )],
                ),
                (
                    json!({"/status/loadBalancer/ingress": [{"ip": "x", "ipMode": "Odd"}, {"hostname": "1.2.3.4", "ipMode": "VIP"}]}),
                    &[
                        &format!(
                            "{at}[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
                        ),
                        &format!(
                            "{at}[0].ipMode: Unsupported value: \"Odd\": supported values: \"Proxy\", \"VIP\""
                        ),
                        &format!(
                            "{at}[1].ipMode: Forbidden: may not be specified when `ip` is not set"
                        ),
                        &format!(
                            "{at}[1].hostname: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address"
                        ),
                    ],
                ),
            ],
        );
    }
}
