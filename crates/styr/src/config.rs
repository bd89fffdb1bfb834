//! Where a cluster lives and what it has chosen: its folder, ports, address ranges and names.
//!
//! The choices are made once, at the first `up`, under a lock of the data folder, so that clusters
//! made at the same moment never choose the same; afterwards `config.json` is only read.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::files;

/// Folder all clusters live in when `--data-dir` is not given.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/styr";
/// Cluster name when `--name` is not given.
pub const DEFAULT_NAME: &str = "styr";
/// Folder that says which cluster has which number on this host.
const CLAIMS: &str = "/run/styr";
/// Domain of cluster DNS.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// Port of the API server of the first cluster; others take the next free one.
const FIRST_API_PORT: u16 = 6443;
/// How many ports after the first are tried.
const API_PORT_ATTEMPTS: u16 = 200;
/// Most clusters one host can hold: one second octet pair each from 10.42.
const MAX_CLUSTERS: u8 = 100;
/// Longest cluster name; bridge, table and cgroup names derive from it.
const MAX_NAME_LENGTH: usize = 40;
/// Port of the node API on the node's own address.
pub const KUBELET_PORT: u16 = 10250;
/// Port of the cluster's DNS server on the node's own address.
pub const DNS_PORT: u16 = 10053;

/// Why a cluster's configuration cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The name cannot be used.
    #[error(
        "--name {0:?} is not usable: use at most {MAX_NAME_LENGTH} lower-case letters, digits and '-', starting with a letter"
    )]
    BadName(String),
    /// There is no such cluster.
    #[error("there is no cluster {name:?} in {data_dir}; start one with `styr up{flags}`")]
    NoCluster {
        /// The name asked for.
        name: String,
        /// Where it was looked for.
        data_dir: PathBuf,
        /// The flags `up` needs to make it.
        flags: String,
    },
    /// A file is not readable as configuration.
    #[error("{path} is damaged ({reason}); restore it, or start afresh with `styr delete`")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Another cluster took this one's bridge and address ranges while it was stopped.
    #[error("cluster {0} uses the bridge and address ranges of this one; delete one of them")]
    Claimed(PathBuf),
    /// No port or address range is free.
    #[error("no free {0} on this machine; delete a cluster first (`styr list`)")]
    Exhausted(&'static str),
    /// The host's network cannot be looked at.
    #[error("looking at the host's network: {0}")]
    Network(#[from] net::Error),
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
}

/// What a cluster has chosen; stored as `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Choices {
    /// Number of the cluster on this host; bridge name and address ranges follow from it.
    pub index: u8,
    /// Port of the API server on loopback.
    pub api_port: u16,
    /// Addresses of all pods.
    pub pod_cidr: Ipv4Net,
    /// Addresses of this node's pods.
    pub node_cidr: Ipv4Net,
    /// Addresses of services.
    pub service_cidr: Ipv4Net,
    /// Name of the node.
    pub node_name: String,
    /// File that configures the scheduler; none: its defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler_config: Option<PathBuf>,
}

/// One cluster: its name, folder and choices.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Name, also of the kubeconfig context.
    pub name: String,
    /// Folder all clusters live in.
    pub data_dir: PathBuf,
    /// What was chosen at the first `up`.
    pub choices: Choices,
}

/// Which cluster a command is about.
#[derive(Clone, Debug, clap::Args)]
pub struct ClusterArgs {
    /// Name of the cluster.
    #[arg(long, global = true, default_value = DEFAULT_NAME, env = "STYR_NAME")]
    pub name: String,
    /// Folder that holds all clusters.
    #[arg(long, global = true, default_value = DEFAULT_DATA_DIR, env = "STYR_DATA_DIR", value_name = "DIR")]
    pub data_dir: PathBuf,
}

impl ClusterArgs {
    /// The flags that name this cluster on a command line, with a leading space; empty for the
    /// default one.
    pub fn flags(&self) -> String {
        let mut flags = String::new();
        if self.name != DEFAULT_NAME {
            flags += &format!(" --name {}", self.name);
        }
        if self.data_dir != Path::new(DEFAULT_DATA_DIR) {
            flags += &format!(" --data-dir {}", self.data_dir.display());
        }
        flags
    }

