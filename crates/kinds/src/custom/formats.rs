//! String formats that schemas may name: the ones upstream checks, by the same rules.

use std::net::IpAddr;
use std::sync::OnceLock;

use regex::Regex;

use super::pattern::compile;

/// Every format that is checked, without dashes.
const KNOWN: [&str; 26] = [
    "bsonobjectid",
    "byte",
    "cidr",
    "creditcard",
    "date",
    "datetime",
    "duration",
    "email",
    "hexcolor",
    "hostname",
    "ipv4",
    "ipv6",
    "isbn",
    "isbn10",
    "isbn13",
    "k8slongname",
    "k8sshortname",
    "mac",
    "password",
    "rgbcolor",
    "ssn",
    "uri",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
];

/// Formats that are regular expressions.
const PATTERNS: [(&str, &str); 12] = [
    ("bsonobjectid", "^[0-9a-fA-F]{24}$"),
    (
        "byte",
        "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})$",
    ),
    (
        "creditcard",
        r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35\d{3})\d{11})$",
    ),
    ("hexcolor", "^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"),
    (
        "hostname",
        r"^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)|([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9\-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$",
    ),
    ("k8sshortname", "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
    (
        "k8slongname",
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    ),
    ("ssn", r"^\d{3}[- ]?\d{2}[- ]?\d{4}$"),
    (
        "uuid",
        "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$",
    ),
    (
        "uuid3",
        "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$",
    ),
    (
        "uuid4",
        "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$",
    ),
    (
        "uuid5",
        "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$",
    ),
];

/// Longest host name, in bytes.
const HOSTNAME_MAX: usize = 255;
/// Longest part of a host name, and longest short name, in bytes.
const LABEL_MAX: usize = 63;
/// Longest long name, in bytes.
const LONG_NAME_MAX: usize = 253;

fn plain(format: &str) -> String {
    format.replace('-', "")
}

/// Whether strings are checked against a format of that name.
pub(crate) fn is_known(format: &str) -> bool {
    !format.is_empty() && KNOWN.contains(&plain(format).as_str())
}

/// Whether a string is of a known format; of an unknown one, none is.
pub(super) fn matches(format: &str, text: &str) -> bool {
    let format = plain(format);
    match format.as_str() {
        "password" => true,
        "uri" => is_request_uri(text),
        "email" => is_email(text),
        "ipv4" => text.contains('.') && address(text).is_some(),
        "ipv6" => text.contains(':') && address(text).is_some(),
        "cidr" => is_cidr(text),
        "mac" => is_mac(text),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "rgbcolor" => is_rgb(text),
        "date" => is_date(text),
        "datetime" => is_date_time(text),
        "duration" => is_duration(text),
        "creditcard" => {
            let digits: String = text.chars().filter(char::is_ascii_digit).collect();
            pattern(&format, &digits) && luhn(&digits)
        }
        "hostname" => {
            text.len() <= HOSTNAME_MAX
                && text.split('.').all(|part| part.len() <= LABEL_MAX)
                && pattern(&format, text)
        }
        "k8sshortname" => text.len() <= LABEL_MAX && pattern(&format, text),
        "k8slongname" => text.len() <= LONG_NAME_MAX && pattern(&format, text),
        other => pattern(other, text),
    }
}

fn pattern(format: &str, text: &str) -> bool {
    static COMPILED: OnceLock<Vec<(&str, Option<Regex>)>> = OnceLock::new();
    let all = COMPILED.get_or_init(|| {
        PATTERNS
            .iter()
            .map(|(name, pattern)| (*name, compile(pattern).ok()))
            .collect()
    });
    all.iter()
        .find(|(name, _)| *name == format)
        .and_then(|(_, regex)| regex.as_ref())
        .is_some_and(|regex| regex.is_match(text))
}

/// An address; leading zeros of IPv4 parts are decimal, as old clients meant them.
fn address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse().ok();
    }
    let parts: Vec<&str> = text.split('.').collect();
    let part = |p: &&str| !p.is_empty() && p.len() <= 10 && p.parse::<u8>().is_ok();
    let clean: Vec<&str> = parts
        .iter()
        .map(|p| p.trim_start_matches('0'))
        .map(|p| if p.is_empty() { "0" } else { p })
        .collect();
    (parts.len() == 4 && parts.iter().all(part))
        .then(|| clean.join("."))
        .and_then(|clean| clean.parse().ok())
}

