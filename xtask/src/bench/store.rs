//! Durable commits a second, beside etcd on the same disk.

use std::process::Command;

use anyhow::Context;

use super::{Figure, etcd};
use crate::run::{cargo, output};

/// Seconds of each run.
pub const SECONDS: u64 = 5;
/// Writers at once.
pub const WRITERS: usize = 128;
/// Bytes of a value.
pub const VALUE_BYTES: usize = 2048;

/// 128 writers of 2 KB, each waiting for its own durable commit.
pub fn run(runs: usize) -> anyhow::Result<Vec<Figure>> {
    let folder = tempfile::Builder::new().prefix("styr-bench-").tempdir()?;
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..runs.min(3) {
        ours.push(commits(folder.path())?);
        if let Some(value) = etcd::puts_per_second(folder.path())? {
            theirs.push(value);
        }
    }
    theirs.sort_by(f64::total_cmp);
    let mut figure = Figure::new("store_commits", "1/s", ours);
    match theirs.get(theirs.len() / 2) {
        Some(value) => figure = figure.beside("etcd", *value),
        None => eprintln!("store: etcd is not installed (Debian: etcd-server); no ratio"),
    }
    Ok(vec![figure])
}

fn commits(folder: &std::path::Path) -> anyhow::Result<f64> {
    let arguments = [
        "run",
        "--release",
        "--quiet",
        "--package",
        "store",
        "--example",
        "commit_bench",
        "--",
    ];
    let mut command: Command = cargo(&arguments);
    command
        .arg(folder)
        .args([SECONDS.to_string(), WRITERS.to_string()]);
    let printed = output(&mut command)?;
    printed
        .lines()
        .find_map(|line| line.strip_prefix("commits "))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .context("the benchmark of the store prints no commits")
}
