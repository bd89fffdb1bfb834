//! Profiles written by the machine's owner, in the JSON form that container runtimes share.

use std::io;
use std::path::Path;

use serde::Deserialize;

use super::{Action, Condition, Operator, Profile, Rule};

/// Bytes of a profile, at most.
const MAX_PROFILE: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<Syscalls>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscalls {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize, Default)]
struct Filter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

/// Reads the profile at `path` for a process with these capabilities.
pub fn load(path: &Path, capabilities: &[String]) -> io::Result<Profile> {
    let name = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("seccomp profile {}: {error}", path.display()),
        )
    };
    if std::fs::metadata(path).map_err(name)?.len() > MAX_PROFILE {
        return Err(name(io::ErrorKind::FileTooLarge.into()));
    }
    parse(&std::fs::read(path).map_err(name)?, capabilities).map_err(name)
}

pub fn parse(bytes: &[u8], capabilities: &[String]) -> io::Result<Profile> {
    let file: File = serde_json::from_slice(bytes)?;
    let default = action(&file.default_action, file.default_errno_ret)?;
    let mut rules = Vec::new();
    for entry in file.syscalls {
        if !applies(&entry, capabilities) {
            continue;
        }
        let action = action(&entry.action, entry.errno_ret)?;
        let conditions = entry.args.unwrap_or_default();
        let conditions: Vec<Condition> = conditions
            .iter()
            .map(condition)
            .collect::<io::Result<_>>()?;
        rules.extend(entry.names.into_iter().map(|name| Rule {
            name,
            action,
            conditions: conditions.clone(),
        }));
    }
    Ok(Profile { default, rules })
}

fn applies(entry: &Syscalls, capabilities: &[String]) -> bool {
    let architecture = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    let here = |filter: &Filter| filter.arches.iter().any(|name| name == architecture);
    let held = |filter: &Filter| {
        let mut caps = filter.caps.iter();
        caps.any(|name| capabilities.contains(name))
    };
    let included = entry.includes.as_ref().is_none_or(|filter| {
        (filter.arches.is_empty() || here(filter)) && (filter.caps.is_empty() || held(filter))
    });
    let excluded = entry.excludes.as_ref();
    included && !excluded.is_some_and(|filter| here(filter) || held(filter))
}

fn action(name: &str, errno: Option<u16>) -> io::Result<Action> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(libc::EPERM as u16)),
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        other => return Err(invalid(format!("unknown action {other}"))),
    })
}

fn condition(argument: &Argument) -> io::Result<Condition> {
    /// System calls have no more arguments.
    const ARGUMENTS: u8 = 6;
    if argument.index >= ARGUMENTS {
        return Err(invalid(format!("no argument {}", argument.index)));
    }
    let (operator, value) = match argument.op.as_str() {
        "SCMP_CMP_EQ" => (Operator::Equal, argument.value),
        "SCMP_CMP_NE" => (Operator::NotEqual, argument.value),
        "SCMP_CMP_LT" => (Operator::Less, argument.value),
        "SCMP_CMP_LE" => (Operator::LessOrEqual, argument.value),
        "SCMP_CMP_GT" => (Operator::Greater, argument.value),
        "SCMP_CMP_GE" => (Operator::GreaterOrEqual, argument.value),
        "SCMP_CMP_MASKED_EQ" => (Operator::Masked(argument.value), argument.value_two),
        other => return Err(invalid(format!("unknown comparison {other}"))),
    };
    Ok(Condition {
        argument: argument.index,
        operator,
        value,
    })
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