fn is_cidr(text: &str) -> bool {
    let Some((base, bits)) = text.split_once('/') else {
        return false;
    };
    let most = match address(base) {
        Some(IpAddr::V4(_)) => 32,
        Some(IpAddr::V6(_)) => 128,
        None => return false,
    };
    bits.bytes().all(|b| b.is_ascii_digit()) && bits.parse::<u8>().is_ok_and(|n| n <= most)
}

fn is_mac(text: &str) -> bool {
    let groups = |separator: char, size: usize, counts: [usize; 3]| {
        let parts: Vec<&str> = text.split(separator).collect();
        counts.contains(&parts.len())
            && parts
                .iter()
                .all(|p| p.len() == size && p.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    groups(':', 2, [6, 8, 20]) || groups('-', 2, [6, 8, 20]) || groups('.', 4, [3, 4, 10])
}

fn is_request_uri(text: &str) -> bool {
    if text.is_empty() || text.bytes().any(|b| b.is_ascii_control() || b == b' ') {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    let Some((scheme, rest)) = text.split_once(':') else {
        return false;
    };
    let mut letters = scheme.chars();
    letters.next().is_some_and(|c| c.is_ascii_alphabetic())
        && letters.all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        && !rest.is_empty()
}

fn is_email(text: &str) -> bool {
    let address = match (text.find('<'), text.ends_with('>')) {
        (Some(start), true) => &text[start + 1..text.len() - 1],
        (None, false) => text,
        _ => return false,
    };
    let Some((local, domain)) = address.rsplit_once('@') else {
        return false;
    };
    let atom = |part: &str, extra: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_alphanumeric() || extra.contains(c) || !c.is_ascii())
    };
    let quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
    let dots = |text: &str, extra: &str| text.split('.').all(|part| atom(part, extra));
    let literal = domain.starts_with('[') && domain.ends_with(']');
    (quoted || dots(local, "!#$%&'*+-/=?^_`{|}~"))
        && (literal || dots(domain, "!#$%&'*+-/=?^_`{|}~"))
}

fn is_isbn10(text: &str) -> bool {
    let clean: Vec<char> = text.chars().filter(|c| !"- ".contains(*c)).collect();
    if clean.len() != 10 {
        return false;
    }
    let digit = |(index, c): (usize, &char)| match c {
        'X' if index == 9 => Some(10),
        c => c.to_digit(10),
    };
    let sum = clean.iter().enumerate().try_fold(0, |sum, (index, c)| {
        let weight = 10 - u32::try_from(index).ok()?;
        Some(sum + weight * digit((index, c))?)
    });
    sum.is_some_and(|sum| sum % 11 == 0)
}

fn is_isbn13(text: &str) -> bool {
    let clean: Vec<char> = text.chars().filter(|c| !"- ".contains(*c)).collect();
    let sum = clean.iter().enumerate().try_fold(0, |sum, (index, c)| {
        Some(sum + c.to_digit(10)? * if index % 2 == 0 { 1 } else { 3 })
    });
    clean.len() == 13 && sum.is_some_and(|sum| sum % 10 == 0)
}

fn luhn(digits: &str) -> bool {
    let sum: u32 = digits
        .chars()
        .rev()
        .enumerate()
        .filter_map(|(index, c)| {
            let digit = c.to_digit(10)? * if index % 2 == 1 { 2 } else { 1 };
            Some(digit / 10 + digit % 10)
        })
        .sum();
    sum.is_multiple_of(10)
}

fn is_rgb(text: &str) -> bool {
    let inner = text.strip_prefix("rgb(").and_then(|t| t.strip_suffix(')'));
    let part = |p: &str| {
        let p = p.trim();
        let padded = p.len() > 1 && p.starts_with('0');
        !padded && p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u8>().is_ok()
    };
    inner.is_some_and(|inner| inner.split(',').count() == 3 && inner.split(',').all(part))
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()
}

fn is_date_time(text: &str) -> bool {
    let lower = text.to_lowercase();
    let Some((date, time)) = lower.split_once('t') else {
        return false;
    };
    if !is_date(date) {
        return false;
    }
    static TIME: OnceLock<Option<Regex>> = OnceLock::new();
    let regex = TIME.get_or_init(|| {
        compile(r"^([0-9]{2}):([0-9]{2}):([0-9]{2})(.[0-9]+)?(z|([+-][0-9]{2}:[0-9]{2}))$").ok()
    });
    let Some(found) = regex.as_ref().and_then(|r| r.captures(time)) else {
        return false;
    };
    &found[1] <= "23" && &found[2] <= "59" && &found[3] <= "59"
}

/// Go's durations (`1h30m`), and numbers with units in words (`3 days`).
fn is_duration(text: &str) -> bool {
    const UNITS: [&[&str]; 8] = [
        &["ns", "nano"],
        &["us", "µs", "micro"],
        &["ms", "milli"],
        &["s", "sec"],
        &["m", "min"],
        &["h", "hr", "hour"],
        &["d", "day"],
        &["w", "wk", "week"],
    ];
    if is_go_duration(text) {
        return true;
    }
    static WORDS: OnceLock<Option<Regex>> = OnceLock::new();
    let regex = WORDS.get_or_init(|| compile(r"(\d+)\s*([A-Za-zµ]+)").ok());
    let known = |unit: &str| {
        UNITS.iter().any(|variants| {
            let longest = variants.last().is_some_and(|last| unit.starts_with(last));
            longest || variants.contains(&unit)
        })
    };
    regex.as_ref().is_some_and(|regex| {
        let mut all = regex.captures_iter(text);
        all.any(|found| found[1].parse::<i64>().is_ok() && known(&found[2].to_lowercase()))
    })
}

fn is_go_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(rest.len());
        let (amount, tail) = rest.split_at(digits);
        let has_digit = amount.bytes().any(|b| b.is_ascii_digit());
        if !has_digit || amount.matches('.').count() > 1 {
            return false;
        }
        let units = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"];
        let Some(unit) = units.iter().find(|u| {
            tail.strip_prefix(**u).is_some_and(|t| {
                t.is_empty() || t.starts_with(|c: char| c.is_ascii_digit() || c == '.')
            })
        }) else {
            return false;
        };
        rest = &tail[unit.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("date-time", "2014-12-15T19:30:20.000Z", "2014-12-15"),
            (
                "date-time",
                "2014-12-15T19:30:20+01:00",
                "2014-12-15T25:30:20Z",
            ),
            ("date", "2006-01-02", "2006-13-02"),
            ("duration", "1h30m", "abc"),
            ("duration", "3 days", "h"),
            ("duration", "1.5s", "1,5"),
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("ipv4", "010.0.0.1", "::1"),
            ("ipv6", "::1", "1.2.3.4"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("cidr", "fe80::/64", "fe80::"),
            ("mac", "00:11:22:33:44:55", "00:11:22:33:44"),
            ("mac", "0011.2233.4455", "0011.22"),
            ("uri", "https://example.com/x", "example.com"),
            ("email", "a@example.com", "a@"),
            ("email", "A B <a@example.com>", "a"),
            ("hostname", "www.example.com", "-a.example.com"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123"),
            (
                "uuid4",
                "123e4567-e89b-42d3-a456-426614174000",
                "123e4567-e89b-12d3-a456-426614174000",
            ),
            ("byte", "YWJj", "?"),
            ("isbn", "978-0321751041", "978-0321751042"),
            ("isbn10", "0321751043", "0321751044"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("ssn", "111-22-3333", "11-22-3333"),
            ("hexcolor", "#FFFFFF", "#GGGGGG"),
            ("rgbcolor", "rgb(255,255,255)", "rgb(256,0,0)"),
            ("bsonobjectid", "507f1f77bcf86cd799439011", "507f"),
            ("k8s-short-name", "a-b", "A"),
            ("k8s-long-name", "a.b", "a..b"),
        ] {
            assert!(is_known(format), "{format}");
            assert!(matches(format, good), "{format} {good}");
            assert!(!matches(format, bad), "{format} {bad}");
        }
        assert!(!is_known("color") && matches("password", ""));
    }
}
