//! A runtime with folders of its own, and the check that nothing of it is left.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use oci::cri::v1;
use oci::cri::v1::runtime_service_client::RuntimeServiceClient;
use oci::cri::v1::runtime_service_server::RuntimeServiceServer;
use oci::{Config, NetworkError, Runtime, RuntimeServiceImpl, SandboxMeta, SandboxNetwork};

use crate::image;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A network that hands out an address and remembers who has one.
#[derive(Default)]
pub struct FakeNetwork {
    pub connected: AtomicUsize,
}

impl SandboxNetwork for FakeNetwork {
    fn setup<'a>(
        &'a self,
        _: &'a str,
        netns: &'a Path,
        meta: SandboxMeta,
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, NetworkError>> {
        Box::pin(async move {
            assert!(netns.exists());
            if meta.name.contains("no-network") {
                return Err(NetworkError::new("no addresses left"));
            }
            self.connected.fetch_add(1, Ordering::SeqCst);
            Ok(vec![Ipv4Addr::new(10, 99, 0, 7).into()])
        })
    }

    fn teardown<'a>(&'a self, _: &'a str, _: &'a Path) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move {
            self.connected.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        })
    }
}

pub type Client = RuntimeServiceClient<RuntimeServiceServer<RuntimeServiceImpl>>;

pub struct World {
    pub dir: PathBuf,
    pub cgroup: String,
    pub client: Client,
    pub network: Arc<FakeNetwork>,
}

/// The configuration of a runtime in `dir`.
pub fn config(dir: &Path, cgroup: &str, network: Arc<FakeNetwork>) -> Config {
    let mut config = Config::new(dir.join("oci"), dir.join("run"), cgroup, network);
    config.shim_command = vec![env!("CARGO_BIN_EXE_oci-shim").into()];
    config
}

