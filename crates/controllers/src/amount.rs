//! Numbers that may be given as a part of a whole. Pure.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A number, or a percentage of `total` rounded `up` or down; 0 where it is neither.
pub fn scaled(value: &IntOrString, total: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%').and_then(|p| p.parse::<i64>().ok());
            let part = percent.unwrap_or(0) * i64::from(total);
            let round = if up { 99 } else { 0 };
            i32::try_from((part + round).div_euclid(100)).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_asked() {
        let percent = |text: &str| IntOrString::String(text.into());
        for (value, total, up, expected) in [
            (IntOrString::Int(3), 10, true, 3),
            (percent("25%"), 10, true, 3),
            (percent("25%"), 10, false, 2),
            (percent("100%"), 7, false, 7),
            (percent("0%"), 7, true, 0),
            (percent("many"), 7, true, 0),
        ] {
            assert_eq!(scaled(&value, total, up), expected, "{value:?} of {total}");
        }
    }
}
