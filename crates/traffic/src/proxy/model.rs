//! What the proxy knows of a Service and its EndpointSlices, and what follows from it: which address leads to which
//! endpoints on this node. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{EndpointHints, EndpointSlice};

/// Label that hands a Service to another proxy.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// How long a client stays with its endpoint unless the Service says otherwise, in seconds.
const DEFAULT_AFFINITY: u32 = 10_800;
/// Most endpoints of one address that are used: slot numbers have sixteen bits.
pub(crate) const MAX_ENDPOINTS: usize = 1 << 16;

/// Transport protocols of Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    fn parse(name: Option<&str>) -> Option<Self> {
        match name.unwrap_or("TCP") {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    /// The protocol's number in IP headers.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

/// Whose packets a frontend is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Audience {
    /// Everybody's.
    All,
    /// Those of pods and of this node; goes before `All`.
    Internal,
}

/// Where packets are caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Whose.
    pub audience: Audience,
    /// Addressed to; None is any address of this node (a node port).
    pub address: Option<Ipv4Addr>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// What becomes of packets for which there is no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Otherwise {
    /// The sender is told.
    Reject,
    /// They vanish: other nodes may have endpoints.
    Drop,
}

/// Where caught packets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// To one of these, each with the same chance; sorted, none twice.
    pub endpoints: Vec<SocketAddrV4>,
    /// If there are none.
    pub otherwise: Otherwise,
    /// How long a client stays with its endpoint, in seconds.
    pub affinity: Option<u32>,
    /// The only sources let through; empty lets all through.
    pub sources: Vec<Ipv4Net>,
}

/// A Service's share of the table.
pub type Frontends = BTreeMap<Frontend, Backend>;

/// Where the proxy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its node.
    pub node: String,
    /// The zone of its node, if the node tells.
    pub zone: Option<String>,
}

/// The ready endpoints that are meant for those at one place.
#[derive(Default)]
struct Hinted {
    mine: BTreeSet<SocketAddrV4>,
    /// Whether an endpoint does not tell whom it is for.
    unclear: bool,
}

impl Hinted {
    fn note<'a>(
        &mut self,
        address: SocketAddrV4,
        meant_for: impl Iterator<Item = &'a str>,
        me: Option<&str>,
    ) {
        let mut meant_for = meant_for.peekable();
        self.unclear |= meant_for.peek().is_none();
        if meant_for.any(|name| Some(name) == me) {
            self.mine.insert(address);
        }
    }

    /// Hints hold where every endpoint has one and somebody is meant for this place.
    fn chosen(&self) -> Option<&BTreeSet<SocketAddrV4>> {
        (!self.unclear && !self.mine.is_empty()).then_some(&self.mine)
    }
}

/// The endpoints of one Service port.
#[derive(Default)]
struct Endpoints {
    ready: BTreeSet<SocketAddrV4>,
    /// Those of `ready` that are meant for this node, and for its zone.
    for_node: Hinted,
    for_zone: Hinted,
    /// Shutting down, but still serving: used where nothing is ready.
    leaving: BTreeSet<SocketAddrV4>,
    ready_here: BTreeSet<SocketAddrV4>,
    leaving_here: BTreeSet<SocketAddrV4>,
}

impl Endpoints {
    fn anywhere(&self) -> &BTreeSet<SocketAddrV4> {
        if self.ready.is_empty() {
            return &self.leaving;
        }
        let near = self.for_node.chosen().or(self.for_zone.chosen());
        near.unwrap_or(&self.ready)
    }

    fn add_ready(&mut self, address: SocketAddrV4, hints: Option<&EndpointHints>, place: &Place) {
        self.ready.insert(address);
        let nodes = hints.and_then(|h| h.for_nodes.as_deref());
        let nodes = nodes.into_iter().flatten().map(|n| n.name.as_str());
        self.for_node.note(address, nodes, Some(&place.node));
        let zones = hints.and_then(|h| h.for_zones.as_deref());
        let zones = zones.into_iter().flatten().map(|z| z.name.as_str());
        self.for_zone.note(address, zones, place.zone.as_deref());
    }

