//! Time and randomness as arguments, so that tests decide both.

use std::sync::Arc;

use jiff::Timestamp;

/// The wall clock, as stored in objects. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Arc::new(Timestamp::now))
    }

    /// A clock that answers what `now` says.
    pub fn from_fn(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The present moment.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// A source of numbers in [0, 1), to spread retries. Cheap to clone.
#[derive(Clone)]
pub struct Jitter(Arc<dyn Fn() -> f64 + Send + Sync>);

impl Jitter {
    /// Random numbers of the process.
    pub fn random() -> Self {
        Self(Arc::new(rand::random::<f64>))
    }

    /// Always zero: no jitter.
    pub fn none() -> Self {
        Self(Arc::new(|| 0.0))
    }

    /// Numbers in [0, 1) from `next`.
    pub fn from_fn(next: impl Fn() -> f64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(next))
    }

    /// `duration` lengthened by up to `factor` of itself.
    pub fn stretch(&self, duration: std::time::Duration, factor: f64) -> std::time::Duration {
        duration + duration.mul_f64((self.0)() * factor)
    }

    /// The next number.
    pub fn next(&self) -> f64 {
        (self.0)()
    }
}

impl std::fmt::Debug for Jitter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Jitter")
    }
}
