//! The container runtime, reached only through CRI v1: the embedded one as a service in this
//! process, any other over gRPC. Calls return what upstream's agent calls them, errors keep the
//! runtime's own words.

use std::collections::HashMap;
use std::time::Duration;

use http::{Request, Response};
use oci::cri::v1::image_service_client::ImageServiceClient;
use oci::cri::v1::runtime_service_client::RuntimeServiceClient;
use oci::cri::v1::{self, ContainerEventResponse};
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceExt};

/// Largest message taken from the runtime, in bytes (exec output is the largest there is).
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// The connection to the runtime failed. (A type of its own: with a plain box the compiler cannot
/// see that calls may move between threads.)
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TransportError(BoxError);

type Transport = BoxCloneSyncService<Request<Body>, Response<Body>, TransportError>;

/// A call to the runtime that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("rpc error: code = {} desc = {}", code_name(.0.code()), .0.message())]
pub struct CriError(pub Box<tonic::Status>);

impl CriError {
    /// Whether the runtime does not know the thing named.
    pub fn not_found(&self) -> bool {
        self.0.code() == tonic::Code::NotFound
    }

    /// The runtime's own text.
    pub fn message(&self) -> &str {
        self.0.message()
    }
}

impl From<tonic::Status> for CriError {
    fn from(status: tonic::Status) -> Self {
        CriError(Box::new(status))
    }
}

fn code_name(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::NotFound => "NotFound",
        tonic::Code::AlreadyExists => "AlreadyExists",
        tonic::Code::InvalidArgument => "InvalidArgument",
        tonic::Code::FailedPrecondition => "FailedPrecondition",
        tonic::Code::DeadlineExceeded => "DeadlineExceeded",
        tonic::Code::Unavailable => "Unavailable",
        tonic::Code::Unimplemented => "Unimplemented",
        tonic::Code::PermissionDenied => "PermissionDenied",
        tonic::Code::Unauthenticated => "Unauthenticated",
        tonic::Code::ResourceExhausted => "ResourceExhausted",
        tonic::Code::Internal => "Internal",
        _ => "Unknown",
    }
}

/// Result of a call to the runtime.
pub type Result<T> = std::result::Result<T, CriError>;

/// Output and exit code of a command run in a container.
#[derive(Clone, Debug, Default)]
pub struct ExecOutput {
    /// Standard output, then standard error.
    pub output: Vec<u8>,
    /// Exit code.
    pub exit_code: i32,
}

/// Clients of the runtime's two services. Cheap to clone.
#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Transport>,
    images: ImageServiceClient<Transport>,
}

impl std::fmt::Debug for Cri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cri")
    }
}

fn boxed<S, B>(service: S) -> Transport
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    BoxCloneSyncService::new(
        service
            .map_response(|r| r.map(Body::new))
            .map_err(|e| TransportError(e.into())),
    )
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident on $client:ident;)*) => {
        $($(#[$doc])*
        pub async fn $name(&self, request: v1::$request) -> Result<v1::$response> {
            Ok(self.$client.clone().$name(request).await?.into_inner())
        })*
    };
}

