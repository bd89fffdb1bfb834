//! Removing what nothing refers to any more: layers, documents, unfinished work.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::error::Doing;
use super::layout::{Scratch, read_json, read_records, remove_file};
use super::snapshot::SnapshotRecord;
use super::{Digest, ImageError, ImageRecord, ImageStore};

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers.
    pub layers: u64,
    /// Their disk space in bytes.
    pub bytes: u64,
}

impl ImageStore {
    /// Removes layers and documents that neither an image nor a snapshot uses.
    ///
    /// Does nothing while layers are coming in; whoever removes or imports next collects then.
    pub fn collect(&self) -> Result<Collected, ImageError> {
        let Some(_collecting) = self.layout.try_collect_lock()? else {
            return Ok(Collected::default());
        };
        let lock = self.layout.lock()?;
        let records: Vec<ImageRecord> = read_records(&self.layout.image_records())?;
        let mut layers: HashSet<Digest> = HashSet::new();
        let mut blobs: HashSet<Digest> = HashSet::new();
        for record in records {
            layers.extend(record.layers);
            blobs.extend(record.manifest);
            blobs.insert(record.id);
        }
        for id in self.snapshot_ids()? {
            let path = self.layout.snapshots().join(&id).join("snapshot.json");
            if let Some(snapshot) = read_json::<SnapshotRecord>(&path)? {
                layers.extend(snapshot.layers);
            }
        }
        let mut collected = Collected::default();
        let mut discarded = Vec::new();
        for diff_id in self.layers_here()? {
            if !layers.contains(&diff_id) {
                collected.layers += 1;
                collected.bytes += self.layer(&diff_id)?.map_or(0, |l| l.bytes);
                discarded.push(self.discard(&self.layout.layer(&diff_id))?);
            }
        }
        for blob in digests_in(&self.layout.blobs())? {
            if !blobs.contains(&blob) {
                remove_file(&self.layout.blob(&blob))?;
            }
        }
        // Deleting takes long; nobody has to wait for it.
        drop(lock);
        drop(discarded);
        Ok(collected)
    }

    pub(super) fn layers_here(&self) -> Result<Vec<Digest>, ImageError> {
        digests_in(&self.layout.layers())
    }

    /// Takes a folder away under a lock so that it is never seen half removed; dropping the result removes it.
    pub(super) fn discard(&self, dir: &Path) -> Result<Scratch, ImageError> {
        let scratch = self.layout.scratch()?;
        match fs::rename(dir, scratch.path().join("discarded")) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => other.doing(|| format!("remove {}", dir.display()))?,
        }
        Ok(scratch)
    }

    /// Removes what processes left that died at work.
    pub(super) fn clear_rubbish(&self) -> Result<(), ImageError> {
        let Some(_collecting) = self.layout.try_collect_lock()? else {
            return Ok(());
        };
        let _lock = self.layout.lock()?;
        let tmp = self.layout.tmp();
        for entry in fs::read_dir(&tmp).doing(|| format!("read {}", tmp.display()))? {
            let entry = entry.doing(|| format!("read {}", tmp.display()))?;
            let path = entry.path();
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            };
            if let Err(e) = removed {
                tracing::warn!("cannot remove {}: {e}", path.display());
            }
        }
        Ok(())
    }
}

/// The digests that name the entries of a folder.
fn digests_in(dir: &Path) -> Result<Vec<Digest>, ImageError> {
    let mut digests = Vec::new();
    for entry in fs::read_dir(dir).doing(|| format!("read {}", dir.display()))? {
        let name = entry
            .doing(|| format!("read {}", dir.display()))?
            .file_name();
        digests.extend(name.to_str().and_then(Digest::from_hex));
    }
    Ok(digests)
}
