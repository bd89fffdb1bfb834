//! Writing archives that are an OCI layout and a Docker archive at once, the same bytes every time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aws_lc_rs::digest;
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A file and its digest.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    pub path: PathBuf,
    pub hex: String,
    pub size: u64,
}

impl Blob {
    pub(super) fn digest(&self) -> String {
        format!("sha256:{}", self.hex)
    }
}

/// An image whose layers are made.
pub(super) struct ImageBlobs {
    pub tags: Vec<String>,
    pub config: Value,
    pub layers: Vec<Blob>,
}

/// Hex SHA-256 of `bytes`.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Hashes what is written through it.
pub(super) struct HashingWriter<W> {
    inner: W,
    context: digest::Context,
    count: u64,
}

impl<W: Write> HashingWriter<W> {
    pub(super) fn new(inner: W) -> Self {
        Self {
            inner,
            context: digest::Context::new(&digest::SHA256),
            count: 0,
        }
    }

    /// The writer, the hex digest of everything written, and its size in bytes.
    pub(super) fn finish(self) -> (W, String, u64) {
        (self.inner, hex(self.context.finish().as_ref()), self.count)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.context.update(&buf[..n]);
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes one archive.
pub(super) struct Writer {
    tar: tar::Builder<io::BufWriter<File>>,
    /// Blobs in memory (documents) or on disk (layers), by hex digest; each is written once.
    blobs: BTreeMap<String, Content>,
}

enum Content {
    Bytes(Vec<u8>),
    File(PathBuf),
}

impl Writer {
    /// Writes `images` to `path`, which appears only when it is complete. Returns its size in bytes.
    pub(super) fn write(path: &Path, images: &[ImageBlobs]) -> Result<u64> {
        let unfinished = path.with_extension("tar.new");
        let writing = || format!("write {}", unfinished.display());
        let file = File::create(&unfinished).with_context(writing)?;
        let mut writer = Self {
            tar: tar::Builder::new(io::BufWriter::with_capacity(1 << 20, file)),
            blobs: BTreeMap::new(),
        };
        writer.images(images).with_context(writing)?;
        let file = writer.tar.into_inner().and_then(|mut buffered| {
            buffered.flush()?;
            buffered
                .into_inner()
                .map_err(io::IntoInnerError::into_error)
        });
        let size = file.and_then(|f| f.metadata()).with_context(writing)?.len();
        fs::rename(&unfinished, path).with_context(|| format!("write {}", path.display()))?;
        Ok(size)
    }

    fn images(&mut self, images: &[ImageBlobs]) -> Result<()> {
        let mut index = Vec::new();
        let mut docker = Vec::new();
        for image in images {
            let config = self.document(&image.config);
            let mut layers = Vec::new();
            let mut members = Vec::new();
            for layer in &image.layers {
                layers.push(
                    json!({ "mediaType": LAYER, "digest": layer.digest(), "size": layer.size }),
                );
                members.push(member(&layer.hex));
                let content = Content::File(layer.path.clone());
                self.blobs.insert(layer.hex.clone(), content);
            }
            let (config_hex, config_size) = &config;
            let (hex, size) = self.document(&json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": { "mediaType": CONFIG, "digest": format!("sha256:{config_hex}"), "size": config_size },
                "layers": layers,
            }));
            for tag in &image.tags {
                index.push(json!({
                    "mediaType": MANIFEST,
                    "digest": format!("sha256:{hex}"),
                    "size": size,
                    "annotations": { "org.opencontainers.image.ref.name": tag },
                }));
            }
            docker.push(json!({
                "Config": member(config_hex),
                "RepoTags": image.tags,
                "Layers": members,
            }));
        }
        self.member("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let index = json!({ "schemaVersion": 2, "manifests": index });
        self.member("index.json", index.to_string().as_bytes())?;
        self.member("manifest.json", Value::from(docker).to_string().as_bytes())?;
        for (hex, content) in std::mem::take(&mut self.blobs) {
            match content {
                Content::Bytes(bytes) => self.member(&member(&hex), &bytes)?,
                Content::File(path) => {
                    let file = File::open(&path)?;
                    let mut header = header(file.metadata()?.len());
                    self.tar.append_data(&mut header, member(&hex), file)?;
                }
            }
        }
        self.tar.finish()?;
        Ok(())
    }

    fn document(&mut self, document: &Value) -> (String, usize) {
        let bytes = document.to_string().into_bytes();
        let (hex, size) = (sha256(&bytes), bytes.len());
        self.blobs.insert(hex.clone(), Content::Bytes(bytes));
        (hex, size)
    }

    fn member(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.tar
            .append_data(&mut header(bytes.len() as u64), name, bytes)
    }
}

fn member(hex: &str) -> String {
    format!("blobs/sha256/{hex}")
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}
