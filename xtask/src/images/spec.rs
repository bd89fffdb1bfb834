//! What an image is made of, as data.

use serde_json::{Map, Value, json};

use super::archive::Blob;

/// Images that go into one archive.
#[derive(Debug)]
pub(super) struct Family {
    pub name: &'static str,
    pub images: &'static [Image],
}

/// On what an image stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// One static binary under all its names.
    Busybox,
    /// Debian's C library, shell and core tools, as a layer shared by all such images.
    Debian,
}

/// One image.
#[derive(Debug)]
pub(super) struct Image {
    pub tags: &'static [&'static str],
    pub base: Base,
    /// Debian packages; what they depend on follows.
    pub packages: &'static [&'static str],
    /// Single files out of packages whose dependencies are not wanted.
    pub picks: &'static [(&'static str, &'static [&'static str])],
    pub users: &'static [(&'static str, u32)],
    pub dirs: &'static [Dir],
    pub files: &'static [File],
    pub links: &'static [(&'static str, &'static str)],
    /// Replaced in the files' contents.
    pub variables: &'static [(&'static str, &'static str)],
    pub env: &'static [&'static str],
    pub entrypoint: &'static [&'static str],
    pub cmd: &'static [&'static str],
    pub working_dir: &'static str,
    pub stop_signal: &'static str,
    pub ports: &'static [&'static str],
    pub volumes: &'static [&'static str],
}

/// A folder of our own.
#[derive(Debug)]
pub(super) struct Dir {
    pub path: &'static str,
    pub mode: u32,
    pub owner: u32,
}

/// A file of our own.
#[derive(Debug)]
pub(super) struct File {
    pub path: &'static str,
    pub content: &'static str,
    pub mode: u32,
}

/// An image with nothing set, to be completed by `..NOTHING`.
pub(super) const NOTHING: Image = Image {
    tags: &[],
    base: Base::Debian,
    packages: &[],
    picks: &[],
    users: &[],
    dirs: &[],
    files: &[],
    links: &[],
    variables: &[],
    env: &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    entrypoint: &[],
    cmd: &[],
    working_dir: "",
    stop_signal: "",
    ports: &[],
    volumes: &[],
};

impl Image {
    /// The image's configuration document over the given layers.
    pub(super) fn config(&self, layers: &[Blob]) -> Value {
        let mut config = Map::new();
        let mut set = |key: &str, value: Value| {
            let empty = value.as_array().is_some_and(Vec::is_empty)
                || value.as_str().is_some_and(str::is_empty)
                || value.as_object().is_some_and(Map::is_empty);
            if !empty {
                config.insert(key.to_owned(), value);
            }
        };
        let keys = |names: &[&str]| -> Value {
            names
                .iter()
                .map(|n| ((*n).to_owned(), json!({})))
                .collect::<Map<_, _>>()
                .into()
        };
        set("Env", json!(self.env));
        set("Entrypoint", json!(self.entrypoint));
        set("Cmd", json!(self.cmd));
        set("WorkingDir", json!(self.working_dir));
        set("StopSignal", json!(self.stop_signal));
        set("ExposedPorts", keys(self.ports));
        set("Volumes", keys(self.volumes));
        let diff_ids: Vec<String> = layers.iter().map(Blob::digest).collect();
        json!({
            "created": "1970-01-01T00:00:00Z",
            "architecture": architecture(),
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": vec![json!({ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask images" }); layers.len()],
        })
    }
}

/// This machine's architecture in the words of image formats.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
