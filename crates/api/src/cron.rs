//! Schedules of CronJobs: five fields, `@daily` and the like, or `@every 1h30m`; and time zones by name.

use jiff::{SignedDuration, Timestamp, ToSpan, Unit, Zoned, ZonedRound, tz::TimeZone};

/// Years after which a schedule without any time in them is given up, such as February 30.
const HORIZON_YEARS: i16 = 9;

/// A schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// By the calendar.
    Calendar(Box<Calendar>),
    /// At a distance, counted from the time before.
    Every(SignedDuration),
}

/// The times of a calendar: a bit for each allowed value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Days are met by both fields; otherwise one of them is enough.
    both_days: bool,
    zone: TimeZone,
}

/// Why a schedule or time zone cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScheduleError(String);

fn fail<T>(what: impl Into<String>) -> Result<T, ScheduleError> {
    Err(ScheduleError(what.into()))
}

struct Field {
    least: u8,
    most: u8,
    names: &'static [&'static str],
}

const MINUTE: Field = Field {
    least: 0,
    most: 59,
    names: &[],
};
const HOUR: Field = Field {
    least: 0,
    most: 23,
    names: &[],
};
const DAY: Field = Field {
    least: 1,
    most: 31,
    names: &[],
};
const MONTH: Field = Field {
    least: 1,
    most: 12,
    names: &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ],
};
const WEEKDAY: Field = Field {
    least: 0,
    most: 6,
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
};

/// The zone of this name; `None` is UTC.
///
/// # Errors
/// When no such zone is known.
pub fn zone(name: Option<&str>) -> Result<TimeZone, ScheduleError> {
    match name {
        None => Ok(TimeZone::UTC),
        Some(name) => TimeZone::get(name).or_else(|_| fail(format!("unknown time zone {name}"))),
    }
}

impl Schedule {
    /// Reads a schedule whose fields mean times of `zone`.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, ScheduleError> {
        let (text, zone) = match named_zone(text) {
            Some((name, rest)) => (rest, self::zone(Some(name))?),
            None => (text.trim(), zone),
        };
        if let Some(distance) = text.strip_prefix("@every ") {
            return every(distance.trim());
        }
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other if other.starts_with('@') => {
                return fail(format!("unrecognized descriptor: {other}"));
            }
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            let n = fields.len();
            return fail(format!("expected exactly 5 fields, found {n}: {fields:?}"));
        };
        Ok(Self::Calendar(Box::new(Calendar {
            minutes: bits(minute, &MINUTE)?,
            hours: bits(hour, &HOUR)?,
            days: bits(day, &DAY)?,
            months: bits(month, &MONTH)?,
            weekdays: bits(weekday, &WEEKDAY)?,
            both_days: is_star(day) || is_star(weekday),
            zone,
        })))
    }

    /// The first time after `after`; `None`: there is none in the years to come.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Every(distance) => after.checked_add(*distance).ok(),
            Self::Calendar(calendar) => calendar.next(after),
        }
    }
}

fn named_zone(text: &str) -> Option<(&str, &str)> {
    let rest = text
        .strip_prefix("TZ=")
        .or_else(|| text.strip_prefix("CRON_TZ="))?;
    rest.split_once(' ').map(|(zone, rest)| (zone, rest.trim()))
}

fn every(text: &str) -> Result<Schedule, ScheduleError> {
    let distance: SignedDuration = match text.parse() {
        Ok(distance) => distance,
        Err(_) => return fail(format!("failed to parse duration {text:?}")),
    };
    let seconds = distance.as_secs();
    if seconds < 1 {
        return fail(format!("{text:?} is less than a second"));
    }
    Ok(Schedule::Every(SignedDuration::from_secs(seconds)))
}

/// Whether a field says nothing. A step makes no difference, as in every cron.
fn is_star(field: &str) -> bool {
    let says_nothing = |part: &str| matches!(part.split('/').next(), Some("*" | "?"));
    field.split(',').any(says_nothing)
}

fn bits(text: &str, field: &Field) -> Result<u64, ScheduleError> {
    let mut all = 0;
    for part in text.split(',') {
        all |= range(part, field)?;
    }
    Ok(all)
}

fn range(part: &str, field: &Field) -> Result<u64, ScheduleError> {
    let (span, step) = match part.split_once('/') {
        None => (part, None),
        Some((span, step)) => match step.parse::<u8>() {
            Ok(0) => return fail(format!("step of range should be a positive number: {part}")),
            Ok(step) => (span, Some(step)),
            Err(_) => return fail(format!("failed to parse int from {step}")),
        },
    };
    let (first, last) = match span.split_once('-') {
        _ if matches!(span, "*" | "?") => (field.least, field.most),
        Some((first, last)) => (value(first, field)?, value(last, field)?),
        // A start with a step goes on to the end.
        None if step.is_some() => (value(span, field)?, field.most),
        None => (value(span, field)?, value(span, field)?),
    };
    if first < field.least {
        let least = field.least;
        return fail(format!(
            "beginning of range ({first}) below minimum ({least}): {part}"
        ));
    }
    if last > field.most {
        let most = field.most;
        return fail(format!(
            "end of range ({last}) above maximum ({most}): {part}"
        ));
    }
    if first > last {
        return fail(format!(
            "beginning of range ({first}) beyond end of range ({last}): {part}"
        ));
    }
    let values = (first..=last).step_by(usize::from(step.unwrap_or(1)));
    Ok(values.fold(0, |bits, v| bits | 1 << v))
}

