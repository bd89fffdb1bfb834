//! How good a use of a node's resources is. Pure.

use placement::resources::Resources;
use serde::Deserialize;

use crate::framework::MAX_SCORE;

/// The highest score in a shape.
const MAX_SHAPE_SCORE: i64 = 10;

/// A resource and how much it counts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Weighted {
    /// Its name.
    pub name: String,
    /// How much it counts.
    #[serde(default = "one")]
    pub weight: i64,
}

fn one() -> i64 {
    1
}

/// CPU and memory, counting the same.
pub(super) fn cpu_and_memory() -> Vec<Weighted> {
    ["cpu", "memory"]
        .map(|name| Weighted {
            name: name.to_owned(),
            weight: 1,
        })
        .into()
}

/// A point of a shape.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Point {
    utilization: i64,
    score: i64,
}

/// A score by utilization: straight lines between points.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Shape(Vec<Point>);

impl Shape {
    /// Utilizations and scores.
    pub fn of(points: &[(i64, i64)]) -> Self {
        let point = |&(utilization, score): &(i64, i64)| Point { utilization, score };
        Self(points.iter().map(point).collect())
    }

    /// Whether it makes sense; `name` is that of its field.
    pub fn check(&self, name: &str) -> Result<(), String> {
        if self.0.is_empty() {
            return Err(format!(
                "{name}: required value: at least one point must be specified"
            ));
        }
        for (at, point) in self.0.iter().enumerate() {
            let field = format!("{name}[{at}]");
            if !(0..=100).contains(&point.utilization) {
                return Err(format!(
                    "{field}.utilization: Invalid value: {}: not in valid range [0, 100]",
                    point.utilization
                ));
            }
            if !(0..=MAX_SHAPE_SCORE).contains(&point.score) {
                return Err(format!(
                    "{field}.score: Invalid value: {}: not in valid range [0, {MAX_SHAPE_SCORE}]",
                    point.score
                ));
            }
            if at > 0 && self.0[at - 1].utilization >= point.utilization {
                return Err(format!(
                    "{field}.utilization: Invalid value: {}: values must be sorted in increasing order",
                    point.utilization
                ));
            }
        }
        Ok(())
    }

