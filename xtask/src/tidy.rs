//! `cargo xtask tidy`: rules of the code base that no compiler checks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::run::{cargo, output, workspace};

/// Longest source file, in lines.
const MAX_FILE_LINES: usize = 700;

/// Which of our crates each of our crates may use. `styr`, `testkit` and `xtask` see everything.
const ARROWS: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("codec", &["api"]),
    ("cel", &["api"]),
    ("kinds", &["api", "cel"]),
    ("store", &[]),
    ("streams", &[]),
    ("net", &[]),
    ("oci", &["streams"]),
    ("apiserver", &["api", "codec", "kinds", "store", "streams"]),
    ("client", &["api", "codec"]),
    ("controllers", &["api", "client", "placement"]),
    ("placement", &["api"]),
    ("scheduler", &["api", "cel", "client", "placement"]),
    (
        "kubelet",
        &[
            "api",
            "client",
            "kinds",
            "net",
            "oci",
            "placement",
            "streams",
        ],
    ),
    ("sim", &["api", "client"]),
    ("load", &["sim"]),
    ("traffic", &["api", "client", "net"]),
];

/// Crates that may use any other.
const ROOTS: &[&str] = &["styr", "testkit", "xtask"];

/// Check what compilers do not.
#[derive(clap::Args)]
pub struct Tidy {}

impl Tidy {
    /// Prints every breach.
    ///
    /// # Errors
    /// When there is one.
    pub fn run(self) -> anyhow::Result<()> {
        let mut breaches = arrows()?;
        breaches.extend(crate::conformance::breaches()?);
        for file in &sources(&["crates", "fuzz/src", "fuzz/fuzz_targets", "xtask"])? {
            let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            breaches.extend(file_breaches(file, &text));
        }
        for breach in &breaches {
            eprintln!("{breach}");
        }
        if !breaches.is_empty() {
            bail!("{} breaches", breaches.len());
        }
        Ok(())
    }
}

fn arrows() -> anyhow::Result<Vec<String>> {
    let text = output(&mut cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
    ]))?;
    let metadata: Value = serde_json::from_str(&text)?;
    let mut uses: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let ours = package["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
            // What tests use is free; only what ships is bound.
            .filter(|d| d["path"].is_string() && d["kind"] != "dev")
            .filter_map(|d| d["name"].as_str().map(str::to_owned));
        uses.insert(name.to_owned(), ours.collect());
    }
    Ok(arrow_breaches(&uses))
}

fn arrow_breaches(uses: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut breaches = Vec::new();
    for (name, used) in uses {
        if ROOTS.contains(&name.as_str()) {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(n, _)| n == name) else {
            breaches.push(format!("crate {name} has no line in the table of arrows"));
            continue;
        };
        for other in used.iter().filter(|u| !allowed.contains(&u.as_str())) {
            breaches.push(format!("crate {name} must not use {other}"));
        }
    }
    breaches
}

/// Every Rust source below these folders of the workspace.
///
/// # Errors
/// When a folder cannot be read.
pub fn sources(folders: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for folder in folders {
        collect(&workspace().join(folder), &mut files)?;
    }
    Ok(files)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn file_breaches(file: &Path, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_FILE_LINES {
        breaches.push(format!("{}: {lines} lines; split it", file.display()));
    }
    // Spelt in two parts so that this file does not breach its own rule.
    let marks = [
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("todo", "!("),
        concat!("dbg", "!("),
    ];
    for (number, line) in text.lines().enumerate() {
        for mark in marks.iter().filter(|m| line.contains(**m)) {
            breaches.push(format!("{}:{}: {mark}", file.display(), number + 1));
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrow_against_the_table_is_a_breach() {
        let uses = BTreeMap::from([
            ("oci".to_owned(), vec!["api".to_owned()]),
            ("styr".to_owned(), vec!["store".to_owned()]),
            ("new".to_owned(), vec![]),
        ]);
        let breaches = arrow_breaches(&uses);
        assert_eq!(breaches.len(), 2, "{breaches:?}");
    }

    #[test]
    fn long_files_and_left_over_marks_are_breaches() {
        let long = "x\n".repeat(MAX_FILE_LINES + 1);
        assert_eq!(file_breaches(Path::new("a.rs"), &long).len(), 1);
        let mark = concat!("todo", "!()");
        assert_eq!(file_breaches(Path::new("a.rs"), mark).len(), 1);
        assert!(file_breaches(Path::new("a.rs"), "fine").is_empty());
    }
}
