//! `cargo xtask images`: container images for tests and walkthroughs, made of Debian packages alone.
//!
//! No registry is needed, nothing is installed on this machine, no package script runs. Each family of images becomes
//! one archive `target/images/NAME.tar` that is an OCI layout and a Docker archive at once; `styr image load` takes it.
//! Invariant: the same specification and the same packages give the same bytes.

mod apt;
mod archive;
mod families;
mod layer;
mod spec;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use apt::Packages;
use archive::{Blob, ImageBlobs, Writer};
use layer::LayerWriter;
use spec::{Base, Family, Image};

use crate::run::workspace;

/// Part of every archive's fingerprint: raise it when the way archives are made changes.
const FORMAT: u32 = 1;
/// Names a folder for downloaded packages to be shared between checkouts.
const CACHE_VARIABLE: &str = "STYR_PACKAGE_CACHE";

/// Arguments of `cargo xtask images`.
#[derive(Args)]
pub struct Images {
    /// Families to make; all if none is named
    names: Vec<String>,
    /// Make them even if they are there, with the newest packages
    #[arg(long)]
    refresh: bool,
    /// List the families and their tags
    #[arg(long)]
    list: bool,
}

impl Images {
    /// Makes the archives that are missing or out of date.
    pub fn run(self) -> Result<()> {
        if self.list {
            for family in families::ALL {
                let tags = family.images.iter().flat_map(|image| image.tags);
                let tags: Vec<&str> = tags.copied().collect();
                println!("{:<10} {}", family.name, tags.join(" "));
            }
            return Ok(());
        }
        let mut chosen = Vec::new();
        for name in &self.names {
            match families::ALL.iter().find(|f| f.name == name) {
                Some(family) => chosen.push(family),
                None => {
                    let known: Vec<&str> = families::ALL.iter().map(|f| f.name).collect();
                    bail!("no images called {name}; there are {}", known.join(", "));
                }
            }
        }
        if chosen.is_empty() {
            chosen = families::ALL.iter().collect();
        }
        let target = directory();
        fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
        let mut workshop = Workshop::new(&target)?;
        for family in chosen {
            let start = Instant::now();
            if !self.refresh && up_to_date(&target, family) {
                println!("{:<10} up to date", family.name);
                continue;
            }
            let size = workshop
                .make(family)
                .with_context(|| format!("images {}", family.name))?;
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "{:<10} {:6.1} MB in {seconds:.1} s",
                family.name,
                size as f64 / 1e6
            );
        }
        Ok(())
    }
}

/// Where the archives are: `target/images` of this workspace.
pub fn directory() -> PathBuf {
    workspace().join("target/images")
}

fn stamp_path(target: &Path, family: &Family) -> PathBuf {
    target.join(format!(".{}.json", family.name))
}

fn archive_path(target: &Path, family: &Family) -> PathBuf {
    target.join(format!("{}.tar", family.name))
}

/// What the archive is made of, as far as this program knows without asking apt.
fn fingerprint(family: &Family) -> String {
    archive::sha256(format!("{FORMAT} {:?} {family:?}", families::BASE).as_bytes())
}

fn up_to_date(target: &Path, family: &Family) -> bool {
    let stamp = || {
        let text = fs::read(stamp_path(target, family)).ok()?;
        let stamp: Value = serde_json::from_slice(&text).ok()?;
        let size = fs::metadata(archive_path(target, family)).ok()?.len();
        let same = stamp["inputs"] == fingerprint(family).as_str() && stamp["size"] == size;
        Some(same)
    };
    stamp().unwrap_or(false)
}

/// Makes families one after the other, sharing the layers they have in common.
struct Workshop {
    target: PathBuf,
    work: PathBuf,
    packages: Option<Packages>,
    /// Layers of packages made in this run, by the packages asked for.
    layers: HashMap<String, Blob>,
}

impl Workshop {
    fn new(target: &Path) -> Result<Self> {
        let work = target.join(".work");
        let _ = fs::remove_dir_all(&work);
        Ok(Self {
            target: target.to_owned(),
            work,
            packages: None,
            layers: HashMap::new(),
        })
    }

