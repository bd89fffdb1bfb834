//! Inter-pod affinity and spreading: where a pod goes among others.

use serde_json::{Value, json};

use super::*;

fn labelled(name: &str, labels: Value, extra: Value) -> Pod {
    let mut pod = pod(name, "100m", extra);
    pod.metadata.labels = serde_json::from_value(labels).unwrap();
    pod
}

/// Nodes `a1`, `a2` in zone `a`, `b1` in zone `b`, and so on.
fn zones(names: &[&str]) -> World {
    let mut world = World::default();
    for name in names {
        let labels = json!({
            "zone": &name[..1], "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": &name[..1],
        });
        world.set_node(node(name, json!({"/metadata/labels": labels})));
    }
    world
}

fn term(app: &str, key: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key})
}

fn required(kind: &str, terms: Value) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms}}})
}

fn refusal(text: &str) -> String {
    text.split(" no new claims")
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn near_and_far() {
    let profile = profile();
    let mut world = zones(&["a1", "a2", "b1"]);
    let db = labelled("db", json!({"app": "db"}), json!({}));
    place(&mut world, &db, "a1");
    let near = |key: &str| required("podAffinity", json!([term("db", key)]));
    let far = |key: &str| required("podAntiAffinity", json!([term("db", key)]));
    let web = |extra: Value| labelled("web", json!({"app": "web"}), extra);
    let host = "kubernetes.io/hostname";
    assert_eq!(outcome(&profile, &mut world, &web(near(host))), "a1");
    assert_eq!(outcome(&profile, &mut world, &web(far("zone"))), "b1");
    let none = outcome(&profile, &mut world, &web(near("rack")));
    assert_eq!(
        refusal(&none),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."
    );
    // Labels of a node change under its pods.
    let moved = json!({"zone": "b", host: "a1"});
    world.set_node(node("a1", json!({"/metadata/labels": moved})));
    assert_eq!(outcome(&profile, &mut world, &web(far("zone"))), "a2");
    world.displace("db");
    let none = outcome(&profile, &mut world, &web(near(host)));
    assert_eq!(
        refusal(&none),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."
    );
    let first = labelled("db", json!({"app": "db"}), near(host));
    let node = outcome(&profile, &mut world, &first);
    assert_eq!(node.len(), 2, "the first of its kind goes anywhere: {node}");
}

#[tokio::test]
async fn what_runs_keeps_others_away_and_draws_them() {
    let profile = profile();
    let mut world = zones(&["a1", "b1"]);
    let loner = labelled(
        "loner",
        json!({"app": "loner"}),
        required("podAntiAffinity", json!([term("web", "zone")])),
    );
    place(&mut world, &loner, "a1");
    let web = labelled("web", json!({"app": "web"}), json!({}));
    assert_eq!(outcome(&profile, &mut world, &web), "b1");
    world.remove_node("b1");
    let none = outcome(&profile, &mut world, &web);
    assert_eq!(
        refusal(&none),
        "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."
    );
    let important = labelled("web", json!({"app": "web"}), json!({"priority": 10}));
    assert_eq!(outcome(&profile, &mut world, &important), "a1 + loner");
    let other = labelled("x", json!({"app": "x"}), json!({"priority": 10}));
    assert_eq!(outcome(&profile, &mut world, &other), "a1");

    let mut world = zones(&["a1", "b1"]);
    let prefers = json!({"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
        [{"weight": 100, "podAffinityTerm": term("web", "zone")}]}}});
    place(&mut world, &labelled("friend", json!({}), prefers), "b1");
    assert_eq!(
        outcome(&profile, &mut world, &web),
        "b1",
        "it is liked there"
    );
}

#[tokio::test]
async fn namespaces_by_name_and_label_and_keys_of_the_pod_itself() {
    let profile = profile();
    let mut world = zones(&["a1", "b1"]);
    world.set_namespace(
        "n",
        Some(Arc::new([("team".to_owned(), "x".to_owned())].into())),
    );
    world.set_namespace(
        "m",
        Some(Arc::new([("team".to_owned(), "y".to_owned())].into())),
    );
    let mut other = labelled("other", json!({"app": "web", "version": "1"}), json!({}));
    other.metadata.namespace = Some("m".into());
    place(&mut world, &other, "a1");
    let far = |more: Value| {
        let mut term = term("web", "zone");
        term.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let terms = required("podAntiAffinity", json!([term]));
        let mut pod = labelled("p", json!({"version": "2"}), terms);
        pod.spec
            .as_mut()
            .unwrap()
            .affinity
            .as_mut()
            .unwrap()
            .pod_affinity =
            serde_json::from_value(json!({"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "podAffinityTerm": {"namespaces": ["m"], "topologyKey": "zone",
                    "labelSelector": {}}}]}))
            .unwrap();
        pod
    };
    for (more, expected) in [
        (json!({}), "a1"),
        (json!({"namespaces": ["m"]}), "b1"),
        (json!({"namespaceSelector": {}}), "b1"),
        (
            json!({"namespaceSelector": {"matchLabels": {"team": "y"}}}),
            "b1",
        ),
        (
            json!({"namespaceSelector": {"matchLabels": {"team": "x"}}}),
            "a1",
        ),
        (
            json!({"namespaces": ["m"], "matchLabelKeys": ["version"]}),
            "a1",
        ),
        (
            json!({"namespaces": ["m"], "mismatchLabelKeys": ["version"]}),
            "b1",
        ),
    ] {
        assert_eq!(
            outcome(&profile, &mut world, &far(more.clone())),
            expected,
            "{more}"
        );
    }
    world.set_namespace(
        "m",
        Some(Arc::new([("team".to_owned(), "x".to_owned())].into())),
    );
    let by_team = json!({"namespaceSelector": {"matchLabels": {"team": "x"}}});
    assert_eq!(
        outcome(&profile, &mut world, &far(by_team)),
        "b1",
        "the namespace changed"
    );
}

