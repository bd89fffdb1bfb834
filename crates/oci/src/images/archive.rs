//! Importing archives: OCI layouts and what `docker save` writes.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::bundle::{Bundle, starts_compressed};
use super::compression::{decompress, drain};
use super::digest::HashingReader;
use super::error::Doing;
use super::layer::MAX_LAYER_BYTES;
use super::manifest::{
    ConfigDocument, Descriptor, DockerManifest, MAX_LAYERS, Manifest, check_layer_type, choose,
    host_platform, parse_json,
};
use super::{
    Digest, ImageError, ImageStore, Imported, NewImage, Progress, ProgressEvent, Reference,
};

/// Annotation with the complete name of an image in an OCI layout.
const FULL_NAME: &str = "io.containerd.image.name";
/// Annotation with the name or tag of an image in an OCI layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Bound on an archive read from a stream or decompressed, in bytes.
const MAX_ARCHIVE_BYTES: u64 = 2 * MAX_LAYER_BYTES;
/// Bound on indexes within indexes.
const MAX_INDEX_DEPTH: usize = 4;
/// Bound on images of one archive.
const MAX_IMAGES: usize = 1000;

pub(crate) fn import_path(
    store: &ImageStore,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Vec<Imported>, ImageError> {
    let doing = || format!("open {}", path.display());
    if path.metadata().doing(doing)?.is_dir() {
        return import(store, &Bundle::Directory(path.to_owned()), progress);
    }
    let file = File::open(path).doing(doing)?;
    if !file.metadata().doing(doing)?.is_file() || starts_compressed(&file, path)? {
        return import_reader(store, file, progress);
    }
    import(store, &Bundle::index(file)?, progress)
}

pub(crate) fn import_reader(
    store: &ImageStore,
    reader: impl Read,
    progress: &dyn Progress,
) -> Result<Vec<Imported>, ImageError> {
    let _ingest = store.layout.ingest_lock()?;
    // Members may come in any order, so the archive has to be on disk before it can be understood.
    let mut plain = decompress("the archive", reader)?.take(MAX_ARCHIVE_BYTES + 1);
    let mut file =
        tempfile::tempfile_in(store.layout.tmp()).doing(|| "create a temporary file".into())?;
    let size = io::copy(&mut plain, &mut file).doing(|| "read the archive".into())?;
    if size > MAX_ARCHIVE_BYTES {
        return Err(ImageError::TooLarge {
            what: "the archive".into(),
            limit: MAX_ARCHIVE_BYTES,
        });
    }
    import(store, &Bundle::index(file)?, progress)
}

/// An image found in an archive, its layers not yet looked at.
struct Found {
    config: Vec<u8>,
    manifest: Option<Vec<u8>>,
    /// Diff ids and where the layers are.
    layers: Vec<(Digest, LayerSource)>,
    names: Vec<String>,
}

struct LayerSource {
    member: String,
    /// The digest that the packed bytes must have, if the archive tells one.
    digest: Option<Digest>,
}

fn import(
    store: &ImageStore,
    bundle: &Bundle,
    progress: &dyn Progress,
) -> Result<Vec<Imported>, ImageError> {
    let found = find(bundle)?;
    if found.is_empty() {
        return Err(ImageError::NotAnImage("the archive holds no image".into()));
    }
    let _ingest = store.layout.ingest_lock()?;
    for image in &found {
        let name = image.title();
        progress.event(ProgressEvent::Image {
            name,
            layers: image.layers.len(),
        });
        for (diff_id, source) in &image.layers {
            import_layer(store, bundle, diff_id, source, progress)?;
        }
    }
    let mut imported = Vec::new();
    for image in found {
        let name = image.title();
        let id = store.record(&NewImage {
            config: image.config,
            manifest: image.manifest,
            layers: image
                .layers
                .into_iter()
                .map(|(diff_id, _)| diff_id)
                .collect(),
            names: image.names.clone(),
        })?;
        imported.push(Imported {
            id: id.into(),
            references: image.names,
        });
        progress.event(ProgressEvent::ImageDone { name });
    }
    Ok(imported)
}

impl Found {
    fn title(&self) -> String {
        match self.names.first() {
            Some(name) => name.clone(),
            None => Digest::of(&self.config).into(),
        }
    }
}

fn find(bundle: &Bundle) -> Result<Vec<Found>, ImageError> {
    // Newer Docker writes both forms into one archive; only manifest.json has all the tags.
    if let Some(bytes) = bundle.document("manifest.json")? {
        return find_docker(bundle, &bytes);
    }
    if let Some(bytes) = bundle.document("index.json")? {
        let Manifest::Index(manifests) = Manifest::parse("index.json", &bytes)? else {
            return Err(ImageError::Damaged("index.json is not an index".into()));
        };
        let mut found = Vec::new();
        for descriptor in bounded(&manifests)? {
            let names = oci_names(descriptor)?;
            found.push(find_oci(bundle, descriptor, names, 0)?);
        }
        return Ok(found);
    }
    Err(ImageError::NotAnImage(if bundle.looks_like_root_fs() {
        "it looks like a root file system (as from `docker export`); use `docker save`".into()
    } else {
        "it holds neither manifest.json (Docker) nor index.json (OCI)".into()
    }))
}

fn bounded<T>(images: &[T]) -> Result<&[T], ImageError> {
    if images.len() > MAX_IMAGES {
        return Err(ImageError::TooLarge {
            what: "the number of images of the archive".into(),
            limit: MAX_IMAGES as u64,
        });
    }
    Ok(images)
}

fn find_docker(bundle: &Bundle, bytes: &[u8]) -> Result<Vec<Found>, ImageError> {
    let manifests: Vec<DockerManifest> = parse_json("manifest.json", bytes)?;
    let mut found = Vec::new();
    for manifest in bounded(&manifests)? {
        let config = bundle.document(&manifest.config)?.ok_or_else(|| {
            ImageError::Damaged(format!("{} is not in the archive", manifest.config))
        })?;
        check_named_digest(&manifest.config, &config)?;
        let document: ConfigDocument = parse_json(&manifest.config, &config)?;
        let sources = manifest.layers.iter().map(|member| LayerSource {
            digest: None,
            member: member.clone(),
        });
        let names = manifest.repo_tags.iter().flatten();
        found.push(Found {
            layers: pair_layers(&manifest.config, document, sources.collect())?,
            config,
            manifest: None,
            names: names
                .map(|name| Ok(name.parse::<Reference>()?.local_name()))
                .collect::<Result<_, ImageError>>()?,
        });
    }
    Ok(found)
}

/// Docker names configurations by their digest: `<hex>.json` or `blobs/sha256/<hex>`.
fn check_named_digest(member: &str, bytes: &[u8]) -> Result<(), ImageError> {
    let file = member.rsplit('/').next().unwrap_or(member);
    let Some(expected) = Digest::from_hex(file.trim_end_matches(".json")) else {
        return Ok(());
    };
    check_digest(member, &expected, Digest::of(bytes))
}

fn check_digest(what: &str, expected: &Digest, actual: Digest) -> Result<(), ImageError> {
    if *expected == actual {
        return Ok(());
    }
    Err(ImageError::DigestMismatch {
        what: what.to_owned(),
        expected: expected.clone(),
        actual,
    })
}

fn find_oci(
    bundle: &Bundle,
    descriptor: &Descriptor,
    names: Vec<String>,
    depth: usize,
) -> Result<Found, ImageError> {
    let what = format!("manifest {}", descriptor.digest);
    let bytes = oci_document(bundle, &what, &descriptor.digest)?;
    match Manifest::parse(&what, &bytes)? {
        Manifest::Index(_) if depth >= MAX_INDEX_DEPTH => Err(ImageError::Damaged(format!(
            "{what}: too many indexes within indexes"
        ))),
        Manifest::Index(manifests) => {
            let (os, architecture) = host_platform();
            let chosen = choose(&manifests, os, architecture);
            let chosen = chosen.ok_or_else(|| ImageError::NoPlatform {
                platform: format!("{os}/{architecture}"),
                reference: what.clone(),
            })?;
            find_oci(bundle, chosen, names, depth + 1)
        }
        Manifest::Image { config, layers } => {
            let what = format!("configuration {}", config.digest);
            let config_bytes = oci_document(bundle, &what, &config.digest)?;
            let document: ConfigDocument = parse_json(&what, &config_bytes)?;
            layers.iter().try_for_each(check_layer_type)?;
            let sources = layers.iter().map(|layer| LayerSource {
                member: blob_member(&layer.digest),
                digest: Some(layer.digest.clone()),
            });
            let mut found = Found {
                layers: pair_layers(&what, document, sources.collect())?,
                config: config_bytes,
                names,
                manifest: Some(bytes),
            };
            found.add_digest_names(&descriptor.digest)?;
            Ok(found)
        }
    }
}

impl Found {
    fn add_digest_names(&mut self, digest: &Digest) -> Result<(), ImageError> {
        for name in self.names.clone() {
            let reference: Reference = name.parse()?;
            self.names
                .push(reference.with_digest(digest.clone()).local_name());
        }
        Ok(())
    }
}

/// What an OCI layout calls an image. A lone word counts as a repository, not as a tag of nothing.
fn oci_names(descriptor: &Descriptor) -> Result<Vec<String>, ImageError> {
    let name = [FULL_NAME, REF_NAME]
        .iter()
        .find_map(|key| descriptor.annotations.get(*key));
    name.map(|name| Ok(name.parse::<Reference>()?.local_name()))
        .into_iter()
        .collect()
}

fn blob_member(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn oci_document(bundle: &Bundle, what: &str, digest: &Digest) -> Result<Vec<u8>, ImageError> {
    let bytes = bundle
        .document(&blob_member(digest))?
        .ok_or_else(|| ImageError::Damaged(format!("{what} is not in the archive")))?;
    check_digest(what, digest, Digest::of(&bytes))?;
    Ok(bytes)
}

fn pair_layers(
    what: &str,
    document: ConfigDocument,
    sources: Vec<LayerSource>,
) -> Result<Vec<(Digest, LayerSource)>, ImageError> {
    let diff_ids = document.rootfs.diff_ids;
    if diff_ids.len() != sources.len() || sources.len() > MAX_LAYERS {
        return Err(ImageError::Damaged(format!(
            "{what} has {} layers, its manifest {} (at most {MAX_LAYERS} are possible)",
            diff_ids.len(),
            sources.len()
        )));
    }
    Ok(diff_ids.into_iter().zip(sources).collect())
}

fn import_layer(
    store: &ImageStore,
    bundle: &Bundle,
    diff_id: &Digest,
    source: &LayerSource,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let digest = diff_id.to_string();
    let _lock = store.layout.layer_lock(diff_id)?;
    if store.layer(diff_id)?.is_some() {
        progress.event(ProgressEvent::LayerExists { digest });
        return Ok(());
    }
    let what = format!("layer {}", source.member);
    let Some((reader, _)) = bundle.open(&source.member)? else {
        return Err(ImageError::Damaged(format!("{what} is not in the archive")));
    };
    progress.event(ProgressEvent::LayerUnpacking {
        digest: digest.clone(),
    });
    let mut packed = HashingReader::new(reader);
    let added =
        decompress(&what, &mut packed).and_then(|stream| store.add_layer(diff_id, &what, stream));
    if let Some(expected) = &source.digest {
        // Wrong bytes show up as all sorts of errors; that they are wrong is what matters.
        drain(&mut packed).doing(|| format!("read {what}"))?;
        check_digest(&what, expected, packed.finish().0)?;
    }
    added?;
    progress.event(ProgressEvent::LayerDone { digest });
    Ok(())
}
