//! Cluster IPs and node ports of services.
//!
//! A taken address is an IPAddress object, a taken node port a key under `/registry/ranges/nodeports/`. Both are
//! written and removed by the commit that writes or removes the service, so the store itself decides who gets
//! what: there is no allocator in memory that could be wrong after a crash.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::{FieldError, meta};
use bytes::Bytes;
use ipnet::IpNet;
use rand::Rng;
use serde_json::{Value, json};
use store::{RangeRequest, prefix_end};

use super::create::new_uid;
use super::{Claims, Fail, Registry, Write, read_failure};

const ADDRESSES: &str = "/registry/networking.k8s.io/ipaddresses/";
const PORTS: &str = "/registry/ranges/nodeports/";
/// Random candidates tried before the whole range is looked through.
const RANDOM_TRIES: usize = 16;
/// Most addresses kept for services that ask for a fixed one (upstream's static band).
const STATIC_BAND_MAX: u128 = 256;

/// What a service holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<u16>,
}

fn wants_address(service: &Value) -> bool {
    meta::str_at(service, &["spec", "type"]) != "ExternalName"
        && meta::str_at(service, &["spec", "clusterIP"]) != "None"
}

fn wants_ports(service: &Value) -> bool {
    match meta::str_at(service, &["spec", "type"]) {
        "NodePort" => true,
        "LoadBalancer" => meta::get(service, &["spec", "allocateLoadBalancerNodePorts"])
            .and_then(Value::as_bool)
            .unwrap_or(true),
        _ => false,
    }
}

fn wants_health_port(service: &Value) -> bool {
    meta::str_at(service, &["spec", "type"]) == "LoadBalancer"
        && meta::str_at(service, &["spec", "externalTrafficPolicy"]) == "Local"
}

fn port_number(value: Option<&Value>) -> Option<u16> {
    value
        .and_then(Value::as_u64)
        .and_then(|p| u16::try_from(p).ok())
        .filter(|p| *p != 0)
}

fn held(service: &Value) -> Held {
    let mut held = Held::default();
    if wants_address(service) {
        let mut texts: Vec<&str> = meta::list_at(service, &["spec", "clusterIPs"])
            .iter()
            .filter_map(Value::as_str)
            .collect();
        texts.push(meta::str_at(service, &["spec", "clusterIP"]));
        held.addresses
            .extend(texts.iter().filter_map(|t| t.parse::<IpAddr>().ok()));
    }
    let ports = meta::list_at(service, &["spec", "ports"]);
    held.ports
        .extend(ports.iter().filter_map(|p| port_number(p.get("nodePort"))));
    held.ports.extend(port_number(meta::get(
        service,
        &["spec", "healthCheckNodePort"],
    )));
    held
}

/// Keeps what is allocated when an update does not mention it, and drops node ports that its type has no use for.
pub(super) fn keep_allocated(new: &mut Value, old: &Value) {
    if wants_address(new)
        && wants_address(old)
        && meta::str_at(new, &["spec", "clusterIP"]).is_empty()
    {
        for field in ["clusterIP", "clusterIPs"] {
            if let Some(value) = meta::get(old, &["spec", field]) {
                meta::set(new, &["spec", field], value.clone());
            }
        }
    }
    if wants_ports(new) && wants_ports(old) {
        let before = meta::list_at(old, &["spec", "ports"]).to_vec();
        let same = |a: &Value, b: &Value| {
            let protocol = |v: &Value| {
                v.get("protocol")
                    .and_then(Value::as_str)
                    .unwrap_or("TCP")
                    .to_owned()
            };
            a.get("port") == b.get("port") && protocol(a) == protocol(b)
        };
        for port in ports_mut(new)
            .iter_mut()
            .filter(|p| port_number(p.get("nodePort")).is_none())
        {
            if let Some(number) = before
                .iter()
                .find(|o| same(o, port))
                .and_then(|o| o.get("nodePort"))
            {
                meta::set(port, &["nodePort"], number.clone());
            }
        }
    }
    if wants_health_port(new)
        && wants_health_port(old)
        && meta::get(new, &["spec", "healthCheckNodePort"]).is_none()
        && let Some(port) = meta::get(old, &["spec", "healthCheckNodePort"])
    {
        meta::set(new, &["spec", "healthCheckNodePort"], port.clone());
    }
    // A change of type gives back what the client repeats unchanged from the old object.
    if !wants_ports(new) && wants_ports(old) {
        let before = held(old).ports;
        for port in ports_mut(new) {
            if port_number(port.get("nodePort")).is_some_and(|p| before.contains(&p)) {
                meta::remove(port, &["nodePort"]);
            }
        }
    }
}

