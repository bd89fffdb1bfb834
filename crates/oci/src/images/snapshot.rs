//! The writable top of a container's root file system.
//!
//! ```text
//! (none) --snapshot--> snapshots/<id> (complete by rename) --remove_snapshot--> images/tmp/… --> (none)
//! ```
//! Both steps may be repeated after a crash at any point.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::Doing;
use super::layout::{read_json, write_json};
use super::{Digest, ImageError, ImageRecord, ImageStore};

const MAX_ID_LEN: usize = 200;

/// What an overlay mount of a snapshot consists of. All paths are absolute if the store's root is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMount {
    /// Read-only directories, the uppermost first, as overlayfs wants them; at least one.
    pub lowerdirs: Vec<PathBuf>,
    /// The writable directory.
    pub upperdir: PathBuf,
    /// overlayfs' own directory, on the same file system as `upperdir`.
    pub workdir: PathBuf,
}

/// Disk space of one snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// `snapshots/<id>/snapshot.json`.
#[derive(Serialize, Deserialize)]
pub(super) struct SnapshotRecord {
    image: Digest,
    pub(super) layers: Vec<Digest>,
}

impl ImageStore {
    /// Makes the writable layer `id` over `image` (a reference or an id), or finds the one made before.
    ///
    /// `id` becomes a file name: letters, digits, `-`, `_` and `.`.
    pub fn snapshot(&self, image: &str, id: &str) -> Result<SnapshotMount, ImageError> {
        let dir = self.snapshot_dir(id)?;
        let _lock = self.layout.lock()?;
        let path = dir.join("snapshot.json");
        if let Some(record) = read_json::<SnapshotRecord>(&path)? {
            return Ok(self.mount_of(&dir, &record));
        }
        let not_found = || ImageError::NotFound(image.to_owned());
        let image_id = self.resolve(image)?.ok_or_else(not_found)?;
        let record_path = self.layout.image_record(&image_id);
        let layers = read_json::<ImageRecord>(&record_path)?
            .ok_or_else(not_found)?
            .layers;
        for layer in &layers {
            if self.layer(layer)?.is_none() {
                return Err(ImageError::Damaged(format!(
                    "layer {layer} of image {image_id} is missing; remove the image and load it again"
                )));
            }
        }
        let record = SnapshotRecord {
            image: image_id,
            layers,
        };
        let scratch = self.layout.scratch()?;
        let create = |name: &str| {
            let dir = scratch.path().join(name);
            fs::create_dir(&dir).doing(|| format!("create {}", dir.display()))
        };
        create("fs")?;
        create("work")?;
        create("empty")?;
        // The merged root has the upper directory's owner and mode.
        if let Some(top) = record.layers.last() {
            copy_owner_and_mode(&self.layout.layer_fs(top), &scratch.path().join("fs"))?;
        }
        write_json(&scratch.path().join("snapshot.json"), &record)?;
        // What is there without a record is the rest of a removal.
        drop(self.discard(&dir)?);
        fs::rename(scratch.path(), &dir).doing(|| format!("create {}", dir.display()))?;
        Ok(self.mount_of(&dir, &record))
    }

    /// Removes a snapshot; fine if there is none. It must no longer be mounted.
    pub fn remove_snapshot(&self, id: &str) -> Result<(), ImageError> {
        let dir = self.snapshot_dir(id)?;
        if !dir.exists() {
            return Ok(());
        }
        let lock = self.layout.lock()?;
        let discarded = self.discard(&dir)?;
        // Deleting takes long; nobody has to wait for it.
        drop(lock);
        drop(discarded);
        Ok(())
    }

    /// The ids of all snapshots.
    pub fn snapshot_ids(&self) -> Result<Vec<String>, ImageError> {
        let dir = self.layout.snapshots();
        let doing = || format!("read {}", dir.display());
        let mut ids = Vec::new();
        for entry in fs::read_dir(&dir).doing(doing)? {
            ids.extend(entry.doing(doing)?.file_name().into_string());
        }
        Ok(ids)
    }

    /// The disk space of what a container has written; walks its files.
    pub fn snapshot_usage(&self, id: &str) -> Result<Usage, ImageError> {
        let mut usage = Usage::default();
        let mut pending = vec![self.snapshot_dir(id)?.join("fs")];
        while let Some(dir) = pending.pop() {
            // The container goes on writing and removing while this looks.
            let Ok(entries) = fs::read_dir(&dir) else {
                continue;
            };
            for entry in entries.flatten() {
                let Ok(meta) = entry.metadata() else { continue };
                usage.bytes += meta.blocks() * 512;
                usage.inodes += 1;
                if meta.is_dir() {
                    pending.push(entry.path());
                }
            }
        }
        Ok(usage)
    }

    fn mount_of(&self, dir: &Path, record: &SnapshotRecord) -> SnapshotMount {
        let mut lowerdirs: Vec<PathBuf> = record
            .layers
            .iter()
            .rev()
            .map(|layer| self.layout.layer_fs(layer))
            .collect();
        // overlayfs wants a lower directory even for an image without layers.
        if lowerdirs.is_empty() {
            lowerdirs.push(dir.join("empty"));
        }
        SnapshotMount {
            lowerdirs,
            upperdir: dir.join("fs"),
            workdir: dir.join("work"),
        }
    }

    fn snapshot_dir(&self, id: &str) -> Result<PathBuf, ImageError> {
        let ok = !id.is_empty()
            && id.len() <= MAX_ID_LEN
            && !id.starts_with('.')
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !ok {
            return Err(ImageError::InvalidReference {
                reference: id.to_owned(),
                reason: "not a snapshot id",
            });
        }
        Ok(self.layout.snapshots().join(id))
    }
}

fn copy_owner_and_mode(from: &Path, to: &Path) -> Result<(), ImageError> {
    let copy = || {
        let meta = fs::metadata(from)?;
        chown(to, Some(meta.uid()), Some(meta.gid()))?;
        fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))
    };
    copy().doing(|| format!("create {}", to.display()))
}
