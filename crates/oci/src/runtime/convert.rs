//! From CRI's configuration of a container to the plan its shim carries out.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::cri::v1;
use crate::images::{ImageConfig, SnapshotMount};
use crate::plan::{
    ContainerPlan, DevicePlan, MountPlan, PidPlan, ProcessPlan, Propagation, Resources, Rlimit,
    RlimitResource, RootfsPlan, Seccomp, UserPlan,
};

/// Capabilities of a container that asks for nothing.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// Open files of a container, as far as the host allows.
const OPEN_FILES: u64 = 1 << 20;
/// Devices of the host that belong to the host's terminals and mounts.
const PRIVATE_DEVICES: [&str; 8] = [
    "pts", "shm", "mqueue", "fd", "console", "ptmx", "core", "initctl",
];
/// Devices a privileged container gets, at most.
const MAX_DEVICES: usize = 4096;

/// All that a plan is made of.
pub struct Sources<'a> {
    pub id: &'a str,
    pub dir: PathBuf,
    pub stage: PathBuf,
    pub config: &'a v1::ContainerConfig,
    pub sandbox: &'a v1::PodSandboxConfig,
    /// Holds resolv.conf, hostname and hosts.
    pub sandbox_dir: PathBuf,
    pub image: &'a ImageConfig,
    pub snapshot: SnapshotMount,
    pub cgroup: String,
}

/// Makes the plan; the error says what in the configuration cannot be had.
pub fn container_plan(sources: Sources) -> Result<ContainerPlan, String> {
    let config = sources.config;
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    let namespaces = security
        .namespace_options
        .clone()
        .or_else(|| sandbox_namespaces(sources.sandbox))
        .unwrap_or(v1::NamespaceOption {
            pid: v1::NamespaceMode::Container as i32,
            ..Default::default()
        });
    let resources = linux.resources.clone().unwrap_or_default();
    let log_path = (!config.log_path.is_empty() && !sources.sandbox.log_directory.is_empty())
        .then(|| Path::new(&sources.sandbox.log_directory).join(&config.log_path));
    let (masked_paths, readonly_paths) = if security.privileged {
        (Vec::new(), Vec::new())
    } else {
        (
            security.masked_paths.clone(),
            security.readonly_paths.clone(),
        )
    };
    Ok(ContainerPlan {
        id: sources.id.to_owned(),
        stage: sources.stage.clone(),
        rootfs: RootfsPlan {
            lowerdirs: sources.snapshot.lowerdirs.clone(),
            upperdir: sources.snapshot.upperdir.clone(),
            workdir: sources.snapshot.workdir.clone(),
            readonly: security.readonly_rootfs,
        },
        process: process_plan(config, &security, sources.image, &resources)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        log_path,
        mounts: mount_plans(&sources)?,
        masked_paths,
        readonly_paths,
        devices: device_plans(config, security.privileged)?,
        privileged: security.privileged,
        pid: match v1::NamespaceMode::try_from(namespaces.pid) {
            Ok(v1::NamespaceMode::Pod) => PidPlan::Pod,
            Ok(v1::NamespaceMode::Node) => PidPlan::Host,
            Ok(v1::NamespaceMode::Target) => PidPlan::Target(namespaces.target_id.clone()),
            Ok(v1::NamespaceMode::Container) | Err(_) => PidPlan::Own,
        },
        host_ipc: namespaces.ipc == v1::NamespaceMode::Node as i32,
        cgroup: sources.cgroup,
        resources: limits(&resources),
        dir: sources.dir,
    })
}

/// The namespace options of a sandbox.
pub fn sandbox_namespaces(config: &v1::PodSandboxConfig) -> Option<v1::NamespaceOption> {
    config
        .linux
        .as_ref()?
        .security_context
        .as_ref()?
        .namespace_options
        .clone()
}

