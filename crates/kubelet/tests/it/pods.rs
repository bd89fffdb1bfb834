//! The life of pods.

use std::time::Duration;

use serde_json::{Value, json};

use crate::World;

fn pod(name: &str, spec: Value) -> Value {
    let container = json!({"name": "c", "image": "present:1", "terminationMessagePath": "/dev/termination-log"});
    let mut object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name},
        "spec": {"nodeName": "node", "terminationGracePeriodSeconds": 3, "containers": [container]}});
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

fn world() -> World {
    let world = World::new();
    world.runtime.add_image("present:1");
    world
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    conditions
        .iter()
        .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn waiting(pod: &Value) -> &str {
    pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
        .as_str()
        .unwrap_or_default()
}

#[tokio::test]
async fn the_node_registers_with_a_lease() {
    let mut world = world();
    world.start_agent();
    world
        .until("registered", |w| {
            w.api.get("leases", "kube-node-lease", "node").is_some()
        })
        .await;
    world
        .until("ready", |w| {
            let node = w.api.get("nodes", "", "node").unwrap_or_default();
            node["status"]["conditions"]
                .as_array()
                .is_some_and(|c| c.iter().any(|c| c["reason"] == "KubeletReady"))
        })
        .await;
    let node = world.api.get("nodes", "", "node").unwrap();
    assert_eq!(
        node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"],
        10250
    );
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "node");
    assert_eq!(node["spec"]["podCIDR"], "10.42.0.0/24");
}

#[tokio::test]
async fn a_pod_runs_and_is_deleted() {
    let mut world = world();
    world.start_agent();
    world.api.create("pods", "default", pod("p", json!({})));
    let up = world.pod("p", "ready", is_ready).await;
    assert_eq!(up["status"]["phase"], "Running");
    assert_eq!(up["status"]["podIP"], "127.0.0.1");
    assert!(
        up["status"]["containerStatuses"][0]["containerID"]
            .as_str()
            .unwrap()
            .starts_with("fake://c-")
    );
    world
        .until("told", |w| {
            ["Pulled", "Created", "Started"]
                .iter()
                .all(|r| w.api.reasons("p").contains(&(*r).to_owned()))
        })
        .await;

    world.api.delete("pods", "default", "p", 3);
    world
        .until("gone", |w| {
            w.api.get("pods", "default", "p").is_none() && w.runtime.is_empty()
        })
        .await;
    assert_eq!(world.runtime.count("stop c 3"), 1);
    world
        .until("told of its end", |w| {
            w.api.reasons("p").contains(&"Killing".to_owned())
        })
        .await;
    world
        .until("tidied up", |w| {
            let empty = |dir: &str| std::fs::read_dir(w.dir.path().join(dir)).unwrap().count() == 0;
            empty("kubelet/pods") && empty("logs")
        })
        .await;
}

#[tokio::test]
async fn an_agent_that_is_killed_finds_its_pods_again() {
    let mut world = world();
    world.start_agent();
    world.api.create("pods", "default", pod("p", json!({})));
    world.api.create("pods", "default", pod("q", json!({})));
    let before = world.pod("p", "ready", is_ready).await;
    world.pod("q", "ready", is_ready).await;
    world.kill_agent();
    // While nobody looks, one pod is deleted for good.
    world.api.delete("pods", "default", "q", 0);
    world.start_agent();
    world
        .until("rid of the orphan", |w| {
            w.runtime.count("stop c 3") == 1 && w.runtime.running("c").is_some()
        })
        .await;
    world.api.create("pods", "default", pod("r", json!({})));
    world.pod("r", "ready", is_ready).await;
    let after = world.api.get("pods", "default", "p").unwrap();
    assert_eq!(before["status"], after["status"]);
    assert_eq!(world.runtime.count("sandbox p"), 1);
}

#[tokio::test]
async fn pods_run_on_while_the_api_is_away() {
    let mut world = world();
    world.start_agent();
    world.api.create("pods", "default", pod("p", json!({})));
    world.pod("p", "ready", is_ready).await;
    world.api.set_down(true);
    world.runtime.exit(&world.runtime.running("c").unwrap(), 1);
    world
        .until("restarted", |w| w.runtime.count("start c") == 2)
        .await;
    world.api.set_down(false);
    world
        .pod("p", "shown", |p| {
            p["status"]["containerStatuses"][0]["restartCount"] == 1
        })
        .await;
}

