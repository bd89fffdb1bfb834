//! Control groups, read and written through their file system, in both layouts: v2 (one tree) and
//! v1 (a tree per controller, with or without an empty v2 tree beside them).
//!
//! Creating a container's cgroup is libcontainer's work; everything after that is done here, by
//! path alone, so that a cgroup left by a crash can be emptied and removed by whoever finds it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use crate::plan::{DevicePlan, Resources};
use crate::sys;

mod devices;
pub mod stats;
mod write;

/// Tries to remove a cgroup whose last processes are still being reaped.
const REMOVE_TRIES: u32 = 50;
/// Pause between those tries.
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// Where the host's cgroups are.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    unified: bool,
    /// Each controller's name (or names, `cpu,cpuacct`) and root; of v2 the only tree, unnamed.
    trees: Vec<(String, PathBuf)>,
}

impl Hierarchy {
    /// The layout under `root`, usually `/sys/fs/cgroup`.
    pub fn detect(root: &Path) -> Self {
        if root.join("cgroup.controllers").exists() {
            return Self {
                unified: true,
                trees: vec![(String::new(), root.to_path_buf())],
            };
        }
        let mut trees: Vec<(String, PathBuf)> = fs::read_dir(root)
            .map(|entries| {
                entries
                    .flatten()
                    // Links are other names of a tree that is listed anyway.
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| {
                        let name = entry.file_name().to_string_lossy().into_owned();
                        (name, entry.path())
                    })
                    .filter(|(name, path)| {
                        name != "unified" && name != "systemd" && path.join("cgroup.procs").exists()
                    })
                    .collect()
            })
            .unwrap_or_default();
        trees.sort();
        Self {
            unified: false,
            trees,
        }
    }

    /// This machine's.
    pub fn system() -> &'static Self {
        static SYSTEM: OnceLock<Hierarchy> = OnceLock::new();
        SYSTEM.get_or_init(|| Self::detect(Path::new("/sys/fs/cgroup")))
    }

    /// The cgroup at `path` (as `/parent/child`). It never is outside the tree; an empty path
    /// stands for no cgroup at all, not for the root with everybody in it.
    pub fn cgroup(&self, path: &str) -> Cgroup<'_> {
        let parts = path.split('/');
        let parts: Vec<&str> = parts
            .filter(|part| !["", ".", ".."].contains(part))
            .collect();
        Cgroup {
            hierarchy: self,
            path: parts.join("/"),
        }
    }
}

/// Whether the machine has the v2 layout.
pub fn is_unified() -> bool {
    Hierarchy::system().unified
}

/// Where containers see cgroup trees, which they may not change.
pub fn visible_folders() -> Vec<String> {
    let mut folders: Vec<String> = fs::read_dir("/sys/fs/cgroup")
        .map(|entries| {
            entries
                .flatten()
                .filter(|entry| entry.path().join("cgroup.procs").exists())
                .map(|entry| format!("/sys/fs/cgroup/{}", entry.file_name().to_string_lossy()))
                .collect()
        })
        .unwrap_or_default();
    if is_unified() {
        folders.clear();
    }
    folders.push("/sys/fs/cgroup".to_owned());
    folders
}

/// Whether the kernel accounts for swap per cgroup.
pub fn limits_swap() -> bool {
    static LIMITS: OnceLock<bool> = OnceLock::new();
    *LIMITS.get_or_init(|| {
        let system = Hierarchy::system();
        system.unified
            || system
                .tree("memory")
                .is_some_and(|tree| tree.join("memory.memsw.limit_in_bytes").exists())
    })
}

impl Hierarchy {
    fn tree(&self, controller: &str) -> Option<&Path> {
        if self.unified {
            return self.trees.first().map(|(_, path)| path.as_path());
        }
        self.trees
            .iter()
            .find(|(names, _)| names.split(',').any(|name| name == controller))
            .map(|(_, path)| path.as_path())
    }
}

/// One cgroup, in every tree it may exist in.
#[derive(Debug, Clone)]
pub struct Cgroup<'a> {
    hierarchy: &'a Hierarchy,
    path: String,
}

