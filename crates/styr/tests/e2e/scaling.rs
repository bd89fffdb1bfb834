//! Autoscaling, disruption budgets and drained nodes, by what stock kubectl prints.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Cluster, has_kubectl, kubectl, words};

const PATIENCE: Duration = Duration::from_secs(240);

/// Its pods go to simulated nodes.
fn web(replicas: u32) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      nodeSelector: {{styr.dev/simulated: 'true'}}
      terminationGracePeriodSeconds: 0
      containers:
      - {{name: main, image: busybox, resources: {{requests: {{cpu: 100m}}}}}}
"
    )
}

fn rolled_out(cluster: &Cluster) {
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=180s"]);
}

/// Millicores that the whole Deployment is kept busy with, however many pods it has.
const LOAD: usize = 400;

/// A metrics server: pods of `app=web` share a constant load.
struct Metrics {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

impl Metrics {
    /// Serves on a free port of this machine, for as long as the test runs.
    fn start(cluster: &Cluster) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let metrics = Self {
            kubectl: kubectl().expect("the test asked for kubectl before"),
            kubeconfig: cluster.kubeconfig(),
        };
        let tls = tls();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Err(error) = metrics.answer(stream, tls.clone()) {
                    eprintln!("the metrics server: {error}");
                }
            }
        });
        port
    }

    fn answer(
        &self,
        stream: TcpStream,
        tls: Arc<rustls::ServerConfig>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let session = rustls::ServerConnection::new(tls)?;
        let mut stream = BufReader::new(rustls::StreamOwned::new(session, stream));
        let mut first = String::new();
        stream.read_line(&mut first)?;
        let mut header = String::new();
        while stream.read_line(&mut header)? > 2 {
            header.clear();
        }
        let path = first.split(' ').nth(1).unwrap_or_default();
        let (code, body) = match path.split('?').next().unwrap_or_default() {
            "/apis/metrics.k8s.io/v1beta1" => ("200 OK", resources()),
            "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods" => ("200 OK", self.pods()?),
            _ => (
                "404 Not Found",
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound"}),
            ),
        };
        let body = body.to_string();
        let stream = stream.get_mut();
        write!(
            stream,
            "HTTP/1.1 {code}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )?;
        stream.conn.send_close_notify();
        stream.flush()?;
        Ok(())
    }

    fn pods(&self) -> Result<Value, Box<dyn std::error::Error>> {
        let list = Command::new(&self.kubectl)
            .args([
                "get",
                "pods",
                "-l",
                "app=web",
                "-o",
                "jsonpath={.items[*].metadata.name}",
            ])
            .env("KUBECONFIG", &self.kubeconfig)
            .output()?;
        let names = String::from_utf8(list.stdout)?;
        let names: Vec<&str> = names.split_whitespace().collect();
        let share = format!("{}m", LOAD / names.len().max(1));
        // Measured well after the pods were ready, or they would be taken to be starting.
        let now = client::Clock::system().now() + Duration::from_secs(60);
        let items: Vec<Value> = names
            .iter()
            .map(|name| {
                json!({"metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
                    "timestamp": now.to_string(), "window": "30s",
                    "containers": [{"name": "main", "usage": {"cpu": share, "memory": "8Mi"}}]})
            })
            .collect();
        Ok(
            json!({"kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items}),
        )
    }
}

fn resources() -> Value {
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "metrics.k8s.io/v1beta1", "resources": [
        {"name": "pods", "singularName": "", "namespaced": true, "kind": "PodMetrics", "verbs": ["get", "list"]},
        {"name": "nodes", "singularName": "", "namespaced": false, "kind": "NodeMetrics", "verbs": ["get", "list"]}]})
}

fn tls() -> Arc<rustls::ServerConfig> {
    let made =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a certificate and its key");
    Arc::new(config)
}

fn registration(port: u16) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: metrics-server, namespace: kube-system}}
spec: {{type: ExternalName, externalName: localhost}}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {{name: v1beta1.metrics.k8s.io}}
spec:
  group: metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {{name: metrics-server, namespace: kube-system, port: {port}}}
"
    )
}