    /// The cluster's folder.
    pub fn dir(&self) -> PathBuf {
        self.data_dir.join(&self.name)
    }

    /// Reads an existing cluster.
    ///
    /// # Errors
    /// When there is none or its configuration is damaged.
    pub fn load(&self) -> Result<Cluster, ConfigError> {
        check_name(&self.name)?;
        let path = self.dir().join("config.json");
        match read(&path)? {
            Some(choices) => Ok(Cluster {
                name: self.name.clone(),
                data_dir: self.absolute()?,
                choices,
            }),
            None => Err(ConfigError::NoCluster {
                name: self.name.clone(),
                data_dir: self.data_dir.clone(),
                flags: self.flags(),
            }),
        }
    }

    fn absolute(&self) -> Result<PathBuf, ConfigError> {
        std::path::absolute(&self.data_dir).map_err(io(&self.data_dir))
    }

    /// Reads the cluster, or makes its folder and choices when it is new. Nothing of it is kept,
    /// neither a new cluster nor a wish, unless `approve` finds that it can be started so.
    ///
    /// # Errors
    /// When the name is bad, nothing is free, the file system refuses, or `approve` does.
    pub fn load_or_create(
        &self,
        wishes: &Wishes,
        approve: impl FnOnce(&Cluster) -> anyhow::Result<()>,
    ) -> anyhow::Result<Cluster> {
        check_name(&self.name)?;
        let dir = self.dir();
        let path = dir.join("config.json");
        fs::create_dir_all(&dir).map_err(io(&dir))?;
        let _lock = self.lock_all()?;
        let existing = read(&path)?;
        let mut choices = match &existing {
            Some(choices) => choices.clone(),
            None => choose(&self.data_dir, &dir, wishes)?,
        };
        if let Some(port) = wishes.api_port {
            choices.api_port = port;
        }
        if let Some(file) = &wishes.scheduler_config {
            choices.scheduler_config = wished_file(file)?;
        }
        let cluster = Cluster {
            name: self.name.clone(),
            data_dir: self.absolute()?,
            choices,
        };
        if let Err(refusal) = approve(&cluster) {
            if existing.is_none() {
                cluster.release();
                // Only a folder with nothing in it is ours to take away.
                let _ = fs::remove_dir(&dir);
            }
            return Err(refusal);
        }
        claim(cluster.choices.index, &dir)?;
        let text = serde_json::to_vec_pretty(&cluster.choices)?;
        files::replace(&path, &text, 0o600).map_err(io(&path))?;
        Ok(cluster)
    }

    /// Keeps other processes from choosing for a cluster in the same data folder.
    fn lock_all(&self) -> Result<File, ConfigError> {
        let path = self.data_dir.join(".lock");
        let lock = files::open_lock(&path).map_err(io(&path))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| io(&path)(e.into()))?;
        Ok(lock)
    }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> ConfigError {
    let path = path.to_owned();
    move |source| ConfigError::Io {
        path: path.clone(),
        source,
    }
}

/// What the user asked for instead of an automatic choice.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Port of the API server.
    pub api_port: Option<u16>,
    /// File that configures the scheduler; empty: its defaults.
    pub scheduler_config: Option<PathBuf>,
}

impl Cluster {
    /// The cluster's folder.
    pub fn dir(&self) -> PathBuf {
        self.data_dir.join(&self.name)
    }

    /// A path below the cluster's folder.
    pub fn path(&self, below: &str) -> PathBuf {
        self.dir().join(below)
    }

    /// Name of the bridge the pods hang on.
    pub fn bridge(&self) -> String {
        format!("styr{}", self.choices.index)
    }

    /// Name of the nftables table.
    pub fn table(&self) -> String {
        format!("styr-{}-{}", self.name, self.choices.index)
    }

    /// Parent of all cgroups of the cluster's pods.
    pub fn cgroup(&self) -> String {
        format!("/styr-{}-{}", self.name, self.choices.index)
    }

