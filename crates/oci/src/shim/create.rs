//! Building a container: a child of the shim that enters a mount namespace of its own, mounts the
//! root there and calls libcontainer.
//!
//! Nothing it mounts is ever seen by the host: the mounts live in the child's namespace and in
//! the container's copy of it, and vanish with the last process in either. A crash at any point
//! leaves no mount behind.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::details;
use super::process::{self, Launch};
use super::report::Report;
use super::spec;
use crate::cgroups::Hierarchy;
use crate::plan::{ContainerPlan, MountPlan, ProcessPlan, Propagation};
use crate::sys;

/// What the child inherits from the shim.
pub struct Inputs<'a> {
    pub plan: &'a ContainerPlan,
    pub report: OwnedFd,
    /// Standard input, output and error of the container; none with a terminal.
    pub stdio: Option<[OwnedFd; 3]>,
    /// The mount namespace that holds the pod's shared memory.
    pub shm_namespace: &'a OwnedFd,
    /// `/proc/<pid>/ns/pid` of the namespace to join.
    pub pid_namespace: Option<PathBuf>,
    pub filter: Option<Vec<sys::BpfInstruction>>,
}

/// Runs in the child: builds and starts the container, reports, exits.
pub fn run(inputs: Inputs) -> ! {
    let code = match build(&inputs) {
        Ok(pid) => {
            let _ = Report::Pid(pid).send(&inputs.report);
            0
        }
        Err(error) => {
            let _ = Report::Error(error).send(&inputs.report);
            1
        }
    };
    sys::exit_now(code)
}

fn build(inputs: &Inputs) -> Result<i32, String> {
    let plan = inputs.plan;
    let staged = stage_mounts(inputs).map_err(|error| error.to_string())?;
    if let Some([stdin, stdout, stderr]) = &inputs.stdio {
        process::stdio(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())
            .map_err(|error| format!("stdio: {error}"))?;
    }
    let spec = spec::runtime_spec(plan, &staged, inputs.pid_namespace.as_deref());
    // All that libcontainer wants on disk is wanted only until the container is started.
    let (bundle, state) = (plan.stage.join("bundle"), plan.stage.join("state"));
    fs::create_dir(&bundle)
        .and_then(|()| fs::create_dir(&state))
        .and_then(|()| fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?))
        .map_err(|error| format!("write runtime spec: {error}"))?;
    details::report_errors(inputs.report.as_raw_fd());
    let executor = Handover {
        process: plan.process.clone(),
        filter: inputs.filter.clone(),
        report: inputs.report.as_raw_fd(),
    };
    let mut container = ContainerBuilder::new(plan.id.clone(), SyscallType::Linux)
        .with_executor(executor)
        .with_root_path(&state)
        .map_err(|error| chain(&error))?
        .as_init(&bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(|error| chain(&error))?;
    let pid = container.pid().ok_or("container has no process")?.as_raw();
    if !plan.privileged {
        Hierarchy::system()
            .cgroup(&plan.cgroup)
            .restrict_devices(&plan.devices)
            .map_err(|error| format!("restrict devices: {error}"))?;
    }
    container.start().map_err(|error| chain(&error))?;
    Ok(pid)
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// Sources of mounts that had to be made in this namespace first.
pub struct Staged {
    pub rootfs: PathBuf,
    pub shm: Option<PathBuf>,
    /// Instead of the source of the mount at that index of the plan: a clone that has kept its
    /// relation to the host's mount. libcontainer changes no mount's propagation, so what comes
    /// from elsewhere is private as this namespace is.
    pub related: Vec<(usize, PathBuf)>,
}

fn stage_mounts(inputs: &Inputs) -> Result<Staged, String> {
    let plan = inputs.plan;
    let fail = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let shm_tree = if plan.host_ipc {
        None
    } else {
        Some(clone_shm(inputs.shm_namespace).map_err(fail("open shared memory"))?)
    };
    let related = clone_related(plan)?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("unshare: {error}"))?;
    change_propagation(Path::new("/"), MsFlags::MS_PRIVATE | MsFlags::MS_REC)
        .map_err(fail("make mounts private"))?;
    mount_tmpfs(&plan.stage).map_err(fail("mount stage"))?;
    let shm = match shm_tree {
        Some(tree) => {
            Some(attach(&tree, &plan.stage.join("shm"), true).map_err(fail("mount shm"))?)
        }
        None => None,
    };
    let mut attached = Vec::new();
    for clone in related {
        let index = clone.index;
        attached.push((index, attach_related(plan, clone).map_err(fail("mount"))?));
    }
    let rootfs = plan.stage.join("rootfs");
    mount_root(plan, &rootfs).map_err(fail("mount root file system"))?;
    // Later, as a read-only root, it could not be made any more. A failure shows when it is
    // entered.
    let _ = make_folder_inside(&rootfs, &plan.process.cwd);
    for entry in &plan.mounts {
        check_kinds(&rootfs, entry)?;
    }
    Ok(Staged {
        rootfs,
        shm,
        related: attached,
    })
}

