//! Static pods: manifests in a folder, run without the API server, and shown in it by mirror pods.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::PostParams;
use sha2::{Digest, Sha256};

use crate::agent::SharedAgent;
use crate::fsnotify::{FOLDER, FsNotify, Subscription};
use crate::pod::{self, PodRef};
use crate::worker::ApiObject;

/// Largest manifest read, in bytes.
const MAX_MANIFEST: u64 = 1024 * 1024;
/// Time that a change of the folder gets to settle (editors write more than once).
const SETTLE: std::time::Duration = std::time::Duration::from_millis(200);

/// The folder of manifests.
pub struct Folder {
    dir: Option<PathBuf>,
    node: String,
    changes: Option<Subscription>,
    /// When the folder is read, after it has changed.
    settles_at: Option<tokio::time::Instant>,
}

impl Folder {
    /// Watches `dir`, if there is one.
    pub fn new(dir: Option<PathBuf>, node: &str, notify: FsNotify) -> Folder {
        let watch = |dir: &Path| {
            std::fs::create_dir_all(dir)?;
            notify.watch(dir, FOLDER)
        };
        let changes = dir.as_deref().and_then(|dir| match watch(dir) {
            Ok(changes) => Some(changes),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "watching static pod manifests failed");
                None
            }
        });
        Folder {
            dir,
            node: node.to_owned(),
            changes,
            settles_at: None,
        }
    }

    /// The pods that are in the folder now; manifests that cannot be read are logged and left out.
    pub fn read(&mut self) -> Vec<Pod> {
        let Some(entries) = self
            .dir
            .as_deref()
            .and_then(|dir| std::fs::read_dir(dir).ok())
        else {
            return Vec::new();
        };
        let mut out = Vec::new();
        for path in entries.flatten().map(|e| e.path()) {
            let hidden = path
                .file_name()
                .is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
            let small = path
                .metadata()
                .is_ok_and(|m| m.is_file() && m.len() <= MAX_MANIFEST);
            if hidden || !small {
                continue;
            }
            let pod = std::fs::read_to_string(&path)
                .map_err(|e| e.to_string())
                .and_then(|t| parse(&t, &self.node));
            match pod {
                Ok(pod) => out.push(pod),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "not a static pod manifest")
                }
            }
        }
        out
    }

    /// Waits for a change, then gives the pods. A change is not lost when this is dropped before it
    /// is done, as it is whenever something else happens first.
    pub async fn changed(&mut self) -> Vec<Pod> {
        let settled = match (self.settles_at, &self.changes) {
            (Some(at), _) => at,
            (None, Some(changes)) => {
                changes.changed().await;
                *self.settles_at.insert(tokio::time::Instant::now() + SETTLE)
            }
            (None, None) => std::future::pending().await,
        };
        tokio::time::sleep_until(settled).await;
        self.settles_at = None;
        self.read()
    }
}

/// A manifest as the pod that runs: named after the node, with an id made of its content.
fn parse(text: &str, node: &str) -> Result<Pod, String> {
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    if value["kind"] != "Pod" {
        return Err(format!("kind is {}, not Pod", value["kind"]));
    }
    let mut pod: Pod = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let digest = Sha256::new()
        .chain_update(node)
        .chain_update(text)
        .finalize();
    let hash: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
    let meta = &mut pod.metadata;
    let name = meta
        .name
        .clone()
        .filter(|n| !n.is_empty())
        .ok_or("metadata.name: Required value")?;
    meta.name = Some(format!("{name}-{node}"));
    meta.namespace.get_or_insert_with(|| "default".into());
    meta.uid = Some(hash.clone());
    meta.creation_timestamp = Some(Time(crate::clock::now()));
    let notes = meta.annotations.get_or_insert_default();
    notes.insert(pod::CONFIG_SOURCE.into(), "file".into());
    notes.insert(pod::CONFIG_HASH.into(), hash);
    let spec = pod.spec.as_mut().ok_or("spec: Required value")?;
    spec.node_name = Some(node.to_owned());
    spec.automount_service_account_token = Some(false);
    pod.status = None;
    Ok(pod)
}

/// Shows a static pod in the API.
pub fn create_mirror(agent: &SharedAgent, pod: &Pod) {
    let mut mirror = pod.clone();
    let meta = &mut mirror.metadata;
    meta.uid = None;
    meta.creation_timestamp = None;
    let notes = meta.annotations.get_or_insert_default();
    let hash = notes.get(pod::CONFIG_HASH).cloned().unwrap_or_default();
    notes.insert(pod::CONFIG_MIRROR.into(), hash);
    let api = Api::<Pod>::namespaced(agent.client.clone(), &PodRef::of(pod).namespace);
    tokio::spawn(async move {
        if let Err(error) = api.create(&PostParams::default(), &mirror).await {
            tracing::debug!(%error, "creating a mirror pod failed");
        }
    });
}

/// Removes a mirror pod that no static pod stands behind any more.
pub fn delete_mirror(agent: &SharedAgent, mirror: &Pod) {
    let PodRef {
        namespace,
        name,
        uid,
    } = PodRef::of(mirror);
    let client = agent.client.clone();
    tokio::spawn(async move {
        let object = ApiObject {
            namespace,
            name,
            uid,
        };
        if let Err(error) = crate::worker::delete(&client, &object).await {
            tracing::debug!(%error, "deleting a mirror pod failed");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: c\n    image: x\n";

    #[test]
    fn manifests_become_pods_of_the_node() {
        let pod = parse(MANIFEST, "n1").unwrap();
        let identity = PodRef::of(&pod);
        assert_eq!(
            (identity.namespace.as_str(), identity.name.as_str()),
            ("default", "web-n1")
        );
        assert!(pod::is_static(&pod) && identity.uid.len() == 32);
        assert_eq!(
            PodRef::of(&parse(MANIFEST, "n1").unwrap()).uid,
            identity.uid
        );
        assert_ne!(
            PodRef::of(&parse(&MANIFEST.replace("image: x", "image: z"), "n1").unwrap()).uid,
            identity.uid
        );
        assert!(parse("kind: Service\n", "n1").is_err());
    }

    #[tokio::test]
    async fn the_folder_tells_of_changes() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(Some(dir.path().to_owned()), "n", FsNotify::new().unwrap());
        assert!(folder.read().is_empty());
        std::fs::write(dir.path().join("web.yaml"), MANIFEST).unwrap();
        std::fs::write(dir.path().join(".hidden.yaml"), MANIFEST).unwrap();
        assert_eq!(folder.changed().await.len(), 1);
    }

    #[tokio::test]
    async fn a_change_outlives_whoever_stops_waiting_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let notify = FsNotify::new().unwrap();
        let mut folder = Folder::new(Some(dir.path().to_owned()), "n", notify);
        let manifest = "{kind: Pod, apiVersion: v1, metadata: {name: a}, spec: {containers: []}}";
        std::fs::write(dir.path().join("a.yaml"), manifest).unwrap();
        let stopped = tokio::time::timeout(SETTLE / 2, folder.changed()).await;
        assert!(stopped.is_err());
        let patience = std::time::Duration::from_secs(60);
        let pods = tokio::time::timeout(patience, folder.changed()).await;
        assert_eq!(pods.unwrap().len(), 1);
    }
}