    /// Gives up the cluster's number on this host, once nothing uses what goes with it.
    pub fn release(&self) {
        // A claim of a removed folder is void anyway, and the folder of claims may hold others.
        let _ = fs::remove_file(Path::new(CLAIMS).join(self.choices.index.to_string()));
        let _ = fs::remove_dir(CLAIMS);
    }

    /// The node's own address: the first of its pod range, on the bridge.
    pub fn node_ip(&self) -> Ipv4Addr {
        nth(self.choices.node_cidr, 1)
    }

    /// The node's address with the length of its pod range.
    pub fn gateway(&self) -> Ipv4Net {
        Ipv4Net::new_assert(self.node_ip(), self.choices.node_cidr.prefix_len())
    }

    /// Address of the `kubernetes` service.
    pub fn kubernetes_ip(&self) -> Ipv4Addr {
        nth(self.choices.service_cidr, 1)
    }

    /// Address of the `kube-dns` service.
    pub fn dns_ip(&self) -> Ipv4Addr {
        nth(self.choices.service_cidr, 10)
    }

    /// Where clients on this machine reach the API server.
    pub fn api_address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.choices.api_port)
    }

    /// Where pods reach the API server.
    pub fn api_address_for_pods(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.node_ip(), FIRST_API_PORT)
    }

    /// The flags that name this cluster on a command line, with a leading space.
    pub fn flags(&self) -> String {
        ClusterArgs {
            name: self.name.clone(),
            data_dir: self.data_dir.clone(),
        }
        .flags()
    }
}

/// The file by its whole path, as the server does not run where the user is; empty: none.
fn wished_file(file: &Path) -> Result<Option<PathBuf>, ConfigError> {
    if file.as_os_str().is_empty() {
        return Ok(None);
    }
    Ok(Some(std::path::absolute(file).map_err(io(file))?))
}

fn nth(net: Ipv4Net, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net.network()) + n)
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let fine = name.len() <= MAX_NAME_LENGTH
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if fine {
        Ok(())
    } else {
        Err(ConfigError::BadName(name.to_owned()))
    }
}

fn read(path: &Path) -> Result<Option<Choices>, ConfigError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(path)(e)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| ConfigError::Damaged {
            path: path.to_owned(),
            reason: e.to_string(),
        })
}

/// Names of the clusters in `data_dir`, sorted.
///
/// # Errors
/// When the folder cannot be read.
pub fn names(data_dir: &Path) -> Result<Vec<String>, ConfigError> {
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io(data_dir)(e)),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|e| e.path().join("config.json").exists())
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

fn choose(data_dir: &Path, dir: &Path, wishes: &Wishes) -> Result<Choices, ConfigError> {
    let mut others = Vec::new();
    for name in names(data_dir)? {
        others.extend(read(&data_dir.join(name).join("config.json"))?);
    }
    let used = net::host::used_ranges()?;
    let taken = |index: u8| {
        let (pods, services) = ranges(index);
        Path::new(&format!("/sys/class/net/styr{index}")).exists()
            || others.iter().any(|o| o.index == index)
            || used
                .iter()
                .any(|u| net::host::overlap(u, &pods) || net::host::overlap(u, &services))
    };
    let index = (0..MAX_CLUSTERS)
        .find(|i| !taken(*i) && claim(*i, dir).is_ok())
        .ok_or(ConfigError::Exhausted("address range in 10.42.0.0/8"))?;
    let api_port = match wishes.api_port {
        Some(port) => port,
        None => (FIRST_API_PORT..FIRST_API_PORT + API_PORT_ATTEMPTS)
            .find(|port| {
                others.iter().all(|o| o.api_port != *port)
                    && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()
            })
            .ok_or(ConfigError::Exhausted("port for the API server"))?,
    };
    let (pod_cidr, service_cidr) = ranges(index);
    Ok(Choices {
        index,
        api_port,
        pod_cidr,
        node_cidr: Ipv4Net::new_assert(pod_cidr.network(), 24),
        service_cidr,
        node_name: node_name(),
        scheduler_config: None,
    })
}

