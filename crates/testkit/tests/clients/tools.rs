//! Running other programs, for a while only.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use testkit::Served;
use tokio::process::Command;

/// How long a program may take; installing on a busy machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Versions that are asked for by name.
const KUBECTL_VERSIONS: [&str; 7] = ["1.27", "1.28", "1.29", "1.30", "1.31", "1.32", "1.33"];

/// The program of that name on the PATH.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut programs = std::env::split_paths(&path).map(|folder| folder.join(name));
    programs.find(|file| file.is_file())
}

/// Every released kubectl on this machine, oldest first: those called by their version, on the PATH or
/// beside the real file of the one that is called `kubectl`, which only chooses among them then.
pub fn kubectls() -> Vec<PathBuf> {
    let plain = find("kubectl");
    let real = plain.as_ref().and_then(|file| file.canonicalize().ok());
    let beside = |name: &str| real.as_ref().map(|file| file.with_file_name(name));
    let versioned = KUBECTL_VERSIONS.map(|version| format!("kubectl.{version}"));
    let known = |name: &String| find(name).or_else(|| beside(name).filter(|file| file.is_file()));
    let all: Vec<PathBuf> = versioned.iter().filter_map(known).collect();
    if all.is_empty() {
        return plain.into_iter().collect();
    }
    all
}

/// Says why a test is left out.
pub fn left_out(test: &str, why: &str) {
    eprintln!("{test}: left out, {why}");
}

/// Folder of what is installed for clients.
pub fn cache(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("clients")
        .join(name);
    std::fs::create_dir_all(&folder).expect("a folder below the build folder");
    folder
}

/// Folder of the scripts of a client.
pub fn script(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(path)
}

/// Runs to its end.
pub async fn run(command: Command) -> Output {
    run_within(PATIENCE, command).await
}

/// Runs to its end, which comes before that time is over.
pub async fn run_within(patience: Duration, mut command: Command) -> Output {
    let text = format!("{:?}", command.as_std());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(patience, command.output());
    let output = output
        .await
        .unwrap_or_else(|_| panic!("{text} does not end"));
    output.unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Runs what must succeed; gives what it prints, errors last.
pub async fn succeed(command: Command) -> String {
    succeed_within(PATIENCE, command).await
}

/// Runs what must succeed before that time is over.
pub async fn succeed_within(patience: Duration, command: Command) -> String {
    let text = format!("{:?}", command.as_std());
    let output = run_within(patience, command).await;
    let said = said(&output);
    assert!(output.status.success(), "{text}: {}\n{said}", output.status);
    said
}

pub fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// A command that finds the served cluster.
pub fn command(program: &Path, served: &Served) -> Command {
    let mut command = Command::new(program);
    command
        .env("KUBECONFIG", served.kubeconfig())
        .env("HOME", served.folder())
        .current_dir(served.folder());
    command
}
