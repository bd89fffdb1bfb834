//! The MySQL walkthrough: secret, volume, claim, headless service, Recreate, an interactive client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::harness::{Cluster, fetch, has_kubectl, kubectl, node_port, poll};

const MINUTES: Duration = Duration::from_secs(120);
const PASSWORD: &str = "my-super-secret-root-password";

const SECRETS: &str = "
---
apiVersion: v1
kind: Secret
metadata:
  name: mysql-secrets
type: Opaque
data:
  ROOT_PASSWORD: bXktc3VwZXItc2VjcmV0LXJvb3QtcGFzc3dvcmQ=
  DB_PASSWORD: bWljcm9wYXNzdw==
";

fn volume(path: &str) -> String {
    format!(
        "
apiVersion: v1
kind: PersistentVolume
metadata:
  name: mysql-pv-volume
  labels:
    type: local
spec:
  storageClassName: manual
  capacity:
    storage: 5Gi
  accessModes:
    - ReadWriteOnce
  hostPath:
    path: {path:?}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: mysql-pv-claim
spec:
  storageClassName: manual
  accessModes:
    - ReadWriteOnce
  resources:
    requests:
      storage: 5Gi
"
    )
}

const DEPLOYMENT: &str = "
apiVersion: v1
kind: Service
metadata:
  name: mysql
spec:
  ports:
  - port: 3306
  selector:
    app: mysql
  clusterIP: None
---
apiVersion: apps/v1 # for versions before 1.9.0 use apps/v1beta2
kind: Deployment
metadata:
  name: mysql
spec:
  selector:
    matchLabels:
      app: mysql
  strategy:
    type: Recreate
  template:
    metadata:
      labels:
        app: mysql
    spec:
      containers:
      - image: mysql:5.7
        name: mysql
        env:
          # Use secret in real usage
        - name: MYSQL_USER
          value: microblog
        - name: MYSQL_DATABASE
          value: microblog
        - name: MYSQL_PASSWORD
          valueFrom:
            secretKeyRef:
              name: mysql-secrets
              key: DB_PASSWORD
        - name: MYSQL_ROOT_PASSWORD
          valueFrom:
            secretKeyRef:
              name: mysql-secrets
              key: ROOT_PASSWORD
        ports:
        - containerPort: 3306
          name: mysql
        volumeMounts:
        - name: mysql-persistent-storage
          mountPath: /var/lib/mysql
      volumes:
      - name: mysql-persistent-storage
        persistentVolumeClaim:
          claimName: mysql-pv-claim
";

const MICROBLOG: &str = "
apiVersion: v1
kind: Service
metadata: {name: microblog}
spec:
  type: NodePort
  selector: {app: microblog}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: microblog}
spec:
  replicas: 2
  selector: {matchLabels: {app: microblog}}
  template:
    metadata: {labels: {app: microblog}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: microblog
        image: microblog:1.0
        ports: [{name: http, containerPort: 5000}]
        env:
        - {name: DB_PASSWORD, valueFrom: {secretKeyRef: {name: mysql-secrets, key: DB_PASSWORD}}}
        - {name: DATABASE_URL, value: 'mysql+pymysql://microblog:$(DB_PASSWORD)@mysql/microblog'}
        - {name: WAIT_SECONDS, value: '1'}
        readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}
";

