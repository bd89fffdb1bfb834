//! What is written of an allocation: the devices, their configuration, and from where they can be
//! used.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use k8s_openapi::{
    api::{
        core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm},
        resource::v1::{
            AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult,
            DeviceRequestAllocationResult,
        },
    },
    apimachinery::pkg::api::resource::Quantity as Text,
};

use super::{
    model::{Amounts, Device, Reach, Slice},
    request::{Asked, Wanted},
};
use crate::node::NodeSpec;

/// A device that was found for a request.
pub struct Chosen<'a> {
    /// The request, or an alternative of it.
    pub wanted: &'a Wanted<'a>,
    /// Where the device is from.
    pub slice: &'a Slice,
    /// The device.
    pub device: &'a Device,
    /// How much of it, where it is shared.
    pub share: Option<&'a Amounts>,
}

/// The allocation of a claim; `alternatives` tells which one each request got.
pub fn of(
    asked: &Asked<'_>,
    alternatives: &[usize],
    chosen: &[Chosen<'_>],
    node: &NodeSpec,
) -> AllocationResult {
    let config = configuration(asked, alternatives);
    AllocationResult {
        allocation_timestamp: None,
        node_selector: node_selector(chosen, node),
        devices: Some(DeviceAllocationResult {
            results: Some(chosen.iter().map(result).collect()),
            config: (!config.is_empty()).then_some(config),
        }),
    }
}

fn result(chosen: &Chosen<'_>) -> DeviceRequestAllocationResult {
    let Chosen { wanted, device, .. } = chosen;
    let amounts = |share: &Amounts| -> BTreeMap<String, Text> {
        let shown = |q: &Quantity| Text(q.to_string());
        share.iter().map(|(n, q)| (n.clone(), shown(q))).collect()
    };
    DeviceRequestAllocationResult {
        request: wanted.reference.clone(),
        driver: device.id.pool.driver.to_string(),
        pool: device.id.pool.pool.to_string(),
        device: device.id.device.to_string(),
        admin_access: wanted.admin.then_some(true),
        tolerations: (!wanted.tolerations.is_empty()).then(|| wanted.tolerations.to_vec()),
        binding_conditions: device.binding_conditions.clone(),
        binding_failure_conditions: device.binding_failures.clone(),
        share_id: chosen.share.map(|_| share_id()),
        consumed_capacity: chosen.share.filter(|s| !s.is_empty()).map(amounts),
        ..DeviceRequestAllocationResult::default()
    }
}

/// A random name for a share.
fn share_id() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = |part: &[u8]| part.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let parts = [0..4, 4..6, 6..8, 8..10, 10..16].map(|range| hex(&bytes[range]));
    parts.join("-")
}

/// The configuration that classes and the claim have for the requests as they were satisfied.
fn configuration(asked: &Asked<'_>, alternatives: &[usize]) -> Vec<DeviceAllocationConfiguration> {
    let satisfied = asked.requests.iter().zip(alternatives).zip(&asked.classes);
    let satisfied: Vec<_> = satisfied
        .map(|((request, alternative), classes)| {
            let wanted = &request.alternatives[*alternative];
            (request, wanted, &classes[*alternative])
        })
        .collect();
    let mut config: Vec<DeviceAllocationConfiguration> = Vec::new();
    let mut of_class: BTreeMap<&str, std::ops::Range<usize>> = BTreeMap::new();
    for (_, wanted, class) in &satisfied {
        let known = of_class.entry(wanted.class_name).or_insert_with(|| {
            let start = config.len();
            let given = class.spec.iter().flat_map(|s| s.config.iter().flatten());
            config.extend(given.map(|c| DeviceAllocationConfiguration {
                source: "FromClass".to_owned(),
                requests: Some(Vec::new()),
                opaque: c.opaque.clone(),
            }));
            start..config.len()
        });
        for one in &mut config[known.clone()] {
            let requests = one.requests.get_or_insert_default();
            requests.push(wanted.reference.clone());
        }
    }
    let is_for = |requests: &[String], request: &str, wanted: &Wanted<'_>| {
        requests
            .iter()
            .any(|r| r == request || *r == wanted.reference)
    };
    let devices = asked.claim.spec.as_ref().and_then(|s| s.devices.as_ref());
    for given in devices.iter().flat_map(|d| d.config.iter().flatten()) {
        let requests = given.requests.as_deref().unwrap_or_default();
        let mut all = satisfied.iter();
        if requests.is_empty() || all.any(|(r, w, _)| is_for(requests, r.name, w)) {
            config.push(DeviceAllocationConfiguration {
                source: "FromClaim".to_owned(),
                requests: given.requests.clone(),
                opaque: given.opaque.clone(),
            });
        }
    }
    // What is for all requests names none.
    for one in &mut config {
        let requests = one.requests.as_deref().unwrap_or_default();
        let mut all = satisfied.iter();
        if all.all(|(r, w, _)| is_for(requests, r.name, w)) {
            one.requests = None;
        }
    }
    config
}

/// The nodes that reach all of the devices; `None`: every node does.
fn node_selector(chosen: &[Chosen<'_>], node: &NodeSpec) -> Option<NodeSelector> {
    let only = |term| NodeSelector {
        node_selector_terms: vec![term],
    };
    let mut term = NodeSelectorTerm::default();
    for Chosen { slice, device, .. } in chosen {
        let reach = match &slice.reach {
            Reach::PerDevice => &device.reach,
            reach => reach,
        };
        if device.binds_to_node || matches!(reach, Reach::Node(_)) {
            return Some(only(NodeSelectorTerm {
                match_expressions: None,
                match_fields: Some(vec![NodeSelectorRequirement {
                    key: "metadata.name".to_owned(),
                    operator: "In".to_owned(),
                    values: Some(vec![node.name.clone()]),
                }]),
            }));
        }
        if let Reach::Matching(selector) = reach
            && let Some(own) = selector.node_selector_terms.first()
        {
            merge(
                &mut term.match_expressions,
                own.match_expressions.as_deref(),
            );
            merge(&mut term.match_fields, own.match_fields.as_deref());
        }
    }
    let limited = term.match_expressions.is_some() || term.match_fields.is_some();
    limited.then(|| only(term))
}

fn merge(
    into: &mut Option<Vec<NodeSelectorRequirement>>,
    from: Option<&[NodeSelectorRequirement]>,
) {
    for requirement in from.unwrap_or_default() {
        let known = into.get_or_insert_default();
        if !known.contains(requirement) {
            known.push(requirement.clone());
        }
    }
}
