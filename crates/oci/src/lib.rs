//! Containers: images, snapshots, sandboxes, processes, and the CRI v1 service over them.
//!
//! The crate knows no Kubernetes objects: it speaks the Container Runtime Interface and nothing
//! else.

mod cgroups;
pub mod cri;
pub mod images;
mod plan;
mod proto;
mod runtime;
mod seccomp;
mod shim;
mod sys;

pub use runtime::{
    Config, ImageServiceImpl, NetworkError, OpenError, PortMapping, Runtime, RuntimeServiceImpl,
    SandboxMeta, SandboxNetwork,
};
pub use shim::{ARGUMENT as SHIM_ARGUMENT, shim_main};

/// Removes the cgroup at `path` (as `/styr-dev`) with all below it, in every hierarchy of this
/// machine. Its processes must have ended; an absent cgroup is fine.
///
/// # Errors
/// When the kernel keeps one because a process is still in it.
pub fn remove_cgroup(path: &str) -> std::io::Result<()> {
    cgroups::Hierarchy::system().cgroup(path).remove()
}
