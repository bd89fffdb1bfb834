//! Where things are on disk, and how they come and go safely.
//!
//! ```text
//! <root>/images/lock                 flock: held while records or snapshots change
//! <root>/images/ingest.lock          flock: shared while layers come in, exclusive while unused ones go
//! <root>/images/tmp/                 unfinished work; whatever is here without an ingest lock is rubbish
//! <root>/images/blobs/<hex>          manifests and configurations, by their digest
//! <root>/images/layers/<hex>/fs      an unpacked layer, by its diff id: an overlay lower directory
//! <root>/images/layers/<hex>/layer.json
//! <root>/images/images/<hex>.json    an image, by the digest of its configuration
//! <root>/images/names/<hash>.json    a tag or digest reference and the image it means
//! <root>/snapshots/<id>/{fs,work,snapshot.json}
//! ```
//!
//! Invariants: files appear by rename after their content is on disk; a layer's folder under its final name is
//! complete; records are written after the layers they name. So a kill or a power cut at any point leaves at most
//! rubbish, never a record of something that is not there.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::Doing;
use super::manifest::MAX_DOCUMENT_BYTES;
use super::{Digest, ImageError};

pub(crate) struct Layout {
    root: PathBuf,
}

/// An flock, released when dropped.
pub(crate) struct Lock(#[allow(dead_code, reason = "held for its file descriptor")] File);

/// A folder of unfinished work, removed when dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Renamed away when the work was finished; otherwise rubbish that a later collection finds too.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Layout {
    pub(crate) fn create(root: &Path) -> Result<Self, ImageError> {
        let layout = Self {
            root: root.to_owned(),
        };
        let images = ["tmp", "blobs", "layers", "images", "names"];
        for dir in images.iter().map(|d| layout.images().join(d)) {
            create_private_dir(&dir)?;
        }
        create_private_dir(&layout.snapshots())?;
        Ok(layout)
    }

    fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.images().join("layers")
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(diff_id.hex())
    }

    pub(crate) fn layer_record(&self, diff_id: &Digest) -> PathBuf {
        self.layer(diff_id).join("layer.json")
    }

    pub(crate) fn layer_fs(&self, diff_id: &Digest) -> PathBuf {
        self.layer(diff_id).join("fs")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.images().join("blobs")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn image_records(&self) -> PathBuf {
        self.images().join("images")
    }

    pub(crate) fn image_record(&self, id: &Digest) -> PathBuf {
        self.image_records().join(format!("{}.json", id.hex()))
    }

    pub(crate) fn name_records(&self) -> PathBuf {
        self.images().join("names")
    }

    pub(crate) fn name_record(&self, name: &str) -> PathBuf {
        // References have slashes and may be longer than a file name: their hash has neither trouble.
        let hash = Digest::of(name.as_bytes());
        self.name_records().join(format!("{}.json", hash.hex()))
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.images().join("tmp")
    }

    /// A new, empty folder for unfinished work.
    pub(crate) fn scratch(&self) -> Result<Scratch, ImageError> {
        let dir = tempfile::Builder::new()
            .prefix("work-")
            .tempdir_in(self.tmp())
            .doing(|| format!("create a folder in {}", self.tmp().display()))?;
        Ok(Scratch(dir.keep()))
    }

    /// Waits for the lock under which records and snapshots change.
    pub(crate) fn lock(&self) -> Result<Lock, ImageError> {
        let file = self.lock_file("lock")?;
        file.lock().doing(|| "lock the image store".into())?;
        Ok(Lock(file))
    }

    /// Keeps layers from being collected until records name them.
    pub(crate) fn ingest_lock(&self) -> Result<Lock, ImageError> {
        let file = self.lock_file("ingest.lock")?;
        file.lock_shared().doing(|| "lock the image store".into())?;
        Ok(Lock(file))
    }

    /// The right to collect, unless layers are coming in just now.
    pub(crate) fn try_collect_lock(&self) -> Result<Option<Lock>, ImageError> {
        let file = self.lock_file("ingest.lock")?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => {
                Err(ImageError::io("lock the image store".to_owned(), e))
            }
        }
    }

    /// Waits until nobody else brings in the same layer.
    pub(crate) fn layer_lock(&self, diff_id: &Digest) -> Result<Lock, ImageError> {
        let file = self.lock_file(&format!("tmp/layer-{}.lock", diff_id.hex()))?;
        file.lock().doing(|| format!("lock layer {diff_id}"))?;
        Ok(Lock(file))
    }

    fn lock_file(&self, name: &str) -> Result<File, ImageError> {
        let path = self.images().join(name);
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .doing(|| format!("open {}", path.display()))
    }
}

/// Creates `dir` and its parents; what is in it is for root alone, since layers hold set-user-id files.
fn create_private_dir(dir: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir)
        .doing(|| format!("create {}", dir.display()))
}

/// Writes a small file so that it is either there whole or not at all, also after a power cut.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let write = || {
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        File::open(dir)?.sync_all()
    };
    write().doing(|| format!("write {}", path.display()))
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ImageError> {
    let bytes = serde_json::to_vec(value)
        .map_err(|e| ImageError::Damaged(format!("{}: {e}", path.display())))?;
    write_atomic(path, &bytes)
}

/// Reads a bounded file; `None` if there is none.
pub(crate) fn read_small(path: &Path) -> Result<Option<Vec<u8>>, ImageError> {
    use std::io::Read;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(ImageError::io(format!("open {}", path.display()), e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT_BYTES + 1)
        .read_to_end(&mut bytes)
        .doing(|| format!("read {}", path.display()))?;
    if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(ImageError::TooLarge {
            what: path.display().to_string(),
            limit: MAX_DOCUMENT_BYTES,
        });
    }
    Ok(Some(bytes))
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ImageError> {
    let Some(bytes) = read_small(path)? else {
        return Ok(None);
    };
    let value = serde_json::from_slice(&bytes)
        .map_err(|e| ImageError::Damaged(format!("{}: {e}", path.display())))?;
    Ok(Some(value))
}

/// All records in a folder of `<hex>.json` files. One that vanishes meanwhile or is damaged is left out.
pub(crate) fn read_records<T: DeserializeOwned>(dir: &Path) -> Result<Vec<T>, ImageError> {
    let mut records = Vec::new();
    for entry in fs::read_dir(dir).doing(|| format!("read {}", dir.display()))? {
        let path = entry.doing(|| format!("read {}", dir.display()))?.path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        match read_json(&path) {
            Ok(Some(record)) => records.push(record),
            Ok(None) => {}
            Err(e) => tracing::warn!("leaving out an image record: {e}"),
        }
    }
    Ok(records)
}

pub(crate) fn remove_file(path: &Path) -> Result<bool, ImageError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(ImageError::io(format!("remove {}", path.display()), e)),
    }
}

/// Brings everything written to the file system of `path` to the disk.
pub(crate) fn sync_file_system(path: &Path) -> Result<(), ImageError> {
    let doing = || format!("sync {}", path.display());
    let dir = File::open(path).doing(doing)?;
    rustix::fs::syncfs(dir.as_fd()).doing(doing)
}
