//! A cluster of its own for a benchmark.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::run::workspace;

/// A cluster that is deleted when it is dropped.
pub struct Cluster {
    folder: tempfile::TempDir,
}

impl Cluster {
    /// A cluster that is not started yet.
    ///
    /// # Errors
    /// When there is no folder to be had.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("styr-bench-").tempdir()?;
        Ok(Self { folder })
    }

    /// Runs `styr` about this cluster.
    ///
    /// # Errors
    /// When it does not succeed.
    pub fn styr(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = Command::new(super::release().join("styr"))
            .args(arguments)
            .args(["--name", "bench", "--data-dir"])
            .arg(self.folder.path())
            .env("KUBECONFIG", self.kubeconfig())
            .stdin(Stdio::null())
            .output()
            .context("starting styr")?;
        if !output.status.success() {
            bail!(
                "styr {arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Loads an archive made by `cargo xtask images`.
    ///
    /// # Errors
    /// When it is missing or bad.
    pub fn load(&self, image: &str) -> anyhow::Result<()> {
        let archive = workspace().join(format!("target/images/{image}.tar"));
        self.styr(&["image", "load", &archive.display().to_string()])
    }

    /// A client of the administrator.
    ///
    /// # Errors
    /// When the cluster is not up.
    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        Ok(kube::Client::try_from(self.configuration().await?)?)
    }

    /// Where the API server answers: scheme, host and port.
    ///
    /// # Errors
    /// When the cluster is not up.
    pub async fn url(&self) -> anyhow::Result<String> {
        let url = self.configuration().await?.cluster_url.to_string();
        Ok(url.trim_end_matches('/').to_owned())
    }

    async fn configuration(&self) -> anyhow::Result<kube::Config> {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig())?;
        let options = KubeConfigOptions::default();
        Ok(kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?)
    }

    /// The folder that holds everything of the cluster.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Process ids of everything Styr runs for this cluster.
    pub fn processes(&self) -> Vec<u32> {
        let needle = self.folder.path().display().to_string();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
                let command = std::fs::read(entry.path().join("cmdline")).ok()?;
                String::from_utf8_lossy(&command)
                    .contains(&needle)
                    .then_some(pid)
            })
            .collect()
    }

    /// Its kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.styr(&["delete", "--yes"]) {
            eprintln!("the benchmark's cluster was not deleted: {error:#}");
        }
    }
}
