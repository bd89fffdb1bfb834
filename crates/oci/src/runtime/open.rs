//! Opening the runtime: finding what earlier processes left, finished or not.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::{Arc, Mutex};

use tokio::sync::broadcast;

use super::container::Container;
use super::network::unname_namespace;
use super::records::{self, Folders, SandboxRecord};
use super::sandbox::Sandbox;
use super::stop::remove_folder;
use super::{Config, EVENTS, OpenError, Runtime, lock, stats, streaming};
use crate::cgroups::Hierarchy;
use crate::cri::v1;
use crate::images::ImageStore;

impl Runtime {
    /// Opens the runtime: finds its sandboxes, containers and living shims, and clears away what
    /// was never finished. Needs a tokio runtime.
    pub async fn open(config: Config) -> Result<Arc<Self>, OpenError> {
        let failed = |error| OpenError::Io {
            path: config.root.clone(),
            error,
        };
        let folders = Folders::create(&config.root).map_err(failed)?;
        let netns = config.run.join("netns");
        fs::create_dir_all(&netns).map_err(failed)?;
        let sandbox_ids = records::ids(&folders.sandboxes()).map_err(failed)?;
        let container_ids = records::ids(&folders.containers()).map_err(failed)?;
        let images = ImageStore::open(&config.root)?;
        let (streaming, listener) = streaming::Streaming::bind().await.map_err(failed)?;
        let runtime = Arc::new(Self {
            config,
            folders,
            images,
            sandboxes: Mutex::new(HashMap::new()),
            containers: Mutex::new(HashMap::new()),
            events: broadcast::Sender::new(EVENTS),
            cpu_samples: stats::Samples::default(),
            streaming,
        });
        tokio::spawn(streaming::serve(listener, Arc::downgrade(&runtime)));
        let mut unfinished = Vec::new();
        for id in sandbox_ids {
            let dir = runtime.folders.sandbox(&id);
            match records::load_sandbox(&dir) {
                Some((config, record)) => {
                    let sandbox = Arc::new(Sandbox::new(config, record, dir));
                    lock(&runtime.sandboxes).insert(id, sandbox);
                }
                None => unfinished.push(Arc::new(unfinished_sandbox(&id, dir))),
            }
        }
        runtime.load_containers(container_ids);
        runtime.find_shims().await;
        for sandbox in unfinished {
            runtime.discard_sandbox(&sandbox).await;
        }
        runtime.sweep().await;
        Ok(runtime)
    }

    fn load_containers(&self, ids: Vec<String>) {
        for id in ids {
            let dir = self.folders.container(&id);
            let loaded = records::load_container(&dir).and_then(|(config, record)| {
                Some((config, self.find_sandbox(&record.sandbox)?, record))
            });
            match loaded {
                Some((config, sandbox, record)) => {
                    let container = Container::new(config, record, dir, &sandbox.config);
                    lock(&self.containers).insert(id, Arc::new(container));
                }
                None => self.discard_container(&id),
            }
        }
    }

    /// Takes back what an interrupted creation or removal of a container left.
    fn discard_container(&self, id: &str) {
        let dir = self.folders.container(id);
        if let Some((_, record)) = records::load_container(&dir) {
            let cgroup = Hierarchy::system().cgroup(&record.cgroup);
            cgroup.kill_all();
            let _ = cgroup.remove();
        }
        if let Err(error) = self.images.remove_snapshot(id) {
            tracing::warn!(container = id, %error, "remove the writable layer of half a container");
        }
        if let Err(error) = remove_folder(&dir) {
            tracing::warn!(container = id, %error, "remove the folder of half a container");
        }
    }

    async fn find_shims(self: &Arc<Self>) {
        let sandboxes: Vec<Arc<Sandbox>> = lock(&self.sandboxes).values().cloned().collect();
        for sandbox in sandboxes {
            if !sandbox.record().stopped && self.watch_sandbox(&sandbox).await.is_ok() {
                continue;
            }
            self.shim_gone(&sandbox).await;
        }
    }

    /// Removes writable layers and names of network namespaces that belong to nobody.
    async fn sweep(&self) {
        let known: HashSet<String> = lock(&self.containers).keys().cloned().collect();
        for id in self.images.snapshot_ids().unwrap_or_default() {
            if !known.contains(&id) {
                let _ = self.images.remove_snapshot(&id);
            }
        }
        let netns = self.config.run.join("netns");
        for id in records::ids(&netns).unwrap_or_default() {
            if !self.knows_sandbox(&id) {
                let path = netns.join(&id);
                if let Err(error) = self.config.network.teardown(&id, &path).await {
                    tracing::warn!(sandbox = id, %error, "take down a network that nobody uses");
                }
                let _ = unname_namespace(&path);
            }
        }
    }
}

/// Stands for a folder without a record, so that it can be discarded like any other.
fn unfinished_sandbox(id: &str, dir: std::path::PathBuf) -> Sandbox {
    let plan = fs::read(dir.join(crate::shim::PLAN))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<crate::plan::SandboxPlan>(&bytes).ok());
    let record = SandboxRecord {
        id: id.to_owned(),
        created_at: 0,
        runtime_handler: String::new(),
        addresses: Vec::new(),
        cgroup: plan.map(|plan| plan.cgroup).unwrap_or_default(),
        stopped: false,
    };
    Sandbox::new(v1::PodSandboxConfig::default(), record, dir)
}
