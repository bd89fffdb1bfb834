//! Several schedulers in one cluster, labels, affinity and taints, by what stock kubectl prints.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::{Cluster, has_kubectl, kubectl, words};

const PATIENCE: Duration = Duration::from_secs(180);

fn pod(name: &str, spec: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 0
  {spec}
  containers:
  - {{name: main, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '3600']}}
---
"
    )
}

fn node_of(cluster: &Cluster, pod: &str) -> String {
    cluster.kubectl(&["get", "pod", pod, "-o", "jsonpath={.spec.nodeName}"])
}

fn running(cluster: &Cluster, pod: &str) {
    cluster.eventually(PATIENCE, &["get", "pod", pod], |out| {
        words(out).contains(&format!("{pod} 1/1 Running"))
    });
}

const PROFILES: &str = "
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
- schedulerName: packer
  pluginConfig:
  - name: NodeResourcesFit
    args: {scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 1}]}}
";

/// The whole of a user's scheduler: it watches the pods that name it, and posts a Binding for each.
const OWN_SCHEDULER: &str = r#"
kubectl get pods --watch -o name --field-selector=spec.schedulerName=mine,spec.nodeName= |
while read -r pod; do
  name=${pod#pod/}
  echo '{"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "'$name'"},
         "target": {"apiVersion": "v1", "kind": "Node", "name": "sim-1"}}' |
  kubectl create --raw /api/v1/namespaces/default/pods/$name/binding -f - || true
done
"#;

/// A shell loop with all that it started; ended when the test is.
struct Loop(Child);

