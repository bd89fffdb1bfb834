//! One more process in a running container: a helper enters the container's cgroup and
//! process-id namespace and forks; the fork enters the rest and becomes the process.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns};

use super::process::{self, Launch};
use super::report::Report;
use crate::cgroups::Hierarchy;
use crate::plan::ProcessPlan;
use crate::sys::{self, Fork};

/// What the helper inherits from the shim.
pub struct Inputs<'a> {
    /// The container's first process.
    pub pid: i32,
    pub cgroup: &'a str,
    pub process: &'a ProcessPlan,
    pub report: OwnedFd,
    /// Standard input, output and error; none with a terminal.
    pub stdio: Option<[OwnedFd; 3]>,
    pub filter: Option<Vec<sys::BpfInstruction>>,
}

/// Runs in the helper: forks the process, reports, exits.
pub fn run(inputs: Inputs) -> ! {
    let code = match enter(&inputs) {
        Ok(()) => 0,
        Err(error) => {
            let _ = Report::Error(error).send(&inputs.report);
            1
        }
    };
    sys::exit_now(code)
}

fn enter(inputs: &Inputs) -> Result<(), String> {
    let open = |name: &str| {
        let path = format!("/proc/{}/ns/{name}", inputs.pid);
        File::open(&path).map_err(|error| format!("container is not running: {path}: {error}"))
    };
    let (pid, mnt, cgroup) = (open("pid")?, open("mnt")?, open("cgroup")?);
    Hierarchy::system()
        .cgroup(inputs.cgroup)
        .enter(0)
        .map_err(|error| format!("enter cgroup: {error}"))?;
    setns(&pid, CloneFlags::CLONE_NEWPID)
        .map_err(|error| format!("enter pid namespace: {error}"))?;
    setns(&cgroup, CloneFlags::CLONE_NEWCGROUP)
        .map_err(|error| format!("enter cgroup namespace: {error}"))?;
    match sys::fork().map_err(|error| format!("fork: {error}"))? {
        Fork::Parent(child) => {
            let _ = Report::Pid(child.as_raw()).send(&inputs.report);
            Ok(())
        }
        Fork::Child => become_process(inputs, &mnt),
    }
}

fn become_process(inputs: &Inputs, mnt: &File) -> ! {
    let prepared = setns(mnt, CloneFlags::CLONE_NEWNS)
        .map_err(|error| format!("enter mount namespace: {error}"))
        .and_then(|()| {
            let _ = nix::unistd::setsid();
            let Some([stdin, stdout, stderr]) = &inputs.stdio else {
                return Ok(());
            };
            process::stdio(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())
                .map_err(|error| format!("stdio: {error}"))
        });
    if let Err(error) = prepared {
        let _ = Report::Error(error).send(&inputs.report);
        sys::exit_now(126);
    }
    process::run(&Launch {
        process: inputs.process,
        report: inputs.report.as_fd(),
        filter: inputs.filter.clone(),
        first: false,
    })
}
