//! Exec, attach and port-forward: the runtime gives a URL on its own streaming server, the upgraded
//! connection is tunnelled there byte for byte.

use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use oci::cri::v1::{
    AttachRequest, ContainerFilter, ContainerState, ContainerStateValue, ExecRequest,
    ListContainersRequest, ListPodSandboxRequest, PodSandboxFilter, PodSandboxState,
    PodSandboxStateValue, PortForwardRequest,
};
use tokio::net::TcpStream;

use super::{Answer, Failure, Query, Refusal, Server};
use crate::cri;
use crate::labels;
use crate::pod::PodRef;

/// Runs a command with its streams.
pub async fn exec(
    server: &Server,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Answer {
    let container_id = running(server, namespace, name, container).await?;
    let cmd = query.all("command").to_vec();
    if cmd.is_empty() {
        return Err(Refusal::bad(
            "you must specify at least 1 command for the container",
        ));
    }
    let tty = query.flag(["tty", "tty"]);
    let call = ExecRequest {
        container_id,
        cmd,
        tty,
        stdin: query.flag(["input", "stdin"]),
        stdout: query.flag(["output", "stdout"]),
        stderr: query.flag(["error", "stderr"]) && !tty,
    };
    let url = server
        .agent
        .cri
        .exec(call)
        .await
        .map_err(Refusal::internal)?
        .url;
    tunnel(&url, request).await
}

/// Joins a container's own streams.
pub async fn attach(
    server: &Server,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Answer {
    let container_id = running(server, namespace, name, container).await?;
    let tty = query.flag(["tty", "tty"]);
    let call = AttachRequest {
        container_id,
        tty,
        stdin: query.flag(["input", "stdin"]),
        stdout: query.flag(["output", "stdout"]),
        stderr: query.flag(["error", "stderr"]) && !tty,
    };
    let url = server
        .agent
        .cri
        .attach(call)
        .await
        .map_err(Refusal::internal)?
        .url;
    tunnel(&url, request).await
}

/// Forwards ports of a pod.
pub async fn port_forward(
    server: &Server,
    namespace: &str,
    name: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Answer {
    let uid = uid_of(server, namespace, name)?;
    let filter = PodSandboxFilter {
        label_selector: cri::selector(&uid),
        state: Some(PodSandboxStateValue {
            state: PodSandboxState::SandboxReady.into(),
        }),
        ..PodSandboxFilter::default()
    };
    let listed = server
        .agent
        .cri
        .list_pod_sandbox(ListPodSandboxRequest {
            filter: Some(filter),
        })
        .await;
    let sandbox = listed
        .map_err(Refusal::internal)?
        .items
        .into_iter()
        .max_by_key(|s| s.created_at);
    let sandbox = sandbox.ok_or_else(|| {
        Refusal::internal(format!("pod not found (\"{name}_{namespace}({uid})\")"))
    })?;
    let asked = query
        .all("port")
        .iter()
        .chain(query.all("ports"))
        .flat_map(|p| p.split(','));
    let port = asked.filter_map(|p| p.parse().ok()).collect();
    let call = PortForwardRequest {
        pod_sandbox_id: sandbox.id,
        port,
    };
    let url = server
        .agent
        .cri
        .port_forward(call)
        .await
        .map_err(Refusal::internal)?
        .url;
    tunnel(&url, request).await
}

fn uid_of(server: &Server, namespace: &str, name: &str) -> Result<String, Refusal> {
    let pod = server.directory.find(namespace, name);
    pod.map(|p| PodRef::of(&p).uid)
        .ok_or_else(|| Refusal::not_found(format!("pod \"{name}\" does not exist")))
}

async fn running(
    server: &Server,
    namespace: &str,
    name: &str,
    container: &str,
) -> Result<String, Refusal> {
    let uid = uid_of(server, namespace, name)?;
    let mut selector = cri::selector(&uid);
    selector.insert(labels::CONTAINER_NAME.to_owned(), container.to_owned());
    let filter = ContainerFilter {
        label_selector: selector,
        state: Some(ContainerStateValue {
            state: ContainerState::ContainerRunning.into(),
        }),
        ..ContainerFilter::default()
    };
    let listed = server
        .agent
        .cri
        .list_containers(ListContainersRequest {
            filter: Some(filter),
        })
        .await;
    let newest = listed
        .map_err(Refusal::internal)?
        .containers
        .into_iter()
        .max_by_key(|c| c.created_at);
    newest.map(|c| c.id).ok_or_else(|| {
        Refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("container not found (\"{container}\")"),
        )
    })
}

async fn tunnel(url: &str, mut request: Request<Incoming>) -> Answer {
    let uri: Uri = url
        .parse()
        .map_err(|_| Refusal::internal(format!("the runtime gave a bad URL: {url}")))?;
    let host = uri.host().unwrap_or("127.0.0.1").to_owned();
    let port = uri.port_u16().unwrap_or(80);
    let io = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(Refusal::internal)?;
    // Keystrokes travel alone.
    io.set_nodelay(true).map_err(Refusal::internal)?;
    let authority = format!("{host}:{port}");
    request.headers_mut().insert(
        "host",
        HeaderValue::try_from(authority).map_err(Refusal::internal)?,
    );
    *request.uri_mut() = uri;
    let response = streams::upgrade::proxy(request, io)
        .await
        .map_err(Refusal::internal)?;
    Ok(response.map(|body| body.map_err(|e| Box::new(e) as Failure).boxed_unsync()) as Response<_>)
}