fn ports_mut(service: &mut Value) -> &mut [Value] {
    service
        .pointer_mut("/spec/ports")
        .and_then(Value::as_array_mut)
        .map_or(&mut [], Vec::as_mut_slice)
}

fn address_key(address: IpAddr) -> Bytes {
    format!("{ADDRESSES}{address}").into()
}

fn port_key(port: u16) -> Bytes {
    format!("{PORTS}{port}").into()
}

/// Number of addresses of a range that services may have, and the first one's number: network, broadcast stay out.
fn usable(cidr: &IpNet) -> (u128, u128) {
    match cidr {
        IpNet::V4(net) => (1, (1u128 << (32 - net.prefix_len())).saturating_sub(2)),
        IpNet::V6(net) => (1, (1u128 << (128 - net.prefix_len()).min(64)) - 1),
    }
}

fn address_at(cidr: &IpNet, offset: u128) -> IpAddr {
    match cidr {
        IpNet::V4(net) => {
            IpAddr::V4((u32::from(net.network()) + u32::try_from(offset).unwrap_or(0)).into())
        }
        IpNet::V6(net) => IpAddr::V6((u128::from(net.network()) + offset).into()),
    }
}

/// First offset for services that take any address: those before it are for fixed ones.
fn dynamic_start(count: u128) -> u128 {
    if count < 32 {
        1
    } else {
        1 + (count / 16).clamp(16, STATIC_BAND_MAX)
    }
}

impl Registry {
    /// Adds to `claims` what the change of a service takes and gives back, filling in what it asks to be chosen.
    /// Other kinds claim nothing.
    pub(super) async fn claim_service(
        &self,
        write: &Write<'_>,
        old: Option<&Value>,
        new: Option<&mut Value>,
        claims: &mut Claims,
    ) -> Result<(), Fail> {
        if !write.resource.is("", "services") {
            return Ok(());
        }
        let before = old.map(held).unwrap_or_default();
        let mut after = Held::default();
        if let Some(new) = new {
            let asked = held(new);
            self.choose_address(write, new).await?;
            self.choose_ports(write, new, &before).await?;
            after = held(new);
            let fixed = Held {
                addresses: &asked.addresses - &before.addresses,
                ports: &asked.ports - &before.ports,
            };
            self.check_fixed(write, new, fixed).await?;
            for address in after.addresses.difference(&before.addresses) {
                let object = address_object(*address, write, meta::name(new));
                claims.take(address_key(*address), codec::canonical(&object));
            }
            for port in after.ports.difference(&before.ports) {
                claims.take(
                    port_key(*port),
                    format!("{}/{}", write.namespace, meta::name(new)).into(),
                );
            }
        }
        for address in before.addresses.difference(&after.addresses) {
            claims.release(address_key(*address));
        }
        for port in before.ports.difference(&after.ports) {
            claims.release(port_key(*port));
        }
        Ok(())
    }

    async fn taken(&self, key: &Bytes) -> Result<bool, Fail> {
        Ok(self
            .store
            .get(key, None)
            .await
            .map_err(read_failure)?
            .0
            .is_some())
    }

    async fn choose_address(&self, write: &Write<'_>, service: &mut Value) -> Result<(), Fail> {
        if meta::str_at(service, &["spec", "clusterIP"]) == "None" {
            meta::set(service, &["spec", "clusterIPs"], json!(["None"]));
        } else if wants_address(service) {
            let fixed = meta::str_at(service, &["spec", "clusterIP"]).to_owned();
            let address = if fixed.is_empty() {
                self.free_address(write, service).await?.to_string()
            } else {
                fixed
            };
            meta::set(service, &["spec", "clusterIP"], address.as_str().into());
            meta::set(service, &["spec", "clusterIPs"], json!([address]));
        } else {
            return Ok(());
        }
        if meta::list_at(service, &["spec", "ipFamilies"]).is_empty() {
            let family = if self.config.service_cidr.addr().is_ipv4() {
                "IPv4"
            } else {
                "IPv6"
            };
            meta::set(service, &["spec", "ipFamilies"], json!([family]));
        }
        if meta::str_at(service, &["spec", "ipFamilyPolicy"]).is_empty() {
            meta::set(service, &["spec", "ipFamilyPolicy"], json!("SingleStack"));
        }
        Ok(())
    }

