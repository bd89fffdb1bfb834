//! Writes the files of a volume so that readers see either all of the old or all of the new:
//! files go to a fresh folder `..<time>`, then the link `..data` is swapped, and each visible name
//! is a link through it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use super::ownership;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, File>;

/// Makes the volume at `dir` hold exactly `payload`, readable by `group` if given. Does nothing if it does already.
///
/// # Errors
/// When a path leaves the volume, or the file system's.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    for path in payload.keys() {
        check(path)?;
    }
    let current = fs::read_link(dir.join(DATA)).ok();
    if current
        .as_ref()
        .is_some_and(|name| holds(&dir.join(name), payload))
    {
        return link_names(dir, payload);
    }
    let fresh = fresh_name(dir);
    let folder = dir.join(&fresh);
    write_files(&folder, payload)?;
    if let Some(group) = group {
        ownership::set_group(&folder, group, true)?;
    }
    let next = dir.join(DATA_NEXT);
    let _ = fs::remove_file(&next);
    symlink(&fresh, &next)?;
    fs::rename(&next, dir.join(DATA))?;
    link_names(dir, payload)?;
    remove_old(dir, &fresh)
}

fn check(path: &str) -> io::Result<()> {
    let plain = !path.is_empty()
        && Path::new(path)
            .components()
            .all(|c| matches!(c, Component::Normal(_)));
    if plain && !path.starts_with("..") {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("invalid path: {path}"),
    ))
}

fn fresh_name(dir: &Path) -> String {
    loop {
        let name = format!("..{:x}", rand::random::<u64>());
        if !dir.join(&name).exists() {
            return name;
        }
    }
}

fn write_files(folder: &Path, payload: &Payload) -> io::Result<()> {
    fs::create_dir(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let target = folder.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.bytes)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode & 0o7777))?;
    }
    Ok(())
}

/// Whether `folder` has exactly these files.
fn holds(folder: &Path, payload: &Payload) -> bool {
    let mut names = BTreeSet::new();
    if list(folder, Path::new(""), &mut names).is_err() {
        return false;
    }
    names.len() == payload.len()
        && payload.iter().all(|(path, file)| {
            names.contains(Path::new(path))
                && fs::read(folder.join(path)).is_ok_and(|bytes| bytes == file.bytes)
        })
}

fn list(root: &Path, prefix: &Path, out: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(prefix))? {
        let entry = entry?;
        let path = prefix.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, &path, out)?;
        } else {
            out.insert(path);
        }
    }
    Ok(())
}

/// Makes each first path component a link through `..data`, and removes links of names that went.
fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<_> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &wanted {
        let link = dir.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let stale = name
            .to_str()
            .is_some_and(|n| !n.starts_with("..") && !wanted.contains(n));
        if stale && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn remove_old(dir: &Path, current: &str) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let old = name
            .to_str()
            .is_some_and(|n| n.starts_with("..") && n != current);
        if old && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, text)| {
                (
                    (*path).to_owned(),
                    File {
                        bytes: text.as_bytes().to_vec(),
                        mode: 0o640,
                    },
                )
            })
            .collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|n| !n.starts_with(".."));
        names.sort();
        names
    }

    #[test]
    fn swaps_everything_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(names(dir), ["a", "sub"]);
        assert_eq!(fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        let before = fs::read_link(dir.join(DATA)).unwrap();

        write(dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), before);

        write(dir, &payload(&[("a", "3"), ("c", "4")]), None).unwrap();
        assert_eq!(names(dir), ["a", "c"]);
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(!dir.join(&before).exists());
        let mode = fs::metadata(dir.join("c")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn nothing_leaves_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["", "/etc/x", "../x", "a/../../x", "..data/x", "..x"] {
            assert!(
                write(dir.path(), &payload(&[(path, "")]), None).is_err(),
                "{path}"
            );
        }
    }
}