    fn make(&mut self, family: &Family) -> Result<u64> {
        fs::create_dir_all(&self.work)
            .with_context(|| format!("create {}", self.work.display()))?;
        let mut images = Vec::new();
        for image in family.images {
            images.push(self.image(image).with_context(|| image.tags.join(" "))?);
        }
        let path = archive_path(&self.target, family);
        let size = Writer::write(&path, &images)?;
        let stamp = json!({ "inputs": fingerprint(family), "size": size });
        let path = stamp_path(&self.target, family);
        fs::write(&path, stamp.to_string()).with_context(|| format!("write {}", path.display()))?;
        Ok(size)
    }

    fn image(&mut self, image: &Image) -> Result<ImageBlobs> {
        let mut layers = Vec::new();
        let mut below: Vec<&str> = Vec::new();
        if image.base == Base::Debian {
            layers.push(self.package_layer(families::BASE, &[], &[])?);
            below.extend(families::BASE);
        }
        if !image.packages.is_empty() && image.base == Base::Debian {
            layers.push(self.package_layer(image.packages, image.picks, &below)?);
        }
        layers.push(self.file_layer(image)?);
        Ok(ImageBlobs {
            tags: image.tags.iter().map(|t| (*t).to_owned()).collect(),
            config: image.config(&layers),
            layers,
        })
    }

    fn packages(&mut self) -> Result<&Packages> {
        if self.packages.is_none() {
            let cache = match std::env::var_os(CACHE_VARIABLE) {
                Some(dir) => PathBuf::from(dir),
                None => self.target.join("packages"),
            };
            self.packages = Some(Packages::open(&cache)?);
        }
        self.packages.as_ref().context("packages are open")
    }

    /// A layer of packages and what they need, without what the layers below have.
    fn package_layer(
        &mut self,
        wanted: &[&str],
        picks: &[(&str, &[&str])],
        below: &[&str],
    ) -> Result<Blob> {
        let key = format!("{wanted:?} {picks:?} {below:?}");
        if let Some(blob) = self.layers.get(&key) {
            return Ok(blob.clone());
        }
        let path = self
            .work
            .join(format!("layer-{}", archive::sha256(key.as_bytes())));
        let packages = self.packages()?;
        let mut all: Vec<&str> = below.to_vec();
        all.extend(wanted);
        let lower: Vec<String> = match below {
            [] => Vec::new(),
            below => packages
                .resolve(below)?
                .into_iter()
                .map(|p| p.file)
                .collect(),
        };
        let mut needed = packages.resolve(&all)?;
        needed.retain(|package| !lower.contains(&package.file));
        let mut layer = LayerWriter::create(&path)?;
        if below.is_empty() {
            layer.skeleton()?;
        }
        for deb in packages.download(&needed)? {
            layer.package(&deb, None)?;
        }
        for (package, files) in picks {
            let found = packages.resolve(&[package])?;
            let prefix = format!("{package}_");
            let only: Vec<_> = found
                .into_iter()
                .filter(|p| p.file.starts_with(&prefix))
                .collect();
            for deb in packages.download(&only)? {
                layer.package(&deb, Some(files))?;
            }
        }
        let blob = layer.finish()?;
        self.layers.insert(key, blob.clone());
        Ok(blob)
    }

    /// The uppermost layer: our own files, users and folders.
    fn file_layer(&mut self, image: &Image) -> Result<Blob> {
        let key = archive::sha256(format!("{image:?}").as_bytes());
        let path = self.work.join(format!("files-{key}"));
        let mut layer = LayerWriter::create(&path)?;
        if image.base == Base::Busybox {
            let packages = self.packages()?;
            let deb = packages.download(&packages.resolve(image.packages)?)?;
            layer.skeleton_plain()?;
            layer.busybox(&deb, &self.work)?;
        }
        layer.users(image.users)?;
        for dir in image.dirs {
            layer.directory(dir.path, dir.mode, dir.owner)?;
        }
        for file in image.files {
            let mut content = file.content.to_owned();
            for (variable, value) in image.variables {
                content = content.replace(variable, value);
            }
            layer.file(file.path, content.as_bytes(), file.mode)?;
        }
        for (link, to) in image.links {
            layer.link(link, to)?;
        }
        layer.finish()
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.work);
    }
}