pub async fn open(dir: &Path, cgroup: &str, network: Arc<FakeNetwork>) -> Arc<Runtime> {
    Runtime::open(config(dir, cgroup, network)).await.unwrap()
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("oci-test-")
            .tempdir()
            .unwrap()
            .keep();
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let cgroup = format!("/{name}");
        let network = Arc::new(FakeNetwork::default());
        let runtime = open(&dir, &cgroup, network.clone()).await;
        let store = runtime.images().clone();
        tokio::task::spawn_blocking(move || {
            store
                .import_reader(image::archive().as_slice(), &())
                .unwrap();
        })
        .await
        .unwrap();
        let client = RuntimeServiceClient::new(runtime.runtime_service());
        Self {
            dir,
            cgroup,
            client,
            network,
        }
    }

    /// Forgets the runtime as a crash would, and opens it anew.
    pub async fn reopen(&mut self) {
        let network = self.network.clone();
        let runtime = open(&self.dir, &self.cgroup, network).await;
        self.client = RuntimeServiceClient::new(runtime.runtime_service());
    }

    pub fn sandbox_config(&self, name: &str) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self
                .dir
                .join("logs")
                .join(name)
                .to_string_lossy()
                .into_owned(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pod-{name}", self.cgroup),
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(own_pid()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub async fn run(&mut self, config: v1::PodSandboxConfig) -> String {
        let request = v1::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        };
        let response = self.client.run_pod_sandbox(request).await.unwrap();
        response.into_inner().pod_sandbox_id
    }

    pub async fn sandbox(&mut self, name: &str) -> String {
        let config = self.sandbox_config(name);
        self.run(config).await
    }

    pub async fn create(&mut self, sandbox: &str, config: v1::ContainerConfig) -> String {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: None,
        };
        let response = self.client.create_container(request).await.unwrap();
        response.into_inner().container_id
    }

    pub async fn start(&mut self, container: &str) {
        self.try_start(container).await.unwrap();
    }

    pub async fn try_start(&mut self, container: &str) -> Result<(), tonic::Status> {
        let request = v1::StartContainerRequest {
            container_id: container.into(),
        };
        self.client.start_container(request).await.map(drop)
    }

    /// Makes and starts a container that runs a shell script.
    pub async fn script(&mut self, sandbox: &str, name: &str, script: &str) -> String {
        let id = self.create(sandbox, shell(name, script)).await;
        self.start(&id).await;
        id
    }

    pub async fn status(&mut self, container: &str) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest {
            container_id: container.into(),
            verbose: false,
        };
        let response = self.client.container_status(request).await.unwrap();
        response.into_inner().status.unwrap()
    }

    /// The status of a container once it has exited.
    pub async fn wait(&mut self, container: &str) -> v1::ContainerStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(container).await;
            if status.state == v1::ContainerState::ContainerExited as i32 {
                return status;
            }
            assert!(Instant::now() < deadline, "{container} does not exit");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The lines of a container's log, without their times.
    pub async fn log(&mut self, container: &str) -> Vec<String> {
        let path = self.status(container).await.log_path;
        let text = std::fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    /// Waits until a container's log has a line with that text.
    pub async fn wait_for_log(&mut self, container: &str, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self
            .log(container)
            .await
            .iter()
            .any(|line| line.contains(text))
        {
            assert!(Instant::now() < deadline, "{text:?} is never logged");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn exec(&mut self, container: &str, command: &[&str]) -> v1::ExecSyncResponse {
        self.try_exec(container, command, 10).await.unwrap()
    }

    pub async fn try_exec(
        &mut self,
        container: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<v1::ExecSyncResponse, tonic::Status> {
        let request = v1::ExecSyncRequest {
            container_id: container.into(),
            cmd: command.iter().map(ToString::to_string).collect(),
            timeout,
        };
        Ok(self.client.exec_sync(request).await?.into_inner())
    }

    /// What a command in a container says.
    pub async fn say(&mut self, container: &str, script: &str) -> String {
        let response = self.exec(container, &["sh", "-c", script]).await;
        let error = String::from_utf8_lossy(&response.stderr);
        assert_eq!(response.exit_code, 0, "{script}: {error}");
        String::from_utf8(response.stdout)
            .unwrap()
            .trim()
            .to_owned()
    }

    /// What a shell script in a new container says.
    pub async fn say_in_new(&mut self, sandbox: &str, script: &str) -> String {
        let id = self.script(sandbox, "new", script).await;
        self.wait(&id).await;
        let lines = self.log(&id).await;
        lines[0].trim_start_matches("stdout F ").to_owned()
    }

    pub async fn remove(&mut self, sandbox: &str) {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: sandbox.into(),
        };
        self.client.stop_pod_sandbox(request).await.unwrap();
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: sandbox.into(),
        };
        self.client.remove_pod_sandbox(request).await.unwrap();
    }

    /// Removes what is left through the runtime, then checks that the machine is as it was.
    pub async fn close(mut self) {
        let request = v1::ListPodSandboxRequest { filter: None };
        let sandboxes = self
            .client
            .list_pod_sandbox(request)
            .await
            .unwrap()
            .into_inner();
        for sandbox in sandboxes.items {
            self.remove(&sandbox.id).await;
        }
        let (dir, cgroup) = (self.dir.clone(), self.cgroup.clone());
        let connected = self.network.connected.load(Ordering::SeqCst);
        drop(self);
        assert_eq!(connected, 0, "networks are left");
        let text = dir.to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&text), "mounts are left: {mounts}");
        for folder in [
            "oci/sandboxes",
            "oci/containers",
            "oci/snapshots",
            "run/netns",
        ] {
            let left: Vec<_> = std::fs::read_dir(dir.join(folder)).unwrap().collect();
            assert!(left.is_empty(), "{folder} has {left:?}");
        }
        assert_no_processes(&text);
        remove_cgroups(&cgroup);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

/// No process has the test's folder in its command line (shims do) or its cgroup.
fn assert_no_processes(text: &str) {
    let name = text.rsplit('/').next().unwrap();
    let left = || -> Vec<String> {
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
                let read = |file: &str| {
                    std::fs::read(format!("/proc/{pid}/{file}"))
                        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                        .unwrap_or_default()
                };
                // The first process of the machine may take its time to reap.
                let zombie = read("stat")
                    .rsplit_once(") ")
                    .is_some_and(|(_, s)| s.starts_with('Z'));
                let ours = read("cmdline").contains(text) || read("cgroup").contains(name);
                (ours && !zombie).then(|| format!("{pid} {}", read("cmdline")))
            })
            .collect()
    };
    let deadline = Instant::now() + PATIENCE;
    while !left().is_empty() {
        assert!(
            Instant::now() < deadline,
            "processes are left: {:?}",
            left()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The pods' own cgroups are the node agent's to remove, here the test's; they must be empty.
fn remove_cgroups(cgroup: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let mut trees = vec![root.to_path_buf()];
    if !root.join("cgroup.controllers").exists() {
        trees.extend(
            std::fs::read_dir(root)
                .unwrap()
                .flatten()
                .map(|entry| entry.path()),
        );
    }
    for tree in trees {
        let parent = tree.join(cgroup.trim_start_matches('/'));
        for pod in std::fs::read_dir(&parent).into_iter().flatten().flatten() {
            if pod.path().is_dir() {
                std::fs::remove_dir(pod.path())
                    .unwrap_or_else(|error| panic!("{}: {error}", pod.path().display()));
            }
        }
        if parent.is_dir() {
            std::fs::remove_dir(&parent).unwrap();
        }
    }
}

/// A process-id namespace for each container, the pod's network and IPC.
pub fn own_pid() -> v1::NamespaceOption {
    v1::NamespaceOption {
        network: v1::NamespaceMode::Pod as i32,
        pid: v1::NamespaceMode::Container as i32,
        ipc: v1::NamespaceMode::Pod as i32,
        ..Default::default()
    }
}

pub fn command(name: &str, command: &[&str]) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(v1::ImageSpec {
            image: image::NAME.into(),
            ..Default::default()
        }),
        command: command.iter().map(ToString::to_string).collect(),
        log_path: format!("{name}/0.log"),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources::default()),
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(own_pid()),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

pub fn shell(name: &str, script: &str) -> v1::ContainerConfig {
    command(name, &["sh", "-c", script])
}

/// The security context of a configuration made here.
pub fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
}
