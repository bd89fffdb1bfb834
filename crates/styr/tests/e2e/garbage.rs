//! What goes with what is deleted, and what stays.

use std::time::Duration;

use crate::harness::{Cluster, has_kubectl};

const MINUTE: Duration = Duration::from_secs(60);

fn web(name: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {{name: main, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '3600']}}
"
    )
}

#[test]
fn what_belongs_to_the_deleted_goes_with_it() {
    if !has_kubectl("what_belongs_to_the_deleted_goes_with_it") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    let names = ["background", "foreground", "orphan"];
    let manifests: Vec<String> = names.iter().map(|name| web(name)).collect();
    cluster.apply(&manifests.join("---"));
    for name in names {
        cluster.kubectl(&[
            "rollout",
            "status",
            &format!("deployment/{name}"),
            "--timeout=60s",
        ]);
    }
    let of = |name: &str, kinds: &str| {
        let label = format!("app={name}");
        cluster.kubectl(&["get", kinds, "-l", &label, "-o", "name"])
    };
    cluster.kubectl(&["delete", "deployment", "background"]);
    cluster.eventually(
        MINUTE,
        &["get", "rs,pods", "-l", "app=background", "-o", "name"],
        str::is_empty,
    );
    // In the foreground nothing is left by the time the owner is gone.
    cluster.kubectl(&["delete", "deployment", "foreground", "--cascade=foreground"]);
    assert_eq!(of("foreground", "rs,pods"), "");

    let before = of("orphan", "rs,pods");
    cluster.kubectl(&["delete", "deployment", "orphan", "--cascade=orphan"]);
    let owners = "jsonpath={.items[*].metadata.ownerReferences}";
    cluster.eventually(
        MINUTE,
        &["get", "rs", "-l", "app=orphan", "-o", owners],
        str::is_empty,
    );
    assert_eq!(of("orphan", "rs,pods"), before);
    let set = of("orphan", "rs");
    cluster.kubectl(&["delete", set.trim(), "--cascade=orphan"]);
    cluster.eventually(
        MINUTE,
        &["get", "pods", "-l", "app=orphan", "-o", owners],
        str::is_empty,
    );
    assert!(before.contains(&of("orphan", "pods")), "{before}");
    // A Deployment of the same selector takes the orphans on again.
    let pods = of("orphan", "pods");
    cluster.apply(&web("orphan"));
    cluster.kubectl(&["rollout", "status", "deployment/orphan", "--timeout=60s"]);
    assert_eq!(of("orphan", "pods"), pods);
    a_namespace_goes_with_everything_in_it(&cluster);
}

fn a_namespace_goes_with_everything_in_it(cluster: &Cluster) {
    cluster.kubectl(&["create", "namespace", "doomed"]);
    let manifest = cluster.folder.path().join("doomed.yaml");
    std::fs::write(&manifest, web("app")).expect("writing");
    let manifest = manifest.display().to_string();
    cluster.kubectl(&["apply", "-n", "doomed", "-f", &manifest]);
    cluster.kubectl(&[
        "create",
        "-n",
        "doomed",
        "configmap",
        "held",
        "--from-literal=a=b",
    ]);
    cluster.kubectl(&[
        "create",
        "-n",
        "doomed",
        "service",
        "clusterip",
        "app",
        "--tcp=80",
    ]);
    cluster.kubectl(&[
        "rollout",
        "status",
        "-n",
        "doomed",
        "deployment/app",
        "--timeout=60s",
    ]);
    let finalizer = |list: &str| {
        let patch = format!("{{\"metadata\": {{\"finalizers\": {list}}}}}");
        cluster.kubectl(&[
            "patch",
            "-n",
            "doomed",
            "cm",
            "held",
            "--type=merge",
            "-p",
            &patch,
        ]);
    };
    finalizer("[\"example.com/hold\"]");
    cluster.kubectl(&["delete", "namespace", "doomed", "--wait=false"]);
    // Nothing new gets in, and the namespace says what it waits for.
    let status = ["get", "namespace", "doomed", "-o", "jsonpath={.status}"];
    cluster.eventually(MINUTE, &status, |out| {
        out.contains("Terminating") && out.contains("example.com/hold in 1 resource instances")
    });
    let refused = cluster.kubectl_any(&["create", "-n", "doomed", "configmap", "late"]);
    assert_eq!(
        String::from_utf8_lossy(&refused.stderr).trim(),
        "error: failed to create configmap: configmaps \"late\" is forbidden: unable to create new content in \
         namespace doomed because it is being terminated"
    );
    cluster.eventually(
        MINUTE,
        &["get", "all", "-n", "doomed", "-o", "name"],
        str::is_empty,
    );
    finalizer("[]");
    cluster.kubectl(&["wait", "--for=delete", "namespace/doomed", "--timeout=60s"]);
    cluster.kubectl(&["create", "namespace", "doomed"]);
    let held = cluster.kubectl_any(&["get", "-n", "doomed", "cm", "held"]);
    assert!(!held.status.success(), "an object outlived its namespace");
}