    fn here(&self) -> &BTreeSet<SocketAddrV4> {
        if self.ready_here.is_empty() {
            &self.leaving_here
        } else {
            &self.ready_here
        }
    }
}

/// The Service's frontends as they should be at `place`.
pub fn frontends(service: &Service, slices: &[EndpointSlice], place: &Place) -> Frontends {
    let mut all = Frontends::new();
    let Some(spec) = service.spec.as_ref().filter(|_| is_ours(service)) else {
        return all;
    };
    let addresses = Addresses::of(service);
    let inside_local = is_local(spec.internal_traffic_policy.as_deref());
    let outside_local = is_local(spec.external_traffic_policy.as_deref());
    for port in spec.ports.iter().flatten() {
        let protocol = Protocol::parse(port.protocol.as_deref());
        let Some((protocol, number)) = protocol.zip(u16::try_from(port.port).ok()) else {
            continue;
        };
        let mut share = PortShare {
            all: &mut all,
            protocol,
            endpoints: collect(slices, port, protocol, place),
            affinity: affinity(service),
        };
        for address in &addresses.cluster {
            let backend = share.backend(inside_local, &[]);
            share.put(Audience::All, Some(*address), number, backend);
        }
        for address in &addresses.external {
            share.put_outside(Some(*address), number, outside_local, &[]);
        }
        for address in &addresses.balancer {
            share.put_outside(Some(*address), number, outside_local, &addresses.sources);
        }
        if let Some(node_port) = node_port(service, port) {
            share.put_outside(None, node_port, outside_local, &[]);
        }
    }
    all
}

/// The frontends of one port of a Service, as they are found.
struct PortShare<'a> {
    all: &'a mut Frontends,
    protocol: Protocol,
    endpoints: Endpoints,
    affinity: Option<u32>,
}

impl PortShare<'_> {
    fn backend(&self, local: bool, sources: &[Ipv4Net]) -> Backend {
        let anywhere = self.endpoints.anywhere();
        let (chosen, otherwise) = match local {
            true if !anywhere.is_empty() => (self.endpoints.here(), Otherwise::Drop),
            _ => (anywhere, Otherwise::Reject),
        };
        Backend {
            endpoints: chosen.iter().copied().take(MAX_ENDPOINTS).collect(),
            otherwise,
            affinity: self.affinity,
            sources: sources.to_vec(),
        }
    }

    /// Where only this node's endpoints are for the world, the cluster's own packets still go to all of them.
    fn put_outside(
        &mut self,
        address: Option<Ipv4Addr>,
        port: u16,
        local: bool,
        sources: &[Ipv4Net],
    ) {
        let backend = self.backend(local, sources);
        self.put(Audience::All, address, port, backend);
        if local {
            let everywhere = self.backend(false, sources);
            self.put(Audience::Internal, address, port, everywhere);
        }
    }

    fn put(&mut self, audience: Audience, address: Option<Ipv4Addr>, port: u16, backend: Backend) {
        let protocol = self.protocol;
        self.all.insert(
            Frontend {
                audience,
                address,
                protocol,
                port,
            },
            backend,
        );
    }
}

fn is_local(policy: Option<&str>) -> bool {
    policy == Some("Local")
}

fn is_ours(service: &Service) -> bool {
    let labelled = service
        .metadata
        .labels
        .as_ref()
        .is_some_and(|l| l.contains_key(PROXY_NAME_LABEL));
    let kind = service.spec.as_ref().and_then(|s| s.type_.as_deref());
    !labelled && kind != Some("ExternalName")
}

fn node_port(service: &Service, port: &ServicePort) -> Option<u16> {
    let kind = service.spec.as_ref()?.type_.as_deref()?;
    let exposed = matches!(kind, "NodePort" | "LoadBalancer");
    port.node_port
        .filter(|_| exposed)
        .and_then(|p| u16::try_from(p).ok())
        .filter(|p| *p != 0)
}

fn affinity(service: &Service) -> Option<u32> {
    let spec = service.spec.as_ref()?;
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let configured = spec
        .session_affinity_config
        .as_ref()
        .and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
    configured
        .and_then(|t| u32::try_from(t).ok())
        .filter(|t| *t > 0)
        .or(Some(DEFAULT_AFFINITY))
}

