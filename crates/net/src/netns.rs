//! Network namespaces kept alive by a bind mount on a file, so that they outlive every process in them.
//!
//! Entering a namespace changes the calling thread for good, therefore it is only ever done on threads made for it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{Error, Result};

/// The calling thread's own namespace, as a file that can be mounted or opened.
const OWN: &str = "/proc/thread-self/ns/net";

/// Runs `work` on a thread of its own, and hands its result back.
fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work);
        let thread = thread.map_err(|e| Error::io("start a thread for a network namespace", e))?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Makes a new network namespace and mounts it on the file `path`, whose folder must exist. Whatever a crashed
/// attempt left at `path` is replaced. In the new namespace `lo` is down and nothing else exists.
pub fn create(path: &Path) -> Result<()> {
    remove(path)?;
    File::create(path).map_err(|e| Error::io(format!("create {}", path.display()), e))?;
    let mounted = on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Error::io("make a network namespace", e))?;
        mount(
            Some(OWN),
            path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .map_err(|e| {
            Error::io(
                format!("mount a network namespace on {}", path.display()),
                e,
            )
        })
    });
    if mounted.is_err() {
        let _ = fs::remove_file(path);
    }
    mounted
}

/// Unmounts and removes the namespace at `path`; its interfaces vanish once no process is left in it. Does nothing
/// when there is none.
pub fn remove(path: &Path) -> Result<()> {
    // More than one mount may lie on the file after crashes at unlucky moments.
    while is_mounted(path) {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
            Err(e) => return Err(Error::io(format!("unmount {}", path.display()), e)),
        }
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

/// Whether a namespace is mounted at `path`.
pub fn is_mounted(path: &Path) -> bool {
    use nix::sys::statfs::{FsType, statfs};
    const NSFS: FsType = FsType(0x6e73_6673);
    statfs(path).is_ok_and(|s| s.filesystem_type() == NSFS)
}

/// Runs `work` inside the namespace at `path` (a mount of [`create`], or `/proc/PID/ns/net`), on a thread of its own.
/// Sockets that `work` opens stay in that namespace when they are handed back.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace =
        File::open(path).map_err(|e| Error::io(format!("open {}", path.display()), e))?;
    on_own_thread(|| {
        setns(&namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::io(format!("enter the network namespace {}", path.display()), e))?;
        work()
    })
}
