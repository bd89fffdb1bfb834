//! /etc/hosts of a pod. Pure.

use k8s_openapi::api::core::v1::Pod;

use crate::pod;

const HEADER: &str = "# Kubernetes-managed hosts file.\n";
const HEADER_HOST_NETWORK: &str = "# Kubernetes-managed hosts file (host network).\n";
const LOCAL: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";

/// The file's content. `host` is the node's own file, used by pods on the host network.
pub fn content(pod: &Pod, ips: &[String], cluster_domain: &str, host: &str) -> String {
    let mut out = String::new();
    if pod::host_network(pod) {
        out.push_str(HEADER_HOST_NETWORK);
        out.push_str(host);
    } else {
        out.push_str(HEADER);
        out.push_str(LOCAL);
        let hostname = pod::hostname(pod);
        for ip in ips {
            match pod::subdomain(pod, cluster_domain) {
                Some(domain) => {
                    out.push_str(&format!("{ip}\t{hostname}.{domain}\t{hostname}\n"));
                }
                None => out.push_str(&format!("{ip}\t{hostname}\n")),
            }
        }
    }
    let aliases = pod::spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default();
            out.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_itself_and_its_aliases() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "n"},
            "spec": {"containers": [], "subdomain": "web",
                     "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}}))
            .unwrap();
        let text = content(&pod, &["10.42.0.5".into()], "cluster.local", "");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("10.42.0.5\tweb-0.web.n.svc.cluster.local\tweb-0\n"));
        assert!(text.ends_with("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
    }

    #[test]
    fn host_network_keeps_the_hosts_own() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"},
            "spec": {"containers": [], "hostNetwork": true}}))
        .unwrap();
        let text = content(&pod, &[], "cluster.local", "127.0.0.1 me\n");
        assert_eq!(
            text,
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n"
        );
    }
}
