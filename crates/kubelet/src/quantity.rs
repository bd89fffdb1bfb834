//! Resource amounts as whole numbers of the unit that the kernel wants.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// Amounts by resource name, as in `requests` and `limits`.
pub type Amounts = BTreeMap<String, Quantity>;

/// The amount in thousandths, rounded up; 0 if it cannot be read.
pub fn milli(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 3).unwrap_or(0)
}

/// The amount in whole units (bytes, cores), rounded up; 0 if it cannot be read.
pub fn units(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 0).unwrap_or(0)
}

/// The amount called `name` in thousandths, or `None` if it is not set.
pub fn milli_of(amounts: Option<&Amounts>, name: &str) -> Option<i64> {
    amounts?.get(name).map(milli)
}

/// The amount called `name` in whole units, or `None` if it is not set.
pub fn units_of(amounts: Option<&Amounts>, name: &str) -> Option<i64> {
    amounts?.get(name).map(units)
}

/// `text` × 10^`digits`, rounded up.
fn scaled(text: &str, digits: u32) -> Option<i64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mantissa: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let (multiplier, mut exponent) = unit(suffix)?;
    exponent += i32::try_from(digits).ok()? - i32::try_from(fraction.len()).ok()?;
    let value = mantissa.checked_mul(multiplier)?;
    let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
    let value = if exponent >= 0 {
        value.checked_mul(power)?
    } else {
        value.div_euclid(power) + i128::from(value.rem_euclid(power) != 0)
    };
    i64::try_from(if negative { -value } else { value }).ok()
}

/// A suffix as a factor and a power of ten.
fn unit(suffix: &str) -> Option<(i128, i32)> {
    let binary = |n: u32| Some((1_i128 << (10 * n), 0));
    match suffix {
        "" => Some((1, 0)),
        "n" => Some((1, -9)),
        "u" => Some((1, -6)),
        "m" => Some((1, -3)),
        "k" => Some((1, 3)),
        "M" => Some((1, 6)),
        "G" => Some((1, 9)),
        "T" => Some((1, 12)),
        "P" => Some((1, 15)),
        "E" => Some((1, 18)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let power = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (-30..=30).contains(&power).then_some((1, power))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_manifests_have() {
        let cases = [
            ("1", 1000, 1),
            ("100m", 100, 1),
            ("0.5", 500, 1),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("64Mi", 67_108_864_000, 67_108_864),
            ("2k", 2_000_000, 2000),
            ("1e3", 1_000_000, 1000),
            ("1n", 1, 1),
            ("bad", 0, 0),
        ];
        for (text, thousandths, whole) in cases {
            let quantity = Quantity(text.into());
            assert_eq!(
                (milli(&quantity), units(&quantity)),
                (thousandths, whole),
                "{text}"
            );
        }
    }
}