fn value(text: &str, field: &Field) -> Result<u8, ScheduleError> {
    let lower = text.to_ascii_lowercase();
    if let Some(place) = field.names.iter().position(|n| *n == lower) {
        return Ok(field.least + u8::try_from(place).unwrap_or(0));
    }
    text.parse()
        .or_else(|_| fail(format!("failed to parse int from {text}")))
}

impl Calendar {
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let floor = |unit| {
            ZonedRound::new()
                .smallest(unit)
                .mode(jiff::RoundMode::Floor)
        };
        let start = after.to_zoned(self.zone.clone());
        let end = start.year().saturating_add(HORIZON_YEARS);
        let mut at = start.round(floor(Unit::Minute)).ok()? + 1.minute();
        while at.year() <= end {
            if !has(self.months, at.month()) {
                at = at.first_of_month().ok()? + 1.month();
                at = at.start_of_day().ok()?;
            } else if !self.has_day(&at) {
                at = at.tomorrow().ok()?.start_of_day().ok()?;
            } else if !has(self.hours, at.hour()) {
                // Hours pass one after another where clocks are put back; none is where they are
                // put forward.
                at = at
                    .round(floor(Unit::Hour))
                    .ok()?
                    .checked_add(1.hour())
                    .ok()?;
            } else if !has(self.minutes, at.minute()) {
                at = at.checked_add(1.minute()).ok()?;
            } else {
                return Some(at.timestamp());
            }
        }
        None
    }

    fn has_day(&self, at: &Zoned) -> bool {
        let day = has(self.days, at.day());
        let weekday = has(self.weekdays, at.weekday().to_sunday_zero_offset());
        if self.both_days {
            day && weekday
        } else {
            day || weekday
        }
    }
}

fn has(bits: u64, value: i8) -> bool {
    bits & (1 << value) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(schedule: &str, zone_name: &str, after: &str, count: usize) -> Vec<String> {
        let zone = zone(Some(zone_name)).unwrap();
        let schedule = Schedule::parse(schedule, zone.clone()).unwrap();
        let mut at: Timestamp = after.parse().unwrap();
        let mut all = Vec::new();
        for _ in 0..count {
            let Some(next) = schedule.next(at) else { break };
            all.push(
                next.to_zoned(zone.clone())
                    .strftime("%m-%d %H:%M")
                    .to_string(),
            );
            at = next;
        }
        all
    }

    #[test]
    fn fields_names_and_shorthands() {
        let after = "2026-01-30T23:58:30Z"; // a Friday
        for (schedule, expected) in [
            ("* * * * *", ["01-30 23:59", "01-31 00:00"]),
            ("*/15 * * * *", ["01-31 00:00", "01-31 00:15"]),
            ("5/20 * * * *", ["01-31 00:05", "01-31 00:25"]),
            ("0 9-17/4 * * *", ["01-31 09:00", "01-31 13:00"]),
            ("30 6 * * mon-FRI", ["02-02 06:30", "02-03 06:30"]),
            ("0 0 1,15 * ?", ["02-01 00:00", "02-15 00:00"]),
            ("0 0 13 * 5", ["02-06 00:00", "02-13 00:00"]),
            ("0 0 13 * *", ["02-13 00:00", "03-13 00:00"]),
            ("0 12 * Apr,jun Sun", ["04-05 12:00", "04-12 12:00"]),
            ("0 0 29 2 *", ["02-29 00:00", "02-29 00:00"]),
            ("@hourly", ["01-31 00:00", "01-31 01:00"]),
            ("@daily", ["01-31 00:00", "02-01 00:00"]),
            ("@weekly", ["02-01 00:00", "02-08 00:00"]),
            ("@monthly", ["02-01 00:00", "03-01 00:00"]),
            ("@yearly", ["01-01 00:00", "01-01 00:00"]),
            ("@every 1h30m", ["01-31 01:28", "01-31 02:58"]),
            ("TZ=Asia/Tokyo 0 9 * * *", ["01-31 00:00", "02-01 00:00"]),
        ] {
            assert_eq!(times(schedule, "UTC", after, 2), expected, "{schedule}");
        }
    }

    #[test]
    fn what_is_no_schedule() {
        for schedule in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 7",
            "5-1 * * * *",
            "*/0 * * * *",
            "x * * * *",
            "@sometimes",
            "@every x",
            "@every 10ms",
            "TZ=Nowhere/Else * * * * *",
        ] {
            assert!(
                Schedule::parse(schedule, TimeZone::UTC).is_err(),
                "{schedule}"
            );
        }
        assert!(zone(Some("Nowhere/Else")).is_err());
        let never = Schedule::parse("0 0 30 2 *", TimeZone::UTC).unwrap();
        assert_eq!(never.next(Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn clocks_put_forward_and_back() {
        let berlin = "Europe/Berlin";
        // 02:00 to 03:00 is missing on March 29, 2026, and happens twice on October 25.
        assert_eq!(
            times("30 2 * * *", berlin, "2026-03-28T00:00:00Z", 2),
            ["03-28 02:30", "03-30 02:30"]
        );
        assert_eq!(
            times("30 2 * * *", berlin, "2026-10-24T22:30:00Z", 3),
            ["10-25 02:30", "10-25 02:30", "10-26 02:30"]
        );
        assert_eq!(
            times("0 * * * *", berlin, "2026-03-29T00:30:00Z", 2),
            ["03-29 03:00", "03-29 04:00"]
        );
    }
}
