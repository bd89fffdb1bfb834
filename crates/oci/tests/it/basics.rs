//! The life of sandboxes and containers.

use std::time::{Duration, Instant};

use oci::cri::v1;

use crate::world::{PATIENCE, World, command, security, shell};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_logs_and_exits() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("one").await;
    let id = world
        .script(&sandbox, "main", "echo out; echo err >&2; exit 3")
        .await;
    let status = world.wait(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(status.created_at <= status.started_at && status.started_at <= status.finished_at);
    let mut log = world.log(&id).await;
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F out"]);
    let ok = world.create(&sandbox, command("image-default", &[])).await;
    world.start(&ok).await;
    let status = world.wait(&ok).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    assert_eq!(status.image.unwrap().image, crate::image::NAME);
    assert!(status.image_id.starts_with("sha256:"));
    assert_eq!(world.log(&ok).await, ["stdout F default"]);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_asks_first_and_kills_later() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("stop").await;
    let polite = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let polite = world.script(&sandbox, "polite", polite).await;
    let deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let deaf = world.script(&sandbox, "deaf", deaf).await;
    for id in [&polite, &deaf] {
        world.wait_for_log(id, "ready").await;
    }
    let stop = |id: &str| v1::StopContainerRequest {
        container_id: id.into(),
        timeout: 1,
    };
    world.client.stop_container(stop(&polite)).await.unwrap();
    let status = world.status(&polite).await;
    assert_eq!(status.exit_code, 5);
    let before = Instant::now();
    world.client.stop_container(stop(&deaf)).await.unwrap();
    assert!(before.elapsed() >= Duration::from_secs(1));
    assert_eq!(world.status(&deaf).await.exit_code, 137);
    // Again is fine, and so is a container that never was.
    world.client.stop_container(stop(&deaf)).await.unwrap();
    world
        .client
        .stop_container(stop("no-such-container"))
        .await
        .unwrap();
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_returns_output_and_exit_code() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("exec").await;
    let mut config = shell("main", "while :; do sleep 1; done");
    config.envs = vec![v1::KeyValue {
        key: "GREETING".into(),
        value: b"hello".to_vec(),
    }];
    let id = world.create(&sandbox, config).await;
    world.start(&id).await;
    let response = world
        .exec(
            &id,
            &[
                "sh",
                "-c",
                "echo $GREETING $FROM_IMAGE; echo no >&2; exit 7",
            ],
        )
        .await;
    assert_eq!(response.stdout, b"hello yes\n");
    assert_eq!(response.stderr, b"no\n");
    assert_eq!(response.exit_code, 7);
    assert_eq!(
        world.say(&id, "cat /proc/1/comm; echo $PPID").await,
        "sh\n0"
    );
    assert_eq!(world.say(&id, "echo $HOME").await, "/root");
    let missing = world.try_exec(&id, &["nonesuch"], 5).await.unwrap_err();
    let text = "exec: \"nonesuch\": executable file not found in $PATH";
    assert!(missing.message().contains(text), "{missing}");
    let denied = world.try_exec(&id, &["/plain"], 5).await.unwrap_err();
    assert!(denied.message().contains("permission denied"), "{denied}");
    let before = Instant::now();
    let late = world.try_exec(&id, &["sleep", "100"], 1).await.unwrap_err();
    assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
    assert!(before.elapsed() < Duration::from_secs(5));
    let bytes = world
        .exec(&id, &["head", "-c", "3000000", "/dev/zero"])
        .await
        .stdout
        .len();
    assert_eq!(bytes, 3_000_000);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_shares_network_name_and_memory() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("shared").await;
    let forever = "while :; do sleep 1; done";
    let one = world.script(&sandbox, "one", forever).await;
    let two = world.script(&sandbox, "two", forever).await;
    world.say(&one, "echo from one > /dev/shm/note").await;
    assert_eq!(world.say(&two, "cat /dev/shm/note").await, "from one");
    assert_eq!(
        world
            .say(&two, "cat /proc/sys/kernel/hostname /etc/hostname")
            .await,
        "shared\nshared"
    );
    let ns = |kind: &str| format!("stat -L -c %i /proc/self/ns/{kind}");
    for kind in ["net", "ipc", "uts"] {
        let first = world.say(&one, &ns(kind)).await;
        assert_eq!(first, world.say(&two, &ns(kind)).await, "{kind}");
        let own = std::fs::metadata(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(
            first,
            std::os::unix::fs::MetadataExt::ino(&own).to_string(),
            "{kind}"
        );
    }
    for kind in ["mnt", "pid"] {
        let first = world.say(&one, &ns(kind)).await;
        assert_ne!(first, world.say(&two, &ns(kind)).await, "{kind}");
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_may_share_processes() {
    let mut world = World::new().await;
    let mut config = world.sandbox_config("processes");
    let pod = v1::NamespaceMode::Pod as i32;
    let linux = config.linux.as_mut().unwrap();
    linux
        .security_context
        .as_mut()
        .unwrap()
        .namespace_options
        .as_mut()
        .unwrap()
        .pid = pod;
    let sandbox = world.run(config).await;
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let mut config = shell(name, "sleep 1000 & wait");
        security(&mut config)
            .namespace_options
            .as_mut()
            .unwrap()
            .pid = pod;
        let id = world.create(&sandbox, config).await;
        world.start(&id).await;
        ids.push(id);
    }
    let shells = world
        .say(&ids[0], "cat /proc/[0-9]*/comm | grep -c '^sh$'")
        .await;
    assert!(shells.parse::<u32>().unwrap() >= 2, "{shells}");
    let stop = v1::StopContainerRequest {
        container_id: ids[0].clone(),
        timeout: 0,
    };
    world.client.stop_container(stop).await.unwrap();
    // Its background process went with it, the other container's stayed.
    let count = "cat /proc/[0-9]*/comm | grep -c '^sleep$'";
    let deadline = Instant::now() + PATIENCE;
    while world.say(&ids[1], count).await != "1" {
        assert!(Instant::now() < deadline);
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("broken").await;
    let id = world
        .create(&sandbox, command("missing", &["nonesuch"]))
        .await;
    let error = world.try_start(&id).await.unwrap_err();
    let text = "exec: \"nonesuch\": executable file not found in $PATH";
    assert!(error.message().contains(text), "{error}");
    let status = world.status(&id).await;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (128, "StartError")
    );
    assert!(status.message.contains(text), "{}", status.message);

    let mut config = shell("nobody", "true");
    security(&mut config).run_as_username = "nobody-here".into();
    let id = world.create(&sandbox, config).await;
    let error = world.try_start(&id).await.unwrap_err();
    assert!(
        error
            .message()
            .contains("no matching entries in passwd file"),
        "{error}"
    );

    let file = world.dir.join("a-file");
    std::fs::write(&file, "x").unwrap();
    let mut config = shell("mount", "true");
    config.mounts = vec![v1::Mount {
        host_path: file.to_string_lossy().into_owned(),
        container_path: "/etc".into(),
        ..Default::default()
    }];
    let id = world.create(&sandbox, config).await;
    let result = world.try_start(&id).await;
    let error = result.unwrap_err();
    assert!(
        error
            .message()
            .contains("to rootfs at \"/etc\": not a directory"),
        "{error}"
    );

    let mut config = shell("image", "true");
    config.image.as_mut().unwrap().image = "localhost/absent:1".into();
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(config),
        sandbox_config: None,
    };
    let error = world.client.create_container(request).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_without_network_leaves_nothing() {
    let mut world = World::new().await;
    let request = v1::RunPodSandboxRequest {
        config: Some(world.sandbox_config("no-network")),
        runtime_handler: String::new(),
    };
    let error = world.client.run_pod_sandbox(request).await.unwrap_err();
    assert!(error.message().contains("no addresses left"), "{error}");
    // The fake counts teardowns too: balance them.
    world
        .network
        .connected
        .store(0, std::sync::atomic::Ordering::SeqCst);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_filters_and_statuses() {
    let mut world = World::new().await;
    let one = world.sandbox("one").await;
    let two = world.sandbox("two").await;
    let id = world.script(&one, "main", "sleep 1000").await;
    let list = |filter| v1::ListPodSandboxRequest { filter };
    let all = world
        .client
        .list_pod_sandbox(list(None))
        .await
        .unwrap()
        .into_inner()
        .items;
    assert_eq!(
        all.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(),
        [&one, &two]
    );
    let filter = v1::PodSandboxFilter {
        label_selector: [("app".to_owned(), "two".to_owned())].into(),
        ..Default::default()
    };
    let some = world
        .client
        .list_pod_sandbox(list(Some(filter)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(some.items.len(), 1);
    let request = v1::PodSandboxStatusRequest {
        pod_sandbox_id: one[..12].into(),
        verbose: false,
    };
    let status = world
        .client
        .pod_sandbox_status(request)
        .await
        .unwrap()
        .into_inner();
    let sandbox = status.status.unwrap();
    assert_eq!(sandbox.network.unwrap().ip, "10.99.0.7");
    assert_eq!(status.containers_statuses[0].id, id);
    let filter = v1::ContainerFilter {
        state: Some(v1::ContainerStateValue {
            state: v1::ContainerState::ContainerRunning as i32,
        }),
        ..Default::default()
    };
    let request = v1::ListContainersRequest {
        filter: Some(filter),
    };
    let running = world
        .client
        .list_containers(request)
        .await
        .unwrap()
        .into_inner()
        .containers;
    assert_eq!(running.len(), 1);
    // A name is good for one sandbox only.
    let request = v1::RunPodSandboxRequest {
        config: Some(world.sandbox_config("one")),
        runtime_handler: String::new(),
    };
    let error = world.client.run_pod_sandbox(request).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::AlreadyExists);
    let stop = v1::StopPodSandboxRequest {
        pod_sandbox_id: one.clone(),
    };
    world.client.stop_pod_sandbox(stop.clone()).await.unwrap();
    world.client.stop_pod_sandbox(stop).await.unwrap();
    assert_eq!(world.status(&id).await.exit_code, 137);
    let request = v1::PodSandboxStatusRequest {
        pod_sandbox_id: one,
        verbose: false,
    };
    let status = world
        .client
        .pod_sandbox_status(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        status.status.unwrap().state,
        v1::PodSandboxState::SandboxNotready as i32
    );
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_and_change() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("limits").await;
    let mut config = shell("eater", "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done");
    let limits = config.linux.as_mut().unwrap().resources.as_mut().unwrap();
    limits.memory_limit_in_bytes = 16 << 20;
    let eater = world.create(&sandbox, config).await;
    world.start(&eater).await;
    let status = world.wait(&eater).await;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );

    let mut config = shell("worker", "while :; do :; done");
    let limits = config.linux.as_mut().unwrap().resources.as_mut().unwrap();
    limits.cpu_shares = 512;
    limits.cpu_period = 100_000;
    limits.cpu_quota = 10_000;
    limits.memory_limit_in_bytes = 64 << 20;
    let worker = world.create(&sandbox, config).await;
    world.start(&worker).await;
    let request = v1::ContainerStatsRequest {
        container_id: worker.clone(),
    };
    let first = world
        .client
        .container_stats(request.clone())
        .await
        .unwrap()
        .into_inner();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stats = world
        .client
        .container_stats(request)
        .await
        .unwrap()
        .into_inner()
        .stats
        .unwrap();
    assert!(first.stats.unwrap().cpu.unwrap().usage_nano_cores.is_none());
    let cores = stats.cpu.unwrap().usage_nano_cores.unwrap().value;
    assert!((30_000_000..300_000_000).contains(&cores), "{cores}");
    let memory = stats.memory.unwrap();
    assert!(memory.usage_bytes.unwrap().value > 0);
    assert!(memory.available_bytes.unwrap().value <= 64 << 20);
    let request = v1::UpdateContainerResourcesRequest {
        container_id: worker.clone(),
        linux: Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 128 << 20,
            ..Default::default()
        }),
        ..Default::default()
    };
    world
        .client
        .update_container_resources(request)
        .await
        .unwrap();
    let resources = world
        .status(&worker)
        .await
        .resources
        .unwrap()
        .linux
        .unwrap();
    assert_eq!(resources.memory_limit_in_bytes, 128 << 20);
    let request = v1::PodSandboxStatsRequest {
        pod_sandbox_id: sandbox,
    };
    let stats = world
        .client
        .pod_sandbox_stats(request)
        .await
        .unwrap()
        .into_inner();
    let pod = stats.stats.unwrap().linux.unwrap();
    assert!(pod.process.unwrap().process_count.unwrap().value >= 2);
    assert_eq!(pod.containers.len(), 2);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_rotate() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("logs").await;
    let id = world
        .script(
            &sandbox,
            "main",
            "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done",
        )
        .await;
    world.wait_for_log(&id, "stdout F 3").await;
    let path = world.status(&id).await.log_path;
    std::fs::rename(&path, format!("{path}.old")).unwrap();
    let request = v1::ReopenContainerLogRequest {
        container_id: id.clone(),
    };
    world.client.reopen_container_log(request).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let numbers = |path: &str| -> Vec<u32> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect()
    };
    let (old, new) = (numbers(&format!("{path}.old")), numbers(&path));
    assert_eq!(
        old.last().unwrap() + 1,
        new[0],
        "no line is lost or doubled"
    );
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_of_every_change() {
    let mut world = World::new().await;
    let request = v1::GetEventsRequest {};
    let mut events = world
        .client
        .get_container_events(request)
        .await
        .unwrap()
        .into_inner();
    let sandbox = world.sandbox("events").await;
    let id = world.script(&sandbox, "main", "exit 4").await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let event = events.message().await.unwrap().unwrap();
        if event.container_id == id {
            seen.push(event.container_event_type());
            if seen.len() == 3 {
                assert_eq!(event.containers_statuses[0].exit_code, 4);
            }
        }
    }
    assert_eq!(
        seen,
        [
            v1::ContainerEventType::ContainerCreatedEvent,
            v1::ContainerEventType::ContainerStartedEvent,
            v1::ContainerEventType::ContainerStoppedEvent,
        ]
    );
    drop(events);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_and_quickly() {
    let world = World::new().await;
    let before = Instant::now();
    let mut tasks = Vec::new();
    for index in 0..10 {
        let mut client = world.client.clone();
        let config = world.sandbox_config(&format!("many-{index}"));
        tasks.push(tokio::spawn(async move {
            let request = v1::RunPodSandboxRequest {
                config: Some(config),
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
            let container_id = client
                .create_container(request)
                .await
                .unwrap()
                .into_inner()
                .container_id;
            client
                .start_container(v1::StartContainerRequest { container_id })
                .await
                .unwrap();
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    println!("ten pods running after {:?}", before.elapsed());
    assert!(before.elapsed() < Duration::from_secs(10));
    world.close().await;
}
