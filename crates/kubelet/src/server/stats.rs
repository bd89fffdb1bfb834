//! `/stats/summary`: resource use of the node and its pods.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use oci::cri::v1::{
    ContainerStats, ListContainerStatsRequest, ListPodSandboxStatsRequest, PodSandboxStats,
};
use serde_json::{Value, json};

use super::{Answer, Refusal, Server, text};
use crate::labels;
use crate::machine;

/// Answers.
pub async fn serve(server: &Server) -> Answer {
    let cri = &server.agent.cri;
    let containers = cri
        .list_container_stats(ListContainerStatsRequest::default())
        .await
        .map_err(Refusal::internal)?;
    // Runtimes that have no sandbox statistics still have those of containers.
    let sandboxes = cri
        .list_pod_sandbox_stats(ListPodSandboxStatsRequest::default())
        .await;
    let sandboxes = sandboxes.map(|r| r.stats).unwrap_or_default();
    let node = node(server);
    let summary = json!({ "node": node, "pods": pods(&containers.stats, &sandboxes) });
    text("application/json", summary.to_string())
}

fn now() -> Value {
    json!(Time(crate::clock::now()))
}

fn node(server: &Server) -> Value {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = machine::meminfo(&memory, "MemAvailable").unwrap_or(0);
    let used = server.agent.machine.memory.saturating_sub(available);
    let fs = rustix::fs::statvfs(&server.agent.config.root).ok();
    json!({
        "nodeName": server.agent.config.node_name,
        "cpu": { "time": now(), "usageCoreNanoSeconds": busy_nanoseconds(&std::fs::read_to_string("/proc/stat").unwrap_or_default()) },
        "memory": { "time": now(), "availableBytes": available, "usageBytes": used, "workingSetBytes": used },
        "fs": fs.map(|s| json!({
            "time": now(),
            "availableBytes": s.f_bavail * s.f_frsize,
            "capacityBytes": s.f_blocks * s.f_frsize,
            "usedBytes": (s.f_blocks - s.f_bfree) * s.f_frsize,
            "inodes": s.f_files,
            "inodesFree": s.f_ffree,
        })),
    })
}

/// Time that all processors together were busy, of /proc/stat's first line.
pub fn busy_nanoseconds(stat: &str) -> u64 {
    /// Nanoseconds in one tick of /proc/stat (100 Hz on every architecture).
    const TICK: u64 = 10_000_000;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|t| t.parse().ok())
        .collect();
    // Idle and I/O wait are the fourth and fifth; guest times are part of user time already.
    let busy: u64 = ticks
        .iter()
        .take(8)
        .enumerate()
        .filter(|(n, _)| !matches!(n, 3 | 4))
        .map(|(_, t)| t)
        .sum();
    busy * TICK
}

fn pods(containers: &[ContainerStats], sandboxes: &[PodSandboxStats]) -> Vec<Value> {
    let mut by_pod: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
    for stats in containers {
        let Some(attributes) = &stats.attributes else {
            continue;
        };
        let get = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
        let reference = json!({
            "name": get(labels::POD_NAME), "namespace": get(labels::POD_NAMESPACE), "uid": get(labels::POD_UID),
        });
        let entry = by_pod
            .entry(get(labels::POD_UID))
            .or_insert_with(|| (reference, Vec::new()));
        entry.1.push(container(&get(labels::CONTAINER_NAME), stats));
    }
    by_pod
        .into_iter()
        .map(|(uid, (reference, containers))| {
            let sandbox = sandboxes.iter().find(|s| {
                s.attributes.as_ref().and_then(|a| a.metadata.as_ref()).is_some_and(|m| m.uid == uid)
            });
            let mut out = json!({ "podRef": reference, "containers": containers });
            if let Some(linux) = sandbox.and_then(|s| s.linux.as_ref()) {
                if let Some(network) = linux.network.as_ref().and_then(|n| n.default_interface.as_ref()) {
                    out["network"] = json!({
                        "time": now(), "name": network.name,
                        "rxBytes": network.rx_bytes.map(|v| v.value), "txBytes": network.tx_bytes.map(|v| v.value),
                    });
                }
                out["cpu"] = json!({ "time": now(),
                    "usageCoreNanoSeconds": linux.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds).map(|v| v.value) });
                out["memory"] = json!({ "time": now(),
                    "workingSetBytes": linux.memory.as_ref().and_then(|m| m.working_set_bytes).map(|v| v.value) });
            }
            out
        })
        .collect()
}

fn container(name: &str, stats: &ContainerStats) -> Value {
    let (cpu, memory) = (
        stats.cpu.unwrap_or_default(),
        stats.memory.unwrap_or_default(),
    );
    let layer = stats.writable_layer.clone().unwrap_or_default();
    json!({
        "name": name,
        "cpu": {
            "time": now(),
            "usageNanoCores": cpu.usage_nano_cores.map(|v| v.value),
            "usageCoreNanoSeconds": cpu.usage_core_nano_seconds.map(|v| v.value),
        },
        "memory": {
            "time": now(),
            "usageBytes": memory.usage_bytes.map(|v| v.value),
            "workingSetBytes": memory.working_set_bytes.map(|v| v.value),
            "rssBytes": memory.rss_bytes.map(|v| v.value),
        },
        "rootfs": { "time": now(), "usedBytes": layer.used_bytes.map(|v| v.value), "inodesUsed": layer.inodes_used.map(|v| v.value) },
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn idle_time_is_not_counted() {
        assert_eq!(
            super::busy_nanoseconds("cpu 1 2 3 100 50 4 5 6 0 0\ncpu0 9\n"),
            21 * 10_000_000
        );
    }
}
