//! Figures of large clusters: upstream's scheduler workloads and thousands of simulated nodes.
//!
//! The load is made by a release build of `crates/load`, over TLS, on the machine that is measured. It prints `begin` and `end` around what counts, so that the CPU time
//! of the cluster can be told as well: on a shared machine that varies less than the rate.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::cluster::Cluster;
use super::figures::{cpu_seconds, resident_bytes};
use super::{Benchmark, Figure, release};

/// A workload of upstream's scheduler benchmark, and what its CI demands, in pods a second.
struct Workload {
    name: &'static str,
    rate: &'static str,
    cost: &'static str,
    floor: f64,
}

macro_rules! workload {
    ($name:literal, $floor:literal) => {
        Workload {
            name: $name,
            rate: concat!("scheduler_", $name),
            cost: concat!("scheduler_", $name, "_cpu"),
            floor: $floor,
        }
    };
}

const WORKLOADS: &[Workload] = &[
    workload!("basic-10k", 680.0),
    workload!("basic-50k", 810.0),
    workload!("daemonset", 1100.0),
    workload!("mixed-churn", 710.0),
    workload!("unschedulable", 600.0),
    workload!("preemption-async", 570.0),
    workload!("affinity", 35.0),
    workload!("anti-affinity", 60.0),
    workload!("preferred-affinity", 90.0),
    workload!("preferred-anti-affinity", 90.0),
    workload!("mixed-base", 140.0),
    workload!("spreading", 460.0),
    workload!("preferred-spreading", 340.0),
    workload!("gated", 910.0),
    workload!("finalizers", 830.0),
];

/// All workloads of the scheduler.
pub const SCHEDULER: Benchmark = Benchmark {
    name: "scheduler",
    run: |runs| each(WORKLOADS.iter(), runs),
};

/// Those the project has targets for.
pub const SCHEDULER_TARGETS: Benchmark = Benchmark {
    name: "scheduler-targets",
    run: |runs| {
        const NAMES: [&str; 7] = [
            "basic-50k",
            "mixed-churn",
            "anti-affinity",
            "affinity",
            "spreading",
            "preemption-async",
            "daemonset",
        ];
        each(WORKLOADS.iter().filter(|w| NAMES.contains(&w.name)), runs)
    },
};

/// One workload by its name, as `scheduler:NAME`.
pub fn one(name: &str) -> Option<impl Fn(usize) -> anyhow::Result<Vec<Figure>> + use<>> {
    let workload = WORKLOADS
        .iter()
        .find(|w| name.strip_prefix("scheduler:") == Some(w.name))?;
    Some(move |runs| each(std::iter::once(workload), runs))
}

fn each<'a>(
    workloads: impl Iterator<Item = &'a Workload>,
    runs: usize,
) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for workload in workloads {
        let (mut rates, mut costs) = (Vec::new(), Vec::new());
        // A run takes minutes.
        for _ in 0..runs.min(3) {
            let outcome = load(&["scheduler", workload.name])?;
            rates.push(outcome.figure("scheduled")?);
            costs.push(outcome.cpu * 1e6 / outcome.figure("pods")?);
        }
        let rate = Figure::new(workload.rate, "1/s", rates);
        let rate = rate.beside("upstream's floor", workload.floor);
        let cost = Figure::new(workload.cost, "us a pod", costs);
        eprintln!("{}\n{}", rate.line(), cost.line());
        figures.extend([rate, cost]);
    }
    Ok(figures)
}

/// 5,000 nodes with 150,000 running pods: memory, and CPU when nothing happens.
pub fn full(_runs: usize) -> anyhow::Result<Vec<Figure>> {
    let outcome = load(&["full"])?;
    let share = outcome.cpu / outcome.seconds * 100.0;
    Ok(vec![
        Figure::new("full_cluster_memory", "MB", vec![outcome.resident / 1e6]),
        Figure::new("full_cluster_idle_cpu", "%", vec![share]),
        Figure::new("full_cluster_ready", "s", vec![outcome.figure("ready")?]),
    ])
}

/// A Deployment of 10,000 replicas on 5,000 nodes until all are ready.
pub fn rollout(runs: usize) -> anyhow::Result<Vec<Figure>> {
    seconds(["rollout_10k", "rollout_10k_cpu"], "rollout", "ready", runs)
}

/// A namespace of 10,000 running pods until it is gone.
pub fn namespace(runs: usize) -> anyhow::Result<Vec<Figure>> {
    let names = ["namespace_10k_deleted", "namespace_10k_deleted_cpu"];
    seconds(names, "namespace", "gone", runs)
}

/// How long it takes, and how much CPU time of the whole server for each of the pods.
fn seconds(
    [name, cost]: [&'static str; 2],
    benchmark: &str,
    figure: &str,
    runs: usize,
) -> anyhow::Result<Vec<Figure>> {
    const PODS: f64 = 10_000.0;
    let (mut values, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..runs.min(3) {
        let outcome = load(&[benchmark])?;
        values.push(outcome.figure(figure)?);
        costs.push(outcome.cpu * 1e6 / PODS);
    }
    Ok(vec![
        Figure::new(name, "s", values),
        Figure::new(cost, "us a pod", costs),
    ])
}

/// What one run of the load brought.
struct Outcome {
    figures: BTreeMap<String, f64>,
    /// CPU time of the cluster between `begin` and `end`, in seconds.
    cpu: f64,
    /// Time between them.
    seconds: f64,
    /// Memory of the cluster at `end`, in bytes.
    resident: f64,
}

impl Outcome {
    fn figure(&self, name: &str) -> anyhow::Result<f64> {
        let value = self.figures.get(name).copied();
        value.with_context(|| format!("the load printed no figure {name}"))
    }
}

/// Runs the load against a cluster of its own.
fn load(arguments: &[&str]) -> anyhow::Result<Outcome> {
    let cluster = Cluster::new()?;
    cluster.styr(&["up"])?;
    let mut child = Command::new(release().join("load"))
        .arg(cluster.kubeconfig())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the load")?;
    let printed = child.stdout.take().context("the load's output")?;
    let used = || {
        let processes = cluster.processes();
        processes.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>()
    };
    let mut outcome = Outcome {
        figures: BTreeMap::new(),
        cpu: 0.0,
        seconds: 0.0,
        resident: 0.0,
    };
    let mut began = std::time::Instant::now();
    for line in BufReader::new(printed).lines() {
        let line = line?;
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["begin"] => {
                began = std::time::Instant::now();
                outcome.cpu = -used();
            }
            ["end"] => {
                outcome.cpu += used();
                outcome.seconds = began.elapsed().as_secs_f64();
                let processes = cluster.processes();
                outcome.resident = processes.iter().map(|pid| resident_bytes(*pid)).sum();
            }
            ["figure", name, value, _] => {
                outcome.figures.insert(name.to_owned(), value.parse()?);
            }
            _ => {}
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the load {arguments:?} failed: {status}");
    }
    Ok(outcome)
}