#[tokio::test]
async fn a_crashing_container_backs_off() {
    let mut world = world();
    world.start_agent();
    world.api.create("pods", "default", pod("p", json!({})));
    for _ in 0..2 {
        world.pod("p", "ready", is_ready).await;
        world.runtime.exit(&world.runtime.running("c").unwrap(), 7);
        world
            .pod("p", "down", |p| {
                !is_ready(p) || p["status"]["containerStatuses"][0]["restartCount"] == 1
            })
            .await;
    }
    let shown = world
        .pod("p", "backing off", |p| waiting(p) == "CrashLoopBackOff")
        .await;
    let status = &shown["status"]["containerStatuses"][0];
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 7);
    assert_eq!(status["restartCount"], 1);
    assert_eq!(shown["status"]["phase"], "Running");
    world
        .until("told", |w| {
            w.api.reasons("p").contains(&"BackOff".to_owned())
        })
        .await;
    // Not even a new agent restarts it before its time.
    world.kill_agent();
    world.start_agent();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.runtime.count("start c"), 2);
}

#[tokio::test]
async fn jobs_end() {
    let mut world = world();
    world.start_agent();
    world.api.create(
        "pods",
        "default",
        pod("p", json!({"restartPolicy": "Never"})),
    );
    world.pod("p", "ready", is_ready).await;
    world.runtime.exit(&world.runtime.running("c").unwrap(), 0);
    let done = world
        .pod("p", "done", |p| p["status"]["phase"] == "Succeeded")
        .await;
    assert_eq!(
        done["status"]["containerStatuses"][0]["state"]["terminated"]["reason"],
        "Completed"
    );
    world
        .until("stopped", |w| w.runtime.count("stop sandbox") == 1)
        .await;
    // Its container stays for `logs`, until the pod is deleted.
    assert!(!world.runtime.is_empty());
    world.api.delete("pods", "default", "p", 3);
    world
        .until("gone", |w| {
            w.api.get("pods", "default", "p").is_none() && w.runtime.is_empty()
        })
        .await;
}

#[tokio::test]
async fn hooks_and_init_containers() {
    let hooks = json!({"postStart": {"exec": {"command": ["hello"]}}, "preStop": {"exec": {"command": ["goodbye"]}}});
    let container = json!({"name": "c", "image": "present:1", "lifecycle": hooks});
    let spec =
        json!({"initContainers": [{"name": "i", "image": "present:1"}], "containers": [container]});
    let mut world = world();
    world.start_agent();
    world.api.create("pods", "default", pod("p", spec));
    world
        .until("initializing", |w| w.runtime.running("i").is_some())
        .await;
    assert_eq!(
        waiting(&world.pod("p", "seen", |p| !waiting(p).is_empty()).await),
        "PodInitializing"
    );
    world.runtime.exit(&world.runtime.running("i").unwrap(), 0);
    world.pod("p", "ready", is_ready).await;
    world.api.delete("pods", "default", "p", 3);
    world.until("gone", |w| w.runtime.is_empty()).await;
    let log = world.runtime.log();
    let at = |what: &str| {
        log.iter()
            .position(|l| l == what)
            .unwrap_or_else(|| panic!("{what} in {log:?}"))
    };
    assert!(at("start i") < at("start c") && at("start c") < at("exec hello"));
    assert!(at("exec goodbye") < at("stop c 3"));
}

#[tokio::test]
async fn probes_decide() {
    let probe = |extra: Value| {
        let mut probe =
            json!({"exec": {"command": ["check"]}, "periodSeconds": 1, "failureThreshold": 1});
        probe
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        probe
    };
    let container = json!({"name": "c", "image": "present:1", "readinessProbe": probe(json!({})), "livenessProbe": probe(json!({"initialDelaySeconds": 2}))});
    let mut world = world();
    world.runtime.set_exec_code(1);
    world.start_agent();
    world.api.create(
        "pods",
        "default",
        pod("p", json!({"containers": [container]})),
    );
    let first = world
        .pod("p", "running", |p| p["status"]["phase"] == "Running")
        .await;
    assert!(!is_ready(&first));
    world
        .pod("p", "restarted", |p| {
            p["status"]["containerStatuses"][0]["restartCount"] == 1
        })
        .await;
    world.runtime.set_exec_code(0);
    world.pod("p", "ready", is_ready).await;
    assert!(world.api.reasons("p").contains(&"Unhealthy".to_owned()));
}

