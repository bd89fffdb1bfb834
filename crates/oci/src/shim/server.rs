//! The shim's event loop: everything it reacts to, one thing at a time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::connection::Connection;
use super::container::{Container, Dying, EXIT, write_record};
use super::log::{Stream, now_nanoseconds};
use super::pod_init;
use super::report::Report;
use crate::cgroups::Hierarchy;
use crate::plan::{Exit, SandboxPlan, User};
use crate::proto::Reply;
use crate::sys;

/// Connections at once; more wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 256;
/// Exit codes kept of processes nobody has claimed yet.
const MAX_UNCLAIMED: usize = 256;
/// How long output may keep coming after a container's first process is gone.
const DRAIN: Duration = Duration::from_secs(2);
/// Bytes read from one output at a time.
const READ: usize = 64 << 10;

/// A process under construction; one per connection.
pub struct Operation {
    pub connection: u64,
    pub report: OwnedFd,
    pub pid: Option<i32>,
    pub terminal: Option<OwnedFd>,
    pub error: Option<String>,
    /// The first thing that went wrong on the way to the error.
    pub detail: Option<String>,
    pub user: Option<User>,
    pub kind: OperationKind,
}

pub enum OperationKind {
    Start { id: String },
    Exec { kill_on_close: bool },
}

/// The shim's whole state.
pub struct Server {
    pub shm_namespace: OwnedFd,
    /// The first process of the pod's shared process-id namespace.
    pub pod_init: Option<i32>,
    pub containers: BTreeMap<String, Container>,
    pub connections: HashMap<u64, Connection>,
    pub operations: Vec<Operation>,
    /// Processes of exec requests and the connections that wait for them.
    pub executing: HashMap<i32, u64>,
    pub unclaimed: VecDeque<(i32, i32)>,
    pub shutting_down: bool,
    listener: UnixListener,
    signals: SignalFd,
    next_connection: u64,
}

/// What a descriptor in the poll set stands for.
enum Source {
    Signals,
    Listener,
    Connection(u64),
    Operation(u64),
    Output(String, Stream),
    Attacher(String, Stream),
}

