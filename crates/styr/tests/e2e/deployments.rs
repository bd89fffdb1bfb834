//! ReplicaSets and Deployments as a course teaches them, by what stock kubectl prints.

use std::time::Duration;

use crate::harness::{Cluster, fetch, has_kubectl, node_port, words};

const PATIENCE: Duration = Duration::from_secs(180);

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80}]
---
";

fn replica_set(replicas: u32) -> String {
    format!(
        "{SERVICE}
apiVersion: apps/v1
kind: ReplicaSet
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {{name: nginx, image: 'nginx:1.0', ports: [{{containerPort: 80}}]}}
"
    )
}

fn names(cluster: &Cluster, kind: &str) -> Vec<String> {
    let path = "jsonpath={.items[*].metadata.name}";
    let names = cluster.kubectl(&["get", kind, "-l", "app=web", "-o", path]);
    names.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_replica_set_replaces_scales_lets_go_and_takes_in() {
    if !has_kubectl("a_replica_set_replaces_scales_lets_go_and_takes_in") {
        return;
    }
    let cluster = Cluster::up(&["nginx"]);
    let said = cluster.apply(&replica_set(3));
    assert!(said.contains("replicaset.apps/web created"), "{said}");
    let all_of = |count: usize| {
        move |out: &str| {
            let counts = format!(" {count} {count} {count} ");
            words(out).contains(&counts) && out.contains("NAME")
        }
    };
    cluster.eventually(PATIENCE, &["get", "replicaset", "web"], all_of(3));
    let all = cluster.kubectl(&["get", "all"]);
    for kind in ["pod/web-", "service/web", "replicaset.apps/web"] {
        assert!(all.contains(kind), "{kind}: {all}");
    }
    let address = node_port(&cluster, "web");
    assert!(fetch(address, "/").expect("it answers").contains("1.0"));

    let lost = names(&cluster, "pods").remove(0);
    cluster.kubectl(&["delete", "pod", &lost]);
    cluster.eventually(PATIENCE, &["get", "replicaset", "web"], all_of(3));
    assert!(!names(&cluster, "pods").contains(&lost));
    cluster.apply(&replica_set(5));
    cluster.eventually(PATIENCE, &["get", "replicaset", "web"], all_of(5));
    let told = cluster.eventually(PATIENCE, &["describe", "replicaset", "web"], |out| {
        out.contains("5 Running / 0 Waiting / 0 Succeeded / 0 Failed")
    });
    for text in [
        "Replicas: 5 current / 5 desired",
        "SuccessfulCreate",
        "replicaset-controller",
        "Created pod: web-",
    ] {
        assert!(words(&told).contains(text), "{text}: {told}");
    }

    // A pod whose label is changed is let go and replaced, and taken in when it is changed back.
    let quarantined = names(&cluster, "pods").remove(0);
    let owner = [
        "get",
        "pod",
        &quarantined,
        "-o",
        "jsonpath={.metadata.ownerReferences[*].name}",
    ];
    cluster.kubectl(&["label", "pod", &quarantined, "app=suspect", "--overwrite"]);
    cluster.eventually(PATIENCE, &owner, str::is_empty);
    cluster.eventually(PATIENCE, &["get", "replicaset", "web"], all_of(5));
    cluster.kubectl(&["scale", "replicaset", "web", "--replicas=4"]);
    cluster.eventually(PATIENCE, &["get", "replicaset", "web"], all_of(4));
    cluster.kubectl(&["delete", "replicaset", "web", "--cascade=orphan"]);
    cluster.kubectl(&["label", "pod", &quarantined, "app=web", "--overwrite"]);
    cluster.apply(&replica_set(5));
    cluster.eventually(PATIENCE, &owner, |out| out == "web");
    cluster.eventually(PATIENCE, &["get", "replicaset", "web"], all_of(5));
    cluster.kubectl(&["delete", "replicaset", "web"]);
    cluster.eventually(PATIENCE, &["get", "pods"], |out| {
        out.contains("No resources found")
    });
}

#[test]
fn rollouts_are_followed_undone_paused_and_restarted() {
    if !has_kubectl("rollouts_are_followed_undone_paused_and_restarted") {
        return;
    }
    let cluster = Cluster::up(&["nginx"]);
    cluster.kubectl(&[
        "create",
        "deployment",
        "web",
        "--image=nginx:1.0",
        "--replicas=3",
    ]);
    let quick = r#"{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":1}}}}"#;
    cluster.kubectl(&["patch", "deployment", "web", "-p", quick]);
    rolled_out(&cluster);
    let cause = |text: &str| {
        let cause = format!("kubernetes.io/change-cause={text}");
        cluster.kubectl(&["annotate", "deployment/web", &cause, "--overwrite"]);
    };
    cause("first");
    cluster.eventually(PATIENCE, &["rollout", "history", "deployment/web"], |out| {
        words(out).ends_with("2 first")
    });

    cluster.kubectl(&["set", "image", "deployment/web", "nginx=nginx:2.0"]);
    cause("second");
    rolled_out(&cluster);
    let history = cluster.kubectl(&["rollout", "history", "deployment/web"]);
    assert!(
        words(&history).ends_with("2 first 3 second"),
        "the causes: {history}"
    );
    let third = cluster.kubectl(&["rollout", "history", "deployment/web", "--revision=3"]);
    for text in [
        "deployment.apps/web with revision #3",
        "Image:\tnginx:2.0",
        "pod-template-hash=",
        "kubernetes.io/change-cause: second",
    ] {
        assert!(third.contains(text), "{text}: {third}");
    }

    let said = cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    assert_eq!(said, "deployment.apps/web rolled back\n");
    rolled_out(&cluster);
    assert_eq!(image(&cluster), "nginx:1.0");
    let history = cluster.kubectl(&["rollout", "history", "deployment/web"]);
    assert!(words(&history).ends_with("3 second 4 first"), "{history}");
    cluster.kubectl(&["rollout", "undo", "deployment/web", "--to-revision=3"]);
    rolled_out(&cluster);
    assert_eq!(image(&cluster), "nginx:2.0");
    refused(
        &cluster,
        &["rollout", "undo", "deployment/web", "--to-revision=77"],
        "unable to find specified revision 77 in history",
    );
    pause_and_resume(&cluster);
    restart(&cluster);
    stuck(&cluster);
}

fn rolled_out(cluster: &Cluster) {
    let said = cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=180s"]);
    let end = "deployment \"web\" successfully rolled out\n";
    assert!(said.ends_with(end), "{said}");
}

fn image(cluster: &Cluster) -> String {
    let path = "jsonpath={.spec.template.spec.containers[0].image}";
    cluster.kubectl(&["get", "deployment", "web", "-o", path])
}

fn refused(cluster: &Cluster, arguments: &[&str], text: &str) {
    let output = cluster.kubectl_any(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?}");
    assert!(said.contains(text), "{arguments:?}: {said}");
}

fn pause_and_resume(cluster: &Cluster) {
    let before = names(cluster, "replicasets");
    let said = cluster.kubectl(&["rollout", "pause", "deployment/web"]);
    assert_eq!(said, "deployment.apps/web paused\n");
    cluster.eventually(PATIENCE, &["describe", "deployment", "web"], |out| {
        words(out).contains("Progressing Unknown DeploymentPaused")
    });
    cluster.kubectl(&["set", "image", "deployment/web", "nginx=nginx:1.0"]);
    cluster.kubectl(&["set", "env", "deployment/web", "COLOR=blue"]);
    refused(
        cluster,
        &["rollout", "undo", "deployment/web"],
        "you cannot rollback a paused deployment",
    );
    // It is scaled all the same, with the template that runs.
    cluster.kubectl(&["scale", "deployment/web", "--replicas=4"]);
    cluster.eventually(PATIENCE, &["get", "deployment", "web"], |out| {
        words(out).contains("web 4/4 0 4")
    });
    assert_eq!(names(cluster, "replicasets"), before);
    let said = cluster.kubectl(&["rollout", "resume", "deployment/web"]);
    assert_eq!(said, "deployment.apps/web resumed\n");
    rolled_out(cluster);
    // Both changes were one step.
    assert_eq!(names(cluster, "replicasets").len(), before.len() + 1);
    cluster.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    cluster.eventually(PATIENCE, &["get", "deployment", "web"], |out| {
        words(out).contains("web 3/3 3 3")
    });
}

fn restart(cluster: &Cluster) {
    let said = cluster.kubectl(&["rollout", "restart", "deployment/web"]);
    assert_eq!(said, "deployment.apps/web restarted\n");
    rolled_out(cluster);
    let told = cluster.eventually(PATIENCE, &["describe", "deployment", "web"], |out| {
        out.contains("3 desired | 3 updated | 3 total | 3 available | 0 unavailable")
    });
    let flat = words(&told);
    for text in [
        "Annotations: kubectl.kubernetes.io/restartedAt: ",
        "Available True MinimumReplicasAvailable",
        "Progressing True NewReplicaSetAvailable",
        "(0/0 replicas created)",
        "(3/3 replicas created)",
        "Normal ScalingReplicaSet",
        "deployment-controller",
        "Scaled up replica set web-",
        "Scaled down replica set web-",
        "from 0 to 1",
        "StrategyType: RollingUpdate",
        "RollingUpdateStrategy: 25% max unavailable, 25% max surge",
    ] {
        assert!(flat.contains(text), "{text}: {told}");
    }
}

/// An image that there is not: the roll-out stops, the old pods stay.
fn stuck(cluster: &Cluster) {
    let soon = r#"{"spec":{"progressDeadlineSeconds":2}}"#;
    cluster.kubectl(&["patch", "deployment", "web", "-p", soon]);
    rolled_out(cluster);
    cluster.kubectl(&["set", "image", "deployment/web", "nginx=nginx:nonesuch"]);
    refused(
        cluster,
        &["rollout", "status", "deployment/web", "--timeout=180s"],
        "error: deployment \"web\" exceeded its progress deadline",
    );
    let told = cluster.kubectl(&["describe", "deployment", "web"]);
    assert!(
        words(&told).contains("Progressing False ProgressDeadlineExceeded"),
        "{told}"
    );
    let shown = cluster.kubectl(&["get", "deployment", "web"]);
    assert!(words(&shown).contains("web 3/3 1 3"), "{shown}");
    let late = soon.replace('2', "600");
    cluster.kubectl(&["patch", "deployment", "web", "-p", &late]);
    cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    rolled_out(cluster);
}

/// Each pod takes a lock that all share, and gives it back when it has been told to end.
const RECREATE: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  strategy: {type: Recreate}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 30
      containers:
      - name: main
        image: busybox
        imagePullPolicy: IfNotPresent
        env: [{name: VERSION, value: 'one'}]
        command:
        - sh
        - -c
        - |
          trap 'sleep 1; rmdir /shared/lock; exit 0' TERM
          mkdir /shared/lock || echo $VERSION >> /shared/overlaps
          echo $VERSION >> /shared/started
          while true; do sleep 0.1; done
        volumeMounts: [{name: shared, mountPath: /shared}]
      volumes:
      - {name: shared, hostPath: {path: FOLDER, type: DirectoryOrCreate}}
";

#[test]
fn recreate_ends_the_old_pod_before_it_starts_the_new_one() {
    if !has_kubectl("recreate_ends_the_old_pod_before_it_starts_the_new_one") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    let shared = cluster.folder.path().join("shared");
    cluster.apply(&RECREATE.replace("FOLDER", &shared.display().to_string()));
    rolled_out(&cluster);
    for version in ["two", "three"] {
        let variable = format!("VERSION={version}");
        cluster.kubectl(&["set", "env", "deployment/web", &variable]);
        rolled_out(&cluster);
    }
    cluster.eventually(PATIENCE, &["get", "pods", "-l", "app=web"], |out| {
        out.matches("web-").count() == 1 && out.contains("1/1")
    });
    let path = "jsonpath={.items[0].metadata.name}";
    let pod = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", path]);
    let read = ["exec", &pod, "--", "cat", "/shared/started"];
    cluster.eventually(PATIENCE, &read, |out| out == "one\ntwo\nthree\n");
    assert!(!shared.join("overlaps").exists(), "two pods at once");
    let told = cluster.kubectl(&["describe", "deployment", "web"]);
    assert!(words(&told).contains("StrategyType: Recreate"), "{told}");
    assert!(told.contains("from 1 to 0") && told.contains("from 0 to 1"));
}
