//! Pods that want devices by claim, with all plugins.

use std::{collections::BTreeSet, sync::Arc};

use client::Key;
use k8s_openapi::api::resource::v1::ResourceClaim;
use serde_json::json;

use super::*;
use crate::{
    framework::{Event, Status},
    why::{Nodes, Why},
};

/// Nodes `a` and `b`; two devices on `b`.
fn cluster() -> (Handle, Profile, World) {
    let handle = handle();
    let profile = Profile::configured(&ProfileConfig::default(), &handle, Jitter::none()).unwrap();
    let class = json!({"metadata": {"name": "gpu"}, "spec": {}});
    handle
        .devices
        .define(serde_json::from_value(class).unwrap());
    let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "d", "nodeName": "b",
        "pool": {"name": "b", "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": "x"}, {"name": "y"}]}});
    handle
        .devices
        .publish(serde_json::from_value(slice).unwrap());
    let mut world = World::default();
    world.set_node(node("a", json!({})));
    world.set_node(node("b", json!({})));
    (handle, profile, world)
}

fn claim(handle: &Handle, name: &str, count: i64, status: Value) {
    let claim: ResourceClaim = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "n", "uid": name},
        "spec": {"devices": {"requests": [
            {"name": "r", "exactly": {"deviceClassName": "gpu", "count": count}}]}},
        "status": status,
    }))
    .unwrap();
    handle
        .devices
        .claims
        .set(&Key::new("n", name), Arc::new(claim));
}

fn wants(claim: &str) -> Pod {
    let claims = json!({"resourceClaims": [{"name": "c", "resourceClaimName": claim}]});
    pod(&format!("of-{claim}"), "1", claims)
}

/// Takes the node that the pod gets, as the scheduler does.
fn take(profile: &Profile, world: &mut World, pod: &Pod) -> Status {
    let pod = PodInfo::of(pod).unwrap();
    let mut search = profile.search(world, &pod, &mut Memory::default()).unwrap();
    let node = profile
        .choose(world, &pod, &mut search, &Scores::new())
        .unwrap();
    profile.reserve(world, &pod, &node, &mut search.state)
}

#[tokio::test]
async fn devices_are_taken_as_soon_as_a_pod_has_a_node() {
    let (handle, profile, mut world) = cluster();
    claim(&handle, "one", 1, Value::Null);
    claim(&handle, "two", 2, Value::Null);
    assert_eq!(outcome(&profile, &mut world, &wants("one")), "b");
    assert_eq!(take(&profile, &mut world, &wants("one")), Status::Success);
    let again = outcome(&profile, &mut world, &wants("one"));
    let expected =
        "0/2 nodes are available: resource claim n/one is in the process of being allocated.";
    assert!(again.starts_with(expected), "{again}");
    let expected = "0/2 nodes are available: 2 cannot allocate all claims. still not schedulable, preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    assert_eq!(outcome(&profile, &mut world, &wants("two")), expected);
    profile.unreserve(&PodInfo::of(&wants("one")).unwrap(), "b");
    assert_eq!(
        outcome(&profile, &mut world, &wants("two")),
        "b",
        "given back"
    );
}

#[tokio::test]
async fn an_allocated_claim_is_used_where_it_can_be() {
    let (handle, profile, mut world) = cluster();
    let at = |node: &str, reserved: Value| {
        json!({"reservedFor": reserved, "allocation": {"nodeSelector": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}}})
    };
    claim(
        &handle,
        "a",
        1,
        at("a", json!([{"resource": "pods", "name": "x", "uid": "x"}])),
    );
    assert_eq!(outcome(&profile, &mut world, &wants("a")), "a");
    let used = json!([{"resource": "pods", "name": "x", "uid": "x"}]);
    claim(&handle, "gone", 1, at("z", used));
    let refused = outcome(&profile, &mut world, &wants("gone"));
    let expected = "0/2 nodes are available: 2 resourceclaim not available on the node. still not schedulable, preemption:";
    assert!(refused.starts_with(expected), "{refused}");
    claim(&handle, "idle", 1, at("z", json!([])));
    let refused = outcome(&profile, &mut world, &wants("idle"));
    assert!(
        refused.contains(" deallocation of ResourceClaim completed, preemption:"),
        "{refused}"
    );
}

#[tokio::test]
async fn gates_of_pods_whose_claims_are_not_there() {
    let (handle, profile, _) = cluster();
    claim(&handle, "there", 1, Value::Null);
    let gate = |pod: &Pod| profile.gate(&PodInfo::of(pod).unwrap());
    assert_eq!(gate(&wants("there")), None);
    assert_eq!(gate(&wants("missing")), Some("DynamicResources"));
    let template = json!({"resourceClaims": [{"name": "c", "resourceClaimTemplateName": "t"}]});
    assert_eq!(gate(&pod("p", "1", template)), Some("DynamicResources"));
}

/// A pod may come before the class does whose devices it asks for as a resource of nodes.
#[tokio::test]
async fn a_class_helps_those_whose_resource_it_stands_for() {
    let (handle, profile, _) = cluster();
    let asks = |resource: &str| {
        let mut pod = pod("p", "1", json!({}));
        let requests = json!({"requests": {resource: "1"}});
        let containers = &mut pod.spec.as_mut().unwrap().containers;
        containers[0].resources = Some(serde_json::from_value(requests).unwrap());
        PodInfo::of(&pod).unwrap()
    };
    let helps = |pod: &PodInfo| {
        let event = Event::Devices;
        let refused_by = BTreeSet::from(["NodeResourcesFit"]);
        profile.may_help(pod, &refused_by, &event.kinds(), &event)
    };
    let (gpu, disk) = (asks("example.com/gpu"), asks("example.com/disk"));
    assert!(!helps(&gpu));
    let class =
        json!({"metadata": {"name": "c"}, "spec": {"extendedResourceName": "example.com/gpu"}});
    handle
        .devices
        .define(serde_json::from_value(class).unwrap());
    assert!(helps(&gpu));
    assert!(!helps(&disk));
}

#[tokio::test]
async fn why_counts_the_devices() {
    let (handle, profile, mut world) = cluster();
    claim(&handle, "three", 3, Value::Null);
    let pod = PodInfo::of(&wants("three")).unwrap();
    let found = Nodes::of(&profile, &mut world, &pod).unwrap();
    let text = Why::Nodes(found).to_string();
    for expected in [
        "DynamicResources: cannot allocate all claims",
        "request r wants 3 device(s) of class gpu: of 2 on the node 2 match, 2 of them free",
    ] {
        assert!(text.contains(expected), "{text}");
    }
}
