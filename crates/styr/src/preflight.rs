//! Looks for what a cluster needs of the machine before anything is made, so that a lack is one
//! clear message with its fix.

use std::fs;
use std::net::{SocketAddrV4, TcpListener};
use std::path::Path;

use crate::config::Cluster;

/// Least free space below the data folder to start, in bytes.
const MIN_FREE_BYTES: u64 = 256 << 20;

/// What the machine lacks.
#[derive(Debug, thiserror::Error)]
pub enum Lack {
    /// Not root.
    #[error(
        "styr makes namespaces, mounts and network devices, which needs root; run it again with sudo"
    )]
    Root,
    /// A kernel feature is not there.
    #[error("this kernel lacks {what}, which containers need; {fix}")]
    Kernel {
        /// The feature.
        what: &'static str,
        /// How to get it.
        fix: &'static str,
    },
    /// The port is taken.
    #[error(
        "{address} is in use by another program; stop it, or choose another port: styr up{flags} --api-port PORT"
    )]
    Port {
        /// The address.
        address: SocketAddrV4,
        /// Flags of the cluster.
        flags: String,
    },
    /// The disk is full.
    #[error(
        "{path} has {free} MiB free, and a cluster needs at least {needed} MiB; make room, or choose another folder with --data-dir"
    )]
    Space {
        /// The folder.
        path: String,
        /// Free MiB.
        free: u64,
        /// Needed MiB.
        needed: u64,
    },
}

/// Whether this process is root.
///
/// # Errors
/// [`Lack::Root`].
pub fn root() -> Result<(), Lack> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(Lack::Root)
    }
}

/// Whether the kernel can run containers.
///
/// # Errors
/// The first feature that is not there.
pub fn kernel() -> Result<(), Lack> {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let module = |name: &str| {
        filesystems
            .lines()
            .any(|l| l.split_whitespace().last() == Some(name))
            || modules_contain(name)
    };
    let checks = [
        (
            module("overlay"),
            "overlayfs",
            "load it with `modprobe overlay`",
        ),
        (
            Path::new("/proc/self/ns/net").exists() && Path::new("/proc/self/ns/pid").exists(),
            "network or PID namespaces",
            "boot a kernel built with CONFIG_NAMESPACES",
        ),
        (
            Path::new("/sys/fs/cgroup").exists()
                && fs::read_dir("/sys/fs/cgroup").is_ok_and(|d| d.count() > 0),
            "a mounted cgroup hierarchy at /sys/fs/cgroup",
            "mount it with `mount -t cgroup2 none /sys/fs/cgroup`",
        ),
    ];
    for (present, what, fix) in checks {
        if !present {
            return Err(Lack::Kernel { what, fix });
        }
    }
    Ok(())
}

fn modules_contain(name: &str) -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let dependencies = format!("/lib/modules/{release}/modules.dep");
    fs::read_to_string(dependencies).is_ok_and(|text| text.contains(&format!("/{name}.ko")))
}

/// Whether the API server's port is free.
///
/// # Errors
/// [`Lack::Port`].
pub fn port(cluster: &Cluster) -> Result<(), Lack> {
    let address = cluster.api_address();
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(_) => Err(Lack::Port {
            address,
            flags: cluster.flags(),
        }),
    }
}

/// Whether there is room to start.
///
/// # Errors
/// [`Lack::Space`].
pub fn space(dir: &Path) -> Result<(), Lack> {
    let Ok(stat) = rustix::fs::statvfs(dir) else {
        return Ok(());
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= MIN_FREE_BYTES {
        return Ok(());
    }
    Err(Lack::Space {
        path: dir.display().to_string(),
        free: free >> 20,
        needed: MIN_FREE_BYTES >> 20,
    })
}
