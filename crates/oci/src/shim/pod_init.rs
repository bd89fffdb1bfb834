//! The first process of a pod's shared process-id namespace: it reaps, and goes with the shim.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::report::{self, Report};
use crate::sys::{self, Fork};

/// Starts it; returns its number in the shim's namespace.
///
/// A helper enters the new namespace for its children, so that later children of the shim do not
/// land there.
pub fn spawn() -> io::Result<i32> {
    let (ours, theirs) = report::channel()?;
    let (alive, held) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    match sys::fork()? {
        Fork::Parent(helper) => {
            drop(theirs);
            let said = Report::receive(&ours)?;
            let _ = waitpid(helper, None);
            // Held until the shim is gone, however it goes.
            std::mem::forget(held);
            match said {
                Some(Report::Pid(pid)) => Ok(pid),
                _ => Err(io::Error::other("no first process for the pod")),
            }
        }
        Fork::Child => {
            drop((ours, held));
            help(theirs, alive)
        }
    }
}

fn help(report: OwnedFd, alive: OwnedFd) -> ! {
    if unshare(CloneFlags::CLONE_NEWPID).is_ok() {
        match sys::fork() {
            Ok(Fork::Parent(init)) => {
                let _ = Report::Pid(init.as_raw()).send(&report);
                sys::exit_now(0)
            }
            Ok(Fork::Child) => {
                // Nothing of the shim's may stay open in a process that lives as long: whoever
                // waits for the other end would wait for ever.
                if nix::unistd::dup2_stdin(&alive).is_ok() {
                    sys::close_from(3);
                    let _ = reap();
                }
            }
            Err(_) => {}
        }
    }
    sys::exit_now(1)
}

/// Reaps until standard input ends.
fn reap() -> io::Result<()> {
    let alive = io::stdin();
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    loop {
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(alive.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[1].revents().is_some_and(|events| !events.is_empty()) {
            return Ok(());
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
    }
}
