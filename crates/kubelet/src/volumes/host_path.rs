//! `hostPath`: a path of the node, checked to be of the declared type.

use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Volume;

use super::{Kind, Ready, Result, Setup};

/// The kind.
pub struct HostPath;

impl Kind for HostPath {
    fn takes(&self, volume: &Volume) -> bool {
        volume.host_path.is_some()
    }

    fn set_up<'a>(&'a self, setup: Setup<'a>) -> BoxFuture<'a, Result<Ready>> {
        Box::pin(async move {
            let source = setup.volume.host_path.clone().unwrap_or_default();
            let path = PathBuf::from(source.path);
            check(&path, source.type_.as_deref().unwrap_or_default())?;
            Ok(Ready {
                path,
                ..Ready::default()
            })
        })
    }
}

/// Makes or checks `path` as its type says.
///
/// # Errors
/// Upstream's text when it is something else.
pub fn check(path: &Path, kind: &str) -> Result<()> {
    match kind {
        // Runtimes make a missing folder; so do we, where it can be seen.
        "" if path.exists() => return Ok(()),
        "" | "DirectoryOrCreate" if !path.exists() => {
            return make_dir(path).map_err(|e| e.to_string());
        }
        "FileOrCreate" if !path.exists() => return make_file(path).map_err(|e| e.to_string()),
        _ => {}
    }
    let is = |test: fn(&FileType) -> bool| fs::metadata(path).is_ok_and(|m| test(&m.file_type()));
    let (holds, name) = match kind {
        "Directory" | "DirectoryOrCreate" => (is(FileType::is_dir), "directory"),
        "File" | "FileOrCreate" => (is(FileType::is_file), "file"),
        "Socket" => (is(FileType::is_socket), "socket file"),
        "CharDevice" => (is(FileType::is_char_device), "character device"),
        "BlockDevice" => (is(FileType::is_block_device), "block device"),
        other => return Err(format!("{other} is an invalid volume type")),
    };
    if holds {
        return Ok(());
    }
    Err(format!(
        "hostPath type check failed: {} is not a {name}",
        path.display()
    ))
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
}

fn make_file(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(path)
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "").unwrap();
        let text = |path: &Path, what: &str| {
            format!(
                "hostPath type check failed: {} is not a {what}",
                path.display()
            )
        };
        for (path, kind, want) in [
            (dir.path().to_owned(), "", Ok(())),
            (dir.path().to_owned(), "Directory", Ok(())),
            (file.clone(), "File", Ok(())),
            (file.clone(), "Directory", Err(text(&file, "directory"))),
            (
                dir.path().join("x"),
                "Directory",
                Err(text(&dir.path().join("x"), "directory")),
            ),
            (dir.path().join("y/z"), "DirectoryOrCreate", Ok(())),
            (dir.path().join("new"), "FileOrCreate", Ok(())),
            (dir.path().join("made/here"), "", Ok(())),
            (file.clone(), "Socket", Err(text(&file, "socket file"))),
            (PathBuf::from("/dev/null"), "CharDevice", Ok(())),
        ] {
            assert_eq!(check(&path, kind), want, "{} {kind}", path.display());
        }
        assert!(dir.path().join("y/z").is_dir() && dir.path().join("new").is_file());
    }
}
