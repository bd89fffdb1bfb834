//! The pools of devices that a node reaches.
//!
//! A pool is published in several slices, and drivers replace them one after another: a newer
//! generation makes the older ones obsolete, and until all slices of the newest are there, nobody
//! can tell what the pool has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::model::{Amounts, PoolId, Reach, Slice};
use crate::node::NodeSpec;

/// A pool as seen from a node.
#[derive(Debug)]
pub struct Pool {
    /// Which one it is.
    pub id: PoolId,
    /// What is known of it.
    pub state: PoolState,
}

/// What is known of a pool.
#[derive(Debug)]
pub enum PoolState {
    /// Everything.
    Complete(Contents),
    /// It is being published.
    Incomplete,
    /// It contradicts itself.
    Invalid,
}

/// What a pool has.
#[derive(Debug, Default)]
pub struct Contents {
    /// Slices with devices that the node reaches, by name.
    pub here: Vec<Arc<Slice>>,
    /// The others.
    pub elsewhere: Vec<Arc<Slice>>,
    /// What its devices share.
    pub counters: BTreeMap<String, Amounts>,
}

impl Pool {
    /// What it has, if that is known.
    pub fn contents(&self) -> Option<&Contents> {
        match &self.state {
            PoolState::Complete(contents) => Some(contents),
            _ => None,
        }
    }

    fn has_binding_conditions(&self) -> bool {
        let slices = self.contents().into_iter().flat_map(|c| &c.here);
        let mut devices = slices.flat_map(|s| &s.devices);
        devices.any(|d| d.binding_conditions.is_some())
    }
}

/// All slices, found by pool and node.
#[derive(Debug, Default)]
pub struct Inventory {
    places: HashMap<Arc<str>, PoolId>,
    pools: HashMap<PoolId, BTreeMap<Arc<str>, Arc<Slice>>>,
    /// Pools with slices for one node.
    on_node: HashMap<String, BTreeSet<PoolId>>,
    /// Pools with slices for more than one node.
    wide: BTreeSet<PoolId>,
}

impl Inventory {
    /// A slice is there, or (`None`) no more.
    pub fn set(&mut self, name: &str, slice: Option<Slice>) {
        if let Some(id) = self.places.remove(name) {
            let mut left = self.pools.remove(&id).unwrap_or_default();
            left.remove(name);
            self.forget(&id);
            if !left.is_empty() {
                left.values().for_each(|s| self.index(s));
                self.pools.insert(id, left);
            }
        }
        let Some(slice) = slice.map(Arc::new) else {
            return;
        };
        self.index(&slice);
        self.places
            .insert(Arc::clone(&slice.name), slice.pool.clone());
        let pool = self.pools.entry(slice.pool.clone()).or_default();
        pool.insert(Arc::clone(&slice.name), slice);
    }

    /// Whether there are any devices.
    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    fn index(&mut self, slice: &Slice) {
        match &slice.reach {
            Reach::Node(node) => {
                let pools = self.on_node.entry(node.clone()).or_default();
                pools.insert(slice.pool.clone());
            }
            _ => {
                self.wide.insert(slice.pool.clone());
            }
        }
    }

    /// The pool is found no more.
    fn forget(&mut self, id: &PoolId) {
        self.wide.remove(id);
        self.on_node.retain(|_, pools| {
            pools.remove(id);
            !pools.is_empty()
        });
    }

    /// The pools that a node reaches; those with devices that take preparation come last.
    pub fn pools_of(&self, node: &NodeSpec) -> Vec<Pool> {
        let own = self.on_node.get(&node.name).into_iter().flatten();
        let ids: BTreeSet<&PoolId> = own.chain(&self.wide).collect();
        let mut pools: Vec<Pool> = ids
            .into_iter()
            .filter_map(|id| self.pool_of(id, node))
            .collect();
        pools.sort_by_key(Pool::has_binding_conditions);
        pools
    }

