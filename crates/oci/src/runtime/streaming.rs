//! The streaming server: exec, attach and port-forward, at URLs that work once.
//!
//! The CRI calls only return a URL; whoever has it (the API server, through the node agent)
//! connects here and speaks SPDY or WebSocket. The server listens on loopback alone, and a URL's
//! token is random, short-lived and good for one connection.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use streams::portforward;
use streams::remotecommand::{self, Exit, Options, Session};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::net::unix::pipe;
use tonic::Status;

use super::container::Container;
use super::sandbox::Sandbox;
use super::shim_client::{self, ShimConnection};
use super::{Runtime, lock, new_id, port_forward};
use crate::cri::v1;
use crate::proto::{self, Reply};
use crate::sys;

/// How long a URL may wait to be used.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// URLs that may wait at once.
const MAX_TOKENS: usize = 1000;
/// How long output may keep coming after the process is gone.
const DRAIN: Duration = Duration::from_secs(2);

/// What a URL stands for.
enum Ticket {
    Exec(v1::ExecRequest),
    Attach(v1::AttachRequest),
    PortForward(v1::PortForwardRequest),
}

/// The server's address and the URLs that have not been used.
pub struct Streaming {
    address: SocketAddr,
    tickets: Mutex<HashMap<String, (Instant, Ticket)>>,
}

impl Streaming {
    /// Binds a port of loopback; [`serve`] then serves it.
    pub async fn bind() -> io::Result<(Self, TcpListener)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let streaming = Self {
            address: listener.local_addr()?,
            tickets: Mutex::default(),
        };
        Ok((streaming, listener))
    }

    fn url(&self, kind: &str, ticket: Ticket) -> Result<String, Status> {
        let token = new_id();
        let mut tickets = lock(&self.tickets);
        tickets.retain(|_, (made, _)| made.elapsed() < TOKEN_LIFE);
        if tickets.len() >= MAX_TOKENS {
            return Err(Status::resource_exhausted(
                "maximum number of in-flight requests exceeded",
            ));
        }
        let url = format!("http://{}/{kind}/{token}", self.address);
        tickets.insert(token, (Instant::now(), ticket));
        Ok(url)
    }

    fn redeem(&self, path: &str) -> Option<Ticket> {
        let (_, token) = path.rsplit_once('/')?;
        let (made, ticket) = lock(&self.tickets).remove(token)?;
        (made.elapsed() < TOKEN_LIFE).then_some(ticket)
    }
}

/// Serves until the runtime is gone.
pub async fn serve(listener: TcpListener, runtime: Weak<Runtime>) {
    /// Pause after the system has no descriptors left.
    const PAUSE: Duration = Duration::from_millis(100);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if runtime.strong_count() == 0 {
            return;
        }
        let _ = stream.set_nodelay(true);
        let runtime = runtime.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let runtime = runtime.clone();
                async move { Ok::<_, Infallible>(answer(runtime, request)) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
        });
    }
}

fn answer(runtime: Weak<Runtime>, request: Request<Incoming>) -> Response<streams::Body> {
    let refuse = |code: StatusCode, text: &str| {
        let mut response = Response::new(streams::Body::from(text.to_owned()));
        *response.status_mut() = code;
        response
    };
    let Some(runtime) = runtime.upgrade() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "runtime is gone");
    };
    let path = request.uri().path().to_owned();
    match runtime.streaming.redeem(&path) {
        None => refuse(StatusCode::NOT_FOUND, "no such token"),
        Some(Ticket::Exec(exec)) => {
            let options = Options {
                stdin: exec.stdin,
                stdout: exec.stdout,
                stderr: exec.stderr,
                tty: exec.tty,
            };
            remote_command(request, options, |session| {
                runtime.exec_session(exec, session)
            })
        }
        Some(Ticket::Attach(attach)) => {
            let options = Options {
                stdin: attach.stdin,
                stdout: attach.stdout,
                stderr: attach.stderr,
                tty: attach.tty,
            };
            remote_command(request, options, |session| {
                runtime.attach_session(attach, session)
            })
        }
        Some(Ticket::PortForward(forward)) => {
            let ports: Vec<u16> = forward
                .port
                .iter()
                .filter_map(|port| u16::try_from(*port).ok())
                .collect();
            match portforward::serve(request, &ports) {
                Ok((response, pending)) => {
                    tokio::spawn(port_forward::serve(
                        runtime,
                        forward.pod_sandbox_id,
                        pending,
                    ));
                    response
                }
                Err(refused) => refused.into_response(),
            }
        }
    }
}

fn remote_command<F>(
    request: Request<Incoming>,
    options: Options,
    run: impl FnOnce(Session) -> F + Send + 'static,
) -> Response<streams::Body>
where
    F: Future<Output = ()> + Send,
{
    let (response, pending) = match remotecommand::serve(request, options) {
        Ok(accepted) => accepted,
        Err(refused) => return refused.into_response(),
    };
    tokio::spawn(async move {
        match pending.session().await {
            Ok(session) => run(session).await,
            Err(error) => tracing::debug!(%error, "a client left before its streams were open"),
        }
    });
    response
}

