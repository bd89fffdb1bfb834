//! Replicas that really run: each answers for itself, follows its controller, and is made anew where
//! the node would not have it.

use std::time::Duration;

use crate::harness::{Cluster, has_kubectl, words};

const PATIENCE: Duration = Duration::from_secs(180);

/// A controller of pods that serve a page each, which says their name and `version`.
fn serving(kind: &str, name: &str, replicas: u32, version: &str) -> String {
    let (group, selector) = match kind {
        "ReplicationController" => ("v1", format!("{{app: {name}}}")),
        _ => ("apps/v1", format!("{{matchLabels: {{app: {name}}}}}")),
    };
    format!(
        "
apiVersion: {group}
kind: {kind}
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {selector}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'mkdir /www; echo $(hostname) {version} > /www/index.html; exec httpd -f -p 8080 -h /www']
        ports: [{{containerPort: 8080}}]
        readinessProbe: {{httpGet: {{port: 8080}}, periodSeconds: 1}}
---
"
    )
}

/// Names of the pods that are ready, in order.
fn ready(cluster: &Cluster, app: &str, count: usize) -> Vec<String> {
    let template = "{{range .items}}{{$name := .metadata.name}}{{range .status.conditions}}\
        {{if and (eq .type \"Ready\") (eq .status \"True\")}}{{$name}} {{end}}{{end}}{{end}}";
    let selector = format!("app={app}");
    let arguments = [
        "get",
        "pods",
        "-l",
        &selector,
        "-o",
        "go-template",
        "--template",
        template,
    ];
    let names = |out: &str| -> Vec<String> { out.split_whitespace().map(str::to_owned).collect() };
    let out = cluster.eventually(PATIENCE, &arguments, |out| names(out).len() == count);
    names(&out)
}

/// Asks each pod through the API server.
fn each_answers_for_itself(cluster: &Cluster, pods: &[String], version: &str) {
    for pod in pods {
        let path = format!("/api/v1/namespaces/default/pods/{pod}:8080/proxy/");
        let said = cluster.kubectl(&["get", "--raw", &path]);
        assert_eq!(said, format!("{pod} {version}\n"));
    }
}

/// Conformance: Replication Controller, run basic image
/// Conformance: Replica Set, run basic image
/// Conformance: Kubectl, replication controller
/// Conformance: Kubectl, scale replication controller
#[test]
fn every_replica_serves() {
    if !has_kubectl("every_replica_serves") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    for (kind, name) in [("ReplicaSet", "set"), ("ReplicationController", "demo")] {
        cluster.apply(&serving(kind, name, 2, "one"));
        each_answers_for_itself(&cluster, &ready(&cluster, name, 2), "one");
    }
    for replicas in [1, 2] {
        let wish = format!("--replicas={replicas}");
        let said = cluster.kubectl(&["scale", "rc", "demo", &wish, "--timeout=180s"]);
        assert!(said.contains("replicationcontroller/demo scaled"), "{said}");
        each_answers_for_itself(&cluster, &ready(&cluster, "demo", replicas), "one");
    }
    let manifest = cluster.folder.path().join("manifest.yaml");
    let manifest = manifest.display().to_string();
    cluster.kubectl(&["delete", "--grace-period=0", "--force", "-f", &manifest]);
    let of_demo = ["get", "rc,pods", "-l", "app=demo"];
    cluster.eventually(PATIENCE, &of_demo, |out| out.contains("No resources found"));
}

/// A pod that takes a port of the node, and a StatefulSet that wants the same on the same node; both
/// name their node, so that no scheduler keeps them apart.
fn rivals(node: &str) -> [String; 2] {
    let spec = format!(
        "{{nodeName: {node}, terminationGracePeriodSeconds: 0, containers: [{{name: main, image: busybox, \
         imagePullPolicy: IfNotPresent, command: [sleep, '3600'], \
         ports: [{{containerPort: 21017, hostPort: 21017}}]}}]}}"
    );
    let set = format!(
        "
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: ss}}
spec:
  serviceName: ss
  selector: {{matchLabels: {{app: ss}}}}
  template: {{metadata: {{labels: {{app: ss}}}}, spec: {spec}}}
"
    );
    let pod = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: first}}\nspec: {spec}\n");
    [pod, set]
}

/// Conformance: StatefulSet, Recreate Failed Pod
#[test]
fn a_pod_that_the_node_refuses_is_made_again_until_it_fits() {
    if !has_kubectl("a_pod_that_the_node_refuses_is_made_again_until_it_fits") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    let node = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let [first, set] = rivals(&node);
    cluster.apply(&first);
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/first",
        "--timeout=180s",
    ]);
    cluster.apply(&set);
    let refused =
        "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    cluster.eventually(PATIENCE, &["get", "events"], |out| {
        let out = words(out);
        out.contains(refused) && out.contains("Delete Pod ss-0 in StatefulSet ss successful")
    });
    cluster.kubectl(&["delete", "pod", "first"]);
    cluster.eventually(PATIENCE, &["get", "pods"], |out| {
        words(out).contains("ss-0 1/1 Running 0")
    });
}

#[test]
fn what_does_not_fit_the_node_is_refused_by_it() {
    if !has_kubectl("what_does_not_fit_the_node_is_refused_by_it") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    let node = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let pod = |name: &str, more: &str| {
        format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: main, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '3600']{more}
---"
        )
    };
    let manifest = [
        pod("greedy", ", resources: {requests: {cpu: 4k}}}"),
        pod("choosy", "}\n  nodeSelector: {disk: fast}"),
        pod("modest", ", resources: {requests: {cpu: 1m}}}"),
    ];
    cluster.apply(&manifest.concat());
    cluster.eventually(PATIENCE, &["get", "pods"], |out| {
        let out = words(out);
        out.contains("greedy 0/1 OutOfcpu 0")
            && out.contains("choosy 0/1 NodeAffinity 0")
            && out.contains("modest 1/1 Running 0")
    });
    let told = words(&cluster.kubectl(&["describe", "pod", "greedy"]));
    let why =
        "Message: Pod was rejected: Node didn't have enough resource: cpu, requested: 4000000";
    assert!(told.contains(why), "{told}");
    cluster.kubectl(&["label", "node", &node, "disk=fast"]);
    cluster.apply(&manifest[1].replace("name: choosy", "name: content"));
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/content",
        "--timeout=180s",
    ]);
    cluster.kubectl(&["delete", "pods", "--all"]);
}