    /// The ranges that cluster IPs are taken from: the server's own, and those that are ready of
    /// its family.
    async fn service_ranges(&self) -> Result<Vec<IpNet>, Fail> {
        let own = self.config.service_cidr;
        let all = self
            .read_all(("networking.k8s.io", "v1", "servicecidrs"), "")
            .await?;
        let ready = |r: &&Value| {
            let holds = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
            let conditions = meta::list_at(r, &["status", "conditions"]);
            r.pointer("/metadata/deletionTimestamp").is_none() && conditions.iter().any(holds)
        };
        let mut ranges = vec![own];
        for range in all.iter().filter(ready) {
            let cidrs = meta::list_at(range, &["spec", "cidrs"]).iter();
            let cidrs = cidrs.filter_map(|c| c.as_str()?.parse::<IpNet>().ok());
            ranges.extend(cidrs.filter(|c| c.addr().is_ipv4() == own.addr().is_ipv4()));
        }
        let mut seen = BTreeSet::new();
        ranges.retain(|r| seen.insert(r.to_string()));
        Ok(ranges)
    }

    async fn free_address(&self, write: &Write<'_>, service: &Value) -> Result<IpAddr, Fail> {
        for cidr in self.service_ranges().await? {
            if let Some(address) = self.free_in(&cidr).await? {
                return Ok(address);
            }
        }
        let why = FieldError::invalid(
            "spec.clusterIPs",
            json!([]),
            "failed to allocate a serviceIP: range is full",
        );
        Err(write.invalid(meta::name(service), &[why]))
    }

    async fn free_in(&self, cidr: &IpNet) -> Result<Option<IpAddr>, Fail> {
        let (first, count) = usable(cidr);
        if count < first {
            return Ok(None);
        }
        let start = dynamic_start(count).min(count);
        for _ in 0..RANDOM_TRIES {
            let address = address_at(cidr, rand::rng().random_range(start..=count));
            if !self.taken(&address_key(address)).await? {
                return Ok(Some(address));
            }
        }
        let taken = self.taken_under(ADDRESSES).await?;
        let all = (start..=count).chain(first..start).take(taken.len() + 1);
        let mut addresses = all.map(|offset| address_at(cidr, offset));
        Ok(addresses.find(|a| !taken.contains(&a.to_string())))
    }

    async fn taken_under(&self, prefix: &'static str) -> Result<BTreeSet<String>, Fail> {
        let start = Bytes::from_static(prefix.as_bytes());
        let range = RangeRequest {
            end: prefix_end(&start),
            start,
            limit: 0,
            at: None,
        };
        let found = self.store.range(range).await.map_err(read_failure)?;
        let name = |key: &[u8]| String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
        Ok(found.kvs.iter().map(|kv| name(&kv.key)).collect())
    }

    async fn choose_ports(
        &self,
        write: &Write<'_>,
        service: &mut Value,
        before: &Held,
    ) -> Result<(), Fail> {
        let name = meta::name(service).to_owned();
        let mut chosen = held(service).ports;
        if wants_ports(service) {
            let missing: Vec<usize> = ports_mut(service)
                .iter()
                .enumerate()
                .filter(|(_, p)| port_number(p.get("nodePort")).is_none())
                .map(|(i, _)| i)
                .collect();
            for i in missing {
                let port = self.free_port(write, &name, &chosen, before).await?;
                chosen.insert(port);
                meta::set(&mut ports_mut(service)[i], &["nodePort"], port.into());
            }
        }
        if wants_health_port(service)
            && port_number(meta::get(service, &["spec", "healthCheckNodePort"])).is_none()
        {
            let port = self.free_port(write, &name, &chosen, before).await?;
            meta::set(service, &["spec", "healthCheckNodePort"], port.into());
        }
        Ok(())
    }

