//! `styr up`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::config::{Cluster, ClusterArgs, Wishes};
use crate::control::{self, Report};
use crate::output::say;
use crate::pki::Pki;
use crate::progress::{Steps, took_text};
use crate::{access, kubeconfig, lock, preflight, scheduling};

/// How often a server that has just been started is tried.
const CONNECT_RETRY: Duration = Duration::from_millis(2);
/// How long a server may take until it answers at its control socket.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
/// How long a server that does not answer may take to be gone.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// How much of the log is searched for the last error.
const LOG_TAIL_BYTES: u64 = 16 << 10;

/// Start a cluster on this machine and wait until it is ready.
#[derive(clap::Args)]
pub struct Up {
    /// Port of the API server on this machine [default: 6443, or the next free one]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    api_port: Option<u16>,
    /// KubeSchedulerConfiguration of the scheduler, kept for later starts; "" for the defaults
    #[arg(long, value_name = "FILE")]
    scheduler_config: Option<PathBuf>,
}

impl Up {
    /// Starts the cluster unless it runs, waits until it is ready and writes the kubeconfig.
    ///
    /// # Errors
    /// When something the cluster needs is not there.
    pub fn run(self, args: &ClusterArgs) -> anyhow::Result<()> {
        preflight::root()?;
        preflight::kernel()?;
        let wishes = Wishes {
            api_port: self.api_port,
            scheduler_config: self.scheduler_config.clone(),
        };
        let began = Instant::now();
        let running = self.join_running(args)?;
        let cluster = match running {
            Some(ref cluster) => cluster.clone(),
            None => {
                let cluster = args.load_or_create(&wishes, |cluster| {
                    scheduling::configuration(cluster)?;
                    preflight::space(&cluster.dir())?;
                    Ok(preflight::port(cluster)?)
                })?;
                start(&cluster)?
            }
        };
        let running = running.is_some();
        let path = write_kubeconfig(&cluster)?;
        tell(&cluster, args, running, began, &path);
        Ok(())
    }
}

impl Up {
    /// Waits until a server that runs already is ready; `None` when none runs, or the one that
    /// did was just ending.
    fn join_running(&self, args: &ClusterArgs) -> anyhow::Result<Option<Cluster>> {
        let Ok(cluster) = args.load() else {
            return Ok(None);
        };
        let lock = cluster.path("run/server.lock");
        if lock::holder(&lock)?.is_none() {
            return Ok(None);
        }
        if self.api_port.is_some_and(|p| p != cluster.choices.api_port) {
            bail!(
                "the cluster runs on port {}; to change it, `styr down{}` first",
                cluster.choices.api_port,
                args.flags(),
            );
        }
        if self.scheduler_config.is_some() {
            bail!(
                "the cluster runs; to change the scheduler's configuration, `styr down --keep-pods{}` first",
                args.flags(),
            );
        }
        match wait(&cluster, None, true) {
            Ok(()) => Ok(Some(cluster)),
            Err(_) if gone(&lock)? => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether the lock becomes free within a moment: its holder was ending.
fn gone(lock: &Path) -> anyhow::Result<bool> {
    let deadline = Instant::now() + END_PATIENCE;
    while lock::holder(lock)?.is_some() {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(CONNECT_RETRY);
    }
    Ok(true)
}

fn start(cluster: &Cluster) -> anyhow::Result<Cluster> {
    let mut child = spawn(cluster)?;
    wait(cluster, Some(&mut child), false)?;
    Ok(cluster.clone())
}

fn spawn(cluster: &Cluster) -> anyhow::Result<Child> {
    let folder = cluster.path("logs");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let log = open_log(cluster)?;
    Command::new(std::env::current_exe().context("finding this program")?)
        .args(["server", "--detach", "--name", &cluster.name, "--data-dir"])
        .arg(&cluster.data_dir)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting the server")
}

fn open_log(cluster: &Cluster) -> anyhow::Result<File> {
    let path = cluster.path("logs/server.log");
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| path.display().to_string())
}

/// Shows the server's steps until it is ready.
fn wait(cluster: &Cluster, child: Option<&mut Child>, running: bool) -> anyhow::Result<()> {
    let reports = connect(cluster, child)?;
    let steps = (!running).then(|| Steps::begin("starting"));
    for report in reports {
        match report {
            Report::Step { name, millis } => {
                if let Some(steps) = &steps {
                    steps.done(&name, Duration::from_millis(millis));
                }
            }
            Report::Ready { .. } => return Ok(()),
            Report::Failed { message } => {
                drop(steps);
                bail!("{message}");
            }
        }
    }
    drop(steps);
    Err(died(cluster))
}

fn connect(
    cluster: &Cluster,
    mut child: Option<&mut Child>,
) -> anyhow::Result<impl Iterator<Item = Report>> {
    let socket = cluster.path("run/control.sock");
    let deadline = Instant::now() + CONNECT_PATIENCE;
    loop {
        // A socket left by a dead server refuses; the new one replaces it.
        if let Some(reports) = control::reports(&socket) {
            return Ok(reports);
        }
        if let Some(child) = child.as_mut()
            && child.try_wait()?.is_some()
        {
            return Err(died(cluster));
        }
        if Instant::now() > deadline {
            bail!(
                "the server does not answer at {}; see {}",
                socket.display(),
                cluster.path("logs/server.log").display(),
            );
        }
        std::thread::sleep(CONNECT_RETRY);
    }
}

/// The last error in the log of a server that is gone.
fn died(cluster: &Cluster) -> anyhow::Error {
    let path = cluster.path("logs/server.log");
    let last = last_error(&path).unwrap_or_else(|| "the server ended without a word".to_owned());
    anyhow::anyhow!("{last}\nThe whole log is in {}.", path.display())
}

fn last_error(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))
        .ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    String::from_utf8_lossy(&bytes)
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("error: ").map(str::to_owned))
}

/// Writes the context of the cluster; gives the file.
fn write_kubeconfig(cluster: &Cluster) -> anyhow::Result<std::path::PathBuf> {
    let pki = Pki::open(&cluster.path("pki"))?;
    let admin = access::admin_pair(&pki)?;
    let path = kubeconfig::path()?;
    kubeconfig::merge(
        &path,
        &kubeconfig::Entry {
            name: &cluster.name,
            server: format!("https://{}", cluster.api_address()),
            ca: pki.ca_certificate(),
            user: &admin,
        },
    )?;
    Ok(path)
}

fn tell(cluster: &Cluster, args: &ClusterArgs, running: bool, began: Instant, kubeconfig: &Path) {
    let (name, flags) = (&cluster.name, args.flags());
    if running {
        say!("Cluster {name:?} is already running.");
    } else {
        say!(
            "Cluster {name:?} is ready after {}.",
            took_text(began.elapsed())
        );
    }
    say!(
        "kubectl now uses the context {name:?} ({}).",
        kubeconfig.display()
    );
    say!("");
    say!("Try next:");
    say!("  kubectl get nodes");
    say!("  kubectl create deployment web --image=nginx --port=80");
    say!("  kubectl expose deployment web --type=NodePort");
    say!("  styr status{flags}        how the cluster is");
    say!("  styr down{flags}          stop it, keeping everything");
}
