//! Writing limits.

use std::fs;
use std::io;
use std::path::Path;

use super::Cgroup;
use crate::plan::Resources;

/// A v1 cpuset takes no process before it has CPUs and memory nodes: each level takes its
/// parent's.
pub fn fill_cpuset(tree: &Path, path: &str) {
    if !tree.join("cpuset.cpus").exists() {
        return;
    }
    let mut folder = tree.to_path_buf();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let parent = folder.clone();
        folder.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = fs::read_to_string(folder.join(file)).unwrap_or_default();
            if own.trim().is_empty()
                && let Ok(value) = fs::read_to_string(parent.join(file))
            {
                let _ = fs::write(folder.join(file), value.trim());
            }
        }
    }
}

/// The v2 weight that corresponds to v1 shares.
pub fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

pub fn update(cgroup: &Cgroup, resources: &Resources) -> io::Result<()> {
    if cgroup.hierarchy.unified {
        update_v2(cgroup, resources)
    } else {
        update_v1(cgroup, resources)
    }
}

fn put(cgroup: &Cgroup, controller: &str, file: &str, value: impl ToString) -> io::Result<()> {
    let Some(folder) = cgroup.controller(controller) else {
        return Ok(());
    };
    fs::write(folder.join(file), value.to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("write {file}: {error}")))
}

fn update_v1(cgroup: &Cgroup, resources: &Resources) -> io::Result<()> {
    if resources.cpu_shares > 0 {
        put(cgroup, "cpu", "cpu.shares", resources.cpu_shares)?;
    }
    if resources.cpu_period > 0 {
        put(cgroup, "cpu", "cpu.cfs_period_us", resources.cpu_period)?;
    }
    if resources.cpu_quota != 0 {
        put(cgroup, "cpu", "cpu.cfs_quota_us", resources.cpu_quota)?;
    }
    if resources.memory_bytes > 0 {
        put(
            cgroup,
            "memory",
            "memory.limit_in_bytes",
            resources.memory_bytes,
        )?;
    }
    cpusets(cgroup, resources)
}

fn update_v2(cgroup: &Cgroup, resources: &Resources) -> io::Result<()> {
    if resources.cpu_shares > 0 {
        put(cgroup, "cpu", "cpu.weight", weight(resources.cpu_shares))?;
    }
    if resources.cpu_quota != 0 || resources.cpu_period > 0 {
        put(cgroup, "cpu", "cpu.max", cpu_max(resources))?;
    }
    if resources.memory_bytes > 0 {
        put(cgroup, "memory", "memory.max", resources.memory_bytes)?;
    }
    cpusets(cgroup, resources)?;
    for (file, value) in &resources.unified {
        put(cgroup, "", file, value)?;
    }
    Ok(())
}

fn cpu_max(resources: &Resources) -> String {
    const DEFAULT_PERIOD: u64 = 100_000;
    let period = if resources.cpu_period > 0 {
        resources.cpu_period
    } else {
        DEFAULT_PERIOD
    };
    if resources.cpu_quota > 0 {
        format!("{} {period}", resources.cpu_quota)
    } else {
        format!("max {period}")
    }
}

fn cpusets(cgroup: &Cgroup, resources: &Resources) -> io::Result<()> {
    if !resources.cpuset_cpus.is_empty() {
        put(cgroup, "cpuset", "cpuset.cpus", &resources.cpuset_cpus)?;
    }
    if !resources.cpuset_mems.is_empty() {
        put(cgroup, "cpuset", "cpuset.mems", &resources.cpuset_mems)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroups::Hierarchy;

    #[test]
    fn shares_become_weights() {
        for (shares, expected) in [
            (0, 1),
            (2, 1),
            (1024, 39),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn both_layouts_are_written() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu memory").unwrap();
        fs::create_dir_all(root.path().join("pod/one")).unwrap();
        let hierarchy = Hierarchy::detect(root.path());
        let resources = Resources {
            cpu_shares: 1024,
            cpu_quota: 50_000,
            memory_bytes: 1 << 20,
            ..Resources::default()
        };
        hierarchy.cgroup("/pod/one").update(&resources).unwrap();
        let read = |file: &str| fs::read_to_string(root.path().join("pod/one").join(file)).unwrap();
        assert_eq!(read("cpu.weight"), "39");
        assert_eq!(read("cpu.max"), "50000 100000");
        assert_eq!(read("memory.max"), "1048576");

        let root = tempfile::tempdir().unwrap();
        for tree in ["cpu", "memory", "unified"] {
            fs::create_dir_all(root.path().join(tree).join("pod")).unwrap();
            fs::write(root.path().join(tree).join("cgroup.procs"), "").unwrap();
        }
        let hierarchy = Hierarchy::detect(root.path());
        hierarchy.cgroup("pod").update(&resources).unwrap();
        let read = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();
        assert_eq!(read("cpu/pod/cpu.shares"), "1024");
        assert_eq!(read("memory/pod/memory.limit_in_bytes"), "1048576");
        assert!(!root.path().join("unified/pod/cpu.max").exists());
    }
}
