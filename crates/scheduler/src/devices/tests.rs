//! What claims get of the devices of a node.

use std::sync::Arc;

use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice,
};
use serde_json::{Value, json};

use super::{
    allocator::{Ground, Refusal, allocate},
    inventory::Inventory,
    ledger::Ledger,
    model::Slice,
    request::Asked,
    selectors::Selectors,
};
use crate::node::NodeSpec;

/// A cluster of one node, `n`.
#[derive(Default)]
struct World {
    inventory: Inventory,
    ledger: Ledger,
    selectors: Selectors,
    rules: Vec<Arc<DeviceTaintRule>>,
    late: bool,
}

impl World {
    /// Devices of one pool, each with its extra fields.
    fn of(devices: Value) -> Self {
        Self::with(&[("p", json!({"devices": devices}))])
    }

    /// Pools of one slice each.
    fn with(pools: &[(&str, Value)]) -> Self {
        let mut world = Self::default();
        for (pool, extra) in pools {
            let mut spec = json!({"driver": "d", "nodeName": "n",
                "pool": {"name": pool, "generation": 1, "resourceSliceCount": 1}});
            spec.as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            let slice: ResourceSlice =
                serde_json::from_value(json!({"metadata": {"name": pool}, "spec": spec})).unwrap();
            world.inventory.set(pool, Some(Slice::of(slice)));
        }
        world
    }

    fn results(&self, claims: &[Value]) -> Result<Vec<AllocationResult>, Refusal> {
        let claims: Vec<ResourceClaim> = claims
            .iter()
            .map(|devices| {
                serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "ns"},
                    "spec": {"devices": devices}}))
                .unwrap()
            })
            .collect();
        let asked = claims.iter().map(|c| Asked::of(c, class));
        let asked: Vec<Asked<'_>> = asked.collect::<Result<_, _>>().map_err(Refusal::Error)?;
        let node = NodeSpec {
            name: "n".into(),
            ..NodeSpec::default()
        };
        let ground = Ground {
            node: &node,
            pools: &self.inventory.pools_of(&node),
            ledger: &self.ledger,
            selectors: &self.selectors,
            rules: &self.rules,
            expired: &|| self.late,
        };
        allocate(&ground, &asked)
    }

    /// What each request got, or why nothing.
    fn allocate(&self, claims: &[Value]) -> String {
        match self.results(claims) {
            Ok(results) => results
                .iter()
                .flat_map(|r| r.devices.as_ref().unwrap().results.as_ref().unwrap())
                .map(|r| format!("{}={}/{}", r.request, r.pool, r.device))
                .collect::<Vec<_>>()
                .join(" "),
            Err(Refusal::Error(why)) => why,
            Err(other) => format!("{other:?}"),
        }
    }

    /// The results of an allocation are taken from now on.
    fn take(&mut self, claim: &str, results: &[AllocationResult]) {
        self.ledger.set(claim, results.first());
    }
}

/// Classes: `any`, `gpu` (devices of kind gpu, with a configuration) and `broken`.
fn class(name: &str) -> Option<Arc<DeviceClass>> {
    let spec = match name {
        "any" => json!({}),
        "gpu" => {
            json!({"selectors": [{"cel": {"expression": "device.attributes['d'].kind == 'gpu'"}}],
            "config": [{"opaque": {"driver": "d", "parameters": {"of": "class"}}}]})
        }
        "broken" => {
            json!({"selectors": [{"cel": {"expression": "device.attributes['d'].none == 1"}}]})
        }
        _ => return None,
    };
    let class = json!({"metadata": {"name": name}, "spec": spec});
    Some(Arc::new(serde_json::from_value(class).unwrap()))
}

fn exactly(name: &str, extra: Value) -> Value {
    let mut exactly = json!({"deviceClassName": "any"});
    exactly
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    json!({"name": name, "exactly": exactly})
}

fn claim(requests: &[Value]) -> Value {
    json!({"requests": requests})
}

fn one(extra: Value) -> Vec<Value> {
    vec![claim(&[exactly("r", extra)])]
}

fn gpus() -> World {
    let device = |name: &str, kind: &str, index: i64, numa: i64| {
        json!({"name": name, "attributes": {"kind": {"string": kind}, "index": {"int": index},
            "d/numa": {"int": numa}}, "capacity": {"memory": {"value": format!("{}Gi", index * 10)}}})
    };
    World::of(json!([
        device("a", "gpu", 1, 0),
        device("b", "nic", 2, 0),
        device("c", "gpu", 3, 1),
        device("d", "nic", 4, 1),
    ]))
}

fn expression(text: &str) -> Value {
    json!([{"cel": {"expression": text}}])
}

