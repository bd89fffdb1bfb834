//! What the runtime needs of a network, and the file names of network namespaces.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use futures::future::BoxFuture;
use nix::mount::{MsFlags, mount};
use rustix::mount::UnmountFlags;

/// Connects sandboxes to the network. Implemented outside this crate.
pub trait SandboxNetwork: Send + Sync {
    /// Gives the network namespace at `netns` its interface and addresses. Must be repeatable.
    fn setup<'a>(
        &'a self,
        sandbox_id: &'a str,
        netns: &'a Path,
        meta: SandboxMeta,
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, NetworkError>>;

    /// Takes everything back that `setup` made. Must be repeatable, and must not mind that the
    /// namespace is gone.
    fn teardown<'a>(
        &'a self,
        sandbox_id: &'a str,
        netns: &'a Path,
    ) -> BoxFuture<'a, Result<(), NetworkError>>;

    /// `Ok` when sandboxes can be connected; otherwise why not.
    fn ready(&self) -> Result<(), NetworkError> {
        Ok(())
    }
}

/// Whose sandbox it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxMeta {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Unique id of the pod.
    pub uid: String,
    /// Ports of the host that lead to ports of the pod.
    pub port_mappings: Vec<PortMapping>,
}

/// A port of the host that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    /// The port in the pod.
    pub container_port: u16,
    /// The port on the host; 0 means none.
    pub host_port: u16,
    /// The address of the host; empty means all.
    pub host_ip: String,
}

/// Why a sandbox could not be connected or disconnected.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(pub String);

impl NetworkError {
    /// An error with its causes.
    pub fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// Gives the network namespace of a process a name in the file system.
pub fn name_namespace(pid: i32, path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    unname_namespace(path)?;
    std::fs::File::create(path)?;
    let source = format!("/proc/{pid}/ns/net");
    mount(
        Some(source.as_str()),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(())
}

/// Takes the name away; fine if there is none.
pub fn unname_namespace(path: &Path) -> io::Result<()> {
    while rustix::mount::unmount(path, UnmountFlags::DETACH).is_ok() {}
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
