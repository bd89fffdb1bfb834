//! The harness of a controller: workers that take keys from a queue and reconcile them.

use std::{fmt, future::Future, hash::Hash, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{Error, Queue, error};

/// When a key that was reconciled well is to be looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    /// When something it depends on changes.
    OnChange,
    /// After this time at the latest.
    After(Duration),
}

/// Makes one object of the world as it should be.
///
/// It gets a key, never an event: it looks at the present state and does what is missing. It may
/// be called at any time, any number of times, and never twice at once for one key.
pub trait Reconcile: Send + Sync + 'static {
    /// What names an object of this controller.
    type Key: Clone + Eq + Hash + fmt::Display + Send + Sync + 'static;

    /// The controller's name, for logs.
    fn name(&self) -> &'static str;

    /// Looks at the object and does what is missing; an error means trying again later.
    fn reconcile(&self, key: &Self::Key) -> impl Future<Output = Result<Requeue, Error>> + Send;
}

/// Runs `workers` workers on `queue` until `shutdown`; answers when all have ended.
pub async fn run_workers<R: Reconcile>(
    reconciler: Arc<R>,
    queue: Queue<R::Key>,
    workers: usize,
    shutdown: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        tasks.spawn(work(Arc::clone(&reconciler), queue.clone()));
    }
    shutdown.cancelled().await;
    queue.close();
    while tasks.join_next().await.is_some() {}
}

async fn work<R: Reconcile>(reconciler: Arc<R>, queue: Queue<R::Key>) {
    while let Some(key) = queue.next().await {
        // A panic in one reconciliation must not end the controller.
        let outcome = AssertUnwindSafe(reconciler.reconcile(&key))
            .catch_unwind()
            .await;
        match outcome {
            Ok(Ok(Requeue::OnChange)) => queue.forget(&key),
            Ok(Ok(Requeue::After(delay))) => {
                queue.forget(&key);
                queue.add_after(key.clone(), delay);
            }
            Ok(Err(failure)) => {
                log(reconciler.name(), &key, &failure);
                queue.retry(key.clone());
            }
            Err(_) => {
                tracing::error!(controller = reconciler.name(), %key, "panicked");
                queue.retry(key.clone());
            }
        }
        queue.done(&key);
    }
}

/// Conflicts are part of the trade: somebody else was faster.
fn log(controller: &str, key: &impl fmt::Display, failure: &Error) {
    match failure {
        Error::Api(api) if error::is_conflict(api) || error::is_forbidden_by_termination(api) => {
            tracing::debug!(controller, %key, error = %failure, "will try again");
        }
        _ => tracing::warn!(controller, %key, error = %failure, "will try again"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{Backoff, Jitter};

    struct Flaky(Mutex<Vec<&'static str>>);

    impl Reconcile for Flaky {
        type Key = &'static str;
        fn name(&self) -> &'static str {
            "flaky"
        }
        async fn reconcile(&self, key: &Self::Key) -> Result<Requeue, Error> {
            let tries = {
                let mut seen = self.0.lock().unwrap();
                seen.push(key);
                seen.iter().filter(|k| *k == key).count()
            };
            match (*key, tries) {
                ("fails", 1) => Err(Error::Other("not yet".into())),
                ("panics", 1) => panic!("not yet"),
                ("again", 1) => Ok(Requeue::After(Duration::from_millis(3))),
                _ => Ok(Requeue::OnChange),
            }
        }
    }

    #[tokio::test]
    async fn errors_and_panics_are_tried_again_and_shutdown_ends_the_workers() {
        let reconciler = Arc::new(Flaky(Mutex::default()));
        let queue = Queue::new(Backoff {
            jitter: Jitter::none(),
            ..Backoff::default()
        });
        for key in ["fine", "fails", "panics", "again"] {
            queue.add(key);
        }
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(run_workers(
            reconciler.clone(),
            queue.clone(),
            2,
            shutdown.clone(),
        ));
        while !queue.is_idle() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        shutdown.cancel();
        run.await.unwrap();
        let seen = reconciler.0.lock().unwrap();
        for (key, times) in [("fine", 1), ("fails", 2), ("panics", 2), ("again", 2)] {
            assert_eq!(seen.iter().filter(|k| **k == key).count(), times, "{key}");
        }
    }
}
