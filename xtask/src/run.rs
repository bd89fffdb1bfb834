//! Running other programs, with their failure as an error.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The folder of the workspace that the program is called in: not of the one it was built in, as several work trees
/// may share a build folder.
pub fn workspace() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    let is_root = |folder: &&Path| {
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml"));
        manifest.is_ok_and(|text| text.lines().any(|line| line == "[workspace]"))
    };
    let root = here.ancestors().find(is_root);
    root.map_or_else(|| here.clone(), PathBuf::from)
}

/// A `cargo` command in the workspace, of the toolchain that runs this program.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(workspace());
    command
}

/// Runs `command` with this program's output and waits.
///
/// # Errors
/// When it cannot be started or does not succeed.
pub fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let text = format!("{command:?}");
    let status = command.status().with_context(|| text.clone())?;
    if !status.success() {
        bail!("{text}: {status}");
    }
    Ok(())
}

/// Runs `command` and gives what it prints.
///
/// # Errors
/// As [`succeed`].
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let text = format!("{command:?}");
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| text.clone())?;
    if !output.status.success() {
        bail!("{text}: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}
