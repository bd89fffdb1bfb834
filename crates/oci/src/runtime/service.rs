//! The CRI runtime service: every call in a few lines over [`Runtime`].

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::stream;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

use super::container::Container;
use super::sandbox::Sandbox;
use super::{Runtime, convert, lock, shim_client};
use crate::cgroups::Hierarchy;
use crate::cri::v1::{self, runtime_service_server::RuntimeService};
use crate::proto;

/// The CRI runtime service of the embedded runtime.
pub struct RuntimeServiceImpl(pub(super) Arc<Runtime>);

/// The version of the protocol in which kubelets ask.
const KUBE_API_VERSION: &str = "0.1.0";
const RUNTIME_NAME: &str = "styr";
/// Items of one message of a streamed list.
const PAGE: usize = 256;

type Answer<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Runtime {
    /// A sandbox, or the Status that says there is none.
    pub(super) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Status> {
        self.find_sandbox(id).ok_or_else(|| {
            Status::not_found(format!(
                "an error occurred when try to find sandbox {id:?}: not found"
            ))
        })
    }

    /// A container, or the Status that says there is none.
    pub(super) fn container(&self, id: &str) -> Result<Arc<Container>, Status> {
        self.find_container(id).ok_or_else(|| {
            Status::not_found(format!(
                "an error occurred when try to find container {id:?}: not found"
            ))
        })
    }

    async fn update_resources(
        &self,
        request: v1::UpdateContainerResourcesRequest,
    ) -> Result<(), Status> {
        let container = self.container(&request.container_id)?;
        let Some(wanted) = request.linux else {
            return Ok(());
        };
        if container.is_running() {
            let (limits, cgroup) = (convert::limits(&wanted), container.record.cgroup.clone());
            tokio::task::spawn_blocking(move || {
                Hierarchy::system().cgroup(&cgroup).update(&limits)
            })
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::unknown(format!("failed to update resources: {error}")))?;
        }
        *lock(&container.resources) = Some(wanted);
        Ok(())
    }

    async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let (container, sandbox) = self.running(id)?;
        let request = proto::Request::ReopenLog {
            id: container.record.id.clone(),
        };
        shim_client::ask(&sandbox.dir, &request)
            .await
            .map_err(|error| Status::unknown(error.to_string()))?;
        Ok(())
    }

    fn status(&self) -> v1::StatusResponse {
        let condition = |kind: &str, problem: Option<(&str, String)>| v1::RuntimeCondition {
            r#type: kind.to_owned(),
            status: problem.is_none(),
            reason: problem
                .as_ref()
                .map(|(reason, _)| (*reason).to_owned())
                .unwrap_or_default(),
            message: problem.map(|(_, message)| message).unwrap_or_default(),
        };
        let network = self.config.network.ready().err();
        v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", None),
                    condition(
                        "NetworkReady",
                        network.map(|error| ("NetworkPluginNotReady", error.to_string())),
                    ),
                ],
            }),
            info: Default::default(),
            runtime_handlers: vec![v1::RuntimeHandler {
                name: String::new(),
                features: Some(v1::RuntimeHandlerFeatures {
                    recursive_read_only_mounts: true,
                    user_namespaces: false,
                }),
            }],
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
                mount_options: false,
            }),
        }
    }

    fn event_stream(&self) -> BoxStream<v1::ContainerEventResponse> {
        let receiver = self.events.subscribe();
        Box::pin(stream::unfold(Some(receiver), |receiver| async move {
            let mut receiver = receiver?;
            match receiver.recv().await {
                Ok(event) => Some((Ok(event), Some(receiver))),
                // Whoever missed events must list again, and so is told.
                Err(RecvError::Lagged(missed)) => {
                    let status = Status::data_loss(format!("{missed} events were missed"));
                    Some((Err(status), None))
                }
                Err(RecvError::Closed) => None,
            }
        }))
    }
}

/// A list as a stream of pages; an empty list is one empty page.
pub(super) fn pages<T: Send + 'static, R: Send + 'static>(
    mut items: Vec<T>,
    page: fn(Vec<T>) -> R,
) -> BoxStream<R> {
    let mut all = Vec::new();
    while items.len() > PAGE {
        let rest = items.split_off(PAGE);
        all.push(Ok(page(items)));
        items = rest;
    }
    all.push(Ok(page(items)));
    Box::pin(stream::iter(all))
}

/// Reading cgroups and folders blocks.
async fn blocking<T: Send + 'static>(
    runtime: &Arc<Runtime>,
    work: impl FnOnce(&Runtime) -> T + Send + 'static,
) -> Result<T, Status> {
    let runtime = runtime.clone();
    tokio::task::spawn_blocking(move || work(&runtime))
        .await
        .map_err(|error| Status::internal(error.to_string()))
}