#[test]
fn the_mysql_walkthrough_works_as_printed_and_data_outlives_the_pod() {
    if !has_kubectl("the_mysql_walkthrough_works_as_printed_and_data_outlives_the_pod") {
        return;
    }
    let cluster = Cluster::up(&["mysql", "microblog"]);
    cluster.apply(SECRETS);
    let described = cluster.kubectl(&["describe", "secret", "mysql-secrets"]);
    assert!(
        described.contains("ROOT_PASSWORD:  29 bytes"),
        "{described}"
    );
    assert!(!described.contains(PASSWORD), "{described}");
    let data = cluster.folder.path().join("mysql-data");
    cluster.apply(&volume(&data.display().to_string()));
    cluster.eventually(
        MINUTES,
        &["get", "persistentvolumeclaim", "mysql-pv-claim"],
        |out| out.contains("Bound") && out.contains("mysql-pv-volume") && out.contains("5Gi"),
    );
    cluster.apply(DEPLOYMENT);
    let ready = |out: &str| out.contains("1/1") && out.contains("Running");
    cluster.eventually(MINUTES, &["get", "pods", "-l", "app=mysql"], ready);
    let first = client(&cluster, "show databases;");
    for database in [
        "information_schema",
        "microblog",
        "mysql",
        "performance_schema",
    ] {
        assert!(first.contains(database), "{database} is not in:\n{first}");
    }
    client(
        &cluster,
        "create table microblog.t (x int); insert into microblog.t values (4711);",
    );
    let before = cluster.kubectl(&["get", "pods", "-l", "app=mysql", "-o", "name"]);
    cluster.kubectl(&["delete", "pods", "-l", "app=mysql"]);
    cluster.eventually(
        MINUTES,
        &["get", "pods", "-l", "app=mysql", "-o", "name"],
        |out| !out.trim().is_empty() && !out.contains(before.trim()),
    );
    cluster.eventually(MINUTES, &["get", "pods", "-l", "app=mysql"], ready);
    let after = client(&cluster, "select x from microblog.t;");
    assert!(after.contains("4711"), "{after}");
    the_microblog_shares_posts_between_its_replicas(&cluster);
}

fn the_microblog_shares_posts_between_its_replicas(cluster: &Cluster) {
    // Without its database the program ends, and is started again until there is one.
    cluster.kubectl(&["scale", "deployment/mysql", "--replicas=0"]);
    cluster.kubectl(&[
        "wait",
        "--for=delete",
        "pod",
        "-l",
        "app=mysql",
        "--timeout=60s",
    ]);
    cluster.apply(MICROBLOG);
    cluster.eventually(MINUTES, &["get", "pods", "-l", "app=microblog"], |out| {
        out.contains("Error") || out.contains("CrashLoopBackOff")
    });
    cluster.kubectl(&["scale", "deployment/mysql", "--replicas=1"]);
    cluster.kubectl(&[
        "rollout",
        "status",
        "deployment/microblog",
        "--timeout=120s",
    ]);
    let address = node_port(cluster, "microblog");
    post(address, "author=me&body=hello+from+the+test");
    let mut hosts = std::collections::BTreeSet::new();
    let both = poll(MINUTES, || {
        let page = fetch(address, "/").expect("the page");
        assert!(page.contains("hello from the test"), "{page}");
        let host = page.split("served by ").nth(1).unwrap_or_default();
        hosts.insert(host.split('<').next().unwrap_or_default().to_owned());
        hosts.len() == 2
    });
    assert!(both, "only {hosts:?} answer");
}

fn post(address: SocketAddr, form: &str) {
    let mut stream = TcpStream::connect(address).expect("the microblog");
    write!(
        stream,
        "POST / HTTP/1.0\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    )
    .expect("posting");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(
        answer.starts_with("HTTP/1.1 303") || answer.starts_with("HTTP/1.1 302"),
        "{answer}"
    );
}

/// Types `sql` into the interactive client of the walkthrough, on a terminal, until the database
/// answers; a server that has just started may still refuse.
fn client(cluster: &Cluster, sql: &str) -> String {
    let deadline = std::time::Instant::now() + MINUTES;
    loop {
        let screen = terminal(cluster, sql);
        if !screen.contains("ERROR 2") {
            return screen;
        }
        assert!(std::time::Instant::now() < deadline, "{screen}");
    }
}

fn terminal(cluster: &Cluster, sql: &str) -> String {
    let kubectl = kubectl().expect("kubectl is there");
    let line = format!(
        "{} run -it --rm --image=mysql:5.7 --restart=Never mysql-client -- mysql -h mysql -p{PASSWORD}",
        kubectl.display(),
    );
    let mut command = cluster.kubectl_command(
        std::path::Path::new("script"),
        &["-qefc", &line, "/dev/null"],
    );
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("script can be started");
    let mut stdin = child.stdin.take().expect("a pipe");
    writeln!(stdin, "{sql}\nexit").expect("typing");
    let output = child.wait_with_output().expect("it ends");
    drop(stdin);
    // The pod of `--rm` must be gone before the next one of the same name.
    cluster.kubectl(&["wait", "--for=delete", "pod/mysql-client", "--timeout=60s"]);
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
