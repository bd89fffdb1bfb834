//! `/metrics` and `/metrics/resource` in the Prometheus text format.

use std::fmt::Write;

use oci::cri::v1::{ContainerStats, ListContainerStatsRequest, UInt64Value};

use super::{Answer, Refusal, Server, stats, text};
use crate::labels;
use crate::machine;
use crate::pod;

const KIND: &str = "text/plain; version=0.0.4; charset=utf-8";

fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// The agent's own metrics.
pub fn own(server: &Server) -> Answer {
    let mut out = String::new();
    let pods = server.directory.all();
    let running = pods
        .iter()
        .filter(|p| pod::status(p).phase.as_deref() == Some("Running"))
        .count();
    family(
        &mut out,
        "kubelet_running_pods",
        "gauge",
        "Number of pods that have a running pod sandbox",
    );
    let _ = writeln!(out, "kubelet_running_pods {running}");
    family(
        &mut out,
        "kubelet_desired_pods",
        "gauge",
        "The number of pods the kubelet is being instructed to run.",
    );
    let _ = writeln!(out, "kubelet_desired_pods {}", pods.len());
    family(
        &mut out,
        "kubelet_node_name",
        "gauge",
        "The node's name. The count is always 1.",
    );
    let _ = writeln!(
        out,
        "kubelet_node_name{{node=\"{}\"}} 1",
        server.agent.config.node_name
    );
    text(KIND, out)
}

/// Resource use of containers and the node.
pub async fn resource(server: &Server) -> Answer {
    let listed = server
        .agent
        .cri
        .list_container_stats(ListContainerStatsRequest::default())
        .await;
    let listed = listed.map_err(Refusal::internal)?.stats;
    let mut out = String::new();
    let rows: Vec<_> = listed.iter().filter_map(row).collect();
    family(
        &mut out,
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
    );
    for (id, cpu, _) in &rows {
        let _ = writeln!(
            out,
            "container_cpu_usage_seconds_total{{{id}}} {}",
            seconds(*cpu)
        );
    }
    family(
        &mut out,
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
    );
    for (id, _, memory) in &rows {
        let _ = writeln!(out, "container_memory_working_set_bytes{{{id}}} {memory}");
    }
    let busy = stats::busy_nanoseconds(&std::fs::read_to_string("/proc/stat").unwrap_or_default());
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let used = server
        .agent
        .machine
        .memory
        .saturating_sub(machine::meminfo(&memory, "MemAvailable").unwrap_or(0));
    family(
        &mut out,
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
    );
    let _ = writeln!(out, "node_cpu_usage_seconds_total {}", seconds(busy));
    family(
        &mut out,
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
    );
    let _ = writeln!(out, "node_memory_working_set_bytes {used}");
    text(KIND, out)
}

/// Labels of a container, its CPU time in nanoseconds and its memory in bytes.
fn row(stats: &ContainerStats) -> Option<(String, u64, u64)> {
    let marks = &stats.attributes.as_ref()?.labels;
    let get = |key: &str| marks.get(key).map_or("", String::as_str);
    let id = format!(
        "container=\"{}\",namespace=\"{}\",pod=\"{}\"",
        get(labels::CONTAINER_NAME),
        get(labels::POD_NAMESPACE),
        get(labels::POD_NAME)
    );
    let cpu = stats.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds);
    let memory = stats.memory.as_ref().and_then(|m| m.working_set_bytes);
    let value = |v: Option<UInt64Value>| v.map_or(0, |v| v.value);
    Some((id, value(cpu), value(memory)))
}

fn seconds(nanoseconds: u64) -> String {
    format!(
        "{}.{:09}",
        nanoseconds / 1_000_000_000,
        nanoseconds % 1_000_000_000
    )
}
