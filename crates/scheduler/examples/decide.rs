//! How many pods a second the pure part of the scheduler places: no API, no watch.
//!
//! `cargo run --release -p scheduler --example decide -- [NODES] [PODS]`

use std::{convert::Infallible, sync::Arc, time::Instant};

use client::{Caches, Jitter};
use http::{Request, Response};
use k8s_openapi::api::core::v1::{Node, Pod};
use scheduler::{
    config::ProfileConfig,
    node::NodeSpec,
    plugins::Handle,
    pod::PodInfo,
    profile::{Profile, Scores},
    search::Memory,
    world::World,
};
use serde_json::{Value, json};

fn profile() -> Result<Profile, String> {
    let silent = tower::service_fn(|_: Request<kube::client::Body>| async {
        std::future::pending::<()>().await;
        Ok::<_, Infallible>(Response::new(kube::client::Body::empty()))
    });
    let client = client::in_process(silent);
    let handle = Handle::new(client.clone(), Caches::new(client));
    Profile::configured(&ProfileConfig::default(), &handle, Jitter::random())
}

fn nodes(world: &mut World, count: usize) {
    for i in 0..count {
        let name = format!("node-{i}");
        let zone = format!("zone-{}", i % 3);
        let node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name,
                "topology.kubernetes.io/zone": zone}},
            "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"}},
        });
        if let Ok(node) = serde_json::from_value::<Node>(node) {
            world.set_node(NodeSpec::of(&node));
        }
    }
}

fn pod(name: usize, kind: &str) -> Option<PodInfo> {
    let near = |key: &str| json!([{"topologyKey": key, "labelSelector": {"matchLabels": {"color": kind}}}]);
    let extra: Value = match kind {
        "anti-affinity" => json!({"affinity": {"podAntiAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": near("kubernetes.io/hostname")}}}),
        "affinity" => json!({"affinity": {"podAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": near("topology.kubernetes.io/zone")}}}),
        "preferred" => json!({"affinity": {"podAffinity":
            {"preferredDuringSchedulingIgnoredDuringExecution":
                [{"weight": 1, "podAffinityTerm": near("kubernetes.io/hostname")[0]}]}}}),
        "spreading" => json!({"topologySpreadConstraints": [{"maxSkew": 5,
            "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"color": kind}}}]}),
        _ => json!({}),
    };
    let mut pod = json!({
        "metadata": {"name": format!("{kind}-{name}"), "namespace": "n",
            "uid": format!("{kind}-{name}"), "labels": {"color": kind}},
        "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c", "image": "pause",
            "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]},
    });
    for (key, value) in extra.as_object()? {
        pod["spec"][key] = value.clone();
    }
    PodInfo::of(&serde_json::from_value::<Pod>(pod).ok()?)
}

#[tokio::main]
async fn main() -> Result<(), String> {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse().ok());
    let (count, pods) = (
        numbers.next().unwrap_or(5000),
        numbers.next().unwrap_or(5000),
    );
    let profile = profile()?;
    for kind in [
        "basic",
        "anti-affinity",
        "affinity",
        "preferred",
        "spreading",
    ] {
        let mut world = World::default();
        nodes(&mut world, count);
        let waiting: Vec<PodInfo> = (0..pods).filter_map(|i| pod(i, kind)).collect();
        let (mut memory, mut placed) = (Memory::default(), 0);
        let began = Instant::now();
        for pod in &waiting {
            let Ok(mut search) = profile.search(&mut world, pod, &mut memory) else {
                continue;
            };
            if let Some(node) = profile.choose(&world, pod, &mut search, &Scores::new()) {
                drop(search);
                world.place(Arc::clone(&pod.footprint), &node, true);
                placed += 1;
            }
        }
        let rate = pods as f64 / began.elapsed().as_secs_f64();
        println!("{kind:>14}: {placed} of {pods} placed, {rate:.0} pods/s");
    }
    Ok(())
}