    /// The score at a utilization in percent.
    pub fn at(&self, utilization: i64) -> i64 {
        let scaled = |p: &Point| p.score * (MAX_SCORE / MAX_SHAPE_SCORE);
        let Some(next) = self.0.iter().position(|p| utilization <= p.utilization) else {
            return self.0.last().map_or(0, scaled);
        };
        let right = self.0[next];
        if next == 0 {
            return scaled(&right);
        }
        let left = self.0[next - 1];
        let rise = scaled(&right) - scaled(&left);
        scaled(&left)
            + rise * (utilization - left.utilization) / (right.utilization - left.utilization)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Ratio {
    shape: Shape,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
enum Kind {
    #[default]
    LeastAllocated,
    MostAllocated,
    RequestedToCapacityRatio,
}

/// How nodes are compared.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Strategy {
    #[serde(rename = "type", default)]
    kind: Kind,
    #[serde(default = "cpu_and_memory")]
    resources: Vec<Weighted>,
    #[serde(default)]
    requested_to_capacity_ratio: Option<Ratio>,
}

impl Default for Strategy {
    fn default() -> Self {
        Self {
            kind: Kind::LeastAllocated,
            resources: cpu_and_memory(),
            requested_to_capacity_ratio: None,
        }
    }
}

/// An amount, by the name of the resource: of CPU and memory as taken for scoring.
fn amount(name: &str, non_zero: &Resources, real: &Resources) -> i64 {
    match name {
        "cpu" => non_zero.milli_cpu,
        "memory" => non_zero.memory,
        "ephemeral-storage" => real.ephemeral_storage,
        other => real.scalar.get(other).copied().unwrap_or(0),
    }
}

fn is_scalar(name: &str) -> bool {
    !matches!(name, "cpu" | "memory" | "ephemeral-storage")
}

impl Strategy {
    /// Whether it makes sense.
    pub fn check(&self) -> Result<(), String> {
        for (at, resource) in self.resources.iter().enumerate() {
            if !(1..=100).contains(&resource.weight) {
                return Err(format!(
                    "scoringStrategy.resources[{at}].weight: Invalid value: {}: resource weight of {} not in valid range (0, 100]",
                    resource.weight, resource.name
                ));
            }
        }
        if self.kind != Kind::RequestedToCapacityRatio {
            return Ok(());
        }
        let ratio = self.requested_to_capacity_ratio.clone().unwrap_or_default();
        let field = "scoringStrategy.requestedToCapacityRatio.shape";
        ratio.shape.check(field)
    }

    /// The score of a node with these resources, of which so much is used, for a pod that wants so
    /// much: each as taken for scoring, and as requested.
    pub fn score(
        &self,
        has: &Resources,
        used: (&Resources, &Resources),
        wants: (&Resources, &Resources),
    ) -> i64 {
        let (mut sum, mut weights) = (0, 0);
        for Weighted { name, weight } in &self.resources {
            let wanted = amount(name, wants.0, wants.1);
            let capacity = amount(name, has, has);
            if capacity == 0 || wanted == 0 && is_scalar(name) {
                continue;
            }
            let total = amount(name, used.0, used.1) + wanted;
            let score = self.of_resource(total, capacity);
            if score > 0 || self.kind != Kind::RequestedToCapacityRatio {
                sum += score * weight;
                weights += weight;
            }
        }
        if weights == 0 {
            0
        } else if self.kind == Kind::RequestedToCapacityRatio {
            (sum as f64 / weights as f64).round() as i64
        } else {
            sum / weights
        }
    }

    fn of_resource(&self, used: i64, capacity: i64) -> i64 {
        let share =
            |part: i64| (i128::from(part) * i128::from(MAX_SCORE) / i128::from(capacity)) as i64;
        match self.kind {
            Kind::LeastAllocated if used > capacity => 0,
            Kind::LeastAllocated => share(capacity - used),
            Kind::MostAllocated => share(used.min(capacity)),
            Kind::RequestedToCapacityRatio => {
                let ratio = self.requested_to_capacity_ratio.as_ref();
                ratio.map_or(0, |r| r.shape.at(share(used).min(100)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resources(milli_cpu: i64, memory: i64, gpu: i64) -> Resources {
        Resources {
            milli_cpu,
            memory,
            scalar: [("example.com/gpu".to_owned(), gpu)].into(),
            ..Resources::default()
        }
    }

    #[test]
    fn strategies() {
        let gpu = json!([{"name": "example.com/gpu", "weight": 3}, {"name": "cpu"}]);
        let shape = json!({"shape": [{"utilization": 0, "score": 0}, {"utilization": 50, "score": 10},
            {"utilization": 100, "score": 0}]});
        for (strategy, expected) in [
            (json!({}), 62),
            (json!({"type": "MostAllocated"}), 37),
            (json!({"type": "MostAllocated", "resources": gpu}), 87),
            (
                json!({"type": "RequestedToCapacityRatio", "requestedToCapacityRatio": shape}),
                75,
            ),
        ] {
            let parsed: Strategy = serde_json::from_value(strategy.clone()).unwrap();
            parsed.check().unwrap();
            let (has, used) = (resources(4000, 400, 4), resources(1000, 100, 3));
            let wants = resources(1000, 0, 1);
            let score = parsed.score(&has, (&used, &used), (&wants, &wants));
            assert_eq!(score, expected, "{strategy}");
        }
    }

    #[test]
    fn shapes_that_make_no_sense() {
        for (shape, expected) in [
            (json!([]), "at least one point"),
            (json!([{"utilization": 101, "score": 0}]), "[0, 100]"),
            (json!([{"utilization": 1, "score": 11}]), "[0, 10]"),
            (
                json!([{"utilization": 1, "score": 1}, {"utilization": 1, "score": 2}]),
                "increasing",
            ),
        ] {
            let strategy = json!({"type": "RequestedToCapacityRatio",
                "requestedToCapacityRatio": {"shape": shape}});
            let parsed: Strategy = serde_json::from_value(strategy).unwrap();
            let error = parsed.check().unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
