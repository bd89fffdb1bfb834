//! Keeps components running: one that ends or panics before it was told to is started again.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Pause before a component that ended is started again; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The components of a server.
pub struct Supervisor {
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Supervisor {
    /// A supervisor whose components run until `shutdown`.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self {
            tasks: JoinSet::new(),
            shutdown,
        }
    }

    /// Runs the component that `start` makes, again and again until the shutdown.
    pub fn run<S, F>(&mut self, name: &'static str, start: S)
    where
        S: Fn(CancellationToken) -> F + Send + 'static,
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                let outcome = AssertUnwindSafe(start(shutdown.clone()))
                    .catch_unwind()
                    .await;
                if shutdown.is_cancelled() {
                    return;
                }
                match outcome {
                    Ok(Ok(())) => tracing::error!(component = name, "ended; starting it again"),
                    Ok(Err(error)) => {
                        tracing::error!(component = name, "failed: {error:#}; starting it again");
                    }
                    Err(_) => tracing::error!(component = name, "panicked; starting it again"),
                }
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(MAX_PAUSE);
            }
        });
    }

    /// Waits until every component has ended, at most for `patience`.
    pub async fn finished(mut self, patience: Duration) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("components took too long to end; leaving them");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_component_that_fails_or_panics_is_started_again_until_the_shutdown() {
        let shutdown = CancellationToken::new();
        let starts = Arc::new(AtomicUsize::new(0));
        let mut supervisor = Supervisor::new(shutdown.clone());
        let counted = starts.clone();
        supervisor.run("test", move |shutdown| {
            let n = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                match n {
                    0 => anyhow::bail!("first"),
                    1 => panic!("second"),
                    _ => shutdown.cancelled().await,
                }
                Ok(())
            }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(starts.load(Ordering::SeqCst), 3);
        shutdown.cancel();
        supervisor.finished(Duration::from_secs(1)).await;
    }
}
