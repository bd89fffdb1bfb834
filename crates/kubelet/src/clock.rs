//! The one place where the agent's shell asks for the time and sleeps until one.

use std::time::Duration;

use jiff::Timestamp;

/// The time. Pure code takes it as an argument instead.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Sleeps until `at`; not at all if that is past.
pub async fn sleep_until(at: Timestamp) {
    let wait = Duration::try_from(at.duration_since(now())).unwrap_or_default();
    tokio::time::sleep(wait).await;
}
