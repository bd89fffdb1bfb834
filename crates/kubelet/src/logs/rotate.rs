//! Keeps log files small: a file over the limit is renamed, compressed files beyond the count go.
//!
//! A file is looked at only after it was written to, and then at most once per [`SETTLE`]: a quiet
//! container costs nothing, a busy one a `stat` now and then.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cri::Cri;
use crate::fsnotify::{FsNotify, NEXT_WRITE};

/// Size at which a file is rotated, in bytes.
pub const MAX_SIZE: u64 = 10 * 1024 * 1024;
/// Files kept for each container, the current one included.
pub const MAX_FILES: usize = 5;
/// Time between a write and a look at the size.
const SETTLE: Duration = Duration::from_secs(5);

/// Watches the log of the running container `id` until dropped.
pub async fn keep_small(path: PathBuf, id: String, cri: Cri, notify: FsNotify) {
    loop {
        let Ok(written) = notify.watch(&path, NEXT_WRITE) else {
            return;
        };
        if size(&path) <= MAX_SIZE {
            written.changed().await;
            tokio::time::sleep(SETTLE).await;
        }
        drop(written);
        if size(&path) > MAX_SIZE {
            if let Err(error) = rotate(&path, MAX_FILES, jiff::Timestamp::now()) {
                tracing::warn!(path = %path.display(), %error, "rotating a container log failed");
                tokio::time::sleep(SETTLE).await;
                continue;
            }
            if let Err(error) = cri.reopen_container_log(&id).await {
                tracing::warn!(container = %id, %error, "the runtime did not reopen its log");
                return;
            }
        }
    }
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

/// Renames `path` to `path.<time>` and removes the oldest of such files beyond `keep` - 1.
///
/// # Errors
/// When the folder cannot be read or the file not renamed.
pub fn rotate(path: &Path, keep: usize, now: jiff::Timestamp) -> std::io::Result<()> {
    let mut target = path.as_os_str().to_owned();
    target.push(format!(".{}", now.strftime("%Y%m%d-%H%M%S%3f")));
    std::fs::rename(path, &target)?;
    let mut old = rotated(path)?;
    old.sort();
    let surplus = old.len().saturating_sub(keep.saturating_sub(1));
    for file in &old[..surplus] {
        std::fs::remove_file(file)?;
    }
    Ok(())
}

/// Files that `path` was rotated to.
///
/// # Errors
/// When the folder cannot be read.
pub fn rotated(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let mut prefix = OsString::from(name);
    prefix.push(".");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let is_one = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(prefix.as_encoded_bytes());
        if is_one {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes a log file and what it was rotated to; errors are of no use to anybody.
pub fn remove(path: &Path) {
    for file in rotated(path).unwrap_or_default() {
        let _ = std::fs::remove_file(file);
    }
    let _ = std::fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for n in 0..7 {
            std::fs::write(&path, n.to_string()).unwrap();
            rotate(&path, 3, jiff::Timestamp::from_second(n).unwrap()).unwrap();
        }
        let mut left: Vec<_> = rotated(&path)
            .unwrap()
            .iter()
            .map(|p| std::fs::read_to_string(p).unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["5", "6"]);
        assert!(!path.exists());
        remove(&path);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
