//! A container runtime in memory, as a gRPC service: containers run until somebody says otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use oci::cri::v1::*;
use prost::Message;
use tokio::sync::broadcast;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;

#[derive(Default)]
struct State {
    clock: i64,
    sandboxes: BTreeMap<String, PodSandbox>,
    containers: BTreeMap<String, (ContainerStatus, String)>,
    images: BTreeSet<String>,
    /// Exit code of every command run inside.
    exec_code: i32,
    /// Whether containers end at their stop signal.
    stubborn: bool,
    fail_start: bool,
    log: Vec<String>,
}

impl State {
    fn tick(&mut self) -> i64 {
        self.clock = self
            .clock
            .max(jiff::Timestamp::now().as_nanosecond() as i64)
            + 1;
        self.clock
    }
}

/// The runtime.
#[derive(Clone)]
pub struct Runtime {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<ContainerEventResponse>,
}

impl Default for Runtime {
    fn default() -> Self {
        Runtime {
            state: Arc::default(),
            events: broadcast::Sender::new(256),
        }
    }
}

type Answer = Result<Bytes, tonic::Status>;

fn encode(message: impl Message) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(message.encoded_len() as u32);
    message.encode(&mut out).unwrap();
    out.freeze()
}

fn decode<M: Message + Default>(body: &Bytes) -> M {
    M::decode(&body[5..]).unwrap()
}

impl Runtime {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What was done, in order.
    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    /// How often something was done.
    pub fn count(&self, what: &str) -> usize {
        self.lock().log.iter().filter(|l| *l == what).count()
    }

    /// Makes an image present.
    pub fn add_image(&self, name: &str) {
        self.lock().images.insert(name.to_owned());
    }

    /// What commands inside exit with.
    pub fn set_exec_code(&self, code: i32) {
        self.lock().exec_code = code;
    }

    /// Containers then end only when their grace is over.
    pub fn set_stubborn(&self) {
        self.lock().stubborn = true;
    }

    /// Starting containers then fails.
    pub fn set_fail_start(&self, fail: bool) {
        self.lock().fail_start = fail;
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        let state = self.lock();
        state.sandboxes.is_empty() && state.containers.is_empty()
    }

    /// Id of the running container of this name.
    pub fn running(&self, name: &str) -> Option<String> {
        let state = self.lock();
        let is = |c: &ContainerStatus| {
            c.state == i32::from(ContainerState::ContainerRunning)
                && c.metadata.as_ref().unwrap().name == name
        };
        state
            .containers
            .values()
            .find(|(c, _)| is(c))
            .map(|(c, _)| c.id.clone())
    }

    /// Ends a container by itself.
    pub fn exit(&self, id: &str, code: i32) {
        let mut state = self.lock();
        let now = state.tick();
        let Some((status, _)) = state.containers.get_mut(id) else {
            return;
        };
        if status.state == i32::from(ContainerState::ContainerRunning) {
            status.state = ContainerState::ContainerExited.into();
            status.exit_code = code;
            status.finished_at = now;
        }
        drop(state);
        self.tell(id);
    }

    /// Stops a sandbox behind the agent's back.
    pub fn break_sandbox(&self) {
        let ids: Vec<_> = self.lock().sandboxes.keys().cloned().collect();
        for sandbox in self.lock().sandboxes.values_mut() {
            sandbox.state = PodSandboxState::SandboxNotready.into();
        }
        ids.iter().for_each(|id| self.tell(id));
    }

