//! Probes: who gets traffic, who is restarted, and how the story is told.

use std::time::Duration;

use crate::harness::{Cluster, fetch, has_kubectl, node_port, poll};

const MINUTE: Duration = Duration::from_secs(60);

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: nginx
        image: nginx:1.0
        ports: [{containerPort: 80}]
        startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
        livenessProbe: {httpGet: {path: /version, port: 80}, periodSeconds: 1}
        readinessProbe:
          exec: {command: [test, -e, /tmp/ready]}
          periodSeconds: 1
          failureThreshold: 1
";

const SICK: &str = "
apiVersion: v1
kind: Pod
metadata: {name: sick}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'touch /tmp/alive; sleep 1; rm /tmp/alive; sleep 3600']
    livenessProbe:
      exec: {command: [cat, /tmp/alive]}
      periodSeconds: 1
      failureThreshold: 2
---
apiVersion: v1
kind: Pod
metadata: {name: crashing}
spec:
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo going down; exit 7']
---
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, '3600']
    startupProbe:
      exec: {command: [sh, -c, 'echo not yet; false']}
      periodSeconds: 1
      failureThreshold: 1
";

#[test]
fn probes_decide_on_traffic_and_restarts() {
    if !has_kubectl("probes_decide_on_traffic_and_restarts") {
        return;
    }
    let cluster = Cluster::up(&["nginx", "busybox"]);
    cluster.apply(SICK);
    cluster.apply(WEB);
    only_ready_pods_get_traffic(&cluster);
    failing_containers_are_restarted(&cluster);
}

fn only_ready_pods_get_traffic(cluster: &Cluster) {
    let running = ["get", "pods", "-l", "app=web"];
    cluster.eventually(MINUTE, &running, |out| out.matches("Running").count() == 2);
    let names = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"]);
    let names: Vec<&str> = names.lines().map(|line| &line["pod/".len()..]).collect();
    let address = node_port(cluster, "web");
    assert!(fetch(address, "/hostname").is_err(), "no pod is ready");
    let mark = |name: &str, command: &str| {
        cluster.kubectl(&["exec", name, "--", command, "/tmp/ready"]);
    };
    mark(names[0], "touch");
    answers_come_from(cluster, address, &names[..1]);
    mark(names[1], "touch");
    answers_come_from(cluster, address, &names);
    mark(names[0], "rm");
    answers_come_from(cluster, address, &names[1..]);
    cluster.eventually(MINUTE, &["get", "pod", names[0]], |out| out.contains("0/1"));
    let told = cluster.kubectl(&["events", "--for", &format!("pod/{}", names[0])]);
    assert!(
        told.contains("Unhealthy") && told.contains("Readiness probe failed:"),
        "{told}"
    );
    let slices = [
        "get",
        "endpointslices",
        "-l",
        "kubernetes.io/service-name=web",
        "-o",
        "jsonpath={range .items[*].endpoints[*]}{.targetRef.name}={.conditions.ready} {end}",
    ];
    let listed = cluster.kubectl(&slices);
    assert!(
        listed.contains(&format!("{}=false", names[0]))
            && listed.contains(&format!("{}=true", names[1])),
        "{listed}"
    );
    let restarts = cluster.kubectl(&["get", "pods", "-l", "app=web", "--no-headers"]);
    assert!(
        restarts
            .lines()
            .all(|line| line.split_whitespace().nth(3) == Some("0")),
        "{restarts}"
    );
}

/// Soon every answer comes from one of these pods, and each of them answers.
fn answers_come_from(cluster: &Cluster, address: std::net::SocketAddr, names: &[&str]) {
    const ANSWERS: usize = 20;
    let mut last = Vec::new();
    let settled = poll(MINUTE, || {
        let answers = (0..ANSWERS).map(|_| fetch(address, "/hostname").unwrap_or_default());
        last = answers
            .map(|answer| {
                answer
                    .trim()
                    .rsplit('\n')
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect();
        last.iter().all(|name| names.contains(&name.as_str()))
            && names
                .iter()
                .all(|name| last.iter().any(|other| other == name))
    });
    if !settled {
        cluster.explain();
        panic!("answers come from {last:?}, not {names:?}");
    }
}

fn failing_containers_are_restarted(cluster: &Cluster) {
    let restarted = |out: &str| {
        out.lines()
            .nth(1)
            .is_some_and(|line| line.split_whitespace().nth(3) != Some("0"))
    };
    let told = |name: &str| cluster.kubectl(&["events", "--for", &format!("pod/{name}")]);
    cluster.eventually(MINUTE, &["get", "pod", "sick"], restarted);
    let events = told("sick");
    for text in [
        "Liveness probe failed: cat: can't open '/tmp/alive': No such file or directory",
        "Container main failed liveness probe, will be restarted",
    ] {
        assert!(events.contains(text), "no {text:?} in\n{events}");
    }
    cluster.eventually(MINUTE, &["get", "pod", "slow"], restarted);
    let events = told("slow");
    for text in [
        "Startup probe failed: not yet",
        "Container main failed startup probe, will be restarted",
    ] {
        assert!(events.contains(text), "no {text:?} in\n{events}");
    }
    cluster.eventually(MINUTE, &["get", "pod", "crashing"], |out| {
        out.contains("CrashLoopBackOff")
    });
    let events = told("crashing");
    assert!(
        events.contains("Back-off restarting failed container main in pod crashing_default("),
        "{events}"
    );
    let described = cluster.kubectl(&["describe", "pod", "crashing"]);
    for text in [
        "Reason:       CrashLoopBackOff",
        "Last State:     Terminated",
        "Exit Code:    7",
    ] {
        assert!(described.contains(text), "no {text:?} in\n{described}");
    }
}
