//! Sizes and costs as ranges: sums and products that stop at the largest number.

/// Characters that cost one to go over.
pub const PER_CHARACTER: f64 = 0.1;
/// What a character of a regular expression adds to each step over a text.
pub const PER_REGEX_CHARACTER: f64 = 0.25;

/// A size, or a number of times, between two bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// At least.
    pub min: u64,
    /// At most.
    pub max: u64,
}

impl Span {
    /// A size that nothing is known about.
    pub const UNKNOWN: Self = Self {
        min: 0,
        max: u64::MAX,
    };

    /// Exactly one size.
    pub fn exactly(n: u64) -> Self {
        Self { min: n, max: n }
    }

    /// No more than a size.
    pub fn up_to(max: u64) -> Self {
        Self { min: 0, max }
    }

    /// Of one thing and another.
    pub fn plus(self, other: Self) -> Self {
        Self {
            min: self.min.saturating_add(other.min),
            max: self.max.saturating_add(other.max),
        }
    }

    /// One for each of another.
    pub fn times(self, other: Self) -> Self {
        Self {
            min: self.min.saturating_mul(other.min),
            max: self.max.saturating_mul(other.max),
        }
    }

    /// Of one thing or another.
    pub fn or(self, other: Self) -> Self {
        Self {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }

    /// The most that it costs to go over something of that size.
    pub fn cost(self, each: f64) -> u64 {
        scaled(self.max, each)
    }
}

/// A number of steps at a price each, rounded up.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "both are positive, and a float too large becomes the largest number"
)]
pub fn scaled(n: u64, each: f64) -> u64 {
    (n as f64 * each).ceil() as u64
}
