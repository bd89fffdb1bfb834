//! The image store against archives made here, hostile ones too, and a small registry on loopback.

mod archives;
mod layers;
mod pulls;
mod real_registry;
mod registry;
mod snapshots;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flate2::Compression;
use serde_json::{Value, json};
use tar::{EntryType, Header};
use tempfile::TempDir;

use super::{Digest, ImageStore};

/// A store of its own for one test.
struct Fixture {
    dir: TempDir,
    store: ImageStore,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // As below /var/lib: others may pass.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let store = ImageStore::open(dir.path().join("oci")).unwrap();
        Self { dir, store }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// What is left of unfinished work.
    fn rubbish(&self) -> Vec<String> {
        let tmp = self.dir.path().join("oci/images/tmp");
        let names = std::fs::read_dir(tmp).unwrap();
        let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.ends_with(".lock")).collect()
    }

    fn layer_count(&self) -> usize {
        let layers = self.dir.path().join("oci/images/layers");
        std::fs::read_dir(layers).unwrap().count()
    }
}

/// A tar under construction.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, "", 0o644, content)
    }

    fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, "", mode, b"")
    }

    fn symlink(self, path: &str, to: &str) -> Self {
        self.entry(EntryType::Symlink, path, to, 0o777, b"")
    }

    fn hard_link(self, path: &str, to: &str) -> Self {
        self.entry(EntryType::Link, path, to, 0o644, b"")
    }

    /// An entry with exactly these names: the builder's own functions refuse hostile ones.
    fn entry(mut self, kind: EntryType, path: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..path.len()].copy_from_slice(path.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(12);
        header.set_gid(34);
        header.set_mtime(1_000_000);
        header.set_size(data.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn pax(mut self, key: &str, value: &[u8]) -> Self {
        self.0.append_pax_extensions([(key, value)]).unwrap();
        self
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd_pack(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 0).unwrap()
}

fn config_of(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|l| Digest::of(l).into()).collect();
    json!({
        "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": {
            "Env": ["A=b"], "Entrypoint": ["/bin/app"], "Cmd": null, "User": "12:34", "WorkingDir": "/w",
            "StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}},
            "Labels": {"k": "v"},
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

/// What `docker save` writes.
fn docker_archive(tags: &[&str], layers: &[Vec<u8>]) -> Vec<u8> {
    let config = config_of(layers);
    let name = format!("{}.json", Digest::of(&config).hex());
    let names: Vec<String> = (0..layers.len())
        .map(|n| format!("{n}/layer.tar"))
        .collect();
    let manifest = json!([{ "Config": name, "RepoTags": tags, "Layers": names }]);
    let mut tar = Tar::new();
    for (name, layer) in names.iter().zip(layers) {
        tar = tar.file(name, layer);
    }
    let manifest = manifest.to_string();
    tar.file(&name, &config)
        .file("manifest.json", manifest.as_bytes())
        .finish()
}

/// An OCI image in pieces: blobs by digest, the first of them the manifest.
fn oci_blobs(layers: &[Vec<u8>], pack: fn(&[u8]) -> Vec<u8>, suffix: &str) -> Vec<Vec<u8>> {
    let config = config_of(layers);
    let packed: Vec<Vec<u8>> = layers.iter().map(|l| pack(l)).collect();
    let descriptor = |media_type: &str, blob: &[u8]| json!({ "mediaType": media_type, "digest": Digest::of(blob), "size": blob.len() });
    let layer_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": packed.iter().map(|l| descriptor(&layer_type, l)).collect::<Vec<_>>(),
    });
    let mut blobs = vec![manifest.to_string().into_bytes(), config];
    blobs.extend(packed);
    blobs
}

fn oci_index(manifest: &[u8], name: &str) -> Value {
    json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": Digest::of(manifest), "size": manifest.len(),
        "annotations": { "org.opencontainers.image.ref.name": name },
    }]})
}

fn oci_archive(name: &str, blobs: &[Vec<u8>]) -> Vec<u8> {
    let index = oci_index(&blobs[0], name).to_string();
    let mut tar = Tar::new()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("./index.json", index.as_bytes());
    for blob in blobs {
        tar = tar.file(&format!("blobs/sha256/{}", Digest::of(blob).hex()), blob);
    }
    tar.finish()
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}
