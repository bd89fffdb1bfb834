//! Fetching an image: manifest, configuration, then the layers side by side.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt, TryStreamExt};

use super::compression::decompress;
use super::error::Doing;
use super::manifest::{
    ConfigDocument, Descriptor, Manifest, check_layer_type, choose, host_platform, parse_json,
};
use super::registry::{Registry, Target};
use super::{
    Auth, Digest, Image, ImageError, ImageStore, NewImage, Progress, ProgressEvent, Reference,
};

/// Layers fetched at once unless the options say otherwise.
const DEFAULT_PARALLEL_LAYERS: usize = 3;
/// Bound on indexes within indexes.
const MAX_INDEX_DEPTH: usize = 4;
/// Bytes between two reports on a layer.
const PROGRESS_STEP: u64 = 256 << 10;

/// How to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Registries (`host[:port]`) with which plain HTTP and unverified TLS are fine. Loopback may always be plain.
    pub insecure_registries: Vec<String>,
    /// Further trusted certificate authorities, PEM; each element may hold several certificates.
    pub certificates: Vec<Vec<u8>>,
    /// How many layers are fetched at once; at least 1.
    pub parallel_layers: usize,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            insecure_registries: Vec::new(),
            certificates: Vec::new(),
            parallel_layers: DEFAULT_PARALLEL_LAYERS,
        }
    }
}

pub(crate) async fn pull(
    store: &ImageStore,
    reference: &str,
    auth: &Auth,
    options: &PullOptions,
    progress: Arc<dyn Progress>,
) -> Result<Image, ImageError> {
    let reference: Reference = reference.parse()?;
    let registry = Registry::connect(&reference, auth, options).await?;
    let resolved = resolve(&registry, &reference).await?;
    let config = registry.document(&resolved.config).await?;
    let what = format!("configuration {}", resolved.config.digest);
    let document: ConfigDocument = parse_json(&what, &config)?;
    let diff_ids = document.rootfs.diff_ids;
    if diff_ids.len() != resolved.layers.len() {
        return Err(ImageError::Damaged(format!(
            "{what} has {} layers, its manifest {}",
            diff_ids.len(),
            resolved.layers.len()
        )));
    }
    let name = reference.to_string();
    progress.event(ProgressEvent::Image {
        name: name.clone(),
        layers: diff_ids.len(),
    });
    let _ingest = {
        let layout = store.layout.clone();
        blocking(move || layout.ingest_lock()).await?
    };
    // Collected first: a closure within the stream would keep the future from being `Send`.
    let layers: Vec<_> = std::iter::zip(&diff_ids, &resolved.layers)
        .map(|(diff_id, layer)| pull_layer(store, &registry, diff_id, layer, &progress))
        .collect();
    futures::stream::iter(layers)
        .buffer_unordered(options.parallel_layers.max(1))
        .try_collect::<()>()
        .await?;
    let image = NewImage {
        config,
        manifest: Some(resolved.manifest),
        layers: diff_ids,
        names: names(&reference, resolved.digest),
    };
    let image = {
        let store = store.clone();
        blocking(move || {
            let id = store.record(&image)?;
            let found = store.status(id.as_str())?;
            found.ok_or_else(|| ImageError::NotFound(id.into()))
        })
        .await?
    };
    progress.event(ProgressEvent::ImageDone { name });
    Ok(image)
}

/// The names a pulled image gets: what was asked for, and the digest that meant at the time.
fn names(reference: &Reference, digest: Digest) -> Vec<String> {
    let mut names = vec![reference.with_digest(digest).local_name()];
    if reference.digest().is_none() {
        names.push(reference.local_name());
    }
    names
}

struct Resolved {
    /// Digest of what the reference names, which may be an index.
    digest: Digest,
    /// The image manifest.
    manifest: Vec<u8>,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

async fn resolve(registry: &Registry, reference: &Reference) -> Result<Resolved, ImageError> {
    let target = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => Target::Digest(digest),
        (None, tag) => Target::Tag(tag.unwrap_or("latest")),
    };
    let mut bytes = registry.manifest(&target).await?;
    let digest = Digest::of(&bytes);
    for _ in 0..=MAX_INDEX_DEPTH {
        match Manifest::parse(&format!("the manifest of {reference}"), &bytes)? {
            Manifest::Image { config, layers } => {
                layers.iter().try_for_each(check_layer_type)?;
                return Ok(Resolved {
                    digest,
                    manifest: bytes,
                    config,
                    layers,
                });
            }
            Manifest::Index(manifests) => {
                let (os, architecture) = host_platform();
                let chosen = choose(&manifests, os, architecture);
                let chosen = chosen.ok_or_else(|| ImageError::NoPlatform {
                    platform: format!("{os}/{architecture}"),
                    reference: reference.to_string(),
                })?;
                bytes = registry.manifest(&Target::Digest(&chosen.digest)).await?;
            }
        }
    }
    Err(ImageError::Damaged(format!(
        "{reference}: too many indexes within indexes"
    )))
}

async fn pull_layer(
    store: &ImageStore,
    registry: &Registry,
    diff_id: &Digest,
    layer: &Descriptor,
    progress: &Arc<dyn Progress>,
) -> Result<(), ImageError> {
    let digest = layer.digest.to_string();
    let (_lock, here) = {
        let (store, diff_id) = (store.clone(), diff_id.clone());
        blocking(move || {
            let lock = store.layout.layer_lock(&diff_id)?;
            Ok((lock, store.layer(&diff_id)?.is_some()))
        })
        .await?
    };
    if here {
        progress.event(ProgressEvent::LayerExists { digest });
        return Ok(());
    }
    let file =
        tempfile::tempfile_in(store.layout.tmp()).doing(|| "create a temporary file".into())?;
    // Atomic only so that a pull may run as a task of its own.
    let reported = AtomicU64::new(0);
    let report = |done: u64| {
        if done == layer.size || done >= reported.load(Ordering::Relaxed) + PROGRESS_STEP {
            reported.store(done, Ordering::Relaxed);
            progress.event(ProgressEvent::LayerBytes {
                digest: digest.clone(),
                done,
                total: layer.size,
            });
        }
    };
    let mut file = registry.blob(layer, file, report).await?;
    progress.event(ProgressEvent::LayerUnpacking {
        digest: digest.clone(),
    });
    {
        let (store, diff_id) = (store.clone(), diff_id.clone());
        let what = format!("layer {digest}");
        blocking(move || {
            use std::io::Seek;
            file.rewind().doing(|| format!("read {what}"))?;
            let stream = decompress(&what, file)?;
            store.add_layer(&diff_id, &what, stream)
        })
        .await?;
    }
    progress.event(ProgressEvent::LayerDone { digest });
    Ok(())
}

/// Runs disk work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(ImageError::io(
            "work on the image store".to_owned(),
            std::io::Error::other(e),
        )),
    }
}