/// The addresses of a Service, but for node ports.
struct Addresses {
    cluster: BTreeSet<Ipv4Addr>,
    external: BTreeSet<Ipv4Addr>,
    balancer: BTreeSet<Ipv4Addr>,
    /// Who may use `balancer`; empty is everybody.
    sources: Vec<Ipv4Net>,
}

impl Addresses {
    fn of(service: &Service) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        let parse = |s: &String| s.parse::<Ipv4Addr>().ok();
        let listed = spec.cluster_ips.filter(|ips| !ips.is_empty());
        let cluster = listed.unwrap_or_else(|| spec.cluster_ip.into_iter().collect());
        let ingress = service
            .status
            .as_ref()
            .and_then(|s| s.load_balancer.as_ref()?.ingress.clone());
        let caught = ingress
            .into_iter()
            .flatten()
            .filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
        let is_balancer = spec.type_.as_deref() == Some("LoadBalancer");
        let sources = spec.load_balancer_source_ranges.unwrap_or_default();
        let sources: Vec<Ipv4Net> = sources
            .iter()
            .filter_map(|s| s.trim().parse().ok())
            .collect();
        Addresses {
            cluster: cluster.iter().filter_map(parse).collect(),
            external: spec
                .external_ips
                .iter()
                .flatten()
                .filter_map(parse)
                .collect(),
            balancer: caught
                .filter_map(|i| i.ip)
                .filter(|_| is_balancer)
                .filter_map(|ip| parse(&ip))
                .collect(),
            sources: Ipv4Net::aggregate(&sources.iter().map(Ipv4Net::trunc).collect()),
        }
    }
}

