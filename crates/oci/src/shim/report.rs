//! What a process under construction tells the shim: a socket of messages whose end of file,
//! after `execve` closed the last copy, means success.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::plan::User;
use crate::proto::{receive_with_fds, send_with_fds};

/// Bytes of one report, at most; longer texts are cut.
const MAX_REPORT: usize = 8 << 10;

#[derive(Debug)]
pub enum Report {
    /// The process, as the shim's namespace numbers it.
    Pid(i32),
    /// The master end of its terminal.
    Console(OwnedFd),
    /// Who it runs as.
    User(User),
    /// Why there will be no process.
    Error(String),
    /// More about an error.
    Detail(String),
}

/// The shim's end and the other end.
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

impl Report {
    pub fn send(self, to: impl AsFd) -> io::Result<()> {
        let to = to.as_fd();
        match self {
            Report::Pid(pid) => send_with_fds(&to, format!("p{pid}").as_bytes(), &[])?,
            Report::Console(fd) => send_with_fds(&to, b"c", &[fd.as_raw_fd()])?,
            Report::User(user) => {
                let mut bytes = vec![b'u'];
                bytes.extend(serde_json::to_vec(&user)?);
                // Too many groups are a matter of display only.
                if bytes.len() > MAX_REPORT {
                    return Ok(());
                }
                send_with_fds(&to, &bytes, &[])?
            }
            Report::Error(text) => send_with_fds(&to, &cut(format!("e{text}")), &[])?,
            Report::Detail(text) => send_with_fds(&to, &cut(format!("d{text}")), &[])?,
        };
        Ok(())
    }

    /// The next report; `None` at the end.
    pub fn receive(from: impl AsFd) -> io::Result<Option<Report>> {
        let mut buffer = vec![0; MAX_REPORT + 1];
        let (length, fds) = receive_with_fds(&from.as_fd(), &mut buffer)?;
        let Some((kind, text)) = buffer[..length].split_first() else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(text).into_owned();
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        Ok(Some(match kind {
            b'p' => Report::Pid(text.parse().map_err(|_| invalid())?),
            b'c' => Report::Console(fds.into_iter().next().ok_or_else(invalid)?),
            b'u' => Report::User(serde_json::from_str(&text)?),
            b'd' => Report::Detail(text),
            _ => Report::Error(text),
        }))
    }
}

fn cut(text: String) -> Vec<u8> {
    let mut bytes = text.into_bytes();
    bytes.truncate(MAX_REPORT);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_arrive_in_order_and_end() {
        let (ours, theirs) = channel().unwrap();
        Report::Pid(7).send(&theirs).unwrap();
        Report::Error("no such file".into()).send(&theirs).unwrap();
        drop(theirs);
        assert!(matches!(Report::receive(&ours), Ok(Some(Report::Pid(7)))));
        assert!(
            matches!(Report::receive(&ours), Ok(Some(Report::Error(text))) if text == "no such file")
        );
        assert!(matches!(Report::receive(&ours), Ok(None)));
    }
}
