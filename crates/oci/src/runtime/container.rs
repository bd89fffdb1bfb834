//! Containers: making and starting them.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tonic::Status;

use super::records::{self, ContainerRecord};
use super::sandbox::Sandbox;
use super::shim_client::{self, ShimError};
use super::stop::remove_folder;
use super::{Runtime, convert, lock, new_id};
use crate::cri::v1::{self, ContainerEventType};
use crate::images::{Image, ImageError};
use crate::plan::{Exit, Started};
use crate::shim::now_nanoseconds;

/// The exit code of a container that could not be started.
const START_ERROR: i32 = 128;

/// How far a container has come.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    pub started: Option<Started>,
    pub exit: Option<Exit>,
}

/// A container.
pub struct Container {
    pub config: v1::ContainerConfig,
    pub record: ContainerRecord,
    pub dir: PathBuf,
    pub log_path: String,
    pub progress: watch::Sender<Progress>,
    /// Held from a change of progress until everybody has been told, so that they are told in
    /// order.
    pub telling: std::sync::Mutex<()>,
    /// What was last asked of its limits.
    pub resources: std::sync::Mutex<Option<v1::LinuxContainerResources>>,
    /// One change of its life at a time; stopping may interrupt a start.
    pub changing: tokio::sync::Mutex<()>,
}

impl Container {
    pub fn new(
        config: v1::ContainerConfig,
        record: ContainerRecord,
        dir: PathBuf,
        sandbox: &v1::PodSandboxConfig,
    ) -> Self {
        let log_path = if config.log_path.is_empty() || sandbox.log_directory.is_empty() {
            String::new()
        } else {
            PathBuf::from(&sandbox.log_directory)
                .join(&config.log_path)
                .to_string_lossy()
                .into_owned()
        };
        let progress = Progress {
            started: records::started(&dir),
            exit: records::exit(&dir),
        };
        let resources = config
            .linux
            .as_ref()
            .and_then(|linux| linux.resources.clone());
        Self {
            config,
            record,
            dir,
            log_path,
            progress: watch::Sender::new(progress),
            telling: std::sync::Mutex::new(()),
            resources: std::sync::Mutex::new(resources),
            changing: tokio::sync::Mutex::new(()),
        }
    }

    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    pub fn is_running(&self) -> bool {
        let progress = self.progress.borrow();
        progress.started.is_some() && progress.exit.is_none()
    }

    pub fn state(&self) -> v1::ContainerState {
        let progress = self.progress.borrow();
        match (&progress.started, &progress.exit) {
            (_, Some(_)) => v1::ContainerState::ContainerExited,
            (Some(_), None) => v1::ContainerState::ContainerRunning,
            (None, None) => v1::ContainerState::ContainerCreated,
        }
    }

    /// Resolves when the container has exited.
    pub async fn exited(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives in `self`.
        let _ = progress.wait_for(|progress| progress.exit.is_some()).await;
    }
}

impl Runtime {
    /// Makes a container of a ready sandbox: writable layer, folder, record.
    pub async fn create_container(
        self: &Arc<Self>,
        sandbox: Arc<Sandbox>,
        config: v1::ContainerConfig,
    ) -> Result<String, Status> {
        let metadata = config
            .metadata
            .clone()
            .ok_or_else(|| Status::invalid_argument("container config must include metadata"))?;
        if !sandbox.is_ready() {
            return Err(Status::failed_precondition(format!(
                "sandbox container {:?} is not running",
                sandbox.id()
            )));
        }
        let reserved = self
            .containers_of(&sandbox.id())
            .into_iter()
            .find(|other| other.config.metadata.as_ref() == Some(&metadata));
        if let Some(other) = reserved {
            return Err(Status::already_exists(format!(
                "name {}_{} is reserved for {:?}",
                metadata.name, metadata.attempt, other.record.id
            )));
        }
        let runtime = self.clone();
        tokio::task::spawn_blocking(move || runtime.make_container(&sandbox, config))
            .await
            .map_err(|error| Status::internal(error.to_string()))?
    }

