//! What the shim does when asked.

use std::io;
use std::os::fd::OwnedFd;

use super::attach::{Attacher, Unseen, set_nonblocking};
use super::container::{Container, EXIT, STARTED, write_record};
use super::log::{Log, now_nanoseconds};
use super::server::{Operation, OperationKind, Server};
use super::{create, exec, report};
use crate::cgroups::Hierarchy;
use crate::plan::{ContainerPlan, Exit, PidPlan, ProcessPlan, Started};
use crate::proto::{ContainerState, Reply, Request};
use crate::seccomp;
use crate::sys::{self, Fork};

impl Server {
    /// Does what a request asks; long work goes on as an `Operation`.
    pub fn request(&mut self, connection: u64, request: Request, fds: Vec<OwnedFd>) {
        let result = match request {
            Request::Start(plan) => self.start(connection, *plan).map(|()| None),
            Request::Exec {
                id,
                process,
                kill_on_close,
            } => self
                .exec(connection, &id, &process, kill_on_close, fds)
                .map(|()| None),
            Request::Attach {
                id,
                stdin,
                stdout,
                stderr,
            } => self
                .attach(connection, &id, [stdin, stdout, stderr], fds)
                .map(|()| None),
            Request::Kill { id, signal, all } => self.kill(&id, signal, all).map(Some),
            Request::Resize { id, width, height } => self.resize(&id, width, height).map(Some),
            Request::ReopenLog { id } => self.reopen_log(&id).map(Some),
            Request::Forget { id } => self.forget(&id).map(Some),
            Request::Subscribe => {
                self.subscribe(connection);
                Ok(None)
            }
            Request::Shutdown => {
                self.shut_down();
                Ok(Some(Reply::Done))
            }
        };
        match result {
            Ok(Some(reply)) => self.reply(connection, &reply),
            Ok(None) => {}
            Err(error) => self.reply(connection, &Reply::Error(error)),
        }
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, String> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| format!("container {id} is unknown to its shim"))
    }

    fn running(&mut self, id: &str) -> Result<(&mut Container, i32), String> {
        let container = self.container(id)?;
        let pid = container
            .pid()
            .ok_or_else(|| format!("container {id} is not running"))?;
        Ok((container, pid))
    }

    fn start(&mut self, connection: u64, plan: ContainerPlan) -> Result<(), String> {
        if self.containers.contains_key(&plan.id) {
            return Err(format!("container {} is already started", plan.id));
        }
        if self.shutting_down {
            return Err("the pod is being stopped".into());
        }
        let pid_namespace = match &plan.pid {
            PidPlan::Own | PidPlan::Host => None,
            PidPlan::Pod => Some(self.pod_init.ok_or("the pod shares no process namespace")?),
            PidPlan::Target(id) => Some(self.running(&id.clone())?.1),
        }
        .map(|pid| format!("/proc/{pid}/ns/pid").into());
        let filter = seccomp::compile(&plan.process).map_err(|error| error.to_string())?;
        let fail = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let log = Log::open(plan.log_path.clone()).map_err(fail("open log"))?;
        let mut streams = Streams::default();
        let stdio = if plan.process.terminal {
            None
        } else {
            Some(streams.open(plan.stdin).map_err(fail("open pipes"))?)
        };
        let (ours, theirs) = report::channel().map_err(fail("open report"))?;
        let inputs = create::Inputs {
            plan: &plan,
            report: theirs,
            stdio,
            shm_namespace: &self.shm_namespace,
            pid_namespace,
            filter,
        };
        match sys::fork().map_err(|error| format!("fork: {error}"))? {
            Fork::Child => create::run(inputs),
            Fork::Parent(_) => drop(inputs),
        }
        let id = plan.id.clone();
        let container = Container {
            unseen: (plan.stdin && plan.stdin_once).then(Unseen::default),
            plan,
            log,
            stdout: streams.stdout,
            stderr: streams.stderr,
            stdin: streams.stdin,
            terminal: None,
            attachers: Vec::new(),
            started: None,
            dying: None,
            exit: None,
        };
        self.containers.insert(id.clone(), container);
        self.operations.push(Operation {
            connection,
            report: ours,
            pid: None,
            terminal: None,
            error: None,
            detail: None,
            user: None,
            kind: OperationKind::Start { id },
        });
        Ok(())
    }

    fn exec(
        &mut self,
        connection: u64,
        id: &str,
        process: &ProcessPlan,
        kill_on_close: bool,
        fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let (container, pid) = self.running(id)?;
        let stdio = match (process.terminal, <[OwnedFd; 3]>::try_from(fds)) {
            (true, _) => None,
            (false, Ok(fds)) => Some(fds),
            (false, Err(_)) => return Err("standard streams are missing".into()),
        };
        let filter = seccomp::compile(process).map_err(|error| error.to_string())?;
        let (ours, theirs) = report::channel().map_err(|error| error.to_string())?;
        let inputs = exec::Inputs {
            pid,
            cgroup: &container.plan.cgroup,
            process,
            report: theirs,
            stdio,
            filter,
        };
        match sys::fork().map_err(|error| format!("fork: {error}"))? {
            Fork::Child => exec::run(inputs),
            Fork::Parent(_) => drop(inputs),
        }
        self.operations.push(Operation {
            connection,
            report: ours,
            pid: None,
            terminal: None,
            error: None,
            detail: None,
            user: None,
            kind: OperationKind::Exec { kill_on_close },
        });
        Ok(())
    }

    /// A process exists now, or it is clear why not.
    pub fn complete(&mut self, operation: Operation) {
        match operation.kind {
            OperationKind::Start { ref id } => {
                let id = id.clone();
                self.complete_start(&id, operation);
            }
            OperationKind::Exec { kill_on_close } => self.complete_exec(operation, kill_on_close),
        }
    }

    fn complete_start(&mut self, id: &str, operation: Operation) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let cgroup = Hierarchy::system().cgroup(&container.plan.cgroup);
        let failed = operation.failure("the container's first process died while it was built");
        let Some(pid) = operation.pid.filter(|_| failed.is_none()) else {
            cgroup.kill_all();
            let error = failed.unwrap_or_default();
            let exit = Exit {
                code: 128,
                finished_at: now_nanoseconds(),
                oom_killed: false,
                start_error: Some(error.clone()),
            };
            let _ = write_record(&container.plan.dir, EXIT, &exit);
            self.containers.remove(id);
            self.reply(operation.connection, &Reply::Error(error));
            return;
        };
        let started = Started {
            pid,
            started_at: now_nanoseconds(),
            user: operation.user,
        };
        let _ = write_record(&container.plan.dir, STARTED, &started);
        container.started = Some(started.clone());
        if let Some(terminal) = operation.terminal {
            let _ = set_nonblocking(&terminal);
            if container.plan.stdin {
                container.stdin = terminal.try_clone().ok();
            }
            container.terminal = Some(terminal);
        }
        self.reply(operation.connection, &Reply::Started(started));
        if self.shutting_down {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        self.claim(pid);
    }

    fn complete_exec(&mut self, operation: Operation, kill_on_close: bool) {
        let id = operation.connection;
        let Some(pid) = operation.pid.filter(|_| operation.error.is_none()) else {
            let error = operation.failure("the process died while it was built");
            self.reply(id, &Reply::Error(error.unwrap_or_default()));
            return;
        };
        self.executing.insert(pid, id);
        match self.connections.get_mut(&id) {
            Some(connection) => {
                connection.reply_with(&Reply::Executing { pid }, operation.terminal.as_ref());
                connection.kill_on_close = kill_on_close.then_some(pid);
            }
            None if kill_on_close => {
                let _ = sys::kill(pid, libc::SIGKILL);
            }
            None => {}
        }
        self.claim(pid);
    }

    /// The process may have ended before it was known.
    fn claim(&mut self, pid: i32) {
        if let Some(at) = self.unclaimed.iter().position(|(other, _)| *other == pid)
            && let Some((pid, code)) = self.unclaimed.remove(at)
        {
            self.exited(pid, code);
        }
    }

    fn attach(
        &mut self,
        connection: u64,
        id: &str,
        [stdin, stdout, stderr]: [bool; 3],
        fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let (container, _) = self.running(id)?;
        let mut fds = fds.into_iter();
        let mut attacher = Attacher::new(
            if stdout { fds.next() } else { None },
            if stderr { fds.next() } else { None },
        );
        if (stdout || stderr)
            && let Some(unseen) = container.unseen.take()
        {
            unseen.show(&mut attacher);
        }
        container.attachers.push(attacher);
        let input = match (
            stdin,
            container.plan.stdin_once && container.terminal.is_none(),
        ) {
            (false, _) => None,
            // Handed over for good: when that client is done, the input ends.
            (true, true) => container.stdin.take(),
            (true, false) => container.stdin.as_ref().and_then(|fd| fd.try_clone().ok()),
        };
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.reply_with(&Reply::Attached, input.as_ref());
        }
        Ok(())
    }

    fn kill(&mut self, id: &str, signal: i32, all: bool) -> Result<Reply, String> {
        let Some(container) = self.containers.get(id) else {
            return Ok(Reply::Done);
        };
        if let Some(pid) = container.pid() {
            match sys::kill(pid, signal) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(format!("kill: {error}"));
                }
                _ => {}
            }
        }
        if all {
            let cgroup = Hierarchy::system().cgroup(&container.plan.cgroup);
            if signal == libc::SIGKILL {
                cgroup.kill_all();
            } else {
                cgroup.signal_all(signal);
            }
        }
        Ok(Reply::Done)
    }

    fn resize(&mut self, id: &str, width: u16, height: u16) -> Result<Reply, String> {
        let container = self.container(id)?;
        let terminal = container.terminal.as_ref().ok_or("no terminal")?;
        sys::set_window_size(terminal, width, height).map_err(|error| error.to_string())?;
        Ok(Reply::Done)
    }

    fn reopen_log(&mut self, id: &str) -> Result<Reply, String> {
        let container = self.container(id)?;
        container
            .log
            .reopen()
            .map_err(|error| format!("reopen log: {error}"))?;
        Ok(Reply::Done)
    }

    fn forget(&mut self, id: &str) -> Result<Reply, String> {
        let Some(container) = self.containers.get(id) else {
            return Ok(Reply::Done);
        };
        if container.exit.is_none() {
            return Err(format!("container {id} has not exited"));
        }
        self.containers.remove(id);
        Ok(Reply::Done)
    }

    fn subscribe(&mut self, connection: u64) {
        let containers = self
            .containers
            .iter()
            .map(|(id, container)| ContainerState {
                id: id.clone(),
                started: container.started.clone(),
                exit: container.exit.clone(),
            })
            .collect();
        self.reply(connection, &Reply::Snapshot { containers });
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.subscribed = true;
        }
    }

    fn shut_down(&mut self) {
        self.shutting_down = true;
        for container in self.containers.values() {
            if let Some(pid) = container.pid() {
                let _ = sys::kill(pid, libc::SIGKILL);
                Hierarchy::system()
                    .cgroup(&container.plan.cgroup)
                    .kill_all();
            }
        }
        if let Some(pid) = self.pod_init {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
    }
}

impl Operation {
    /// Why there is no process, with the first cause known.
    fn failure(&self, otherwise: &str) -> Option<String> {
        let error = match (&self.error, self.pid) {
            (Some(error), _) => error,
            (None, None) => otherwise,
            (None, Some(_)) => return None,
        };
        Some(match &self.detail {
            Some(detail) if !error.contains(detail.as_str()) => format!("{error}: {detail}"),
            _ => error.to_owned(),
        })
    }
}

/// The shim's ends of a container's pipes.
#[derive(Default)]
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Streams {
    /// Makes the pipes; returns the container's ends.
    fn open(&mut self, wants_stdin: bool) -> io::Result<[OwnedFd; 3]> {
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
        let (stdout, stdout_writer) = pipe()?;
        let (stderr, stderr_writer) = pipe()?;
        let stdin = if wants_stdin {
            let (reader, writer) = pipe()?;
            set_nonblocking(&writer)?;
            self.stdin = Some(writer);
            reader
        } else {
            std::fs::File::open("/dev/null")?.into()
        };
        set_nonblocking(&stdout)?;
        set_nonblocking(&stderr)?;
        self.stdout = Some(stdout);
        self.stderr = Some(stderr);
        Ok([stdin, stdout_writer, stderr_writer])
    }
}
