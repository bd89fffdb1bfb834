//! The workloads of upstream's scheduler benchmark: nodes, pods that are there before, what goes
//! on beside, and the pods whose scheduling is measured from the first creation to the last binding.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::load::{Load, every};
use crate::{figure, shapes};

/// Pods of one shape in a namespace.
struct Pods {
    namespace: &'static str,
    shape: fn() -> Value,
    count: usize,
}

/// What goes on while pods are measured.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    /// A pod of this shape every 200 ms.
    Create(fn() -> Value),
    /// A node, a large pod and a Service, made and deleted in turn every second.
    Churn,
    /// Pods of the namespace are deleted, so many a second.
    Delete(&'static str, u32),
}

struct Workload {
    name: &'static str,
    nodes: u32,
    zones: &'static [&'static str],
    /// Whether there is the node with a name of its own.
    named: bool,
    before: &'static [Pods],
    beside: Beside,
    measured: Pods,
}

const fn pods(namespace: &'static str, shape: fn() -> Value, count: usize) -> Pods {
    Pods {
        namespace,
        shape,
        count,
    }
}

const PLAIN: Workload = Workload {
    name: "",
    nodes: 5000,
    zones: &[],
    named: false,
    before: &[],
    beside: Beside::Nothing,
    measured: pods("measured", shapes::default, 10_000),
};

fn hard_spreading() -> Value {
    shapes::spreading(true)
}

fn soft_spreading() -> Value {
    shapes::spreading(false)
}

const MOONS: &[&str] = &["moon-1", "moon-2", "moon-3"];

const ALL: &[Workload] = &[
    Workload {
        name: "basic-10k",
        before: &[pods("before", shapes::default, 1000)],
        ..PLAIN
    },
    Workload {
        name: "basic-50k",
        before: &[pods("before", shapes::default, 5000)],
        measured: pods("measured", shapes::default, 50_000),
        ..PLAIN
    },
    Workload {
        name: "daemonset",
        nodes: 15_000,
        named: true,
        measured: pods("measured", shapes::daemon, 30_000),
        ..PLAIN
    },
    Workload {
        name: "mixed-churn",
        beside: Beside::Churn,
        ..PLAIN
    },
    Workload {
        name: "unschedulable",
        before: &[pods("before", shapes::default, 20_000)],
        beside: Beside::Create(shapes::too_large),
        ..PLAIN
    },
    Workload {
        name: "preemption-async",
        before: &[pods("before", shapes::low_priority, 20_000)],
        beside: Beside::Create(shapes::high_priority),
        measured: pods("measured", shapes::default, 5000),
        ..PLAIN
    },
    Workload {
        name: "affinity",
        zones: &["zone1"],
        before: &[pods("sched-0", shapes::affinity, 5000)],
        measured: pods("sched-1", shapes::affinity, 5000),
        ..PLAIN
    },
    Workload {
        name: "anti-affinity",
        before: &[pods("sched-0", shapes::anti_affinity, 1000)],
        measured: pods("sched-1", shapes::anti_affinity, 2000),
        ..PLAIN
    },
    Workload {
        name: "preferred-affinity",
        before: &[pods("sched-0", shapes::preferred_affinity, 5000)],
        measured: pods("sched-1", shapes::preferred_affinity, 5000),
        ..PLAIN
    },
    Workload {
        name: "preferred-anti-affinity",
        before: &[pods("sched-0", shapes::preferred_anti_affinity, 5000)],
        measured: pods("sched-1", shapes::preferred_anti_affinity, 5000),
        ..PLAIN
    },
    Workload {
        name: "mixed-base",
        zones: &["zone1"],
        before: &[
            pods("sched-0", shapes::default, 2000),
            pods("sched-0", shapes::affinity, 2000),
            pods("sched-0", shapes::anti_affinity, 2000),
            pods("sched-0", shapes::preferred_affinity, 2000),
            pods("sched-0", shapes::preferred_anti_affinity, 2000),
        ],
        measured: pods("measured", shapes::default, 5000),
        ..PLAIN
    },
    Workload {
        name: "spreading",
        zones: MOONS,
        before: &[pods("before", shapes::default, 5000)],
        measured: pods("measured", hard_spreading, 5000),
        ..PLAIN
    },
    Workload {
        name: "preferred-spreading",
        zones: MOONS,
        before: &[pods("before", shapes::default, 5000)],
        measured: pods("measured", soft_spreading, 5000),
        ..PLAIN
    },
    Workload {
        name: "gated",
        nodes: 1,
        named: true,
        before: &[
            pods("gated", shapes::gated, 10_000),
            pods("deleted", named_light, 20_000),
        ],
        beside: Beside::Delete("deleted", 50),
        measured: pods("measured", named_light, 20_000),
        ..PLAIN
    },
    Workload {
        name: "finalizers",
        before: &[pods("deleted", shapes::finalized, 5000)],
        beside: Beside::Delete("deleted", 100),
        measured: pods("measured", shapes::light, 5000),
        ..PLAIN
    },
];

/// Upstream's cluster has that node alone.
fn named_light() -> Value {
    let mut pod = shapes::light();
    pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": shapes::NAMED_NODE});
    pod
}

