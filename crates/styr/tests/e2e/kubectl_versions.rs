//! Every stock kubectl from 1.27 to 1.33: what a user types every day.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{Cluster, has_kubectl, kubectl_versions, poll};

const MINUTE: Duration = Duration::from_secs(60);

const OBJECTS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: blue}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {token: never-shown}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: example.com}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk}
spec:
  storageClassName: manual
  capacity: {storage: 5Gi}
  accessModes: [ReadWriteOnce]
  hostPath: {path: /nowhere}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim}
spec:
  storageClassName: manual
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: nginx
        image: nginx:1.0
        ports: [{containerPort: 80}]
";

#[test]
fn every_stock_kubectl_does_its_daily_work() {
    if !has_kubectl("every_stock_kubectl_does_its_daily_work") {
        return;
    }
    let cluster = Cluster::up(&["nginx"]);
    cluster.apply(OBJECTS);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    let phase = "jsonpath={.status.phase}";
    cluster.eventually(MINUTE, &["get", "pvc", "claim", "-o", phase], |out| {
        out == "Bound"
    });
    let pod = cluster.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=web",
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ]);
    for kubectl in kubectl_versions() {
        eprintln!("{}", kubectl.display());
        let user = User {
            cluster: &cluster,
            kubectl: &kubectl,
            pod: &pod,
        };
        user.looks_around();
        user.reads_logs_and_runs_commands();
        user.copies_files();
        user.forwards_a_port();
        user.edits_and_deletes();
    }
}

struct User<'a> {
    cluster: &'a Cluster,
    kubectl: &'a Path,
    pod: &'a str,
}

impl User<'_> {
    fn run(&self, arguments: &[&str]) -> String {
        let mut command = self.cluster.kubectl_command(self.kubectl, arguments);
        let output = command
            .stdin(Stdio::null())
            .output()
            .expect("kubectl can be started");
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{} {arguments:?}:\n{said}",
            self.kubectl.display()
        );
        said
    }

    fn says(&self, arguments: &[&str], text: &str) {
        let said = self.run(arguments);
        assert!(
            said.contains(text),
            "{} {arguments:?}: no {text:?} in\n{said}",
            self.kubectl.display()
        );
    }

    fn looks_around(&self) {
        self.says(&["get", "nodes"], "Ready");
        self.says(&["get", "all"], "deployment.apps/web");
        self.says(&["get", "pods", "-o", "wide"], "NOMINATED NODE");
        self.says(&["get", "pods", "-o", "yaml"], "kind: List");
        self.says(
            &["get", "deployment", "web", "-o", "json"],
            "\"kind\": \"Deployment\"",
        );
        self.says(
            &["get", "pods", "-o", "jsonpath={.items[*].status.phase}"],
            "Running",
        );
        self.says(
            &[
                "get",
                "cm",
                "settings",
                "-o",
                "custom-columns=C:.data.color",
            ],
            "blue",
        );
        for (kind, text) in [
            ("pod", "Started container nginx"),
            (
                "deployment",
                "RollingUpdateStrategy:  25% max unavailable, 25% max surge",
            ),
            ("replicaset", "Controlled By:  Deployment/web"),
            ("service/web", "NodePort:"),
            ("service/outside", "External Name:     example.com"),
            ("endpointslice", "AddressType:"),
            ("configmap", "color:\n----\nblue\n"),
            ("secret", "token:  11 bytes"),
            ("persistentvolume", "Claim:           default/claim"),
            ("persistentvolumeclaim", "Volume:        disk"),
            ("storageclass", "IsDefaultClass:        Yes"),
            ("node", "Allocatable:"),
            ("namespace", "Status:       Active"),
            ("serviceaccount", "Mountable secrets:"),
            ("clusterrole/view", "pods/log"),
            ("events", "Successfully assigned default/web-"),
        ] {
            self.says(&["describe", kind], text);
        }
        let secret = self.run(&["describe", "secret", "keys"]);
        assert!(!secret.contains("never-shown"), "{secret}");
        self.says(&["get", "events"], "Scheduled");
        self.says(&["events"], "Scheduled");
        self.says(&["explain", "pod.spec.containers"], "FIELDS:");
        self.says(&["api-resources"], "deployments");
        self.says(&["api-versions"], "apps/v1");
        self.says(&["cluster-info"], "is running at");
        self.says(&["version"], "Server Version");
        self.says(&["auth", "can-i", "create", "pods"], "yes");
    }

    fn reads_logs_and_runs_commands(&self) {
        self.run(&["logs", self.pod, "--tail=5", "--timestamps"]);
        self.says(&["exec", self.pod, "--", "cat", "/etc/hostname"], self.pod);
        let mut command = self
            .cluster
            .kubectl_command(self.kubectl, &["exec", "-i", self.pod, "--", "cat"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl can be started");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(b"typed\n").expect("typing");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "typed\n");
        let failing = self
            .cluster
            .kubectl_command(
                self.kubectl,
                &["exec", self.pod, "--", "sh", "-c", "exit 7"],
            )
            .output()
            .expect("kubectl can be started");
        assert_eq!(failing.status.code(), Some(7));
        let terminal = format!(
            "{} exec -it {} -- sh -c 'tty; stty size'",
            self.kubectl.display(),
            self.pod
        );
        let output = self
            .cluster
            .kubectl_command(Path::new("script"), &["-qefc", &terminal, "/dev/null"])
            .stdin(Stdio::null())
            .output()
            .expect("script can be started");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("/dev/pts/"), "{said}");
    }

    fn copies_files(&self) {
        let folder = self.cluster.folder.path();
        std::fs::write(folder.join("there"), "and back").expect("writing");
        self.run(&["cp", "there", &format!("{}:/tmp/there", self.pod)]);
        self.run(&["cp", &format!("{}:/tmp/there", self.pod), "back"]);
        assert_eq!(
            std::fs::read_to_string(folder.join("back")).expect("reading"),
            "and back"
        );
        std::fs::remove_file(folder.join("back")).expect("removing");
    }

    fn forwards_a_port(&self) {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let mapping = format!("{port}:80");
        let mut child = self
            .cluster
            .kubectl_command(self.kubectl, &["port-forward", self.pod, &mapping])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("kubectl can be started");
        let mut answer = String::new();
        let answered = poll(MINUTE, || {
            answer.clear();
            TcpStream::connect(("127.0.0.1", port)).is_ok_and(|mut stream| {
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n").is_ok()
                    && stream.read_to_string(&mut answer).is_ok()
                    && answer.contains("1.0")
            })
        });
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        assert!(answered, "{}: last {answer:?}", self.kubectl.display());
    }

    fn edits_and_deletes(&self) {
        self.run(&["create", "configmap", "mine", "--from-literal=a=before"]);
        let edit = self
            .cluster
            .kubectl_command(self.kubectl, &["edit", "configmap", "mine"])
            .env("KUBE_EDITOR", "sed -i s/before/after/")
            .output()
            .expect("kubectl can be started");
        assert!(
            edit.status.success(),
            "{}",
            String::from_utf8_lossy(&edit.stderr)
        );
        self.says(
            &["get", "configmap", "mine", "-o", "jsonpath={.data.a}"],
            "after",
        );
        self.says(&["delete", "configmap", "mine"], "deleted");
    }
}
