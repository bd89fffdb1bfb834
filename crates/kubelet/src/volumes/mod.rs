//! Volumes of a pod. Each kind is one file and one line in [`ALL`]; setting one up again is always
//! allowed and brings its content up to date.
//!
//! A pod's volumes live in `pods/<uid>/volumes/kubernetes.io~<kind>/<name>`; tearing down unmounts
//! all that `/proc/self/mountinfo` shows below `pods/<uid>`, so nothing needs to be remembered.

mod atomic;
mod config_map;
mod content;
mod downward_api;
mod empty_dir;
mod host_path;
pub mod mounts;
mod ownership;
mod persistent_volume_claim;
mod projected;
mod secret;
pub mod sub_path;
pub mod tokens;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Volume};

use crate::downward::Place;
use crate::pod;
use crate::refs::{Ref, Refs};

/// A volume that cannot be set up, in upstream's words.
pub type Result<T> = std::result::Result<T, String>;

/// What volumes are made with.
pub struct Host {
    /// The agent's folder.
    pub root: PathBuf,
    /// Access to the API.
    pub client: kube::Client,
    /// ConfigMaps in use on this node.
    pub config_maps: Refs<ConfigMap>,
    /// Secrets in use on this node.
    pub secrets: Refs<Secret>,
    /// Service account tokens in use on this node.
    pub tokens: tokens::Tokens,
}

impl Host {
    /// The folder of one pod.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }
}

/// One volume to set up.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    /// Means.
    pub host: &'a Host,
    /// The pod.
    pub pod: &'a Pod,
    /// The volume of its spec.
    pub volume: &'a Volume,
    /// What the downward API tells.
    pub place: &'a Place,
}

impl Setup<'_> {
    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn fs_group(&self) -> Option<i64> {
        pod::spec(self.pod).security_context.as_ref()?.fs_group
    }

    /// Where this volume lives, for a kind that upstream calls `kind`.
    fn dir(&self, kind: &str) -> PathBuf {
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        let kind = format!("kubernetes.io~{kind}");
        self.host
            .pod_dir(uid)
            .join("volumes")
            .join(kind)
            .join(&self.volume.name)
    }
}

/// A volume ready to be mounted into containers.
#[derive(Clone, Default)]
pub struct Ready {
    /// Folder or file on the host.
    pub path: PathBuf,
    /// Containers may only read it.
    pub read_only: bool,
    /// What its content depends on.
    pub depends: Depends,
}

/// What the content of volumes depends on: when one changes, set them up again.
#[derive(Clone, Default)]
pub struct Depends {
    /// ConfigMaps.
    pub config_maps: Vec<Ref<ConfigMap>>,
    /// Secrets.
    pub secrets: Vec<Ref<Secret>>,
    /// A token to be renewed.
    pub refresh_at: Option<Timestamp>,
    /// Labels and annotations of the pod.
    pub metadata: bool,
}

impl Depends {
    fn merge(&mut self, other: Depends) {
        self.config_maps.extend(other.config_maps);
        self.secrets.extend(other.secrets);
        self.metadata |= other.metadata;
        self.refresh_at = [self.refresh_at, other.refresh_at]
            .into_iter()
            .flatten()
            .min();
    }

    /// Waits until something changes; for ever if nothing can.
    pub async fn changed(&self) {
        let mut waits: Vec<BoxFuture<'_, ()>> = Vec::new();
        for reference in &self.config_maps {
            waits.push(Box::pin(reference.changed()));
        }
        for reference in &self.secrets {
            waits.push(Box::pin(reference.changed()));
        }
        if let Some(at) = self.refresh_at {
            waits.push(Box::pin(crate::clock::sleep_until(at)));
        }
        if waits.is_empty() {
            std::future::pending::<()>().await;
        }
        futures::future::select_all(waits).await;
    }
}

