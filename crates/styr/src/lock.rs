//! One server per cluster: a locked file that also holds the server's process id.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{FlockOperation, flock};

use crate::files;

/// How often a stopping server is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Held by a server for as long as it lives.
#[derive(Debug)]
pub struct ServerLock {
    _file: File,
}

impl ServerLock {
    /// Takes the lock for this process; gives the holder's process id when it is held.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn take(path: &Path) -> std::io::Result<Result<Self, i32>> {
        let mut file = files::open_lock(path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(Err(read_pid(&mut file)?));
        }
        file.set_len(0)?;
        file.rewind()?;
        write!(file, "{}", std::process::id())?;
        Ok(Ok(Self { _file: file }))
    }
}

/// Process id of the server that holds the lock at `path`, if one does.
///
/// # Errors
/// When the file system refuses.
pub fn holder(path: &Path) -> std::io::Result<Option<i32>> {
    if !path.exists() {
        return Ok(None);
    }
    let mut file = files::open_lock(path)?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(_) => read_pid(&mut file).map(Some),
    }
}

fn read_pid(file: &mut File) -> std::io::Result<i32> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text.trim().parse().unwrap_or(0))
}

/// Asks the holder of the lock to stop, and kills it when it has not after `patience`.
/// Gives whether one was running.
///
/// # Errors
/// When the file system refuses.
pub fn stop_holder(path: &Path, patience: Duration) -> std::io::Result<bool> {
    let Some(pid) = holder(path)?.filter(|pid| *pid > 1) else {
        return Ok(false);
    };
    let deadline = Instant::now() + patience;
    // A process that is gone already is what is wanted.
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    while holder(path)?.is_some() {
        if Instant::now() > deadline {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(LOOK);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_names_its_holder_and_a_free_one_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.lock");
        assert_eq!(holder(&path).unwrap(), None);
        let lock = ServerLock::take(&path).unwrap().unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        assert_eq!(holder(&path).unwrap(), Some(me));
        assert_eq!(ServerLock::take(&path).unwrap().unwrap_err(), me);
        drop(lock);
        assert_eq!(holder(&path).unwrap(), None);
    }
}
