//! What the cluster's names mean: a projection of Services and EndpointSlices, and look-ups in it. Pure.
//!
//! The names are those of Kubernetes' DNS specification (schema 1.1.0), below the cluster's domain:
//!
//! ```text
//! <service>.<ns>.svc                  A AAAA   cluster address, or each ready endpoint of a headless Service
//!                                     CNAME    of an ExternalName Service
//! <host>.<service>.<ns>.svc           A AAAA   one endpoint: its hostname, or its address with dashes
//! _<port>._<proto>.<service>.<ns>.svc SRV      the port, at the Service or at each endpoint
//! 10-42-0-5.<ns>.pod                  A        the address it spells
//! dns-version                         TXT      the schema
//! ```

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use client::Key;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Version of the naming schema.
pub(crate) const SCHEMA_VERSION: &str = "1.1.0";

/// A port with the name and protocol it is found by, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its name; empty for the only port of a Service.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Its number.
    pub number: u16,
}

/// An endpoint that is ready (or published before it is).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its name below the Service's.
    pub host: String,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// What a Service's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Its cluster addresses.
    Cluster(Vec<IpAddr>),
    /// Its endpoints themselves.
    Headless,
    /// Another name.
    External(String),
}

/// A Service as far as names go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What its name stands for.
    pub target: Target,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its ready endpoints; sorted.
    pub endpoints: Vec<Endpoint>,
}

impl Record {
    /// The projection of a Service and its slices.
    pub fn of(service: &Service, slices: &[EndpointSlice]) -> Option<Record> {
        let spec = service.spec.as_ref()?;
        let ports = spec.ports.iter().flatten();
        let ports = ports
            .filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), Some(p.port)))
            .collect();
        let target = if spec.type_.as_deref() == Some("ExternalName") {
            Target::External(
                spec.external_name
                    .clone()?
                    .trim_end_matches('.')
                    .to_string(),
            )
        } else {
            let listed = spec.cluster_ips.clone().filter(|ips| !ips.is_empty());
            let ips = listed.unwrap_or_else(|| spec.cluster_ip.clone().into_iter().collect());
            let addresses: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
            if ips.first().is_some_and(|ip| ip == "None") {
                Target::Headless
            } else if addresses.is_empty() {
                return None;
            } else {
                Target::Cluster(addresses)
            }
        };
        let mut endpoints: Vec<Endpoint> = slices.iter().flat_map(endpoints_of).collect();
        endpoints.sort();
        endpoints.dedup();
        Some(Record {
            target,
            ports,
            endpoints,
        })
    }
}

fn port(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Option<Port> {
    Some(Port {
        name: name.unwrap_or_default().to_ascii_lowercase(),
        protocol: protocol.unwrap_or("TCP").to_ascii_lowercase(),
        number: u16::try_from(number?).ok()?,
    })
}

fn endpoints_of(slice: &EndpointSlice) -> Vec<Endpoint> {
    let ports = slice.ports.iter().flatten();
    let ports: Vec<Port> = ports
        .filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port))
        .collect();
    let ready = slice.endpoints.iter().flatten();
    let ready = ready.filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
    let each = ready.flat_map(|endpoint| {
        let addresses = endpoint
            .addresses
            .iter()
            .filter_map(|a| a.parse::<IpAddr>().ok());
        let hostname = endpoint
            .hostname
            .clone()
            .filter(|h| !h.is_empty())
            .map(|h| h.to_ascii_lowercase());
        addresses
            .map(move |address| (address, hostname.clone()))
            .collect::<Vec<_>>()
    });
    each.map(|(address, hostname)| Endpoint {
        address,
        host: hostname.unwrap_or_else(|| dashed(address)),
        ports: ports.clone(),
    })
    .collect()
}

/// An address as one label.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6))
        .ok()
}

/// A service record: where, and at which port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The name of the host, below the cluster's domain, without a dot at its end.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The name does not exist, nor does any below it.
    Nothing,
    /// The name exists only because others below it do, or is the domain itself.
    Empty,
    /// The name has addresses, and is found at ports.
    Addresses {
        /// Its addresses, of both families.
        addresses: Vec<IpAddr>,
        /// Its service records.
        locations: Vec<Location>,
    },
    /// The name stands for another.
    Alias(String),
    /// The name has a text.
    Text(&'static str),
}

/// All Services' names.
#[derive(Debug, Default)]
pub struct Zone {
    /// Namespace to name to what it means.
    services: HashMap<String, BTreeMap<String, Record>>,
    /// Address to the Services it belongs to.
    owners: HashMap<IpAddr, Vec<Key>>,
}

impl Zone {
    /// Gives a Service its meaning; None takes it away.
    pub fn set(&mut self, key: &Key, record: Option<Record>) {
        let names = self.services.entry(key.namespace.to_string()).or_default();
        let old = match record.clone() {
            Some(record) => names.insert(key.name.to_string(), record),
            None => names.remove(&*key.name),
        };
        if names.is_empty() {
            self.services.remove(&*key.namespace);
        }
        for address in old.iter().flat_map(addresses_of) {
            if let Some(owners) = self.owners.get_mut(&address) {
                owners.retain(|owner| owner != key);
                if owners.is_empty() {
                    self.owners.remove(&address);
                }
            }
        }
        for address in record.iter().flat_map(addresses_of) {
            let owners = self.owners.entry(address).or_default();
            if !owners.contains(key) {
                owners.push(key.clone());
                owners.sort();
            }
        }
    }