impl Loop {
    fn start(cluster: &Cluster, script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0);
        let kubectl = kubectl().expect("the test asked for kubectl before");
        // The same surroundings as every kubectl of the test has.
        for (name, value) in cluster.kubectl_command(&kubectl, &[]).get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self(command.spawn().expect("a shell can be started"))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

#[test]
fn pods_choose_their_scheduler_and_a_shell_loop_is_one() {
    if !has_kubectl("pods_choose_their_scheduler_and_a_shell_loop_is_one") {
        return;
    }
    let cluster = Cluster::new();
    let profiles = cluster.folder.path().join("profiles.yaml");
    std::fs::write(&profiles, PROFILES).expect("writing the configuration");
    let profiles = profiles.display().to_string();
    cluster.styr_ok(&["up", "--scheduler-config", &profiles]);
    cluster.load(&["busybox"]);
    cluster.styr_ok(&["simulate", "--nodes", "2"]);
    cluster.kubectl(&["label", "nodes", "sim-0", "sim-1", "pool=sim"]);
    let pool = "nodeSelector: {pool: sim}\n  schedulerName: ";
    cluster.apply(
        &[
            pod("plain", "schedulerName: default-scheduler"),
            pod("first", &format!("{pool}packer")),
            pod("own", "schedulerName: mine"),
        ]
        .concat(),
    );
    for name in ["plain", "first"] {
        running(&cluster, name);
    }
    let by = |name: &str| {
        let selector = format!("involvedObject.name={name},reason=Scheduled");
        let path = "jsonpath={.items[*].source.component}{.items[*].reportingComponent}";
        cluster.kubectl(&["get", "events", "--field-selector", &selector, "-o", path])
    };
    assert!(by("plain").contains("default-scheduler"), "{}", by("plain"));
    assert!(by("first").contains("packer"), "{}", by("first"));
    // Nobody is called so: the pod waits, and nothing is told of it.
    let waits = cluster.kubectl(&["describe", "pod", "own"]);
    assert!(words(&waits).contains("Events: <none>"), "{waits}");
    let why = cluster.styr_ok(&["why", "own"]);
    assert!(why.contains("mine"), "{why}");

    let user = Loop::start(&cluster, OWN_SCHEDULER);
    running(&cluster, "own");
    assert_eq!(node_of(&cluster, "own"), "sim-1");
    cluster.apply(&[pod("later", "schedulerName: mine"), pod("other", "")].concat());
    for name in ["later", "other"] {
        running(&cluster, name);
    }
    assert_eq!(node_of(&cluster, "later"), "sim-1");
    drop(user);
}

#[test]
fn labels_affinity_and_taints_decide_where_pods_run() {
    if !has_kubectl("labels_affinity_and_taints_decide_where_pods_run") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    cluster.styr_ok(&["simulate", "--nodes", "3"]);
    cluster.kubectl(&["label", "node", "sim-0", "disk=ssd"]);
    let shown = cluster.kubectl(&["get", "nodes", "--show-labels"]);
    assert!(shown.contains("disk=ssd"), "{shown}");
    let said = cluster.kubectl(&["taint", "nodes", "sim-1", "spot=true:NoSchedule"]);
    assert_eq!(said, "node/sim-1 tainted\n");
    let told = cluster.kubectl(&["describe", "node", "sim-1"]);
    assert!(
        words(&told).contains("Taints: spot=true:NoSchedule"),
        "{told}"
    );

    let spot = "tolerations: [{key: spot, operator: Exists}]\n  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchFields: [{key: metadata.name, operator: In, values: [sim-1]}]}]}}}";
    let beside = "affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: on-ssd}}}]}}";
    let apart = "affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: on-ssd}}}]}}\n  nodeSelector: {styr.dev/simulated: 'true'}";
    let lost = "nodeSelector: {disk: tape}";
    cluster.apply(
        &[
            pod("on-ssd", "nodeSelector: {disk: ssd}"),
            pod("on-spot", spot),
            pod("beside", beside),
            pod("lost", lost),
        ]
        .concat(),
    );
    for (name, node) in [
        ("on-ssd", "sim-0"),
        ("on-spot", "sim-1"),
        ("beside", "sim-0"),
    ] {
        running(&cluster, name);
        assert_eq!(node_of(&cluster, name), node, "{name}");
    }
    // Not beside the one, not where it is not tolerated: one node is left.
    cluster.apply(&pod("apart", apart));
    running(&cluster, "apart");
    assert_eq!(node_of(&cluster, "apart"), "sim-2");

    why_it_waits(&cluster);
    cluster.kubectl(&["label", "node", "sim-2", "disk=tape"]);
    running(&cluster, "lost");
    taints_evict(&cluster);
}

fn why_it_waits(cluster: &Cluster) {
    let told = cluster.eventually(PATIENCE, &["describe", "pod", "lost"], |out| {
        out.contains("FailedScheduling")
    });
    let flat = words(&told);
    for text in [
        "Status: Pending",
        "PodScheduled False",
        "Warning FailedScheduling",
        "default-scheduler 0/4 nodes are available: 1 node(s) had untolerated taint(s)",
        "node(s) didn't match Pod's node affinity/selector",
    ] {
        assert!(flat.contains(text), "{text}: {told}");
    }
    let why = cluster.styr_ok(&["why", "lost"]);
    for text in ["sim-0", "sim-1", "sim-2", "disk", "tape", "spot"] {
        assert!(why.contains(text), "{text}: {why}");
    }
    let why = cluster.styr_ok(&["why", "on-ssd"]);
    assert!(why.contains("sim-0"), "{why}");
}

fn taints_evict(cluster: &Cluster) {
    cluster.kubectl(&["taint", "nodes", "sim-0", "broken=yes:NoExecute"]);
    cluster.kubectl(&[
        "wait",
        "--for=delete",
        "pod/on-ssd",
        "pod/beside",
        "--timeout=180s",
    ]);
    let selector = "involvedObject.name=on-ssd,reason=TaintManagerEviction";
    let events = cluster.kubectl(&["get", "events", "--field-selector", selector]);
    assert!(
        events.contains("Marking for deletion Pod default/on-ssd"),
        "{events}"
    );
    let said = cluster.kubectl(&["taint", "nodes", "sim-0", "broken-"]);
    assert_eq!(said, "node/sim-0 untainted\n");
    cluster.kubectl(&["taint", "nodes", "sim-1", "spot-"]);
    cluster.apply(&pod("back", "nodeSelector: {disk: ssd}"));
    running(cluster, "back");
}