impl Server {
    pub fn new(
        plan: &SandboxPlan,
        listener: UnixListener,
        shm_namespace: OwnedFd,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut mask = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
        ] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let pod_init = if plan.shared_pid {
            Some(pod_init::spawn()?)
        } else {
            None
        };
        Ok(Self {
            shm_namespace,
            pod_init,
            containers: BTreeMap::new(),
            connections: HashMap::new(),
            operations: Vec::new(),
            executing: HashMap::new(),
            unclaimed: VecDeque::new(),
            shutting_down: false,
            listener,
            signals,
            next_connection: 0,
        })
    }

    /// Serves until told to shut down.
    pub fn run(mut self) {
        loop {
            let ready = self.wait();
            for source in ready {
                self.handle(source);
            }
            self.finish_dying();
            let gone: Vec<u64> = self
                .connections
                .iter()
                .filter_map(|(id, connection)| connection.finished.then_some(*id))
                .collect();
            for id in gone {
                self.disconnect(id);
            }
            if self.shutting_down && self.operations.is_empty() {
                let mut living = self.containers.values().filter(|c| c.exit.is_none());
                if living.next().is_none() {
                    return;
                }
            }
        }
    }

    fn wait<'a>(&'a self) -> Vec<Source> {
        let mut fds = Vec::new();
        let mut sources = Vec::new();
        let mut add = |fd: BorrowedFd<'a>, flags, source| {
            fds.push(PollFd::new(fd, flags));
            sources.push(source);
        };
        add(self.signals.as_fd(), PollFlags::POLLIN, Source::Signals);
        if self.connections.len() < MAX_CONNECTIONS {
            add(self.listener.as_fd(), PollFlags::POLLIN, Source::Listener);
        }
        for (id, connection) in &self.connections {
            add(
                connection.stream().as_fd(),
                PollFlags::POLLIN,
                Source::Connection(*id),
            );
        }
        for operation in &self.operations {
            let source = Source::Operation(operation.connection);
            add(operation.report.as_fd(), PollFlags::POLLIN, source);
        }
        for (id, container) in &self.containers {
            for stream in [Stream::Stdout, Stream::Stderr] {
                let full = container
                    .attachers
                    .iter()
                    .any(|attacher| attacher.full(stream));
                if let Some(fd) = container.output(stream).filter(|_| !full) {
                    add(
                        fd.as_fd(),
                        PollFlags::POLLIN,
                        Source::Output(id.clone(), stream),
                    );
                }
                for fd in container.attachers.iter().filter_map(|a| a.blocked(stream)) {
                    add(
                        fd.as_fd(),
                        PollFlags::POLLOUT,
                        Source::Attacher(id.clone(), stream),
                    );
                }
            }
        }
        match poll(&mut fds, self.timeout()) {
            Ok(_) => fds
                .iter()
                .zip(sources)
                .filter(|(fd, _)| fd.revents().is_some_and(|events| !events.is_empty()))
                .map(|(_, source)| source)
                .collect(),
            Err(_) => Vec::new(),
        }
    }

    fn timeout(&self) -> PollTimeout {
        self.containers
            .values()
            .filter_map(|container| container.dying.as_ref())
            .map(|dying| dying.deadline.saturating_duration_since(Instant::now()))
            .min()
            .map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            })
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Signals => self.signals(),
            Source::Listener => self.accept(),
            Source::Connection(id) => self.receive(id),
            Source::Operation(connection) => self.report(connection),
            Source::Output(id, stream) => self.output(&id, stream),
            Source::Attacher(id, stream) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    for attacher in &mut container.attachers {
                        attacher.flush(stream);
                    }
                    container.attachers.retain(|attacher| !attacher.is_gone());
                }
            }
        }
    }

    fn accept(&mut self) {
        while self.connections.len() < MAX_CONNECTIONS {
            let Ok((stream, _)) = self.listener.accept() else {
                return;
            };
            if let Ok(connection) = Connection::new(stream) {
                self.next_connection += 1;
                self.connections.insert(self.next_connection, connection);
            }
        }
    }

    fn receive(&mut self, id: u64) {
        loop {
            let Some(connection) = self.connections.get_mut(&id) else {
                return;
            };
            match connection.receive() {
                Ok(Some((request, fds))) => self.request(id, request, fds),
                Ok(None) => return,
                Err(_) => {
                    connection.finished = true;
                    return;
                }
            }
        }
    }

    fn disconnect(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id)
            && let Some(pid) = connection.kill_on_close
            && self.executing.get(&pid) == Some(&id)
        {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
    }

    pub fn reply(&mut self, id: u64, reply: &Reply) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.reply(reply);
        }
    }

    fn signals(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => break,
                Err(nix::Error::EINTR) | Ok(_) => continue,
                Err(_) => break,
            };
            self.exited(pid, code);
        }
    }

    /// A child is gone: the first process of a container, one of an exec request, or somebody
    /// nobody has claimed yet.
    pub fn exited(&mut self, pid: i32, code: i32) {
        if let Some(connection) = self.executing.remove(&pid) {
            self.reply(connection, &Reply::ExecExit { code });
            if let Some(connection) = self.connections.get_mut(&connection) {
                connection.kill_on_close = None;
                connection.finished = true;
            }
            return;
        }
        if let Some(container) = self.containers.values_mut().find(|c| c.pid() == Some(pid)) {
            let cgroup = Hierarchy::system().cgroup(&container.plan.cgroup);
            let exit = Exit {
                code,
                finished_at: now_nanoseconds(),
                oom_killed: cgroup.oom_kills() > 0,
                start_error: None,
            };
            // With a namespace of its own the kernel has done this already.
            cgroup.kill_all();
            container.dying = Some(Dying {
                exit,
                deadline: Instant::now() + DRAIN,
            });
            return;
        }
        if self.operations.is_empty() {
            self.unclaimed.clear();
            return;
        }
        self.unclaimed.push_back((pid, code));
        if self.unclaimed.len() > MAX_UNCLAIMED {
            self.unclaimed.pop_front();
        }
    }

    /// Reads the next report of a process under construction.
    fn report(&mut self, connection: u64) {
        let of_connection = |operation: &Operation| operation.connection == connection;
        let Some(index) = self.operations.iter().position(of_connection) else {
            return;
        };
        let operation = &mut self.operations[index];
        match Report::receive(&operation.report) {
            Ok(Some(Report::Pid(pid))) => operation.pid = Some(pid),
            Ok(Some(Report::Console(terminal))) => operation.terminal = Some(terminal),
            Ok(Some(Report::Error(error))) => {
                // The first one is the cause, what follows its consequences.
                operation.error.get_or_insert(error);
            }
            Ok(Some(Report::User(user))) => operation.user = Some(user),
            Ok(Some(Report::Detail(detail))) => {
                operation.detail.get_or_insert(detail);
            }
            Ok(None) | Err(_) => {
                let operation = self.operations.remove(index);
                self.complete(operation);
            }
        }
    }

    fn output(&mut self, id: &str, stream: Stream) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let mut buffer = [0; READ];
        let read = match container.output(stream) {
            Some(fd) => nix::unistd::read(fd, &mut buffer),
            None => return,
        };
        match read {
            // A terminal whose other end is closed says EIO.
            Ok(0) | Err(nix::Error::EIO) => container.close_output(stream),
            Ok(length) => {
                container.log.output(stream, &buffer[..length]);
                if let Some(unseen) = &mut container.unseen {
                    unseen.keep(stream, &buffer[..length]);
                }
                for attacher in &mut container.attachers {
                    attacher.output(stream, &buffer[..length]);
                }
            }
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            Err(_) => container.close_output(stream),
        }
        container.attachers.retain(|attacher| !attacher.is_gone());
    }

    fn finish_dying(&mut self) {
        let now = Instant::now();
        let done: Vec<String> = self
            .containers
            .iter()
            .filter(|(_, container)| {
                container
                    .dying
                    .as_ref()
                    .is_some_and(|dying| container.drained() || dying.deadline <= now)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in done {
            self.finish(&id);
        }
    }

    fn finish(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(dying) = container.dying.take() else {
            return;
        };
        for stream in [Stream::Stdout, Stream::Stderr] {
            container.close_output(stream);
        }
        container.stdin = None;
        container.attachers.clear();
        container.exit = Some(dying.exit.clone());
        let _ = write_record(&container.plan.dir, EXIT, &dying.exit);
        Hierarchy::system()
            .cgroup(&container.plan.cgroup)
            .remove_if_empty();
        let reply = Reply::Exited {
            id: id.to_owned(),
            exit: dying.exit,
        };
        for connection in self.connections.values_mut().filter(|c| c.subscribed) {
            connection.reply(&reply);
        }
    }
}
