//! Resource quantities (`100m`, `1.5Gi`, `2e3`): exact arithmetic and upstream's canonical form.
//!
//! A value is kept as an exact decimal: a coefficient times a power of ten, never smaller than
//! nano, as upstream rounds up there. Binary suffixes only choose how the value is written.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Smallest power of ten kept; finer values are rounded up.
const NANO: i32 = -9;
/// Upstream's message for anything that is no quantity.
pub const FORMAT_ERROR: &str =
    r"quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// Not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{FORMAT_ERROR}")]
pub struct ParseQuantityError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// An exact amount of some resource.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    /// In units of 10^-9.
    nanos: i128,
    format: Format,
}

impl Default for Quantity {
    fn default() -> Self {
        Self {
            nanos: 0,
            format: Format::DecimalSi,
        }
    }
}

impl Quantity {
    /// A whole number, written with decimal suffixes.
    pub fn from_int(value: i64) -> Self {
        Self {
            nanos: i128::from(value) * 1_000_000_000,
            format: Format::DecimalSi,
        }
    }

    /// Thousandths, as CPU is counted.
    pub fn from_milli(value: i64) -> Self {
        Self {
            nanos: i128::from(value) * 1_000_000,
            format: Format::DecimalSi,
        }
    }

    /// The value in whole units, rounded up; saturates.
    pub fn value(&self) -> i64 {
        saturate(div_up(self.nanos, 1_000_000_000))
    }

    /// The value in thousandths, rounded up; saturates.
    pub fn milli_value(&self) -> i64 {
        saturate(div_up(self.nanos, 1_000_000))
    }

    /// The value in billionths: exact.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    /// So many billionths, written as this one is.
    pub fn with_nanos(self, nanos: i128) -> Self {
        Self { nanos, ..self }
    }

    /// The value as a float, for ratios.
    #[allow(clippy::cast_precision_loss)]
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / 1e9
    }

    /// Whether the value is zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether the value is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether the value is a whole number.
    pub fn is_integer(&self) -> bool {
        self.nanos % 1_000_000_000 == 0
    }

    /// The value rounded up to whole thousandths.
    pub fn round_up_milli(self) -> Self {
        Self {
            nanos: div_up(self.nanos, 1_000_000) * 1_000_000,
            ..self
        }
    }
}

fn saturate(v: i128) -> i64 {
    i64::try_from(v).unwrap_or(if v < 0 { i64::MIN } else { i64::MAX })
}

fn div_up(value: i128, by: i128) -> i128 {
    // Away from zero, as upstream rounds.
    let (q, r) = (value / by, value % by);
    match r.cmp(&0) {
        Ordering::Equal => q,
        Ordering::Greater => q + 1,
        Ordering::Less => q - 1,
    }
}

impl std::ops::Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let format = if self.nanos == 0 {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: self.nanos.saturating_add(other.nanos),
            format,
        }
    }
}

impl std::ops::AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::ops::Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        let format = if self.nanos == 0 {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: self.nanos.saturating_sub(other.nanos),
            format,
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// Format, power of two and power of ten of a suffix.
fn suffix(text: &str) -> Option<(Format, u32, i32)> {
    Some(match text {
        "Ki" => (Format::BinarySi, 10, 0),
        "Mi" => (Format::BinarySi, 20, 0),
        "Gi" => (Format::BinarySi, 30, 0),
        "Ti" => (Format::BinarySi, 40, 0),
        "Pi" => (Format::BinarySi, 50, 0),
        "Ei" => (Format::BinarySi, 60, 0),
        "n" => (Format::DecimalSi, 0, -9),
        "u" => (Format::DecimalSi, 0, -6),
        "m" => (Format::DecimalSi, 0, -3),
        "" => (Format::DecimalSi, 0, 0),
        "k" => (Format::DecimalSi, 0, 3),
        "M" => (Format::DecimalSi, 0, 6),
        "G" => (Format::DecimalSi, 0, 9),
        "T" => (Format::DecimalSi, 0, 12),
        "P" => (Format::DecimalSi, 0, 15),
        "E" => (Format::DecimalSi, 0, 18),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            (Format::DecimalExponent, 0, digits.parse::<i32>().ok()?)
        }
    })
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, ParseQuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, unit) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(ParseQuantityError);
        }
        let (format, two, ten) = suffix(unit).ok_or(ParseQuantityError)?;
        let nanos = scale(whole, fraction, two, ten).ok_or(ParseQuantityError)?;
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }
}

