//! Manifests through stock kubectl: created, read, applied by two managers, compared, applied, replaced,
//! deleted; applying again changes nothing. Ours are in this repository; those of the Kubernetes
//! documentation are others', and `STYR_MANIFESTS` says where they are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use testkit::{Cluster, Parts, Served};

use crate::documents::*;
use crate::go::built;
use crate::tools::*;

/// Documents that nobody can create, and what upstream says of them.
const REFUSED: &[(&str, &str)] = &[
    (
        "application/job/job-tmpl.yaml",
        "metadata.name: Invalid value: \"process-item-$ITEM\": a lowercase RFC 1123 subdomain must consist",
    ),
    (
        "application/ssa/nginx-deployment-replicas-only.yaml",
        "Deployment.apps \"nginx-deployment\" is invalid: [spec.selector: Required value, \
         spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`, \
         spec.template.spec.containers: Required value]",
    ),
    (
        "service/networking/dual-stack-ipv6-svc.yaml",
        "strict decoding error: unknown field \"spec.ipFamily\"",
    ),
];

/// Of which kubectl says `configured` each time, here as with upstream's server: it compares what is
/// written with what is kept, and these are kept otherwise than written though they mean the same.
const OTHERWISE: &[&str] = &[
    // Amounts in other words: 0.5 is kept as 500m.
    "pod/amounts",
    "pod/constraints-cpu-demo-2",
    "pod/constraints-mem-demo-2",
    "pod/cpu-demo",
    "pod/default-cpu-demo-3",
    "pod/pod-resources-demo",
    // The mount of the account's token comes to the mounts that are written.
    "pod/counter",
    "pod/dapi-test-pod",
    "pod/image-volume",
    "pod/kubernetes-downwardapi-volume-example",
    "pod/mounts",
    "pod/redis",
    "pod/secret-test-pod",
    "pod/security-context-demo",
    "pod/shell-demo",
    "pod/test-projected-volume",
    "pod/two-containers",
    // Defaults within lists that are replaced as a whole.
    "daemonset/konnectivity-agent",
    "job/indexed-job",
    "limitrange/mem-min-max-demo-lr",
    "resourceclaimtemplate/example-resource-claim-template",
    "resourceclaimtemplate/one-gpu",
    "statefulset/cassandra",
    "statefulset/database",
    "statefulset/web",
    "statefulset/zk",
    "validatingadmissionpolicy/demo-policy.example.com",
    "validatingadmissionpolicy/few.example.com",
    "validatingadmissionpolicy/replicalimit-policy.example.com",
    "validatingadmissionpolicy/servicecidrs.deny",
    "validatingwebhookconfiguration/checks.example.com",
    // Text that is kept as bytes; an empty list that is kept as none.
    "secret/words",
    "clusterrole/collected",
];

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

    /// Everything that must hold for documents that a cluster accepts. Gives those of which kubectl says
    /// that it changed them again, though nothing changed.
    async fn live(&self) -> BTreeSet<String> {
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
        let configured = |line: &str| {
            let called = line.strip_suffix(" configured")?;
            let (kind, name) = called.split_once('/')?;
            let kind = kind.split('.').next().unwrap_or(kind);
            Some(format!("{kind}/{name}"))
        };
        again.lines().filter_map(configured).collect()
    }
}

fn theirs() -> Option<PathBuf> {
    std::env::var_os("STYR_MANIFESTS")
        .map(PathBuf::from)
        .filter(|folder| folder.is_dir())
}

/// Those that cannot be created are refused as upstream refuses them; gives the others.
async fn refused(served: &Served, kubectl: &Path, all: Vec<Document>) -> Vec<Document> {
    let bad = |d: &Document| REFUSED.iter().any(|(file, _)| d.file.ends_with(file));
    let (known, unknown): (Vec<_>, Vec<_>) = all.into_iter().partition(|d| d.known().is_some());
    let (bad, good): (Vec<_>, Vec<_>) = known.into_iter().partition(bad);
    let refused: Vec<&Document> = unknown.iter().chain(&bad).collect();
    if refused.is_empty() {
        return good;
    }
    let batch = Batch::new(served, kubectl, "refused.yaml", &refused);
    let output = run(batch.command(&["create"])).await;
    assert!(!output.status.success());
    let said = said(&output);
    let no_kind = |d: &Document| {
        let (kind, version) = (d.at("/kind").trim(), d.at("/apiVersion"));
        format!("no matches for kind {kind:?} in version {version:?}")
    };
    for wanted in unknown.iter().map(no_kind) {
        assert!(said.contains(&wanted), "{wanted}\n{said}");
    }
    for (_, wanted) in bad
        .iter()
        .filter_map(|d| REFUSED.iter().find(|(file, _)| d.file.ends_with(file)))
    {
        assert!(said.contains(wanted), "{wanted}\n{said}");
    }
    good
}

async fn taken(folder: &Path, kubectl: &Path) {
    let parts = Parts {
        controllers: false,
        scheduler: false,
    };
    let cluster = Cluster::with(parts).await.unwrap();
    let served = cluster.serve().await.unwrap();
    let good = refused(&served, kubectl, documents(folder)).await;
    let all: BTreeSet<String> = good.iter().map(Document::called).collect();
    assert!(good.len() > 40, "{} documents", good.len());
    prepare(&cluster, &good).await;
    let mut told = BTreeSet::new();
    for (number, batch) in batches(good).iter().enumerate() {
        let all: Vec<&Document> = batch.iter().collect();
        let whole = Batch::new(&served, kubectl, &format!("batch-{number}.yaml"), &all);
        told.extend(whole.live().await);
        let some: Vec<&Document> = batch.iter().filter(|d| replaceable(d)).collect();
        if !some.is_empty() {
            let some = Batch::new(&served, kubectl, "replace.yaml", &some);
            some.run(&["replace"]).await;
        }
        whole.run(&["delete", "--wait=false"]).await;
        // There is no controller here to finish what waits for one.
        release(&cluster).await;
    }
    let there = |called: &String| all.contains(called);
    let otherwise = OTHERWISE.iter().map(|called| (*called).to_owned());
    let otherwise: BTreeSet<String> = otherwise.filter(there).collect();
    assert_eq!(told, otherwise);
}

/// The oldest and the newest kubectl.
async fn both_ends(test: &str) -> Vec<PathBuf> {
    let mut all = kubectls();
    all.truncate(1);
    all.extend(
        built(test, "kubectl", "./kubectl")
            .await
            .or_else(|| kubectls().pop()),
    );
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_are_taken_as_upstream_takes_them() {
    let test = "manifests_are_taken_as_upstream_takes_them";
    let all = both_ends(test).await;
    if all.is_empty() {
        left_out(test, "there is no kubectl on this machine");
    }
    for kubectl in all {
        taken(&script("manifests"), &kubectl).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_manifests_of_the_documentation_are_taken_as_upstream_takes_them() {
    let test = "the_manifests_of_the_documentation_are_taken_as_upstream_takes_them";
    match (theirs(), kubectls().pop()) {
        (Some(folder), Some(kubectl)) => taken(&folder, &kubectl).await,
        (None, _) => left_out(test, "STYR_MANIFESTS does not say where the manifests are"),
        (_, None) => left_out(test, "there is no kubectl on this machine"),
    }
}
