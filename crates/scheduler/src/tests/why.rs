//! What is said about a pod that waits.

use serde_json::json;

use super::*;
use crate::why::{Nodes, Why};

#[tokio::test]
async fn every_obstacle_is_named_with_what_would_help() {
    let profile = profile();
    let mut world = World::default();
    for i in 0..5 {
        world.set_node(node(&format!("small-{i}"), json!({})));
    }
    place(&mut world, &pod("load", "2500m", json!({})), "small-1");
    for i in [0, 2, 3, 4] {
        let name = format!("more-{i}");
        place(
            &mut world,
            &pod(&name, "3", json!({})),
            &format!("small-{i}"),
        );
    }
    world.set_node(node(
        "special",
        json!({"/spec/taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}],
            "/spec/unschedulable": true}),
    ));
    world.set_node(node("old", json!({"/metadata/labels": {"disk": "hdd"}})));
    let picky = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "disk", "operator": "NotIn", "values": ["hdd"]}]}]}}}});
    let wanted = PodInfo::of(&pod("p", "2", picky)).unwrap();
    let found = Nodes::of(&profile, &mut world, &wanted).unwrap();
    let expected = "None of 7 nodes will do.

small-0, small-1, small-2 and 2 more
  NodeResourcesFit: Insufficient cpu
    on small-1: needs 2 cpu, 1500m free: lower the request by 500m

old
  NodeAffinity: node(s) didn't match Pod's node affinity/selector
    on old: required node affinity not met: disk NotIn [hdd], it is \"hdd\"

special
  NodeUnschedulable: node(s) were unschedulable
    it is cordoned: kubectl uncordon special
  TaintToleration: node(s) had untolerated taint(s)
    on special: taint gpu=yes:NoSchedule: add the toleration {key: gpu, value: \"yes\", effect: NoSchedule}
";
    assert_eq!(Why::Nodes(found).to_string(), expected);
    let little = PodInfo::of(&pod("p", "100m", json!({"nodeSelector": {"a": "b"}}))).unwrap();
    let found = Nodes::of(&profile, &mut world, &little).unwrap();
    let text = Why::Nodes(found).to_string();
    let label = "label a=b missing: kubectl label --overwrite node small-0 a=b";
    assert!(text.contains(label), "{text}");
}
