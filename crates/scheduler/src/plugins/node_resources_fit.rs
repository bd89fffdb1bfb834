//! A node must have what the pod requests; which of those that have it is best depends on the
//! strategy: much left, little left, or a shape of utilization.

use std::sync::Arc;

use placement::resources::{Resources, written};
use serde::Deserialize;
use serde_json::Value;

use super::{Handle, strategy::Strategy};
use crate::{
    devices::{Devices, extended::is_extended},
    framework::{Advice, Event, Happening, Plugin, Status, View},
    node::{NodeInfo, NodeSpec},
    pod::PodInfo,
};

pub(super) const NAME: &str = "NodeResourcesFit";

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Args {
    ignored_resources: Vec<String>,
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<Strategy>,
}

struct NodeResourcesFit {
    ignored: Vec<String>,
    ignored_groups: Vec<String>,
    strategy: Strategy,
    /// Of resources that nodes do not have there may be devices.
    devices: Option<Arc<Devices>>,
}

pub(super) fn check(args: &Value) -> Result<(), String> {
    parse(args.clone()).map(drop)
}

pub(super) fn make(handle: &Handle, args: Value) -> Result<Box<dyn Plugin>, String> {
    Ok(Box::new(NodeResourcesFit {
        devices: Some(Arc::clone(&handle.devices)),
        ..parse(args)?
    }))
}

fn parse(args: Value) -> Result<NodeResourcesFit, String> {
    let args: Args = super::args(args)?;
    let strategy = args.scoring_strategy.unwrap_or_default();
    strategy.check()?;
    if let Some(group) = args
        .ignored_resource_groups
        .iter()
        .find(|g| g.contains('/'))
    {
        return Err(format!(
            "ignoredResourceGroups: Invalid value: {group:?}: resource group name can't contain '/'"
        ));
    }
    Ok(NodeResourcesFit {
        ignored: args.ignored_resources,
        ignored_groups: args.ignored_resource_groups,
        strategy,
        devices: None,
    })
}

/// What a pod wants of one resource, and what of it a node has.
struct Amount<'a> {
    name: &'a str,
    /// Whether it is one of those that not every node has.
    scalar: bool,
    wants: i64,
    has: i64,
    used: i64,
}

fn amounts<'a>(
    wants: &'a Resources,
    has: &'a Resources,
    used: &'a Resources,
) -> impl Iterator<Item = Amount<'a>> {
    let everywhere = |name: &'a str, of: fn(&Resources) -> i64| Amount {
        name,
        scalar: false,
        wants: of(wants),
        has: of(has),
        used: of(used),
    };
    let everywhere = [
        everywhere("cpu", |r| r.milli_cpu),
        everywhere("memory", |r| r.memory),
        everywhere("ephemeral-storage", |r| r.ephemeral_storage),
    ];
    let scalar = wants.scalar.iter().map(move |(name, amount)| {
        let of = |all: &Resources| all.scalar.get(name).copied().unwrap_or(0);
        Amount {
            name,
            scalar: true,
            wants: *amount,
            has: of(has),
            used: of(used),
        }
    });
    everywhere.into_iter().chain(scalar)
}

impl NodeResourcesFit {
    fn ignores(&self, name: &str) -> bool {
        let group = name.split_once('/').map_or("", |(group, _)| group);
        self.ignored.iter().any(|i| i == name) || self.ignored_groups.iter().any(|g| g == group)
    }

    /// Whether devices stand for a resource.
    fn is_delegated(&self, name: &str) -> bool {
        let devices = self.devices.as_ref();
        is_extended(name) && devices.is_some_and(|d| d.class_of_resource(name).is_some())
    }

    /// Whether the node has to have what is wanted.
    fn concerns(&self, amount: &Amount<'_>) -> bool {
        let Amount {
            name, wants, has, ..
        } = *amount;
        let elsewhere = || wants > 0 && has == 0 && self.is_delegated(name);
        !amount.scalar || !self.ignores(name) && !elsewhere()
    }

    /// What the node lacks for the pod.
    fn shortages(&self, pod: &PodInfo, node: &NodeInfo) -> Status {
        let Some(spec) = &node.spec else {
            return Status::Success;
        };
        let (wants, has, used) = (&pod.footprint.requested, &spec.allocatable, &node.requested);
        let mut reasons = Vec::new();
        // What the whole node does not have, no eviction can give.
        let mut hopeless = false;
        if node.pods().len() as i64 + 1 > has.pods {
            reasons.push("Too many pods".to_owned());
        }
        for one in amounts(wants, has, used).filter(|a| self.concerns(a)) {
            if one.wants > 0 && one.wants > one.has - one.used {
                reasons.push(format!("Insufficient {}", one.name));
                hopeless |= one.wants > one.has;
            }
        }
        match (reasons.is_empty(), hopeless) {
            (true, _) => Status::Success,
            (false, true) => Status::Unresolvable(reasons),
            (false, false) => Status::Unschedulable(reasons),
        }
    }
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        NAME
    }

    fn is_local(&self) -> bool {
        true
    }

    fn weight(&self) -> i64 {
        1
    }

    fn happenings(&self) -> &'static [Happening] {
        &[
            Happening::NodeAdd,
            Happening::NodeAllocatable,
            Happening::PodUpdate,
            Happening::PodDelete,
            Happening::Devices,
        ]
    }

    fn helps(&self, pod: &PodInfo, event: &Event<'_>) -> bool {
        match event {
            Event::Node { new, .. } => {
                let empty = NodeInfo::new(NodeSpec::clone(new));
                self.shortages(pod, &empty).is_success()
            }
            // A pod that is resized in place may give back what this one lacks.
            Event::Pod {
                old: Some(old),
                new: Some(new),
            } => amounts(&pod.footprint.requested, &old.requested, &new.requested)
                .any(|one| one.wants > 0 && one.used < one.has),
            // What no node has may be for devices to give, now that there is a class of them.
            Event::Devices => {
                let mut wanted = pod.footprint.requested.scalar.iter();
                wanted.any(|(name, amount)| *amount > 0 && self.is_delegated(name))
            }
            _ => true,
        }
    }

    fn filter(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Status {
        self.shortages(pod, node)
    }

    fn advice(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> Option<Advice> {
        let spec = node.spec.as_ref()?;
        let (wants, has, used) = (&pod.footprint.requested, &spec.allocatable, &node.requested);
        let mut parts = Vec::new();
        let mut effort = 0;
        for one in amounts(wants, has, used).filter(|a| self.concerns(a)) {
            let Amount { name, wants, .. } = one;
            let free = (one.has - one.used).max(0);
            if wants <= free {
                continue;
            }
            let text = |amount: i64| written(name, amount);
            let mut part = format!("needs {} {name}, {} free", text(wants), text(free));
            if free > 0 {
                part += &format!(": lower the request by {}", text(wants - free));
            } else {
                part += &format!(" of {}: end pods there, or add a node", text(one.has));
            }
            parts.push(part);
            effort += 1000 * (wants - free) / wants;
        }
        let count = node.pods().len() as i64;
        if count + 1 > has.pods {
            parts.push(format!("has {count} pods of {}: end one of them", has.pods));
        }
        Some(Advice {
            text: parts.join("; "),
            effort,
        })
    }

    fn score(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        match &node.spec {
            Some(spec) => self.strategy.score(
                &spec.allocatable,
                (&node.scored, &node.requested),
                (&pod.footprint.scored, &pod.footprint.requested),
            ),
            None => 0,
        }
    }
}
