//! Getting, stopping, restarting and deleting a cluster.

use std::net::TcpListener;
use std::time::Duration;

use crate::harness::{Cluster, has_kubectl, poll};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn up_gives_a_ready_cluster_and_says_what_to_do_next() {
    let cluster = Cluster::new();
    let said = cluster.styr_ok(&["up"]);
    assert!(said.contains("is ready after"), "{said}");
    assert!(said.contains("kubectl get nodes"), "{said}");
    let again = cluster.styr_ok(&["up"]);
    assert!(again.contains("already running"), "{again}");
    let status = cluster.styr_ok(&["status"]);
    assert!(
        status.contains("running (process") && status.contains(" Ready"),
        "{status}"
    );
    let list = cluster.styr_ok(&["list"]);
    assert!(
        list.contains(&cluster.name) && list.contains("running"),
        "{list}"
    );
    let ip = cluster.styr_ok(&["ip"]);
    assert!(ip.trim().parse::<std::net::Ipv4Addr>().is_ok(), "{ip}");
}

#[test]
fn down_keeps_every_object_and_up_brings_every_pod_back() {
    if !has_kubectl("down_keeps_every_object_and_up_brings_every_pod_back") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"]);
    cluster.apply(SLEEPER);
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/sleeper",
        "--timeout=60s",
    ]);
    let said = cluster.styr_ok(&["down"]);
    assert!(said.contains("is stopped"), "{said}");
    assert!(cluster.styr_ok(&["status"]).contains("stopped"));
    cluster.styr_ok(&["up"]);
    assert_eq!(
        cluster.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]),
        "b"
    );
    cluster.eventually(MINUTE, &["get", "pod", "sleeper"], |out| {
        out.contains("1/1") && out.contains("Running")
    });
}

#[test]
fn pods_run_on_while_the_server_is_down_and_are_adopted_without_a_restart() {
    if !has_kubectl("pods_run_on_while_the_server_is_down_and_are_adopted_without_a_restart") {
        return;
    }
    let cluster = Cluster::up(&["busybox"]);
    cluster.apply(SLEEPER);
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod/sleeper",
        "--timeout=60s",
    ]);
    let since = started_at(&cluster);
    cluster.styr_ok(&["down", "--keep-pods"]);
    cluster.styr_ok(&["up"]);
    cluster.eventually(MINUTE, &["get", "pod", "sleeper"], |out| {
        out.contains("1/1")
    });
    assert_eq!(started_at(&cluster), since);
    // A crash is no different from an orderly stop.
    let pid = nix::unistd::Pid::from_raw(cluster.server_pid());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("the server runs");
    cluster.styr_ok(&["up"]);
    cluster.eventually(MINUTE, &["get", "pod", "sleeper"], |out| {
        out.contains("1/1")
    });
    assert_eq!(started_at(&cluster), since);
    let lines = cluster.kubectl(&["logs", "sleeper"]);
    assert!(lines.contains("hello"), "{lines}");
}

fn started_at(cluster: &Cluster) -> String {
    let path = "jsonpath={.status.containerStatuses[0].state.running.startedAt} {.status.containerStatuses[0].restartCount}";
    cluster.kubectl(&["get", "pod", "sleeper", "-o", path])
}

#[test]
fn two_clusters_run_side_by_side_and_share_nothing() {
    if !has_kubectl("two_clusters_run_side_by_side_and_share_nothing") {
        return;
    }
    let (a, b) = (Cluster::up(&[]), Cluster::up(&[]));
    a.kubectl(&["create", "namespace", "only-in-a"]);
    let seen = b.kubectl(&["get", "namespaces"]);
    assert!(!seen.contains("only-in-a"), "{seen}");
    assert_ne!(a.styr_ok(&["ip"]), b.styr_ok(&["ip"]));
}

#[test]
fn mistakes_get_one_clear_message_with_the_fix() {
    let cluster = Cluster::new();
    let refused = |arguments: &[&str], text: &str| {
        let output = cluster.styr(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(said.contains(text), "{arguments:?}: {said}");
    };
    refused(&["status"], "start one with `styr up");
    refused(&["down"], "there is no cluster");
    refused(&["up", "--nonsense"], "unexpected argument '--nonsense'");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    refused(&["up", "--api-port", &port], "is in use by another program");
    refused(&["up", "--api-port", "0"], "0 is not in 1..=65535");
    refused(
        &["up", "--scheduler-config", "/nowhere"],
        "--scheduler-config /nowhere: No such file",
    );
    let clusters = cluster.styr_ok(&["list"]);
    assert!(clusters.starts_with("No clusters in"), "{clusters}");
    drop(taken);
    cluster.styr_ok(&["up", "--api-port", &port]);
    refused(&["delete"], "confirm with --yes");
    refused(&["image", "load", "/etc/hostname"], "/etc/hostname");
}

#[test]
fn without_root_or_without_room_it_says_what_is_needed() {
    use std::os::unix::process::CommandExt;
    let cluster = Cluster::new();
    // A folder that anybody may enter, as the build folder may be root's alone.
    let binary = cluster.folder.path().join("styr");
    std::fs::copy(env!("CARGO_BIN_EXE_styr"), &binary).expect("copying the binary");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(cluster.folder.path(), open).expect("opening the folder");
    let output = std::process::Command::new(&binary)
        .arg("up")
        .uid(65534)
        .gid(65534)
        .output();
    let said = String::from_utf8_lossy(&output.expect("it starts").stderr).into_owned();
    assert!(
        said.contains("needs root; run it again with sudo"),
        "{said}"
    );

    let data = cluster.data_dir();
    std::fs::create_dir(&data).expect("making a folder");
    let small = Some("size=4m");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("none"), &data, Some("tmpfs"), flags, small).expect("mounting");
    let output = cluster.styr(&["up"]);
    nix::mount::umount2(&data, nix::mount::MntFlags::MNT_DETACH).expect("unmounting");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("make room, or choose another folder with --data-dir"),
        "{said}"
    );
}

#[test]
fn an_interrupted_up_is_finished_by_the_next() {
    let cluster = Cluster::new();
    let mut child = cluster
        .styr_command(&["up"])
        .spawn()
        .expect("styr can be started");
    let config = cluster.dir().join("config.json");
    assert!(poll(MINUTE, || config.exists()));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
    child.wait().expect("it ends");
    let said = cluster.styr_ok(&["up"]);
    assert!(said.contains("kubectl get nodes"), "{said}");
}

#[test]
fn other_contexts_of_the_kubeconfig_survive_up_and_delete() {
    let cluster = Cluster::new();
    let other = "apiVersion: v1\nkind: Config\ncurrent-context: work\ncontexts:\n- name: work\n  context: {cluster: c, user: u}\nclusters:\n- name: c\n  cluster: {server: 'https://work'}\nusers:\n- name: u\n  user: {token: abc}\n";
    std::fs::write(cluster.kubeconfig(), other).expect("writing the kubeconfig");
    cluster.styr_ok(&["up"]);
    let merged = std::fs::read_to_string(cluster.kubeconfig()).expect("the kubeconfig");
    assert!(
        merged.contains("https://work") && merged.contains(&cluster.name),
        "{merged}"
    );
    cluster.styr_ok(&["delete", "--yes"]);
    let after = std::fs::read_to_string(cluster.kubeconfig()).expect("the kubeconfig");
    assert!(
        after.contains("https://work") && !after.contains(&cluster.name),
        "{after}"
    );
}

const SLEEPER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: sleeper}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: ['sh', '-c', 'echo hello; sleep 3600']
";
