//! Security contexts of pods and containers in the runtime's terms. Pure.

use k8s_openapi::api::core::v1::{
    Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext,
};
use oci::cri::v1::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, SecurityProfile, SupplementalGroupsPolicy,
    security_profile::ProfileType,
};

use crate::pod;

/// Paths hidden from containers, unless privileged or `procMount: Unmasked`.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Paths that containers cannot write, unless privileged or `procMount: Unmasked`.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The user that an image runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// Numeric user, if the image names one by number (or names none: root).
    pub uid: Option<i64>,
    /// User by name.
    pub username: String,
}

fn pod_context(pod: &Pod) -> PodSecurityContext {
    pod::spec(pod).security_context.clone().unwrap_or_default()
}

/// Namespaces that the pod shares with the node, or its containers with one another.
pub fn namespaces(pod: &Pod) -> NamespaceOption {
    let spec = pod::spec(pod);
    let mode = |host: Option<bool>| match host {
        Some(true) => NamespaceMode::Node,
        _ => NamespaceMode::Pod,
    };
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (Some(true), _) => NamespaceMode::Node,
        (_, Some(true)) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    NamespaceOption {
        network: mode(spec.host_network).into(),
        ipc: mode(spec.host_ipc).into(),
        pid: pid.into(),
        ..NamespaceOption::default()
    }
}

/// The sandbox's security context.
pub fn sandbox(pod: &Pod) -> LinuxSandboxSecurityContext {
    let context = pod_context(pod);
    let privileged = pod::containers(pod)
        .any(|(_, c)| c.security_context.as_ref().and_then(|s| s.privileged) == Some(true));
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        run_as_user: context.run_as_user.map(|value| Int64Value { value }),
        run_as_group: context.run_as_group.map(|value| Int64Value { value }),
        supplemental_groups: groups(&context),
        supplemental_groups_policy: groups_policy(&context).into(),
        privileged,
        // The pause process needs nothing beyond the default.
        seccomp: Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        }),
        ..LinuxSandboxSecurityContext::default()
    }
}

