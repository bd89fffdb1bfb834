//! What the runtime asks of a shim: plain data that crosses the control socket as JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The namespaces and cgroup that all containers of a pod share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxPlan {
    pub id: String,
    pub hostname: Option<String>,
    pub new_network: bool,
    pub new_ipc: bool,
    /// One process-id namespace for the whole pod, with a first process that reaps.
    pub shared_pid: bool,
    pub sysctls: BTreeMap<String, String>,
    /// The cgroup the shim itself lives in.
    pub cgroup: String,
    /// Bytes of the pod's /dev/shm.
    pub shm_bytes: u64,
}

/// One container, complete.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerPlan {
    pub id: String,
    /// The container's own folder: bundle, mount point, exit record.
    pub dir: PathBuf,
    /// A folder over which mounts are made while the container is built, in a mount namespace
    /// that nobody else sees. It is never removed: taking away a folder that is a mount point
    /// anywhere, even in a namespace that is just dying, costs the kernel tens of milliseconds.
    pub stage: PathBuf,
    pub rootfs: RootfsPlan,
    pub process: ProcessPlan,
    pub stdin: bool,
    pub stdin_once: bool,
    pub log_path: Option<PathBuf>,
    pub mounts: Vec<MountPlan>,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub devices: Vec<DevicePlan>,
    pub privileged: bool,
    pub pid: PidPlan,
    pub host_ipc: bool,
    pub cgroup: String,
    pub resources: Resources,
}

/// The overlay a container's root is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RootfsPlan {
    /// Topmost first.
    pub lowerdirs: Vec<PathBuf>,
    pub upperdir: PathBuf,
    pub workdir: PathBuf,
    pub readonly: bool,
}

/// A process to run in a container, the first or a later one.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProcessPlan {
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub cwd: String,
    pub user: UserPlan,
    /// Names as `CAP_CHOWN`.
    pub capabilities: Vec<String>,
    pub ambient: Vec<String>,
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
    pub rlimits: Vec<Rlimit>,
    pub oom_score_adj: Option<i32>,
    pub terminal: bool,
}

/// Who a process runs as. Names are looked up in the container's own files.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct UserPlan {
    /// `""`, `user`, `uid`, `user:group`, `uid:gid`: as images write it.
    pub user: String,
    pub gid: Option<u32>,
    pub groups: Vec<u32>,
    /// Whether groups of the image's /etc/group that list the user are added.
    pub merge_image_groups: bool,
}

/// Which system calls are filtered.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub enum Seccomp {
    #[default]
    Unconfined,
    RuntimeDefault,
    /// A profile in the JSON form that container runtimes share.
    Localhost(PathBuf),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rlimit {
    pub resource: RlimitResource,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum RlimitResource {
    OpenFiles,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountPlan {
    pub source: PathBuf,
    pub destination: String,
    pub readonly: bool,
    pub recursive_readonly: bool,
    pub propagation: Propagation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    Private,
    HostToContainer,
    Bidirectional,
}

/// A device node of the host, made available in the container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DevicePlan {
    pub path: String,
    pub block: bool,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Any of `r`, `w`, `m`.
    pub permissions: String,
}

/// The process-id namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidPlan {
    Own,
    /// The pod's.
    Pod,
    /// That of another container of the pod.
    Target(String),
    Host,
}

/// Limits; zero or empty means none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub cpu_shares: u64,
    pub cpu_quota: i64,
    pub cpu_period: u64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub memory_bytes: i64,
    pub memory_swap_bytes: i64,
    pub hugepages: BTreeMap<String, u64>,
    pub unified: BTreeMap<String, String>,
}

/// How a container ended. Written to disk by the shim before anyone is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit status, or 128 plus the signal.
    pub code: i32,
    /// Nanoseconds since 1970.
    pub finished_at: i64,
    pub oom_killed: bool,
    /// Set when the container never ran: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_error: Option<String>,
}

/// That a container runs. Written to disk by the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    pub pid: i32,
    /// Nanoseconds since 1970.
    pub started_at: i64,
    /// Who its first process was started as.
    #[serde(default)]
    pub user: Option<User>,
}

/// A user as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}
