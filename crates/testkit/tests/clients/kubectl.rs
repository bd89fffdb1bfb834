//! What the conformance list asks of kubectl and needs no containers for.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};
use testkit::{Cluster, FakeNode, Served, eventually, objects};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::go::built;
use crate::tools::*;

/// One user after the other, each with another kubectl: the released ones that the machine has, and the
/// newest where there is Go to build it.
struct Users(std::vec::IntoIter<PathBuf>);

impl Users {
    async fn of(test: &str) -> Self {
        let mut all = kubectls();
        all.extend(built(test, "kubectl", "./kubectl").await);
        if all.is_empty() {
            left_out(test, "there is no kubectl on this machine");
        }
        Self(all.into_iter())
    }

    async fn next(&mut self) -> Option<User> {
        Some(User::new(self.0.next()?).await)
    }
}

struct User {
    cluster: Cluster,
    served: Served,
    kubectl: PathBuf,
    _node: FakeNode,
}

impl User {
    /// One with a cluster of controllers and a node.
    async fn new(kubectl: PathBuf) -> Self {
        eprintln!("with {}", kubectl.display());
        let cluster = Cluster::start().await.unwrap();
        let node = cluster.add_node_with_agent("n1").await.unwrap();
        let served = cluster.serve().await.unwrap();
        Self {
            cluster,
            served,
            kubectl,
            _node: node,
        }
    }

    async fn run(&self, arguments: &[&str]) -> String {
        let mut command = command(&self.kubectl, &self.served);
        command.args(arguments);
        succeed(command).await
    }

    async fn says(&self, arguments: &[&str], texts: &[&str]) {
        let said = self.run(arguments).await;
        for text in texts {
            assert!(said.contains(text), "{arguments:?}: no {text:?} in\n{said}");
        }
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let mut command = command(&self.kubectl, &self.served);
        command.args(arguments);
        let output = run(command).await;
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}\n{}", said(&output)))
    }

    /// What a command says that is told `hello` and no more.
    async fn hears(&self, arguments: &[&str]) -> String {
        let mut command = command(&self.kubectl, &self.served);
        command.args(arguments).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"hello\n").await.unwrap();
        drop(stdin);
        let limit = tokio::time::timeout(PATIENCE, child.wait_with_output());
        said(&limit.await.expect("an end").unwrap())
    }

    /// A port of the pod on one of this machine.
    async fn forwards(&self) {
        let mut command = command(&self.kubectl, &self.served);
        command.args(["port-forward", "pod/httpd", ":8080", "--address=127.0.0.1"]);
        command.stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let limit = tokio::time::timeout(PATIENCE, lines.next_line());
        let line = limit.await.expect("a line").unwrap().unwrap_or_default();
        let told = line.strip_prefix("Forwarding from 127.0.0.1:");
        let port = told
            .and_then(|rest| rest.split(' ').next())
            .unwrap_or_else(|| panic!("{line}"));
        let address = format!("127.0.0.1:{port}");
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(b"hello").await.unwrap();
        connection.shutdown().await.unwrap();
        let mut heard = String::new();
        connection.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello");
        child.kill().await.unwrap();
    }

    async fn create(&self, object: Value) {
        objects(&self.cluster.client(), &[object]).await.unwrap();
    }

    fn file(&self, called: &str, object: &Value) -> String {
        let path = self.served.folder().join(called);
        std::fs::write(&path, object.to_string()).unwrap();
        path.display().to_string()
    }

    async fn pod(&self) {
        self.run(&["run", "httpd", "--image=httpd:1", "--labels=name=httpd"])
            .await;
        self.run(&[
            "wait",
            "--for=condition=Ready",
            "pod/httpd",
            "--timeout=20s",
        ])
        .await;
    }

    async fn controller(&self) {
        let labels = json!({"app": "agnhost", "role": "primary"});
        let container = json!({"name": "agnhost-primary", "image": "agnhost:1", "ports": [{"name": "agnhost-server", "containerPort": 6379}]});
        self.create(json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "agnhost-primary"},
            "spec": {"replicas": 1, "selector": labels, "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}}}))
            .await;
        self.count(1).await;
    }

    async fn count(&self, count: u64) {
        eventually("ready replicas", || async {
            let said = self
                .json(&["get", "rc", "agnhost-primary", "-o", "json"])
                .await;
            Ok(
                (said["status"]["readyReplicas"] == count && said["status"]["replicas"] == count)
                    .then_some(()),
            )
        })
        .await
        .unwrap();
    }
}

fn deployment(image: &str) -> Value {
    let labels = json!({"app": "httpd"});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "httpd-deployment"},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"containers": [{"name": "httpd", "image": image}]}}}})
}

