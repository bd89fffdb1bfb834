//! Kernel parameters of a pod.

use std::collections::BTreeSet;

use api::{FieldError, meta};
use serde_json::Value;

/// Longest name in bytes.
const NAME_MAX: usize = 253;
/// What names look like, as refusals say it.
const PATTERN: &str = r"^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

/// Rules of `sysctls` at a path; each must belong to a namespace of the pod's own.
pub(super) fn validate_sysctls(spec: &Value, at: &str) -> Vec<FieldError> {
    let sysctls = meta::list_at(spec, &["securityContext", "sysctls"]);
    let mut seen = BTreeSet::new();
    let mut errors = Vec::new();
    for (i, sysctl) in sysctls.iter().enumerate() {
        let name = meta::str_at(sysctl, &["name"]);
        let path = format!("{at}.securityContext.sysctls[{i}].name");
        if name.is_empty() {
            errors.push(FieldError::required(path.clone(), ""));
        } else if !is_name(name) {
            let why = format!("must have at most {NAME_MAX} characters and match regex {PATTERN}");
            errors.push(FieldError::invalid(path.clone(), name, why));
        } else if !seen.insert(name) {
            errors.push(FieldError::duplicate(path.clone(), name));
        }
        let host = |field| meta::bool_at(spec, &[field]);
        let shared = match namespace(name) {
            Some("net") if host("hostNetwork") => "hostNetwork",
            Some("ipc") if host("hostIPC") => "hostIPC",
            _ => continue,
        };
        let why = format!("may not be set with '{shared}' enabled");
        errors.push(FieldError::invalid(path, name, why));
    }
    errors
}

fn is_name(name: &str) -> bool {
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= NAME_MAX
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(inner)
                && bytes.last().is_some_and(inner)
                && bytes.iter().all(|b| inner(b) || matches!(b, b'-' | b'_'))
        })
}

/// The kernel's namespace that a parameter belongs to.
fn namespace(name: &str) -> Option<&'static str> {
    let name = name.replace('/', ".");
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if name == "kernel.sem" || ipc.iter().any(|p| name.starts_with(p)) {
        Some("ipc")
    } else {
        name.starts_with("net.").then_some("net")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_namespaces() {
        let check = |names: &[&str], host: bool| -> Vec<String> {
            let sysctls: Vec<Value> = names
                .iter()
                .map(|n| json!({"name": n, "value": "1"}))
                .collect();
            let spec = json!({"hostNetwork": host, "securityContext": {"sysctls": sysctls}});
            let errors = validate_sysctls(&spec, "spec");
            errors.into_iter().map(|e| e.path).collect()
        };
        assert!(check(&["kernel.shm_rmid_forced", "net/ipv4/ip_forward"], false).is_empty());
        let bad = ["foo-", "a..b", "", "net.a", "net.a"];
        let at = |i: usize| format!("spec.securityContext.sysctls[{i}].name");
        assert_eq!(check(&bad, false), [at(0), at(1), at(2), at(4)]);
        assert_eq!(check(&["net.a"], true), [at(0)]);
    }
}
