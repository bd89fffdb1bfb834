//! Rather nodes whose resources would be used to a like degree.

use placement::resources::Resources;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Handle,
    strategy::{Weighted, cpu_and_memory},
};
use crate::{
    framework::{Cycle, MAX_SCORE, Plugin, View},
    node::NodeInfo,
    pod::PodInfo,
};

pub(super) const NAME: &str = "NodeResourcesBalancedAllocation";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Args {
    #[serde(default = "cpu_and_memory")]
    resources: Vec<Weighted>,
}

struct NodeResourcesBalancedAllocation {
    resources: Vec<String>,
}

pub(super) fn check(args: &Value) -> Result<(), String> {
    parse(args.clone()).map(drop)
}

pub(super) fn make(_: &Handle, args: Value) -> Result<Box<dyn Plugin>, String> {
    Ok(Box::new(parse(args)?))
}

fn parse(args: Value) -> Result<NodeResourcesBalancedAllocation, String> {
    let args: Args = super::args(args)?;
    if let Some(odd) = args.resources.iter().position(|r| r.weight != 1) {
        return Err(format!(
            "resources[{odd}].weight: Invalid value: {}: must be 1",
            args.resources[odd].weight
        ));
    }
    Ok(NodeResourcesBalancedAllocation {
        resources: args.resources.into_iter().map(|r| r.name).collect(),
    })
}

fn amount(name: &str, all: &Resources) -> i64 {
    match name {
        "cpu" => all.milli_cpu,
        "memory" => all.memory,
        "ephemeral-storage" => all.ephemeral_storage,
        other => all.scalar.get(other).copied().unwrap_or(0),
    }
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        NAME
    }

    fn is_local(&self) -> bool {
        true
    }

    fn weight(&self) -> i64 {
        1
    }

    /// A pod that requests nothing unbalances nothing.
    fn pre_score(&self, _: &mut Cycle<'_>, pod: &PodInfo, _: &[&NodeInfo]) -> bool {
        let wants = &pod.footprint.requested;
        self.resources.iter().any(|name| amount(name, wants) > 0)
    }

    fn score(&self, _: &View<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(spec) = &node.spec else { return 0 };
        let (wants, has, used) = (&pod.footprint.requested, &spec.allocatable, &node.requested);
        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for name in &self.resources {
            let (wanted, capacity) = (amount(name, wants), amount(name, has));
            let basic = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
            if capacity == 0 || wanted == 0 && !basic {
                continue;
            }
            let share = ((amount(name, used) + wanted) as f64 / capacity as f64).min(1.0);
            count += 1.0;
            sum += share;
            squares += share * share;
        }
        // The standard deviation; of two shares it is half their distance.
        let deviation = if count < 2.0 {
            0.0
        } else {
            let mean: f64 = sum / count;
            (squares / count - mean * mean).max(0.0).sqrt()
        };
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}