/// Conformance: Kubectl, check version v1
/// Conformance: Kubectl, cluster info
/// Conformance: Kubectl, version
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_says_what_cluster_it_is() {
    let mut users = Users::of("kubectl_says_what_cluster_it_is").await;
    while let Some(user) = users.next().await {
        let versions = user.run(&["api-versions"]).await;
        assert!(versions.lines().any(|line| line == "v1"), "{versions}");
        user.says(
            &["cluster-info"],
            &["Kubernetes control plane", "is running at"],
        )
        .await;
        user.says(
            &["version"],
            &["Client Version: ", "Server Version: ", "v1.37"],
        )
        .await;
    }
}

/// Conformance: Kubectl, label update
/// Conformance: Kubectl, run pod
/// Conformance: Kubectl, server-side dry-run Pod
/// Conformance: Kubectl, replace
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_runs_and_changes_pods() {
    let mut users = Users::of("kubectl_runs_and_changes_pods").await;
    while let Some(user) = users.next().await {
        user.pod().await;
        let image = async || {
            user.json(&["get", "pod", "httpd", "-o", "json"]).await["spec"]["containers"][0]["image"]
            .take()
        };
        assert_eq!(image().await, "httpd:1");
        user.run(&[
            "label",
            "pods",
            "httpd",
            "testing-label=testing-label-value",
        ])
        .await;
        user.says(
            &["get", "pod", "httpd", "-L", "testing-label"],
            &["testing-label-value"],
        )
        .await;
        user.run(&["label", "pods", "httpd", "testing-label-"])
            .await;
        assert!(
            !user
                .run(&["get", "pod", "httpd", "-L", "testing-label"])
                .await
                .contains("testing-label-value")
        );
        let patch =
            json!({"spec": {"containers": [{"name": "httpd", "image": "busybox:1"}]}}).to_string();
        user.run(&["patch", "pod", "httpd", "-p", &patch, "--dry-run=server"])
            .await;
        assert_eq!(image().await, "httpd:1");
        let mut pod = user.json(&["get", "pod", "httpd", "-o", "json"]).await;
        pod["spec"]["containers"][0]["image"] = "busybox:2".into();
        user.run(&["replace", "-f", &user.file("pod.json", &pod)])
            .await;
        assert_eq!(image().await, "busybox:2");
    }
}

/// Conformance: Kubectl, diff Deployment
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_tells_differences() {
    let mut users = Users::of("kubectl_tells_differences").await;
    while let Some(user) = users.next().await {
        user.create(deployment("httpd:1")).await;
        let file = user.file("deployment.json", &deployment("busybox:1"));
        let mut diff = command(&user.kubectl, &user.served);
        diff.args(["diff", "-f", &file]);
        let output = run(diff).await;
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let line = |start: char, text: &str| {
            said.lines()
                .any(|l| l.starts_with(start) && l.contains(text))
        };
        assert!(
            line('-', "image: httpd:1") && line('+', "image: busybox:1"),
            "{said}"
        );
    }
}

/// Conformance: Kubectl, describe pod or rc
/// Conformance: Kubectl, patch to annotate
/// Conformance: Kubectl, create service, replication controller
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_works_with_replication_controllers() {
    let mut users = Users::of("kubectl_works_with_replication_controllers").await;
    while let Some(user) = users.next().await {
        user.controller().await;
        let pods = user
            .json(&["get", "pods", "-l", "app=agnhost", "-o", "json"])
            .await;
        let pod = pods["items"][0]["metadata"]["name"].as_str().unwrap();
        let of_pod = [
            "Name:",
            "Namespace:",
            "Node:",
            "Labels:",
            "role=primary",
            "Status:",
            "IP:",
            "Controlled By:",
            "ReplicationController/agnhost-primary",
            "Image:",
            "QoS Class:",
        ];
        user.says(&["describe", "pod", pod], &of_pod).await;
        let of_controller = [
            "Name:",
            "Selector:",
            "Replicas:",
            "1 current",
            "1 desired",
            "Pods Status:",
            "1 Running",
            "Pod Template:",
            "Events:",
        ];
        user.says(&["describe", "rc", "agnhost-primary"], &of_controller)
            .await;
        user.run(&[
            "patch",
            "pod",
            pod,
            "-p",
            r#"{"metadata":{"annotations":{"x":"y"}}}"#,
        ])
        .await;
        let annotated = user.json(&["get", "pod", pod, "-o", "json"]).await;
        assert_eq!(annotated["metadata"]["annotations"]["x"], "y");
        for (args, port) in [
            (
                [
                    "expose",
                    "rc",
                    "agnhost-primary",
                    "--name=rm2",
                    "--port=1234",
                ],
                1234,
            ),
            (
                ["expose", "service", "rm2", "--name=rm3", "--port=2345"],
                2345,
            ),
        ] {
            let mut args = args.to_vec();
            args.push("--target-port=6379");
            user.run(&args).await;
            let called = args[3].trim_start_matches("--name=");
            let service = user.json(&["get", "service", called, "-o", "json"]).await;
            assert_eq!(service["spec"]["ports"][0]["port"], port);
            eventually("its endpoint", || async {
                let endpoints = user.json(&["get", "endpoints", called, "-o", "json"]).await;
                Ok((endpoints["subsets"][0]["ports"][0]["port"] == 6379).then_some(()))
            })
            .await
            .unwrap();
        }
        user.says(
            &["describe", "service", "rm2"],
            &[
                "Selector:",
                "app=agnhost,role=primary",
                "Endpoints:",
                "6379",
            ],
        )
        .await;
        user.says(
            &["describe", "node", "n1"],
            &[
                "Conditions:",
                "Capacity:",
                "Allocatable:",
                "Non-terminated Pods:",
                pod,
            ],
        )
        .await;
        user.says(
            &["describe", "namespace", "default"],
            &["Status:", "Active"],
        )
        .await;
        for count in [2, 1] {
            user.run(&[
                "scale",
                "rc",
                "agnhost-primary",
                &format!("--replicas={count}"),
            ])
            .await;
            user.count(count).await;
        }
        user.run(&["delete", "rc", "agnhost-primary"]).await;
    }
}

