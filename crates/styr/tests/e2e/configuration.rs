//! ConfigMaps, Secrets and the pod's own fields, as variables and as files; volumes that containers
//! share.

use std::time::Duration;

use crate::harness::{Cluster, has_kubectl};

const MINUTE: Duration = Duration::from_secs(60);

const OBJECTS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: blue, shape: round, size.conf: 'size=1'}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {token: s3cret, user: admin}
---
apiVersion: v1
kind: Pod
metadata:
  name: reader
  labels: {app: reader, tier: test}
  annotations: {note: hello}
spec:
  terminationGracePeriodSeconds: 0
  initContainers:
  - name: first
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'sleep 0.3; echo first > /shared/order']
    volumeMounts: [{name: shared, mountPath: /shared}]
  - name: second
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo second >> /shared/order']
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo $(GREETING); sleep 3600']
    resources: {requests: {cpu: 250m, memory: 32Mi}, limits: {memory: 64Mi}}
    envFrom:
    - configMapRef: {name: settings}
    - secretRef: {name: keys}
      prefix: KEY_
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: keys, key: token}}}
    - {name: ABSENT, valueFrom: {secretKeyRef: {name: keys, key: nonesuch, optional: true}}}
    - {name: GREETING, value: 'the color is $(COLOR)'}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: TIER, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['tier']\"}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    volumeMounts:
    - {name: settings, mountPath: /settings}
    - {name: settings, mountPath: /etc/size.conf, subPath: size.conf}
    - {name: keys, mountPath: /keys, readOnly: true}
    - {name: shared, mountPath: /shared}
    - {name: own, mountPath: /own}
    - {name: all, mountPath: /all}
  - name: sidecar
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo from the sidecar > /data/page; cd /data; httpd -f -p 8080']
    volumeMounts: [{name: shared, mountPath: /data}]
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0400, items: [{key: token, path: deep/token}]}}
  - {name: shared, emptyDir: {}}
  - name: own
    downwardAPI:
      items:
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: note, fieldRef: {fieldPath: \"metadata.annotations['note']\"}}
  - name: all
    projected:
      sources:
      - configMap: {name: settings, items: [{key: color, path: color}]}
      - secret: {name: keys, items: [{key: user, path: user}]}
";

#[test]
fn configuration_reaches_containers_and_files_follow_it() {
    if !has_kubectl("configuration_reaches_containers_and_files_follow_it") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    cluster.apply(OBJECTS);
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/reader",
        "--timeout=60s",
    ]);
    let sh =
        |script: &str| cluster.kubectl(&["exec", "reader", "-c", "main", "--", "sh", "-c", script]);
    variables_are_set(&cluster, &sh("env"));
    for (script, text) in [
        ("cat /settings/color /etc/size.conf", "bluesize=1"),
        ("cat /keys/deep/token", "s3cret"),
        ("ls /keys", "deep\n"),
        ("stat -L -c %a /keys/deep/token", "400\n"),
        ("cat /own/labels", "app=\"reader\"\ntier=\"test\""),
        ("cat /own/note /all/color /all/user", "helloblueadmin"),
        // Both init containers ran, one after the other, before the others.
        ("cat /shared/order", "first\nsecond\n"),
        (
            "cat /shared/page; wget -q -O - localhost:8080/page",
            "from the sidecar\nfrom the sidecar\n",
        ),
        (
            "touch /keys/x 2>&1 || true",
            "touch: /keys/x: Read-only file system\n",
        ),
    ] {
        assert_eq!(sh(script), text, "{script}");
    }
    assert_eq!(
        cluster.kubectl(&["logs", "reader", "-c", "main"]),
        "the color is blue\n"
    );
    files_follow(&cluster, &sh);
    what_is_missing_is_told_and_waited_for(&cluster);
}

fn variables_are_set(cluster: &Cluster, env: &str) {
    let pod = |path: &str| cluster.kubectl(&["get", "pod", "reader", "-o", path]);
    let wanted = [
        "color=blue",
        "shape=round",
        "KEY_token=s3cret",
        "COLOR=blue",
        "TOKEN=s3cret",
        "GREETING=the color is blue",
        "POD=reader",
        "NAMESPACE=default",
        "TIER=test",
        "CPU=250",
        "MEMORY=64",
        "KUBERNETES_SERVICE_PORT=443",
        &format!("IP={}", pod("jsonpath={.status.podIP}")),
        &format!("NODE={}", pod("jsonpath={.spec.nodeName}")),
    ];
    for line in wanted {
        assert!(
            env.lines().any(|other| other == line),
            "no {line} in\n{env}"
        );
    }
    assert!(!env.contains("ABSENT"), "{env}");
}

fn files_follow(cluster: &Cluster, sh: &impl Fn(&str) -> String) {
    let main = ["exec", "reader", "-c", "main", "--", "cat"];
    cluster.kubectl(&[
        "patch",
        "cm",
        "settings",
        "-p",
        r#"{"data": {"color": "green", "size.conf": "size=2"}}"#,
    ]);
    cluster.kubectl(&[
        "patch",
        "secret",
        "keys",
        "-p",
        r#"{"stringData": {"token": "changed"}}"#,
    ]);
    cluster.kubectl(&["label", "pod", "reader", "tier=later", "--overwrite"]);
    for (file, text) in [
        ("/settings/color", "green"),
        ("/settings/size.conf", "size=2"),
        ("/keys/deep/token", "changed"),
        ("/all/color", "green"),
        ("/own/labels", "app=\"reader\"\ntier=\"later\""),
    ] {
        cluster.eventually(MINUTE, &[&main[..], &[file]].concat(), |out| out == text);
    }
    // What is mounted by subPath and what was put into variables stays as it was.
    assert_eq!(
        sh("cat /etc/size.conf; echo; echo $COLOR"),
        "size=1\nblue\n"
    );
}

fn what_is_missing_is_told_and_waited_for(cluster: &Cluster) {
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: early-env}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo $LATE']
    env: [{name: LATE, valueFrom: {configMapKeyRef: {name: late, key: a}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: early-volume}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [cat, /late/a]
    volumeMounts: [{name: late, mountPath: /late}]
  volumes: [{name: late, configMap: {name: late}}]
",
    );
    cluster.eventually(MINUTE, &["get", "pod", "early-env"], |out| {
        out.contains("CreateContainerConfigError")
    });
    cluster.eventually(MINUTE, &["events"], |out| {
        out.contains("Error: configmap \"late\" not found")
            && out.contains(
                "MountVolume.SetUp failed for volume \"late\" : configmap \"late\" not found",
            )
    });
    cluster.kubectl(&["create", "configmap", "late", "--from-literal=a=came"]);
    for pod in ["early-env", "early-volume"] {
        cluster.eventually(MINUTE, &["get", "pod", pod], |out| {
            out.contains("Completed")
        });
        assert_eq!(cluster.kubectl(&["logs", pod]), "came\n");
    }
}
