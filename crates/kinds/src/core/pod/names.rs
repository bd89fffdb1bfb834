//! What names mean in pods: DNS, and hosts that are written down.

use std::net::IpAddr;

use api::{FieldError, meta, names};
use serde_json::Value;

use crate::check::{named, one_of};

/// Most servers that a pod asks.
const SERVERS_MAX: usize = 3;
/// Most domains that a pod searches.
const SEARCHES_MAX: usize = 32;
/// Longest list of them, in characters with spaces between.
const SEARCHES_LENGTH: usize = 2048;
const NOT_AN_ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

/// Every broken rule of how a pod looks names up.
pub(super) fn dns(spec: &Value, at: &str) -> Vec<FieldError> {
    let policy = meta::str_at(spec, &["dnsPolicy"]);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    let mut errors: Vec<FieldError> = one_of(policy, format!("{at}.dnsPolicy"), &policies)
        .into_iter()
        .collect();
    let at = format!("{at}.dnsConfig");
    let Some(config) = spec.get("dnsConfig") else {
        if policy == "None" {
            let why = "must provide `dnsConfig` when `dnsPolicy` is None";
            errors.push(FieldError::required(at, why));
        }
        return errors;
    };
    let list = |field: &str| meta::list_at(config, &[field]);
    let servers = list("nameservers");
    let path = format!("{at}.nameservers");
    if policy == "None" && servers.is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(path.as_str(), why));
    }
    if servers.len() > SERVERS_MAX {
        let why = format!("must not have more than {SERVERS_MAX} nameservers");
        errors.push(FieldError::invalid(path.as_str(), servers.to_vec(), why));
    }
    for (i, server) in servers.iter().filter_map(Value::as_str).enumerate() {
        errors.extend(address(server, format!("{path}[{i}]")));
    }
    errors.extend(searches(list("searches"), &format!("{at}.searches")));
    for (i, option) in list("options").iter().enumerate() {
        if meta::str_at(option, &["name"]).is_empty() {
            let at = format!("{at}.options[{i}]");
            errors.push(FieldError::required(at, "must not be empty"));
        }
    }
    errors
}

fn searches(searches: &[Value], at: &str) -> Vec<FieldError> {
    let texts: Vec<&str> = searches.iter().filter_map(Value::as_str).collect();
    let mut errors = Vec::new();
    let mut refuse = |why: String| {
        errors.push(FieldError::invalid(at, searches.to_vec(), why));
    };
    if texts.len() > SEARCHES_MAX {
        refuse(format!(
            "must not have more than {SEARCHES_MAX} search paths"
        ));
    }
    if texts.join(" ").len() > SEARCHES_LENGTH {
        refuse(format!(
            "must not have more than {SEARCHES_LENGTH} characters (including spaces) in the search list"
        ));
    }
    for (i, search) in texts.iter().enumerate().filter(|(_, s)| **s != ".") {
        // A dot at the end says that a name is whole; underscores are in use.
        let plain = search.strip_suffix('.').unwrap_or(search).replace('_', "-");
        let odd = names::dns1123_subdomain(plain.trim_start_matches('-'));
        errors.extend(named(odd, &format!("{at}[{i}]"), search));
    }
    errors
}

fn address(text: &str, at: String) -> Option<FieldError> {
    let odd = text.parse::<IpAddr>().is_err();
    odd.then(|| FieldError::invalid(at, text, NOT_AN_ADDRESS))
}

/// Every broken rule of hosts that are written down.
pub(super) fn aliases(aliases: &[Value], at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, alias) in aliases.iter().enumerate() {
        let ip = meta::str_at(alias, &["ip"]);
        errors.extend(address(ip, format!("{at}[{i}].ip")));
        let hosts = meta::list_at(alias, &["hostnames"]).iter();
        for host in hosts.filter_map(Value::as_str) {
            let odd = names::dns1123_subdomain(host);
            errors.extend(named(odd, &format!("{at}[{i}].hostnames"), host));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::texts;

    #[test]
    fn lookups() {
        let of = |policy: &str, config: Value| {
            texts(&dns(
                &json!({"dnsPolicy": policy, "dnsConfig": config}),
                "spec",
            ))
        };
        let good = json!({"nameservers": ["1.2.3.4", "::1"], "searches": ["a.b", ".", "_tcp.c."], "options": [{"name": "ndots", "value": "2"}]});
        assert_eq!(of("None", good), [""; 0]);
        assert_eq!(
            texts(&dns(&json!({"dnsPolicy": "None"}), "spec")),
            ["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"]
        );
        assert_eq!(
            of("None", json!({})),
            [
                "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None"
            ]
        );
        let found = of(
            "Default",
            json!({"nameservers": ["1.1.1.1", "x", "1.1.1.2", "1.1.1.3"], "searches": ["A"], "options": [{}]}),
        );
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[0].ends_with("must not have more than 3 nameservers"));
        assert_eq!(
            found[1],
            format!("spec.dnsConfig.nameservers[1]: Invalid value: \"x\": {NOT_AN_ADDRESS}")
        );
        assert_eq!(
            found[3],
            "spec.dnsConfig.options[0]: Required value: must not be empty"
        );
        let many = vec!["a"; 33];
        assert!(of("Default", json!({"searches": many}))[0].ends_with("more than 32 search paths"));
    }

    #[test]
    fn hosts() {
        let all = json!([{"ip": "1.2.3.4", "hostnames": ["a.b"]}, {"ip": "x", "hostnames": ["A"]}]);
        let found = texts(&aliases(all.as_array().unwrap(), "spec.hostAliases"));
        assert_eq!(found.len(), 2);
        assert!(
            found[0]
                .starts_with("spec.hostAliases[1].ip: Invalid value: \"x\": must be a valid IP")
        );
        assert!(found[1].starts_with("spec.hostAliases[1].hostnames: Invalid value: \"A\""));
    }
}
