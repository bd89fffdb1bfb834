//! Programs in Go: client-go, controller-runtime. One module holds what all are built from, Helm and the
//! newest kubectl included.

use std::path::PathBuf;
use std::time::Duration;

use testkit::Cluster;
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::tools::*;

/// How long a first build may take on a busy machine.
const BUILD_PATIENCE: Duration = Duration::from_secs(3600);
/// What kubectl says that it is, as its releases are stamped; the module has it as v0.37.1.
const KUBECTL_VERSION: &str = "v1.37.1";

/// Builds a program of the module; none where there is no Go or its modules cannot be had.
pub async fn built(test: &str, name: &str, package: &str) -> Option<PathBuf> {
    // One build at a time: what programs share is compiled once.
    static BUILDING: Mutex<()> = Mutex::const_new(());
    let _turn = BUILDING.lock().await;
    let Some(go) = find("go") else {
        left_out(test, "there is no Go on this machine");
        return None;
    };
    let in_module = |arguments: &[&str]| {
        let mut command = Command::new(&go);
        command
            .args(arguments)
            .current_dir(script("go"))
            .env("GOFLAGS", "-mod=readonly -buildvcs=false")
            .env("GOWORK", "off");
        command
    };
    let needed = in_module(&["list", "-deps", package]);
    if !run_within(BUILD_PATIENCE, needed).await.status.success() {
        left_out(test, "the modules could not be had");
        return None;
    }
    let program = cache("go").join(name);
    let stamp =
        format!("-ldflags=-s -w -X k8s.io/component-base/version.gitVersion={KUBECTL_VERSION}");
    let mut build = in_module(&["build", &stamp, "-o"]);
    build.arg(&program).arg(package);
    succeed_within(BUILD_PATIENCE, build).await;
    Some(program)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_of_client_go_works() {
    let test = "every_client_of_client_go_works";
    let Some(program) = built(test, "clientgo", "./clientgo").await else {
        return;
    };
    let cluster = Cluster::start().await.unwrap();
    let _node = cluster.add_node_with_agent("n1").await.unwrap();
    let served = cluster.serve().await.unwrap();
    eprintln!("{}", succeed(command(&program, &served)).await);
    let mut listing = command(&program, &served);
    listing
        .arg("informers")
        .env("KUBE_FEATURE_WatchListClient", "false");
    eprintln!("{}", succeed(listing).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_of_controller_runtime_works() {
    let test = "an_operator_of_controller_runtime_works";
    let Some(program) = built(test, "manager", "./manager").await else {
        return;
    };
    let cluster = Cluster::start().await.unwrap();
    let _node = cluster.add_node("n1").await.unwrap();
    let served = cluster.serve().await.unwrap();
    eprintln!("{}", succeed(command(&program, &served)).await);
}
