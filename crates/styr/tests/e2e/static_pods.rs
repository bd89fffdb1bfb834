//! Pods from files on the node.

use std::time::Duration;

use crate::harness::{Cluster, has_kubectl};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn pods_from_files_on_the_node_come_and_go_with_the_files() {
    if !has_kubectl("pods_from_files_on_the_node_come_and_go_with_the_files") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    let folder = cluster.dir().join("manifests");
    std::fs::create_dir_all(&folder).expect("the folder");
    let write = |said: &str| {
        let text = format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: fixed, namespace: kube-system}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo {said}; sleep 3600']
"
        );
        let new = cluster.folder.path().join("fixed.yaml");
        std::fs::write(&new, text).expect("writing");
        std::fs::rename(new, folder.join("fixed.yaml")).expect("moving");
    };
    write("first");
    let node = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let mirror = format!("fixed-{node}");
    let get = ["get", "pod", "-n", "kube-system", &mirror];
    let logs = ["logs", "-n", "kube-system", &mirror];
    cluster.eventually(MINUTE, &get, |out| out.contains("Running"));
    cluster.eventually(MINUTE, &logs, |out| out == "first\n");
    // Deleted through the API, only its image there goes, and comes back.
    cluster.kubectl(&["delete", "pod", "-n", "kube-system", &mirror]);
    cluster.eventually(MINUTE, &get, |out| out.contains("Running"));
    assert_eq!(cluster.kubectl(&logs), "first\n");
    write("second");
    cluster.eventually(MINUTE, &logs, |out| out == "second\n");
    std::fs::remove_file(folder.join("fixed.yaml")).expect("removing");
    cluster.eventually(MINUTE, &get, |out| out.contains("NotFound"));
}