/// A clone of a mount of the host that will hear of its later changes, or pass its own back.
struct Related {
    index: usize,
    is_dir: bool,
    tree: OwnedFd,
}

/// Must happen while this process is still in the host's mount namespace.
fn clone_related(plan: &ContainerPlan) -> Result<Vec<Related>, String> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let mut related = Vec::new();
    for (index, entry) in plan.mounts.iter().enumerate() {
        if entry.propagation != Propagation::Private {
            let tree = open_tree(rustix::fs::CWD, &entry.source, flags)
                .map_err(|error| format!("open {}: {error}", entry.source.display()))?;
            related.push(Related {
                index,
                is_dir: entry.source.is_dir(),
                tree,
            });
        }
    }
    Ok(related)
}

fn attach_related(plan: &ContainerPlan, clone: Related) -> io::Result<PathBuf> {
    let target = plan.stage.join(format!("related-{}", clone.index));
    let path = attach(&clone.tree, &target, clone.is_dir)?;
    if plan.mounts[clone.index].propagation == Propagation::HostToContainer {
        change_propagation(&path, MsFlags::MS_SLAVE | MsFlags::MS_REC)?;
    }
    Ok(path)
}

fn clone_shm(namespace: &OwnedFd) -> io::Result<OwnedFd> {
    let host = fs::File::open("/proc/self/ns/mnt")?;
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    let tree = open_tree(
        rustix::fs::CWD,
        "/",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    );
    setns(&host, CloneFlags::CLONE_NEWNS)?;
    Ok(tree?)
}

fn attach(tree: &OwnedFd, target: &Path, is_dir: bool) -> io::Result<PathBuf> {
    if is_dir {
        fs::create_dir_all(target)?;
    } else {
        fs::File::create(target)?;
    }
    move_mount(
        tree,
        "",
        rustix::fs::CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(target.to_path_buf())
}

fn change_propagation(path: &Path, flags: MsFlags) -> io::Result<()> {
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)?;
    Ok(())
}

/// Mounts the overlay. The option string is limited to a page, so the lower folders go by short
/// names: links on the stage.
fn mount_root(plan: &ContainerPlan, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    let links = plan.stage.join("layers");
    fs::create_dir_all(&links)?;
    let mut names = Vec::new();
    for (index, lower) in plan.rootfs.lowerdirs.iter().enumerate() {
        std::os::unix::fs::symlink(lower, links.join(index.to_string()))?;
        names.push(index.to_string());
    }
    std::os::unix::fs::symlink(&plan.rootfs.upperdir, links.join("u"))?;
    std::os::unix::fs::symlink(&plan.rootfs.workdir, links.join("w"))?;
    std::env::set_current_dir(&links)?;
    let options = format!("lowerdir={},upperdir=u,workdir=w", names.join(":"));
    let mounted = mount(
        Some("overlay"),
        target,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    );
    std::env::set_current_dir("/")?;
    Ok(mounted?)
}

fn mount_tmpfs(target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("stage"),
        target,
        Some("tmpfs"),
        flags,
        Some("mode=0700"),
    )?;
    Ok(())
}

/// A folder goes onto a folder and a file onto a file; what is not there yet is made to fit.
fn check_kinds(root: &Path, entry: &MountPlan) -> Result<(), String> {
    use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
    let target = fs::File::open(root).and_then(|anchor| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let path = entry.destination.as_str();
        let target = openat2(anchor, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        Ok(fstat(target)?)
    });
    let Ok(target) = target else { return Ok(()) };
    let is_folder = FileType::from_raw_mode(target.st_mode) == FileType::Directory;
    if is_folder == entry.source.is_dir() {
        return Ok(());
    }
    Err(format!(
        "error mounting {:?} to rootfs at {:?}: not a directory: Are you trying to mount a \
         directory onto a file (or vice-versa)? Check if the specified host path exists and is \
         the expected type",
        entry.source, entry.destination
    ))
}

/// Makes a folder and its parents in a root whose links must not lead out of it.
fn make_folder_inside(root: &Path, folder: &str) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let anchor = fs::File::open(root)?;
        io::Result::Ok(openat2(
            anchor,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        )?)
    };
    let mut path = PathBuf::from(".");
    let mut parent = open(&path)?;
    for part in folder.split('/').filter(|part| !part.is_empty()) {
        path.push(part);
        if open(&path).is_err() {
            mkdirat(&parent, part, Mode::from_raw_mode(0o755))?;
        }
        parent = open(&path)?;
    }
    Ok(())
}

/// libcontainer's last step: the rest of the way to `execve` is ours.
#[derive(Clone)]
struct Handover {
    process: ProcessPlan,
    filter: Option<Vec<sys::BpfInstruction>>,
    report: RawFd,
}

impl Executor for Handover {
    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let report = sys::take_fd(self.report);
        process::run(&Launch {
            process: &self.process,
            report: report.as_fd(),
            filter: self.filter.clone(),
            first: true,
        })
    }

    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        process::check(&self.process).map_err(ExecutorValidationError::ArgValidationError)
    }
}