/// Definitions are explained, and what kubectl sends is checked against them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_explains_custom_resources() {
    let mut users = Users::of("kubectl_explains_custom_resources").await;
    while let Some(user) = users.next().await {
        let schema = json!({"type": "object", "description": "Foo CRD for Testing", "properties": {
        "spec": {"type": "object", "description": "Specification of Foo", "properties": {
            "bars": {"type": "array", "description": "List of Bars and their specs.", "items": {"type": "object",
                "required": ["name"], "properties": {"name": {"type": "string", "description": "Name of Bar."}}}}}}}});
        let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "singular": "foo", "kind": "Foo"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
        user.run(&["create", "-f", &user.file("definition.json", &definition)])
            .await;
        user.run(&[
            "wait",
            "--for=condition=Established",
            "crd/foos.example.com",
            "--timeout=20s",
        ])
        .await;
        eventually("the schema", || async {
            let mut explain = command(&user.kubectl, &user.served);
            explain.args(["explain", "foos"]);
            Ok(said(&run(explain).await)
                .contains("Foo CRD for Testing")
                .then_some(()))
        })
        .await
        .unwrap();
        user.says(
            &["explain", "foos"],
            &[
                "KIND:",
                "Foo",
                "DESCRIPTION:",
                "apiVersion",
                "<string>",
                "spec",
                "<Object>",
                "Specification of Foo",
            ],
        )
        .await;
        user.says(
            &["explain", "foos.metadata"],
            &[
                "Standard object's metadata",
                "creationTimestamp",
                "<string>",
            ],
        )
        .await;
        user.says(
            &["explain", "foos.spec.bars"],
            &[
                "<[]Object>",
                "List of Bars and their specs",
                "name",
                "-required-",
                "Name of Bar",
            ],
        )
        .await;
        let object = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "f"}, "spec": spec});
        for verb in ["create", "apply"] {
            let good = user.file("good.json", &object(json!({"bars": [{"name": "b"}]})));
            user.run(&[verb, "-f", &good]).await;
            user.run(&["delete", "foos", "f"]).await;
            for (spec, text) in [
                (json!({"foo": true}), "unknown field \"spec.foo\""),
                (json!({"bars": [{}]}), "spec.bars[0].name: Required value"),
            ] {
                let bad = user.file("bad.json", &object(spec));
                let mut refused = command(&user.kubectl, &user.served);
                refused.args([verb, "-f", &bad]);
                let output = run(refused).await;
                assert!(
                    !output.status.success() && said(&output).contains(text),
                    "{}",
                    said(&output)
                );
            }
        }
        let mut missing = command(&user.kubectl, &user.served);
        missing.args(["explain", "foos.spec.bars2"]);
        assert!(said(&run(missing).await).contains("field \"bars2\" does not exist"));
    }
}

/// The node says back what it hears.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_speaks_with_containers() {
    let mut users = Users::of("kubectl_speaks_with_containers").await;
    while let Some(user) = users.next().await {
        user.pod().await;
        user.says(&["exec", "httpd", "--", "say", "hello"], &["say hello"])
            .await;
        let mut failing = command(&user.kubectl, &user.served);
        failing.args(["exec", "httpd", "--", "fail"]);
        let output = run(failing).await;
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
        assert!(said(&output).starts_with("failing\n"), "{}", said(&output));
        for verb in ["exec", "attach"] {
            let tail: &[&str] = if verb == "exec" { &["--", "cat"] } else { &[] };
            let heard = user.hears(&[&[verb, "-i", "httpd"], tail].concat()).await;
            assert!(heard.contains("hello"), "{verb}: {heard}");
        }
        let log = user.run(&["logs", "httpd", "--tail=2"]).await;
        assert_eq!(log, "two\nthree\n");
        user.forwards().await;
    }
}
