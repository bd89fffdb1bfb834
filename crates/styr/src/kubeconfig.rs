//! Adds the cluster's context to the user's kubeconfig, and takes it out again.
//!
//! The file is edited as a tree: every other cluster, user and context, and every key we do not
//! know, stays as it is. It is replaced in one step under the lock file that kubectl uses too.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::files;
use crate::pki::Pair;

/// How long another writer may hold the file.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// How often a held lock is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Why the kubeconfig cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// There is no place for it.
    #[error("neither KUBECONFIG nor HOME is set; set KUBECONFIG to the file to write")]
    NoPlace,
    /// The file is not a kubeconfig.
    #[error(
        "{path} is not a kubeconfig ({reason}); it was left as it is: mend it, or set KUBECONFIG to another file"
    )]
    NotAKubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Another program holds the lock.
    #[error("{0} exists: another program is changing the kubeconfig; if none is, remove that file")]
    Locked(PathBuf),
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
}

/// Access to one cluster.
pub struct Entry<'a> {
    /// Name of cluster, user and context.
    pub name: &'a str,
    /// URL of the API server.
    pub server: String,
    /// Authority of the server, PEM.
    pub ca: &'a str,
    /// The administrator's certificate and key.
    pub user: &'a Pair,
}

/// The file that is written: as kubectl, the first existing one of `KUBECONFIG`, else its last,
/// else `~/.kube/config`. Under sudo it is the file of the user who called it.
///
/// # Errors
/// When there is no place for it.
pub fn path() -> Result<PathBuf, KubeconfigError> {
    if let Some(list) = std::env::var_os("KUBECONFIG").filter(|l| !l.is_empty()) {
        let files: Vec<PathBuf> = std::env::split_paths(&list)
            .filter(|p| !p.as_os_str().is_empty())
            .collect();
        let existing = files.iter().find(|p| p.exists());
        if let Some(path) = existing.or(files.last()) {
            return Ok(path.clone());
        }
    }
    let home = sudo_user().map(|u| u.dir).or_else(std::env::home_dir);
    home.map(|h| h.join(".kube/config"))
        .ok_or(KubeconfigError::NoPlace)
}

/// The user who called sudo, when the program runs under it.
fn sudo_user() -> Option<nix::unistd::User> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let uid: u32 = std::env::var("SUDO_UID").ok()?.parse().ok()?;
    nix::unistd::User::from_uid(uid.into()).ok().flatten()
}

/// Puts `entry` into the file at `path` and makes it the current context.
///
/// # Errors
/// When the file is no kubeconfig, or the file system refuses; then it is left as it was.
pub fn merge(path: &Path, entry: &Entry<'_>) -> Result<(), KubeconfigError> {
    let encode = |text: &str| STANDARD.encode(text);
    edit(path, |config| {
        put(
            config,
            "clusters",
            entry.name,
            json!({"cluster": {
                "certificate-authority-data": encode(entry.ca),
                "server": entry.server,
            }}),
        );
        put(
            config,
            "users",
            entry.name,
            json!({"user": {
                "client-certificate-data": encode(&entry.user.certificate),
                "client-key-data": encode(&entry.user.key),
            }}),
        );
        let namespace = existing_namespace(config, entry.name);
        let mut context = json!({"cluster": entry.name, "user": entry.name});
        if let Some(namespace) = namespace {
            context["namespace"] = namespace;
        }
        put(config, "contexts", entry.name, json!({"context": context}));
        config.insert("current-context".to_owned(), json!(entry.name));
    })
}

/// Takes the cluster, user and context `name` out of the file at `path`.
///
/// # Errors
/// As [`merge`].
pub fn remove(path: &Path, name: &str) -> Result<(), KubeconfigError> {
    if !path.exists() {
        return Ok(());
    }
    edit(path, |config| {
        for list in ["clusters", "users", "contexts"] {
            if let Some(Value::Array(items)) = config.get_mut(list) {
                items.retain(|item| item["name"] != name);
            }
        }
        if config.get("current-context").is_some_and(|c| c == name) {
            config.insert("current-context".to_owned(), json!(""));
        }
    })
}

/// A namespace the user chose for the context survives the next `up`.
fn existing_namespace(config: &Map<String, Value>, name: &str) -> Option<Value> {
    let contexts = config.get("contexts")?.as_array()?;
    let context = contexts.iter().find(|c| c["name"] == name)?;
    context["context"].get("namespace").cloned()
}