/// The value of digits around a decimal point times 2^two times 10^ten, in nanos, rounded up,
/// capped where 128 bits end.
fn scale(whole: &str, fraction: &str, two: u32, ten: i32) -> Option<i128> {
    /// Digits beyond this cannot matter within the range of a quantity.
    const MAX_DIGITS: usize = 36;
    let fraction = fraction.trim_end_matches('0');
    let whole = whole.trim_start_matches('0');
    if whole.len() + fraction.len() > MAX_DIGITS {
        return whole
            .is_empty()
            .then_some(1)
            .or(Some(i128::from(i64::MAX) * 1_000_000_000));
    }
    let digits = format!("0{whole}{fraction}");
    let mut value: i128 = digits.parse().ok()?;
    if value == 0 {
        return Some(0);
    }
    let cap = i128::from(i64::MAX) * 1_000_000_000;
    value = match value.checked_mul(1 << two) {
        Some(v) => v,
        None => return Some(cap),
    };
    let power = ten - NANO - i32::try_from(fraction.len()).ok()?;
    if power >= 0 {
        let factor = 10_i128.checked_pow(u32::try_from(power).ok()?);
        return Some(
            factor
                .and_then(|f| value.checked_mul(f))
                .map_or(cap, |v| v.min(cap)),
        );
    }
    let divisor = 10_i128.checked_pow(power.unsigned_abs());
    Some(divisor.map_or(1, |d| div_up(value, d)).min(cap))
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that keeps the value exact.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let one = 1_000_000_000_i128;
        let mut format = self.format;
        // Values below 1024 or not whole have no binary form.
        if format == Format::BinarySi && (self.nanos.abs() < 1024 * one || self.nanos % one != 0) {
            format = Format::DecimalSi;
        }
        if format == Format::BinarySi {
            let mut value = self.nanos / one;
            let mut index = 0;
            let names = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
            while value % 1024 == 0 && index + 1 < names.len() {
                value /= 1024;
                index += 1;
            }
            return write!(f, "{value}{}", names[index]);
        }
        let mut value = self.nanos;
        let mut power = NANO;
        while value % 1000 == 0 && power < 18 {
            value /= 1000;
            power += 3;
        }
        if format == Format::DecimalExponent {
            return if power == 0 {
                write!(f, "{value}")
            } else {
                write!(f, "{value}e{power}")
            };
        }
        let names = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        let index = usize::try_from((power - NANO) / 3).unwrap_or(0);
        write!(f, "{value}{}", names[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_forms() {
        for (input, output) in [
            ("0", "0"),
            ("0.0", "0"),
            ("1", "1"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("0.5", "500m"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("0.1Ki", "102400m"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("1E", "1E"),
            ("1.2345678901", "1234567891n"),
            ("-1", "-1"),
            ("+2", "2"),
            ("1Mi", "1Mi"),
            ("1023Ki", "1023Ki"),
            ("1M", "1M"),
            (".5", "500m"),
            ("5.", "5"),
            ("1_", "!"),
            ("", "!"),
            (".", "!"),
            ("1mi", "!"),
            ("1K", "!"),
            ("a", "!"),
            ("1 Gi", "!"),
            ("1e", "!"),
            ("1.1.1", "!"),
            ("512Mi", "512Mi"),
            ("0.1", "100m"),
        ] {
            let got = input
                .parse::<Quantity>()
                .map_or("!".to_owned(), |q| q.to_string());
            assert_eq!(got, output, "{input}");
        }
    }

    #[test]
    fn values() {
        let q = |s: &str| s.parse::<Quantity>().unwrap();
        assert_eq!(q("1.5Gi").value(), 1_610_612_736);
        assert_eq!(q("100m").milli_value(), 100);
        assert_eq!(q("1n").value(), 1);
        assert!(q("1Gi") > q("1G"));
        assert_eq!((q("1") + q("500m")).to_string(), "1500m");
        assert_eq!((q("1Gi") - q("512Mi")).to_string(), "512Mi");
        assert_eq!(q("1e300").value(), i64::MAX);
    }

    proptest! {
        #[test]
        fn printing_keeps_the_value(n in -1_000_000_000_000_i64..1_000_000_000_000, unit in "(n|u|m|k|M|Ki|Mi|Gi|e3|)") {
            let q: Quantity = format!("{n}{unit}").parse().unwrap();
            prop_assert_eq!(q, q.to_string().parse::<Quantity>().unwrap());
        }

        #[test]
        fn parsing_never_panics(s in ".{0,40}") {
            let _ = s.parse::<Quantity>();
        }
    }
}
