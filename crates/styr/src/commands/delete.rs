//! `styr delete`.

use std::io::{IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, bail};

use super::down;
use crate::config::ClusterArgs;
use crate::output::say;
use crate::{kubeconfig, preflight};

/// Delete the cluster and everything in it.
#[derive(clap::Args)]
pub struct Delete {
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

impl Delete {
    /// Stops the cluster and removes its folder and kubeconfig context.
    ///
    /// # Errors
    /// When there is no such cluster, the user does not agree, or something cannot be removed.
    pub fn run(self, args: &ClusterArgs) -> anyhow::Result<()> {
        preflight::root()?;
        let cluster = args.load()?;
        if !self.yes && !agreed(&cluster.name)? {
            say!("Nothing was deleted.");
            return Ok(());
        }
        down::stop(&cluster, down::Pods::Stop)?;
        unmount_below(&cluster.dir())?;
        let dir = cluster.dir();
        std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
        cluster.release();
        kubeconfig::remove(&kubeconfig::path()?, &cluster.name)?;
        say!("Cluster {:?} is deleted.", cluster.name);
        Ok(())
    }
}

fn agreed(name: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("deleting cluster {name:?} removes all its data; confirm with --yes");
    }
    print!("Delete cluster {name:?} with all its data? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Takes away what is still mounted below `dir`, deepest first, so that removing the folder can
/// never reach through a mount into a user's data.
fn unmount_below(dir: &Path) -> anyhow::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut points: Vec<String> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        // The kernel writes a space in a path as an octal escape.
        .map(|point| point.replace("\\040", " "))
        .filter(|point| Path::new(point).starts_with(dir))
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    for point in points {
        nix::mount::umount2(point.as_str(), nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("unmounting {point}"))?;
    }
    Ok(())
}
