//! How the server tells other processes of the same cluster what it is doing.
//!
//! Whoever connects to the control socket gets every report since the server began, one JSON
//! document a line, until the cluster is ready or has failed; then the connection closes. So a
//! second `up` that meets a starting server shows the same steps as the first.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// How long the next report may take when only those are wanted that are there already.
const NOTHING_MORE: Duration = Duration::from_millis(100);

/// One thing the server has to say about its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "camelCase")]
pub enum Report {
    /// A step is finished.
    Step {
        /// What was done.
        name: String,
        /// How long it took, in milliseconds.
        millis: u64,
    },
    /// The node is Ready and DNS answers.
    Ready {
        /// Milliseconds since the server began.
        millis: u64,
    },
    /// The start failed; the server is about to exit.
    Failed {
        /// Why, and what to do.
        message: String,
    },
}

impl Report {
    /// Whether nothing comes after this report.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Step { .. })
    }
}

/// The server's side: remembers reports and tells them to whoever connects.
pub struct Journal {
    began: Instant,
    step: Mutex<Instant>,
    reports: watch::Sender<Vec<Report>>,
}

impl Journal {
    /// A journal of a start that begins now.
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            began: now,
            step: Mutex::new(now),
            reports: watch::Sender::new(Vec::new()),
        }
    }

    /// Notes that the step called `name`, which began when the last one ended, is finished.
    pub fn step(&self, name: &str) {
        let mut since = self.step.lock().unwrap_or_else(|e| e.into_inner());
        let millis = millis(since.elapsed());
        *since = Instant::now();
        tracing::info!(millis, "{name}");
        self.add(Report::Step {
            name: name.to_owned(),
            millis,
        });
    }

    /// Notes that the cluster is ready.
    pub fn ready(&self) {
        self.add(Report::Ready {
            millis: millis(self.began.elapsed()),
        });
    }

    /// Notes that the start failed.
    pub fn failed(&self, message: &str) {
        self.add(Report::Failed {
            message: message.to_owned(),
        });
    }

    fn add(&self, report: Report) {
        self.reports.send_modify(|all| all.push(report));
    }

    /// Answers on the socket at `path` until the server ends.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(self: &std::sync::Arc<Self>, path: &Path) -> std::io::Result<()> {
        if path.exists() {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let journal = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let reports = journal.reports.subscribe();
                tokio::spawn(tell(stream, reports));
            }
        });
        Ok(())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn tell(mut stream: UnixStream, mut reports: watch::Receiver<Vec<Report>>) {
    let mut told = 0;
    loop {
        let new: Vec<Report> = reports.borrow_and_update()[told..].to_vec();
        for report in &new {
            told += 1;
            let mut line = serde_json::to_vec(report).unwrap_or_default();
            line.push(b'\n');
            if stream.write_all(&line).await.is_err() || report.is_last() {
                return;
            }
        }
        if reports.changed().await.is_err() {
            return;
        }
    }
}

/// The reports of the server listening at `path`, as they come; `None` when nobody listens.
pub fn reports(path: &Path) -> Option<impl Iterator<Item = Report> + use<>> {
    Some(read(BlockingStream::connect(path).ok()?))
}

fn read(stream: BlockingStream) -> impl Iterator<Item = Report> + use<> {
    let lines = BufReader::new(stream).lines();
    lines
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str(&line).ok())
}

/// How far a server is that holds its lock.
#[derive(Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not ready yet; the steps that are finished.
    Starting(Vec<String>),
    /// The cluster is ready.
    Ready,
    /// The start failed; the server is about to exit.
    Failed(String),
}

/// How far the server listening at `path` is; one that does not listen yet has just begun.
pub fn phase(path: &Path) -> Phase {
    let mut done = Vec::new();
    let stream = BlockingStream::connect(path).ok();
    let stream = stream.filter(|s| s.set_read_timeout(Some(NOTHING_MORE)).is_ok());
    for report in stream.into_iter().flat_map(read) {
        match report {
            Report::Step { name, .. } => done.push(name),
            Report::Ready { .. } => return Phase::Ready,
            Report::Failed { message } => return Phase::Failed(message),
        }
    }
    Phase::Starting(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_late_listener_hears_every_report_from_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let journal = Arc::new(Journal::new());
        journal.step("one");
        journal.listen(&path).unwrap();
        let heard = tokio::task::spawn_blocking({
            let path = path.clone();
            move || reports(&path).unwrap().collect::<Vec<_>>()
        });
        let phase_now = async || {
            let path = path.clone();
            tokio::task::spawn_blocking(move || phase(&path))
                .await
                .unwrap()
        };
        assert_eq!(phase_now().await, Phase::Starting(vec!["one".to_owned()]));
        journal.step("two");
        journal.ready();
        assert_eq!(phase_now().await, Phase::Ready);
        let heard = heard.await.unwrap();
        assert_eq!(heard.len(), 3);
        assert!(matches!(&heard[0], Report::Step { name, .. } if name == "one"));
        assert!(matches!(heard[2], Report::Ready { .. }));
        let nobody = dir.path().join("nobody");
        assert!(reports(&nobody).is_none());
        assert_eq!(phase(&nobody), Phase::Starting(Vec::new()));
    }
}
