//! fsGroup: files of a volume belong to the pod's group, folders hand the group on.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

/// Gives `path` and all below to `group`, readable and, unless `read_only`, writable by it. Does
/// not follow links.
///
/// # Errors
/// The file system's.
pub fn set_group(path: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let meta = path.symlink_metadata()?;
    lchown(path, None, Some(group))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let access = if read_only { 0o440 } else { 0o660 };
    let folder = if meta.is_dir() { 0o2110 } else { 0 };
    fs::set_permissions(
        path,
        fs::Permissions::from_mode((meta.mode() | access | folder) & 0o7777),
    )?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            set_group(&entry?.path(), group, read_only)?;
        }
    }
    Ok(())
}

/// Whether the root of a volume already belongs to `group`, so that `OnRootMismatch` may skip it.
pub fn matches(path: &Path, group: u32) -> bool {
    path.metadata()
        .is_ok_and(|m| m.gid() == group && m.mode() & 0o2060 == 0o2060)
}