fn spread(key: &str, more: Value) -> Value {
    let mut constraint = json!({"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}});
    constraint
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    json!({"topologySpreadConstraints": [constraint]})
}

#[tokio::test]
async fn pods_spread_as_evenly_as_they_must() {
    let profile = profile();
    let mut world = zones(&["a1", "a2", "b1", "c1"]);
    let web = |name: &str, extra: Value| labelled(name, json!({"app": "web"}), extra);
    for (name, node) in [("1", "a1"), ("2", "a2"), ("3", "b1")] {
        place(&mut world, &web(name, json!({})), node);
    }
    assert_eq!(
        outcome(&profile, &mut world, &web("p", spread("zone", json!({})))),
        "c1"
    );
    let mut ending = web("4", json!({}));
    ending.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    place(&mut world, &ending, "c1");
    assert_eq!(
        outcome(&profile, &mut world, &web("p", spread("zone", json!({})))),
        "c1",
        "pods that end do not count"
    );
    let mut only_a = spread("zone", json!({}));
    only_a["nodeSelector"] = json!({"zone": "a"});
    let node = outcome(&profile, &mut world, &web("p", only_a.clone()));
    assert!(
        node.starts_with('a'),
        "zones it cannot go to do not count: {node}"
    );
    only_a["topologySpreadConstraints"][0]["nodeAffinityPolicy"] = json!("Ignore");
    let none = outcome(&profile, &mut world, &web("p", only_a));
    assert_eq!(
        refusal(&none),
        "0/4 nodes are available: 2 node(s) didn't match Pod's node affinity/selector, \
         2 node(s) didn't match pod topology spread constraints."
    );
    let few = spread("zone", json!({"minDomains": 4}));
    assert_eq!(
        outcome(&profile, &mut world, &web("p", few)),
        "c1",
        "an absent zone is empty"
    );
    let labels = json!({"name": "d1"});
    world.set_node(self::node("d1", json!({"/metadata/labels": labels})));
    world.remove_node("c1");
    place(&mut world, &web("5", json!({})), "b1");
    place(&mut world, &web("6", json!({})), "a1");
    place(&mut world, &web("7", json!({})), "b1");
    let none = outcome(
        &profile,
        &mut world,
        &web("p", spread("zone", json!({"minDomains": 3}))),
    );
    assert_eq!(
        refusal(&none),
        "0/4 nodes are available: 1 node(s) didn't match pod topology spread constraints \
         (missing required label), 3 node(s) didn't match pod topology spread constraints."
    );
}

#[tokio::test]
async fn taints_count_for_spreading_where_asked() {
    let profile = profile();
    let mut world = zones(&["a1", "b1"]);
    world.set_node(node(
        "c1",
        json!({"/metadata/labels": {"zone": "c"},
            "/spec/taints": [{"key": "k", "effect": "NoSchedule"}]}),
    ));
    let web = |name: &str, extra: Value| labelled(name, json!({"app": "web"}), extra);
    place(&mut world, &web("1", json!({})), "a1");
    place(&mut world, &web("2", json!({})), "b1");
    let none = outcome(&profile, &mut world, &web("p", spread("zone", json!({}))));
    assert!(none.starts_with("0/3"), "the tainted zone counts: {none}");
    let honour = spread("zone", json!({"nodeTaintsPolicy": "Honor"}));
    let node = outcome(&profile, &mut world, &web("p", honour));
    assert_eq!(node.len(), 2, "{node}");
}

#[tokio::test]
async fn pods_spread_as_evenly_as_they_can() {
    let profile = profile();
    let mut world = zones(&["a1", "a2", "b1"]);
    let web = |name: &str, extra: Value| labelled(name, json!({"app": "web"}), extra);
    let anyway = || spread("zone", json!({"whenUnsatisfiable": "ScheduleAnyway"}));
    place(&mut world, &web("1", json!({})), "b1");
    let node = outcome(&profile, &mut world, &web("p", anyway()));
    assert!(node.starts_with('a'), "{node}");
    place(&mut world, &web("2", json!({})), "a1");
    place(&mut world, &web("3", json!({})), "a1");
    assert_eq!(outcome(&profile, &mut world, &web("p", anyway())), "b1");
}

#[tokio::test]
async fn evicting_evens_out_a_spread() {
    let profile = profile();
    let mut world = zones(&["a1", "b1"]);
    let web = |name: &str, extra: Value| labelled(name, json!({"app": "web"}), extra);
    place(&mut world, &web("1", json!({})), "a1");
    world.set_node(node(
        "b1",
        json!({"/metadata/labels": {"zone": "b"}, "/spec/unschedulable": true}),
    ));
    let mut urgent = spread("zone", json!({}));
    urgent["priority"] = json!(10);
    assert_eq!(outcome(&profile, &mut world, &web("p", urgent)), "a1 + 1");
}
