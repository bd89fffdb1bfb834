//! A process of its own for each seed, all beginning with the same memory.
//!
//! Some state of a process cannot be put back: counters in libraries, tables that were built on first
//! use. So the program prepares itself once, on one thread, and forks for each seed: every one starts
//! from the very same state, whichever ran before it, and ends with its process.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::panic::AssertUnwindSafe;

use anyhow::Context;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm, fork};

/// A child that takes longer hangs: some thousand times what one needs.
const HANGS_SECONDS: u32 = 3600;

/// Runs `work` for each seed in a process of its own, `together` at a time; `done` gets what each
/// answered, or how its process ended.
///
/// # Errors
/// When there can be no processes.
pub fn each(
    seeds: impl IntoIterator<Item = u64>,
    together: usize,
    work: impl Fn(u64) -> String,
    mut done: impl FnMut(u64, anyhow::Result<String>),
) -> anyhow::Result<()> {
    let mut seeds = seeds.into_iter();
    let mut running: HashMap<Pid, (u64, File)> = HashMap::new();
    loop {
        while running.len() < together
            && let Some(seed) = seeds.next()
        {
            let (pid, answer) = start(|| work(seed))?;
            running.insert(pid, (seed, answer));
        }
        if running.is_empty() {
            return Ok(());
        }
        let ended = waitpid(None, None).context("waiting for a process")?;
        let known = ended.pid().and_then(|pid| running.remove(&pid));
        if let Some((seed, answer)) = known {
            done(seed, read(ended, answer));
        }
    }
}

fn start(work: impl FnOnce() -> String) -> anyhow::Result<(Pid, File)> {
    let mut answer = tempfile::tempfile().context("a file for the answer")?;
    // SAFETY: this program has one thread when it forks, so the child finds no lock held by another.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => Ok((child, answer)),
        ForkResult::Child => {
            alarm::set(HANGS_SECONDS);
            // It ends with this program, however that ends.
            let _ = prctl::set_pdeathsig(Signal::SIGKILL);
            let done = std::panic::catch_unwind(AssertUnwindSafe(work));
            let written = done.map(|text| answer.write_all(text.as_bytes()));
            std::process::exit(if matches!(written, Ok(Ok(()))) { 0 } else { 1 })
        }
    }
}

fn read(ended: WaitStatus, mut answer: File) -> anyhow::Result<String> {
    anyhow::ensure!(
        matches!(ended, WaitStatus::Exited(_, 0)),
        "its process ended with {ended:?}"
    );
    let mut text = String::new();
    answer.rewind()?;
    answer.read_to_string(&mut text)?;
    Ok(text)
}