#[test]
fn autoscale_follows_a_metrics_server_up_and_down() {
    if !has_kubectl("autoscale_follows_a_metrics_server_up_and_down") {
        return;
    }
    let cluster = Cluster::up(&[]);
    cluster.styr_ok(&["simulate", "--nodes", "2"]);
    cluster.apply(&web(2));
    rolled_out(&cluster);
    let said = cluster.kubectl(&[
        "autoscale",
        "deployment",
        "web",
        "--cpu-percent=50",
        "--min=1",
        "--max=10",
    ]);
    assert_eq!(said, "horizontalpodautoscaler.autoscaling/web autoscaled\n");
    // Without metrics it says so, and leaves the Deployment alone.
    let told = cluster.eventually(PATIENCE, &["describe", "hpa", "web"], |out| {
        out.contains("FailedGetResourceMetric")
    });
    let flat = words(&told);
    assert!(
        flat.contains("ScalingActive False FailedGetResourceMetric"),
        "{told}"
    );
    assert!(flat.contains("<unknown> / 50%"), "{told}");

    let port = Metrics::start(&cluster);
    cluster.apply(&registration(port));
    cluster.kubectl(&[
        "wait",
        "--for=condition=Available",
        "apiservice/v1beta1.metrics.k8s.io",
        "--timeout=180s",
    ]);
    let top = cluster.eventually(PATIENCE, &["top", "pods", "-l", "app=web"], |out| {
        out.contains("web-")
    });
    assert!(
        words(&top).starts_with("NAME CPU(cores) MEMORY(bytes) web-"),
        "{top}"
    );
    // 400m over pods that ask for 100m each: eight are half busy.
    cluster.eventually(PATIENCE, &["get", "hpa", "web"], |out| {
        words(out).contains("web Deployment/web cpu: 50%/50% 1 10 8")
    });
    rolled_out(&cluster);
    let told = cluster.kubectl(&["describe", "hpa", "web"]);
    let flat = words(&told);
    for text in [
        "Reference: Deployment/web",
        "resource cpu on pods (as a percentage of request): 50% (50m) / 50%",
        "Min replicas: 1",
        "Max replicas: 10",
        "AbleToScale True",
        "ScalingActive True ValidMetricFound",
        "ScalingLimited False DesiredWithinRange",
        "horizontal-pod-autoscaler New size: 8; reason: cpu resource utilization (percentage of request) above target",
    ] {
        assert!(flat.contains(text), "{text}: {told}");
    }
    // At the bound it says so; down it goes at once where it need not wait.
    let at_once =
        r#"{"spec":{"maxReplicas":5,"behavior":{"scaleDown":{"stabilizationWindowSeconds":0}}}}"#;
    cluster.kubectl(&["patch", "hpa", "web", "-p", at_once]);
    cluster.eventually(PATIENCE, &["get", "hpa", "web"], |out| {
        words(out).contains("web Deployment/web cpu: 80%/50% 1 5 5")
    });
    let told = cluster.kubectl(&["describe", "hpa", "web"]);
    assert!(
        words(&told).contains("ScalingLimited True TooManyReplicas"),
        "{told}"
    );
}

#[test]
fn a_drained_node_gives_its_pods_away_as_budgets_allow() {
    if !has_kubectl("a_drained_node_gives_its_pods_away_as_budgets_allow") {
        return;
    }
    let cluster = Cluster::up(&[]);
    cluster.styr_ok(&["simulate", "--nodes", "1"]);
    cluster.apply(&web(2));
    rolled_out(&cluster);
    let said = cluster.kubectl(&[
        "create",
        "poddisruptionbudget",
        "web",
        "--selector=app=web",
        "--min-available=2",
    ]);
    assert_eq!(said, "poddisruptionbudget.policy/web created\n");
    cluster.eventually(PATIENCE, &["get", "pdb", "web"], |out| {
        words(out).contains("web 2 N/A 0")
    });
    let drain = ["drain", "sim-0", "--timeout=7s"];
    let output = cluster.kubectl_any(&drain);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("Cannot evict pod as it would violate the pod's disruption budget."),
        "{said}"
    );
    let nodes = cluster.kubectl(&["get", "node", "sim-0"]);
    assert!(nodes.contains("Ready,SchedulingDisabled"), "{nodes}");

    // Another node, and room for one pod to be away: now all go.
    cluster.styr_ok(&["simulate", "--nodes", "2"]);
    let one = r#"{"spec":{"minAvailable":1}}"#;
    cluster.kubectl(&["patch", "pdb", "web", "-p", one]);
    cluster.eventually(PATIENCE, &["get", "pdb", "web"], |out| {
        words(out).contains("web 1 N/A 1")
    });
    let told = cluster.kubectl(&["describe", "pdb", "web"]);
    let flat = words(&told);
    for text in [
        "Min available: 1",
        "Selector: app=web",
        "Allowed disruptions: 1",
        "Current: 2",
        "Desired: 1",
        "Total: 2",
    ] {
        assert!(flat.contains(text), "{text}: {told}");
    }
    let said = cluster.kubectl(&["drain", "sim-0", "--timeout=180s"]);
    assert!(
        said.contains("evicted") && said.ends_with("node/sim-0 drained\n"),
        "{said}"
    );
    rolled_out(&cluster);
    let nodes = "jsonpath={.items[*].spec.nodeName}";
    // The Deployment may not know yet that the last one went.
    let placed = ["get", "pods", "-l", "app=web", "-o", nodes];
    cluster.eventually(PATIENCE, &placed, |out| out == "sim-1 sim-1");
    let said = cluster.kubectl(&["uncordon", "sim-0"]);
    assert_eq!(said, "node/sim-0 uncordoned\n");
}