fn groups(context: &PodSecurityContext) -> Vec<i64> {
    let mut groups: Vec<_> = context.fs_group.into_iter().collect();
    groups.extend(context.supplemental_groups.iter().flatten());
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn groups_policy(context: &PodSecurityContext) -> SupplementalGroupsPolicy {
    match context.supplemental_groups_policy.as_deref() {
        Some("Strict") => SupplementalGroupsPolicy::Strict,
        _ => SupplementalGroupsPolicy::Merge,
    }
}

/// The container's security context.
///
/// # Errors
/// Upstream's text when `runAsNonRoot` cannot be met.
pub fn container(
    pod: &Pod,
    container: &Container,
    image: &ImageUser,
) -> Result<LinuxContainerSecurityContext, String> {
    let shared = pod_context(pod);
    let own = container.security_context.clone().unwrap_or_default();
    verify_non_root(pod, container, &shared, &own, image)?;
    let privileged = own.privileged == Some(true);
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let user = own.run_as_user.or(shared.run_as_user).or(image.uid);
    let paths = |list: &[&str]| {
        if unmasked {
            Vec::new()
        } else {
            list.iter().map(|p| (*p).to_owned()).collect()
        }
    };
    Ok(LinuxContainerSecurityContext {
        capabilities: Some(capabilities(&own)),
        privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: user.map(|value| Int64Value { value }),
        run_as_username: if user.is_none() {
            image.username.clone()
        } else {
            String::new()
        },
        run_as_group: own
            .run_as_group
            .or(shared.run_as_group)
            .map(|value| Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(&shared),
        supplemental_groups_policy: groups_policy(&shared).into(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp(
            privileged,
            own.seccomp_profile
                .as_ref()
                .or(shared.seccomp_profile.as_ref()),
        )),
        ..LinuxContainerSecurityContext::default()
    })
}

fn capabilities(own: &SecurityContext) -> Capability {
    let list = own.capabilities.clone().unwrap_or_default();
    let plain = |names: Option<Vec<String>>| {
        names
            .unwrap_or_default()
            .into_iter()
            .map(|n| n.trim_start_matches("CAP_").to_owned())
            .collect()
    };
    Capability {
        add_capabilities: plain(list.add),
        drop_capabilities: plain(list.drop),
        ..Capability::default()
    }
}

/// Unless something else is asked for, containers run under the runtime's default filter.
fn seccomp(privileged: bool, profile: Option<&SeccompProfile>) -> SecurityProfile {
    let (kind, reference) = match profile.map(|p| (p.type_.as_str(), p.localhost_profile.clone())) {
        _ if privileged => (ProfileType::Unconfined, None),
        Some(("Unconfined", _)) => (ProfileType::Unconfined, None),
        Some(("Localhost", path)) => (ProfileType::Localhost, path),
        _ => (ProfileType::RuntimeDefault, None),
    };
    SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: reference.unwrap_or_default(),
    }
}

fn verify_non_root(
    pod: &Pod,
    container: &Container,
    shared: &PodSecurityContext,
    own: &SecurityContext,
    image: &ImageUser,
) -> Result<(), String> {
    if own.run_as_non_root.or(shared.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let place = format!(
        "pod: \"{}\", container: {}",
        pod::PodRef::of(pod).full(),
        container.name
    );
    if let Some(user) = own.run_as_user.or(shared.run_as_user) {
        return if user == 0 {
            Err(format!(
                "container's runAsUser breaks non-root policy ({place})"
            ))
        } else {
            Ok(())
        };
    }
    match image.uid {
        Some(0) => Err(format!(
            "container has runAsNonRoot and image will run as root ({place})"
        )),
        None if !image.username.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root ({place})",
            image.username
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn build(
        pod: Value,
        own: Value,
        image: &ImageUser,
    ) -> Result<LinuxContainerSecurityContext, String> {
        let object: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pod, "containers": [{"name": "c", "securityContext": own}]}}))
        .unwrap();
        let spec = pod::spec(&object).containers[0].clone();
        container(&object, &spec, image)
    }

    #[test]
    fn non_root_is_verified() {
        let root = ImageUser {
            uid: Some(0),
            ..ImageUser::default()
        };
        let named = ImageUser {
            uid: None,
            username: "www".into(),
        };
        let nonroot = json!({"runAsNonRoot": true});
        let place = "(pod: \"p_n(u)\", container: c)";
        let cases = [
            (json!({}), json!({}), &root, Ok(())),
            (
                nonroot.clone(),
                json!({}),
                &root,
                Err(format!(
                    "container has runAsNonRoot and image will run as root {place}"
                )),
            ),
            (
                nonroot.clone(),
                json!({"runAsUser": 0}),
                &root,
                Err(format!(
                    "container's runAsUser breaks non-root policy {place}"
                )),
            ),
            (nonroot.clone(), json!({"runAsUser": 7}), &root, Ok(())),
            (
                nonroot.clone(),
                json!({"runAsNonRoot": false}),
                &root,
                Ok(()),
            ),
            (
                nonroot,
                json!({}),
                &named,
                Err(format!(
                    "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root {place}"
                )),
            ),
        ];
        for (pod, own, image, want) in cases {
            assert_eq!(
                build(pod.clone(), own.clone(), image).map(|_| ()),
                want,
                "{pod} {own}"
            );
        }
    }

    #[test]
    fn containers_override_pods() {
        let image = ImageUser {
            uid: Some(0),
            ..ImageUser::default()
        };
        let got = build(
            json!({"runAsUser": 5, "fsGroup": 9, "supplementalGroups": [3, 9], "seccompProfile": {"type": "Unconfined"}}),
            json!({"runAsUser": 6, "capabilities": {"add": ["CAP_NET_ADMIN"], "drop": ["ALL"]}, "allowPrivilegeEscalation": false}),
            &image,
        )
        .unwrap();
        assert_eq!(got.run_as_user, Some(Int64Value { value: 6 }));
        assert_eq!(got.supplemental_groups, [3, 9]);
        assert_eq!(got.capabilities.unwrap().add_capabilities, ["NET_ADMIN"]);
        assert!(got.no_new_privs && !got.masked_paths.is_empty());
        assert_eq!(
            got.seccomp.unwrap().profile_type,
            i32::from(ProfileType::Unconfined)
        );
    }
}
