//! Who is to use which endpoint: hints by `spec.trafficDistribution`, and by the older topology mode
//! `Auto`, which shares endpoints out among zones as these share the nodes' CPU. Pure.

use std::{collections::BTreeMap, str::FromStr};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::{Endpoint, EndpointHints, ForNode, ForZone},
};

use super::ZONE;

/// Annotations that ask for the mode `Auto`; the first that is there counts.
const MODES: [&str; 2] = [
    "service.kubernetes.io/topology-aware-hints",
    "service.kubernetes.io/topology-mode",
];
/// Nodes with one of these labels do not count as capacity of their zone.
const EXCLUDED: [&str; 2] = [
    "node-role.kubernetes.io/control-plane",
    "node-role.kubernetes.io/master",
];
/// How much more than its share an endpoint may have to bear.
const OVERLOAD: f64 = 0.2;

/// What a service says of who is to use which endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Anybody any.
    Anyone,
    /// Those in the zone of an endpoint.
    SameZone,
    /// Those on the node of an endpoint, or else in its zone.
    SameNode,
    /// Zones get endpoints as they have CPU.
    Auto,
}

impl Policy {
    /// The policy of a service.
    pub fn of(service: &Service) -> Self {
        let annotations = service.metadata.annotations.as_ref();
        let mode = MODES.iter().find_map(|m| annotations?.get(*m));
        if mode.is_some_and(|m| m == "Auto" || m == "auto") {
            return Self::Auto;
        }
        let spec = service.spec.as_ref();
        match spec.and_then(|s| s.traffic_distribution.as_deref()) {
            Some("PreferClose" | "PreferSameZone") => Self::SameZone,
            Some("PreferSameNode") => Self::SameNode,
            _ => Self::Anyone,
        }
    }
}

/// Sets the hint of one endpoint, where its own place is all there is to know.
pub fn near(endpoint: &mut Endpoint, policy: Policy) {
    let by_zone = matches!(policy, Policy::SameZone | Policy::SameNode) && is_ready(endpoint);
    let by_node = policy == Policy::SameNode && is_ready(endpoint);
    let zone = endpoint.zone.clone().filter(|_| by_zone);
    let node = endpoint.node_name.clone().filter(|_| by_node);
    endpoint.hints = (zone.is_some() || node.is_some()).then(|| EndpointHints {
        for_zones: zone.map(|name| vec![ForZone { name }]),
        for_nodes: node.map(|name| vec![ForNode { name }]),
    });
}

/// The zone an endpoint is for.
pub fn zone(endpoint: &Endpoint) -> Option<String> {
    let zones = endpoint.hints.as_ref()?.for_zones.as_ref()?;
    zones.first().map(|z| z.name.clone())
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(true)
}

/// What a node counts for: its zone and thousandths of a CPU. `None`: it does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity(Option<(String, i64)>);

impl Capacity {
    /// Of a node; one without zone or CPU counts, and spoils the shares of all.
    pub fn of(node: &Node) -> Self {
        let labels = node.metadata.labels.as_ref();
        let label = |key: &str| labels.and_then(|l| l.get(key));
        let status = node.status.as_ref();
        let conditions = status.and_then(|s| s.conditions.as_deref());
        let is_ready = conditions
            .unwrap_or_default()
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        if !is_ready || EXCLUDED.iter().any(|key| label(key).is_some()) {
            return Self(None);
        }
        let cpu = status.and_then(|s| s.allocatable.as_ref()?.get("cpu"));
        let cpu = cpu.and_then(|q| api::Quantity::from_str(&q.0).ok());
        let cpu = cpu.map_or(0, |q| q.milli_value());
        Self(Some((label(ZONE).cloned().unwrap_or_default(), cpu)))
    }
}

/// Which part of the CPU each zone has; at least two zones.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares(BTreeMap<String, f64>);

