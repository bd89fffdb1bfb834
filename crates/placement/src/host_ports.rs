//! Ports of the node that pods take for themselves.

use k8s_openapi::api::core::v1::PodSpec;

/// A port of the node that a pod takes for itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// The address; `0.0.0.0`: all.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port.
    pub port: i32,
}

/// The address that stands for all.
const ALL: &str = "0.0.0.0";

impl HostPort {
    /// Whether both cannot be had at once.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ALL || other.ip == ALL)
    }
}

/// Whether any of the ports one wants is taken.
pub fn conflict(wanted: &[HostPort], taken: &[HostPort]) -> bool {
    taken.iter().any(|t| wanted.iter().any(|w| w.conflicts(t)))
}

/// The ports that a pod takes, in order and each once: those of the containers that run together.
pub fn of(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut all: Vec<HostPort> = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = p.host_port.filter(|port| *port > 0)?;
            let ip = p.host_ip.clone().filter(|ip| !ip.is_empty());
            Some(HostPort {
                ip: ip.unwrap_or(ALL.into()),
                protocol: p.protocol.clone().unwrap_or("TCP".into()),
                port,
            })
        })
        .collect();
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_taken_at_one_address_or_at_all() {
        let port = |ip: &str, protocol: &str, port| HostPort {
            ip: ip.into(),
            protocol: protocol.into(),
            port,
        };
        let taken = [port("10.0.0.1", "TCP", 80), port(ALL, "UDP", 53)];
        for (wanted, expected) in [
            (port("10.0.0.1", "TCP", 80), true),
            (port(ALL, "TCP", 80), true),
            (port("10.0.0.2", "TCP", 80), false),
            (port("10.0.0.1", "UDP", 80), false),
            (port("10.0.0.1", "TCP", 81), false),
            (port("10.0.0.2", "UDP", 53), true),
        ] {
            assert_eq!(
                conflict(std::slice::from_ref(&wanted), &taken),
                expected,
                "{wanted:?}"
            );
        }
    }
}
