//! `subPath`: one file or folder of a volume, chosen so that no link within the volume can lead out
//! of it, and pinned by a bind mount before the container sees it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};

use super::mounts;

/// Where the bind mount of one mount of a container goes.
pub fn target(pod_dir: &Path, volume: &str, container: &str, index: usize) -> PathBuf {
    pod_dir
        .join("volume-subpaths")
        .join(volume)
        .join(container)
        .join(index.to_string())
}

/// Opens `sub` below `volume`, making missing folders, and binds it to `target`.
///
/// # Errors
/// When `sub` leaves the volume, or the kernel's.
pub fn bind(volume: &Path, sub: &str, target: &Path) -> io::Result<()> {
    let file = open_beneath(volume, sub)?;
    let is_dir = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_dir();
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if is_dir {
        std::fs::create_dir_all(target)?;
    } else if !target.exists() {
        std::fs::File::create(target)?;
    }
    mounts::bind_fd(file, target)
}

fn open_beneath(volume: &Path, sub: &str) -> io::Result<OwnedFd> {
    let escapes = Path::new(sub).is_absolute()
        || Path::new(sub)
            .components()
            .any(|c| c == Component::ParentDir);
    if escapes {
        let text = format!(
            "subPath \"{sub}\" not within volume path \"{}\"",
            volume.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let root = openat(CWD, volume, flags | OFlags::DIRECTORY, Mode::empty())?;
    match openat2(&root, sub, flags, Mode::empty(), resolve) {
        Ok(file) => return Ok(file),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let mode = rustix::fs::fstat(&root)?.st_mode & 0o7777;
    let mut at = root;
    for component in Path::new(sub).components() {
        let Component::Normal(name) = component else {
            continue;
        };
        at = match openat2(&at, name, flags | OFlags::DIRECTORY, Mode::empty(), resolve) {
            Ok(next) => next,
            Err(rustix::io::Errno::NOENT) => {
                mkdirat(&at, name, Mode::from_raw_mode(mode | 0o700))?;
                openat2(&at, name, flags | OFlags::DIRECTORY, Mode::empty(), resolve)?
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_cannot_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        std::fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("abs")).unwrap();
        std::os::unix::fs::symlink("../..", volume.join("up")).unwrap();
        std::os::unix::fs::symlink("real", volume.join("ok")).unwrap();
        std::fs::create_dir(volume.join("real")).unwrap();
        for bad in [
            "abs",
            "abs/passwd",
            "up",
            "up/x",
            "../v",
            "/etc",
            "a/../../b",
        ] {
            assert!(open_beneath(&volume, bad).is_err(), "{bad}");
        }
        for good in ["ok", "real", "new/deep", "."] {
            assert!(open_beneath(&volume, good).is_ok(), "{good}");
        }
        assert!(volume.join("new/deep").is_dir());
    }

    #[test]
    fn files_and_folders_are_bound() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("f"), "text").unwrap();
        let target = target(&dir.path().join("pod"), "v", "c", 0);
        bind(&volume, "f", &target).unwrap();
        bind(&volume, "f", &target).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "text");
        mounts::unmount_below(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "");
    }
}
