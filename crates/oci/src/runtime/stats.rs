//! What containers and sandboxes use, for CRI.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::container::Container;
use super::list::selected;
use super::sandbox::Sandbox;
use super::{Runtime, lock};
use crate::cgroups::Hierarchy;
use crate::cgroups::stats::Usage;
use crate::cri::v1;
use crate::shim::now_nanoseconds;

/// Shortest time between two readings that a rate is computed from, nanoseconds.
const MIN_INTERVAL: i64 = 100_000_000;

/// The last readings of CPU time by container or sandbox, so that rates can be told.
#[derive(Debug, Default)]
pub struct Samples(Mutex<HashMap<String, Sample>>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: i64,
    cpu: u64,
    rate: Option<u64>,
}

impl Samples {
    /// The rate since the last reading, in billionths of a CPU.
    fn rate(&self, id: &str, at: i64, cpu: u64) -> Option<u64> {
        let mut samples = lock(&self.0);
        let Some(last) = samples.get(id).copied() else {
            samples.insert(
                id.to_owned(),
                Sample {
                    at,
                    cpu,
                    rate: None,
                },
            );
            return None;
        };
        let elapsed = at - last.at;
        if elapsed < MIN_INTERVAL {
            return last.rate;
        }
        let used = u128::from(cpu.saturating_sub(last.cpu));
        let rate = u64::try_from(used * 1_000_000_000 / u128::try_from(elapsed).unwrap_or(1)).ok();
        samples.insert(id.to_owned(), Sample { at, cpu, rate });
        rate
    }

    /// Forgets what no longer exists.
    fn retain(&self, exists: impl Fn(&str) -> bool) {
        lock(&self.0).retain(|id, _| exists(id));
    }
}

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn cpu_usage(samples: &Samples, id: &str, at: i64, usage: &Usage) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(usage.cpu_nanoseconds),
        usage_nano_cores: samples
            .rate(id, at, usage.cpu_nanoseconds)
            .map(|value| v1::UInt64Value { value }),
        psi: None,
    }
}

fn memory_usage(at: i64, usage: &Usage) -> v1::MemoryUsage {
    v1::MemoryUsage {
        timestamp: at,
        working_set_bytes: value(usage.working_set_bytes),
        available_bytes: usage
            .memory_limit
            .and_then(|limit| value(limit.saturating_sub(usage.working_set_bytes))),
        usage_bytes: value(usage.memory_bytes),
        rss_bytes: value(usage.rss_bytes),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
        psi: None,
    }
}

