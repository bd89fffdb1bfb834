//! The guestbook: Redis leader and followers found by DNS, a frontend reached by its node port.

use std::net::SocketAddr;
use std::time::Duration;

use crate::harness::{Cluster, fetch, has_kubectl, node_port, poll};

const MINUTES: Duration = Duration::from_secs(120);

fn redis(role: &str, replicas: u8, image: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: redis-{role}
  labels: {{app: redis, role: {role}, tier: backend}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: redis, role: {role}}}}}
  template:
    metadata: {{labels: {{app: redis, role: {role}, tier: backend}}}}
    spec:
      containers:
      - name: {role}
        image: {image}
        imagePullPolicy: IfNotPresent
        resources: {{requests: {{cpu: 50m, memory: 50Mi}}}}
        ports: [{{containerPort: 6379}}]
---
apiVersion: v1
kind: Service
metadata: {{name: redis-{role}}}
spec:
  ports: [{{port: 6379, targetPort: 6379}}]
  selector: {{app: redis, role: {role}, tier: backend}}
"
    )
}

const FRONTEND: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: frontend}
spec:
  replicas: 2
  selector: {matchLabels: {app: guestbook, tier: frontend}}
  template:
    metadata: {labels: {app: guestbook, tier: frontend}}
    spec:
      containers:
      - name: php-redis
        image: gcr.io/google_samples/gb-frontend:v5
        env: [{name: GET_HOSTS_FROM, value: dns}]
        resources: {requests: {cpu: 50m, memory: 50Mi}}
        ports: [{containerPort: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: frontend}
spec:
  type: NodePort
  ports: [{port: 80}]
  selector: {app: guestbook, tier: frontend}
";

#[test]
fn entries_written_through_the_frontend_are_read_back_from_the_followers() {
    if !has_kubectl("entries_written_through_the_frontend_are_read_back_from_the_followers") {
        return;
    }
    let cluster = Cluster::up(&["redis", "guestbook"]);
    let leader = redis("leader", 1, "docker.io/redis:6.0.5");
    let followers = redis("follower", 2, "gcr.io/google_samples/gb-redis-follower:v2");
    cluster.apply(&format!("{leader}---{followers}---{FRONTEND}"));
    for name in ["redis-leader", "redis-follower", "frontend"] {
        let deployment = format!("deployment/{name}");
        cluster.kubectl(&["rollout", "status", &deployment, "--timeout=120s"]);
    }
    let local = node_port(&cluster, "frontend");
    let ip = cluster.styr_ok(&["ip"]);
    let outside = SocketAddr::new(ip.trim().parse().expect("an address"), local.port());
    // Without a readiness probe a container counts as ready before it listens.
    assert!(poll(MINUTES, || fetch(local, "/")
        .is_ok_and(|page| page.contains("<html"))));
    let entry = "/guestbook.php?cmd=set&key=messages&value=,hello-from-the-test";
    fetch(local, entry).expect("the entry is taken");
    let mut last = String::new();
    let shown = poll(MINUTES, || {
        last = fetch(outside, "/guestbook.php?cmd=get&key=messages").unwrap_or_default();
        last.contains("hello-from-the-test")
    });
    assert!(shown, "last: {last}");
}