    fn tell(&self, id: &str) {
        let state = self.lock();
        let sandbox = state.containers.get(id).map_or(id, |(_, s)| s.as_str());
        let metadata = state
            .sandboxes
            .get(sandbox)
            .and_then(|s| s.metadata.clone());
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            pod_sandbox_status: Some(PodSandboxStatus {
                metadata,
                ..PodSandboxStatus::default()
            }),
            ..ContainerEventResponse::default()
        };
        let _ = self.events.send(event);
    }

    /// Both of its services.
    pub fn service(&self) -> BoxCloneSyncService<Request<Body>, Response<Body>, Infallible> {
        let runtime = self.clone();
        BoxCloneSyncService::new(tower::service_fn(move |request: Request<Body>| {
            let runtime = runtime.clone();
            async move { Ok(runtime.serve(request).await) }
        }))
    }

    async fn serve(&self, request: Request<Body>) -> Response<Body> {
        let method = request
            .uri()
            .path()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        if method == "GetContainerEvents" {
            return respond(Ok(()), self.stream());
        }
        match self.call(&method, &body).await {
            Ok(bytes) => respond(Ok(()), futures::stream::iter([bytes])),
            Err(status) => respond(Err(status), futures::stream::empty()),
        }
    }

    fn stream(&self) -> impl Stream<Item = Bytes> + use<> {
        futures::stream::unfold(self.events.subscribe(), |mut events| async {
            Some((encode(events.recv().await.ok()?), events))
        })
    }

    async fn call(&self, method: &str, body: &Bytes) -> Answer {
        match method {
            "Version" => Ok(encode(VersionResponse {
                runtime_name: "fake".into(),
                ..VersionResponse::default()
            })),
            "RunPodSandbox" => self.run_sandbox(decode(body)),
            "StopPodSandbox" => {
                self.stop_sandbox(&decode::<StopPodSandboxRequest>(body).pod_sandbox_id)
            }
            "RemovePodSandbox" => {
                self.lock()
                    .sandboxes
                    .remove(&decode::<RemovePodSandboxRequest>(body).pod_sandbox_id);
                Ok(encode(RemovePodSandboxResponse {}))
            }
            "PodSandboxStatus" => {
                self.sandbox_status(&decode::<PodSandboxStatusRequest>(body).pod_sandbox_id)
            }
            "ListPodSandbox" => self.list_sandboxes(decode(body)),
            "CreateContainer" => self.create(decode(body)),
            "StartContainer" => self.start(&decode::<StartContainerRequest>(body).container_id),
            "StopContainer" => self.stop(decode(body)).await,
            "RemoveContainer" => {
                self.lock()
                    .containers
                    .remove(&decode::<RemoveContainerRequest>(body).container_id);
                Ok(encode(RemoveContainerResponse {}))
            }
            "ContainerStatus" => {
                self.container_status(&decode::<ContainerStatusRequest>(body).container_id)
            }
            "ListContainers" => self.list(decode(body)),
            "ExecSync" => {
                let request: ExecSyncRequest = decode(body);
                let mut state = self.lock();
                state.log.push(format!("exec {}", request.cmd.join(" ")));
                let exit_code = state.exec_code;
                Ok(encode(ExecSyncResponse {
                    stdout: "output".into(),
                    exit_code,
                    ..ExecSyncResponse::default()
                }))
            }
            "ImageStatus" => self.image_status(decode(body)),
            "PullImage" => Err(tonic::Status::not_found("no such image")),
            "ListImages" => Ok(encode(ListImagesResponse::default())),
            other => Err(tonic::Status::unimplemented(other.to_owned())),
        }
    }

    fn run_sandbox(&self, request: RunPodSandboxRequest) -> Answer {
        let config = request.config.unwrap();
        let mut state = self.lock();
        let now = state.tick();
        let id = format!("sandbox-{now}");
        state.log.push(format!(
            "sandbox {}",
            config.metadata.as_ref().unwrap().name
        ));
        let sandbox = PodSandbox {
            id: id.clone(),
            metadata: config.metadata,
            state: PodSandboxState::SandboxReady.into(),
            created_at: now,
            labels: config.labels,
            annotations: config.annotations,
            ..PodSandbox::default()
        };
        state.sandboxes.insert(id.clone(), sandbox);
        Ok(encode(RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    fn stop_sandbox(&self, id: &str) -> Answer {
        let mut state = self.lock();
        if let Some(sandbox) = state.sandboxes.get_mut(id) {
            sandbox.state = PodSandboxState::SandboxNotready.into();
        }
        state.log.push("stop sandbox".into());
        Ok(encode(StopPodSandboxResponse {}))
    }

    fn sandbox_status(&self, id: &str) -> Answer {
        let state = self.lock();
        let sandbox = state
            .sandboxes
            .get(id)
            .ok_or_else(|| tonic::Status::not_found(id.to_owned()))?;
        let network = PodSandboxNetworkStatus {
            ip: "127.0.0.1".into(),
            ..PodSandboxNetworkStatus::default()
        };
        let status = PodSandboxStatus {
            id: id.to_owned(),
            state: sandbox.state,
            network: Some(network),
            ..PodSandboxStatus::default()
        };
        Ok(encode(PodSandboxStatusResponse {
            status: Some(status),
            ..PodSandboxStatusResponse::default()
        }))
    }

    fn list_sandboxes(&self, request: ListPodSandboxRequest) -> Answer {
        let wanted = request.filter.unwrap_or_default().label_selector;
        let state = self.lock();
        let items = state
            .sandboxes
            .values()
            .filter(|s| wanted.iter().all(|(k, v)| s.labels.get(k) == Some(v)));
        Ok(encode(ListPodSandboxResponse {
            items: items.cloned().collect(),
        }))
    }

    fn create(&self, request: CreateContainerRequest) -> Answer {
        let config = request.config.unwrap();
        let mut state = self.lock();
        let now = state.tick();
        let metadata = config.metadata.unwrap();
        let id = format!("{}-{now}", metadata.name);
        let env: Vec<_> = config
            .envs
            .iter()
            .map(|e| format!("{}={}", e.key, String::from_utf8_lossy(&e.value)))
            .collect();
        state.log.push(
            format!("create {} {}", metadata.name, env.join(" "))
                .trim()
                .to_owned(),
        );
        let directory = request.sandbox_config.unwrap().log_directory;
        let status = ContainerStatus {
            id: id.clone(),
            metadata: Some(metadata),
            state: ContainerState::ContainerCreated.into(),
            created_at: now,
            image: config.image,
            labels: config.labels,
            annotations: config.annotations,
            mounts: config.mounts,
            log_path: format!("{directory}/{}", config.log_path),
            ..ContainerStatus::default()
        };
        state
            .containers
            .insert(id.clone(), (status, request.pod_sandbox_id));
        Ok(encode(CreateContainerResponse { container_id: id }))
    }

    fn start(&self, id: &str) -> Answer {
        let mut state = self.lock();
        let now = state.tick();
        if state.fail_start {
            return Err(tonic::Status::unknown(
                "exec: \"nothing\": executable file not found in $PATH",
            ));
        }
        let (status, _) = state
            .containers
            .get_mut(id)
            .ok_or_else(|| tonic::Status::not_found(id.to_owned()))?;
        status.state = ContainerState::ContainerRunning.into();
        status.started_at = now;
        let name = status.metadata.as_ref().unwrap().name.clone();
        state.log.push(format!("start {name}"));
        drop(state);
        self.tell(id);
        Ok(encode(StartContainerResponse {}))
    }

    async fn stop(&self, request: StopContainerRequest) -> Answer {
        let stubborn = {
            let mut state = self.lock();
            let name = state
                .containers
                .get(&request.container_id)
                .map(|(s, _)| s.metadata.clone().unwrap().name);
            state.log.push(format!(
                "stop {} {}",
                name.unwrap_or_default(),
                request.timeout
            ));
            state.stubborn
        };
        if stubborn {
            tokio::time::sleep(Duration::from_secs(request.timeout as u64)).await;
        }
        self.exit(&request.container_id, if stubborn { 137 } else { 0 });
        Ok(encode(StopContainerResponse {}))
    }

    fn container_status(&self, id: &str) -> Answer {
        let state = self.lock();
        let (status, _) = state
            .containers
            .get(id)
            .ok_or_else(|| tonic::Status::not_found(id.to_owned()))?;
        Ok(encode(ContainerStatusResponse {
            status: Some(status.clone()),
            ..ContainerStatusResponse::default()
        }))
    }

    fn list(&self, request: ListContainersRequest) -> Answer {
        let wanted = request.filter.unwrap_or_default().label_selector;
        let state = self.lock();
        let found = state
            .containers
            .values()
            .filter(|(c, _)| wanted.iter().all(|(k, v)| c.labels.get(k) == Some(v)));
        let containers = found.map(|(c, sandbox)| Container {
            id: c.id.clone(),
            pod_sandbox_id: sandbox.clone(),
            metadata: c.metadata.clone(),
            state: c.state,
            created_at: c.created_at,
            labels: c.labels.clone(),
            annotations: c.annotations.clone(),
            ..Container::default()
        });
        Ok(encode(ListContainersResponse {
            containers: containers.collect(),
        }))
    }

    fn image_status(&self, request: ImageStatusRequest) -> Answer {
        let name = request.image.unwrap().image;
        let image = self.lock().images.contains(&name).then(|| Image {
            id: "sha256:1".into(),
            ..Image::default()
        });
        Ok(encode(ImageStatusResponse {
            image,
            ..ImageStatusResponse::default()
        }))
    }
}

fn respond(
    result: Result<(), tonic::Status>,
    messages: impl Stream<Item = Bytes> + Send + 'static,
) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    match result {
        Ok(()) => drop(trailers.insert("grpc-status", HeaderValue::from_static("0"))),
        Err(status) => {
            trailers.insert("grpc-status", HeaderValue::from(i32::from(status.code())));
            trailers.insert(
                "grpc-message",
                HeaderValue::try_from(status.message().replace('"', "%22")).unwrap(),
            );
        }
    }
    let frames = messages
        .map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)))
        .chain(futures::stream::iter([Ok(Frame::trailers(trailers))]));
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}
