//! Times as the API writes them, and ages as kubectl prints them. The clock is always an argument.

pub use jiff::Timestamp;

/// RFC 3339 in whole seconds, UTC: the form of `metav1.Time`.
pub fn format(time: Timestamp) -> String {
    format!("{time:.0}")
}

/// RFC 3339 with six decimals, UTC: the form of `metav1.MicroTime`.
pub fn format_micro(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// A time as the API writes it; `None` if it is none.
pub fn parse(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// Seconds from `then` to `now`; `None` if `then` is no time.
pub fn seconds_since(then: &str, now: Timestamp) -> Option<i64> {
    Some(now.as_second() - parse(then)?.as_second())
}

/// The age of something created at `then`, in kubectl's words; `<unknown>` if `then` is no time.
pub fn age(then: &str, now: Timestamp) -> String {
    seconds_since(then, now).map_or_else(|| "<unknown>".to_owned(), human_duration)
}

/// A duration of whole seconds in two or three figures: `5s`, `2m30s`, `3h`, `2d4h`, `3y`.
pub fn human_duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    if seconds < 0 {
        return "0s".to_owned();
    }
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let pair = |big: i64, big_unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{big}{big_unit}")
        } else {
            format!("{big}{big_unit}{small}{small_unit}")
        }
    };
    if seconds < 60 * 2 {
        return format!("{seconds}s");
    }
    if minutes < 10 {
        return pair(minutes, "m", seconds % 60, "s");
    }
    if minutes < 60 * 3 {
        return format!("{minutes}m");
    }
    if hours < 8 {
        return pair(hours, "h", minutes % 60, "m");
    }
    if hours < 48 {
        return format!("{hours}h");
    }
    if hours < 24 * 8 {
        return pair(hours / 24, "d", hours % 24, "h");
    }
    if hours < 24 * 365 * 2 {
        return format!("{}d", hours / 24);
    }
    if hours < 24 * 365 * 8 {
        return pair(hours / 24 / 365, "y", (hours / 24) % 365, "d");
    }
    format!("{}y", hours / 24 / 365)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, text) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (1, "1s"),
            (119, "119s"),
            (120, "2m"),
            (121, "2m1s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (10_860, "3h1m"),
            (28_799, "7h59m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (691_199, "7d23h"),
            (691_200, "8d"),
            (63_071_999, "729d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
            (252_288_000, "8y"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn times() {
        let t: Timestamp = "2026-06-15T04:14:53.123456789Z".parse().unwrap();
        assert_eq!(format(t), "2026-06-15T04:14:53Z");
        assert_eq!(format_micro(t), "2026-06-15T04:14:53.123456Z");
        let late: Timestamp = "1969-12-31T23:59:59.999999999Z".parse().unwrap();
        assert_eq!(format(late), "1969-12-31T23:59:59Z");
        assert_eq!(format_micro(late), "1969-12-31T23:59:59.999999Z");
        assert_eq!(age("2026-06-15T04:14:00Z", t), "53s");
        assert_eq!(age("", t), "<unknown>");
    }
}
