//! Where the data of volumes made on demand is: behind a trait, so that a simulated cluster, in which
//! nothing may depend on threads or the machine, has volumes too.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use futures::future::BoxFuture;

/// Pods run as any user; each must be able to write to its volume.
const FOLDER_MODE: u32 = 0o777;

/// Folders below one root, each the data of one volume.
pub trait Folders: Send + Sync {
    /// What all are below.
    fn root(&self) -> &Path;

    /// Makes a folder; fine if it is there.
    fn make(&self, path: PathBuf) -> BoxFuture<'_, io::Result<()>>;

    /// Deletes a folder with all in it; fine if there is none.
    fn remove(&self, path: PathBuf) -> BoxFuture<'_, io::Result<()>>;
}

/// Folders of this machine.
#[derive(Clone, Debug)]
pub struct MachineFolders {
    root: PathBuf,
}

impl MachineFolders {
    /// Folders below `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }
}

impl Folders for MachineFolders {
    fn root(&self) -> &Path {
        &self.root
    }

    fn make(&self, path: PathBuf) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(blocking(move || {
            std::fs::create_dir_all(&path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(FOLDER_MODE))
        }))
    }

    fn remove(&self, path: PathBuf) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(blocking(move || match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }))
    }
}

async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other)?
}