/// Notes that the number belongs to the cluster in `dir`: the bridge, address ranges, nftables table
/// and cgroups that go with it are the host's, whatever data folder a cluster is in.
fn claim(index: u8, dir: &Path) -> Result<(), ConfigError> {
    let path = Path::new(CLAIMS).join(index.to_string());
    let io = io(&path);
    let dir = std::path::absolute(dir).map_err(&io)?;
    fs::create_dir_all(CLAIMS).map_err(&io)?;
    let made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path);
    match made {
        Ok(mut file) => file.write_all(dir.as_os_str().as_bytes()).map_err(&io),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            let owner = PathBuf::from(OsString::from_vec(fs::read(&path).map_err(&io)?));
            // A cluster whose folder was removed by hand claims nothing any more.
            if owner == dir || !owner.exists() {
                files::replace(&path, dir.as_os_str().as_bytes(), 0o600).map_err(&io)
            } else {
                Err(ConfigError::Claimed(owner))
            }
        }
        Err(e) => Err(io(e)),
    }
}

/// Pod and service ranges of the cluster with this number.
fn ranges(index: u8) -> (Ipv4Net, Ipv4Net) {
    let second = 42 + 2 * index;
    let net = |octet| Ipv4Net::new_assert(Ipv4Addr::new(10, octet, 0, 0), 16);
    (net(second), net(second + 1))
}

/// The host's name as a node name: lower case, only what a DNS subdomain may hold.
fn node_name() -> String {
    let host = rustix::system::uname();
    let mut name: String = host
        .nodename()
        .to_string_lossy()
        .to_lowercase()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .collect();
    name = name.trim_matches(['-', '.']).to_owned();
    if name.is_empty() {
        "node".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_anything_is_made_of_them() {
        for good in ["styr", "a", "dev-2"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a/b", "..", "1a", &"a".repeat(41)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_second_cluster_shares_no_port_and_no_range_with_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let args = |name: &str| ClusterArgs {
            name: name.into(),
            data_dir: dir.path().into(),
        };
        let a = args("a")
            .load_or_create(&Wishes::default(), |_| Ok(()))
            .unwrap();
        let b = args("b")
            .load_or_create(&Wishes::default(), |_| Ok(()))
            .unwrap();
        assert_ne!(a.choices.api_port, b.choices.api_port);
        assert_ne!(a.choices.pod_cidr, b.choices.pod_cidr);
        assert_ne!(a.bridge(), b.bridge());
        let again = args("a")
            .load_or_create(&Wishes::default(), |_| Ok(()))
            .unwrap();
        assert_eq!(again.choices.api_port, a.choices.api_port);
        let elsewhere = tempfile::tempdir().unwrap();
        let same_name = ClusterArgs {
            name: "a".into(),
            data_dir: elsewhere.path().into(),
        };
        let c = same_name
            .load_or_create(&Wishes::default(), |_| Ok(()))
            .unwrap();
        assert_ne!(
            (a.bridge(), a.table(), a.cgroup()),
            (c.bridge(), c.table(), c.cgroup())
        );
        for cluster in [&a, &b, &c] {
            cluster.release();
        }
        assert!(matches!(
            args("c").load(),
            Err(ConfigError::NoCluster { .. })
        ));
    }

    #[test]
    fn what_cannot_be_started_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let args = ClusterArgs {
            name: "a".into(),
            data_dir: dir.path().into(),
        };
        let refused = |wishes: &Wishes| args.load_or_create(wishes, |_| anyhow::bail!("no"));
        assert!(refused(&Wishes::default()).is_err());
        assert!(!args.dir().exists());
        let a = args.load_or_create(&Wishes::default(), |_| Ok(())).unwrap();
        let wish = Wishes {
            api_port: Some(22),
            scheduler_config: Some("nowhere".into()),
        };
        assert!(refused(&wish).is_err());
        let kept = args.load().unwrap().choices;
        assert_eq!(kept.api_port, a.choices.api_port);
        assert_eq!(kept.scheduler_config, None);
        a.release();
    }
}
