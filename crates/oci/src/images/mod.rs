//! Images: import, pull, list, remove, and the writable snapshots that containers run on.
//!
//! The truth is on disk alone (see [`layout`] for the folders and their invariants): several processes may open
//! the same store, so that `styr image load` and the server share one. Functions that are not `async` block on the
//! disk; call them from a blocking thread.

mod archive;
mod attributes;
mod auth;
mod bundle;
mod collect;
mod compression;
mod digest;
mod error;
mod layer;
mod layout;
mod manifest;
mod progress;
mod pull;
mod reference;
mod registry;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use auth::Auth;
pub use collect::Collected;
pub use digest::Digest;
pub use error::ImageError;
pub use manifest::ImageConfig;
pub use progress::{Progress, ProgressEvent};
pub use pull::PullOptions;
pub use reference::Reference;
pub use snapshot::{SnapshotMount, Usage};

use error::Doing;
use layout::{Layout, read_json, read_records, read_small, write_atomic, write_json};
use manifest::{ConfigDocument, parse_json};

/// Fewest digits by which an image id may be shortened.
const MIN_ID_PREFIX: usize = 6;

/// An image that is here whole.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:…` of the configuration: equal for equal images wherever they came from.
    pub id: String,
    /// Complete names with tags, e.g. `docker.io/library/nginx:1.0`, sorted.
    pub repo_tags: Vec<String>,
    /// Complete names with manifest digests, sorted.
    pub repo_digests: Vec<String>,
    /// Disk space of its layers in bytes (shared ones counted in full).
    pub size: u64,
    /// Diff ids of the layers, lowest first.
    pub layers: Vec<String>,
    /// What to run and how.
    pub config: ImageConfig,
    /// When it was built, as the image says (RFC 3339).
    pub created: Option<String>,
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, ….
    pub architecture: String,
}

/// An image that an import brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Image id.
    pub id: String,
    /// The names it has been given; empty if the archive names none.
    pub references: Vec<String>,
}

/// Disk space of all images and snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsUsage {
    /// The folder that is measured.
    pub mountpoint: PathBuf,
    /// Bytes used by unpacked layers.
    pub bytes: u64,
    /// Inodes used by unpacked layers.
    pub inodes: u64,
}

/// The images of one cluster.
#[derive(Clone)]
pub struct ImageStore {
    layout: Arc<Layout>,
}

/// `images/<hex>.json`.
#[derive(Serialize, Deserialize)]
struct ImageRecord {
    id: Digest,
    layers: Vec<Digest>,
    /// The manifest's blob, if it came with one.
    manifest: Option<Digest>,
}

/// `names/<hash>.json`.
#[derive(Serialize, Deserialize)]
struct NameRecord {
    name: String,
    image: Digest,
}

/// `layers/<hex>/layer.json`.
#[derive(Clone, Serialize, Deserialize)]
struct LayerRecord {
    diff_id: Digest,
    bytes: u64,
    inodes: u64,
}

/// An image about to be recorded; its layers are in place.
struct NewImage {
    /// The configuration document.
    config: Vec<u8>,
    manifest: Option<Vec<u8>>,
    layers: Vec<Digest>,
    /// Canonical names (tags and digests).
    names: Vec<String>,
}

