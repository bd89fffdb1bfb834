//! Sandboxes: making them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tonic::Status;

use super::network::{PortMapping, SandboxMeta, name_namespace};
use super::records::{self, SandboxRecord};
use super::shim_client::{self, ShimConnection};
use super::{Runtime, convert, lock, new_id};
use crate::cri::v1::{self, ContainerEventType};
use crate::plan::SandboxPlan;
use crate::shim::now_nanoseconds;

/// Bytes of a pod's shared memory.
const SHM_BYTES: u64 = 64 << 20;

/// A sandbox.
pub struct Sandbox {
    pub config: v1::PodSandboxConfig,
    pub record: Mutex<SandboxRecord>,
    pub dir: PathBuf,
    /// Its shim lives and it has not been stopped.
    pub ready: AtomicBool,
    /// One change of its life at a time.
    pub changing: tokio::sync::Mutex<()>,
}

impl Sandbox {
    pub fn new(config: v1::PodSandboxConfig, record: SandboxRecord, dir: PathBuf) -> Self {
        Self {
            config,
            record: Mutex::new(record),
            dir,
            ready: AtomicBool::new(false),
            changing: tokio::sync::Mutex::new(()),
        }
    }

    pub fn id(&self) -> String {
        lock(&self.record).id.clone()
    }

    pub fn record(&self) -> SandboxRecord {
        lock(&self.record).clone()
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub fn host_network(&self) -> bool {
        namespace_modes(&self.config).network == v1::NamespaceMode::Node as i32
    }

    pub fn state(&self) -> v1::PodSandboxState {
        if self.is_ready() {
            v1::PodSandboxState::SandboxReady
        } else {
            v1::PodSandboxState::SandboxNotready
        }
    }

    pub fn meta(&self) -> SandboxMeta {
        let metadata = self.config.metadata.clone().unwrap_or_default();
        SandboxMeta {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            port_mappings: self
                .config
                .port_mappings
                .iter()
                .filter_map(port_mapping)
                .collect(),
        }
    }
}

fn port_mapping(mapping: &v1::PortMapping) -> Option<PortMapping> {
    Some(PortMapping {
        protocol: match v1::Protocol::try_from(mapping.protocol).ok()? {
            v1::Protocol::Tcp => "TCP",
            v1::Protocol::Udp => "UDP",
            v1::Protocol::Sctp => "SCTP",
        },
        container_port: u16::try_from(mapping.container_port).ok()?,
        host_port: u16::try_from(mapping.host_port).ok()?,
        host_ip: mapping.host_ip.clone(),
    })
}

/// The namespace options, with everything of its own when none are given.
pub fn namespace_modes(config: &v1::PodSandboxConfig) -> v1::NamespaceOption {
    convert::sandbox_namespaces(config).unwrap_or(v1::NamespaceOption {
        pid: v1::NamespaceMode::Container as i32,
        ..Default::default()
    })
}

impl Runtime {
    /// Makes a sandbox: folder, shim with its namespaces, network, record.
    pub async fn run_sandbox(
        self: &Arc<Self>,
        config: v1::PodSandboxConfig,
        handler: String,
    ) -> Result<String, Status> {
        if !handler.is_empty() {
            return Err(Status::not_found(format!(
                "no runtime for {handler:?} is configured"
            )));
        }
        let metadata = config
            .metadata
            .clone()
            .ok_or_else(|| Status::invalid_argument("sandbox config must include metadata"))?;
        let users = namespace_modes(&config).userns_options;
        if users.is_some_and(|users| users.mode == v1::NamespaceMode::Pod as i32) {
            return Err(Status::unimplemented("user namespaces are not supported"));
        }
        let id = new_id();
        let parent = config
            .linux
            .as_ref()
            .map(|linux| linux.cgroup_parent.as_str());
        let parent = parent
            .filter(|parent| !parent.is_empty())
            .unwrap_or(&self.config.cgroup_parent_default);
        let record = SandboxRecord {
            id: id.clone(),
            created_at: now_nanoseconds(),
            runtime_handler: handler,
            addresses: Vec::new(),
            cgroup: format!("{}/{id}", parent.trim_end_matches('/')),
            stopped: false,
        };
        let dir = self.folders.sandbox(&id);
        let sandbox = Arc::new(Sandbox::new(config, record, dir));
        self.reserve(&sandbox, &metadata)?;
        // A caller that goes away does not leave half a sandbox behind.
        let runtime = self.clone();
        let made = tokio::spawn(async move {
            let _changing = sandbox.changing.lock().await;
            let made = runtime.make_sandbox(&sandbox).await;
            if made.is_err() {
                runtime.discard_sandbox(&sandbox).await;
            }
            made
        });
        made.await
            .map_err(|error| Status::internal(error.to_string()))??;
        Ok(id)
    }