#[test]
fn selectors_counts_and_modes() {
    let world = gpus();
    for (extra, expected) in [
        (json!({}), "r=p/a"),
        (json!({"count": 2}), "r=p/a r=p/b"),
        (json!({"count": 5}), "None"),
        (json!({"deviceClassName": "gpu", "count": 2}), "r=p/a r=p/c"),
        (
            json!({"allocationMode": "All", "deviceClassName": "gpu"}),
            "r=p/a r=p/c",
        ),
        (
            json!({"selectors": expression("device.attributes['d'].index > 2")}),
            "r=p/c",
        ),
        (
            json!({"selectors": expression("device.capacity['d'].memory.isGreaterThan(quantity('25Gi'))")}),
            "r=p/c",
        ),
        (
            json!({"allocationMode": "All", "selectors": expression("device.driver == 'other'")}),
            "None",
        ),
        (
            json!({"deviceClassName": "broken"}),
            "class broken: selector #0 on device d/p/a: CEL runtime error: no such key: none",
        ),
        (
            json!({"selectors": expression("device.driver")}),
            "claim ns/c: selector #0: CEL compile error: must evaluate to bool or the unknown type, not string",
        ),
        (
            json!({"deviceClassName": "missing"}),
            "request r: device class missing does not exist",
        ),
        (
            json!({"count": 33}),
            "claim ns/c: number of requested devices 33 exceeds the claim limit of 32",
        ),
        (
            json!({"allocationMode": "Some"}),
            "resource claim ns/c, request r: unsupported count mode Some",
        ),
    ] {
        assert_eq!(world.allocate(&one(extra.clone())), expected, "{extra}");
    }
    let late = World {
        late: true,
        ..gpus()
    };
    assert_eq!(late.allocate(&one(json!({}))), "Late");
}

#[test]
fn the_search_turns_back() {
    let world = gpus();
    // The first request would take what only the second can use.
    let greedy = [
        exactly("any", json!({})),
        exactly(
            "a",
            json!({"selectors": expression("device.attributes['d'].index == 1")}),
        ),
    ];
    assert_eq!(world.allocate(&[claim(&greedy)]), "any=p/b a=p/a");
    let claims = [claim(&greedy[..1]), claim(&greedy[1..])];
    assert_eq!(world.allocate(&claims), "any=p/b a=p/a", "over claims too");
}

#[test]
fn constraints_over_all_or_some_requests() {
    let world = gpus();
    let with = |constraints: Value| {
        let mut claim = claim(&[
            exactly("gpu", json!({"deviceClassName": "gpu"})),
            exactly(
                "nic",
                json!({"selectors": expression("device.attributes['d'].kind == 'nic'")}),
            ),
        ]);
        claim["constraints"] = constraints;
        world.allocate(&[claim])
    };
    assert_eq!(
        with(json!([{"matchAttribute": "d/numa"}])),
        "gpu=p/a nic=p/b"
    );
    assert_eq!(
        with(json!([{"distinctAttribute": "d/numa"}])),
        "gpu=p/a nic=p/d"
    );
    assert_eq!(with(json!([{"matchAttribute": "d/kind"}])), "None");
    assert_eq!(
        with(json!([{"matchAttribute": "d/kind", "requests": ["nic"]}])),
        "gpu=p/a nic=p/b"
    );
    assert_eq!(
        with(json!([{"matchAttribute": "other/numa"}])),
        "None",
        "devices do not have it"
    );
    assert_eq!(
        with(json!([{}])),
        "claim ns/c, constraint #0: empty constraint (unsupported constraint type?)"
    );
    let mut all = claim(&[exactly("r", json!({"allocationMode": "All"}))]);
    all["constraints"] = json!([{"matchAttribute": "d/numa"}]);
    assert_eq!(
        world.allocate(&[all]),
        "claim ns/c, request r: cannot add device d/p/c because a claim constraint would not be satisfied"
    );
}

#[test]
fn the_first_alternative_that_can_be_had() {
    let mut world = gpus();
    let list = |first: i64| {
        claim(&[json!({"name": "r", "firstAvailable": [
            {"name": "many", "deviceClassName": "gpu", "count": first},
            {"name": "one", "deviceClassName": "gpu"}]})])
    };
    assert_eq!(world.allocate(&[list(2)]), "r/many=p/a r/many=p/c");
    assert_eq!(world.allocate(&[list(3)]), "r/one=p/a");
    assert_eq!(
        world.allocate(&[list(40)]),
        "r/one=p/a",
        "more than a claim holds"
    );
    let first = world.results(&[list(1)]).unwrap();
    world.take("x", &first);
    assert_eq!(world.allocate(&[list(2)]), "r/one=p/c");
    // The alternative that leads nowhere later on is given up.
    let mut both = list(2);
    let requests = both["requests"].as_array_mut().unwrap();
    let other = json!({"deviceClassName": "gpu"});
    requests.push(exactly("other", other));
    assert_eq!(gpus().allocate(&[both]), "r/one=p/a other=p/c");
}

