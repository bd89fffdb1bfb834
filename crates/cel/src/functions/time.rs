//! Points and spans of time.

use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

use super::{Answer, fail};
use crate::eval::Outcome;
use crate::value::Value;

pub(super) fn call(name: &str, args: &[Value]) -> Answer {
    match (name, args) {
        ("timestamp", [Value::String(text)]) => Some(match parse_timestamp(text) {
            Some(time) => Ok(Value::Timestamp(time)),
            None => fail(format!("invalid timestamp {text:?}")),
        }),
        ("timestamp", [Value::Timestamp(time)]) => Some(Ok(Value::Timestamp(*time))),
        ("timestamp", [Value::Int(seconds)]) => Some(match Timestamp::from_second(*seconds) {
            Ok(time) => Ok(Value::Timestamp(time)),
            Err(_) => fail("timestamp overflow"),
        }),
        ("duration", [Value::String(text)]) => Some(match parse_duration(text) {
            Some(span) => Ok(Value::Duration(span)),
            None => fail(format!("time: invalid duration {text:?}")),
        }),
        ("duration", [Value::Duration(span)]) => Some(Ok(Value::Duration(*span))),
        ("getHours", [Value::Duration(d)]) => Some(Ok(Value::Int(d.as_secs() / 3600))),
        ("getMinutes", [Value::Duration(d)]) => Some(Ok(Value::Int(d.as_secs() / 60))),
        ("getSeconds", [Value::Duration(d)]) => Some(Ok(Value::Int(d.as_secs()))),
        ("getMilliseconds", [Value::Duration(d)]) => {
            Some(Ok(Value::Int(i64::from(d.subsec_millis()))))
        }
        (_, [Value::Timestamp(time)]) => part(name, &time.to_zoned(TimeZone::UTC)),
        (_, [Value::Timestamp(time), Value::String(zone)]) => {
            let zone = match zone_of(zone) {
                Some(zone) => zone,
                None => return Some(fail(format!("unknown time zone {zone}"))),
            };
            part(name, &time.to_zoned(zone))
        }
        _ => None,
    }
}

fn zone_of(name: &str) -> Option<TimeZone> {
    let (sign, rest) = match name.split_at_checked(1) {
        Some(("-", rest)) => (-1, rest),
        Some(("+", rest)) => (1, rest),
        _ => (1, name),
    };
    let Some((hours, minutes)) = rest.split_once(':') else {
        return TimeZone::get(name).ok();
    };
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    let seconds = sign * (hours * 3600 + minutes * 60);
    Offset::from_seconds(seconds).ok().map(TimeZone::fixed)
}

fn part(name: &str, time: &Zoned) -> Answer {
    let number = |n: i64| -> Option<Outcome> { Some(Ok(Value::Int(n))) };
    match name {
        "getFullYear" => number(time.year().into()),
        "getMonth" => number(i64::from(time.month()) - 1),
        "getDate" => number(time.day().into()),
        "getDayOfMonth" => number(i64::from(time.day()) - 1),
        "getDayOfWeek" => number(time.weekday().to_sunday_zero_offset().into()),
        "getDayOfYear" => number(i64::from(time.day_of_year()) - 1),
        "getHours" => number(time.hour().into()),
        "getMinutes" => number(time.minute().into()),
        "getSeconds" => number(time.second().into()),
        "getMilliseconds" => number(time.millisecond().into()),
        _ => None,
    }
}

/// A point in time as RFC 3339 writes it.
pub fn parse_timestamp(text: &str) -> Option<Timestamp> {
    let shaped = text.len() >= 20
        && text
            .as_bytes()
            .get(10)
            .is_some_and(|b| matches!(b, b'T' | b't'));
    shaped.then(|| text.parse().ok()).flatten()
}

/// A span of time as Go writes it: `1h30m`, `-1.5s`.
pub fn parse_duration(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut nanos: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (amount, tail) = rest.split_at(end);
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = amount.split_once('.').unwrap_or((amount, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let number = |digits: &str| -> Option<i128> {
            if digits.is_empty() {
                Some(0)
            } else {
                digits.parse().ok()
            }
        };
        nanos = nanos.checked_add(number(whole)?.checked_mul(unit)?)?;
        let places = u32::try_from(fraction.len()).ok().filter(|p| *p < 20)?;
        nanos += number(fraction)?.checked_mul(unit)? / 10i128.pow(places);
        rest = tail;
    }
    let nanos = i64::try_from(if negative { -nanos } else { nanos }).ok()?;
    Some(SignedDuration::from_nanos(nanos))
}
