//! Which nodes suit a claim, and which best.

use std::sync::Arc;

use client::Key;
use serde_json::{Value, json};

use super::{
    fit::{Claims, Delayed, place},
    parse,
};
use crate::{
    node::NodeSpec,
    storage::{CapacitySpec, ClassSpec, DriverSpec, Storage, VolumeSpec},
};

fn node(name: &str, zone: &str) -> NodeSpec {
    NodeSpec {
        name: name.into(),
        labels: [("zone".to_owned(), zone.to_owned())].into(),
        ..NodeSpec::default()
    }
}

/// A class whose driver reports 100Gi in zone a, of which volumes have 50Gi at most, and 20Gi in b.
fn storage() -> Storage {
    let storage = Storage::default();
    let driver = json!({"metadata": {"name": "d"}, "spec": {"storageCapacity": true}});
    let driver = serde_json::from_value(driver).unwrap();
    storage
        .drivers
        .set(Key::cluster("d"), DriverSpec::of(driver));
    for (zone, capacity, largest) in [("a", "100Gi", Some("50Gi")), ("b", "20Gi", None)] {
        let capacity = json!({"metadata": {"name": zone}, "storageClassName": "fast",
            "capacity": capacity, "maximumVolumeSize": largest,
            "nodeTopology": {"matchLabels": {"zone": zone}}});
        let capacity = serde_json::from_value(capacity).unwrap();
        let key = Key::new("n", zone);
        storage.capacities.set(key, CapacitySpec::of(capacity));
    }
    storage
}

fn delayed(gigabytes: i64, class: Value, extra: impl FnOnce(&mut Delayed)) -> Claims {
    let mut given = json!({"metadata": {"name": "fast"}, "provisioner": "d",
        "volumeBindingMode": "WaitForFirstConsumer"});
    for (key, value) in class.as_object().unwrap() {
        given[key] = value.clone();
    }
    let class = ClassSpec::of(serde_json::from_value(given).unwrap());
    let mut one = Delayed {
        key: Key::new("n", "c"),
        class: ("fast".into(), Some(Arc::new(class))),
        request: gigabytes << 30,
        node: None,
        volumes: Vec::new(),
    };
    extra(&mut one);
    Claims {
        bound: Vec::new(),
        delayed: vec![one],
    }
}

fn volume(gigabytes: i64, zone: &str) -> Arc<VolumeSpec> {
    let volume = json!({"metadata": {"name": format!("v-{zone}")}, "spec": {
        "capacity": {"storage": format!("{gigabytes}Gi")},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "zone", "operator": "In", "values": [zone]}]}]}}}});
    Arc::new(VolumeSpec::of(serde_json::from_value(volume).unwrap()))
}

#[test]
fn a_node_suits_a_claim_whose_volume_is_there_or_can_be_made() {
    let storage = storage();
    let plain = || json!({});
    let topology = |zone: &str| json!({"allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": [zone]}]}]});
    const NO_SPACE: &str = "node(s) did not have enough free storage";
    const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";
    const WRONG_NODE: &str = "node(s) didn't match PersistentVolume's node affinity";
    let bound = |zone: Option<&str>| Claims {
        bound: vec![zone.map(|z| volume(1, z))],
        delayed: Vec::new(),
    };
    for (what, claims, zone, expected) in [
        ("little", delayed(10, plain(), |_| ()), "b", Ok(())),
        ("much", delayed(30, plain(), |_| ()), "b", Err(NO_SPACE)),
        ("much", delayed(30, plain(), |_| ()), "a", Ok(())),
        (
            "too large a volume",
            delayed(60, plain(), |_| ()),
            "a",
            Err(NO_SPACE),
        ),
        (
            "nothing reported",
            delayed(1, plain(), |_| ()),
            "c",
            Err(NO_SPACE),
        ),
        (
            "other driver",
            delayed(99, json!({"provisioner": "e"}), |_| ()),
            "c",
            Ok(()),
        ),
        (
            "allowed here",
            delayed(1, topology("a"), |_| ()),
            "a",
            Ok(()),
        ),
        (
            "not allowed here",
            delayed(1, topology("b"), |_| ()),
            "a",
            Err(NO_VOLUME),
        ),
        (
            "nobody makes any",
            delayed(
                1,
                json!({"provisioner": "kubernetes.io/no-provisioner"}),
                |_| (),
            ),
            "a",
            Err(NO_VOLUME),
        ),
        (
            "a volume is there",
            delayed(
                99,
                json!({"provisioner": "kubernetes.io/no-provisioner"}),
                |d| {
                    d.volumes = vec![volume(99, "a")];
                },
            ),
            "a",
            Ok(()),
        ),
        (
            "being made here",
            delayed(1, plain(), |d| d.node = Some("n-a".into())),
            "a",
            Ok(()),
        ),
        (
            "being made elsewhere",
            delayed(1, plain(), |d| d.node = Some("x".into())),
            "a",
            Err(NO_VOLUME),
        ),
        ("bound here", bound(Some("a")), "a", Ok(())),
        ("bound elsewhere", bound(Some("b")), "a", Err(WRONG_NODE)),
        (
            "lost",
            bound(None),
            "a",
            Err("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"),
        ),
    ] {
        let node = node(&format!("n-{zone}"), zone);
        let found = place(&claims, &storage, &node).map(drop);
        assert_eq!(found, expected.map_err(|e| vec![e]), "{what}");
    }
}

#[test]
fn the_emptier_storage_is_better_unless_configured() {
    let storage = storage();
    let score = |args: Value, claims: &Claims, zone: &str| {
        let (_, shape) = parse(args).unwrap();
        place(claims, &storage, &node("n", zone))
            .unwrap()
            .score(&shape)
    };
    let made = delayed(10, json!({}), |_| ());
    assert_eq!(score(json!({}), &made, "a"), 90);
    assert_eq!(score(json!({}), &made, "b"), 50);
    let there = delayed(10, json!({}), |d| d.volumes = vec![volume(40, "a")]);
    assert_eq!(score(json!({}), &there, "a"), 75);
    let fullest =
        json!({"shape": [{"utilization": 0, "score": 0}, {"utilization": 100, "score": 10}]});
    assert_eq!(score(fullest, &there, "a"), 25);
    assert_eq!(score(json!({}), &Claims::default(), "a"), 0);
}

#[test]
fn arguments_that_make_no_sense_are_named() {
    for (args, expected) in [
        (
            json!({"bindTimeoutSeconds": -1}),
            "bindTimeoutSeconds: Invalid value: -1",
        ),
        (json!({"shape": []}), "shape: required value"),
        (
            json!({"shape": [{"utilization": 200, "score": 1}]}),
            "shape[0].utilization: Invalid value: 200",
        ),
        (json!({"other": 1}), "unknown field `other`"),
    ] {
        let error = parse(args).err().unwrap();
        assert!(error.starts_with(expected), "{error}");
    }
}