fn put(config: &mut Map<String, Value>, list: &str, name: &str, mut item: Value) {
    item["name"] = json!(name);
    let items = config.entry(list).or_insert_with(|| json!([]));
    if !items.is_array() {
        *items = json!([]);
    }
    if let Value::Array(items) = items {
        match items.iter_mut().find(|i| i["name"] == name) {
            Some(old) => *old = item,
            None => items.push(item),
        }
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Map<String, Value>)) -> Result<(), KubeconfigError> {
    let io = |source| KubeconfigError::Io {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path
        .parent()
        .filter(|f| !f.as_os_str().is_empty() && !f.exists())
    {
        fs::create_dir_all(folder).map_err(io)?;
        hand_over(folder);
    }
    let _lock = Lock::take(path)?;
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(io(e)),
    };
    let mut config = parse(path, &text)?;
    let before = config.clone();
    change(&mut config);
    if config == before {
        return Ok(());
    }
    let text = serde_saphyr::to_string(&config).map_err(|e| KubeconfigError::NotAKubeconfig {
        path: path.to_owned(),
        reason: e.to_string(),
    })?;
    // What is written must be what was meant, or the old file stays.
    if parse(path, &text)? != config {
        return Err(KubeconfigError::NotAKubeconfig {
            path: path.to_owned(),
            reason: "it holds something that cannot be written back faithfully".to_owned(),
        });
    }
    files::replace(path, text.as_bytes(), 0o600).map_err(io)?;
    hand_over(path);
    Ok(())
}

/// Gives a file made under sudo to the user who called it.
fn hand_over(path: &Path) {
    if let Some(user) = sudo_user() {
        // A kubeconfig that stays root's still works under sudo.
        let _ = nix::unistd::chown(path, Some(user.uid), Some(user.gid));
    }
}

fn parse(path: &Path, text: &str) -> Result<Map<String, Value>, KubeconfigError> {
    let bad = |reason: String| KubeconfigError::NotAKubeconfig {
        path: path.to_owned(),
        reason,
    };
    if text.trim().is_empty() {
        let empty = json!({"apiVersion": "v1", "kind": "Config", "preferences": {}});
        return Ok(empty.as_object().cloned().unwrap_or_default());
    }
    match serde_saphyr::from_str::<Value>(text) {
        Ok(Value::Object(map)) => {
            for list in ["clusters", "users", "contexts"] {
                let fine = map.get(list).is_none_or(|v| v.is_array() || v.is_null());
                if !fine {
                    return Err(bad(format!("{list} is not a list")));
                }
            }
            Ok(map)
        }
        Ok(_) => Err(bad("it is not a mapping".to_owned())),
        Err(e) => Err(bad(e
            .to_string()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned())),
    }
}

/// The lock file kubectl uses beside a kubeconfig.
struct Lock(PathBuf);

impl Lock {
    fn take(path: &Path) -> Result<Self, KubeconfigError> {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let lock = PathBuf::from(name);
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            let made = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&lock);
            match made {
                Ok(_) => return Ok(Self(lock)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    if Instant::now() > deadline {
                        return Err(KubeconfigError::Locked(lock));
                    }
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(source) => return Err(KubeconfigError::Io { path: lock, source }),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A lock that cannot be removed is reported by whoever meets it next.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn pair() -> Pair {
        Pair {
            certificate: "C".into(),
            key: "K".into(),
        }
    }

    fn entry<'a>(name: &'a str, user: &'a Pair) -> Entry<'a> {
        Entry {
            name,
            server: "https://127.0.0.1:6443".into(),
            ca: "CA",
            user,
        }
    }

    const OTHER: &str = "apiVersion: v1\nkind: Config\nclusters:\n- name: work\n  cluster: {server: 'https://work', proxy-url: http://p}\n\
        contexts:\n- name: work\n  context: {cluster: work, user: me, namespace: yes-ns}\n- name: '0644'\n  context: {cluster: work, user: me}\n\
        users:\n- name: me\n  user:\n    exec: {apiVersion: client.authentication.k8s.io/v1, command: aws, args: [eks, 'yes', '01'], env: null}\n\
        current-context: work\nextensions: [{name: x, extension: {a: 1}}]\n";

    #[test]
    fn other_contexts_survive_merge_and_remove_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, OTHER).unwrap();
        let before = parse(&path, OTHER).unwrap();
        merge(&path, &entry("styr", &pair())).unwrap();
        let merged = parse(&path, &fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(merged["current-context"], "styr");
        assert_eq!(merged["contexts"].as_array().unwrap().len(), 3);
        remove(&path, "styr").unwrap();
        let mut after = parse(&path, &fs::read_to_string(&path).unwrap()).unwrap();
        after.insert("current-context".into(), json!("work"));
        assert_eq!(after, before);
    }

    #[test]
    fn a_new_file_is_private_and_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/config");
        merge(&path, &entry("styr", &pair())).unwrap();
        merge(&path, &entry("styr", &pair())).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let config = parse(&path, &fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(config["clusters"].as_array().unwrap().len(), 1);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn the_namespace_chosen_for_the_context_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        merge(&path, &entry("styr", &pair())).unwrap();
        edit(&path, |c| {
            c["contexts"][0]["context"]["namespace"] = json!("dev")
        })
        .unwrap();
        merge(&path, &entry("styr", &pair())).unwrap();
        let config = parse(&path, &fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(config["contexts"][0]["context"]["namespace"], "dev");
    }

    #[test]
    fn what_is_no_kubeconfig_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        for text in ["clusters: {a: 1}", "[1, 2]", "a: [b"] {
            fs::write(&path, text).unwrap();
            let error = merge(&path, &entry("styr", &pair())).unwrap_err();
            assert!(
                matches!(error, KubeconfigError::NotAKubeconfig { .. }),
                "{text}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
