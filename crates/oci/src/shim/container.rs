//! A container as its shim sees it.
//!
//! ```text
//!   starting ──> running ──> dying (first process gone, output not yet drained) ──> exited
//!       └───────────────────────────────────────────────────────────────────────────┘
//! ```

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use super::attach::{Attacher, Unseen};
use super::log::{Log, Stream};
use crate::plan::{ContainerPlan, Exit, Started};

/// That the container ran, in its folder.
pub const STARTED: &str = "started.json";
/// How the container ended, in its folder.
pub const EXIT: &str = "exit.json";

pub struct Container {
    pub plan: ContainerPlan,
    pub log: Log,
    /// The reading ends of its output; one (as stdout) with a terminal.
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// The writing end of its input.
    pub stdin: Option<OwnedFd>,
    /// The master end of its terminal.
    pub terminal: Option<OwnedFd>,
    pub attachers: Vec<Attacher>,
    /// Output for a client that has yet to come.
    pub unseen: Option<Unseen>,
    pub started: Option<Started>,
    pub dying: Option<Dying>,
    pub exit: Option<Exit>,
}

/// The first process is gone; its exit is announced when the output is drained or time is up.
pub struct Dying {
    pub exit: Exit,
    pub deadline: Instant,
}

impl Container {
    /// The first process, while it lives.
    pub fn pid(&self) -> Option<i32> {
        if self.dying.is_some() || self.exit.is_some() {
            return None;
        }
        self.started.as_ref().map(|started| started.pid)
    }

    pub fn output(&self, stream: Stream) -> Option<&OwnedFd> {
        match stream {
            Stream::Stdout => self.stdout.as_ref().or(self.terminal.as_ref()),
            Stream::Stderr => self.stderr.as_ref(),
        }
    }

    /// The output ended.
    pub fn close_output(&mut self, stream: Stream) {
        self.log.finish(stream);
        for attacher in &mut self.attachers {
            attacher.end(stream);
        }
        match stream {
            Stream::Stdout => {
                self.stdout = None;
                self.terminal = None;
            }
            Stream::Stderr => self.stderr = None,
        }
    }

    pub fn drained(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none() && self.terminal.is_none()
    }
}

/// Writes a record so that it is either there whole or not at all.
pub fn write_record(dir: &Path, name: &str, record: &impl Serialize) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.tmp"));
    fs::write(&temporary, serde_json::to_vec(record)?)?;
    fs::rename(&temporary, dir.join(name))
}
