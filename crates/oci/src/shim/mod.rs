//! The shim: one small, single-threaded process per pod, the parent of the pod's containers.
//!
//! It holds the pod's namespaces, writes the containers' output to their log files, keeps their
//! exit codes on disk, and outlives the runtime that started it; a later runtime finds it by its
//! socket. Containers die with their shim.
//!
//! ```text
//!   runtime ── posix_spawn ──> starter ── fork ──> shim (own session, subreaper)
//!                                                   ├── create ──> intermediate ──> container
//!                                                   └── exec helper ──> process in a container
//! ```
//!
//! Invariants: one thread, ever, because libcontainer and `fork` need that; nothing in the loop
//! blocks; state is written to disk before it is announced.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;
use rustix::mount::UnmountFlags;

use crate::cgroups::Hierarchy;
use crate::plan::SandboxPlan;
use crate::proto;
use crate::sys::{self, Fork};

mod attach;
mod connection;
mod container;
mod create;
mod details;
mod exec;
mod log;
mod pod_init;
mod process;
mod report;
mod requests;
mod server;
mod spec;
mod users;

pub use log::now_nanoseconds;

/// The first argument by which a program is told to be a shim.
pub const ARGUMENT: &str = "oci-shim";
/// The sandbox's plan, in its folder.
pub const PLAN: &str = "plan.json";
/// Where a shim notes what it dies of.
const ERRORS: &str = "shim.log";

/// Runs the shim of the sandbox folder named by the one argument after [`ARGUMENT`]. Must be the
/// first thing a program does, while it has a single thread.
///
/// The calling process prints `ready <pid>` once the shim, its grandchild in a session of its own,
/// listens; on failure it prints the reason and exits with 1.
pub fn shim_main(args: impl IntoIterator<Item = OsString>) -> ! {
    let code = match args.into_iter().next() {
        Some(dir) => start(Path::new(&dir)),
        None => {
            let _ = writeln!(io::stdout(), "a sandbox folder is needed");
            1
        }
    };
    std::process::exit(code)
}

fn start(dir: &Path) -> i32 {
    let plan = read_plan(dir);
    let (shim, said) = match detach(dir) {
        Ok(detached) => detached,
        Err(error) => (None, format!("start shim: {error}")),
    };
    let told = writeln!(io::stdout(), "{said}").and_then(|()| io::stdout().flush());
    // With nobody there to hear it, nobody knows of the shim: it would be left for ever.
    if told.is_err()
        && let Some(shim) = shim
    {
        let _ = sys::kill(shim.as_raw(), libc::SIGKILL);
        let _ = nix::sys::wait::waitpid(shim, None);
        if let Ok(plan) = plan {
            let _ = Hierarchy::system().cgroup(&plan.cgroup).remove();
        }
    }
    i32::from(told.is_err() || !said.starts_with("ready"))
}

/// Forks the shim proper and returns its process and first words.
fn detach(dir: &Path) -> io::Result<(Option<Pid>, String)> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    nix::unistd::setsid()?;
    match sys::fork()? {
        Fork::Parent(shim) => {
            drop(writer);
            let mut said = String::new();
            fs::File::from(reader).read_to_string(&mut said)?;
            if said.is_empty() {
                said = "shim died while starting".into();
            }
            Ok((Some(shim), said))
        }
        Fork::Child => {
            drop(reader);
            run(dir, fs::File::from(writer))
        }
    }
}

fn read_plan(dir: &Path) -> io::Result<SandboxPlan> {
    Ok(serde_json::from_slice(&fs::read(dir.join(PLAN))?)?)
}

fn run(dir: &Path, mut announce: fs::File) -> ! {
    match prepare(dir) {
        Ok(server) => {
            let _ = write!(announce, "ready {}", std::process::id());
            drop(announce);
            server.run();
            sys::exit_now(0)
        }
        Err(error) => {
            let _ = write!(announce, "{error}");
            sys::exit_now(1)
        }
    }
}

fn prepare(dir: &Path) -> Result<server::Server, String> {
    let fail = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let plan = read_plan(dir).map_err(fail("read sandbox plan"))?;
    redirect_stdio(&dir.join(ERRORS)).map_err(fail("redirect stdio"))?;
    std::env::set_current_dir("/").map_err(fail("chdir"))?;
    sys::clear_environment();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| format!("become subreaper: {error}"))?;
    Hierarchy::system()
        .cgroup(&plan.cgroup)
        .join(0)
        .map_err(fail("enter cgroup"))?;
    enter_namespaces(&plan)?;
    let shm_namespace = make_shm(&plan, dir).map_err(fail("make shared memory"))?;
    let (_folder, path) = proto::short_socket_path(dir).map_err(fail("open sandbox folder"))?;
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(fail("bind control socket"))?;
    server::Server::new(&plan, listener, shm_namespace).map_err(fail("start event loop"))
}

fn redirect_stdio(errors: &Path) -> io::Result<()> {
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    let errors = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(errors)?;
    process::stdio(null.as_fd(), null.as_fd(), errors.as_fd())
}

fn enter_namespaces(plan: &SandboxPlan) -> Result<(), String> {
    let mut flags = CloneFlags::empty();
    if plan.new_network {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    if plan.new_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    if plan.hostname.is_some() {
        flags |= CloneFlags::CLONE_NEWUTS;
    }
    unshare(flags).map_err(|error| format!("make namespaces: {error}"))?;
    if plan.new_network {
        sys::raise_loopback().map_err(|error| format!("bring up loopback: {error}"))?;
    }
    if let Some(hostname) = &plan.hostname {
        nix::unistd::sethostname(hostname).map_err(|error| format!("set host name: {error}"))?;
    }
    for (name, value) in &plan.sysctls {
        let path = PathBuf::from("/proc/sys").join(name.replace('.', "/"));
        fs::write(&path, value).map_err(|error| format!("set sysctl {name}={value}: {error}"))?;
    }
    Ok(())
}

/// A mount namespace that holds the pod's shared memory and nothing else, so that no mount of the
/// host is kept alive by it. Containers get clones of its root.
fn make_shm(plan: &SandboxPlan, dir: &Path) -> io::Result<OwnedFd> {
    let host = fs::File::open("/proc/self/ns/mnt")?;
    if !plan.new_ipc {
        return Ok(host.into());
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    let shm = fs::File::open("/proc/self/ns/mnt")?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_PRIVATE | MsFlags::MS_REC,
        None::<&str>,
    )?;
    let options = format!("mode=1777,size={}", plan.shm_bytes);
    mount(
        Some("shm"),
        dir,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some(options.as_str()),
    )?;
    std::env::set_current_dir(dir)?;
    // The old root lands on top of the new one and is taken off again.
    nix::unistd::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    setns(&host, CloneFlags::CLONE_NEWNS)?;
    std::env::set_current_dir("/")?;
    Ok(shm.into())
}
