//! Doubling delays that forget: restarts of a crashing container, image pulls, sandbox creation.
//!
//! Pure: the caller passes the time. The rules are upstream's: the first failure is retried at once
//! and arms the delay, each further failure doubles it up to a ceiling, and a quiet time of twice
//! the ceiling resets it.

use jiff::{SignedDuration, Timestamp};

/// First delay after a failure.
pub const INITIAL: SignedDuration = SignedDuration::from_secs(10);
/// Longest delay; twice this long without a failure forgets the past.
pub const CEILING: SignedDuration = SignedDuration::from_secs(300);

/// The delay in force for one thing that failed, and when it was armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Time to wait after the next failure.
    pub delay: SignedDuration,
    /// When the delay was last raised.
    pub armed_at: Timestamp,
}

impl Backoff {
    /// The entry after one more attempt at `now`: [`INITIAL`] when there was none or it was
    /// forgotten, else the doubled delay.
    pub fn next(previous: Option<Backoff>, now: Timestamp) -> Backoff {
        Self::next_from(previous, now, INITIAL)
    }

    /// As [`Backoff::next`] with another first delay.
    pub fn next_from(
        previous: Option<Backoff>,
        now: Timestamp,
        initial: SignedDuration,
    ) -> Backoff {
        let delay = match previous {
            Some(entry) if !entry.expired(now) => (entry.delay * 2).min(CEILING),
            _ => initial,
        };
        Backoff {
            delay,
            armed_at: now,
        }
    }

    /// The entry of something that failed `restarts` times in a row, for the last time at `at`: for
    /// when the real one was forgotten.
    pub fn after_restarts(restarts: u32, at: Timestamp) -> Backoff {
        let doublings = restarts.saturating_sub(1).min(10);
        let delay = (INITIAL * 2_i32.pow(doublings)).min(CEILING);
        Backoff {
            delay,
            armed_at: at,
        }
    }

    /// Whether the entry is old enough to be forgotten.
    pub fn expired(&self, now: Timestamp) -> bool {
        now.duration_since(self.armed_at) > CEILING * 2
    }

    /// When something that failed at `failed_at` may be tried again, or `None` if it may be now.
    pub fn wait_until(&self, failed_at: Timestamp, now: Timestamp) -> Option<Timestamp> {
        if self.expired(now) {
            return None;
        }
        let until = failed_at + self.delay;
        (until > now).then_some(until)
    }
}

/// A duration as Go prints whole seconds: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(delay: SignedDuration) -> String {
    let seconds = delay.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    #[test]
    fn doubles_to_the_ceiling_and_forgets() {
        let mut entry = None;
        let mut delays = Vec::new();
        for n in 0..7 {
            entry = Some(Backoff::next(entry, at(n)));
            delays.push(entry.unwrap().delay.as_secs());
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
        let quiet = Backoff::next(entry, at(6 + 601));
        assert_eq!(quiet.delay.as_secs(), 10);
    }

    #[test]
    fn is_guessed_from_restarts() {
        for (restarts, seconds) in [(0, 10), (1, 10), (2, 20), (5, 160), (6, 300), (999, 300)] {
            assert_eq!(
                Backoff::after_restarts(restarts, at(0)).delay.as_secs(),
                seconds
            );
        }
    }

    #[test]
    fn waits_from_the_failure_not_from_the_arming() {
        let entry = Backoff::next(None, at(0));
        assert_eq!(entry.wait_until(at(5), at(6)), Some(at(15)));
        assert_eq!(entry.wait_until(at(5), at(15)), None);
        assert_eq!(entry.wait_until(at(700), at(701)), None);
    }

    #[test]
    fn durations_read_as_in_go() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")] {
            assert_eq!(go_duration(SignedDuration::from_secs(seconds)), text);
        }
    }
}