impl Cgroup<'_> {
    fn folders(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.hierarchy
            .trees
            .iter()
            .filter(|_| !self.path.is_empty())
            .map(|(_, tree)| tree.join(&self.path))
            .filter(|folder| folder.is_dir())
    }

    fn controller(&self, name: &str) -> Option<PathBuf> {
        Some(self.hierarchy.tree(name)?.join(&self.path))
    }

    fn read(&self, controller: &str, file: &str) -> Option<String> {
        fs::read_to_string(self.controller(controller)?.join(file)).ok()
    }

    /// Makes the cgroup where it is missing and moves a process into it, in every tree.
    pub fn join(&self, pid: i32) -> io::Result<()> {
        if self.path.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (_, tree) in &self.hierarchy.trees {
            let folder = tree.join(&self.path);
            fs::create_dir_all(&folder)?;
            write::fill_cpuset(tree, &self.path);
            fs::write(folder.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    /// Moves a process into the cgroup, in the trees that have it.
    pub fn enter(&self, pid: i32) -> io::Result<()> {
        for folder in self.folders() {
            fs::write(folder.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    /// All processes in the cgroup and below.
    pub fn processes(&self) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for folder in self.folders() {
            collect_processes(&folder, &mut found);
        }
        found
    }

    /// Sends a signal to every process in the cgroup and below.
    pub fn signal_all(&self, signal: i32) {
        for pid in self.processes() {
            let _ = sys::kill(pid, signal);
        }
    }

    /// Kills until nobody is left or forking outruns us.
    pub fn kill_all(&self) {
        if self.hierarchy.unified {
            for folder in self.folders() {
                if fs::write(folder.join("cgroup.kill"), "1").is_ok() {
                    return;
                }
            }
        }
        for _ in 0..REMOVE_TRIES {
            let processes = self.processes();
            let alive = processes.into_iter().filter(|pid| !is_zombie(*pid));
            let mut any = false;
            for pid in alive {
                any = true;
                let _ = sys::kill(pid, libc::SIGKILL);
            }
            if !any {
                return;
            }
        }
    }

    /// Removes the cgroup and those below. Waits a little for killed processes to be reaped; an
    /// absent cgroup is fine.
    pub fn remove(&self) -> io::Result<()> {
        self.folders()
            .try_for_each(|folder| remove_patiently(&folder))
    }

    /// How many processes the kernel killed here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let text = if self.hierarchy.unified {
            self.read("memory", "memory.events")
        } else {
            self.read("memory", "memory.oom_control")
        };
        text.as_deref()
            .and_then(|text| stats::value(text, "oom_kill"))
            .unwrap_or(0)
    }

    /// Lets processes use none but the usual devices and these. The v1 layout has a controller
    /// for that, which libcontainer has set up already.
    pub fn restrict_devices(&self, devices: &[DevicePlan]) -> io::Result<()> {
        if !self.hierarchy.unified {
            return Ok(());
        }
        self.folders()
            .try_for_each(|folder| devices::restrict(&folder, devices))
    }

    /// Changes limits of a living cgroup; zero and empty leave a limit as it is.
    pub fn update(&self, resources: &Resources) -> io::Result<()> {
        write::update(self, resources)
    }
}

fn collect_processes(folder: &Path, found: &mut BTreeSet<i32>) {
    if let Ok(text) = fs::read_to_string(folder.join("cgroup.procs")) {
        found.extend(
            text.lines()
                .filter_map(|line| line.parse::<i32>().ok())
                .filter(|pid| *pid > 0),
        );
    }
    for below in subfolders(folder) {
        collect_processes(&below, found);
    }
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .map(|entries| {
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path())
                .collect()
        })
        .unwrap_or_default()
}

impl Cgroup<'_> {
    /// Removes the cgroup if nobody is left in it, without waiting.
    pub fn remove_if_empty(&self) {
        for folder in self.folders() {
            let _ = remove_tree(&folder);
        }
    }
}

fn remove_patiently(folder: &Path) -> io::Result<()> {
    for _ in 1..REMOVE_TRIES {
        match remove_tree(folder) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(REMOVE_PAUSE);
            }
            other => return other,
        }
    }
    remove_tree(folder)
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for below in subfolders(folder) {
        remove_tree(&below)?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(stat.rsplit_once(") ")?.1.starts_with('Z')))
        .unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_and_what_is_outside_are_never_meant() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "").unwrap();
        fs::write(root.path().join("cgroup.procs"), "1\n").unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/cgroup.procs"), "7\n8\n").unwrap();
        let hierarchy = Hierarchy::detect(root.path());
        for path in ["", "/", "..", "/../.."] {
            assert!(hierarchy.cgroup(path).processes().is_empty(), "{path:?}");
            assert!(hierarchy.cgroup(path).join(1).is_err(), "{path:?}");
        }
        assert_eq!(
            hierarchy.cgroup("/../a").processes(),
            BTreeSet::from([7, 8])
        );
    }
}
