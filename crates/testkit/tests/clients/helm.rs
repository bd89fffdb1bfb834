//! Helm, of both versions that are kept up, with a chart of definitions, hooks and look-ups.

use std::path::PathBuf;

use serde_json::{Value, json};
use testkit::{Cluster, Served};

use crate::go::built;
use crate::tools::*;

/// Pods of Jobs end soon, those of a broken release never start.
const PROFILE: &str = r#"
pods:
- match: {labels: {stuck: "true"}}
  starts: false
- match: {ownerKind: Job}
  run: 100ms
"#;

struct Helm {
    cluster: Cluster,
    served: Served,
    program: PathBuf,
}

impl Helm {
    async fn new(program: PathBuf) -> Self {
        let cluster = Cluster::start().await.unwrap();
        cluster.simulate(2, PROFILE).await.unwrap();
        let served = cluster.serve().await.unwrap();
        Self {
            cluster,
            served,
            program,
        }
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = command(&self.program, &self.served);
        command.args(arguments).args(["--namespace", "web"]);
        command
    }

    async fn run(&self, arguments: &[&str]) -> String {
        succeed(self.command(arguments)).await
    }

    async fn refused(&self, arguments: &[&str], text: &str) {
        let output = run(self.command(arguments)).await;
        let said = said(&output);
        assert!(
            !output.status.success() && said.contains(text),
            "{arguments:?}: {said}"
        );
    }

    /// What is at a path, or null.
    async fn get(&self, path: &str) -> Value {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        let answer: Result<Value, _> = self.cluster.client().request(request).await;
        match answer {
            Err(kube::Error::Api(status)) if status.code == 404 => Value::Null,
            answer => answer.unwrap(),
        }
    }

    async fn revisions(&self) -> Vec<(u64, String)> {
        let history = run(self.command(&["history", "home", "-o", "json"])).await;
        let all: Vec<Value> = serde_json::from_slice(&history.stdout).unwrap();
        let told = |r: &Value| {
            (
                r["revision"].as_u64().unwrap(),
                r["status"].as_str().unwrap().to_owned(),
            )
        };
        all.iter().map(told).collect()
    }
}

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/web/deployments/home";
const SECRET: &str = "/api/v1/namespaces/web/secrets/home";
const PAGE: &str = "/apis/charts.example.com/v1/namespaces/web/pages/home";
const JOBS: &str = "/apis/batch/v1/namespaces/web/jobs";

/// A release from its installation to its end.
async fn a_release_lives(program: PathBuf) {
    let helm = Helm::new(program).await;
    let chart = script("helm/site").display().to_string();
    let install = ["install", "home", &chart, "--wait", "--timeout", "5m"];
    let mut first = install.to_vec();
    first.push("--create-namespace");
    let notes = helm.run(&first).await;
    assert!(notes.contains("The site is called home."), "{notes}");
    let deployment = helm.get(DEPLOYMENT).await;
    assert_eq!(
        deployment["status"]["readyReplicas"], 2,
        "it was waited for"
    );
    let ports = &deployment["spec"]["template"]["spec"]["containers"][0]["ports"];
    assert_eq!(ports.as_array().unwrap().len(), 3);
    let page = helm.get(PAGE).await;
    assert_eq!(page["spec"], json!({"title": "First", "draft": false}));
    let prepared = helm
        .get("/api/v1/namespaces/web/configmaps/home-prepared")
        .await;
    assert_eq!(prepared["data"]["by"], "pre-install");
    let jobs = helm.get(JOBS).await;
    assert_eq!(jobs["items"], json!([]), "hooks that succeeded are deleted");
    helm.refused(&install, "a name that is still in use").await;

    let password = helm.get(SECRET).await["data"]["password"].clone();
    let change = "title=Second,replicas=3";
    let upgrade = ["upgrade", "home", &chart, "--wait", "--timeout"];
    let to = |timeout, set| [&upgrade[..], &[timeout, "--set", set]].concat();
    helm.run(&to("5m", change)).await;
    let deployment = helm.get(DEPLOYMENT).await;
    assert_eq!(deployment["status"]["updatedReplicas"], 3);
    assert_eq!(deployment["status"]["readyReplicas"], 3);
    assert_eq!(helm.get(PAGE).await["spec"]["title"], "Second");
    assert_eq!(
        helm.get(SECRET).await["data"]["password"],
        password,
        "looked up"
    );
    let migrated = helm.get(&format!("{JOBS}/home-migrate")).await;
    assert_eq!(migrated["status"]["succeeded"], 1, "a hook that is kept");
    let tested = helm.run(&["test", "home"]).await;
    assert!(tested.contains("Succeeded"), "{tested}");

    let broken = to("3s", "title=Third,replicas=3,broken=true");
    helm.refused(&broken, "").await;
    helm.run(&["rollback", "home", "2", "--wait", "--timeout", "5m"])
        .await;
    assert_eq!(helm.get(PAGE).await["spec"]["title"], "Second");
    let template = &helm.get(DEPLOYMENT).await["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["stuck"], Value::Null);
    let state = |n: u64, state: &str| (n, state.to_owned());
    assert_eq!(
        helm.revisions().await,
        [
            state(1, "superseded"),
            state(2, "superseded"),
            state(3, "failed"),
            state(4, "deployed")
        ]
    );
    let dry = helm
        .run(&["upgrade", "home", &chart, "--dry-run=server"])
        .await;
    let kept = format!("password: {}", password.as_str().unwrap());
    assert!(dry.contains(&kept), "{dry}");

    helm.run(&["uninstall", "home", "--wait", "--timeout", "5m"])
        .await;
    for path in [DEPLOYMENT, SECRET, PAGE] {
        assert_eq!(helm.get(path).await, Value::Null, "{path}");
    }
    let definition =
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/pages.charts.example.com";
    assert!(helm.get(definition).await.is_object(), "definitions stay");
    let releases = "/api/v1/namespaces/web/secrets?labelSelector=owner%3Dhelm";
    assert_eq!(helm.get(releases).await["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_of_helm_3_lives() {
    let package = "helm.sh/helm/v3/cmd/helm";
    if let Some(helm) = built("a_release_of_helm_3_lives", "helm3", package).await {
        a_release_lives(helm).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_of_helm_4_lives() {
    let package = "helm.sh/helm/v4/cmd/helm";
    if let Some(helm) = built("a_release_of_helm_4_lives", "helm4", package).await {
        a_release_lives(helm).await;
    }
}
