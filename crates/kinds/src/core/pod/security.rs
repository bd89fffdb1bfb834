//! What pods and containers may be allowed to do.

use api::{FieldError, meta};
use serde_json::Value;

use crate::check::{one_of, one_of_if_set};
use crate::core::sources::descending;

/// Every broken rule of the security context of a pod.
pub(super) fn of_pod(spec: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if meta::bool_at(spec, &["shareProcessNamespace"]) && meta::bool_at(spec, &["hostPID"]) {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        let at = format!("{at}.shareProcessNamespace");
        errors.push(FieldError::invalid(at, true, why));
    }
    let Some(context) = spec.get("securityContext") else {
        return errors;
    };
    let at = format!("{at}.securityContext");
    errors.extend(ids(context, &at, &["fsGroup", "runAsUser", "runAsGroup"]));
    let groups = meta::list_at(context, &["supplementalGroups"]);
    for (i, group) in groups.iter().filter_map(Value::as_i64).enumerate() {
        errors.extend(id(group, format!("{at}.supplementalGroups[{i}]")));
    }
    for (field, allowed) in [
        ("fsGroupChangePolicy", ["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", ["Merge", "Strict"]),
        ("seLinuxChangePolicy", ["MountOption", "Recursive"]),
    ] {
        let policy = meta::str_at(context, &[field]);
        errors.extend(one_of_if_set(policy, format!("{at}.{field}"), &allowed));
    }
    errors.extend(profiles(context, &at));
    errors
}

/// Every broken rule of the security context of a container.
pub(super) fn of_container(container: &Value, at: &str) -> Vec<FieldError> {
    let Some(context) = container.get("securityContext") else {
        return Vec::new();
    };
    let at = format!("{at}.securityContext");
    let mut errors = ids(context, &at, &["runAsUser", "runAsGroup"]);
    errors.extend(one_of_if_set(
        meta::str_at(context, &["procMount"]),
        format!("{at}.procMount"),
        &["Default", "Unmasked"],
    ));
    errors.extend(profiles(context, &at));
    let stays = context.get("allowPrivilegeEscalation") == Some(&Value::Bool(false));
    if stays && meta::bool_at(context, &["privileged"]) {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.push(FieldError::invalid(at.as_str(), context.clone(), why));
    }
    let added = meta::list_at(context, &["capabilities", "add"]);
    if stays && added.iter().any(|c| c == "CAP_SYS_ADMIN") {
        let why =
            "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        errors.push(FieldError::invalid(at, context.clone(), why));
    }
    errors
}

/// Whether a container may do everything.
pub(super) fn is_privileged(container: &Value) -> bool {
    meta::bool_at(container, &["securityContext", "privileged"])
}

fn id(id: i64, at: String) -> Option<FieldError> {
    let why = format!("must be between 0 and {}, inclusive", i32::MAX);
    (!(0..=i64::from(i32::MAX)).contains(&id)).then(|| FieldError::invalid(at, id, why))
}

fn ids(context: &Value, at: &str, fields: &[&str]) -> Vec<FieldError> {
    let each = |field: &&str| id(meta::int_at(context, &[field])?, format!("{at}.{field}"));
    fields.iter().filter_map(each).collect()
}

/// Profiles of seccomp and AppArmor.
fn profiles(context: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (field, what) in [
        ("seccompProfile", "seccomp"),
        ("appArmorProfile", "AppArmor"),
    ] {
        let Some(profile) = context.get(field) else {
            continue;
        };
        let at = format!("{at}.{field}");
        let kind = meta::str_at(profile, &["type"]);
        if kind.is_empty() {
            let why = format!("type is required when {field} is set");
            errors.push(FieldError::required(format!("{at}.type"), why));
            continue;
        }
        errors.extend(one_of(
            kind,
            format!("{at}.type"),
            &["Localhost", "RuntimeDefault", "Unconfined"],
        ));
        let at = format!("{at}.localhostProfile");
        match (
            kind,
            profile.get("localhostProfile").and_then(Value::as_str),
        ) {
            ("Localhost", None | Some("")) => {
                let why = format!("must be set when {what} type is Localhost");
                errors.push(FieldError::required(at, why));
            }
            ("Localhost", Some(path)) if what == "seccomp" => errors.extend(descending(path, &at)),
            ("Localhost", Some(_)) | (_, None) => {}
            (_, Some(path)) => {
                let why = format!("can only be set when {what} type is Localhost");
                errors.push(FieldError::invalid(at, path, why));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::texts;

    #[test]
    fn contexts_of_pods() {
        let good = json!({"securityContext": {"runAsUser": 0, "fsGroup": 1, "fsGroupChangePolicy": "Always", "seccompProfile": {"type": "RuntimeDefault"}}});
        assert_eq!(texts(&of_pod(&good, "spec")), [""; 0]);
        let odd = json!({"hostPID": true, "shareProcessNamespace": true, "securityContext": {"runAsUser": -1, "supplementalGroups": [1, -2],
            "fsGroupChangePolicy": "Never", "seccompProfile": {"type": "Localhost"}, "appArmorProfile": {"type": "Unconfined", "localhostProfile": "x"}}});
        let range = "must be between 0 and 2147483647, inclusive";
        let at = "spec.securityContext";
        assert_eq!(
            texts(&of_pod(&odd, "spec")),
            [
                "spec.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled".to_owned(),
                format!("{at}.runAsUser: Invalid value: -1: {range}"),
                format!("{at}.supplementalGroups[1]: Invalid value: -2: {range}"),
                format!("{at}.fsGroupChangePolicy: Unsupported value: \"Never\": supported values: \"Always\", \"OnRootMismatch\""),
                format!("{at}.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost"),
                format!("{at}.appArmorProfile.localhostProfile: Invalid value: \"x\": can only be set when AppArmor type is Localhost"),
            ]
        );
    }

    #[test]
    fn contexts_of_containers() {
        let of = |context: Value| texts(&of_container(&json!({"securityContext": context}), "c"));
        assert_eq!(of(json!({"privileged": true})), [""; 0]);
        let found = of(json!({"privileged": true, "allowPrivilegeEscalation": false}));
        assert!(
            found[0].ends_with(
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"
            ),
            "{found:?}"
        );
        assert_eq!(
            of(json!({"procMount": "Odd", "seccompProfile": {"type": ""}})),
            [
                "c.securityContext.procMount: Unsupported value: \"Odd\": supported values: \"Default\", \"Unmasked\"",
                "c.securityContext.seccompProfile.type: Required value: type is required when seccompProfile is set",
            ]
        );
    }
}
