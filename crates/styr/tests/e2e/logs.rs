//! `kubectl logs` in every form.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::{Cluster, has_kubectl, kubectl};

const MINUTE: Duration = Duration::from_secs(60);

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: counter, labels: {app: counter}}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'i=1; while [ ! -e /tmp/end ]; do echo line $i; i=$((i+1)); sleep 0.05; done; echo bye']
  - name: side
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo from the side >&2; sleep 3600']
---
apiVersion: v1
kind: Pod
metadata: {name: failing}
spec:
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, '[ -e /kept/file ] && echo second run && sleep 3600; echo first run; touch /kept/file; exit 1']
    volumeMounts: [{name: kept, mountPath: /kept}]
  terminationGracePeriodSeconds: 1
  volumes: [{name: kept, emptyDir: {}}]
";

#[test]
fn logs_are_followed_and_those_of_earlier_runs_are_kept() {
    if !has_kubectl("logs_are_followed_and_those_of_earlier_runs_are_kept") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    cluster.apply(PODS);
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/counter",
        "--timeout=60s",
    ]);
    logs_are_followed(&cluster);
    logs_are_chosen(&cluster);
    earlier_runs_are_kept(&cluster);
}

/// Lines come as they are written, in order, until the container ends.
fn logs_are_followed(cluster: &Cluster) {
    let kubectl = kubectl().expect("kubectl is there");
    let mut child = cluster
        .kubectl_command(&kubectl, &["logs", "-f", "counter", "-c", "main"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl can be started");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut number = 0;
    let mut last = String::new();
    for line in lines {
        last = line.expect("a line");
        if last == "bye" {
            break;
        }
        number += 1;
        assert_eq!(last, format!("line {number}"));
        if number == 40 {
            cluster.kubectl(&["exec", "counter", "-c", "main", "--", "touch", "/tmp/end"]);
        }
    }
    assert_eq!(last, "bye", "after {number} lines");
    assert!(child.wait().expect("it ends").success());
}

fn logs_are_chosen(cluster: &Cluster) {
    let logs = |arguments: &[&str]| cluster.kubectl(&[&["logs"], arguments].concat());
    assert_eq!(
        logs(&["counter", "-c", "main", "--tail=1"]),
        "bye\n",
        "--tail"
    );
    assert_eq!(logs(&["counter", "-c", "side"]), "from the side\n");
    let first = "from the side".len() as i64;
    let limit = format!("--limit-bytes={first}");
    assert_eq!(logs(&["counter", "-c", "side", &limit]), "from the side");
    let all = logs(&["-l", "app=counter", "--all-containers", "--prefix"]);
    assert!(
        all.contains("[pod/counter/side] from the side\n"),
        "--prefix: {all}"
    );
    assert!(all.contains("[pod/counter/main] bye\n"), "--prefix: {all}");
    // What was said at least two seconds ago is left out.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(logs(&["counter", "-c", "main", "--since=1s"]), "");
    let stamped = logs(&["counter", "-c", "main", "--timestamps", "--tail=2"]);
    let mut stamps = stamped.lines().filter_map(|line| line.split_once(' '));
    let (before, _) = stamps.next().expect("a line");
    let (last, _) = stamps.next().expect("a second line");
    assert!(before < last, "{stamped}");
    // kubectl asks by the second.
    let since = format!("--since-time={last}");
    let late = logs(&["counter", "-c", "main", &since]);
    assert!(
        late.ends_with("bye\n") && !late.contains("line 1\n"),
        "{late}"
    );
    let refused = cluster.kubectl_any(&["logs", "counter", "-c", "main", "-p"]);
    assert_eq!(
        String::from_utf8_lossy(&refused.stderr).trim(),
        "Error from server (BadRequest): previous terminated container \"main\" in pod \"counter\" not found"
    );
    let refused = cluster.kubectl_any(&["logs", "counter", "-c", "nonesuch"]);
    assert_eq!(
        String::from_utf8_lossy(&refused.stderr).trim(),
        "error: container nonesuch is not valid for pod counter"
    );
}

fn earlier_runs_are_kept(cluster: &Cluster) {
    let restarted = |out: &str| out.contains("Running") && out.contains("1/1");
    cluster.eventually(MINUTE, &["get", "pod", "failing"], restarted);
    let count = cluster.kubectl(&[
        "get",
        "pod",
        "failing",
        "-o",
        "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].lastState.terminated.exitCode}",
    ]);
    assert_eq!(count, "1 1");
    assert_eq!(cluster.kubectl(&["logs", "-p", "failing"]), "first run\n");
    assert_eq!(cluster.kubectl(&["logs", "failing"]), "second run\n");
    let waits = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
    cluster.kubectl(&[
        "run",
        "looping",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "--",
        "sh",
        "-c",
        "echo over; false",
    ]);
    let looping = |out: &str| out == "CrashLoopBackOff";
    cluster.eventually(MINUTE, &["get", "pod", "looping", "-o", waits], looping);
    assert_eq!(cluster.kubectl(&["logs", "-p", "looping"]), "over\n");
    // A pod that has just been made has no logs yet, and is waited for.
    let start = Instant::now();
    cluster.kubectl(&[
        "run",
        "late",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "--restart=Never",
        "--",
        "echo",
        "late",
    ]);
    let said = cluster.eventually(MINUTE, &["logs", "late"], |out| out == "late\n");
    assert_eq!(said, "late\n", "after {:?}", start.elapsed());
}
