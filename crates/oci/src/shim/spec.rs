//! The OCI runtime configuration of a container, from its plan.
//!
//! User, capabilities, limits and seccomp are not in it: they are applied by `process` after
//! libcontainer has built the container as root.

use std::path::Path;

use serde_json::{Value, json};

use super::create::Staged;
use crate::plan::{ContainerPlan, DevicePlan, MountPlan, PidPlan, Propagation, Resources};

/// The configuration, in the form of `config.json`.
pub fn runtime_spec(plan: &ContainerPlan, staged: &Staged, pid_namespace: Option<&Path>) -> Value {
    let shares_mounts = plan
        .mounts
        .iter()
        .any(|mount| mount.propagation == Propagation::Bidirectional);
    let propagation = if shares_mounts { "shared" } else { "slave" };
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": staged.rootfs, "readonly": plan.rootfs.readonly},
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["init"],
            "env": [],
            "cwd": "/",
            "noNewPrivileges": false,
            "capabilities": all_capabilities(),
        },
        "mounts": mounts(plan, staged),
        "linux": {
            "cgroupsPath": plan.cgroup,
            "namespaces": namespaces(plan, pid_namespace),
            "resources": resources(plan),
            "devices": plan.devices.iter().map(device).collect::<Vec<_>>(),
            "maskedPaths": plan.masked_paths,
            "readonlyPaths": readonly_paths(plan),
            "rootfsPropagation": propagation,
        },
    })
}

/// What the plan asks for, and the cgroups: of the v1 trees libcontainer makes none read-only.
fn readonly_paths(plan: &ContainerPlan) -> Vec<String> {
    let mut paths = plan.readonly_paths.clone();
    if !plan.privileged {
        paths.extend(crate::cgroups::visible_folders());
    }
    paths
}

fn all_capabilities() -> Value {
    let bounding: Vec<String> = caps::read(None, caps::CapSet::Bounding)
        .map(|set| set.iter().map(ToString::to_string).collect())
        .unwrap_or_default();
    json!({"bounding": bounding, "effective": bounding, "permitted": bounding})
}

fn namespaces(plan: &ContainerPlan, pid_namespace: Option<&Path>) -> Value {
    // Network, IPC and host name are the shim's own and simply inherited.
    let mut namespaces = vec![json!({"type": "mount"})];
    match (&plan.pid, pid_namespace) {
        (PidPlan::Own, _) => namespaces.push(json!({"type": "pid"})),
        (_, Some(path)) => namespaces.push(json!({"type": "pid", "path": path})),
        (_, None) => {}
    }
    if crate::cgroups::is_unified() {
        namespaces.push(json!({"type": "cgroup"}));
    }
    Value::from(namespaces)
}

fn mounts(plan: &ContainerPlan, staged: &Staged) -> Value {
    let system = if plan.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        special("proc", "/proc", "proc", &["nosuid", "noexec", "nodev"]),
        special(
            "tmpfs",
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        special(
            "devpts",
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        special(
            "mqueue",
            "/dev/mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        special(
            "sysfs",
            "/sys",
            "sysfs",
            &["nosuid", "noexec", "nodev", system],
        ),
        special(
            "cgroup",
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", system],
        ),
    ];
    let given = |path: &str| plan.mounts.iter().any(|mount| mount.destination == path);
    mounts.retain(|mount| !given(mount["destination"].as_str().unwrap_or_default()));
    if !given("/dev/shm") {
        let source = staged.shm.as_deref().unwrap_or(Path::new("/dev/shm"));
        mounts.push(json!({
            "destination": "/dev/shm", "type": "bind", "source": source,
            "options": ["rbind", "rw", "nosuid", "nodev", "noexec"],
        }));
    }
    // Parents before children.
    let mut ordered: Vec<(usize, &MountPlan)> = plan.mounts.iter().enumerate().collect();
    ordered.sort_by_key(|(_, mount)| mount.destination.matches('/').count());
    for (index, mount) in ordered {
        let source = staged
            .related
            .iter()
            .find_map(|(at, path)| (*at == index).then_some(path))
            .unwrap_or(&mount.source);
        mounts.push(bind(mount, source));
    }
    Value::from(mounts)
}

fn special(source: &str, destination: &str, kind: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

fn bind(mount: &MountPlan, source: &Path) -> Value {
    // Propagation is a property of the source, see `Staged`.
    let mut options = vec!["rbind"];
    options.push(match (mount.readonly, mount.recursive_readonly) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    });
    json!({
        "destination": mount.destination, "type": "bind", "source": source, "options": options,
    })
}

fn device(device: &DevicePlan) -> Value {
    json!({
        "path": device.path,
        "type": if device.block { "b" } else { "c" },
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    })
}

fn resources(plan: &ContainerPlan) -> Value {
    let mut devices = Vec::new();
    if plan.privileged {
        devices.push(json!({"allow": true, "access": "rwm"}));
    } else {
        devices.push(json!({"allow": false, "access": "rwm"}));
        for device in &plan.devices {
            devices.push(json!({
                "allow": true,
                "type": if device.block { "b" } else { "c" },
                "major": device.major,
                "minor": device.minor,
                "access": device.permissions,
            }));
        }
    }
    let mut resources = limits(&plan.resources);
    resources["devices"] = Value::from(devices);
    resources
}

/// The limits alone, as OCI writes them.
fn limits(limits: &Resources) -> Value {
    let mut cpu = json!({});
    if limits.cpu_shares > 0 {
        cpu["shares"] = limits.cpu_shares.into();
    }
    if limits.cpu_quota != 0 {
        cpu["quota"] = limits.cpu_quota.into();
    }
    if limits.cpu_period > 0 {
        cpu["period"] = limits.cpu_period.into();
    }
    if !limits.cpuset_cpus.is_empty() {
        cpu["cpus"] = limits.cpuset_cpus.clone().into();
    }
    if !limits.cpuset_mems.is_empty() {
        cpu["mems"] = limits.cpuset_mems.clone().into();
    }
    let mut memory = json!({});
    if limits.memory_bytes > 0 {
        memory["limit"] = limits.memory_bytes.into();
    }
    if limits.memory_swap_bytes > 0 && crate::cgroups::limits_swap() {
        memory["swap"] = limits.memory_swap_bytes.into();
    }
    let hugepages: Vec<Value> = limits
        .hugepages
        .iter()
        .map(|(size, limit)| json!({"pageSize": size, "limit": limit}))
        .collect();
    let mut all = json!({"cpu": cpu, "memory": memory});
    if !hugepages.is_empty() {
        all["hugepageLimits"] = Value::from(hugepages);
    }
    if crate::cgroups::is_unified() && !limits.unified.is_empty() {
        all["unified"] = json!(limits.unified);
    }
    all
}
