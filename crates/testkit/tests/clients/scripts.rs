//! Clients in other languages: each runs one script, which asserts by itself.

use tokio::process::Command;

use crate::tools::*;
use testkit::{Cluster, Parts};

/// Version of the Python client.
const PYTHON_CLIENT: &str = "kubernetes==34.1.0";
/// Version of the JavaScript client.
const NODE_CLIENT: &str = "@kubernetes/client-node@1.4.0";

/// A cluster that soon forgets what was.
async fn forgetful() -> Cluster {
    let mut options = store::Options::default();
    options.history.segment_events = 64;
    let parts = Parts {
        controllers: true,
        scheduler: true,
    };
    let store = store::Embedded::in_memory_with(options);
    let cluster = Cluster::over(store, parts, client::Clock::system()).await;
    cluster.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_client_and_its_dynamic_client_work() {
    let test = "the_python_client_and_its_dynamic_client_work";
    let Some(python) = find("python3") else {
        return left_out(test, "there is no python3 on this machine");
    };
    let venv = cache("python");
    let own = venv.join("bin/python");
    let has = async || {
        let mut command = Command::new(&own);
        command.args(["-c", "import kubernetes"]);
        own.is_file() && run(command).await.status.success()
    };
    if !has().await {
        let mut make = Command::new(&python);
        make.args(["-m", "venv"]).arg(&venv);
        let mut install = Command::new(&own);
        install.args(["-m", "pip", "install", "--quiet", PYTHON_CLIENT]);
        let made = run(make).await.status.success() && run(install).await.status.success();
        if !made || !has().await {
            return left_out(test, "the client could not be installed");
        }
    }
    let cluster = forgetful().await;
    let _node = cluster.add_node_with_agent("n1").await.unwrap();
    let served = cluster.serve().await.unwrap();
    let mut script_run = command(&own, &served);
    script_run
        .arg(script("python/client.py"))
        .arg(script("manifests"));
    eprintln!("{}", succeed(script_run).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_javascript_client_works() {
    let test = "the_javascript_client_works";
    let (Some(node), Some(npm)) = (find("node"), find("npm")) else {
        return left_out(test, "there is no node on this machine");
    };
    let folder = cache("node");
    if !folder
        .join("node_modules/@kubernetes/client-node/package.json")
        .is_file()
    {
        std::fs::write(folder.join("package.json"), "{\"private\": true}").unwrap();
        let mut install = Command::new(npm);
        install
            .args(["install", "--no-fund", "--no-audit", NODE_CLIENT])
            .current_dir(&folder);
        if !run(install).await.status.success() {
            return left_out(test, "the client could not be installed");
        }
    }
    std::fs::copy(script("node/client.mjs"), folder.join("client.mjs")).unwrap();
    let cluster = forgetful().await;
    let _node = cluster.add_node_with_agent("n1").await.unwrap();
    let served = cluster.serve().await.unwrap();
    let mut script_run = command(&node, &served);
    script_run.arg(folder.join("client.mjs"));
    eprintln!("{}", succeed(script_run).await);
}