#[tokio::test]
async fn what_is_missing_is_waited_for() {
    let key = json!({"configMapKeyRef": {"name": "later", "key": "k"}});
    let container = json!({"name": "c", "image": "present:1", "env": [{"name": "X", "valueFrom": key}],
        "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "k"}]});
    let spec = json!({"containers": [container], "volumes": [{"name": "v", "configMap": {"name": "files"}}]});
    let mut world = world();
    world.start_agent();
    let created = world.api.create("pods", "default", pod("p", spec));
    world
        .until("told of the volume", |w| {
            w.api.reasons("p").contains(&"FailedMount".to_owned())
        })
        .await;
    world.api.create(
        "configmaps",
        "default",
        json!({"metadata": {"name": "files"}, "data": {"k": "v1"}}),
    );
    world
        .pod("p", "told of the variable", |p| {
            waiting(p) == "CreateContainerConfigError"
        })
        .await;
    world.api.create(
        "configmaps",
        "default",
        json!({"metadata": {"name": "later"}, "data": {"k": "value"}}),
    );
    world.pod("p", "ready", is_ready).await;
    assert!(
        world
            .runtime
            .log()
            .iter()
            .any(|l| l.starts_with("create c X=value")),
        "{:?}",
        world.runtime.log()
    );

    // The files follow their ConfigMap.
    let uid = created["metadata"]["uid"].as_str().unwrap();
    let file = world.dir.path().join(format!(
        "kubelet/pods/{uid}/volumes/kubernetes.io~configmap/v/k"
    ));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "v1");
    world.api.delete("configmaps", "default", "files", 0);
    world.api.create(
        "configmaps",
        "default",
        json!({"metadata": {"name": "files"}, "data": {"k": "v2"}}),
    );
    world
        .until("renewed", |_| {
            std::fs::read_to_string(&file).is_ok_and(|t| t == "v2")
        })
        .await;
    world.api.delete("pods", "default", "p", 1);
    world
        .until("gone", |w| w.api.get("pods", "default", "p").is_none())
        .await;
}

#[tokio::test]
async fn images_that_cannot_be_pulled() {
    let container =
        |policy: &str| json!([{"name": "c", "image": "absent:1", "imagePullPolicy": policy}]);
    let mut world = world();
    world.start_agent();
    world.api.create(
        "pods",
        "default",
        pod("p", json!({"containers": container("IfNotPresent")})),
    );
    world.api.create(
        "pods",
        "default",
        pod("q", json!({"containers": container("Never")})),
    );
    world
        .pod("p", "failing", |p| waiting(p) == "ErrImagePull")
        .await;
    world
        .pod("p", "backing off", |p| waiting(p) == "ImagePullBackOff")
        .await;
    world
        .pod("q", "failing", |p| waiting(p) == "ErrImageNeverPull")
        .await;
    // Deleting does not wait for the image.
    world.api.delete("pods", "default", "p", 3);
    world.api.delete("pods", "default", "q", 3);
    world
        .until("gone", |w| {
            w.api.all("pods").is_empty() && w.runtime.is_empty()
        })
        .await;
}

#[tokio::test]
async fn a_container_that_cannot_start_is_tried_again() {
    let mut world = world();
    world.runtime.set_fail_start(true);
    world.start_agent();
    world.api.create("pods", "default", pod("p", json!({})));
    let failed = world
        .pod("p", "failing", |p| waiting(p) == "RunContainerError")
        .await;
    let message = failed["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
        .as_str()
        .unwrap();
    assert!(message.contains("executable file not found"), "{message}");
    world.runtime.set_fail_start(false);
    world.pod("p", "ready", is_ready).await;
}

#[tokio::test]
async fn a_broken_sandbox_is_replaced() {
    let mut world = world();
    world.start_agent();
    world.api.create("pods", "default", pod("p", json!({})));
    world.pod("p", "ready", is_ready).await;
    world.runtime.break_sandbox();
    world
        .until("replaced", |w| {
            w.runtime.count("sandbox p") == 2 && w.runtime.running("c").is_some()
        })
        .await;
    world.pod("p", "ready", is_ready).await;
}

#[tokio::test]
async fn a_second_deletion_can_hurry_the_first() {
    let mut world = world();
    world.runtime.set_stubborn();
    world.start_agent();
    world.api.create("pods", "default", pod("p", json!({})));
    world.pod("p", "ready", is_ready).await;
    world.api.delete("pods", "default", "p", 600);
    world
        .until("stopping", |w| w.runtime.count("stop c 600") == 1)
        .await;
    world.api.delete("pods", "default", "p", 1);
    world
        .until("gone", |w| {
            w.api.get("pods", "default", "p").is_none() && w.runtime.is_empty()
        })
        .await;
}

#[tokio::test]
async fn static_pods_are_mirrored() {
    let mut world = world();
    let dir = world.dir.path().join("manifests");
    std::fs::create_dir_all(&dir).unwrap();
    let mut manifest = pod("s", json!({}));
    manifest["spec"].as_object_mut().unwrap().remove("nodeName");
    std::fs::write(dir.join("s.yaml"), manifest.to_string()).unwrap();
    world.start_agent();
    let mirror = world.pod("s-node", "mirrored and ready", is_ready).await;
    assert!(mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string());
    // A mirror that is deleted comes back; the pod does not mind.
    world.api.delete("pods", "default", "s-node", 0);
    world.pod("s-node", "mirrored again", is_ready).await;
    assert_eq!(world.runtime.count("start c"), 1);
    std::fs::remove_file(dir.join("s.yaml")).unwrap();
    world
        .until("gone", |w| {
            w.api.get("pods", "default", "s-node").is_none() && w.runtime.is_empty()
        })
        .await;
}