fn collect(
    slices: &[EndpointSlice],
    port: &ServicePort,
    protocol: Protocol,
    place: &Place,
) -> Endpoints {
    let mut found = Endpoints::default();
    let name = port.name.as_deref().unwrap_or_default();
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let matching = slice.ports.iter().flatten().find(|p| {
            p.name.as_deref().unwrap_or_default() == name
                && Protocol::parse(p.protocol.as_deref()) == Some(protocol)
        });
        let Some(number) = matching.and_then(|p| u16::try_from(p.port?).ok()) else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(address) = endpoint.addresses.first().and_then(|a| a.parse().ok()) else {
                continue;
            };
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            let leaving =
                conditions.serving.unwrap_or(ready) && conditions.terminating.unwrap_or(false);
            let here = endpoint.node_name.as_ref() == Some(&place.node);
            let address = SocketAddrV4::new(address, number);
            // An endpoint that is shutting down is never ready, except where its Service publishes those too.
            if ready {
                found.add_ready(address, endpoint.hints.as_ref(), place);
                if here {
                    found.ready_here.insert(address);
                }
            } else if leaving {
                found.leaving.insert(address);
                if here {
                    found.leaving_here.insert(address);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec,
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}}}),
        )
        .unwrap()
    }

    fn slice(endpoints: serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json!({"metadata": {"name": "web-1"}, "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}))
        .unwrap()
    }

    fn endpoint(
        ip: &str,
        node: &str,
        ready: bool,
        serving: bool,
        terminating: bool,
    ) -> serde_json::Value {
        json!({"addresses": [ip], "nodeName": node,
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
    }

    /// A node that tells no zone.
    fn on(node: &str) -> Place {
        Place {
            node: node.into(),
            zone: None,
        }
    }

    fn show(frontends: &Frontends) -> Vec<String> {
        let show = |(f, b): (&Frontend, &Backend)| {
            let address = f.address.map_or("*".to_string(), |a| a.to_string());
            let endpoints: Vec<_> = b.endpoints.iter().map(|e| e.to_string()).collect();
            let to = if endpoints.is_empty() {
                format!("{:?}", b.otherwise)
            } else {
                endpoints.join(" ")
            };
            format!(
                "{:?} {address} {:?} {} -> {to}",
                f.audience, f.protocol, f.port
            )
        };
        frontends.iter().map(show).collect()
    }

    #[test]
    fn cluster_addresses_lead_to_ready_endpoints_by_port_name() {
        let service = service(
            json!({"clusterIP": "10.43.0.5", "clusterIPs": ["10.43.0.5", "fd00::5"],
            "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "no", "port": 9}]}),
        );
        let slices = [
            slice(json!([
                endpoint("10.42.0.3", "a", true, true, false),
                endpoint("10.42.1.2", "b", true, true, false)
            ])),
            slice(json!([
                endpoint("10.42.0.3", "a", true, true, false),
                endpoint("10.42.0.4", "a", false, true, true)
            ])),
        ];
        assert_eq!(
            show(&frontends(&service, &slices, &on("a"))),
            [
                "All 10.43.0.5 Tcp 9 -> Reject",
                "All 10.43.0.5 Tcp 80 -> 10.42.0.3:8080 10.42.1.2:8080",
                "All 10.43.0.5 Udp 53 -> 10.42.0.3:53 10.42.1.2:53",
            ]
        );
    }

    #[test]
    fn endpoints_that_are_leaving_serve_where_none_is_ready() {
        let service =
            service(json!({"clusterIP": "10.43.0.5", "ports": [{"name": "http", "port": 80}]}));
        let slices = [slice(json!([
            endpoint("10.42.0.3", "a", false, true, true),
            endpoint("10.42.0.4", "a", false, false, true),
            endpoint("10.42.0.5", "a", false, false, false)
        ]))];
        assert_eq!(
            show(&frontends(&service, &slices, &on("a"))),
            ["All 10.43.0.5 Tcp 80 -> 10.42.0.3:8080"]
        );
    }

    #[test]
    fn outside_addresses_follow_the_external_policy() {
        let spec = |policy: &str| {
            json!({"type": "LoadBalancer", "clusterIP": "10.43.0.5", "externalTrafficPolicy": policy,
                "externalIPs": ["192.0.2.8"], "ports": [{"name": "http", "port": 80, "nodePort": 30080}]})
        };
        let remote = [slice(json!([endpoint(
            "10.42.1.2",
            "b",
            true,
            true,
            false
        )]))];
        assert_eq!(
            show(&frontends(&service(spec("Cluster")), &remote, &on("a"))),
            [
                "All * Tcp 30080 -> 10.42.1.2:8080",
                "All 10.43.0.5 Tcp 80 -> 10.42.1.2:8080",
                "All 192.0.2.8 Tcp 80 -> 10.42.1.2:8080",
                "All 192.0.2.9 Tcp 80 -> 10.42.1.2:8080",
            ]
        );
        assert_eq!(
            show(&frontends(&service(spec("Local")), &remote, &on("a"))),
            [
                "All * Tcp 30080 -> Drop",
                "All 10.43.0.5 Tcp 80 -> 10.42.1.2:8080",
                "All 192.0.2.8 Tcp 80 -> Drop",
                "All 192.0.2.9 Tcp 80 -> Drop",
                "Internal * Tcp 30080 -> 10.42.1.2:8080",
                "Internal 192.0.2.8 Tcp 80 -> 10.42.1.2:8080",
                "Internal 192.0.2.9 Tcp 80 -> 10.42.1.2:8080",
            ]
        );
        assert_eq!(
            show(&frontends(&service(spec("Local")), &[], &on("a")))[0],
            "All * Tcp 30080 -> Reject"
        );
    }

    #[test]
    fn the_internal_policy_keeps_to_this_node() {
        let service = service(
            json!({"clusterIP": "10.43.0.5", "internalTrafficPolicy": "Local",
            "ports": [{"name": "http", "port": 80}]}),
        );
        let slices = [slice(json!([
            endpoint("10.42.0.2", "a", true, true, false),
            endpoint("10.42.1.2", "b", true, true, false)
        ]))];
        assert_eq!(
            show(&frontends(&service, &slices, &on("a"))),
            ["All 10.43.0.5 Tcp 80 -> 10.42.0.2:8080"]
        );
        assert_eq!(
            show(&frontends(&service, &slices, &on("c"))),
            ["All 10.43.0.5 Tcp 80 -> Drop"]
        );
    }

    #[test]
    fn hints_are_followed_where_every_endpoint_has_one_and_one_is_for_us() {
        let service =
            service(json!({"clusterIP": "10.43.0.5", "ports": [{"name": "http", "port": 80}]}));
        let hinted = |ip: &str, ready: bool, nodes: &[&str], zones: &[&str]| {
            let names = |all: &[&str]| all.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
            let mut endpoint = endpoint(ip, "x", ready, ready, false);
            endpoint["hints"] = json!({"forNodes": names(nodes), "forZones": names(zones)});
            endpoint
        };
        let near = [
            hinted("10.42.0.1", true, &["a"], &["z1"]),
            hinted("10.42.0.2", true, &["b"], &["z1", "z2"]),
            hinted("10.42.0.3", true, &["c"], &["z2"]),
        ];
        let unready = hinted("10.42.0.9", false, &[], &[]);
        let by_zone = [near[1].clone(), hinted("10.42.0.4", true, &[], &["z1"])];
        let unclear = [near[0].clone(), hinted("10.42.0.4", true, &[], &[])];
        let of_a = |zone: &str| Place {
            node: "a".into(),
            zone: Some(zone.into()),
        };
        let elsewhere = |zone: &str| Place {
            node: "q".into(),
            zone: Some(zone.into()),
        };
        let cases: [(&[serde_json::Value], Place, &[u8]); 8] = [
            (&near, of_a("z2"), &[1]),
            (&near, on("b"), &[2]),
            (&near, elsewhere("z1"), &[1, 2]),
            (&near, elsewhere("z2"), &[2, 3]),
            (&near, elsewhere("z3"), &[1, 2, 3]),
            (&near, on("q"), &[1, 2, 3]),
            (&by_zone, of_a("z2"), &[2]),
            (&unclear, of_a("z1"), &[1, 4]),
        ];
        for (endpoints, place, expected) in cases {
            let all = [endpoints, std::slice::from_ref(&unready)].concat();
            let found = frontends(&service, &[slice(json!(all))], &place);
            let expected: Vec<_> = expected
                .iter()
                .map(|n| format!("10.42.0.{n}:8080"))
                .collect();
            assert_eq!(
                show(&found),
                [format!("All 10.43.0.5 Tcp 80 -> {}", expected.join(" "))],
                "{place:?}"
            );
        }
    }

    #[test]
    fn a_policy_of_this_node_alone_goes_before_hints() {
        let service = service(
            json!({"clusterIP": "10.43.0.5", "internalTrafficPolicy": "Local",
            "ports": [{"name": "http", "port": 80}]}),
        );
        let mut here = endpoint("10.42.0.2", "a", true, true, false);
        here["hints"] = json!({"forZones": [{"name": "other"}]});
        assert_eq!(
            show(&frontends(&service, &[slice(json!([here]))], &on("a"))),
            ["All 10.43.0.5 Tcp 80 -> 10.42.0.2:8080"]
        );
    }

    #[test]
    fn headless_external_and_foreign_services_have_no_frontends() {
        for spec in [
            json!({"clusterIP": "None", "ports": [{"port": 80}]}),
            json!({"type": "ExternalName", "externalName": "example.org", "ports": [{"port": 80, "nodePort": 3}]}),
        ] {
            assert!(frontends(&service(spec), &[], &on("a")).is_empty());
        }
        let mut foreign = service(json!({"clusterIP": "10.43.0.5", "ports": [{"port": 80}]}));
        foreign.metadata.labels = Some([(PROXY_NAME_LABEL.to_string(), "x".to_string())].into());
        assert!(frontends(&foreign, &[], &on("a")).is_empty());
    }

    #[test]
    fn affinity_has_a_time() {
        let with = |extra: serde_json::Value| {
            let mut spec = json!({"clusterIP": "10.43.0.5", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
            spec.as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            frontends(&service(spec), &[], &on("a"))
                .into_values()
                .next()
                .unwrap()
                .affinity
        };
        assert_eq!(with(json!({})), Some(10_800));
        assert_eq!(
            with(json!({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}})),
            Some(60)
        );
    }
}