    async fn free_port(
        &self,
        write: &Write<'_>,
        name: &str,
        chosen: &BTreeSet<u16>,
        before: &Held,
    ) -> Result<u16, Fail> {
        let range = &self.config.node_ports;
        let free = |port: &u16| !chosen.contains(port) && !before.ports.contains(port);
        for _ in 0..RANDOM_TRIES {
            let port = rand::rng().random_range(range.clone());
            if free(&port) && !self.taken(&port_key(port)).await? {
                return Ok(port);
            }
        }
        let taken = self.taken_under(PORTS).await?;
        range
            .clone()
            .find(|p| free(p) && !taken.contains(&p.to_string()))
            .ok_or_else(|| {
                let why = FieldError::invalid(
                    "spec.ports",
                    Value::Null,
                    "failed to allocate a nodePort: range is full",
                );
                write.invalid(name, &[why])
            })
    }

    /// Refuses values that were asked for and are out of range or taken by another service. One that was
    /// chosen here and is taken by now is chosen anew after the commit has failed.
    async fn check_fixed(
        &self,
        write: &Write<'_>,
        service: &Value,
        fixed: Held,
    ) -> Result<(), Fail> {
        let mut errors = Vec::new();
        let ranges = if fixed.addresses.is_empty() {
            Vec::new()
        } else {
            self.service_ranges().await?
        };
        let addresses = meta::get(service, &["spec", "clusterIPs"])
            .cloned()
            .unwrap_or_default();
        for address in fixed.addresses {
            let why = if !ranges.iter().any(|r| r.contains(&address)) {
                let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
                format!(
                    "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
                    ranges.join(", ")
                )
            } else if self.taken(&address_key(address)).await? {
                "provided IP is already allocated".to_owned()
            } else {
                continue;
            };
            let why = format!("failed to allocate IP {address}: {why}");
            errors.push(FieldError::invalid(
                "spec.clusterIPs",
                addresses.clone(),
                why,
            ));
        }
        let range = &self.config.node_ports;
        for (i, port) in meta::list_at(service, &["spec", "ports"])
            .iter()
            .enumerate()
        {
            let Some(port) = port_number(port.get("nodePort")).filter(|p| fixed.ports.contains(p))
            else {
                continue;
            };
            let why = if !range.contains(&port) {
                format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    range.start(),
                    range.end()
                )
            } else if self.taken(&port_key(port)).await? {
                "provided port is already allocated".to_owned()
            } else {
                continue;
            };
            errors.push(FieldError::invalid(
                format!("spec.ports[{i}].nodePort"),
                port,
                why,
            ));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(write.invalid(meta::name(service), &errors))
        }
    }
}

fn address_object(address: IpAddr, write: &Write<'_>, service: &str) -> Value {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({
        "kind": "IPAddress",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": {
            "name": address.to_string(),
            "uid": new_uid(),
            "creationTimestamp": api::time::format(write.now),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": family,
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {"parentRef": {"group": "", "resource": "services", "namespace": write.namespace, "name": service}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let cidr: IpNet = "10.43.0.0/16".parse().unwrap();
        assert_eq!(usable(&cidr), (1, 65534));
        assert_eq!(dynamic_start(65534), 257);
        assert_eq!(address_at(&cidr, 65534).to_string(), "10.43.255.254");
        let small: IpNet = "10.0.0.0/30".parse().unwrap();
        assert_eq!((usable(&small), dynamic_start(2)), ((1, 2), 1));
    }

    #[test]
    fn updates_keep_what_they_do_not_mention() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.43.1.1", "clusterIPs": ["10.43.1.1"],
            "ports": [{"port": 80, "nodePort": 30080}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81}]}});
        keep_allocated(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.43.1.1");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
        assert_eq!(new["spec"]["ports"][1].get("nodePort"), None);
        let mut new = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.43.1.1", "ports": [{"port": 80, "nodePort": 30080}]}});
        keep_allocated(&mut new, &old);
        assert_eq!(held(&new).ports, BTreeSet::new());
        let mut new = json!({"spec": {"type": "ExternalName"}});
        keep_allocated(&mut new, &old);
        assert_eq!(held(&new), Held::default());
    }
}