impl Runtime {
    /// What a container uses; without CPU and memory when it does not run.
    pub fn container_stats(&self, container: &Container) -> v1::ContainerStats {
        let (record, config) = (&container.record, &container.config);
        let at = now_nanoseconds();
        let usage = container
            .is_running()
            .then(|| Hierarchy::system().cgroup(&record.cgroup).usage())
            .flatten();
        let layer = self.images().snapshot_usage(&record.id).ok();
        v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: record.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            cpu: usage
                .as_ref()
                .map(|usage| cpu_usage(&self.cpu_samples, &record.id, at, usage)),
            memory: usage.as_ref().map(|usage| memory_usage(at, usage)),
            writable_layer: layer.map(|layer| v1::FilesystemUsage {
                timestamp: at,
                fs_id: Some(v1::FilesystemIdentifier {
                    mountpoint: self.config.root.to_string_lossy().into_owned(),
                }),
                used_bytes: value(layer.bytes),
                inodes_used: value(layer.inodes),
            }),
            swap: usage
                .as_ref()
                .and_then(|usage| usage.swap_bytes)
                .map(|bytes| v1::SwapUsage {
                    timestamp: at,
                    swap_available_bytes: None,
                    swap_usage_bytes: value(bytes),
                }),
            io: None,
        }
    }

    /// The stats of containers that a filter lets through.
    pub fn list_container_stats(
        &self,
        filter: Option<v1::ContainerStatsFilter>,
    ) -> Vec<v1::ContainerStats> {
        let filter = filter.unwrap_or_default();
        let containers: Vec<Arc<Container>> = lock(&self.containers)
            .values()
            .filter(|c| c.record.id.starts_with(&filter.id))
            .filter(|c| c.record.sandbox.starts_with(&filter.pod_sandbox_id))
            .filter(|c| selected(&filter.label_selector, &c.config.labels))
            .cloned()
            .collect();
        self.cpu_samples
            .retain(|id| self.find_container(id).is_some() || self.knows_sandbox(id));
        containers.iter().map(|c| self.container_stats(c)).collect()
    }

    /// What a sandbox uses: the sum of its pod's cgroup, its network, its containers.
    pub fn sandbox_stats(&self, sandbox: &Sandbox) -> v1::PodSandboxStats {
        let record = sandbox.record();
        let at = now_nanoseconds();
        let pod = record.cgroup.rsplit_once('/').map_or("", |(pod, _)| pod);
        let usage = Hierarchy::system().cgroup(pod).usage();
        let containers = self.containers_of(&record.id);
        v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                id: record.id.clone(),
                metadata: sandbox.config.metadata.clone(),
                labels: sandbox.config.labels.clone(),
                annotations: sandbox.config.annotations.clone(),
            }),
            linux: Some(v1::LinuxPodSandboxStats {
                cpu: usage
                    .as_ref()
                    .map(|usage| cpu_usage(&self.cpu_samples, &record.id, at, usage)),
                memory: usage.as_ref().map(|usage| memory_usage(at, usage)),
                network: network_usage(sandbox, at),
                process: usage.as_ref().map(|usage| v1::ProcessUsage {
                    timestamp: at,
                    process_count: value(usage.processes),
                }),
                containers: containers.iter().map(|c| self.container_stats(c)).collect(),
                io: None,
            }),
            windows: None,
        }
    }

    /// The stats of sandboxes that a filter lets through.
    pub fn list_sandbox_stats(
        &self,
        filter: Option<v1::PodSandboxStatsFilter>,
    ) -> Vec<v1::PodSandboxStats> {
        let filter = filter.unwrap_or_default();
        let sandboxes: Vec<Arc<Sandbox>> = lock(&self.sandboxes)
            .values()
            .filter(|sandbox| sandbox.is_ready())
            .filter(|sandbox| sandbox.id().starts_with(&filter.id))
            .filter(|sandbox| selected(&filter.label_selector, &sandbox.config.labels))
            .cloned()
            .collect();
        sandboxes.iter().map(|s| self.sandbox_stats(s)).collect()
    }
}

/// Counters of the sandbox's interfaces, read through its shim, which lives in its namespace.
fn network_usage(sandbox: &Sandbox, at: i64) -> Option<v1::NetworkUsage> {
    if sandbox.host_network() || !sandbox.is_ready() {
        return None;
    }
    let pid = super::shim_client::peer_pid(&sandbox.dir).ok()?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    let mut interfaces = interfaces(&text);
    let default = interfaces.iter().position(|i| i.name == "eth0");
    Some(v1::NetworkUsage {
        timestamp: at,
        default_interface: default.map(|index| interfaces.remove(index)),
        interfaces,
    })
}

/// The lines of `/proc/net/dev`: name, then eight receive and eight transmit counters.
fn interfaces(text: &str) -> Vec<v1::NetworkInterfaceUsage> {
    text.lines()
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let counters: Vec<u64> = counters
                .split_whitespace()
                .filter_map(|counter| counter.parse().ok())
                .collect();
            let counter = |index: usize| counters.get(index).and_then(|n| value(*n));
            (name.trim() != "lo").then(|| v1::NetworkInterfaceUsage {
                name: name.trim().to_owned(),
                rx_bytes: counter(0),
                rx_errors: counter(2),
                tx_bytes: counter(8),
                tx_errors: counter(10),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_need_two_readings() {
        let samples = Samples::default();
        assert_eq!(samples.rate("a", 0, 0), None);
        assert_eq!(
            samples.rate("a", 1_000_000_000, 500_000_000),
            Some(500_000_000)
        );
        // Too soon: the last rate still holds.
        assert_eq!(
            samples.rate("a", 1_000_000_001, 600_000_000),
            Some(500_000_000)
        );
        assert_eq!(samples.rate("a", 2_000_000_000, 500_000_000), Some(0));
        samples.retain(|_| false);
        assert_eq!(samples.rate("a", 3_000_000_000, 0), None);
    }

    #[test]
    fn interface_counters_are_read() {
        let text = "Inter-| Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
                    eth0: 100 2 3 0 0 0 0 0 400 5 6 0 0 0 0 0\n";
        let found = interfaces(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].rx_bytes, value(100));
        assert_eq!(found[0].rx_errors, value(3));
        assert_eq!(found[0].tx_bytes, value(400));
        assert_eq!(found[0].tx_errors, value(6));
    }
}
