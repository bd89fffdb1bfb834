//! The few mounts that volumes need, and their removal.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

/// Mount points below `root`, the deepest first.
///
/// # Errors
/// When `/proc/self/mountinfo` cannot be read.
pub fn below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = points_below(&std::fs::read_to_string("/proc/self/mountinfo")?, root);
    found.reverse();
    Ok(found)
}

fn points_below(mountinfo: &str, root: &Path) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point.starts_with(root) && point != root)
        .collect()
}

/// Undoes the octal escapes of mountinfo.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\')
            .then(|| {
                text.get(at + 1..at + 4)
                    .and_then(|digits| u8::from_str_radix(digits, 8).ok())
            })
            .flatten();
        out.push(octal.unwrap_or(bytes[at]));
        at += if octal.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Unmounts everything below `root`, in the reverse order of mounting.
///
/// # Errors
/// When something stays mounted.
pub fn unmount_below(root: &Path) -> io::Result<()> {
    let root = match root.canonicalize() {
        Ok(root) => root,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for point in below(&root)? {
        // Detached: a process that still looks at it does not hold the pod back.
        unmount(&point, UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// Whether something is mounted at `path`.
pub fn is_mounted(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else {
        return false;
    };
    let Some(parent) = path.parent() else {
        return true;
    };
    below(parent).is_ok_and(|points| points.contains(&path))
}

/// Mounts a tmpfs at `path` unless something is mounted there; `size` in bytes.
///
/// # Errors
/// The kernel's.
pub fn tmpfs(path: &Path, size: Option<i64>, mode: u32) -> io::Result<()> {
    if is_mounted(path) {
        return Ok(());
    }
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size.filter(|s| *s > 0) {
        options.push_str(&format!(",size={size}"));
    }
    let options = std::ffi::CString::new(options)?;
    mount(
        "tmpfs",
        path,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        options.as_c_str(),
    )?;
    Ok(())
}

/// Makes what `source` is open on appear at `target`, in place of what was mounted there.
///
/// # Errors
/// The kernel's.
pub fn bind_fd(source: impl AsFd, target: &Path) -> io::Result<()> {
    if is_mounted(target) {
        unmount(target, UnmountFlags::DETACH)?;
    }
    let source = format!("/proc/self/fd/{}", source.as_fd().as_raw_fd());
    mount_bind(source, target)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_points_below() {
        let text = "1 0 0:1 / / rw - ext4 a b\n2 1 0:2 / /k/pods/u/a\\040b rw - tmpfs t rw\n3 1 0:3 / /k/pods/u rw - x y z\n4 1 0:4 / /k/pods/uv rw - x y z\n";
        assert_eq!(
            points_below(text, Path::new("/k/pods/u")),
            [PathBuf::from("/k/pods/u/a b")]
        );
    }

    #[test]
    fn tmpfs_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("t");
        std::fs::create_dir(&point).unwrap();
        tmpfs(&point, Some(1 << 20), 0o755).unwrap();
        tmpfs(&point, None, 0o755).unwrap();
        assert!(is_mounted(&point));
        std::fs::write(point.join("x"), "y").unwrap();
        unmount_below(dir.path()).unwrap();
        assert!(!is_mounted(&point) && !point.join("x").exists());
    }
}
