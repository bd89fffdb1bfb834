//! resolv.conf of a pod from its dnsPolicy and dnsConfig, as upstream composes it. Pure.

use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// Most name servers a resolver uses.
const MAX_SERVERS: usize = 3;
/// Most search domains kept.
const MAX_SEARCHES: usize = 32;
/// Most characters of the search line.
const MAX_SEARCH_CHARS: usize = 2048;

/// The three parts of a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options such as `ndots:5`.
    pub options: Vec<String>,
}

/// Reads a resolv.conf.
pub fn parse(text: &str) -> Resolver {
    let mut out = Resolver::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let values = match words.next() {
            Some("nameserver") => {
                out.servers.extend(words.next().map(str::to_owned));
                continue;
            }
            Some("search") => &mut out.searches,
            Some("options") => &mut out.options,
            _ => continue,
        };
        *values = words
            .map(|w| if w == "." { w } else { w.trim_end_matches('.') }.to_owned())
            .collect();
    }
    out
}

/// The resolver of `pod`; `cluster_dns` are the addresses of the cluster's DNS, `host` the node's own.
pub fn resolver(
    pod: &Pod,
    cluster_dns: &[String],
    cluster_domain: &str,
    host: &Resolver,
) -> Resolver {
    let spec = pod::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let mut out = match policy {
        "None" => Resolver::default(),
        "Default" => host.clone(),
        "ClusterFirst" if pod::host_network(pod) => host.clone(),
        _ if cluster_dns.is_empty() => host.clone(),
        _ => cluster_first(pod, cluster_dns, cluster_domain, host),
    };
    if let Some(config) = &spec.dns_config {
        append_new(
            &mut out.servers,
            config.nameservers.iter().flatten().cloned(),
        );
        append_new(&mut out.searches, config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            out.options.retain(|o| o.split(':').next() != Some(name));
            out.options
                .push(match option.value.as_deref().filter(|v| !v.is_empty()) {
                    Some(value) => format!("{name}:{value}"),
                    None => name.to_owned(),
                });
        }
    }
    limit(&mut out);
    out
}

fn cluster_first(pod: &Pod, cluster_dns: &[String], domain: &str, host: &Resolver) -> Resolver {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut searches = vec![
        format!("{namespace}.svc.{domain}"),
        format!("svc.{domain}"),
        domain.to_owned(),
    ];
    append_new(&mut searches, host.searches.iter().cloned());
    Resolver {
        servers: cluster_dns.to_vec(),
        searches,
        options: vec!["ndots:5".into()],
    }
}

fn append_new(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

fn limit(resolver: &mut Resolver) {
    resolver.servers.truncate(MAX_SERVERS);
    resolver.searches.truncate(MAX_SEARCHES);
    let mut length = 0;
    resolver.searches.retain(|domain| {
        length += domain.len() + 1;
        length <= MAX_SEARCH_CHARS + 1
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn build(spec: serde_json::Value) -> Resolver {
        let mut object =
            json!({"metadata": {"name": "p", "namespace": "web"}, "spec": {"containers": []}});
        for (key, value) in spec.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        let pod: Pod = serde_json::from_value(object).unwrap();
        let host = parse("nameserver 192.0.2.1\nsearch corp.example. # x\noptions timeout:1\n");
        resolver(&pod, &["10.43.0.10".into()], "cluster.local", &host)
    }

    fn parts(r: &Resolver) -> (String, String, String) {
        (
            r.servers.join(" "),
            r.searches.join(" "),
            r.options.join(" "),
        )
    }

    #[test]
    fn policies() {
        let cluster = "web.svc.cluster.local svc.cluster.local cluster.local corp.example";
        let cases = [
            (json!({}), "10.43.0.10", cluster, "ndots:5"),
            (
                json!({"hostNetwork": true}),
                "192.0.2.1",
                "corp.example",
                "timeout:1",
            ),
            (
                json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                "10.43.0.10",
                cluster,
                "ndots:5",
            ),
            (
                json!({"dnsPolicy": "Default"}),
                "192.0.2.1",
                "corp.example",
                "timeout:1",
            ),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["x"], "options": [{"name": "edns0"}]}}),
                "1.1.1.1",
                "x",
                "edns0",
            ),
            (
                json!({"dnsConfig": {"options": [{"name": "ndots", "value": "2"}], "searches": ["corp.example", "y"]}}),
                "10.43.0.10",
                "web.svc.cluster.local svc.cluster.local cluster.local corp.example y",
                "ndots:2",
            ),
        ];
        for (spec, servers, searches, options) in cases {
            let got = build(spec.clone());
            assert_eq!(
                parts(&got),
                (servers.into(), searches.into(), options.into()),
                "{spec}"
            );
        }
    }
}