    fn make_container(
        &self,
        sandbox: &Sandbox,
        config: v1::ContainerConfig,
    ) -> Result<String, Status> {
        let image = self.image_of(&config)?;
        let id = new_id();
        let dir = self.folders.container(&id);
        let parent = sandbox.record().cgroup;
        let parent = parent.rsplit_once('/').map_or("", |(parent, _)| parent);
        let record = ContainerRecord {
            id: id.clone(),
            sandbox: sandbox.id(),
            created_at: now_nanoseconds(),
            image_id: image.id.clone(),
            image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
            image_name: image_name(&config, &image),
            cgroup: format!("{parent}/{id}"),
            stop_signal: stop_signal(&config, &image),
        };
        let failed = |error: &dyn std::fmt::Display| {
            Status::unknown(format!("failed to create container {id:?}: {error}"))
        };
        std::fs::create_dir_all(&dir).map_err(|error| failed(&error))?;
        let made = self
            .images
            .snapshot(&image.id, &id)
            .map_err(|error| failed(&error))
            .and_then(|_| {
                records::save_container(&dir, &config, &record).map_err(|error| failed(&error))
            });
        if let Err(error) = made {
            let _ = self.images.remove_snapshot(&id);
            let _ = remove_folder(&dir);
            return Err(error);
        }
        let container = Arc::new(Container::new(config, record, dir, &sandbox.config));
        lock(&self.containers).insert(id.clone(), container.clone());
        self.container_event(&container, ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    fn image_of(&self, config: &v1::ContainerConfig) -> Result<Image, Status> {
        let spec = config.image.clone().unwrap_or_default();
        self.images
            .status(&spec.image)
            .map_err(|error| Status::unknown(error.to_string()))?
            .ok_or_else(|| {
                Status::not_found(format!(
                    "failed to resolve image {:?}: {}",
                    spec.image,
                    ImageError::NotFound(spec.image.clone())
                ))
            })
    }

    /// Starts a created container. A failure is an exit with code 128 and the reason.
    pub async fn start_container(
        self: &Arc<Self>,
        container: Arc<Container>,
    ) -> Result<(), Status> {
        let runtime = self.clone();
        let started = tokio::spawn(async move {
            let _changing = container.changing.lock().await;
            runtime.start_created(&container).await
        });
        started
            .await
            .map_err(|error| Status::internal(error.to_string()))?
    }

    async fn start_created(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), Status> {
        let id = &container.record.id;
        if container.state() != v1::ContainerState::ContainerCreated {
            return Err(Status::failed_precondition(format!(
                "container {id:?} is in {} state",
                container.state().as_str_name()
            )));
        }
        let sandbox = self
            .find_sandbox(&container.record.sandbox)
            .filter(|sandbox| sandbox.is_ready())
            .ok_or_else(|| {
                Status::failed_precondition(format!(
                    "sandbox container {:?} is not running",
                    container.record.sandbox
                ))
            })?;
        let (runtime, made) = (self.clone(), container.clone());
        let (of, dir) = (sandbox.config.clone(), sandbox.dir.clone());
        let plan = tokio::task::spawn_blocking(move || runtime.plan(&made, &of, dir))
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        let started = match plan {
            Ok(plan) => shim_client::start(&sandbox.dir, plan).await,
            Err(error) => Err(ShimError::Refused(error)),
        };
        match started {
            Ok(started) => {
                self.container_started(container, started);
                Ok(())
            }
            Err(error) => {
                let message = format!("failed to start container {id:?}: {error}");
                let exit = Exit {
                    code: START_ERROR,
                    finished_at: now_nanoseconds(),
                    oom_killed: false,
                    start_error: Some(error.to_string()),
                };
                let _ = records::save_exit(&container.dir, &exit);
                self.container_exited(container, exit);
                Err(Status::unknown(message))
            }
        }
    }

    fn plan(
        &self,
        container: &Container,
        sandbox: &v1::PodSandboxConfig,
        sandbox_dir: PathBuf,
    ) -> Result<crate::plan::ContainerPlan, String> {
        let record = &container.record;
        let image = self
            .images
            .status(&record.image_id)
            .map_err(|error| error.to_string())?
            .ok_or_else(|| format!("image {} is gone", record.image_id))?;
        let snapshot = self
            .images
            .snapshot(&record.image_id, &record.id)
            .map_err(|error| error.to_string())?;
        convert::container_plan(convert::Sources {
            id: &record.id,
            dir: container.dir.clone(),
            stage: self.folders.stage(),
            config: &container.config,
            sandbox,
            sandbox_dir,
            image: &image.config,
            snapshot,
            cgroup: record.cgroup.clone(),
        })
    }
}

fn image_name(config: &v1::ContainerConfig, image: &Image) -> String {
    let spec = config.image.clone().unwrap_or_default();
    let asked = [spec.user_specified_image, spec.image];
    let asked_for = |tag: &&String| {
        asked
            .iter()
            .any(|name| !name.is_empty() && tag.ends_with(name.as_str()))
    };
    let tag = image.repo_tags.iter().find(asked_for);
    tag.or(image.repo_tags.first()).cloned().unwrap_or_default()
}

/// The signal that asks a container to end: the pod's wish, else the image's, else SIGTERM.
fn stop_signal(config: &v1::ContainerConfig, image: &Image) -> i32 {
    let wished = v1::Signal::try_from(config.stop_signal)
        .ok()
        .filter(|signal| *signal != v1::Signal::RuntimeDefault)
        .and_then(|signal| signal_number(signal.as_str_name().trim_start_matches("SIGNAL_")));
    wished
        .or_else(|| signal_number(image.config.stop_signal.as_deref()?))
        .unwrap_or(libc::SIGTERM)
}

/// The number of `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, `SIGRTMINPLUS3` and the like.
pub fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse() {
        return (1..=libc::SIGRTMAX()).contains(&number).then_some(number);
    }
    let name = name.to_ascii_uppercase();
    let short = name.strip_prefix("SIG").unwrap_or(&name);
    let relative = |rest: &str, base: i32, sign: i32| {
        let digits = rest.trim_start_matches(['+', '-']);
        let digits = digits
            .trim_start_matches("PLUS")
            .trim_start_matches("MINUS");
        let offset = if digits.is_empty() {
            0
        } else {
            digits.parse::<i32>().ok()?
        };
        let number = base + sign * offset;
        (libc::SIGRTMIN()..=libc::SIGRTMAX())
            .contains(&number)
            .then_some(number)
    };
    if let Some(rest) = short.strip_prefix("RTMIN") {
        return relative(rest, libc::SIGRTMIN(), 1);
    }
    if let Some(rest) = short.strip_prefix("RTMAX") {
        return relative(rest, libc::SIGRTMAX(), -1);
    }
    let short = match short {
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        other => other,
    };
    format!("SIG{short}")
        .parse::<nix::sys::signal::Signal>()
        .ok()
        .map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_names() {
        for (name, number) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(libc::SIGRTMIN() + 3)),
            ("SIGRTMAXMINUS14", Some(libc::SIGRTMAX() - 14)),
            ("SIGRTMIN", Some(libc::SIGRTMIN())),
            ("SIGIOT", Some(6)),
            ("SIGNOPE", None),
            ("0", None),
            ("SIGRTMIN+99", None),
        ] {
            assert_eq!(signal_number(name), number, "{name}");
        }
    }

    #[test]
    fn every_cri_signal_is_known() {
        for number in 1..=65 {
            let signal = v1::Signal::try_from(number).unwrap();
            let name = signal.as_str_name().trim_start_matches("SIGNAL_");
            assert!(signal_number(name).is_some(), "{name}");
        }
    }
}