/// Makes the cluster as the workload wants it, runs it and prints the figure.
pub async fn run(load: &Load, name: &str) -> anyhow::Result<()> {
    let workload = ALL.iter().find(|w| w.name == name);
    let workload = workload.with_context(|| format!("there is no workload {name:?}"))?;
    prepare(load, workload).await?;
    let _alive = workload.named.then(|| keep_alive(load));
    for before in workload.before {
        // Pods that are held or deleted are not waited for.
        let waits = before.namespace != "gated" && before.namespace != workload_unwaited(workload);
        let bound = load
            .bound(before.namespace, already(workload, before))
            .await?;
        create(load, before).await?;
        if waits {
            bound.await??;
        } else {
            bound.abort();
        }
    }
    let beside = start(load, workload.beside);
    let measured = &workload.measured;
    let bound = load.bound(measured.namespace, measured.count).await?;
    println!("begin");
    let began = Instant::now();
    create(load, measured).await?;
    let created = began.elapsed();
    let took = bound.await??.duration_since(began);
    println!("end");
    beside.into_iter().for_each(|task| task.abort());
    let rate = measured.count as f64 / took.as_secs_f64();
    figure(
        "created",
        measured.count as f64 / created.as_secs_f64(),
        "1/s",
    );
    figure("scheduled", rate, "1/s");
    figure("pods", measured.count as f64, "pods");
    Ok(())
}

/// The namespace whose pods are deleted before they have a node.
fn workload_unwaited(workload: &Workload) -> &'static str {
    match (workload.name, workload.beside) {
        ("finalizers", Beside::Delete(namespace, _)) => namespace,
        _ => "",
    }
}

/// How many pods of the namespace have a node once these have.
fn already(workload: &Workload, upto: &Pods) -> usize {
    let mut total = 0;
    for pods in workload.before {
        if pods.namespace == upto.namespace {
            total += pods.count;
        }
        if std::ptr::eq(pods, upto) {
            break;
        }
    }
    total
}

async fn prepare(load: &Load, workload: &Workload) -> anyhow::Result<()> {
    load.nodes(workload.nodes, &shapes::profile(workload.zones))
        .await?;
    let class = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": shapes::HIGH}, "value": 10,
    });
    load.create("/apis/scheduling.k8s.io/v1/priorityclasses", &class, 1)
        .await?;
    if workload.named {
        load.create("/api/v1/nodes", &shapes::named_node(), 1)
            .await?;
    }
    let mut namespaces: Vec<&str> = workload.before.iter().map(|p| p.namespace).collect();
    namespaces.extend([workload.measured.namespace, "beside", "sched-0", "sched-1"]);
    namespaces.sort_unstable();
    namespaces.dedup();
    for namespace in namespaces {
        load.namespace(namespace).await?;
    }
    Ok(())
}

async fn create(load: &Load, pods: &Pods) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{}/pods", pods.namespace);
    load.create(&path, &(pods.shape)(), pods.count).await
}

/// Nobody else renews the lease of the node that is not simulated.
fn keep_alive(load: &Load) -> JoinHandle<()> {
    every(Duration::from_secs(10), load, |load, turn| async move {
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
            .to_string();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": shapes::NAMED_NODE},
            "spec": {"holderIdentity": shapes::NAMED_NODE, "leaseDurationSeconds": 40, "renewTime": now},
        });
        if turn > 0 {
            load.send(
                "DELETE",
                &format!("{leases}/{}", shapes::NAMED_NODE),
                Vec::new(),
            )
            .await?;
        }
        load.create(leases, &lease, 1).await
    })
}

fn start(load: &Load, beside: Beside) -> Option<JoinHandle<()>> {
    match beside {
        Beside::Nothing => None,
        Beside::Create(shape) => {
            let act = move |load: std::sync::Arc<Load>, _| async move {
                load.create("/api/v1/namespaces/beside/pods", &shape(), 1)
                    .await
            };
            Some(every(Duration::from_millis(200), load, act))
        }
        Beside::Churn => Some(every(
            Duration::from_secs(1),
            load,
            |load, turn| async move { churn(&load, turn).await },
        )),
        Beside::Delete(namespace, each_second) => {
            let load = load.clone();
            Some(tokio::spawn(async move {
                if let Err(error) = delete(&load, namespace, each_second).await {
                    eprintln!("deleting pods: {error:#}");
                }
            }))
        }
    }
}

async fn churn(load: &Load, turn: u64) -> anyhow::Result<()> {
    const NAME: &str = "churned";
    let mut large = shapes::too_large();
    large["metadata"] = json!({"name": NAME});
    let all = [
        ("/api/v1/nodes", shapes::churned_node(NAME)),
        ("/api/v1/namespaces/beside/pods", large),
        (
            "/api/v1/namespaces/beside/services",
            shapes::churned_service(NAME),
        ),
    ];
    for (path, object) in all {
        if turn.is_multiple_of(2) {
            load.create(path, &object, 1).await?;
        } else {
            load.send("DELETE", &format!("{path}/{NAME}"), Vec::new())
                .await?;
        }
    }
    Ok(())
}

async fn delete(load: &Load, namespace: &str, each_second: u32) -> anyhow::Result<()> {
    use k8s_openapi::api::core::v1::Pod;
    let api: kube::Api<Pod> = kube::Api::namespaced(load.client.clone(), namespace);
    let names = api.list_metadata(&Default::default()).await?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / each_second);
    for pod in names {
        ticks.tick().await;
        let name = pod.metadata.name.unwrap_or_default();
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        load.send("DELETE", &path, Vec::new()).await?;
    }
    Ok(())
}