impl Shares {
    /// Of all nodes; `None` where one does not tell enough, or all are in one zone.
    pub fn of(nodes: impl IntoIterator<Item = Capacity>) -> Option<Self> {
        let mut zones: BTreeMap<String, i64> = BTreeMap::new();
        for (zone, cpu) in nodes.into_iter().filter_map(|c| c.0) {
            if zone.is_empty() || cpu <= 0 {
                return None;
            }
            *zones.entry(zone).or_default() += cpu;
        }
        let total: i64 = zones.values().sum();
        let share = |(zone, cpu): (String, i64)| (zone, cpu as f64 / total as f64);
        (zones.len() >= 2).then(|| Self(zones.into_iter().map(share).collect()))
    }
}

/// How many endpoints a zone is to get.
struct Allocation {
    desired: f64,
    most: usize,
}

/// Gives the ready ones of `endpoints` (of one address family) to zones as these share the CPU. What
/// they were given `before` stays where it can, so that little changes.
///
/// # Errors
/// In words, when that cannot be done; then nobody is given to anybody.
pub fn share_out(
    endpoints: &mut [&mut Endpoint],
    shares: Option<&Shares>,
    before: impl Fn(&Endpoint) -> Option<String>,
) -> Result<(), String> {
    endpoints.iter_mut().for_each(|e| e.hints = None);
    let mut ready: Vec<&mut Endpoint> = endpoints
        .iter_mut()
        .filter(|e| is_ready(e))
        .map(|e| &mut **e)
        .collect();
    let allocations = allocate(ready.len(), shares)?;
    if ready
        .iter()
        .any(|e| e.zone.as_deref().is_none_or(str::is_empty))
    {
        return Err("One or more endpoints do not have a zone specified".into());
    }
    let mut given: BTreeMap<String, usize> = BTreeMap::new();
    let mut to: Vec<Option<String>> = Vec::with_capacity(ready.len());
    for endpoint in &ready {
        let kept = before(endpoint).filter(|zone| {
            let count = given.get(zone).copied().unwrap_or(0);
            allocations.get(zone).is_some_and(|a| count < a.most)
        });
        if let Some(zone) = &kept {
            *given.entry(zone.clone()).or_default() += 1;
        }
        to.push(kept);
    }
    // The others begin in their own zone, and are passed on to where endpoints lack.
    let others: Vec<usize> = (0..to.len()).filter(|i| to[*i].is_none()).collect();
    for &i in &others {
        let zone = ready[i].zone.clone().unwrap_or_default();
        *given.entry(zone.clone()).or_default() += 1;
        to[i] = Some(zone);
    }
    let (mut giving, mut receiving) = balance(&allocations, &given);
    for i in others {
        let Some(left) = to[i].as_ref().and_then(|own| giving.get_mut(own)) else {
            continue;
        };
        let Some((zone, lacking)) = receiving.iter_mut().find(|(_, n)| **n > 0) else {
            break;
        };
        if *left > 0 {
            (*left, *lacking) = (*left - 1, *lacking - 1);
            to[i] = Some(zone.clone());
        }
    }
    for (endpoint, zone) in ready.iter_mut().zip(to) {
        endpoint.hints = zone.map(|name| EndpointHints {
            for_zones: Some(vec![ForZone { name }]),
            for_nodes: None,
        });
    }
    Ok(())
}

/// What each zone is to get of `count` endpoints, if none of them has to bear too much then.
fn allocate(count: usize, shares: Option<&Shares>) -> Result<BTreeMap<String, Allocation>, String> {
    let Some(Shares(shares)) = shares else {
        return Err("Insufficient Node information: allocatable CPU or zone not specified on one or more nodes".into());
    };
    let zones = shares.len();
    if zones > count {
        return Err(format!(
            "Insufficient number of endpoints ({count} endpoints, {zones} zones)"
        ));
    }
    let desired = |share: &f64| share * count as f64;
    let least = |share: &f64| (desired(share) / (1.0 + OVERLOAD)).ceil() as usize;
    let total: usize = shares.values().map(least).sum();
    if total > count {
        return Err(format!(
            "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold ({count} endpoints, {zones} zones)"
        ));
    }
    let allocation = |share: &f64| Allocation {
        desired: desired(share).max(least(share) as f64),
        most: least(share) + count - total,
    };
    let allocations = shares.iter().map(|(z, s)| (z.clone(), allocation(s)));
    Ok(allocations.collect())
}

