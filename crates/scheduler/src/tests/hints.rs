//! What happens brings back the pods that it may help, and no others.

use std::collections::BTreeSet;

use super::*;
use crate::{framework::Event, pod::Footprint};

fn print(pod: &Pod) -> Footprint {
    pod::footprint(pod, pod.spec.as_ref().unwrap())
}

fn labelled(name: &str, app: &str) -> Footprint {
    let mut pod = pod(name, "1", json!({}));
    pod.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
    print(&pod)
}

/// Whether a pod that one plugin refused is looked at again.
fn helps(profile: &Profile, plugin: &'static str, pod: &Pod, event: &Event<'_>) -> bool {
    let pod = PodInfo::of(pod).unwrap();
    let kinds = event.kinds();
    profile.may_help(&pod, &BTreeSet::from([plugin]), &kinds, event)
}

#[tokio::test]
async fn nodes_help_those_whom_they_suit_now() {
    let profile = profile();
    let plain = || node("a", json!({}));
    let small = || {
        node(
            "a",
            json!({"/status/allocatable": {"cpu": "1", "pods": "10"}}),
        )
    };
    let ssd = || node("a", json!({"/metadata/labels": {"disk": "ssd"}}));
    let taint = |key: &str| json!([{"key": key, "effect": "NoSchedule"}]);
    let tainted = |key: &str| node("a", json!({"/spec/taints": taint(key)}));
    let cordoned = || node("a", json!({"/spec/unschedulable": true}));
    let p = |extra: Value| pod("p", "2", extra);
    let picky = || p(json!({"nodeSelector": {"disk": "ssd"}}));
    let spread = || {
        p(
            json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "disk",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]}),
        )
    };
    let tolerant = || p(json!({"tolerations": [{"key": "k", "operator": "Exists"}]}));
    for (plugin, pod, old, new, expected) in [
        ("NodeResourcesFit", p(json!({})), None, plain(), true),
        ("NodeResourcesFit", p(json!({})), None, small(), false),
        (
            "NodeResourcesFit",
            p(json!({})),
            Some(small()),
            plain(),
            true,
        ),
        (
            "NodeResourcesFit",
            p(json!({})),
            Some(plain()),
            ssd(),
            false,
        ),
        ("NodeAffinity", picky(), None, ssd(), true),
        ("NodeAffinity", picky(), None, plain(), false),
        ("NodeAffinity", picky(), Some(plain()), ssd(), true),
        ("NodeAffinity", picky(), Some(ssd()), plain(), false),
        (
            "TaintToleration",
            p(json!({})),
            Some(tainted("k")),
            plain(),
            true,
        ),
        (
            "TaintToleration",
            p(json!({})),
            Some(tainted("k")),
            tainted("l"),
            false,
        ),
        (
            "TaintToleration",
            tolerant(),
            Some(tainted("l")),
            tainted("k"),
            true,
        ),
        (
            "NodeUnschedulable",
            p(json!({})),
            Some(cordoned()),
            plain(),
            true,
        ),
        (
            "NodeUnschedulable",
            p(json!({})),
            Some(plain()),
            cordoned(),
            false,
        ),
        ("NodeName", p(json!({"nodeName": "a"})), None, plain(), true),
        (
            "NodeName",
            p(json!({"nodeName": "b"})),
            None,
            plain(),
            false,
        ),
        ("PodTopologySpread", spread(), None, ssd(), true),
        ("PodTopologySpread", spread(), None, plain(), false),
    ] {
        let event = Event::Node {
            old: old.as_ref(),
            new: &new,
        };
        let found = helps(&profile, plugin, &pod, &event);
        assert_eq!(found, expected, "{plugin} {old:?} {new:?}");
    }
}

#[tokio::test]
async fn pods_help_those_in_whose_way_or_company_they_are() {
    let profile = profile();
    let p = |extra: Value| pod("p", "2", extra);
    let of = |cpu: &str, extra: Value| print(&pod("other", cpu, extra));
    let port = |number: i32| json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": number}]}]});
    let term =
        || json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let required = |kind: &str| {
        p(json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term()}}}))
    };
    let claim = |name: &str| json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": name}}]});
    let spread = || {
        p(
            json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]}),
        )
    };
    let some = || of("1", json!({}));
    for (plugin, pod, old, new, expected) in [
        ("NodeResourcesFit", p(json!({})), Some(some()), None, true),
        ("NodeResourcesFit", p(json!({})), None, Some(some()), false),
        (
            "NodeResourcesFit",
            p(json!({})),
            Some(of("2", json!({}))),
            Some(some()),
            true,
        ),
        (
            "NodeResourcesFit",
            p(json!({})),
            Some(some()),
            Some(of("2", json!({}))),
            false,
        ),
        (
            "NodeResourcesFit",
            p(json!({})),
            Some(some()),
            Some(some()),
            false,
        ),
        (
            "NodePorts",
            p(port(80)),
            Some(of("1", port(80))),
            None,
            true,
        ),
        (
            "NodePorts",
            p(port(80)),
            Some(of("1", port(81))),
            None,
            false,
        ),
        (
            "InterPodAffinity",
            required("podAffinity"),
            None,
            Some(labelled("o", "web")),
            true,
        ),
        (
            "InterPodAffinity",
            required("podAffinity"),
            None,
            Some(labelled("o", "db")),
            false,
        ),
        (
            "InterPodAffinity",
            required("podAntiAffinity"),
            Some(labelled("o", "web")),
            None,
            true,
        ),
        (
            "InterPodAffinity",
            required("podAntiAffinity"),
            Some(labelled("o", "db")),
            None,
            false,
        ),
        (
            "PodTopologySpread",
            spread(),
            Some(labelled("o", "web")),
            None,
            true,
        ),
        (
            "PodTopologySpread",
            spread(),
            Some(labelled("o", "db")),
            None,
            false,
        ),
        (
            "VolumeRestrictions",
            p(claim("a")),
            Some(of("1", claim("a"))),
            None,
            true,
        ),
        (
            "VolumeRestrictions",
            p(claim("a")),
            Some(of("1", claim("b"))),
            None,
            false,
        ),
    ] {
        let event = Event::Pod {
            old: old.as_ref(),
            new: new.as_ref(),
        };
        let found = helps(&profile, plugin, &pod, &event);
        assert_eq!(found, expected, "{plugin} {old:?} {new:?}");
    }
}