#[test]
fn what_is_taken_is_taken_except_for_administration() {
    let mut world = gpus();
    let all = world
        .results(&one(json!({"allocationMode": "All"})))
        .unwrap();
    world.take("x", &all);
    assert_eq!(world.allocate(&one(json!({}))), "None");
    assert_eq!(
        world.allocate(&one(json!({"allocationMode": "All"}))),
        "None"
    );
    let admin = json!({"allocationMode": "All", "adminAccess": true});
    let results = world.results(&one(admin)).unwrap();
    let devices = results[0].devices.as_ref().unwrap();
    let devices = devices.results.as_ref().unwrap();
    assert_eq!(devices.len(), 4);
    assert!(devices.iter().all(|d| d.admin_access == Some(true)));
}

#[test]
fn taints_keep_claims_away_that_do_not_tolerate_them() {
    let taint = |effect: &str| json!([{"key": "k", "value": "v", "effect": effect}]);
    let of =
        |effect: &str| World::of(json!([{"name": "a", "taints": taint(effect)}, {"name": "b"}]));
    for (effect, tolerations, expected) in [
        ("NoSchedule", json!([]), "r=p/b"),
        ("NoExecute", json!([]), "r=p/b"),
        ("None", json!([]), "r=p/a"),
        ("NoSchedule", json!([{"operator": "Exists"}]), "r=p/a"),
        ("NoSchedule", json!([{"key": "k", "value": "v"}]), "r=p/a"),
        ("NoSchedule", json!([{"key": "k", "value": "w"}]), "r=p/b"),
        (
            "NoSchedule",
            json!([{"key": "k", "operator": "Exists", "effect": "NoExecute"}]),
            "r=p/b",
        ),
    ] {
        let found = of(effect).allocate(&one(json!({"tolerations": tolerations})));
        assert_eq!(found, expected, "{effect} {tolerations}");
    }
    let rule = |selector: Value| {
        let rule = json!({"metadata": {"name": "r"}, "spec": {"deviceSelector": selector,
            "taint": {"key": "k", "effect": "NoSchedule"}}});
        Arc::new(serde_json::from_value(rule).unwrap())
    };
    for (selector, expected) in [
        (json!({"driver": "d", "device": "a"}), "r=p/b"),
        (json!({"driver": "e"}), "r=p/a"),
        (json!({"pool": "p"}), "None"),
        (json!({}), "None"),
        // Without a selector a rule is about no device.
        (Value::Null, "r=p/a"),
    ] {
        let mut world = of("None");
        world.rules = vec![rule(selector.clone())];
        assert_eq!(world.allocate(&one(json!({}))), expected, "{selector}");
    }
}

#[test]
fn devices_that_consume_counters_share_them() {
    let device = |name: &str, amount: &str| {
        json!({"name": name, "consumesCounters": [
            {"counterSet": "card", "counters": {"memory": {"value": amount}}}]})
    };
    let pool = |slice: &str, extra: Value| {
        let mut spec = json!({"driver": "d", "nodeName": "n",
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 2}});
        spec.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let slice = json!({"metadata": {"name": slice}, "spec": spec});
        Slice::of(serde_json::from_value(slice).unwrap())
    };
    let mut world = World::default();
    let devices = json!([
        device("whole", "40Gi"),
        device("half-1", "20Gi"),
        device("half-2", "20Gi")
    ]);
    world
        .inventory
        .set("a", Some(pool("a", json!({"devices": devices}))));
    let counters = json!([{"name": "card", "counters": {"memory": {"value": "40Gi"}}}]);
    world
        .inventory
        .set("b", Some(pool("b", json!({"sharedCounters": counters}))));
    assert_eq!(
        world.allocate(&one(json!({"count": 2}))),
        "r=p/half-1 r=p/half-2"
    );
    assert_eq!(world.allocate(&one(json!({"count": 3}))), "None");
    let half = json!({"selectors": expression("device.driver == 'd'"), "count": 1});
    let first = world.results(&one(half)).unwrap();
    world.take("x", &first);
    assert_eq!(
        world.allocate(&one(json!({}))),
        "None",
        "the whole card is gone"
    );
}

