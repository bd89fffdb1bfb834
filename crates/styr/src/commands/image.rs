//! `styr image`: images on the node, without a registry.
//!
//! Works on the image store on disk, so it does not matter whether the cluster runs.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use oci::images::{ImageStore, ProgressEvent};

use crate::config::ClusterArgs;
use crate::output::say;
use crate::preflight;

/// Characters of an image id that `list` shows.
const SHORT_ID: usize = 12;

/// Manage the images on the node.
#[derive(Subcommand)]
pub enum Image {
    /// Import the images of OCI or Docker archives, so that pods find them without a registry
    Load {
        /// Archives (plain or compressed), OCI layout folders, or - for standard input
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// List the images on the node
    List,
    /// Remove images from the node
    Rm {
        /// Names or ids
        #[arg(required = true)]
        images: Vec<String>,
    },
}

impl Image {
    /// Does it.
    ///
    /// # Errors
    /// When there is no such cluster, or an archive is bad.
    pub fn run(self, args: &ClusterArgs) -> anyhow::Result<()> {
        preflight::root()?;
        let store = ImageStore::open(args.load()?.path("oci"))?;
        match self {
            Self::Load { files } => files.iter().try_for_each(|file| load(&store, file)),
            Self::List => list(&store),
            Self::Rm { images } => images.iter().try_for_each(|image| remove(&store, image)),
        }
    }
}

fn load(store: &ImageStore, file: &Path) -> anyhow::Result<()> {
    let bar = std::io::stderr().is_terminal().then(spinner);
    let progress = |event: ProgressEvent| {
        if let (Some(bar), Some(text)) = (&bar, text(&event)) {
            bar.set_message(text);
        }
    };
    let imported = if file.as_os_str() == "-" {
        store.import_reader(std::io::stdin().lock(), &progress)
    } else {
        store.import_path(file, &progress)
    };
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    for image in imported.with_context(|| file.display().to_string())? {
        match image.references.as_slice() {
            [] => say!("loaded {}", image.id),
            names => names.iter().for_each(|name| say!("loaded {name}")),
        }
    }
    Ok(())
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(80));
    bar
}

fn text(event: &ProgressEvent) -> Option<String> {
    match event {
        ProgressEvent::Image { name, layers } => Some(format!("{name}: {layers} layers")),
        ProgressEvent::LayerBytes { done, total, .. } => {
            Some(format!("{} of {}", HumanBytes(*done), HumanBytes(*total)))
        }
        ProgressEvent::LayerUnpacking { digest } => Some(format!("unpacking {digest}")),
        _ => None,
    }
}

fn list(store: &ImageStore) -> anyhow::Result<()> {
    say!("{:<56} {:<14} SIZE", "IMAGE", "ID");
    for image in store.list()? {
        let id = image.id.trim_start_matches("sha256:");
        let short = id.get(..SHORT_ID).unwrap_or(id);
        let none = vec!["<none>".to_owned()];
        let names = if image.repo_tags.is_empty() {
            &none
        } else {
            &image.repo_tags
        };
        for name in names {
            say!("{name:<56} {short:<14} {}", HumanBytes(image.size));
        }
    }
    Ok(())
}

fn remove(store: &ImageStore, image: &str) -> anyhow::Result<()> {
    if store.remove(image)? {
        say!("removed {image}");
        Ok(())
    } else {
        anyhow::bail!("there is no image {image:?}; `styr image list` shows them")
    }
}
