//! The runtime dies, containers live on; shims die, the runtime says so.

use std::time::{Duration, Instant};

use oci::cri::v1;

use crate::world::{PATIENCE, World, config, shell};

/// Set for the process that plays the runtime to be killed: its folder and cgroup.
const ROLE: &str = "OCI_TEST_RUNTIME";

fn shim_pid(sandbox_dir: &std::path::Path) -> i32 {
    let text = sandbox_dir.to_string_lossy().into_owned();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            let read =
                |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&read("cmdline")).contains(&text)
                // The shim proper has left its starter, and is no container.
                && String::from_utf8_lossy(&read("comm")).trim() == "oci-shim"
        })
        .expect("the sandbox has no shim")
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_survive_the_runtime() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("survivor").await;
    let script = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo $i; sleep 0.02; done; exit 9";
    let id = world.script(&sandbox, "main", script).await;
    world.wait_for_log(&id, "stdout F 3").await;
    let before = world.status(&id).await;
    world.reopen().await;
    let after = world.status(&id).await;
    assert_eq!(
        (after.state, after.started_at),
        (before.state, before.started_at)
    );
    let status = world.wait(&id).await;
    assert_eq!(status.exit_code, 9);
    let expected: Vec<String> = (1..=40).map(|n| format!("stdout F {n}")).collect();
    assert_eq!(world.log(&id).await, expected);
    // An exit nobody was there to see is found as well.
    let id = world.script(&sandbox, "second", "sleep 0.3; exit 8").await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    world.reopen().await;
    let status = world.status(&id).await;
    assert_eq!(
        (status.state(), status.exit_code),
        (v1::ContainerState::ContainerExited, 8)
    );
    assert_eq!(world.say_in_new(&sandbox, "echo alive").await, "alive");
    world.close().await;
}

/// Not a test: the runtime of the next one, in a process that can be killed.
#[tokio::test(flavor = "multi_thread")]
async fn runtime_to_be_killed() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let (dir, cgroup) = role.split_once(' ').unwrap();
    let config = config(dir.as_ref(), cgroup, Default::default());
    let runtime = oci::Runtime::open(config).await.unwrap();
    let mut client =
        v1::runtime_service_client::RuntimeServiceClient::new(runtime.runtime_service());
    // Makes pods as fast as it can until it is killed.
    for attempt in 0.. {
        let request = v1::RunPodSandboxRequest {
            config: Some(v1::PodSandboxConfig {
                metadata: Some(v1::PodSandboxMetadata {
                    name: "victim".into(),
                    attempt,
                    ..Default::default()
                }),
                log_directory: format!("{dir}/logs/{attempt}"),
                ..Default::default()
            }),
            runtime_handler: String::new(),
        };
        let sandbox = client
            .run_pod_sandbox(request)
            .await
            .unwrap()
            .into_inner()
            .pod_sandbox_id;
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox,
            config: Some(shell("main", "sleep 1000")),
            sandbox_config: None,
        };
        let response = client.create_container(request).await.unwrap();
        let container_id = response.into_inner().container_id;
        let request = v1::StartContainerRequest { container_id };
        client.start_container(request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_leaves_only_whole_things() {
    let mut world = World::new().await;
    let role = format!("{} {}/role", world.dir.display(), world.cgroup);
    for round in 0..8 {
        let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "adopt::runtime_to_be_killed", "--nocapture"])
            .env(ROLE, &role)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(60 + 37 * round)).await;
        victim.kill().unwrap();
        victim.wait().unwrap();
        world.reopen().await;
        let request = v1::ListPodSandboxRequest { filter: None };
        let sandboxes = world
            .client
            .list_pod_sandbox(request)
            .await
            .unwrap()
            .into_inner()
            .items;
        for sandbox in &sandboxes {
            assert_eq!(
                sandbox.state(),
                v1::PodSandboxState::SandboxReady,
                "round {round}"
            );
        }
        let request = v1::ListContainersRequest { filter: None };
        let containers = world
            .client
            .list_containers(request)
            .await
            .unwrap()
            .into_inner();
        for container in containers.containers {
            if container.state() == v1::ContainerState::ContainerRunning {
                assert_eq!(world.say(&container.id, "echo here").await, "here");
            }
        }
        for sandbox in sandboxes {
            world.remove(&sandbox.id).await;
        }
    }
    // The fake network cannot know of the victims.
    world
        .network
        .connected
        .store(0, std::sync::atomic::Ordering::SeqCst);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_shim_is_a_sandbox_not_ready() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("orphan").await;
    let id = world
        .script(&sandbox, "main", "while :; do sleep 1; done")
        .await;
    let dir = world.dir.join("oci/sandboxes").join(&sandbox);
    let pid = nix::unistd::Pid::from_raw(shim_pid(&dir));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let status = world.wait(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: sandbox.clone(),
            verbose: false,
        };
        let status = world
            .client
            .pod_sandbox_status(request)
            .await
            .unwrap()
            .into_inner();
        if status.status.unwrap().state() == v1::PodSandboxState::SandboxNotready {
            break;
        }
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.reopen().await;
    assert_eq!(world.status(&id).await.exit_code, 255);
    world.close().await;
}
