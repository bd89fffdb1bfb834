//! All plugins together over small worlds: where a pod goes, or why nowhere.

mod affinity;
mod classes;
mod devices;
mod hints;
mod why;

use std::{convert::Infallible, sync::Arc};

use client::{Caches, Jitter};
use http::{Request, Response};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::{
    config::ProfileConfig,
    diagnosis,
    node::NodeSpec,
    plugins::Handle,
    pod::{self, PodInfo},
    profile::{Profile, Scores},
    search::Memory,
    world::World,
};

/// A server that never answers.
fn handle() -> Handle {
    let silent = tower::service_fn(|_: Request<kube::client::Body>| async {
        std::future::pending::<()>().await;
        Ok::<_, Infallible>(Response::new(kube::client::Body::empty()))
    });
    let client = client::in_process(silent);
    Handle::new(client.clone(), Caches::new(client))
}

/// Every plugin.
fn profile() -> Profile {
    let handle = handle();
    Profile::configured(&ProfileConfig::default(), &handle, Jitter::none()).unwrap()
}

fn node(name: &str, extra: Value) -> NodeSpec {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"name": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}},
    });
    for (pointer, value) in extra.as_object().unwrap() {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        node.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    NodeSpec::of(&serde_json::from_value::<Node>(node).unwrap())
}

fn pod(name: &str, cpu: &str, extra: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name},
        "spec": {"containers": [{"name": "c", "image": "i",
            "resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}}]},
    });
    for (key, value) in extra.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    serde_json::from_value(pod).unwrap()
}

fn place(world: &mut World, pod: &Pod, node: &str) {
    let footprint = pod::footprint(pod, pod.spec.as_ref().unwrap());
    world.place(Arc::new(footprint), node, false);
}

/// The node, or the message; with `+` and the victims where room is made.
fn outcome(profile: &Profile, world: &mut World, pod: &Pod) -> String {
    let pod = PodInfo::of(pod).unwrap();
    let mut search = match profile.search(world, &pod, &mut Memory::default()) {
        Ok(search) => search,
        Err(error) => return error,
    };
    if let Some(node) = profile.choose(world, &pod, &mut search, &Scores::new()) {
        return node;
    }
    match profile.ask_for_help(world, &pod, &mut search).first() {
        Some(best) => {
            let names = best.victims.iter().map(|v| v.key.name.to_string());
            format!("{} + {}", best.node, names.collect::<Vec<_>>().join(" "))
        }
        None => diagnosis::message(&search.diagnosis),
    }
}

#[tokio::test]
async fn filters_and_their_words() {
    let profile = profile();
    let mut world = World::default();
    world.set_node(node("a", json!({"/spec/unschedulable": true})));
    world.set_node(node(
        "b",
        json!({"/spec/taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}),
    ));
    world.set_node(node("c", json!({"/metadata/labels": {"disk": "ssd"}})));
    let port =
        json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
    place(&mut world, &pod("web", "1", port.clone()), "c");
    let tail = |n: usize| {
        format!(
            " no new claims to deallocate, preemption: 0/3 nodes are available: {n} Preemption is not helpful for scheduling."
        )
    };
    let none = |what: &str| format!("0/3 nodes are available: {what}.{}", tail(3));
    for (pod, expected) in [
        (pod("free", "1", json!({})), "c".to_owned()),
        (
            pod("tolerant", "1", json!({"tolerations": [{"operator": "Exists"}], "nodeSelector": {"name": "a"}})),
            "a".to_owned(),
        ),
        (
            pod("big", "5", json!({})),
            none("1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable"),
        ),
        (
            pod("picky", "1", json!({"nodeSelector": {"disk": "tape"}})),
            none("1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable"),
        ),
        (
            pod("elsewhere", "1", json!({"nodeName": "z"})),
            none("1 node(s) were unschedulable, 2 node(s) didn't match the requested node name"),
        ),
        (
            pod("port", "1", port),
            "0/3 nodes are available: 1 node(s) didn't have free ports for the requested pod ports, \
             1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. no new claims to \
             deallocate, preemption: 0/3 nodes are available: 1 No preemption victims found for \
             incoming pod, 2 Preemption is not helpful for scheduling."
                .to_owned(),
        ),
        (
            pod("claims", "1", json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]})),
            format!("0/3 nodes are available: persistentvolumeclaim \"x\" not found.{}", tail(3)),
        ),
    ] {
        assert_eq!(outcome(&profile, &mut world, &pod), expected, "{:?}", pod.metadata.name);
    }
}

#[tokio::test]
async fn scores() {
    let profile = profile();
    let mut world = World::default();
    let image = |size: i64| json!({"/status/images": [{"names": ["i:latest"], "sizeBytes": size}]});
    world.set_node(node("busy", json!({})));
    world.set_node(node("idle", json!({})));
    place(&mut world, &pod("load", "2", json!({})), "busy");
    assert_eq!(
        outcome(&profile, &mut world, &pod("p", "1", json!({}))),
        "idle"
    );
    let prefers = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "preference": {"matchExpressions": [{"key": "name", "operator": "In", "values": ["busy"]}]}}]}}});
    assert_eq!(
        outcome(&profile, &mut world, &pod("p", "1", prefers)),
        "busy"
    );
    world.set_node(node(
        "idle",
        json!({"/spec/taints": [{"key": "k", "effect": "PreferNoSchedule"}]}),
    ));
    assert_eq!(
        outcome(&profile, &mut world, &pod("p", "1", json!({}))),
        "busy"
    );

    let mut world = World::default();
    world.set_node(node("without", json!({})));
    world.set_node(node("has", image(2 << 30)));
    assert_eq!(
        outcome(&profile, &mut world, &pod("p", "1", json!({}))),
        "has"
    );
}

#[tokio::test]
async fn room_is_made_at_the_least_cost() {
    let profile = profile();
    let mut world = World::default();
    for name in ["a", "b"] {
        world.set_node(node(name, json!({})));
    }
    let of = |name: &str, cpu: &str, priority: i32| pod(name, cpu, json!({"priority": priority}));
    place(&mut world, &of("dear", "3", 50), "a");
    place(&mut world, &of("cheap", "2", 10), "b");
    place(&mut world, &of("cheaper", "2", 5), "b");
    assert_eq!(
        outcome(&profile, &mut world, &of("p", "2", 100)),
        "b + cheaper"
    );
    assert_eq!(
        outcome(&profile, &mut world, &of("p", "4", 100)),
        "b + cheap cheaper"
    );
    let refused = outcome(&profile, &mut world, &of("p", "2", 1));
    assert!(
        refused.ends_with(
            "preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod."
        ),
        "{refused}"
    );
    let never = pod(
        "p",
        "2",
        json!({"priority": 100, "preemptionPolicy": "Never"}),
    );
    let refused = outcome(&profile, &mut world, &never);
    assert!(
        refused.ends_with("preemption: not eligible due to preemptionPolicy=Never."),
        "{refused}"
    );
}