#[test]
fn shared_devices_are_given_out_by_capacity() {
    let mut world = World::of(json!([{"name": "a", "allowMultipleAllocations": true,
        "capacity": {"memory": {"value": "10Gi"}}}]));
    let of = |memory: &str| exactly("r", json!({"capacity": {"requests": {"memory": memory}}}));
    let results = world.results(&[claim(&[of("6Gi")])]).unwrap();
    let device = &results[0]
        .devices
        .as_ref()
        .unwrap()
        .results
        .as_ref()
        .unwrap()[0];
    assert_eq!(
        device.consumed_capacity.as_ref().unwrap()["memory"].0,
        "6Gi"
    );
    assert_eq!(device.share_id.as_ref().unwrap().len(), 36);
    world.take("x", &results);
    assert_eq!(world.allocate(&[claim(&[of("6Gi")])]), "None");
    assert_eq!(world.allocate(&[claim(&[of("4Gi")])]), "r=p/a");
    let two = [claim(&[of("2Gi")]), claim(&[of("2Gi")])];
    assert_eq!(world.allocate(&two), "r=p/a r=p/a");
    let three = [claim(&[of("2Gi")]), claim(&[of("3Gi")])];
    assert_eq!(world.allocate(&three), "None");
    assert_eq!(
        world.allocate(&one(json!({}))),
        "None",
        "without a request it wants all"
    );
}

#[test]
fn configuration_of_classes_and_claims_says_what_it_is_for() {
    let world = gpus();
    let mut asked = claim(&[
        exactly("x", json!({"deviceClassName": "gpu"})),
        exactly("y", json!({"deviceClassName": "gpu"})),
        exactly("z", json!({})),
    ]);
    let opaque = |of: &str| json!({"driver": "d", "parameters": {"of": of}});
    asked["config"] = json!([
        {"opaque": opaque("claim")},
        {"requests": ["z"], "opaque": opaque("z")},
        {"requests": ["other"], "opaque": opaque("none")},
    ]);
    let results = world.results(&[asked]).unwrap();
    let config = serde_json::to_value(&results[0].devices.as_ref().unwrap().config).unwrap();
    assert_eq!(
        config,
        json!([
            {"source": "FromClass", "requests": ["x", "y"], "opaque": opaque("class")},
            {"source": "FromClaim", "opaque": opaque("claim")},
            {"source": "FromClaim", "requests": ["z"], "opaque": opaque("z")},
        ])
    );
}

#[test]
fn an_allocation_says_from_where_it_can_be_used() {
    let terms = json!({"nodeSelectorTerms": [{"matchFields": [
        {"key": "metadata.name", "operator": "NotIn", "values": ["m"]}]}]});
    let devices = json!([{"name": "a"}]);
    let only = json!({"nodeSelectorTerms": [{"matchFields": [
        {"key": "metadata.name", "operator": "In", "values": ["n"]}]}]});
    for (extra, expected) in [
        (json!({"devices": devices}), only.clone()),
        (
            json!({"nodeName": null, "allNodes": true, "devices": devices}),
            Value::Null,
        ),
        (
            json!({"nodeName": null, "nodeSelector": terms, "devices": devices}),
            terms.clone(),
        ),
        (
            json!({"nodeName": null, "allNodes": true, "devices": [{"name": "a", "bindsToNode": true}]}),
            only,
        ),
        (
            json!({"nodeName": null, "perDeviceNodeSelection": true,
                "devices": [{"name": "a", "nodeSelector": terms}]}),
            terms,
        ),
    ] {
        let world = World::with(&[("p", extra.clone())]);
        let results = world.results(&one(json!({}))).unwrap();
        let selector = serde_json::to_value(&results[0].node_selector).unwrap();
        assert_eq!(selector, expected, "{extra}");
    }
}

#[test]
fn unclear_pools_are_left_out_and_stop_who_wants_all() {
    let incomplete = json!({"pool": {"name": "q", "generation": 1, "resourceSliceCount": 2},
        "devices": [{"name": "x"}]});
    let invalid = json!({"devices": [{"name": "x"}, {"name": "x"}]});
    let whole = ("p", json!({"devices": [{"name": "a"}]}));
    let world = World::with(&[whole.clone(), ("q", incomplete)]);
    assert_eq!(world.allocate(&one(json!({}))), "r=p/a");
    assert_eq!(world.allocate(&one(json!({"count": 2}))), "None");
    assert_eq!(
        world.allocate(&one(json!({"allocationMode": "All"}))),
        "claim ns/c, request r: asks for all devices, but resource pool d/q is currently being updated"
    );
    let world = World::with(&[whole, ("q", invalid)]);
    assert_eq!(world.allocate(&one(json!({}))), "r=p/a");
    assert_eq!(world.allocate(&one(json!({"count": 2}))), "Unclear");
}
