//! The embedded runtime: sandboxes and containers as CRI v1 knows them, kept on disk, with a shim
//! process per sandbox that outlives this process.
//!
//! ```text
//!   sandbox:    (none) ── run ──> ready ── stop, or the shim died ──> not ready ── remove ──> (none)
//!   container:  (none) ── create ──> created ── start ──> running ──> exited ── remove ──> (none)
//!                                       └── start failed ─────────────┘
//! ```
//!
//! Invariants: what a caller was told exists on disk; memory is a cache of the disk and of what
//! the shims say, rebuilt by [`Runtime::open`]; a half-made thing has no record and is cleaned up.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use crate::cri::v1;
use crate::images::{ImageError, ImageStore, PullOptions};

mod container;
mod convert;
mod events;
mod exec;
mod image_service;
mod list;
mod network;
mod open;
mod port_forward;
mod records;
mod sandbox;
mod service;
mod shim_client;
mod stats;
mod stop;
mod streaming;

pub use image_service::ImageServiceImpl;
pub use network::{NetworkError, PortMapping, SandboxMeta, SandboxNetwork};
pub use service::RuntimeServiceImpl;

use container::Container;
use records::Folders;
use sandbox::Sandbox;

/// Events kept for a reader that lags; one that lags further is cut off and starts anew.
const EVENTS: usize = 1024;

/// How to run the runtime.
pub struct Config {
    /// Images, snapshots, sandboxes and containers live here.
    pub root: PathBuf,
    /// Names of network namespaces live here, under `netns`.
    pub run: PathBuf,
    /// Parent cgroup of sandboxes that name none, e.g. `/styr-default`.
    pub cgroup_parent_default: String,
    /// Connects sandboxes.
    pub network: Arc<dyn SandboxNetwork>,
    /// How images are pulled.
    pub pull: PullOptions,
    /// Program and first arguments that start a shim; by default this program with
    /// [`crate::SHIM_ARGUMENT`], whose `main` must then call [`crate::shim_main`].
    pub shim_command: Vec<PathBuf>,
}

impl Config {
    /// A configuration with defaults for everything optional.
    pub fn new(
        root: impl Into<PathBuf>,
        run: impl Into<PathBuf>,
        cgroup_parent_default: impl Into<String>,
        network: Arc<dyn SandboxNetwork>,
    ) -> Self {
        Self {
            root: root.into(),
            run: run.into(),
            cgroup_parent_default: cgroup_parent_default.into(),
            network,
            pull: PullOptions::default(),
            shim_command: vec!["/proc/self/exe".into(), crate::SHIM_ARGUMENT.into()],
        }
    }
}

/// Why the runtime could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk.
    #[error("open {path}: {error}")]
    Io {
        /// Which folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The image store.
    #[error(transparent)]
    Images(#[from] ImageError),
}

/// The embedded runtime.
pub struct Runtime {
    config: Config,
    folders: Folders,
    images: ImageStore,
    sandboxes: Mutex<HashMap<String, Arc<Sandbox>>>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    events: broadcast::Sender<v1::ContainerEventResponse>,
    cpu_samples: stats::Samples,
    streaming: streaming::Streaming,
}

/// A map is consistent between any two statements, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Runtime {
    /// The store of images, shared with whoever else opens the same folder.
    pub fn images(&self) -> &ImageStore {
        &self.images
    }

    /// The CRI runtime service.
    pub fn runtime_service(
        self: &Arc<Self>,
    ) -> v1::runtime_service_server::RuntimeServiceServer<RuntimeServiceImpl> {
        v1::runtime_service_server::RuntimeServiceServer::new(RuntimeServiceImpl(self.clone()))
    }

    /// The CRI image service.
    pub fn image_service(
        self: &Arc<Self>,
    ) -> v1::image_service_server::ImageServiceServer<ImageServiceImpl> {
        v1::image_service_server::ImageServiceServer::new(ImageServiceImpl(self.clone()))
    }

    fn netns(&self, sandbox: &str) -> PathBuf {
        self.config.run.join("netns").join(sandbox)
    }

    /// A sandbox by its id or an unambiguous beginning of it.
    fn find_sandbox(&self, id: &str) -> Option<Arc<Sandbox>> {
        find(&lock(&self.sandboxes), id)
    }

    fn find_container(&self, id: &str) -> Option<Arc<Container>> {
        find(&lock(&self.containers), id)
    }

    fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let containers = lock(&self.containers);
        let of_sandbox = containers
            .values()
            .filter(|container| container.record.sandbox == sandbox);
        of_sandbox.cloned().collect()
    }
}

fn find<T>(map: &HashMap<String, Arc<T>>, id: &str) -> Option<Arc<T>> {
    if let Some(found) = map.get(id) {
        return Some(found.clone());
    }
    let mut matches = map
        .iter()
        .filter(|(key, _)| !id.is_empty() && key.starts_with(id));
    match (matches.next(), matches.next()) {
        (Some((_, found)), None) => Some(found.clone()),
        _ => None,
    }
}

/// An id no other thing has: 64 hexadecimal digits.
fn new_id() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn addresses_text(addresses: &[IpAddr]) -> impl Iterator<Item = String> + '_ {
    addresses.iter().map(ToString::to_string)
}