impl Runtime {
    /// A URL at which a command will be run.
    pub async fn exec_url(&self, request: v1::ExecRequest) -> Result<String, Status> {
        self.running(&request.container_id)?;
        if request.tty && request.stderr {
            return Err(Status::invalid_argument(
                "tty and stderr cannot both be true",
            ));
        }
        if !(request.stdin || request.stdout || request.stderr) {
            return Err(Status::invalid_argument(
                "one of stdin, stdout, or stderr must be set",
            ));
        }
        self.streaming.url("exec", Ticket::Exec(request))
    }

    /// A URL at which a container's streams are to be had.
    pub async fn attach_url(&self, mut request: v1::AttachRequest) -> Result<String, Status> {
        let (container, _) = self.running(&request.container_id)?;
        // Whether there is a terminal is the container's, not the caller's.
        request.tty = container.config.tty;
        request.stderr &= !request.tty;
        if !(request.stdin || request.stdout || request.stderr) {
            return Err(Status::invalid_argument(
                "one of stdin, stdout, or stderr must be set",
            ));
        }
        self.streaming.url("attach", Ticket::Attach(request))
    }

    /// A URL at which connections to a sandbox's ports are made.
    pub async fn port_forward_url(
        &self,
        request: v1::PortForwardRequest,
    ) -> Result<String, Status> {
        if !self.sandbox(&request.pod_sandbox_id)?.is_ready() {
            return Err(Status::failed_precondition(format!(
                "sandbox container {:?} is not running",
                request.pod_sandbox_id
            )));
        }
        self.streaming
            .url("portforward", Ticket::PortForward(request))
    }

    async fn exec_session(self: Arc<Self>, request: v1::ExecRequest, session: Session) {
        let mut session = session;
        let exit = match self.exec_streams(&request, &mut session).await {
            Ok(code) => Exit::Code(code),
            Err(error) => Exit::Failed(format!("error executing command in container: {error}")),
        };
        session.finish(exit).await;
    }

    async fn exec_streams(
        &self,
        request: &v1::ExecRequest,
        session: &mut Session,
    ) -> Result<i32, String> {
        let (container, sandbox) = self.running(&request.container_id).map_err(message)?;
        let process = self
            .exec_plan(&container, request.cmd.clone(), request.tty)
            .map_err(message)?;
        let asked = proto::Request::Exec {
            id: container.record.id.clone(),
            process: Box::new(process),
            kill_on_close: false,
        };
        let failed =
            |error: &dyn std::fmt::Display| format!("failed to exec in container: {error}");
        let mut shim = ShimConnection::connect(&sandbox.dir).map_err(|error| failed(&error))?;
        let (ours, theirs) = if request.tty {
            (Ends::default(), Vec::new())
        } else {
            pipes(request).map_err(|error| failed(&error))?
        };
        let numbers: Vec<i32> = theirs.iter().map(AsRawFd::as_raw_fd).collect();
        let answered = shim.ask(&asked, &numbers).await;
        drop(theirs);
        let (_, terminal) = answered.map_err(|error| {
            format!("failed to exec in container: failed to start exec: {error}")
        })?;
        let copying = match terminal {
            Some(terminal) => tokio::spawn(copy_terminal(terminal, take(session))),
            None => tokio::spawn(copy_pipes(ours, take(session))),
        };
        let exit = shim.receive().await;
        // What the process wrote is still on its way; its children may hold the output for ever.
        let stop = copying.abort_handle();
        if tokio::time::timeout(DRAIN, copying).await.is_err() {
            stop.abort();
        }
        match exit {
            Ok((Reply::ExecExit { code }, _)) => Ok(code),
            Ok((other, _)) => Err(failed(&format!("unexpected reply {other:?}"))),
            Err(error) => Err(failed(&error)),
        }
    }

    async fn attach_session(self: Arc<Self>, request: v1::AttachRequest, session: Session) {
        let mut session = session;
        let exit = match self.attach_streams(&request, &mut session).await {
            Ok(()) => Exit::Code(0),
            Err(error) => Exit::Failed(format!("error attaching to container: {error}")),
        };
        session.finish(exit).await;
    }

