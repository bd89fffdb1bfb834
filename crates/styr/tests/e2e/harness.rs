//! One cluster for one test, and stock kubectl to judge it by.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::leaks::Traces;

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(100);

static NUMBER: AtomicU32 = AtomicU32::new(0);
/// Clusters start one after the other: two that look for free ports at once find the same.
static STARTING: Mutex<()> = Mutex::new(());

/// A cluster of its own: name, folder and kubeconfig.
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Folder of all its data.
    pub folder: tempfile::TempDir,
}

impl Cluster {
    /// A cluster that does not exist yet.
    pub fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        Self {
            name: format!("t{}-{number}", std::process::id()),
            folder: tempfile::Builder::new()
                .prefix("styr-test-")
                .tempdir()
                .expect("a folder for the test"),
        }
    }

    /// A cluster that is ready, with these images on its node.
    pub fn up(images: &[&str]) -> Self {
        let cluster = Self::new();
        cluster.styr_ok(&["up"]);
        cluster.load(images);
        cluster
    }

    /// Loads archives made by `cargo xtask images`.
    pub fn load(&self, images: &[&str]) {
        for image in images {
            let archive = image_archive(image);
            self.styr_ok(&["image", "load", &archive.display().to_string()]);
        }
    }

    /// Folder of all clusters of this test.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Folder of this cluster.
    pub fn dir(&self) -> PathBuf {
        self.data_dir().join(&self.name)
    }

    /// The test's own kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// A `styr` command about this cluster.
    pub fn styr_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_styr"));
        command
            .args(arguments)
            .args(["--name", &self.name, "--data-dir"])
            .arg(self.data_dir())
            .env("KUBECONFIG", self.kubeconfig())
            .env_remove("SUDO_UID")
            .stdin(Stdio::null());
        command
    }

    /// Runs `styr`.
    pub fn styr(&self, arguments: &[&str]) -> Output {
        let starts = arguments.first() == Some(&"up");
        let _turn = starts.then(|| STARTING.lock().unwrap_or_else(PoisonError::into_inner));
        let output = self.styr_command(arguments).output();
        output.expect("styr can be started")
    }

    /// Runs `styr`, which must succeed; gives what it prints.
    pub fn styr_ok(&self, arguments: &[&str]) -> String {
        let output = self.styr(arguments);
        if !output.status.success() {
            self.print_log();
        }
        success("styr", arguments, output)
    }

    /// A command of this kubectl about this cluster.
    pub fn kubectl_command(&self, kubectl: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(kubectl);
        command
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.folder.path())
            .current_dir(self.folder.path());
        command
    }

    /// Runs the kubectl on the PATH; gives its output, whatever its end.
    pub fn kubectl_any(&self, arguments: &[&str]) -> Output {
        let kubectl = kubectl().expect("the test asked for kubectl before");
        let mut command = self.kubectl_command(&kubectl, arguments);
        command
            .stdin(Stdio::null())
            .output()
            .expect("kubectl can be started")
    }

    /// Runs the kubectl on the PATH, which must succeed; gives what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.kubectl_any(arguments);
        if !output.status.success() {
            self.print_log();
        }
        success("kubectl", arguments, output)
    }

    /// Writes `manifest` to a file and applies it; gives what kubectl prints.
    pub fn apply(&self, manifest: &str) -> String {
        let path = self.folder.path().join("manifest.yaml");
        std::fs::write(&path, manifest).expect("writing the manifest");
        self.kubectl(&["apply", "-f", &path.display().to_string()])
    }

    /// Waits until kubectl prints something that `good` accepts.
    pub fn eventually(
        &self,
        patience: Duration,
        arguments: &[&str],
        good: impl Fn(&str) -> bool,
    ) -> String {
        let mut last = String::new();
        let reached = poll(patience, || {
            let output = self.kubectl_any(arguments);
            last = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            good(&last)
        });
        if !reached {
            self.explain();
            panic!("kubectl {arguments:?} never became right; last:\n{last}");
        }
        last
    }

    /// Prints what a reader needs to understand a failure.
    pub fn explain(&self) {
        for arguments in [
            &["get", "all,events", "-A", "-o", "wide"][..],
            &["describe", "pods"][..],
        ] {
            let output = self.kubectl_any(arguments);
            eprintln!("{}", String::from_utf8_lossy(&output.stdout));
        }
        self.print_log();
    }

    fn print_log(&self) {
        let log = std::fs::read_to_string(self.dir().join("logs/server.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.len().saturating_sub(60);
        eprintln!("--- server.log\n{}", lines[tail..].join("\n"));
    }

    /// Process id of the server.
    pub fn server_pid(&self) -> i32 {
        let text = std::fs::read_to_string(self.dir().join("run/server.lock"));
        text.expect("a running server")
            .trim()
            .parse()
            .expect("a process id")
    }

    /// Name of the cluster's bridge, once it has been made.
    fn bridge(&self) -> Option<String> {
        let text = std::fs::read(self.dir().join("config.json")).ok()?;
        let choices: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(format!("styr{}", choices["index"].as_u64()?))
    }
}

impl Drop for Cluster {
    /// Deletes the cluster; nothing of it may be left.
    fn drop(&mut self) {
        let Some(bridge) = self.bridge() else { return };
        let output = self.styr(&["delete", "--yes"]);
        let deleted = output.status.success();
        let gone = poll(Duration::from_secs(5), || {
            Traces::of(&self.name, &self.data_dir(), &bridge).is_empty()
        });
        if std::thread::panicking() {
            return;
        }
        assert!(
            deleted,
            "delete: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let traces = Traces::of(&self.name, &self.data_dir(), &bridge);
        assert!(gone, "left behind: {traces:#?}");
    }
}

fn success(program: &str, arguments: &[&str], output: Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{stdout}{stderr}",
        output.status
    );
    stdout
}

/// The columns of a table, one blank apart.
pub fn words(table: &str) -> String {
    table.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Looks until `condition` holds or `patience` is over; gives whether it held.
pub fn poll(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(LOOK);
    }
}

/// Where this machine reaches the first port of a Service of type NodePort.
pub fn node_port(cluster: &Cluster, service: &str) -> SocketAddr {
    let path = "jsonpath={.spec.ports[0].nodePort}";
    let port = cluster.kubectl(&["get", "service", service, "-o", path]);
    let port = port.parse().expect("a port");
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// One GET on a connection of its own; gives the whole answer, which must be a 200.
pub fn fetch(address: SocketAddr, path: &str) -> std::io::Result<String> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split(' ').nth(1) {
        Some("200") => Ok(answer),
        _ => Err(std::io::Error::other(answer)),
    }
}

/// The stock kubectl on the PATH.
pub fn kubectl() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join("kubectl"))
        .find(|file| file.exists())
}

/// Whether stock kubectl is there; says that the test is left out where it is not.
pub fn has_kubectl(test: &str) -> bool {
    let there = kubectl().is_some();
    if !there {
        eprintln!("{test}: left out, there is no kubectl on this machine");
    }
    there
}

/// Every stock kubectl of a named version beside the one on the PATH.
pub fn kubectl_versions() -> Vec<PathBuf> {
    let Some(kubectl) = kubectl().and_then(|k| std::fs::canonicalize(k).ok()) else {
        return Vec::new();
    };
    let folder = kubectl.parent().unwrap_or(Path::new("/"));
    (27..=33)
        .map(|minor| folder.join(format!("kubectl.1.{minor}")))
        .filter(|file| file.exists())
        .collect()
}

/// An archive made by `cargo xtask images`.
pub fn image_archive(name: &str) -> PathBuf {
    let folder = std::env::var_os("STYR_IMAGES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/images"),
        PathBuf::from,
    );
    let path = folder.join(format!("{name}.tar"));
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask images`",
        path.display()
    );
    path
}