impl ImageStore {
    /// Opens the store under `root`, creating its folders if need be and clearing what a crash left.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, ImageError> {
        let store = Self {
            layout: Arc::new(Layout::create(root.as_ref())?),
        };
        store.clear_rubbish()?;
        Ok(store)
    }

    /// Imports the images of an archive (OCI layout or Docker, plain or compressed) or of an OCI layout directory.
    ///
    /// All images are verified before the first gets its names, so a bad archive changes no name.
    pub fn import_path(
        &self,
        path: &Path,
        progress: &dyn Progress,
    ) -> Result<Vec<Imported>, ImageError> {
        archive::import_path(self, path, progress)
    }

    /// Imports an archive from a stream, e.g. standard input.
    pub fn import_reader(
        &self,
        reader: impl Read,
        progress: &dyn Progress,
    ) -> Result<Vec<Imported>, ImageError> {
        archive::import_reader(self, reader, progress)
    }

    /// Fetches an image from its registry, reusing layers that are here.
    pub async fn pull(
        &self,
        reference: &str,
        auth: &Auth,
        options: &PullOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<Image, ImageError> {
        pull::pull(self, reference, auth, options, progress).await
    }

    /// Every image, ordered by id.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let names = self.names()?;
        let mut records: Vec<ImageRecord> = read_records(&self.layout.image_records())?;
        records.sort_by(|a, b| a.id.cmp(&b.id));
        let images = records.into_iter().map(|r| self.image(r, &names));
        Ok(images
            .filter_map(|image| {
                image
                    .inspect_err(|e| tracing::warn!("leaving out an image: {e}"))
                    .ok()
            })
            .collect())
    }

    /// The image that `image` means: a reference, an image id, or the beginning of one. `None` if it is not here.
    pub fn status(&self, image: &str) -> Result<Option<Image>, ImageError> {
        let Some(id) = self.resolve(image)? else {
            return Ok(None);
        };
        let Some(record) = read_json::<ImageRecord>(&self.layout.image_record(&id))? else {
            return Ok(None);
        };
        self.image(record, &self.names()?).map(Some)
    }

    /// Removes an image with all its names, and the layers nothing else uses. `false` if it was not here.
    ///
    /// Snapshots keep the layers they stand on.
    pub fn remove(&self, image: &str) -> Result<bool, ImageError> {
        let Some(id) = self.resolve(image)? else {
            return Ok(false);
        };
        {
            let _lock = self.layout.lock()?;
            for name in self.names()?.get(&id).into_iter().flatten() {
                layout::remove_file(&self.layout.name_record(name))?;
            }
            layout::remove_file(&self.layout.image_record(&id))?;
        }
        self.collect()?;
        Ok(true)
    }

    /// Removes one name; the image stays, if need be without a name. `false` if there is no such name.
    pub fn untag(&self, reference: &str) -> Result<bool, ImageError> {
        let name = reference.parse::<Reference>()?.local_name();
        let _lock = self.layout.lock()?;
        layout::remove_file(&self.layout.name_record(&name))
    }

    /// Gives an image that is here one more name.
    pub fn tag(&self, image: &str, reference: &str) -> Result<(), ImageError> {
        let name = reference.parse::<Reference>()?.local_name();
        let _lock = self.layout.lock()?;
        let id = self.resolve(image)?;
        let image = id.ok_or_else(|| ImageError::NotFound(image.to_owned()))?;
        write_json(
            &self.layout.name_record(&name),
            &NameRecord {
                name: name.clone(),
                image,
            },
        )
    }

    /// What the layers take on the disk.
    pub fn fs_usage(&self) -> Result<FsUsage, ImageError> {
        let mut usage = FsUsage {
            mountpoint: self.layout.root().to_owned(),
            bytes: 0,
            inodes: 0,
        };
        for diff_id in self.layers_here()? {
            if let Some(layer) = self.layer(&diff_id)? {
                usage.bytes += layer.bytes;
                usage.inodes += layer.inodes;
            }
        }
        Ok(usage)
    }

    /// The id that a reference, an id or the beginning of an id means.
    fn resolve(&self, image: &str) -> Result<Option<Digest>, ImageError> {
        let here = |id: &Digest| self.layout.image_record(id).exists();
        if let Some(id) = Digest::parse(image).or_else(|| Digest::from_hex(image)) {
            return Ok(here(&id).then_some(id));
        }
        if let Ok(reference) = image.parse::<Reference>() {
            let path = self.layout.name_record(&reference.local_name());
            if let Some(name) = read_json::<NameRecord>(&path)? {
                return Ok(here(&name.image).then_some(name.image));
            }
        }
        let prefix = image.strip_prefix("sha256:").unwrap_or(image);
        if prefix.len() < MIN_ID_PREFIX || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let records: Vec<ImageRecord> = read_records(&self.layout.image_records())?;
        let mut matching = records.iter().filter(|r| r.id.hex().starts_with(prefix));
        let found = matching.next().map(|r| r.id.clone());
        Ok(found.filter(|_| matching.next().is_none()))
    }

    /// All names by the image they mean.
    fn names(&self) -> Result<BTreeMap<Digest, BTreeSet<String>>, ImageError> {
        let mut names: BTreeMap<Digest, BTreeSet<String>> = BTreeMap::new();
        for record in read_records::<NameRecord>(&self.layout.name_records())? {
            names.entry(record.image).or_default().insert(record.name);
        }
        Ok(names)
    }

    fn image(
        &self,
        record: ImageRecord,
        names: &BTreeMap<Digest, BTreeSet<String>>,
    ) -> Result<Image, ImageError> {
        let what = format!("the configuration of image {}", record.id);
        let bytes = read_small(&self.layout.blob(&record.id))?
            .ok_or_else(|| ImageError::Damaged(format!("{what} is missing")))?;
        let document: ConfigDocument = parse_json(&what, &bytes)?;
        let mut size = bytes.len() as u64;
        for diff_id in &record.layers {
            size += self.layer(diff_id)?.map_or(0, |layer| layer.bytes);
        }
        let (repo_digests, repo_tags) = names
            .get(&record.id)
            .into_iter()
            .flatten()
            .cloned()
            .partition(|name| name.contains('@'));
        Ok(Image {
            id: record.id.into(),
            repo_tags,
            repo_digests,
            size,
            layers: record.layers.into_iter().map(String::from).collect(),
            config: document.config.unwrap_or_default().into(),
            created: document.created,
            os: document.os,
            architecture: document.architecture,
        })
    }

    fn layer(&self, diff_id: &Digest) -> Result<Option<LayerRecord>, ImageError> {
        read_json(&self.layout.layer_record(diff_id))
    }

    /// Unpacks an uncompressed layer stream unless it is here; `what` names it in errors.
    ///
    /// The caller holds an ingest lock until the image is recorded.
    fn add_layer(&self, diff_id: &Digest, what: &str, stream: impl Read) -> Result<(), ImageError> {
        let scratch = self.layout.scratch()?;
        let fs = scratch.path().join("fs");
        // The mode a layer's root has unless the layer says otherwise, whatever the umask is.
        std::fs::create_dir(&fs)
            .and_then(|()| std::fs::set_permissions(&fs, Permissions::from_mode(0o755)))
            .doing(|| format!("create {}", fs.display()))?;
        let unpacked = layer::unpack(stream, &fs)?;
        if unpacked.diff_id != *diff_id {
            return Err(ImageError::DigestMismatch {
                what: format!("the content of {what}"),
                expected: diff_id.clone(),
                actual: unpacked.diff_id,
            });
        }
        let record = LayerRecord {
            diff_id: diff_id.clone(),
            bytes: unpacked.bytes,
            inodes: unpacked.inodes,
        };
        write_json(&scratch.path().join("layer.json"), &record)?;
        layout::sync_file_system(scratch.path())?;
        let target = self.layout.layer(diff_id);
        match std::fs::rename(scratch.path(), &target) {
            // Somebody else was faster; theirs is as good.
            Err(_) if self.layer(diff_id)?.is_some() => Ok(()),
            other => other.doing(|| format!("create {}", target.display())),
        }
    }

    /// Makes an image known under its names. Its layers are in place and the caller holds an ingest lock.
    fn record(&self, image: &NewImage) -> Result<Digest, ImageError> {
        let id = Digest::of(&image.config);
        write_atomic(&self.layout.blob(&id), &image.config)?;
        let manifest = match &image.manifest {
            Some(bytes) => {
                let digest = Digest::of(bytes);
                write_atomic(&self.layout.blob(&digest), bytes)?;
                Some(digest)
            }
            None => None,
        };
        let _lock = self.layout.lock()?;
        let path = self.layout.image_record(&id);
        // The same image without its manifest must not lose the one it came with before.
        let known = read_json::<ImageRecord>(&path)?;
        let record = ImageRecord {
            id: id.clone(),
            layers: image.layers.clone(),
            manifest: manifest.or(known.and_then(|k| k.manifest)),
        };
        write_json(&path, &record)?;
        for name in &image.names {
            let record = NameRecord {
                name: name.clone(),
                image: id.clone(),
            };
            write_json(&self.layout.name_record(name), &record)?;
        }
        Ok(id)
    }
}

#[cfg(test)]
mod tests;
