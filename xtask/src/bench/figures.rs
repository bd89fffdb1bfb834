//! Figures of a whole cluster.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};

use super::cluster::Cluster;
use super::{Figure, release};

/// How long an idle cluster settles before it is measured.
const SETTLE: Duration = Duration::from_secs(10);
/// How long it is measured.
const MEASURE: Duration = Duration::from_secs(20);
/// Pods created at once.
const BURST: usize = 50;
/// Clock ticks a second in /proc, fixed by the kernel's interface.
const TICKS: f64 = 100.0;

/// Size of the release binary.
pub fn binary(_runs: usize) -> anyhow::Result<Vec<Figure>> {
    let bytes = std::fs::metadata(release().join("styr"))?.len();
    Ok(vec![Figure::new(
        "binary_size",
        "MB",
        vec![bytes as f64 / 1e6],
    )])
}

/// `up` on an empty folder until Ready with DNS answering.
pub fn up(runs: usize) -> anyhow::Result<Vec<Figure>> {
    let mut values = Vec::new();
    for _ in 0..runs {
        let cluster = Cluster::new()?;
        let began = Instant::now();
        cluster.styr(&["up"])?;
        values.push(began.elapsed());
    }
    Ok(vec![Figure::millis("up_to_ready", &values)])
}

/// Memory and CPU of everything Styr runs without user pods.
pub fn idle(_runs: usize) -> anyhow::Result<Vec<Figure>> {
    let cluster = Cluster::new()?;
    cluster.styr(&["up"])?;
    std::thread::sleep(SETTLE);
    let before: f64 = cluster
        .processes()
        .iter()
        .map(|pid| cpu_seconds(*pid))
        .sum();
    std::thread::sleep(MEASURE);
    let processes = cluster.processes();
    let after: f64 = processes.iter().map(|pid| cpu_seconds(*pid)).sum();
    let resident: f64 = processes.iter().map(|pid| resident_bytes(*pid)).sum();
    let share = (after - before) / MEASURE.as_secs_f64() * 100.0;
    Ok(vec![
        Figure::new("idle_memory", "MB", vec![resident / 1e6]),
        Figure::new("idle_cpu", "%", vec![share]),
    ])
}

/// CPU time a process has used.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold spaces; utime and stime are the 12th and 13th after it.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<f64> = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|f| f.parse().ok())
        .collect();
    fields.iter().sum::<f64>() / TICKS
}

/// Resident memory of a process.
pub fn resident_bytes(pid: u32) -> f64 {
    memory(pid, "VmRSS:")
}

/// The most resident memory a process has had since its peak was forgotten.
pub fn peak_bytes(pid: u32) -> f64 {
    memory(pid, "VmHWM:")
}

fn memory(pid: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with(name));
    let kilobytes = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) * 1024.0
}

/// One pod from its creation to Running, the image present.
pub fn pod(runs: usize) -> anyhow::Result<Vec<Figure>> {
    in_cluster(async |pods: Api<Pod>| {
        let mut values = Vec::new();
        // The first warms caches and is not counted.
        for run in 0..=runs * 3 {
            let took = time_to_running(&pods, &[format!("one-{run}")]).await?;
            if run > 0 {
                values.push(took);
            }
        }
        Ok(vec![Figure::millis("pod_create_to_running", &values)])
    })
}

/// Fifty pods created at once until all are Running.
pub fn pods(runs: usize) -> anyhow::Result<Vec<Figure>> {
    in_cluster(async |pods: Api<Pod>| {
        let mut values = Vec::new();
        for run in 0..runs.min(3) {
            let names: Vec<String> = (0..BURST).map(|n| format!("many-{run}-{n}")).collect();
            values.push(time_to_running(&pods, &names).await?);
        }
        Ok(vec![Figure::millis("50_pods_to_running", &values)])
    })
}

fn in_cluster(
    work: impl AsyncFnOnce(Api<Pod>) -> anyhow::Result<Vec<Figure>>,
) -> anyhow::Result<Vec<Figure>> {
    let cluster = Cluster::new()?;
    cluster.styr(&["up"])?;
    cluster.load("busybox")?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async { work(Api::default_namespaced(cluster.client().await?)).await })
}

async fn time_to_running(pods: &Api<Pod>, names: &[String]) -> anyhow::Result<Duration> {
    let mut events = pods.watch(&WatchParams::default(), "0").await?.boxed();
    let began = Instant::now();
    let creations = names.iter().map(|name| create(pods, name));
    futures::future::try_join_all(creations).await?;
    let mut waiting: std::collections::HashSet<&String> = names.iter().collect();
    while !waiting.is_empty() {
        let event = events.next().await.context("the watch ended")??;
        if let WatchEvent::Modified(pod) | WatchEvent::Added(pod) = event
            && pod
                .status
                .is_some_and(|s| s.phase.as_deref() == Some("Running"))
            && let Some(name) = pod.metadata.name
        {
            waiting.remove(&name);
        }
    }
    let took = began.elapsed();
    for name in names {
        pods.delete(name, &DeleteParams::default().grace_period(0))
            .await?;
    }
    Ok(took)
}

async fn create(pods: &Api<Pod>, name: &str) -> anyhow::Result<()> {
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "3600"],
            }],
        },
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    Ok(())
}