/// One kind of volume.
pub trait Kind: Sync {
    /// Whether this is the kind of `volume`.
    fn takes(&self, volume: &Volume) -> bool;
    /// Makes the volume, or brings its content up to date.
    fn set_up<'a>(&'a self, setup: Setup<'a>) -> BoxFuture<'a, Result<Ready>>;
}

/// All kinds.
pub static ALL: &[&dyn Kind] = &[
    &config_map::ConfigMapKind,
    &downward_api::DownwardApi,
    &empty_dir::EmptyDir,
    &host_path::HostPath,
    &persistent_volume_claim::Claim,
    &projected::Projected,
    &secret::SecretKind,
];

/// All volumes of a pod, by name.
#[derive(Clone, Default)]
pub struct PodVolumes {
    /// By volume name.
    pub by_name: BTreeMap<String, Ready>,
    /// What they all depend on.
    pub depends: Depends,
}

/// Why a pod's volumes are not ready.
#[derive(Clone, Default)]
pub struct Failure {
    /// Name of the volume.
    pub volume: String,
    /// Text in upstream's words.
    pub message: String,
    /// What to wait for.
    pub depends: Depends,
}

/// Sets up all volumes of `pod`, or brings them up to date.
///
/// # Errors
/// At the first that cannot be set up.
pub async fn set_up_all(
    host: &Host,
    pod: &Pod,
    place: &Place,
) -> std::result::Result<PodVolumes, Box<Failure>> {
    let mut out = PodVolumes::default();
    for volume in pod::spec(pod).volumes.iter().flatten() {
        let setup = Setup {
            host,
            pod,
            volume,
            place,
        };
        let ready = match ALL.iter().find(|kind| kind.takes(volume)) {
            Some(kind) => kind.set_up(setup).await,
            None => Err("no volume plugin matched".to_owned()),
        };
        match ready {
            Ok(ready) => {
                out.depends.merge(ready.depends.clone());
                out.by_name.insert(volume.name.clone(), ready);
            }
            Err(message) => {
                out.depends.merge(awaited(host, pod, volume).await);
                let failure = Failure {
                    volume: volume.name.clone(),
                    message,
                    depends: out.depends,
                };
                return Err(Box::new(failure));
            }
        }
    }
    Ok(out)
}

/// What a volume that cannot be set up may be waiting for.
async fn awaited(host: &Host, pod: &Pod, volume: &Volume) -> Depends {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut maps: Vec<&str> = volume.config_map.iter().map(|c| c.name.as_str()).collect();
    let mut secrets: Vec<&str> = volume
        .secret
        .iter()
        .filter_map(|s| s.secret_name.as_deref())
        .collect();
    for source in volume
        .projected
        .iter()
        .flat_map(|p| p.sources.iter().flatten())
    {
        maps.extend(source.config_map.iter().map(|c| c.name.as_str()));
        secrets.extend(source.secret.iter().map(|s| s.name.as_str()));
    }
    let mut out = Depends::default();
    for name in maps {
        let mut held = host.config_maps.hold(namespace, name);
        held.get().await;
        out.config_maps.push(held);
    }
    for name in secrets {
        let mut held = host.secrets.hold(namespace, name);
        held.get().await;
        out.secrets.push(held);
    }
    out
}

/// Unmounts a pod's volumes and removes their data.
///
/// # Errors
/// When something stays mounted or cannot be removed.
pub fn tear_down(pod_dir: &Path) -> std::io::Result<()> {
    mounts::unmount_below(pod_dir)?;
    for folder in ["volumes", "volume-subpaths"] {
        remove_tree(&pod_dir.join(folder))?;
    }
    Ok(())
}

/// Unmounts and removes everything of a pod.
///
/// # Errors
/// When something stays mounted or cannot be removed.
pub fn remove_pod_dir(pod_dir: &Path) -> std::io::Result<()> {
    mounts::unmount_below(pod_dir)?;
    remove_tree(pod_dir)
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
