//! A length of time, or a range from which each pod draws its own: `500ms`, `2s`, `1m..5m`.

use std::{fmt, str::FromStr};

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// Longest delay; a year is as good as never.
const MAX: SignedDuration = SignedDuration::from_hours(24 * 365);

/// How long something takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delay {
    least: SignedDuration,
    most: SignedDuration,
}

/// Not a delay.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DelayError {
    /// Neither a duration nor a range.
    #[error("{0:?} is neither a duration (\"500ms\", \"2s\", \"1m30s\") nor a range (\"1s..5s\")")]
    Form(String),
    /// A range that ends before it starts.
    #[error("the range {0:?} ends before it starts")]
    Order(String),
    /// Out of range.
    #[error("{0:?} is longer than a year, or negative")]
    Range(String),
}

impl Delay {
    /// Always this long.
    pub const fn exactly(duration: SignedDuration) -> Self {
        Self {
            least: duration,
            most: duration,
        }
    }

    /// The delay of whoever drew `chance`, a number in [0, 1).
    pub fn at(self, chance: f64) -> SignedDuration {
        self.least + (self.most - self.least).mul_f64(chance)
    }

    /// Whether it is always nothing.
    pub fn is_zero(self) -> bool {
        self.most.is_zero()
    }
}

impl FromStr for Delay {
    type Err = DelayError;

    fn from_str(text: &str) -> Result<Self, DelayError> {
        let one = |part: &str| -> Result<SignedDuration, DelayError> {
            let part = part.trim();
            let duration: SignedDuration = match part {
                "0" => SignedDuration::ZERO,
                _ => part.parse().map_err(|_| DelayError::Form(text.into()))?,
            };
            if duration.is_negative() || duration > MAX {
                return Err(DelayError::Range(text.into()));
            }
            Ok(duration)
        };
        let (least, most) = match text.split_once("..") {
            Some((least, most)) => (one(least)?, one(most)?),
            None => (one(text)?, one(text)?),
        };
        if most < least {
            return Err(DelayError::Order(text.into()));
        }
        Ok(Self { least, most })
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.least == self.most {
            return write!(f, "{:#}", self.least);
        }
        write!(f, "{:#}..{:#}", self.least, self.most)
    }
}

impl<'de> Deserialize<'de> for Delay {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Delay {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_ranges_are_read_and_written() {
        for (text, low, high) in [
            ("0", 0, 0),
            ("0s", 0, 0),
            ("500ms", 500, 500),
            ("1m30s", 90_000, 90_000),
            ("1s..3s", 1000, 3000),
            ("0..1m", 0, 60_000),
        ] {
            let delay: Delay = text.parse().unwrap();
            assert_eq!(delay.at(0.0).as_millis(), low, "{text}");
            assert_eq!(delay.at(1.0).as_millis(), high, "{text}");
            assert_eq!(delay.to_string().parse(), Ok(delay), "{text}");
        }
    }

    #[test]
    fn what_is_no_delay_is_refused() {
        for text in ["", "3", "soon", "1s..", "3s..1s", "-1s", "9000h..9999999h"] {
            assert!(text.parse::<Delay>().is_err(), "{text}");
        }
    }
}