    async fn attach_streams(
        &self,
        request: &v1::AttachRequest,
        session: &mut Session,
    ) -> Result<(), String> {
        let (container, sandbox) = self.running(&request.container_id).map_err(message)?;
        let failed = |error: &dyn std::fmt::Display| format!("failed to attach: {error}");
        let (stdout, stdout_end) = pipe_out().map_err(|error| failed(&error))?;
        let (stderr, stderr_end) = pipe_out().map_err(|error| failed(&error))?;
        let asked = proto::Request::Attach {
            id: container.record.id.clone(),
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        let mut numbers = Vec::new();
        if request.stdout {
            numbers.push(stdout_end.as_raw_fd());
        }
        if request.stderr {
            numbers.push(stderr_end.as_raw_fd());
        }
        let input = {
            let mut shim = ShimConnection::connect(&sandbox.dir).map_err(|error| failed(&error))?;
            let (_, input) = shim
                .ask(&asked, &numbers)
                .await
                .map_err(|error| failed(&error))?;
            input
        };
        drop((stdout_end, stderr_end));
        let mut client = take(session);
        if let Some(resize) = client.resize.take() {
            tokio::spawn(resize_container(container.clone(), sandbox.clone(), resize));
        }
        let ends = Ends {
            stdin: input.and_then(|fd| pipe::Sender::from_owned_fd_unchecked(fd).ok()),
            stdout: request.stdout.then_some(stdout),
            stderr: request.stderr.then_some(stderr),
        };
        let gone = session.gone();
        if request.stdout || request.stderr {
            tokio::select! {
                () = copy_pipes(ends, client) => {}
                () = gone => {}
            }
        } else {
            // Input alone: until the client has no more, or the container is gone.
            tokio::select! {
                () = copy_input(client.stdin, ends.stdin) => {}
                () = container.exited() => {}
                () = gone => {}
            }
        }
        Ok(())
    }
}

fn message(status: Status) -> String {
    status.message().to_owned()
}

async fn resize_container(
    container: Arc<Container>,
    sandbox: Arc<Sandbox>,
    mut sizes: tokio::sync::mpsc::Receiver<remotecommand::TerminalSize>,
) {
    while let Some(size) = sizes.recv().await {
        let request = proto::Request::Resize {
            id: container.record.id.clone(),
            width: size.width,
            height: size.height,
        };
        if shim_client::ask(&sandbox.dir, &request).await.is_err() {
            return;
        }
    }
}

/// A client's streams, taken out of its session.
struct Client {
    stdin: Option<DuplexStream>,
    stdout: Option<DuplexStream>,
    stderr: Option<DuplexStream>,
    resize: Option<tokio::sync::mpsc::Receiver<remotecommand::TerminalSize>>,
}

fn take(session: &mut Session) -> Client {
    let (_, nothing) = tokio::sync::mpsc::channel(1);
    Client {
        stdin: session.stdin.take(),
        stdout: session.stdout.take(),
        stderr: session.stderr.take(),
        resize: Some(std::mem::replace(&mut session.resize, nothing)),
    }
}

/// This side's ends of a process's standard streams.
#[derive(Default)]
struct Ends {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

fn pipe_out() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
}

/// Pipes for the streams a client wants; the others lead nowhere.
fn pipes(request: &v1::ExecRequest) -> io::Result<(Ends, Vec<OwnedFd>)> {
    let null = || {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        io::Result::Ok(OwnedFd::from(file))
    };
    let mut ends = Ends::default();
    let stdin = if request.stdin {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        rustix::io::ioctl_fionbio(&writer, true)?;
        ends.stdin = Some(pipe::Sender::from_owned_fd(writer)?);
        reader
    } else {
        null()?
    };
    let output = |wanted: bool| {
        if !wanted {
            return Ok((None, null()?));
        }
        pipe_out().map(|(reader, writer)| (Some(reader), writer))
    };
    let (stdout, stdout_end) = output(request.stdout)?;
    let (stderr, stderr_end) = output(request.stderr)?;
    ends.stdout = stdout;
    ends.stderr = stderr;
    Ok((ends, vec![stdin, stdout_end, stderr_end]))
}

/// Copies until all output has ended; input that is left over is dropped then.
async fn copy_pipes(ends: Ends, client: Client) {
    let input = tokio::spawn(copy_input(client.stdin, ends.stdin));
    tokio::join!(
        copy(ends.stdout, client.stdout),
        copy(ends.stderr, client.stderr)
    );
    input.abort();
}

async fn copy_input(from: Option<DuplexStream>, to: Option<pipe::Sender>) {
    copy(from, to).await;
}

/// Copies one direction; what has only one end is dropped, which ends it for the other side.
async fn copy(from: Option<impl AsyncRead + Unpin>, to: Option<impl AsyncWrite + Unpin>) {
    if let (Some(mut from), Some(mut to)) = (from, to) {
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    }
}

/// Copies both directions of a terminal. Reading fails when its other end is closed.
async fn copy_terminal(terminal: OwnedFd, client: Client) {
    let Ok((input, output, sized)) = split_terminal(terminal) else {
        return;
    };
    let input = tokio::spawn(copy_input(client.stdin, Some(input)));
    let resize = tokio::spawn(async move {
        let Some(mut sizes) = client.resize else {
            return;
        };
        while let Some(size) = sizes.recv().await {
            let _ = sys::set_window_size(&sized, size.width, size.height);
        }
    });
    copy(Some(output), client.stdout).await;
    input.abort();
    resize.abort();
}

fn split_terminal(terminal: OwnedFd) -> io::Result<(pipe::Sender, pipe::Receiver, OwnedFd)> {
    rustix::io::ioctl_fionbio(&terminal, true)?;
    Ok((
        pipe::Sender::from_owned_fd_unchecked(terminal.try_clone()?)?,
        pipe::Receiver::from_owned_fd_unchecked(terminal.try_clone()?)?,
        terminal,
    ))
}
