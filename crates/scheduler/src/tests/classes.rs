//! What is kept for a class of pods changes no decision.

use super::*;

/// Numbers that look random, the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// A pod of one of a few templates.
fn sample(dice: &mut Dice, number: usize) -> Pod {
    let name = format!("p{number}");
    let anti = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"app": "a"}}, "topologyKey": "name"}]}}});
    let mut pod = match dice.below(6) {
        0 => pod(&name, "1", json!({})),
        1 => pod(&name, "500m", json!({"nodeSelector": {"disk": "ssd"}})),
        2 => pod(
            &name,
            "500m",
            json!({"tolerations": [{"operator": "Exists"}], "priority": 10}),
        ),
        3 => pod(&name, "2", json!({"priority": 5})),
        4 => pod(
            &name,
            "100m",
            json!({"containers": [
            {"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
        ),
        _ => pod(&name, "100m", anti),
    };
    pod.metadata.labels = Some([("app".into(), "a".into())].into());
    pod
}

fn change(dice: &mut Dice, world: &mut World, placed: &mut Vec<String>) {
    let name = format!("n{}", dice.below(8));
    match dice.below(4) {
        0 => world.remove_node(&name),
        1 => {
            let taint = json!({"/spec/taints": [{"key": "k", "effect": "NoSchedule"}]});
            world.set_node(node(&name, taint));
        }
        2 => {
            let labels = json!({"/metadata/labels": {"disk": "ssd", "name": name}});
            world.set_node(node(&name, labels));
        }
        _ if placed.is_empty() => {}
        _ => {
            let at = dice.below(placed.len() as u64) as usize;
            world.displace(&placed.swap_remove(at));
        }
    }
}

#[tokio::test]
async fn what_is_kept_of_a_class_is_what_would_be_said_afresh() {
    let profile = profile();
    let mut world = World::default();
    let mut dice = Dice(1);
    for n in 0..8 {
        world.set_node(node(&format!("n{n}"), json!({})));
    }
    let mut memory = Memory::default();
    let mut placed = Vec::new();
    for number in 0..1500 {
        if dice.below(3) == 0 {
            change(&mut dice, &mut world, &mut placed);
        }
        let object = sample(&mut dice, number);
        let info = PodInfo::of(&object).unwrap();
        let mut kept = profile.search(&mut world, &info, &mut memory).unwrap();
        let mut afresh = profile
            .search(&mut world, &info, &mut Memory::default())
            .unwrap();
        assert_eq!(kept.feasible, afresh.feasible, "pod {number}");
        kept.explain();
        afresh.explain();
        assert_eq!(
            kept.diagnosis.by_node, afresh.diagnosis.by_node,
            "pod {number}"
        );
        // Without what is kept, scores are asked for one by one.
        let all = afresh.feasible.clone();
        afresh.narrow(all);
        let none = Scores::new();
        let chosen = profile.choose(&world, &info, &mut kept, &none);
        let expected = profile.choose(&world, &info, &mut afresh, &none);
        assert_eq!(chosen, expected, "pod {number}");
        match chosen {
            Some(node) => {
                place(&mut world, &object, &node);
                placed.push(format!("p{number}"));
            }
            None => world.nominate(info.footprint.clone(), "n3"),
        }
    }
    assert!(placed.len() > 5);
}

/// One plugin that is not local in front of the others would have all of them asked each time.
#[tokio::test]
async fn the_default_profile_keeps_what_its_local_filters_say() {
    let profile = profile();
    let names = profile.local.filters.iter();
    let names: Vec<_> = names.map(|at| profile.plugins[*at].plugin.name()).collect();
    for local in [
        "TaintToleration",
        "NodeAffinity",
        "NodePorts",
        "NodeResourcesFit",
    ] {
        assert!(names.contains(&local), "{names:?}");
    }
}
