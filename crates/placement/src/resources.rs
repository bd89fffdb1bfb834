//! Amounts of resources as the scheduler counts them: CPU in thousandths, all else in units.

use std::{collections::BTreeMap, str::FromStr};

use api::quantity::Quantity;
use k8s_openapi::{
    api::core::v1::{Container, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as Text,
};

/// CPU that a container without a request is taken to use, in thousandths of a core.
const DEFAULT_MILLI_CPU: i64 = 100;
/// Memory that a container without a request is taken to use, in bytes.
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// A bundle of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// Number of pods; only nodes offer it.
    pub pods: i64,
    /// Huge pages and extended resources by name, in their units.
    pub scalar: BTreeMap<String, i64>,
}

fn parse(text: &Text) -> Quantity {
    Quantity::from_str(&text.0).unwrap_or_default()
}

impl Resources {
    /// What a list of the API says; text that is no quantity counts as zero.
    pub fn of(list: Option<&BTreeMap<String, Text>>) -> Self {
        let mut all = Self::default();
        for (name, amount) in list.into_iter().flatten() {
            let amount = parse(amount);
            match name.as_str() {
                "cpu" => all.milli_cpu = amount.milli_value(),
                "memory" => all.memory = amount.value(),
                "ephemeral-storage" => all.ephemeral_storage = amount.value(),
                "pods" => all.pods = amount.value(),
                _ => {
                    all.scalar.insert(name.clone(), amount.value());
                }
            }
        }
        all
    }

    /// Adds `other`.
    pub fn add(&mut self, other: &Self) {
        self.milli_cpu += other.milli_cpu;
        self.memory += other.memory;
        self.ephemeral_storage += other.ephemeral_storage;
        for (name, amount) in &other.scalar {
            *self.scalar.entry(name.clone()).or_default() += amount;
        }
    }

    /// Takes `other` away.
    pub fn remove(&mut self, other: &Self) {
        self.milli_cpu -= other.milli_cpu;
        self.memory -= other.memory;
        self.ephemeral_storage -= other.ephemeral_storage;
        for (name, amount) in &other.scalar {
            *self.scalar.entry(name.clone()).or_default() -= amount;
        }
    }

    fn raise(&mut self, other: &Self) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, amount) in &other.scalar {
            let own = self.scalar.entry(name.clone()).or_default();
            *own = (*own).max(*amount);
        }
    }
}

/// An amount of a resource as people write it: CPU in thousandths, all else in units.
pub fn written(name: &str, amount: i64) -> String {
    const UNITS: &[(&str, i64)] = &[("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    let bytes = matches!(name, "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    match (name, bytes) {
        ("cpu", _) if amount % 1000 == 0 => (amount / 1000).to_string(),
        ("cpu", _) => format!("{amount}m"),
        (_, true) => UNITS
            .iter()
            .find(|(_, unit)| amount != 0 && amount % unit == 0)
            .map_or(amount.to_string(), |(word, unit)| {
                format!("{}{word}", amount / unit)
            }),
        _ => amount.to_string(),
    }
}

/// What a pod requests.
pub fn requested(spec: &PodSpec) -> Resources {
    total(spec, |c| requests_of(c.resources.as_ref()))
}

/// What a pod requests, with the usual amounts where a container names none: for scores, so that
/// pods without requests spread too.
pub fn requested_for_scoring(spec: &PodSpec) -> Resources {
    total(spec, |c| {
        let mut own = requests_of(c.resources.as_ref());
        let named = c.resources.as_ref().and_then(|r| r.requests.as_ref());
        let has = |name: &str| named.is_some_and(|n| n.contains_key(name));
        if !has("cpu") {
            own.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !has("memory") {
            own.memory = DEFAULT_MEMORY;
        }
        own
    })
}

fn requests_of(resources: Option<&ResourceRequirements>) -> Resources {
    Resources::of(resources.and_then(|r| r.requests.as_ref()))
}

/// The containers that run together, or the most that initialisation needs at a time (on top of the
/// sidecars started before), whichever is more; plus overhead. Requests of the pod as a whole
/// replace those of its containers.
fn total(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let mut running = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            running.add(&own);
            starting.raise(&running);
        } else {
            let mut peak = running.clone();
            peak.add(&own);
            starting.raise(&peak);
        }
    }
    for container in &spec.containers {
        running.add(&of(container));
    }
    running.raise(&starting);
    let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    if let Some(named) = whole {
        let whole = Resources::of(Some(named));
        if named.contains_key("cpu") {
            running.milli_cpu = whole.milli_cpu;
        }
        if named.contains_key("memory") {
            running.memory = whole.memory;
        }
        running.scalar.extend(whole.scalar);
    }
    running.add(&Resources::of(spec.overhead.as_ref()));
    running
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn sums_containers_and_takes_the_peak_of_initialisation() {
        let request = |cpu: &str| json!({"requests": {"cpu": cpu, "memory": "1Mi"}});
        let s = spec(json!({
            "containers": [{"name": "a", "resources": request("100m")},
                           {"name": "b", "resources": request("200m")}],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": request("50m")},
                {"name": "i", "resources": request("1")}],
            "overhead": {"cpu": "10m"},
        }));
        assert_eq!(requested(&s).milli_cpu, 1060);
        assert_eq!(requested(&s).memory, 3 << 20);
    }

    #[test]
    fn scoring_assumes_usual_amounts() {
        let s = spec(json!({"containers": [{"name": "a"}, {"name": "b",
            "resources": {"requests": {"cpu": "0", "example.com/x": "2"}}}]}));
        let scored = requested_for_scoring(&s);
        assert_eq!((scored.milli_cpu, scored.memory), (100, 400 << 20));
        assert_eq!(
            requested(&s),
            Resources {
                scalar: [("example.com/x".into(), 2)].into(),
                ..Default::default()
            }
        );
    }
}
