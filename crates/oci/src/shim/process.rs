//! The last steps of every process of a container, the first or a later one: who it is, what it
//! may do, and `execve`. Runs inside the container's namespaces, as root, single-threaded.
//!
//! libcontainer hands over before it would have dropped privileges (as an `Executor`), so that a
//! seccomp filter can be installed without `no_new_privs`, which needs CAP_SYS_ADMIN.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::pty::OpenptFlags;

use super::report::Report;
use super::users;
use crate::plan::{ProcessPlan, RlimitResource, User};
use crate::sys;

/// Where a program without a slash in its name is looked for when nobody says.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What else `run` needs to know.
pub struct Launch<'a> {
    pub process: &'a ProcessPlan,
    /// Where to say what went wrong, and to send the terminal.
    pub report: BorrowedFd<'a>,
    /// Compiled beforehand, when the host's files could still be read.
    pub filter: Option<Vec<sys::BpfInstruction>>,
    /// The first process dies with the shim and owns /dev/console.
    pub first: bool,
}

/// Becomes the process, or reports why not and exits with 126 or 127.
pub fn run(launch: &Launch) -> ! {
    let error = match become_process(launch) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let _ = Report::Error(error.message).send(launch.report);
    sys::exit_now(error.code);
}

/// Checks what can be checked before the container is announced as created.
pub fn check(process: &ProcessPlan) -> Result<(), String> {
    users::resolve(Path::new("/"), &process.user)
        .map(drop)
        .map_err(|error| error.to_string())
}

struct Failure {
    message: String,
    code: i32,
}