    /// A pool as seen from a node; `None`: it has nothing (any more) that the node reaches.
    fn pool_of(&self, id: &PoolId, node: &NodeSpec) -> Option<Pool> {
        let all = self.pools.get(id)?;
        let reached = all.values().filter(|s| s.reaches(node));
        let generation = reached.map(|s| s.generation).max()?;
        if all.values().any(|s| s.generation > generation) {
            return None;
        }
        let newest = all.values().filter(|s| s.generation == generation);
        let (here, elsewhere): (Vec<_>, Vec<_>) = newest.cloned().partition(|s| s.reaches(node));
        let wanted = here.first().map_or(0, |s| s.slices);
        let state = if (here.len() + elsewhere.len()) as i64 == wanted {
            contents(here, elsewhere).map_or(PoolState::Invalid, PoolState::Complete)
        } else {
            PoolState::Incomplete
        };
        Some(Pool {
            id: id.clone(),
            state,
        })
    }
}

/// What the slices say together; `None`: they contradict one another.
fn contents(here: Vec<Arc<Slice>>, elsewhere: Vec<Arc<Slice>>) -> Option<Contents> {
    let mut names = BTreeSet::new();
    let devices = || here.iter().flat_map(|s| &s.devices);
    if !devices().all(|d| names.insert(Arc::clone(&d.id.device))) {
        return None;
    }
    let mut counters = BTreeMap::new();
    for (name, amounts) in here.iter().chain(&elsewhere).flat_map(|s| &s.counters) {
        if counters.insert(name.clone(), amounts.clone()).is_some() {
            return None;
        }
    }
    let others = elsewhere.iter().flat_map(|s| &s.devices);
    let known = devices().chain(others).flat_map(|d| &d.consumes).all(
        |(set, amounts): &(String, Amounts)| {
            let set = counters.get(set);
            set.is_some_and(|set| amounts.keys().all(|name| set.contains_key(name)))
        },
    );
    known.then_some(Contents {
        here,
        elsewhere,
        counters,
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::resource::v1::ResourceSlice;
    use serde_json::{Value, json};

    use super::*;

    fn slice(name: &str, extra: Value) -> Slice {
        let mut slice = json!({"metadata": {"name": name}, "spec": {"driver": "d", "nodeName": "n",
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": name}]}});
        for (pointer, value) in extra.as_object().unwrap() {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            slice.pointer_mut(parent).unwrap()[key] = value.clone();
        }
        Slice::of(serde_json::from_value::<ResourceSlice>(slice).unwrap())
    }

    fn seen(inventory: &Inventory, node: &str) -> Vec<String> {
        let node = NodeSpec {
            name: node.into(),
            labels: [("zone".to_owned(), "z".to_owned())].into(),
            ..NodeSpec::default()
        };
        let show = |pool: &Pool| match &pool.state {
            PoolState::Complete(c) => {
                let names = c.here.iter().flat_map(|s| &s.devices);
                let names: Vec<&str> = names.map(|d| &*d.id.device).collect();
                format!("{}: {}", pool.id, names.join(" "))
            }
            PoolState::Incomplete => format!("{}: incomplete", pool.id),
            PoolState::Invalid => format!("{}: invalid", pool.id),
        };
        inventory.pools_of(&node).iter().map(show).collect()
    }

    fn all(slices: Vec<Slice>) -> Inventory {
        let mut inventory = Inventory::default();
        for slice in slices {
            let name = Arc::clone(&slice.name);
            inventory.set(&name, Some(slice));
        }
        inventory
    }

    #[test]
    fn newer_generations_replace_older_ones_and_are_used_when_whole() {
        let generation = "/spec/pool/generation";
        let count = "/spec/pool/resourceSliceCount";
        let mut inventory = all(vec![slice("a", json!({}))]);
        assert_eq!(seen(&inventory, "n"), ["d/p: a"]);
        let newer = |name: &str| slice(name, json!({generation: 2, count: 2}));
        inventory.set("b", Some(newer("b")));
        assert_eq!(seen(&inventory, "n"), ["d/p: incomplete"]);
        inventory.set("c", Some(newer("c")));
        assert_eq!(seen(&inventory, "n"), ["d/p: b c"]);
        inventory.set("b", None);
        inventory.set("c", None);
        inventory.set("a", None);
        assert!(seen(&inventory, "n").is_empty() && inventory.is_empty());
        assert!(inventory.on_node.is_empty());
    }

    #[test]
    fn a_node_sees_what_it_reaches() {
        let only = |at: Value| {
            let mut extra = json!({"/spec/nodeName": null});
            extra
                .as_object_mut()
                .unwrap()
                .extend(at.as_object().unwrap().clone());
            extra
        };
        let terms = |value: &str| {
            json!({"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "zone", "operator": "In", "values": [value]}]}]})
        };
        for (extra, expected) in [
            (json!({}), (true, false)),
            (only(json!({"/spec/allNodes": true})), (true, true)),
            (
                only(json!({"/spec/nodeSelector": terms("z")})),
                (true, true),
            ),
            (
                only(json!({"/spec/nodeSelector": terms("y")})),
                (false, false),
            ),
            (
                only(json!({"/spec/perDeviceNodeSelection": true,
                "/spec/devices": [{"name": "x", "nodeName": "m"}]})),
                (false, true),
            ),
            (only(json!({})), (false, false)),
        ] {
            let inventory = all(vec![slice("a", extra.clone())]);
            let found = (
                !seen(&inventory, "n").is_empty(),
                !seen(&inventory, "m").is_empty(),
            );
            assert_eq!(found, expected, "{extra}");
        }
        // Slices of other nodes count as parts of the pool, and a newer one makes it obsolete.
        let count = "/spec/pool/resourceSliceCount";
        let other = |generation: i64| {
            slice(
                "b",
                json!({"/spec/nodeName": "m", count: 2,
            "/spec/pool/generation": generation}),
            )
        };
        let inventory = all(vec![slice("a", json!({count: 2})), other(1)]);
        assert_eq!(seen(&inventory, "n"), ["d/p: a"]);
        let inventory = all(vec![slice("a", json!({count: 2})), other(2)]);
        assert!(seen(&inventory, "n").is_empty());
    }

    #[test]
    fn pools_that_contradict_themselves_are_of_no_use() {
        let count = "/spec/pool/resourceSliceCount";
        let twice = json!({count: 2, "/spec/devices": [{"name": "x"}]});
        let inventory = all(vec![slice("a", twice.clone()), slice("b", twice)]);
        assert_eq!(seen(&inventory, "n"), ["d/p: invalid"]);
        let consumer = json!([{"name": "x", "consumesCounters": [
            {"counterSet": "s", "counters": {"c": {"value": "1"}}}]}]);
        let inventory = all(vec![slice("a", json!({"/spec/devices": consumer}))]);
        assert_eq!(seen(&inventory, "n"), ["d/p: invalid"]);
        let counters = json!({count: 2, "/spec/devices": null, "/spec/sharedCounters": [
            {"name": "s", "counters": {"c": {"value": "2"}}}]});
        let inventory = all(vec![
            slice("a", json!({count: 2, "/spec/devices": consumer})),
            slice("b", counters),
        ]);
        assert_eq!(seen(&inventory, "n"), ["d/p: x"]);
    }

    #[test]
    fn pools_come_by_name_those_that_take_preparation_last() {
        let pool = |name: &str, conditions: Value| {
            slice(
                name,
                json!({"/spec/pool/name": name,
                "/spec/devices": [{"name": "x", "bindingConditions": conditions}]}),
            )
        };
        let inventory = all(vec![
            pool("c", Value::Null),
            pool("a", json!(["ready"])),
            pool("b", Value::Null),
        ]);
        assert_eq!(seen(&inventory, "n"), ["d/b: x", "d/c: x", "d/a: x"]);
    }
}
