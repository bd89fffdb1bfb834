//! The manifests of the Kubernetes documentation through stock kubectl: created, read, applied by two
//! managers, compared, applied, replaced, deleted; applying again changes nothing.
//!
//! They are others' and not in this repository: `STYR_MANIFESTS` says where they are.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testkit::{Cluster, Parts, Served, objects};

use crate::tools::*;

/// An object of a manifest and the text it is written in.
struct Document {
    object: Value,
    text: String,
}

impl Document {
    fn at(&self, pointer: &str) -> &str {
        self.object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or("")
    }

    fn known(&self) -> Option<&'static api::Kind> {
        let version = self.at("/apiVersion");
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        api::kind_by_gvk(group, version, self.at("/kind").trim())
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

fn folder() -> Option<PathBuf> {
    std::env::var_os("STYR_MANIFESTS")
        .map(PathBuf::from)
        .filter(|folder| folder.is_dir())
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

fn documents(folder: &Path) -> Vec<Document> {
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
                });
            }
        }
    }
    all
}

/// Groups of documents that can be there at once.
///
/// What bounds others comes apart from them.
fn batches(documents: Vec<Document>) -> Vec<Vec<Document>> {
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

/// Stock kubectl on a file of documents.
struct Batch<'a> {
    served: &'a Served,
    kubectl: &'a Path,
    file: PathBuf,
}

impl<'a> Batch<'a> {
    fn new(served: &'a Served, kubectl: &'a Path, called: &str, documents: &[&Document]) -> Self {
        let file = served.folder().join(called);
        let texts: Vec<&str> = documents.iter().map(|d| d.text.as_str()).collect();
        std::fs::write(&file, texts.join("\n---\n")).unwrap();
        Self {
            served,
            kubectl,
            file,
        }
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = command(self.kubectl, self.served);
        command.args(arguments).arg("-f").arg(&self.file);
        command
    }

    async fn run(&self, arguments: &[&str]) -> String {
        succeed(self.command(arguments)).await
    }

    async fn versions(&self) -> String {
        self.run(&[
            "get",
            "-o",
            "custom-columns=K:.kind,N:.metadata.name,V:.metadata.resourceVersion",
        ])
        .await
    }

    /// Everything that must hold for documents that a cluster accepts.
    async fn live(&self) {
        self.run(&["create"]).await;
        self.run(&["get"]).await;
        // What defaults complete inside of atomic fields, and amounts in other words, are conflicts
        // for upstream as well.
        let force = "--force-conflicts";
        for manager in ["--field-manager=one", "--field-manager=two"] {
            self.run(&["apply", "--server-side", force, manager]).await;
        }
        let before = self.versions().await;
        let two = "--field-manager=two";
        self.run(&["apply", "--server-side", force, two]).await;
        let after = self.versions().await;
        assert_eq!(before, after, "applying again changes nothing");
        self.run(&["diff"]).await;
        self.run(&["diff", "--server-side", force, two]).await;
        self.run(&["apply"]).await;
        let before = self.versions().await;
        let again = self.run(&["apply"]).await;
        let after = self.versions().await;
        assert_eq!(before, after, "applying again changes nothing");
        // kubectl cannot know that amounts in other words and completed atomic lists are the same.
        let said: Vec<&str> = again
            .lines()
            .filter(|l| l.ends_with(" configured"))
            .collect();
        eprintln!("said to be configured, and unchanged all the same: {said:#?}");
    }
}

/// Namespaces and accounts that the documents take for granted.
async fn prepare(cluster: &Cluster, documents: &[Document]) {
    let client = cluster.client();
    let namespaces: BTreeSet<&str> = documents
        .iter()
        .map(|d| d.at("/metadata/namespace"))
        .collect();
    let there = ["", "default", "kube-system", "kube-public"];
    for namespace in namespaces {
        if !there.contains(&namespace) {
            let object =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
            objects(&client, &[object]).await.unwrap();
        }
        if namespace.is_empty() {
            continue;
        }
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": namespace}});
        objects(&client, &[account]).await.unwrap();
    }
}

/// Pods and Jobs are born with what their manifests do not say and cannot lose: upstream replaces
/// them only by force.
fn replaceable(document: &Document) -> bool {
    !["Pod", "Job"].contains(&document.at("/kind").trim())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_manifests_of_the_documentation_are_taken_as_upstream_takes_them() {
    let test = "the_manifests_of_the_documentation_are_taken_as_upstream_takes_them";
    let Some(folder) = folder() else {
        return left_out(test, "STYR_MANIFESTS does not say where the manifests are");
    };
    let Some(kubectl) = find("kubectl") else {
        return left_out(test, "there is no kubectl on this machine");
    };
    let parts = Parts {
        controllers: false,
        scheduler: false,
    };
    let cluster = Cluster::with(parts).await.unwrap();
    let served = cluster.serve().await.unwrap();
    let (known, unknown): (Vec<_>, Vec<_>) = documents(&folder)
        .into_iter()
        .partition(|d| d.known().is_some());
    assert!(known.len() > 100, "{} documents", known.len());
    let refused = Batch::new(
        &served,
        &kubectl,
        "unknown.yaml",
        &unknown.iter().collect::<Vec<_>>(),
    );
    let output = run(refused.command(&["create"])).await;
    assert!(!output.status.success());
    for document in &unknown {
        let (kind, version) = (document.at("/kind").trim(), document.at("/apiVersion"));
        let wanted = format!("no matches for kind {kind:?} in version {version:?}");
        assert!(
            said(&output).contains(&wanted),
            "{wanted}\n{}",
            said(&output)
        );
    }
    let (templates, known): (Vec<_>, Vec<_>) = known
        .into_iter()
        .partition(|d| d.at("/metadata/name").contains('$'));
    let refused = Batch::new(
        &served,
        &kubectl,
        "templates.yaml",
        &templates.iter().collect::<Vec<_>>(),
    );
    let output = run(refused.command(&["create"])).await;
    let words = said(&output)
        .matches("a lowercase RFC 1123 subdomain must consist")
        .count();
    assert!(
        !output.status.success() && words >= templates.len(),
        "{}",
        said(&output)
    );
    prepare(&cluster, &known).await;
    for (number, batch) in batches(known).iter().enumerate() {
        let all: Vec<&Document> = batch.iter().collect();
        let whole = Batch::new(&served, &kubectl, &format!("batch-{number}.yaml"), &all);
        whole.live().await;
        let some: Vec<&Document> = batch.iter().filter(|d| replaceable(d)).collect();
        if !some.is_empty() {
            let some = Batch::new(&served, &kubectl, "replace.yaml", &some);
            some.run(&["replace"]).await;
        }
        whole.run(&["delete", "--wait=false"]).await;
        // There is no controller here to finish what waits for one.
        release(&cluster).await;
    }
}

/// Takes the finalizers off volumes and claims that are being deleted.
async fn release(cluster: &Cluster) {
    use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
    use kube::api::{Api, ListParams, Patch, PatchParams};
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let client = cluster.client();
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