    /// Takes a name, from here on, so that it is never made twice.
    fn reserve(
        &self,
        sandbox: &Arc<Sandbox>,
        metadata: &v1::PodSandboxMetadata,
    ) -> Result<(), Status> {
        let mut sandboxes = lock(&self.sandboxes);
        let same = |other: &&Arc<Sandbox>| other.config.metadata.as_ref() == Some(metadata);
        if let Some(other) = sandboxes.values().find(same) {
            return Err(Status::already_exists(format!(
                "name {}_{}_{}_{} is reserved for {:?}",
                metadata.name,
                metadata.namespace,
                metadata.uid,
                metadata.attempt,
                other.id()
            )));
        }
        sandboxes.insert(sandbox.id(), sandbox.clone());
        Ok(())
    }

    async fn make_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), Status> {
        let id = sandbox.id();
        let failed = |error: &dyn std::fmt::Display| {
            Status::unknown(format!("failed to create sandbox {id:?}: {error}"))
        };
        write_files(sandbox).map_err(|error| failed(&error))?;
        let plan = sandbox_plan(sandbox);
        shim_client::spawn(&self.config.shim_command, &sandbox.dir, &plan)
            .await
            .map_err(|error| failed(&error))?;
        if !sandbox.host_network() {
            let pid = ShimConnection::connect(&sandbox.dir)
                .and_then(|shim| shim.peer_pid())
                .map_err(|error| failed(&error))?;
            let netns = self.netns(&id);
            name_namespace(pid, &netns).map_err(|error| failed(&error))?;
            let addresses = self
                .config
                .network
                .setup(&id, &netns, sandbox.meta())
                .await
                .map_err(|error| {
                    Status::unknown(format!(
                        "failed to setup network for sandbox {id:?}: {error}"
                    ))
                })?;
            lock(&sandbox.record).addresses = addresses;
        }
        records::save_sandbox(&sandbox.dir, &sandbox.config, &sandbox.record())
            .map_err(|error| failed(&error))?;
        self.watch_sandbox(sandbox)
            .await
            .map_err(|error| failed(&error))?;
        self.sandbox_event(sandbox, ContainerEventType::ContainerCreatedEvent);
        self.sandbox_event(sandbox, ContainerEventType::ContainerStartedEvent);
        Ok(())
    }
}

fn sandbox_plan(sandbox: &Sandbox) -> SandboxPlan {
    let record = sandbox.record();
    let modes = namespace_modes(&sandbox.config);
    let node = v1::NamespaceMode::Node as i32;
    let host_network = modes.network == node;
    let hostname =
        Some(sandbox.config.hostname.clone()).filter(|name| !name.is_empty() && !host_network);
    SandboxPlan {
        id: record.id,
        hostname,
        new_network: !host_network,
        new_ipc: modes.ipc != node,
        shared_pid: modes.pid == v1::NamespaceMode::Pod as i32,
        sysctls: sandbox
            .config
            .linux
            .as_ref()
            .map(|linux| {
                linux
                    .sysctls
                    .clone()
                    .into_iter()
                    .collect::<BTreeMap<_, _>>()
            })
            .unwrap_or_default(),
        cgroup: record.cgroup,
        shm_bytes: SHM_BYTES,
    }
}

/// The folder and the files containers see in /etc.
fn write_files(sandbox: &Sandbox) -> io::Result<()> {
    fs::create_dir_all(&sandbox.dir)?;
    let write = |name: &str, bytes: &[u8]| write_public(&sandbox.dir.join(name), bytes);
    match &sandbox.config.dns_config {
        Some(dns) => write("resolv.conf", resolv_conf(dns).as_bytes())?,
        None => write(
            "resolv.conf",
            &fs::read("/etc/resolv.conf").unwrap_or_default(),
        )?,
    }
    let hostname = if sandbox.config.hostname.is_empty() || sandbox.host_network() {
        nix::unistd::gethostname()?.to_string_lossy().into_owned()
    } else {
        sandbox.config.hostname.clone()
    };
    write("hostname", format!("{hostname}\n").as_bytes())?;
    write("hosts", &fs::read("/etc/hosts").unwrap_or_default())
}

fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
}

fn resolv_conf(dns: &v1::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_the_usual_form() {
        let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let dns = v1::DnsConfig {
            servers: strings(&["10.43.0.10"]),
            searches: strings(&["a.svc.cluster.local", "cluster.local"]),
            options: strings(&["ndots:5"]),
        };
        let expected =
            "search a.svc.cluster.local cluster.local\nnameserver 10.43.0.10\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns), expected);
        assert_eq!(resolv_conf(&v1::DnsConfig::default()), "");
    }
}