fn failure(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Failure {
    Failure {
        message: format!("{what}: {error}"),
        code: 126,
    }
}

fn become_process(launch: &Launch) -> Result<std::convert::Infallible, Failure> {
    let process = launch.process;
    let user = users::resolve(Path::new("/"), &process.user)
        .map_err(|error| failure("unable to find user", error))?;
    let env = environment(process, &user);
    if process.terminal {
        open_terminal(launch, user.uid)?;
    }
    if launch.first {
        let user = User {
            uid: user.uid,
            gid: user.gid,
            groups: user.groups.clone(),
        };
        let _ = Report::User(user).send(launch.report);
    }
    own_stdio(user.uid);
    apply_limits(process)?;
    enter_directory(process)?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    sys::reset_signals();
    let _ = SigSet::empty().thread_set_mask();
    // Every descriptor but stdio closes at `execve`.
    sys::close_on_exec_from(3);
    drop_privileges(process, &user, launch.filter.as_deref())?;
    if launch.first {
        let kill = Some(rustix::process::Signal::KILL);
        let _ = rustix::process::set_parent_process_death_signal(kill);
        // Had it died before, there would be no signal.
        if is_gone(launch.report) {
            sys::exit_now(1);
        }
    }
    let program = find_program(process, &env)?;
    let args = c_strings(&process.args)?;
    let env = c_strings(&env)?;
    match nix::unistd::execve(&program, &args, &env) {
        Ok(never) => Ok(never),
        Err(errno) => Err(Failure {
            message: format!(
                "exec {}: {}",
                program.to_string_lossy(),
                lower(errno.desc())
            ),
            code: 126,
        }),
    }
}

/// Whether the shim has closed its end, which it does not while it waits for this process.
fn is_gone(report: BorrowedFd) -> bool {
    let mut set = [PollFd::new(report, PollFlags::empty())];
    let polled = poll(&mut set, PollTimeout::ZERO);
    polled.is_ok() && set[0].revents().is_some_and(|events| !events.is_empty())
}

fn c_strings(values: &[String]) -> Result<Vec<CString>, Failure> {
    values
        .iter()
        .map(|value| {
            CString::new(value.as_str()).map_err(|error| failure("invalid argument", error))
        })
        .collect()
}

fn lower(text: &str) -> String {
    text.to_lowercase()
}

fn environment(process: &ProcessPlan, user: &users::Resolved) -> Vec<String> {
    let mut env: Vec<String> = Vec::with_capacity(process.env.len() + 3);
    let has = |env: &[String], name: &str| {
        env.iter()
            .any(|line| line.split_once('=').is_some_and(|(key, _)| key == name))
    };
    if !has(&process.env, "PATH") {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    // Of a name given twice the last one holds.
    for (index, line) in process.env.iter().enumerate() {
        let key = line.split('=').next().unwrap_or_default();
        let later = process.env[index + 1..]
            .iter()
            .any(|other| other.split('=').next() == Some(key));
        if !later {
            env.push(line.clone());
        }
    }
    if !has(&env, "HOME") {
        env.push(format!("HOME={}", user.home));
    }
    if process.terminal && !has(&env, "TERM") {
        env.push("TERM=xterm".into());
    }
    env
}

/// Makes the process's pipes its own, so that it may open them anew as /dev/stdout and the like.
fn own_stdio(uid: u32) {
    fn own(stream: impl AsFd, uid: u32) {
        let Ok(stat) = rustix::fs::fstat(&stream) else {
            return;
        };
        // Devices are shared with others: /dev/null, or the terminal, which is owned already.
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo {
            let _ = nix::unistd::fchown(stream, Some(Uid::from_raw(uid)), None);
        }
    }
    own(io::stdin(), uid);
    own(io::stdout(), uid);
    own(io::stderr(), uid);
}

/// Opens a terminal of the container's own devpts, sends the master end out and makes the other
/// end the controlling terminal and stdio.
fn open_terminal(launch: &Launch, uid: u32) -> Result<(), Failure> {
    let fail = |error: io::Error| failure("open terminal", error);
    let master: OwnedFd = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/pts/ptmx")
        .map_err(fail)?
        .into();
    rustix::pty::unlockpt(&master).map_err(|error| fail(error.into()))?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .map_err(|error| fail(error.into()))?;
    let _ = nix::unistd::fchown(slave.as_fd(), Some(Uid::from_raw(uid)), None);
    if launch.first {
        mount_console(&master);
    }
    Report::Console(master).send(launch.report).map_err(fail)?;
    let _ = nix::unistd::setsid();
    rustix::process::ioctl_tiocsctty(&slave).map_err(|error| fail(error.into()))?;
    stdio(slave.as_fd(), slave.as_fd(), slave.as_fd()).map_err(fail)
}

/// Some programs write to /dev/console; it is a convenience, so its absence is no error.
fn mount_console(master: &OwnedFd) {
    let Ok(name) = rustix::pty::ptsname(master, Vec::new()) else {
        return;
    };
    let Ok(name) = name.into_string() else { return };
    if std::fs::File::create("/dev/console").is_ok() {
        let _ = nix::mount::mount(
            Some(Path::new(&name)),
            Path::new("/dev/console"),
            None::<&str>,
            nix::mount::MsFlags::MS_BIND,
            None::<&str>,
        );
    }
}

/// Makes three descriptors standard input, output and error.
pub fn stdio(stdin: BorrowedFd, stdout: BorrowedFd, stderr: BorrowedFd) -> io::Result<()> {
    nix::unistd::dup2_stdin(stdin)?;
    nix::unistd::dup2_stdout(stdout)?;
    nix::unistd::dup2_stderr(stderr)?;
    Ok(())
}

fn apply_limits(process: &ProcessPlan) -> Result<(), Failure> {
    for limit in &process.rlimits {
        let resource = match limit.resource {
            RlimitResource::OpenFiles => Resource::RLIMIT_NOFILE,
        };
        if setrlimit(resource, limit.soft, limit.hard).is_err() {
            // Raising needs CAP_SYS_RESOURCE, which a host may withhold: as far as it goes.
            if let Ok((_, hard)) = getrlimit(resource) {
                let hard = hard.min(limit.hard);
                let _ = setrlimit(resource, limit.soft.min(hard), hard);
            }
        }
    }
    if let Some(adjustment) = process.oom_score_adj {
        // Lowering needs CAP_SYS_RESOURCE too; what is inherited stays then.
        let _ = std::fs::write("/proc/self/oom_score_adj", adjustment.to_string());
    }
    Ok(())
}

fn enter_directory(process: &ProcessPlan) -> Result<(), Failure> {
    let cwd = if process.cwd.is_empty() {
        "/"
    } else {
        &process.cwd
    };
    if std::env::set_current_dir(cwd).is_err() {
        let made = std::fs::create_dir_all(cwd).and_then(|()| std::env::set_current_dir(cwd));
        made.map_err(|error| failure(format_args!("chdir to cwd ({cwd:?}) failed"), error))?;
    }
    Ok(())
}

fn drop_privileges(
    process: &ProcessPlan,
    user: &users::Resolved,
    filter: Option<&[sys::BpfInstruction]>,
) -> Result<(), Failure> {
    let wanted = parse_capabilities(&process.capabilities);
    let ambient = parse_capabilities(&process.ambient);
    let bounding =
        caps::read(None, CapSet::Bounding).map_err(|error| failure("read capabilities", error))?;
    for capability in bounding.difference(&wanted) {
        caps::drop(None, CapSet::Bounding, *capability)
            .map_err(|error| failure("drop bounding capability", error))?;
    }
    // Without no_new_privs the filter needs privileges that are about to go.
    if let Some(filter) = filter.filter(|_| !process.no_new_privileges) {
        sys::install_seccomp(filter).map_err(|error| failure("install seccomp filter", error))?;
    }
    let keep = rustix::thread::set_keep_capabilities(true);
    keep.map_err(|error| failure("keep capabilities", error))?;
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups).map_err(|error| failure("setgroups", error))?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setresgid(gid, gid, gid).map_err(|error| failure("setgid", error))?;
    setresuid(uid, uid, uid).map_err(|error| failure("setuid", error))?;
    let _ = rustix::thread::set_keep_capabilities(false);
    set_capabilities(&wanted, &ambient).map_err(|error| failure("set capabilities", error))?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true)
            .map_err(|error| failure("set no_new_privs", error))?;
        if let Some(filter) = filter {
            sys::install_seccomp(filter)
                .map_err(|error| failure("install seccomp filter", error))?;
        }
    }
    Ok(())
}