#[tonic::async_trait]
impl RuntimeService for RuntimeServiceImpl {
    type GetContainerEventsStream = BoxStream<v1::ContainerEventResponse>;
    type StreamContainerStatsStream = BoxStream<v1::StreamContainerStatsResponse>;
    type StreamContainersStream = BoxStream<v1::StreamContainersResponse>;
    type StreamPodSandboxMetricsStream = BoxStream<v1::StreamPodSandboxMetricsResponse>;
    type StreamPodSandboxStatsStream = BoxStream<v1::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxesStream = BoxStream<v1::StreamPodSandboxesResponse>;

    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: KUBE_API_VERSION.into(),
            runtime_name: RUNTIME_NAME.into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        Ok(Response::new(self.0.status()))
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        Ok(Response::new(v1::RuntimeConfigResponse {
            linux: Some(v1::LinuxRuntimeConfiguration {
                cgroup_driver: v1::CgroupDriver::Cgroupfs as i32,
            }),
        }))
    }

    async fn update_runtime_config(
        &self,
        _: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        // Its only content, the pod CIDR, is the network's business, which knows it already.
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request
            .config
            .ok_or_else(|| Status::invalid_argument("sandbox config is missing"))?;
        let pod_sandbox_id = self.0.run_sandbox(config, request.runtime_handler).await?;
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        // Stopping what is not there is done already.
        if let Some(sandbox) = self.0.find_sandbox(&request.get_ref().pod_sandbox_id) {
            self.0.stop_sandbox(&sandbox).await?;
        }
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        if let Some(sandbox) = self.0.find_sandbox(&request.get_ref().pod_sandbox_id) {
            self.0.remove_sandbox(&sandbox).await?;
        }
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let sandbox = self.0.sandbox(&request.get_ref().pod_sandbox_id)?;
        let containers = self.0.containers_of(&sandbox.id());
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(self.0.sandbox_status(&sandbox)),
            info: Default::default(),
            containers_statuses: containers
                .iter()
                .map(|c| self.0.container_status(c))
                .collect(),
            timestamp: crate::shim::now_nanoseconds(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let items = self.0.list_sandboxes(request.into_inner().filter);
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let items = self.0.list_sandboxes(request.into_inner().filter);
        Ok(Response::new(pages(items, |pod_sandboxes| {
            v1::StreamPodSandboxesResponse { pod_sandboxes }
        })))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let sandbox = self.0.sandbox(&request.pod_sandbox_id)?;
        let config = request
            .config
            .ok_or_else(|| Status::invalid_argument("container config is missing"))?;
        let container_id = self.0.create_container(sandbox, config).await?;
        Ok(Response::new(v1::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        let container = self.0.container(&request.get_ref().container_id)?;
        self.0.start_container(container).await?;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        let request = request.into_inner();
        if let Some(container) = self.0.find_container(&request.container_id) {
            let timeout = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
            self.0.stop(&container, timeout).await?;
        }
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        if let Some(container) = self.0.find_container(&request.get_ref().container_id) {
            self.0.remove_container(&container).await?;
        }
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        let containers = self.0.list_containers(request.into_inner().filter);
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let items = self.0.list_containers(request.into_inner().filter);
        Ok(Response::new(pages(items, |containers| {
            v1::StreamContainersResponse { containers }
        })))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let container = self.0.container(&request.get_ref().container_id)?;
        Ok(Response::new(v1::ContainerStatusResponse {
            status: Some(self.0.container_status(&container)),
            info: Default::default(),
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        self.0.update_resources(request.into_inner()).await?;
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        // The pod's cgroup is the node agent's; the runtime only has to know the pod.
        self.0.sandbox(&request.get_ref().pod_sandbox_id)?;
        Ok(Response::new(v1::UpdatePodSandboxResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        self.0.reopen_log(&request.get_ref().container_id).await?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Answer<v1::ExecSyncResponse> {
        Ok(Response::new(self.0.exec_sync(request.into_inner()).await?))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        let url = self.0.exec_url(request.into_inner()).await?;
        Ok(Response::new(v1::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        let url = self.0.attach_url(request.into_inner()).await?;
        Ok(Response::new(v1::AttachResponse { url }))
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Answer<v1::PortForwardResponse> {
        let url = self.0.port_forward_url(request.into_inner()).await?;
        Ok(Response::new(v1::PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Answer<v1::ContainerStatsResponse> {
        let container = self.0.container(&request.get_ref().container_id)?;
        let stats = blocking(&self.0, move |runtime| runtime.container_stats(&container)).await?;
        Ok(Response::new(v1::ContainerStatsResponse {
            stats: Some(stats),
        }))
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        let filter = request.into_inner().filter;
        let stats = blocking(&self.0, |runtime| runtime.list_container_stats(filter)).await?;
        Ok(Response::new(v1::ListContainerStatsResponse { stats }))
    }

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let filter = request.into_inner().filter;
        let items = blocking(&self.0, |runtime| runtime.list_container_stats(filter)).await?;
        Ok(Response::new(pages(items, |container_stats| {
            v1::StreamContainerStatsResponse { container_stats }
        })))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        let sandbox = self.0.sandbox(&request.get_ref().pod_sandbox_id)?;
        let stats = blocking(&self.0, move |runtime| runtime.sandbox_stats(&sandbox)).await?;
        Ok(Response::new(v1::PodSandboxStatsResponse {
            stats: Some(stats),
        }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter;
        let stats = blocking(&self.0, |runtime| runtime.list_sandbox_stats(filter)).await?;
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let filter = request.into_inner().filter;
        let items = blocking(&self.0, |runtime| runtime.list_sandbox_stats(filter)).await?;
        Ok(Response::new(pages(items, |pod_sandbox_stats| {
            v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }
        })))
    }

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        Ok(Response::new(self.0.event_stream()))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        Err(Status::unimplemented("metrics are told as stats"))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        Err(Status::unimplemented("metrics are told as stats"))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        Err(Status::unimplemented("metrics are told as stats"))
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        Err(Status::unimplemented("checkpoints are not supported"))
    }

    async fn checkpoint_pod(
        &self,
        _: Request<v1::CheckpointPodRequest>,
    ) -> Answer<v1::CheckpointPodResponse> {
        Err(Status::unimplemented("checkpoints are not supported"))
    }

    async fn restore_pod(
        &self,
        _: Request<v1::RestorePodRequest>,
    ) -> Answer<v1::RestorePodResponse> {
        Err(Status::unimplemented("checkpoints are not supported"))
    }
}
