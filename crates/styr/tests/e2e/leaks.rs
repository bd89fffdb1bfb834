//! What a test leaves behind on the host.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The things on the host that a cluster makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// What is there now of the cluster `name` with data in `data_dir`, using bridge number `index`.
    pub fn of(name: &str, data_dir: &Path, bridge: &str) -> Self {
        let mut found = BTreeSet::new();
        found.extend(mounts(data_dir));
        found.extend(cgroups(&format!("styr-{name}-")));
        found.extend(processes(data_dir));
        found.extend(links(bridge));
        if data_dir.join(name).exists() {
            found.insert(format!("folder {}", data_dir.join(name).display()));
        }
        Self(found)
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn mounts(below: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| Path::new(point).starts_with(below))
        .map(|point| format!("mount {point}"))
        .collect()
}

fn cgroups(name: &str) -> Vec<String> {
    let Ok(controllers) = fs::read_dir("/sys/fs/cgroup") else {
        return Vec::new();
    };
    controllers
        .flatten()
        .map(|c| c.path())
        .chain([PathBuf::from("/sys/fs/cgroup")])
        .flat_map(|c| fs::read_dir(c).into_iter().flatten().flatten())
        .filter(|c| c.file_name().to_string_lossy().starts_with(name))
        .map(|c| c.path())
        .map(|c| format!("cgroup {}", c.display()))
        .collect()
}

/// Processes whose command line or root names the folder. A dead child of init counts as gone:
/// init reaps when it likes.
fn processes(data_dir: &Path) -> Vec<String> {
    let needle = data_dir.display().to_string();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|e| {
            let pid: u32 = e.file_name().to_str()?.parse().ok()?;
            let command = fs::read(e.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let shell_of_this_test = pid == std::process::id();
            (command.contains(&needle) && !shell_of_this_test)
                .then(|| format!("process {pid} {command}"))
        })
        .collect()
}

/// The cluster's bridge and what still hangs on it.
fn links(bridge: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|e| {
            let master = fs::read_link(e.path().join("master")).unwrap_or_default();
            e.file_name() == bridge || master.file_name().is_some_and(|m| m == bridge)
        })
        .map(|e| format!("link {}", e.file_name().to_string_lossy()))
        .collect()
}
