//! Manifests of a folder as the documents that they consist of.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testkit::{Cluster, objects};

/// An object of a manifest and the text it is written in.
pub struct Document {
    pub object: Value,
    pub text: String,
    /// The end of the name of its file.
    pub file: String,
}

impl Document {
    pub fn at(&self, pointer: &str) -> &str {
        self.object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or("")
    }

    pub fn known(&self) -> Option<&'static api::Kind> {
        let version = self.at("/apiVersion");
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        api::kind_by_gvk(group, version, self.at("/kind").trim())
    }

    /// As kubectl says it, without the group.
    pub fn called(&self) -> String {
        let kind = self.at("/kind").trim().to_lowercase();
        format!("{kind}/{}", self.at("/metadata/name"))
    }

    /// What two objects of one cluster cannot share.
    fn identity(&self) -> String {
        let name = match self.at("/metadata/name") {
            "" => self.at("/metadata/generateName"),
            name => name,
        };
        format!(
            "{}/{}/{name}",
            self.at("/kind"),
            self.at("/metadata/namespace")
        )
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else if path
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        {
            found.push(path);
        }
    }
    found.sort();
}

pub fn documents(folder: &Path) -> Vec<Document> {
    let mut paths = Vec::new();
    files(folder, &mut paths);
    let mut all = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        for part in format!("\n{text}").split("\n---") {
            let Ok(object) = serde_saphyr::from_str::<Value>(part) else {
                eprintln!("{}: not YAML", path.display());
                continue;
            };
            if object["kind"].is_string() {
                all.push(Document {
                    object,
                    text: part.to_owned(),
                    file: path.strip_prefix(folder).unwrap().display().to_string(),
                });
            }
        }
    }
    all
}

/// Groups of documents that can be there at once.
///
/// What bounds others comes apart from them.
pub fn batches(documents: Vec<Document>) -> Vec<Vec<Document>> {
    let bounds = |d: &Document| ["LimitRange", "ResourceQuota"].contains(&d.at("/kind").trim());
    let (bounding, others): (Vec<_>, Vec<_>) = documents.into_iter().partition(bounds);
    let mut all = apart(others);
    all.extend(apart(bounding));
    all
}

fn apart(documents: Vec<Document>) -> Vec<Vec<Document>> {
    let mut batches: Vec<(HashSet<String>, Vec<Document>)> = Vec::new();
    for document in documents {
        let identity = document.identity();
        let free = batches
            .iter_mut()
            .find(|(taken, _)| !taken.contains(&identity));
        match free {
            Some((taken, batch)) => {
                taken.insert(identity);
                batch.push(document);
            }
            None => batches.push((HashSet::from([identity]), vec![document])),
        }
    }
    batches.into_iter().map(|(_, batch)| batch).collect()
}

/// Namespaces and accounts that the documents take for granted.
pub async fn prepare(cluster: &Cluster, documents: &[Document]) {
    let client = cluster.client();
    let named = |d: &Document| match d.at("/metadata/namespace") {
        "" => "default".to_owned(),
        namespace => namespace.to_owned(),
    };
    let namespaces: BTreeSet<String> = documents.iter().map(named).collect();
    for namespace in namespaces {
        if !["default", "kube-system", "kube-public"].contains(&namespace.as_str()) {
            let object =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
            objects(&client, &[object]).await.unwrap();
        }
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": namespace}});
        objects(&client, &[account]).await.unwrap();
    }
}

/// Pods and Jobs are born with what their manifests do not say and cannot lose: upstream replaces
/// them only by force.
pub fn replaceable(document: &Document) -> bool {
    !["Pod", "Job"].contains(&document.at("/kind").trim())
}

/// Takes the finalizers off volumes and claims that are being deleted, and ends the pods of nodes that are
/// not there.
pub async fn release(cluster: &Cluster) {
    use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
    use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let client = cluster.client();
    let now = DeleteParams::default().grace_period(0);
    for pod in Api::<Pod>::all(client.clone())
        .list(&ListParams::default())
        .await
        .unwrap()
    {
        let namespace = pod.metadata.namespace.unwrap_or_default();
        let pods = client::write::namespaced::<Pod>(&client, &namespace);
        let name = pod.metadata.name.unwrap_or_default();
        pods.delete(&name, &now).await.unwrap();
    }
    let volumes = client::write::cluster::<PersistentVolume>(&client);
    for volume in volumes.list(&ListParams::default()).await.unwrap() {
        let name = volume.metadata.name.unwrap_or_default();
        volumes
            .patch(&name, &PatchParams::default(), &free)
            .await
            .unwrap();
    }
    let claims: Api<PersistentVolumeClaim> = client::write::namespaced(&client, "default");
    for claim in claims.list(&ListParams::default()).await.unwrap() {
        let name = claim.metadata.name.unwrap_or_default();
        claims
            .patch(&name, &PatchParams::default(), &free)
            .await
            .unwrap();
    }
}
