//! Kernel settings under /proc/sys. Those under `net` are of the calling thread's network namespace.

use std::io;
use std::path::PathBuf;

use crate::error::{Error, Result};

fn path(name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/{name}"))
}

/// Sets `name` (such as `net/ipv4/ip_forward`) unless it already has that value, so that a read-only /proc/sys is
/// no error where nothing needs to change.
pub fn set(name: &str, value: &str) -> Result<()> {
    let path = path(name);
    let io = |e| Error::io(format!("set {} to {value}", path.display()), e);
    if std::fs::read_to_string(&path).map_err(io)?.trim() == value {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(io)
}

/// As [`set`], but a kernel without that setting is no error. Tells whether the setting exists.
pub fn set_if_present(name: &str, value: &str) -> Result<bool> {
    match set(name, value) {
        Ok(()) => Ok(true),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// The setting's value without surrounding space; None where the kernel has no such setting.
pub fn get(name: &str) -> Result<Option<String>> {
    let path = path(name);
    match std::fs::read_to_string(&path) {
        Ok(value) => Ok(Some(value.trim().to_string())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("read {}", path.display()), e)),
    }
}
