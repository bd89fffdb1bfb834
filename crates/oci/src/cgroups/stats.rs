//! What a cgroup uses.

use super::Cgroup;

/// One reading. Absent numbers are those the kernel does not offer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time, nanoseconds.
    pub cpu_nanoseconds: u64,
    /// Memory in use with caches, bytes.
    pub memory_bytes: u64,
    /// Memory that cannot be given back: usage without inactive file pages.
    pub working_set_bytes: u64,
    /// Anonymous memory, bytes.
    pub rss_bytes: u64,
    /// Page faults since the cgroup was made.
    pub page_faults: u64,
    /// Page faults that had to read from disk.
    pub major_page_faults: u64,
    /// The memory limit, if there is one, bytes.
    pub memory_limit: Option<u64>,
    /// Swap in use, bytes.
    pub swap_bytes: Option<u64>,
    /// Processes and threads.
    pub processes: u64,
}

/// A v1 limit at or above this stands for none.
const V1_NO_LIMIT: u64 = 1 << 62;

/// The number after `key` in a file of `key value` lines.
pub fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

fn number(text: Option<String>) -> Option<u64> {
    text?.trim().parse().ok()
}

impl Cgroup<'_> {
    /// What the cgroup uses now; `None` when it does not exist.
    pub fn usage(&self) -> Option<Usage> {
        if self.hierarchy.unified {
            self.usage_v2()
        } else {
            self.usage_v1()
        }
    }

    fn usage_v2(&self) -> Option<Usage> {
        let cpu = self.read("cpu", "cpu.stat")?;
        let memory = self.read("memory", "memory.stat").unwrap_or_default();
        let bytes = number(self.read("memory", "memory.current")).unwrap_or(0);
        let stat = |key| value(&memory, key).unwrap_or(0);
        Some(Usage {
            cpu_nanoseconds: value(&cpu, "usage_usec").unwrap_or(0) * 1000,
            memory_bytes: bytes,
            working_set_bytes: bytes.saturating_sub(stat("inactive_file")),
            rss_bytes: stat("anon"),
            page_faults: stat("pgfault"),
            major_page_faults: stat("pgmajfault"),
            memory_limit: number(self.read("memory", "memory.max")),
            swap_bytes: number(self.read("memory", "memory.swap.current")),
            processes: number(self.read("pids", "pids.current")).unwrap_or(0),
        })
    }

    fn usage_v1(&self) -> Option<Usage> {
        let cpu = number(self.read("cpuacct", "cpuacct.usage"))?;
        let memory = self.read("memory", "memory.stat").unwrap_or_default();
        let bytes = number(self.read("memory", "memory.usage_in_bytes")).unwrap_or(0);
        let stat = |key| value(&memory, key).unwrap_or(0);
        let with_swap = number(self.read("memory", "memory.memsw.usage_in_bytes"));
        Some(Usage {
            cpu_nanoseconds: cpu,
            memory_bytes: bytes,
            working_set_bytes: bytes.saturating_sub(stat("total_inactive_file")),
            rss_bytes: stat("total_rss"),
            page_faults: stat("total_pgfault"),
            major_page_faults: stat("total_pgmajfault"),
            memory_limit: number(self.read("memory", "memory.limit_in_bytes"))
                .filter(|limit| *limit < V1_NO_LIMIT),
            swap_bytes: with_swap.map(|total| total.saturating_sub(bytes)),
            processes: number(self.read("pids", "pids.current")).unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cgroups::Hierarchy;

    #[test]
    fn a_v2_tree_is_read() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("pod");
        fs::create_dir(&folder).unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu memory pids").unwrap();
        for (file, text) in [
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\n"),
            ("memory.current", "1000\n"),
            (
                "memory.stat",
                "anon 300\nfile 700\ninactive_file 400\npgfault 9\npgmajfault 2\n",
            ),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\noom 1\noom_kill 1\n"),
            ("pids.current", "3\n"),
        ] {
            fs::write(folder.join(file), text).unwrap();
        }
        let hierarchy = Hierarchy::detect(root.path());
        let cgroup = hierarchy.cgroup("/pod");
        let expected = Usage {
            cpu_nanoseconds: 1_500_000,
            memory_bytes: 1000,
            working_set_bytes: 600,
            rss_bytes: 300,
            page_faults: 9,
            major_page_faults: 2,
            memory_limit: None,
            swap_bytes: None,
            processes: 3,
        };
        assert_eq!(cgroup.usage(), Some(expected));
        assert_eq!(cgroup.oom_kills(), 1);
        assert_eq!(hierarchy.cgroup("/absent").usage(), None);
    }

    #[test]
    fn a_v1_forest_is_read() {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("cpu,cpuacct/pod/cpuacct.usage", "42\n"),
            ("memory/pod/memory.usage_in_bytes", "1000\n"),
            ("memory/pod/memory.limit_in_bytes", "9223372036854771712\n"),
            (
                "memory/pod/memory.stat",
                "rss 1\ntotal_rss 300\ntotal_inactive_file 100\n",
            ),
            (
                "memory/pod/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            ),
        ] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        for tree in ["cpu,cpuacct", "memory"] {
            fs::write(root.path().join(tree).join("cgroup.procs"), "").unwrap();
        }
        let hierarchy = Hierarchy::detect(root.path());
        let cgroup = hierarchy.cgroup("pod");
        let usage = cgroup.usage().unwrap();
        assert_eq!(usage.cpu_nanoseconds, 42);
        assert_eq!(usage.working_set_bytes, 900);
        assert_eq!(usage.rss_bytes, 300);
        assert_eq!(usage.memory_limit, None);
        assert_eq!(cgroup.oom_kills(), 2);
    }
}