/// How many endpoints each zone gives away, and how many it gets.
fn balance(
    allocations: &BTreeMap<String, Allocation>,
    given: &BTreeMap<String, usize>,
) -> (BTreeMap<String, usize>, BTreeMap<String, usize>) {
    let mut off: BTreeMap<&str, f64> = allocations
        .iter()
        .map(|(zone, a)| {
            let has = given.get(zone).copied().unwrap_or(0);
            (zone.as_str(), has as f64 - a.desired)
        })
        .collect();
    let (mut giving, mut receiving) = (BTreeMap::new(), BTreeMap::new());
    // Each round moves one endpoint, so there are no more rounds than endpoints.
    loop {
        let most = off.iter().max_by(|a, b| a.1.total_cmp(b.1));
        let least = off.iter().min_by(|a, b| a.1.total_cmp(b.1));
        let (Some((&from, &over)), Some((&to, &under))) = (most, least) else {
            break;
        };
        let worth_it = over >= 0.5 && -under >= 0.5 && (over >= 1.0 || -under >= 1.0);
        if !worth_it {
            break;
        }
        *giving.entry(from.to_owned()).or_default() += 1;
        *receiving.entry(to.to_owned()).or_default() += 1;
        off.insert(from, over - 1.0);
        off.insert(to, under + 1.0);
    }
    (giving, receiving)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn endpoint(zone: &str) -> Endpoint {
        serde_json::from_value(json!({"addresses": ["a"], "conditions": {"ready": true},
            "zone": zone, "nodeName": "n"}))
        .unwrap()
    }

    fn hint(endpoint: &Endpoint) -> String {
        let hints = endpoint.hints.clone().unwrap_or_default();
        let zones = hints.for_zones.iter().flatten().map(|z| z.name.clone());
        let nodes = hints.for_nodes.iter().flatten().map(|n| n.name.clone());
        zones.chain(nodes).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_annotation_goes_before_the_field() {
        let policy = |annotation: Option<(&str, &str)>, field: &str| {
            let mut service = Service::default();
            service.spec.get_or_insert_default().traffic_distribution = Some(field.into());
            let pair = |(k, v): (&str, &str)| [(k.to_owned(), v.to_owned())].into();
            service.metadata.annotations = annotation.map(pair);
            Policy::of(&service)
        };
        assert_eq!(policy(None, "PreferClose"), Policy::SameZone);
        assert_eq!(policy(None, "PreferSameZone"), Policy::SameZone);
        assert_eq!(policy(None, "PreferSameNode"), Policy::SameNode);
        assert_eq!(policy(None, "example.com/other"), Policy::Anyone);
        for key in MODES {
            assert_eq!(policy(Some((key, "Auto")), "PreferClose"), Policy::Auto);
            assert_eq!(policy(Some((key, "auto")), ""), Policy::Auto);
            assert_eq!(policy(Some((key, "Disabled")), ""), Policy::Anyone);
        }
    }

    #[test]
    fn what_is_near_is_preferred_where_the_service_says_so() {
        for (policy, expected) in [
            (Policy::Anyone, ""),
            (Policy::SameZone, "z"),
            (Policy::SameNode, "z n"),
        ] {
            let mut e = endpoint("z");
            near(&mut e, policy);
            assert_eq!(hint(&e), expected);
            e.conditions.get_or_insert_default().ready = Some(false);
            near(&mut e, policy);
            assert_eq!(e.hints, None, "nobody is sent to what is not ready");
        }
    }

    fn node(zone: &str, cpu: &str, ready: &str) -> Capacity {
        let labels = match zone {
            "" => json!({}),
            "control" => json!({EXCLUDED[0]: "", ZONE: "c"}),
            zone => json!({ ZONE: zone }),
        };
        let node = json!({"metadata": {"labels": labels}, "status": {"allocatable": {"cpu": cpu},
            "conditions": [{"type": "Ready", "status": ready}]}});
        Capacity::of(&serde_json::from_value(node).unwrap())
    }

    #[test]
    fn zones_share_the_cpu_of_nodes_that_are_ready() {
        let shares = |nodes: &[Capacity]| Shares::of(nodes.iter().cloned()).map(|s| s.0);
        let (a, b) = (node("a", "3", "True"), node("b", "1000m", "True"));
        let both = BTreeMap::from([("a".to_owned(), 0.75), ("b".to_owned(), 0.25)]);
        assert_eq!(shares(&[a.clone(), b.clone()]), Some(both.clone()));
        let idle = [node("c", "9", "False"), node("control", "9", "True")];
        let with_idle = [&[a.clone(), b.clone()][..], &idle].concat();
        assert_eq!(shares(&with_idle), Some(both));
        assert_eq!(shares(std::slice::from_ref(&a)), None, "one zone");
        for unclear in [node("", "1", "True"), node("a", "0", "True")] {
            assert_eq!(shares(&[a.clone(), b.clone(), unclear]), None);
        }
    }

    /// The hints that endpoints of these zones get; `before` as they were.
    fn shared(cpu: &[(&str, f64)], zones: &[&str], before: &[&str]) -> Result<Vec<String>, String> {
        let shares = Shares(cpu.iter().map(|(z, c)| ((*z).to_owned(), *c)).collect());
        let mut all: Vec<Endpoint> = zones.iter().map(|z| endpoint(z)).collect();
        for (i, e) in all.iter_mut().enumerate() {
            e.addresses = vec![i.to_string()];
        }
        let known = |e: &Endpoint| {
            let i: usize = e.addresses[0].parse().unwrap();
            before.get(i).map(|z| (*z).to_owned())
        };
        share_out(
            &mut all.iter_mut().collect::<Vec<_>>(),
            Some(&shares),
            known,
        )?;
        Ok(all.iter().map(hint).collect())
    }

    /// Shares of the CPU, zones of the endpoints, what they were given before, what they get.
    type Case<'a> = (
        &'a [(&'a str, f64)],
        &'a [&'a str],
        &'a [&'a str],
        &'a [&'a str],
    );

    #[test]
    fn endpoints_are_shared_out_as_the_cpu_is() {
        let even = [("a", 0.5), ("b", 0.5)];
        let skewed = [("a", 0.75), ("b", 0.25)];
        let cases: [Case; 6] = [
            (&even, &["a", "b"], &[], &["a", "b"]),
            (&even, &["a", "a", "a", "b"], &[], &["b", "a", "a", "b"]),
            (&skewed, &["a", "b", "b", "b"], &[], &["a", "a", "a", "b"]),
            // What was given before stays as long as no zone has too much of it.
            (
                &even,
                &["a", "a", "a", "b"],
                &["a", "a", "b", "b"],
                &["a", "a", "b", "b"],
            ),
            (
                &even,
                &["a", "a", "b", "b"],
                &["a", "a", "a", "a"],
                &["a", "a", "b", "b"],
            ),
            (
                &even,
                &["a", "b", "b", "a"],
                &["gone"],
                &["a", "b", "b", "a"],
            ),
        ];
        for (cpu, zones, before, expected) in cases {
            assert_eq!(
                shared(cpu, zones, before).unwrap(),
                expected,
                "{zones:?} {before:?}"
            );
        }
    }

    #[test]
    fn what_would_overload_somebody_is_not_done() {
        let even = [("a", 0.5), ("b", 0.5)];
        for (cpu, zones, why) in [
            (
                &even,
                &["a"][..],
                "Insufficient number of endpoints (1 endpoints, 2 zones)",
            ),
            (
                &even,
                &["a", "b", "b"],
                "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold (3 endpoints, 2 zones)",
            ),
            (
                &even,
                &["a", ""],
                "One or more endpoints do not have a zone specified",
            ),
        ] {
            assert_eq!(shared(cpu, zones, &[]).unwrap_err(), why);
        }
        let why = share_out(&mut [], None, |_| None).unwrap_err();
        assert!(why.starts_with("Insufficient Node information"), "{why}");
    }
}
