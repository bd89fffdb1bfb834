//! Watches that never end: errors are logged once per streak and retried with growing delays.

use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;

/// First delay after a failed watch.
const FIRST: Duration = Duration::from_millis(100);
/// Longest delay between two tries.
const LONGEST: Duration = Duration::from_secs(10);

/// Delays that double from [`FIRST`] to [`LONGEST`].
#[derive(Debug, Default)]
struct Delays {
    tries: u32,
}

impl Iterator for Delays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let delay = FIRST * 2_u32.saturating_pow(self.tries.min(10));
        self.tries += 1;
        Some(delay.min(LONGEST))
    }
}

impl Backoff for Delays {
    fn reset(&mut self) {
        self.tries = 0;
    }
}

/// `stream` with growing delays after errors.
pub fn retrying<T, S>(stream: S) -> impl Stream<Item = watcher::Result<T>>
where
    S: Stream<Item = watcher::Result<T>>,
{
    stream.backoff(Delays::default()).inspect(|item| {
        if let Err(error) = item {
            tracing::debug!(%error, "watch failed, trying again");
        }
    })
}
