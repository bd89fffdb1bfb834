//! What is kept on disk of sandboxes and containers.
//!
//! ```text
//! sandboxes/<id>/   config.pb  record.json  plan.json  shim.sock  shim.log  resolv.conf hostname hosts
//! containers/<id>/  config.pb  record.json  started.json  exit.json  (and what creating it needs)
//! ```
//! A folder without `record.json` is an interrupted creation: it is cleaned up when the runtime
//! opens. `record.json` is written whole (by rename), after everything it stands for exists.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use prost::Message;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cri::v1;
use crate::plan::{Exit, Started};

const CONFIG: &str = "config.pb";
const RECORD: &str = "record.json";
const STARTED: &str = "started.json";
const EXIT: &str = "exit.json";

/// What the runtime knows of a sandbox beyond its configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: String,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    pub runtime_handler: String,
    pub addresses: Vec<IpAddr>,
    pub cgroup: String,
    /// Its network has been taken down; it will not be ready again.
    pub stopped: bool,
}

/// What the runtime knows of a container beyond its configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: String,
    pub sandbox: String,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// The id of the image.
    pub image_id: String,
    pub image_ref: String,
    /// The image's complete name, if it has one: the one asked for, of several.
    #[serde(default)]
    pub image_name: String,
    pub cgroup: String,
    /// A signal number.
    pub stop_signal: i32,
}

/// The folders under the runtime's root.
#[derive(Debug, Clone)]
pub struct Folders {
    root: PathBuf,
}

impl Folders {
    pub fn create(root: &Path) -> io::Result<Self> {
        let folders = Self {
            root: root.to_path_buf(),
        };
        for folder in [folders.sandboxes(), folders.containers(), folders.stage()] {
            fs::create_dir_all(&folder)?;
            fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        }
        Ok(folders)
    }

    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// See `ContainerPlan::stage`.
    pub fn stage(&self) -> PathBuf {
        self.root.join("stage")
    }

    pub fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }

    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }
}

/// Names of the folders below one.
pub fn ids(folder: &Path) -> io::Result<Vec<String>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(folder)? {
        if let Ok(name) = entry?.file_name().into_string() {
            ids.push(name);
        }
    }
    Ok(ids)
}

/// Writes a file so that it is either there whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn save(dir: &Path, config: &[u8], record: &impl Serialize) -> io::Result<()> {
    write_whole(&dir.join(CONFIG), config)?;
    write_whole(&dir.join(RECORD), &serde_json::to_vec(record)?)
}

pub fn save_sandbox(
    dir: &Path,
    config: &v1::PodSandboxConfig,
    record: &SandboxRecord,
) -> io::Result<()> {
    save(dir, &config.encode_to_vec(), record)
}

/// Updates the record alone.
pub fn save_sandbox_record(dir: &Path, record: &SandboxRecord) -> io::Result<()> {
    write_whole(&dir.join(RECORD), &serde_json::to_vec(record)?)
}

pub fn save_container(
    dir: &Path,
    config: &v1::ContainerConfig,
    record: &ContainerRecord,
) -> io::Result<()> {
    save(dir, &config.encode_to_vec(), record)
}

/// A finished creation, or `None`.
pub fn load_sandbox(dir: &Path) -> Option<(v1::PodSandboxConfig, SandboxRecord)> {
    let record = read_json(&dir.join(RECORD))?;
    let config = v1::PodSandboxConfig::decode(fs::read(dir.join(CONFIG)).ok()?.as_slice()).ok()?;
    Some((config, record))
}

/// A finished creation, or `None`.
pub fn load_container(dir: &Path) -> Option<(v1::ContainerConfig, ContainerRecord)> {
    let record = read_json(&dir.join(RECORD))?;
    let config = v1::ContainerConfig::decode(fs::read(dir.join(CONFIG)).ok()?.as_slice()).ok()?;
    Some((config, record))
}

pub fn started(dir: &Path) -> Option<Started> {
    read_json(&dir.join(STARTED))
}

pub fn exit(dir: &Path) -> Option<Exit> {
    read_json(&dir.join(EXIT))
}

pub fn save_exit(dir: &Path, exit: &Exit) -> io::Result<()> {
    write_whole(&dir.join(EXIT), &serde_json::to_vec(exit)?)
}