    /// What a name below the cluster's domain means. `labels` are those before the domain, in lower case.
    pub fn look_up(&self, labels: &[&str]) -> Found {
        match labels {
            [] | ["svc"] | ["pod"] => Found::Empty,
            ["dns-version"] => Found::Text(SCHEMA_VERSION),
            [namespace, "svc"] => {
                if self.services.contains_key(*namespace) {
                    Found::Empty
                } else {
                    Found::Nothing
                }
            }
            // Nobody says which namespaces exist where no Service does; pods' names are spelled, not looked up.
            [_, "pod"] => Found::Empty,
            [address, _, "pod"] => match undashed(address) {
                Some(address) => Found::Addresses {
                    addresses: vec![address],
                    locations: Vec::new(),
                },
                None => Found::Nothing,
            },
            [rest @ .., service, namespace, "svc"] => {
                self.look_up_service(rest, service, namespace)
            }
            _ => Found::Nothing,
        }
    }

    fn look_up_service(&self, rest: &[&str], service: &str, namespace: &str) -> Found {
        let Some(record) = self
            .services
            .get(namespace)
            .and_then(|names| names.get(service))
        else {
            return Found::Nothing;
        };
        let suffix = format!("{service}.{namespace}.svc");
        if let Target::External(name) = &record.target {
            return if rest.is_empty() {
                Found::Alias(name.clone())
            } else {
                Found::Nothing
            };
        }
        match rest {
            [] => whole(record, &suffix),
            [port, protocol] if port.starts_with('_') && protocol.starts_with('_') => {
                at_port(record, &suffix, &port[1..], &protocol[1..])
            }
            [protocol] if protocol.starts_with('_') => {
                let known = record.ports.iter().any(|p| p.protocol == protocol[1..]);
                if known { Found::Empty } else { Found::Nothing }
            }
            [host] => one_endpoint(record, &suffix, host),
            _ => Found::Nothing,
        }
    }

    /// The names of an address, below the cluster's domain.
    pub fn names_of(&self, address: IpAddr) -> Vec<String> {
        let mut names = Vec::new();
        for key in self.owners.get(&address).into_iter().flatten() {
            let Some(record) = self
                .services
                .get(&*key.namespace)
                .and_then(|n| n.get(&*key.name))
            else {
                continue;
            };
            let suffix = format!("{}.{}.svc", key.name, key.namespace);
            match &record.target {
                Target::Cluster(addresses) if addresses.contains(&address) => names.push(suffix),
                _ => {
                    let hosts = record.endpoints.iter().filter(|e| e.address == address);
                    names.extend(hosts.map(|e| format!("{}.{suffix}", e.host)));
                }
            }
        }
        names.dedup();
        names
    }
}

fn addresses_of(record: &Record) -> Vec<IpAddr> {
    let own = match &record.target {
        Target::Cluster(addresses) => addresses.clone(),
        _ => Vec::new(),
    };
    own.into_iter()
        .chain(record.endpoints.iter().map(|e| e.address))
        .collect()
}

fn whole(record: &Record, suffix: &str) -> Found {
    match &record.target {
        Target::Cluster(addresses) => {
            let at = |p: &Port| Location {
                host: suffix.to_string(),
                port: p.number,
                addresses: addresses.clone(),
            };
            Found::Addresses {
                addresses: addresses.clone(),
                locations: record.ports.iter().map(at).collect(),
            }
        }
        _ => {
            let addresses = distinct(record.endpoints.iter().map(|e| e.address));
            Found::Addresses {
                addresses,
                locations: locations(&record.endpoints, suffix, |_| true),
            }
        }
    }
}

fn at_port(record: &Record, suffix: &str, name: &str, protocol: &str) -> Found {
    let wanted = |p: &Port| p.name == name && p.protocol == protocol;
    match &record.target {
        Target::Cluster(addresses) => match record.ports.iter().find(|p| wanted(p)) {
            Some(port) => {
                let addresses = addresses.clone();
                let location = Location {
                    host: suffix.to_string(),
                    port: port.number,
                    addresses: addresses.clone(),
                };
                Found::Addresses {
                    addresses,
                    locations: vec![location],
                }
            }
            None => Found::Nothing,
        },
        _ => {
            let locations = locations(&record.endpoints, suffix, wanted);
            if locations.is_empty() && !record.ports.iter().any(wanted) {
                return Found::Nothing;
            }
            let addresses = distinct(locations.iter().flat_map(|l| l.addresses.iter().copied()));
            Found::Addresses {
                addresses,
                locations,
            }
        }
    }
}

fn one_endpoint(record: &Record, suffix: &str, host: &str) -> Found {
    let chosen: Vec<Endpoint> = record
        .endpoints
        .iter()
        .filter(|e| e.host == host)
        .cloned()
        .collect();
    if chosen.is_empty() {
        return Found::Nothing;
    }
    let addresses = distinct(chosen.iter().map(|e| e.address));
    Found::Addresses {
        addresses,
        locations: locations(&chosen, suffix, |_| true),
    }
}

fn distinct(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let set: std::collections::BTreeSet<IpAddr> = addresses.collect();
    set.into_iter().collect()
}

/// Service records of endpoints; both families of one host make one.
fn locations(
    endpoints: &[Endpoint],
    suffix: &str,
    wanted: impl Fn(&Port) -> bool,
) -> Vec<Location> {
    let mut by_place: BTreeMap<(String, u16), Vec<IpAddr>> = BTreeMap::new();
    for endpoint in endpoints {
        for port in endpoint.ports.iter().filter(|p| wanted(p)) {
            let place = (format!("{}.{suffix}", endpoint.host), port.number);
            by_place.entry(place).or_default().push(endpoint.address);
        }
    }
    let location = |((host, port), addresses): ((String, u16), Vec<IpAddr>)| Location {
        host,
        port,
        addresses: distinct(addresses.into_iter()),
    };
    by_place.into_iter().map(location).collect()
}