impl Cri {
    /// Clients over two services: generated servers in this process, or gRPC channels.
    pub fn new<R, I, A, B>(runtime: R, images: I) -> Cri
    where
        R: Service<Request<Body>, Response = Response<A>> + Clone + Send + Sync + 'static,
        R::Error: Into<BoxError>,
        R::Future: Send + 'static,
        A: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
        A::Error: Into<BoxError>,
        I: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        I::Error: Into<BoxError>,
        I::Future: Send + 'static,
        B: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Cri {
            runtime: RuntimeServiceClient::new(boxed(runtime))
                .max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(boxed(images)).max_decoding_message_size(MAX_MESSAGE),
        }
    }

    calls! {
        /// Name and version of the runtime.
        version(VersionRequest) -> VersionResponse on runtime;
        /// Makes and starts a sandbox.
        run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse on runtime;
        /// Sandboxes that match a filter.
        list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse on runtime;
        /// Containers that match a filter.
        list_containers(ListContainersRequest) -> ListContainersResponse on runtime;
        /// Makes a container.
        create_container(CreateContainerRequest) -> CreateContainerResponse on runtime;
        /// URL at which a command's streams are served.
        exec(ExecRequest) -> ExecResponse on runtime;
        /// URL at which a container's streams are served.
        attach(AttachRequest) -> AttachResponse on runtime;
        /// URL at which a sandbox's ports are served.
        port_forward(PortForwardRequest) -> PortForwardResponse on runtime;
        /// Resource use of containers.
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse on runtime;
        /// Resource use of sandboxes.
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse on runtime;
        /// All images.
        list_images(ListImagesRequest) -> ListImagesResponse on images;
        /// Pulls an image.
        pull_image(PullImageRequest) -> PullImageResponse on images;
        /// Disk used by images.
        image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse on images;
    }

    /// The image, if the runtime has it.
    pub async fn image(&self, image: &str) -> Result<Option<v1::Image>> {
        let request = v1::ImageStatusRequest {
            image: Some(spec(image)),
            verbose: false,
        };
        let response = self.images.clone().image_status(request).await?;
        Ok(response.into_inner().image)
    }

    /// Starts a container.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        let request = v1::StartContainerRequest {
            container_id: id.to_owned(),
        };
        self.runtime.clone().start_container(request).await?;
        Ok(())
    }

    /// Stops a container: its stop signal, then SIGKILL after `grace` seconds. Done if it is gone.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<()> {
        let request = v1::StopContainerRequest {
            container_id: id.to_owned(),
            timeout: grace,
        };
        gone_is_fine(self.runtime.clone().stop_container(request).await)
    }

    /// Removes a container. Done if it is gone.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = v1::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        gone_is_fine(self.runtime.clone().remove_container(request).await)
    }

    /// Stops a sandbox. Done if it is gone.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        gone_is_fine(self.runtime.clone().stop_pod_sandbox(request).await)
    }

    /// Removes a sandbox. Done if it is gone.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        gone_is_fine(self.runtime.clone().remove_pod_sandbox(request).await)
    }

    /// Makes the runtime open a container's log file anew, after it was renamed.
    pub async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let request = v1::ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        self.runtime.clone().reopen_container_log(request).await?;
        Ok(())
    }

    /// State of a sandbox, or `None` if it is gone.
    pub async fn pod_sandbox_status(&self, id: &str) -> Result<Option<v1::PodSandboxStatus>> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.runtime.clone().pod_sandbox_status(request).await;
        Ok(known(answer)?.and_then(|r| r.status))
    }

    /// State of a container, or `None` if it is gone.
    pub async fn container_status(&self, id: &str) -> Result<Option<v1::ContainerStatus>> {
        let request = v1::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.runtime.clone().container_status(request).await;
        Ok(known(answer)?.and_then(|r| r.status))
    }

    /// Runs a command in a container and waits for it, `timeout` at most.
    pub async fn exec_sync(
        &self,
        id: &str,
        cmd: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: cmd.to_vec(),
            timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        };
        let response = self.runtime.clone().exec_sync(request).await?.into_inner();
        let mut output = response.stdout;
        output.extend_from_slice(&response.stderr);
        Ok(ExecOutput {
            output,
            exit_code: response.exit_code,
        })
    }

    /// Everything that happens to containers from now on.
    pub async fn events(&self) -> Result<tonic::Streaming<ContainerEventResponse>> {
        let response = self
            .runtime
            .clone()
            .get_container_events(v1::GetEventsRequest {})
            .await?;
        Ok(response.into_inner())
    }
}

/// An image reference as the runtime wants it.
pub fn spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: image.to_owned(),
        user_specified_image: image.to_owned(),
        ..v1::ImageSpec::default()
    }
}

/// Labels that select what belongs to one pod.
pub fn selector(uid: &str) -> HashMap<String, String> {
    HashMap::from([(crate::labels::POD_UID.to_owned(), uid.to_owned())])
}

fn gone_is_fine<T>(answer: std::result::Result<tonic::Response<T>, tonic::Status>) -> Result<()> {
    known(answer).map(|_| ())
}

fn known<T>(answer: std::result::Result<tonic::Response<T>, tonic::Status>) -> Result<Option<T>> {
    match answer {
        Ok(response) => Ok(Some(response.into_inner())),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}