/// A later process of a container; its command line is still to be set.
pub fn exec_process(
    config: &v1::ContainerConfig,
    image: &ImageConfig,
) -> Result<ProcessPlan, String> {
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    process_plan(
        config,
        &security,
        image,
        &linux.resources.unwrap_or_default(),
    )
}

fn process_plan(
    config: &v1::ContainerConfig,
    security: &v1::LinuxContainerSecurityContext,
    image: &ImageConfig,
    resources: &v1::LinuxContainerResources,
) -> Result<ProcessPlan, String> {
    let apparmor = security
        .apparmor
        .as_ref()
        .map(|profile| profile.profile_type);
    if apparmor == Some(v1::security_profile::ProfileType::Localhost as i32) {
        return Err("AppArmor profiles are not supported".into());
    }
    let args = command_line(config, image);
    if args.is_empty() {
        return Err("no command specified".into());
    }
    let (capabilities, ambient) = capabilities(security);
    Ok(ProcessPlan {
        args,
        env: environment(config, image),
        cwd: [&config.working_dir, &image.working_dir]
            .into_iter()
            .find(|dir| !dir.is_empty())
            .map_or("/", |dir| dir)
            .to_owned(),
        user: user(security, image)?,
        capabilities,
        ambient,
        no_new_privileges: security.no_new_privs,
        seccomp: seccomp(security),
        rlimits: vec![Rlimit {
            resource: RlimitResource::OpenFiles,
            soft: OPEN_FILES,
            hard: OPEN_FILES,
        }],
        oom_score_adj: Some(i32::try_from(resources.oom_score_adj).unwrap_or(0)),
        terminal: config.tty,
    })
}

/// A command replaces the image's entrypoint and with it its default arguments.
fn command_line(config: &v1::ContainerConfig, image: &ImageConfig) -> Vec<String> {
    let (mut line, arguments) = if config.command.is_empty() {
        let arguments = if config.args.is_empty() {
            &image.cmd
        } else {
            &config.args
        };
        (image.entrypoint.clone(), arguments)
    } else {
        (config.command.clone(), &config.args)
    };
    line.extend(arguments.iter().cloned());
    line
}

fn environment(config: &v1::ContainerConfig, image: &ImageConfig) -> Vec<String> {
    let own = config
        .envs
        .iter()
        .map(|entry| format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)));
    image.env.iter().cloned().chain(own).collect()
}

fn user(
    security: &v1::LinuxContainerSecurityContext,
    image: &ImageConfig,
) -> Result<UserPlan, String> {
    let number = |value: i64, what| {
        u32::try_from(value).map_err(|_| format!("{what} {value} is out of range"))
    };
    let gid = security
        .run_as_group
        .as_ref()
        .map(|group| number(group.value, "group"))
        .transpose()?;
    let user = match &security.run_as_user {
        Some(user) => number(user.value, "user")?.to_string(),
        None if !security.run_as_username.is_empty() => security.run_as_username.clone(),
        None => image.user.clone(),
    };
    Ok(UserPlan {
        user,
        gid,
        groups: security
            .supplemental_groups
            .iter()
            .map(|group| number(*group, "group"))
            .collect::<Result<_, _>>()?,
        merge_image_groups: security.supplemental_groups_policy
            == v1::SupplementalGroupsPolicy::Merge as i32,
    })
}

fn capability_name(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    }
}

/// The capabilities and the ambient ones, no more than the host's own bounding set allows.
fn capabilities(security: &v1::LinuxContainerSecurityContext) -> (Vec<String>, Vec<String>) {
    let available: Vec<String> = caps::read(None, caps::CapSet::Bounding)
        .map(|set| set.iter().map(ToString::to_string).collect())
        .unwrap_or_default();
    let asked = security.capabilities.clone().unwrap_or_default();
    let names = |list: &[String]| -> Vec<String> {
        list.iter().map(|name| capability_name(name)).collect()
    };
    let (add, drop) = (
        names(&asked.add_capabilities),
        names(&asked.drop_capabilities),
    );
    let ambient = names(&asked.add_ambient_capabilities);
    let all = |list: &[String]| list.iter().any(|name| name == "CAP_ALL");
    let granted: Vec<String> = available
        .into_iter()
        .filter(|name| {
            if security.privileged {
                return true;
            }
            let added = add.contains(name) || ambient.contains(name);
            let dropped = drop.contains(name);
            if added {
                return true;
            }
            if dropped {
                return false;
            }
            all(&add) || (!all(&drop) && DEFAULT_CAPABILITIES.contains(&name.as_str()))
        })
        .collect();
    let ambient = ambient
        .into_iter()
        .filter(|name| granted.contains(name))
        .collect();
    (granted, ambient)
}

