//! The few system calls that need `unsafe`. Everything else in the crate reaches the kernel
//! through the safe wrappers of `rustix` and `nix`.
//!
//! Invariant: `fork` is called only by processes with a single thread (the shim and its
//! children), so that the child may allocate and run ordinary code.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::{ForkResult, Pid};

/// One instruction of classic BPF, as the kernel takes it.
pub type BpfInstruction = libc::sock_filter;

/// What a fork came out as.
pub enum Fork {
    /// In the parent, with the child's process id.
    Parent(Pid),
    /// In the child.
    Child,
}

/// Duplicates the calling process, which must have a single thread.
pub fn fork() -> nix::Result<Fork> {
    // SAFETY: callers are single-threaded (module invariant), so no lock can be held by a thread
    // that does not exist in the child.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Fork::Parent(child)),
        ForkResult::Child => Ok(Fork::Child),
    }
}

/// Leaves the process without running destructors or exit handlers that belong to the parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Gives every signal its default disposition. The Rust runtime ignores SIGPIPE, and an ignored
/// signal stays ignored across `execve`.
pub fn reset_signals() {
    for signal in Signal::iterator() {
        if signal == Signal::SIGKILL || signal == Signal::SIGSTOP {
            continue;
        }
        // SAFETY: the default disposition runs no code of ours.
        let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
    }
}

/// Sends any signal number, real-time signals included.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: `kill` takes two integers.
    if unsafe { libc::kill(pid, signal) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes ownership of a descriptor number that this process inherited on purpose.
pub fn take_fd(number: RawFd) -> OwnedFd {
    // SAFETY: the caller names a descriptor that was made for it and that nothing else owns.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Borrows a descriptor that stays open for the rest of the process's life.
pub fn borrow_fd(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the caller's promise, see above.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Installs a seccomp filter on the calling thread. Without `no_new_privs` it needs
/// CAP_SYS_ADMIN.
pub fn install_seccomp(program: &[BpfInstruction]) -> io::Result<()> {
    let fprog = libc::sock_fprog {
        len: u16::try_from(program.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "filter too long"))?,
        filter: program.as_ptr().cast_mut(),
    };
    const SET_MODE_FILTER: libc::c_ulong = 1;
    // SAFETY: `fprog` points at `program`, which outlives the call; the kernel copies it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0, &raw const fprog) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets or unsets an environment variable of a single-threaded process.
pub fn clear_environment() {
    for (key, _) in std::env::vars_os() {
        // SAFETY: only single-threaded processes call this (module invariant).
        unsafe { std::env::remove_var(key) };
    }
}

/// The size of a terminal.
pub fn set_window_size(terminal: &impl AsRawFd, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one `winsize`.
    if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Marks every descriptor from `first` on as closing at `execve`.
pub fn close_on_exec_from(first: u32) {
    // SAFETY: the call changes flags only; descriptors stay open and owned.
    unsafe { libc::close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
}

/// Brings up the loopback interface of the calling process's network.
pub fn raise_loopback() -> io::Result<()> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let fd = socket.as_raw_fd();
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`.
    if unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw const request) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Closes every descriptor from `first` on. Only for a process that owns none of them any more
/// and never returns to code that does.
pub fn close_from(first: u32) {
    // SAFETY: see above; the caller goes on without any of these descriptors.
    unsafe { libc::close_range(first, u32::MAX, 0) };
}

/// One instruction of extended BPF, as the kernel takes it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EbpfInstruction {
    /// What to do.
    pub code: u8,
    /// The destination register, and the source register in the upper half.
    pub registers: u8,
    /// How far to jump, or where in memory.
    pub offset: i16,
    /// The constant.
    pub immediate: i32,
}

/// Attaches a program that decides about devices to a cgroup of the v2 layout, for as long as the
/// cgroup exists.
pub fn attach_device_program(cgroup: &impl AsRawFd, program: &[EbpfInstruction]) -> io::Result<()> {
    /// The beginning of the kernel's `bpf_attr` for BPF_PROG_LOAD.
    #[repr(C)]
    struct Load {
        program_type: u32,
        instructions: u32,
        program: u64,
        license: u64,
    }
    /// The same for BPF_PROG_ATTACH.
    #[repr(C)]
    struct Attach {
        cgroup: u32,
        program: u32,
        attach_type: u32,
        flags: u32,
    }
    const PROG_LOAD: libc::c_long = 5;
    const PROG_ATTACH: libc::c_long = 8;
    const CGROUP_DEVICE_PROGRAM: u32 = 15;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let load = Load {
        program_type: CGROUP_DEVICE_PROGRAM,
        instructions: u32::try_from(program.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        program: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    // SAFETY: `load` and what it points at outlive the call; the kernel copies them.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let loaded = take_fd(fd as RawFd);
    let attach = Attach {
        cgroup: cgroup.as_raw_fd() as u32,
        program: loaded.as_raw_fd() as u32,
        attach_type: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: `attach` outlives the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &raw const attach,
            size_of::<Attach>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