/// Unknown names are those of capabilities newer than this program: they are left out.
fn parse_capabilities(names: &[String]) -> CapsHashSet {
    names
        .iter()
        .filter_map(|name| name.parse::<Capability>().ok())
        .collect()
}

fn set_capabilities(
    wanted: &CapsHashSet,
    ambient: &CapsHashSet,
) -> Result<(), caps::errors::CapsError> {
    let held = caps::read(None, CapSet::Permitted)?;
    let granted: CapsHashSet = wanted.intersection(&held).copied().collect();
    let ambient: CapsHashSet = ambient.intersection(&granted).copied().collect();
    caps::set(None, CapSet::Effective, &granted)?;
    caps::set(None, CapSet::Permitted, &granted)?;
    caps::set(None, CapSet::Inheritable, &ambient)?;
    caps::set(None, CapSet::Ambient, &ambient)
}

fn find_program(process: &ProcessPlan, env: &[String]) -> Result<CString, Failure> {
    let Some(name) = process.args.first().filter(|name| !name.is_empty()) else {
        return Err(failure("exec", "no command specified"));
    };
    let found = if name.contains('/') {
        executable(Path::new(name)).map_err(|errno| Failure {
            message: match errno {
                nix::Error::EACCES => format!("exec: {name:?}: permission denied"),
                nix::Error::EISDIR => format!("exec: {name:?}: is a directory"),
                other => format!("exec: {name:?}: stat {name}: {}", lower(other.desc())),
            },
            code: if errno == nix::Error::ENOENT {
                127
            } else {
                126
            },
        })?
    } else {
        let path = env
            .iter()
            .find_map(|line| line.strip_prefix("PATH="))
            .unwrap_or(DEFAULT_PATH);
        path.split(':')
            .map(|folder| Path::new(if folder.is_empty() { "." } else { folder }).join(name))
            .find_map(|candidate| executable(&candidate).ok())
            .ok_or_else(|| Failure {
                message: format!("exec: {name:?}: executable file not found in $PATH"),
                code: 127,
            })?
    };
    CString::new(found.into_os_string().into_encoded_bytes())
        .map_err(|error| failure("exec", error))
}

fn executable(path: &Path) -> nix::Result<PathBuf> {
    let stat = nix::sys::stat::stat(path)?;
    if nix::sys::stat::SFlag::from_bits_truncate(stat.st_mode) & nix::sys::stat::SFlag::S_IFMT
        == nix::sys::stat::SFlag::S_IFDIR
    {
        return Err(nix::Error::EISDIR);
    }
    rustix::fs::accessat(
        rustix::fs::CWD,
        path,
        rustix::fs::Access::EXEC_OK,
        rustix::fs::AtFlags::EACCESS,
    )
    .map_err(|error| nix::Error::from_raw(error.raw_os_error()))?;
    Ok(path.to_path_buf())
}
