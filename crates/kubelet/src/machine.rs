//! What this machine has, for the Node object and for limits.

use std::path::Path;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity::Amounts;

/// Memory kept from pods, in bytes: at less the node would evict.
const EVICTION_MEMORY: u64 = 100 * 1024 * 1024;
/// Part of the disk kept from pods, in percent: at less the node is under pressure. Upstream's
/// default of 10 is made for machines that do nothing else.
const EVICTION_DISK_PERCENT: u64 = 5;

/// Capacities and identity of the machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Processors.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of the file system that holds pods.
    pub disk: u64,
    /// Huge pages by kernel name (`hugepages-2Mi`), in bytes.
    pub hugepages: Vec<(String, u64)>,
    /// Content of /etc/machine-id.
    pub machine_id: String,
    /// Boot id of the kernel.
    pub boot_id: String,
    /// Firmware's uuid, or the machine id.
    pub system_uuid: String,
    /// Kernel release.
    pub kernel: String,
    /// Distribution.
    pub os_image: String,
    /// Go's name of the architecture.
    pub architecture: &'static str,
}

fn line(path: &str) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

impl Machine {
    /// Looks at the machine; `root` tells which file system counts.
    pub fn probe(root: &Path) -> Machine {
        let machine_id = line("/etc/machine-id");
        let uuid = line("/sys/class/dmi/id/product_uuid");
        Machine {
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
            memory: meminfo(&line("/proc/meminfo"), "MemTotal").unwrap_or(0),
            disk: rustix::fs::statvfs(root).map_or(0, |s| s.f_blocks * s.f_frsize),
            hugepages: hugepages(),
            system_uuid: if uuid.is_empty() {
                machine_id.clone()
            } else {
                uuid
            },
            machine_id,
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            kernel: line("/proc/sys/kernel/osrelease"),
            os_image: os_image(&line("/etc/os-release")),
            architecture: architecture(),
        }
    }

    /// All there is.
    pub fn capacity(&self, max_pods: u32) -> Amounts {
        let mut out: Amounts = [
            ("cpu".to_owned(), Quantity(self.cpus.to_string())),
            (
                "memory".to_owned(),
                Quantity(format!("{}Ki", self.memory / 1024)),
            ),
            (
                "ephemeral-storage".to_owned(),
                Quantity(format!("{}Ki", self.disk / 1024)),
            ),
            ("pods".to_owned(), Quantity(max_pods.to_string())),
        ]
        .into();
        for name in ["hugepages-1Gi", "hugepages-2Mi"] {
            let bytes = self
                .hugepages
                .iter()
                .find(|(n, _)| n == name)
                .map_or(0, |(_, b)| *b);
            out.insert(name.to_owned(), Quantity(mebibytes(bytes)));
        }
        out
    }

    /// What pods may have.
    pub fn allocatable(&self, max_pods: u32) -> Amounts {
        let mut out = self.capacity(max_pods);
        let memory = self.memory.saturating_sub(EVICTION_MEMORY);
        out.insert(
            "memory".to_owned(),
            Quantity(format!("{}Ki", memory / 1024)),
        );
        let disk = self.disk / 100 * (100 - EVICTION_DISK_PERCENT);
        out.insert("ephemeral-storage".to_owned(), Quantity(disk.to_string()));
        out
    }
}

fn mebibytes(bytes: u64) -> String {
    if bytes == 0 {
        "0".to_owned()
    } else {
        format!("{}Mi", bytes >> 20)
    }
}

/// Whether the file system below `root` is nearly full. What it reserves for others counts neither
/// as free nor as used, as in `df`.
pub fn disk_pressure(root: &Path) -> bool {
    rustix::fs::statvfs(root).is_ok_and(|disk| {
        let used = disk.f_blocks.saturating_sub(disk.f_bfree);
        nearly_full(used, disk.f_bavail)
    })
}

fn nearly_full(used: u64, available: u64) -> bool {
    available * 100 < (used + available) * EVICTION_DISK_PERCENT
}

/// A field of /proc/meminfo in bytes.
pub fn meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

fn hugepages() -> Vec<(String, u64)> {
    let Ok(folder) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    folder
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kilobytes: u64 = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let count: u64 = line(entry.path().join("nr_hugepages").to_str()?)
                .parse()
                .ok()?;
            let unit = if kilobytes >= 1 << 20 {
                format!("{}Gi", kilobytes >> 20)
            } else {
                format!("{}Mi", kilobytes >> 10)
            };
            Some((format!("hugepages-{unit}"), count * kilobytes * 1024))
        })
        .collect()
}

fn os_image(os_release: &str) -> String {
    os_release
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .map_or_else(
            || "Linux".to_owned(),
            |name| name.trim_matches('"').to_owned(),
        )
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocatable_leaves_room() {
        let machine = Machine {
            cpus: 2,
            memory: 1 << 30,
            disk: 100 << 20,
            ..Machine::default()
        };
        let text = |amounts: &Amounts, name: &str| amounts[name].0.clone();
        let capacity = machine.capacity(110);
        assert_eq!(
            (text(&capacity, "cpu"), text(&capacity, "pods")),
            ("2".into(), "110".into())
        );
        assert_eq!(text(&capacity, "memory"), "1048576Ki");
        assert_eq!(text(&machine.allocatable(110), "memory"), "946176Ki");
        assert_eq!(
            meminfo("MemTotal:  10 kB\nMemFree: 5 kB\n", "MemFree"),
            Some(5120)
        );
    }

    #[test]
    fn a_disk_is_nearly_full_by_what_pods_may_use_of_it() {
        for (used, available, full) in [
            (0, 0, false),
            (95, 5, false),
            (96, 4, true),
            (68, 24, false),
            (100, 0, true),
        ] {
            assert_eq!(nearly_full(used, available), full, "{used} {available}");
        }
    }
}
