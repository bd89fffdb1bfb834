//! Running other programs, with their failure as an error.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
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
