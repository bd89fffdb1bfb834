//! kill -9 of the server under write load: no acknowledged write is lost, no pod restarts.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Cluster, poll};

/// Kills in a usual run; `STYR_TEST_KILLS` sets another number.
const KILLS: usize = 200;
/// Writers at once.
const WRITERS: usize = 8;

#[test]
fn killed_at_random_moments_under_load_it_keeps_every_acknowledged_write_and_every_pod() {
    let kills =
        std::env::var("STYR_TEST_KILLS").map_or(KILLS, |text| text.parse().expect("a number"));
    let cluster = Cluster::up(&["busybox"]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = runtime.block_on(client(&cluster));
    let first = runtime.block_on(run_pod(&client));
    let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            runtime.spawn(write(
                client.clone(),
                writer,
                acknowledged.clone(),
                stop.clone(),
            ))
        })
        .collect();
    for round in 0..kills {
        std::thread::sleep(Duration::from_millis(rand::random_range(5..300)));
        kill(Pid::from_raw(cluster.server_pid()), Signal::SIGKILL).expect("the server runs");
        cluster.styr_ok(&["up"]);
        eprintln!(
            "kill {round}: {} writes so far",
            acknowledged.lock().expect("a lock").len()
        );
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        runtime.block_on(writer).expect("a writer");
    }
    let wanted = acknowledged.lock().expect("a lock").clone();
    let found = runtime.block_on(names(&client));
    let lost: Vec<_> = wanted.difference(&found).collect();
    assert!(
        lost.is_empty(),
        "{} of {} lost: {lost:?}",
        lost.len(),
        wanted.len()
    );
    assert!(
        wanted.len() >= kills,
        "only {} writes were acknowledged",
        wanted.len()
    );
    let steady = poll(Duration::from_secs(30), || {
        runtime.block_on(running(&client)).as_ref() == Some(&first)
    });
    assert!(steady, "the pod restarted or is gone");
}

async fn client(cluster: &Cluster) -> kube::Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).expect("the kubeconfig");
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
    kube::Client::try_from(config.expect("a configuration")).expect("a client")
}

/// Gives the container that runs first.
async fn run_pod(client: &kube::Client) -> Running {
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "steady"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "36000"],
            }],
        },
    }))
    .expect("a pod");
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    pods.create(&PostParams::default(), &pod)
        .await
        .expect("creating the pod");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(first) = running(client).await {
            assert_eq!(first.restarts, 0);
            return first;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "the pod does not run"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The run of a container.
#[derive(Debug, PartialEq, Eq)]
struct Running {
    container: Option<String>,
    restarts: i32,
}

/// What runs of the pod; `None` when nothing does.
async fn running(client: &kube::Client) -> Option<Running> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let status = pods.get("steady").await.ok()?.status?;
    let container = status.container_statuses?.into_iter().next()?;
    container.state?.running?;
    Some(Running {
        container: container.container_id,
        restarts: container.restart_count,
    })
}

async fn write(
    client: kube::Client,
    writer: usize,
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
    stop: Arc<AtomicBool>,
) {
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        let name = format!("w{writer}-{number}");
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                ..ObjectMeta::default()
            },
            data: Some([("n".to_owned(), "x".repeat(512))].into()),
            ..ConfigMap::default()
        };
        match maps.create(&PostParams::default(), &map).await {
            Ok(_) => {
                acknowledged.lock().expect("a lock").insert(name);
            }
            // The server is down for a moment; whether this write got through is unknown.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn names(client: &kube::Client) -> BTreeSet<String> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let all = maps.list(&ListParams::default()).await.expect("listing");
    all.into_iter()
        .filter_map(|map| map.metadata.name)
        .collect()
}