fn seccomp(security: &v1::LinuxContainerSecurityContext) -> Seccomp {
    use v1::security_profile::ProfileType;
    if security.privileged {
        return Seccomp::Unconfined;
    }
    let Some(profile) = &security.seccomp else {
        return Seccomp::RuntimeDefault;
    };
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::Unconfined) => Seccomp::Unconfined,
        Ok(ProfileType::Localhost) => Seccomp::Localhost(
            profile
                .localhost_ref
                .strip_prefix("localhost/")
                .unwrap_or(&profile.localhost_ref)
                .into(),
        ),
        Ok(ProfileType::RuntimeDefault) | Err(_) => Seccomp::RuntimeDefault,
    }
}

fn mount_plans(sources: &Sources) -> Result<Vec<MountPlan>, String> {
    let mut mounts = Vec::new();
    for mount in &sources.config.mounts {
        if mount.image.is_some() {
            return Err(format!(
                "image mounts are not supported: {}",
                mount.container_path
            ));
        }
        let source = host_path(&mount.host_path)
            .map_err(|error| format!("failed to mount {}: {error}", mount.host_path))?;
        mounts.push(MountPlan {
            source,
            destination: normal(&mount.container_path),
            readonly: mount.readonly,
            recursive_readonly: mount.recursive_read_only,
            propagation: match v1::MountPropagation::try_from(mount.propagation) {
                Ok(v1::MountPropagation::PropagationHostToContainer) => {
                    Propagation::HostToContainer
                }
                Ok(v1::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
                _ => Propagation::Private,
            },
        });
    }
    let readonly = sources
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .is_some_and(|security| security.readonly_rootfs);
    for name in ["hosts", "hostname", "resolv.conf"] {
        let destination = format!("/etc/{name}");
        let source = sources.sandbox_dir.join(name);
        let given = mounts.iter().any(|mount| mount.destination == destination);
        if !given && source.exists() {
            mounts.push(MountPlan {
                source,
                destination,
                readonly,
                recursive_readonly: false,
                propagation: Propagation::Private,
            });
        }
    }
    Ok(mounts)
}

/// A path of the host without links; a missing folder is made.
fn host_path(path: &str) -> std::io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fs::create_dir_all(path)?;
            fs::canonicalize(path)
        }
        other => other,
    }
}

fn normal(path: &str) -> String {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    format!("/{}", parts.join("/"))
}

fn device_plans(config: &v1::ContainerConfig, privileged: bool) -> Result<Vec<DevicePlan>, String> {
    let mut devices = Vec::new();
    if privileged {
        host_devices(Path::new("/dev"), &mut devices);
    }
    for device in &config.devices {
        let permissions = if device.permissions.is_empty() {
            "rwm"
        } else {
            &device.permissions
        };
        let plan = device_plan(
            Path::new(&device.host_path),
            &device.container_path,
            permissions,
        )
        .ok_or_else(|| format!("{} is not a device", device.host_path))?;
        devices.retain(|other: &DevicePlan| other.path != plan.path);
        devices.push(plan);
    }
    Ok(devices)
}

fn device_plan(host: &Path, path: &str, permissions: &str) -> Option<DevicePlan> {
    let metadata = fs::metadata(host).ok()?;
    let kind = metadata.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return None;
    }
    Some(DevicePlan {
        path: path.to_owned(),
        block: kind.is_block_device(),
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        permissions: permissions.to_owned(),
    })
}

