//! What containers may and may not do.

use oci::cri::v1;
use oci::cri::v1::security_profile::ProfileType;

use crate::world::{World, security, shell};

const FOREVER: &str = "while :; do sleep 1; done";

#[tokio::test(flavor = "multi_thread")]
async fn users_groups_and_capabilities() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("users").await;
    let mut config = shell("app", FOREVER);
    let context = security(&mut config);
    context.run_as_username = "app".into();
    context.supplemental_groups = vec![2000];
    context.no_new_privs = true;
    let app = world.create(&sandbox, config).await;
    world.start(&app).await;
    let user = world.status(&app).await.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid), (1001, 1002));
    assert_eq!(user.supplemental_groups, [50, 1002, 2000]);
    assert_eq!(
        world.say(&app, "id -u; id -g; id -G; echo $HOME").await,
        "1001\n1002\n1002 50 2000\n/srv"
    );
    let status = world
        .say(&app, "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/1/status")
        .await;
    assert_eq!(
        status,
        "CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2"
    );

    let mut config = shell("numbers", "id -u; id -g; id -G > /dev/stdout");
    let context = security(&mut config);
    context.run_as_user = Some(v1::Int64Value { value: 4242 });
    context.run_as_group = Some(v1::Int64Value { value: 4343 });
    let id = world.create(&sandbox, config).await;
    world.start(&id).await;
    world.wait(&id).await;
    assert_eq!(
        world.log(&id).await,
        ["stdout F 4242", "stdout F 4343", "stdout F 4343"]
    );

    let mut config = shell("dropped", FOREVER);
    security(&mut config).capabilities = Some(v1::Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["ALL".into()],
        ..Default::default()
    });
    let id = world.create(&sandbox, config).await;
    world.start(&id).await;
    let caps = world
        .say(
            &id,
            "grep CapEff /proc/1/status; grep CapBnd /proc/self/status",
        )
        .await;
    assert_eq!(caps, "CapEff:\t0000000000001000\nCapBnd:\t0000000000001000");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_protected() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("files").await;
    let mut config = shell("readonly", FOREVER);
    let context = security(&mut config);
    context.readonly_rootfs = true;
    context.masked_paths = vec![
        "/proc/kcore".into(),
        "/proc/scsi".into(),
        "/sys/firmware".into(),
    ];
    context.readonly_paths = vec!["/proc/sys".into()];
    let data = world.dir.join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("note"), "from the host").unwrap();
    let mount = |path: &str, readonly| v1::Mount {
        host_path: data.to_string_lossy().into_owned(),
        container_path: path.into(),
        readonly,
        ..Default::default()
    };
    config.mounts = vec![mount("/data", false), mount("/fixed", true)];
    let id = world.create(&sandbox, config).await;
    world.start(&id).await;
    assert_eq!(world.say(&id, "cat /fixed/note").await, "from the host");
    world.say(&id, "echo changed > /data/note").await;
    assert_eq!(
        std::fs::read_to_string(data.join("note")).unwrap(),
        "changed\n"
    );
    for forbidden in [
        "echo > /file",
        "echo > /fixed/new",
        "echo 1 > /proc/sys/vm/swappiness",
        "mkdir $(ls -d /sys/fs/cgroup/memory /sys/fs/cgroup 2>/dev/null | head -1)/x",
    ] {
        let response = world.exec(&id, &["sh", "-c", forbidden]).await;
        let error = String::from_utf8_lossy(&response.stderr).into_owned();
        assert_ne!(response.exit_code, 0, "{forbidden}");
        assert!(
            error.contains("Read-only file system"),
            "{forbidden}: {error}"
        );
    }
    assert_eq!(world.say(&id, "cat /proc/kcore | head -c 1").await, "");
    assert_eq!(
        world.say(&id, "stat -c %a /dev/null /dev/shm").await,
        "666\n1777"
    );
    assert_eq!(world.say(&id, "cat /etc/hostname").await, "files");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn system_calls_are_filtered() {
    let mut world = World::new().await;
    let sandbox = world.sandbox("calls").await;
    // chroot's absence of capability aside, the name of a domain may only be set where allowed.
    let mut ids = Vec::new();
    for (name, kind, expected) in [
        ("default", ProfileType::RuntimeDefault, "2"),
        ("free", ProfileType::Unconfined, "0"),
    ] {
        let mut config = shell(name, FOREVER);
        security(&mut config).seccomp = Some(v1::SecurityProfile {
            profile_type: kind as i32,
            localhost_ref: String::new(),
        });
        let id = world.create(&sandbox, config).await;
        world.start(&id).await;
        let mode = world.say(&id, "grep Seccomp: /proc/self/status").await;
        assert_eq!(mode, format!("Seccomp:\t{expected}"), "{name}");
        ids.push(id);
    }
    // A profile of the host that knows no mkdir.
    let profile = world.dir.join("profile.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}]}"#;
    std::fs::write(&profile, text).unwrap();
    let mut config = shell("local", FOREVER);
    security(&mut config).seccomp = Some(v1::SecurityProfile {
        profile_type: ProfileType::Localhost as i32,
        localhost_ref: profile.to_string_lossy().into_owned(),
    });
    let id = world.create(&sandbox, config).await;
    world.start(&id).await;
    let response = world.exec(&id, &["mkdir", "/srv/x"]).await;
    let error = String::from_utf8_lossy(&response.stderr).into_owned();
    assert!(error.contains("quota"), "{error}");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_privileged_have_the_machine() {
    let mut world = World::new().await;
    let mut config = world.sandbox_config("privileged");
    let node = v1::NamespaceMode::Node as i32;
    let host = v1::NamespaceOption {
        network: node,
        pid: node,
        ipc: node,
        ..Default::default()
    };
    let context = config
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap();
    context.namespace_options = Some(host.clone());
    context.privileged = true;
    let sandbox = world.run(config).await;
    let mut config = shell("main", FOREVER);
    let context = security(&mut config);
    context.privileged = true;
    context.namespace_options = Some(host);
    let id = world.create(&sandbox, config).await;
    world.start(&id).await;
    for kind in ["net", "pid", "ipc", "uts"] {
        let inside = world
            .say(&id, &format!("stat -L -c %i /proc/self/ns/{kind}"))
            .await;
        let own = std::fs::metadata(format!("/proc/self/ns/{kind}")).unwrap();
        assert_eq!(
            inside,
            std::os::unix::fs::MetadataExt::ino(&own).to_string(),
            "{kind}"
        );
    }
    let bounding = |text: &str| {
        text.lines()
            .find(|l| l.starts_with("CapBnd"))
            .unwrap()
            .to_owned()
    };
    let own = bounding(&std::fs::read_to_string("/proc/self/status").unwrap());
    let inside = world.say(&id, "cat /proc/self/status").await;
    assert_eq!(bounding(&inside), own);
    assert!(
        world
            .say(&id, "ls /dev")
            .await
            .lines()
            .any(|name| name == "kmsg")
    );
    world.close().await;
}

fn mount_at(source: &str, target: &std::path::Path, kind: &str, flags: nix::mount::MsFlags) {
    nix::mount::mount(Some(source), target, Some(kind), flags, None::<&str>).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_pass_on_as_far_as_asked() {
    use nix::mount::{MntFlags, MsFlags, umount2};
    let mut world = World::new().await;
    let sandbox = world.sandbox("propagation").await;
    let shared = world.dir.join("shared");
    std::fs::create_dir(&shared).unwrap();
    mount_at("shared", &shared, "tmpfs", MsFlags::empty());
    mount_at("none", &shared, "", MsFlags::MS_SHARED);
    for name in ["from-host", "from-container"] {
        std::fs::create_dir(shared.join(name)).unwrap();
    }
    let mount = |path: &str, propagation: v1::MountPropagation| v1::Mount {
        host_path: shared.to_string_lossy().into_owned(),
        container_path: path.into(),
        propagation: propagation as i32,
        ..Default::default()
    };
    let mut config = shell("main", FOREVER);
    security(&mut config).privileged = true;
    config.mounts = vec![
        mount("/private", v1::MountPropagation::PropagationPrivate),
        mount("/slave", v1::MountPropagation::PropagationHostToContainer),
        mount("/both", v1::MountPropagation::PropagationBidirectional),
    ];
    let id = world.create(&sandbox, config).await;
    world.start(&id).await;
    let fixed = shared.join("from-host");
    mount_at("inner", &fixed, "tmpfs", MsFlags::empty());
    std::fs::write(fixed.join("note"), "x").unwrap();
    assert_eq!(world.say(&id, "ls /private/from-host").await, "");
    assert_eq!(world.say(&id, "ls /slave/from-host").await, "note");
    world
        .say(&id, "mount -t tmpfs inner /both/from-container")
        .await;
    world.say(&id, "echo x > /both/from-container/back").await;
    assert!(shared.join("from-container/back").exists());
    for name in ["from-host", "from-container"] {
        umount2(&shared.join(name), MntFlags::MNT_DETACH).unwrap();
    }
    umount2(&shared, MntFlags::MNT_DETACH).unwrap();
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_can_go_all_the_way_down() {
    use nix::mount::{MntFlags, MsFlags, umount2};
    let mut world = World::new().await;
    let sandbox = world.sandbox("recursive").await;
    let outer = world.dir.join("outer");
    std::fs::create_dir_all(outer.join("inner")).unwrap();
    mount_at("inner", &outer.join("inner"), "tmpfs", MsFlags::empty());
    let mount = |path: &str, recursive_read_only| v1::Mount {
        host_path: outer.to_string_lossy().into_owned(),
        container_path: path.into(),
        readonly: true,
        recursive_read_only,
        ..Default::default()
    };
    let mut config = shell("main", FOREVER);
    config.mounts = vec![mount("/top", false), mount("/all", true)];
    let id = world.create(&sandbox, config).await;
    world.start(&id).await;
    for (path, expected) in [
        ("/top/x", false),
        ("/top/inner/x", true),
        ("/all/x", false),
        ("/all/inner/x", false),
    ] {
        let response = world.exec(&id, &["mkdir", path]).await;
        assert_eq!(response.exit_code == 0, expected, "{path}");
    }
    umount2(&outer.join("inner"), MntFlags::MNT_DETACH).unwrap();
    world.close().await;
}
