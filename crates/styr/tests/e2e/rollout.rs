//! Deployments: rolling updates under load, replacement, scale, undo.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::{Cluster, fetch, has_kubectl, node_port, poll};

const MINUTES: Duration = Duration::from_secs(120);

fn manifest(version: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  selector: {{app: web}}
  ports: [{{port: 80}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: nginx
        image: nginx:{version}
        ports: [{{containerPort: 80}}]
        lifecycle: {{preStop: {{exec: {{command: [sleep, '1']}}}}}}
        readinessProbe:
          httpGet: {{path: /, port: 80}}
          periodSeconds: 1
"
    )
}

#[test]
fn a_rolling_update_under_load_loses_no_request_and_can_be_undone() {
    if !has_kubectl("a_rolling_update_under_load_loses_no_request_and_can_be_undone") {
        return;
    }
    let cluster = Cluster::up(&["nginx"]);
    cluster.apply(&manifest("1.0"));
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    let address = node_port(&cluster, "web");
    assert!(fetch(address, "/").expect("it answers").contains("1.0"));
    let load = Load::start(address);
    cluster.apply(&manifest("2.0"));
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    settles_on(address, "2.0");
    let (done, failed) = load.stop();
    assert!(done > 50, "only {done} requests were made");
    assert_eq!(failed, 0, "of {done} requests");

    let running = |wanted: usize| move |out: &str| out.matches("1/1").count() == wanted;
    cluster.eventually(MINUTES, &["get", "pods", "-l", "app=web"], |out| {
        running(3)(out) && out.matches("web-").count() == 3
    });
    let name = cluster.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=web",
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ]);
    cluster.kubectl(&["delete", "pod", &name]);
    cluster.eventually(MINUTES, &["get", "pods", "-l", "app=web"], |out| {
        running(3)(out) && !out.contains(&name)
    });
    cluster.kubectl(&["scale", "deployment/web", "--replicas=5"]);
    cluster.eventually(MINUTES, &["get", "pods", "-l", "app=web"], running(5));
    cluster.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    cluster.eventually(MINUTES, &["get", "pods", "-l", "app=web"], |out| {
        running(3)(out) && out.matches("web-").count() == 3
    });
    let history = cluster.kubectl(&["rollout", "history", "deployment/web"]);
    assert!(history.contains('1') && history.contains('2'), "{history}");
    cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    settles_on(address, "1.0");
}

/// The last old pods leave the service a moment after the roll-out counts as finished.
fn settles_on(address: SocketAddr, version: &str) {
    let settled = poll(MINUTES, || {
        (0..10).all(|_| fetch(address, "/").expect("it answers").contains(version))
    });
    assert!(settled, "{version} is not what answers");
}

/// A constant load of requests.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    const THREADS: usize = 4;
    const PAUSE: Duration = Duration::from_millis(10);

    fn start(address: SocketAddr) -> Self {
        let (stop, done, failed) =
            <(Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let threads = (0..Self::THREADS)
            .map(|_| {
                let (stop, done, failed) = (stop.clone(), done.clone(), failed.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        if let Err(error) = fetch(address, "/") {
                            eprintln!("request failed: {error}");
                            failed.fetch_add(1, Ordering::SeqCst);
                        }
                        done.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Self::PAUSE);
                    }
                })
            })
            .collect();
        Self {
            stop,
            done,
            failed,
            threads,
        }
    }

    /// How many requests were made, and how many of them failed.
    fn stop(self) -> (usize, usize) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a thread of the load");
        }
        (
            self.done.load(Ordering::SeqCst),
            self.failed.load(Ordering::SeqCst),
        )
    }
}