fn host_devices(folder: &Path, devices: &mut Vec<DevicePlan>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if PRIVATE_DEVICES.contains(&name) || devices.len() >= MAX_DEVICES {
            continue;
        }
        let path = entry.path();
        if kind.is_dir() {
            host_devices(&path, devices);
        } else if !kind.is_symlink()
            && let Some(text) = path.to_str()
        {
            devices.extend(device_plan(&path, text, "rwm"));
        }
    }
}

/// Limits as the cgroups take them.
pub fn limits(resources: &v1::LinuxContainerResources) -> Resources {
    let positive = |value: i64| u64::try_from(value).unwrap_or(0);
    Resources {
        cpu_shares: positive(resources.cpu_shares),
        cpu_quota: resources.cpu_quota,
        cpu_period: positive(resources.cpu_period),
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        memory_bytes: resources.memory_limit_in_bytes,
        memory_swap_bytes: resources.memory_swap_limit_in_bytes,
        hugepages: resources
            .hugepage_limits
            .iter()
            .map(|limit| (limit.page_size.clone(), limit.limit))
            .collect::<BTreeMap<_, _>>(),
        unified: resources.unified.clone().into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            env: vec!["A=image".into()],
            user: "app".into(),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn command_lines() {
        let table: [(&[&str], &[&str], &[&str]); 4] = [
            (&[], &[], &["/entry", "default"]),
            (&[], &["x"], &["/entry", "x"]),
            (&["/other"], &[], &["/other"]),
            (&["/other"], &["x"], &["/other", "x"]),
        ];
        let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (command, args, expected) in table {
            let config = v1::ContainerConfig {
                command: strings(command),
                args: strings(args),
                ..Default::default()
            };
            assert_eq!(command_line(&config, &image()), strings(expected));
        }
    }

    fn granted(add: &[&str], drop: &[&str]) -> Vec<String> {
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let security = v1::LinuxContainerSecurityContext {
            capabilities: Some(v1::Capability {
                add_capabilities: names(add),
                drop_capabilities: names(drop),
                ..Default::default()
            }),
            ..Default::default()
        };
        capabilities(&security).0
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let bounding = caps::read(None, caps::CapSet::Bounding).unwrap().len();
        let has = |list: &[String], name: &str| list.iter().any(|c| c == name);
        assert!(has(&granted(&[], &[]), "CAP_CHOWN"));
        assert!(!has(&granted(&[], &[]), "CAP_SYS_ADMIN"));
        assert!(!has(&granted(&[], &["CHOWN"]), "CAP_CHOWN"));
        assert_eq!(granted(&[], &["ALL"]), Vec::<String>::new());
        assert_eq!(
            granted(&["NET_BIND_SERVICE"], &["ALL"]),
            ["CAP_NET_BIND_SERVICE"]
        );
        assert_eq!(granted(&["ALL"], &[]).len(), bounding);
        assert!(!has(&granted(&["ALL"], &["KILL"]), "CAP_KILL"));
    }

    #[test]
    fn users_come_from_the_first_that_says() {
        let mut security = v1::LinuxContainerSecurityContext::default();
        assert_eq!(user(&security, &image()).unwrap().user, "app");
        security.run_as_username = "other".into();
        assert_eq!(user(&security, &image()).unwrap().user, "other");
        security.run_as_user = Some(v1::Int64Value { value: 1000 });
        assert_eq!(user(&security, &image()).unwrap().user, "1000");
        security.run_as_user = Some(v1::Int64Value { value: -1 });
        assert!(user(&security, &image()).is_err());
    }

    #[test]
    fn paths_are_normal() {
        for (path, expected) in [("/a//b/", "/a/b"), ("a/./b", "/a/b"), ("/", "/")] {
            assert_eq!(normal(path), expected);
        }
    }
}
