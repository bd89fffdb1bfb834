//! Addresses and names of hosts in objects, with upstream's messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::{FieldError, meta, names};
use serde_json::Value;

/// Whether an address is one of the newer kind.
pub(crate) fn is_v6(text: &str) -> bool {
    sloppy(text).is_some_and(|ip| ip.is_ipv6())
}

/// An address as people write it: leading zeros of octets do not matter.
fn sloppy(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let bare = |octet: &str| {
        let digits = octet.trim_start_matches('0');
        if digits.is_empty() && !octet.is_empty() {
            "0".to_owned()
        } else {
            digits.to_owned()
        }
    };
    // Leading zeros are in the octets of IPv4 addresses, which may be the end of an IPv6 one.
    let (head, octets) = text.rsplit_once(':').unwrap_or(("", text));
    let octets: Vec<String> = octets.split('.').map(bare).collect();
    let octets = octets.join(".");
    if head.is_empty() && !text.contains(':') {
        octets.parse().ok()
    } else {
        format!("{head}:{octets}").parse().ok()
    }
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some())
}

/// An address.
pub(crate) fn valid_ip(text: &str, at: &str) -> Vec<FieldError> {
    let why = match (sloppy(text), text.parse::<IpAddr>()) {
        (None, _) => "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        (Some(_), Err(_)) => "must not have leading 0s",
        (Some(_), Ok(ip)) if is_mapped(ip) => "must not be an IPv4-mapped IPv6 address",
        (Some(_), Ok(_)) => return Vec::new(),
    };
    vec![FieldError::invalid(at, text, why)]
}

/// An address written as addresses are printed.
pub(crate) fn canonical_ip(text: &str, at: &str) -> Vec<FieldError> {
    let errors = valid_ip(text, at);
    let printed = text.parse::<IpAddr>().map(|ip| ip.to_string());
    if !errors.is_empty() || printed.as_deref() == Ok(text) {
        return errors;
    }
    vec![canonical(text, at, &printed.unwrap_or_default())]
}

fn canonical(text: &str, at: &str, printed: &str) -> FieldError {
    FieldError::invalid(at, text, format!("must be in canonical form ({printed:?})"))
}

/// What of an address makes it one that nothing outside of its host can be reached at.
pub(crate) fn special(text: &str, at: &str) -> Vec<FieldError> {
    let Some(ip) = sloppy(text) else {
        let why = "must be a valid IP address";
        return vec![FieldError::invalid(at, text, why)];
    };
    let error = not_special(ip, text).map(|why| FieldError::invalid(at, text, why));
    error.into_iter().collect()
}

/// Addresses and names that a load balancer is reached at.
pub(crate) fn of_balancer(ingress: &Value, at: &str) -> Vec<FieldError> {
    let (ip, host) = (
        meta::str_at(ingress, &["ip"]),
        meta::str_at(ingress, &["hostname"]),
    );
    let mut errors = Vec::new();
    if !ip.is_empty() {
        errors.extend(valid_ip(ip, &format!("{at}.ip")));
    }
    let modes = ["VIP", "Proxy"];
    let mode = ingress.get("ipMode").and_then(Value::as_str);
    let path = format!("{at}.ipMode");
    match mode {
        Some(_) if ip.is_empty() => {
            let why = "may not be specified when `ip` is not set";
            errors.push(FieldError::forbidden(path, why));
        }
        Some(mode) if !modes.contains(&mode) => {
            errors.push(FieldError::not_supported(path, mode, &["Proxy", "VIP"]));
        }
        _ => {}
    }
    if !host.is_empty() {
        let at = format!("{at}.hostname");
        errors.extend(crate::check::named(
            names::dns1123_subdomain(host),
            &at,
            host,
        ));
        if sloppy(host).is_some() {
            let why = "must be a DNS name, not an IP address";
            errors.push(FieldError::invalid(at, host, why));
        }
    }
    errors
}

fn not_special(ip: IpAddr, text: &str) -> Option<String> {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    let group = match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    };
    let why = if ip.is_unspecified() {
        return Some(format!("may not be unspecified ({text})"));
    } else if ip.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)"
    } else if local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
    } else if group {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// A name of a host with a domain.
pub(crate) fn qualified_host(text: &str, at: &str) -> Vec<FieldError> {
    if text.is_empty() {
        return vec![FieldError::required(at, "")];
    }
    let bare = text.strip_suffix('.').unwrap_or(text);
    let why = names::dns1123_subdomain(bare);
    if !why.is_empty() {
        return vec![FieldError::invalid(at, bare, why.join(","))];
    }
    if !bare.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        return vec![FieldError::invalid(at, bare, why)];
    }
    let odd = |label: &&str| !names::dns1123_label(label).is_empty();
    let why = |label: &str| names::dns1123_label(label).join(",");
    let refuse = |label| FieldError::invalid(at, label, why(label));
    bare.split('.').find(odd).map(refuse).into_iter().collect()
}

/// A range of addresses: the address and the length of the prefix.
pub(crate) fn range(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, length) = text.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    (length <= longest).then_some((ip, length))
}

/// Whether the first range holds the second and is larger.
pub(crate) fn holds((outer, wide): (IpAddr, u8), (inner, narrow): (IpAddr, u8)) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, true),
        IpAddr::V6(ip) => (ip.to_bits(), false),
    };
    let ((a, four), (b, also)) = (bits(outer), bits(inner));
    let same = (a ^ b).checked_shr(128 - u32::from(wide)).unwrap_or(0) == 0;
    four == also && wide < narrow && same
}

/// Refuses what is no range of addresses.
pub(crate) fn valid_range(text: &str, at: &str) -> Vec<FieldError> {
    let plain = |length: &str| length == "0" || !length.starts_with('0');
    let loose = text.split_once('/').and_then(|(ip, length)| {
        let (ip, bits) = (sloppy(ip)?, length.parse::<u8>().ok()?);
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        (bits <= longest).then_some((ip, bits, plain(length)))
    });
    let why = match (loose, range(text)) {
        (None, _) => "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        (Some((_, _, false)), _) | (_, None) => "must not have leading 0s in IP or prefix length",
        (_, Some((ip, _))) if is_mapped(ip) => "must not have an IPv4-mapped IPv6 address",
        (_, Some((ip, length))) if first_of(ip, length) != ip => {
            "must not have bits set beyond the prefix length"
        }
        _ => return Vec::new(),
    };
    vec![FieldError::invalid(at, text, why)]
}

/// A range written as ranges are printed.
pub(crate) fn canonical_range(text: &str, at: &str) -> Vec<FieldError> {
    let errors = valid_range(text, at);
    let printed = range(text).map(|(ip, length)| format!("{}/{length}", first_of(ip, length)));
    if !errors.is_empty() || printed.as_deref() == Some(text) {
        return errors;
    }
    vec![canonical(text, at, &printed.unwrap_or_default())]
}

/// The first address of the range that an address is in.
fn first_of(ip: IpAddr, length: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let why = |text| special(text, "ip").first().map(|e| e.detail.clone());
        for (text, begin) in [
            ("10.0.0.1", None),
            ("2001:db8::1", None),
            ("10.0.0", Some("must be a valid IP address")),
            ("0.0.0.0", Some("may not be unspecified (0.0.0.0)")),
            ("::1", Some("may not be in the loopback range")),
            ("169.254.1.1", Some("may not be in the link-local range")),
            ("fe80::1", Some("may not be in the link-local range")),
            ("224.0.0.7", Some("may not be in the link-local multicast")),
            ("ff02::1", Some("may not be in the link-local multicast")),
        ] {
            match (why(text), begin) {
                (None, None) => {}
                (Some(why), Some(begin)) => assert!(why.starts_with(begin), "{text}: {why}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert!(!is_v6("10.0.0.1") && is_v6("::1") && !is_v6("x"));
        assert!(qualified_host("a.example.com.", "h").is_empty());
        assert_eq!(qualified_host("a", "h").len(), 1);
    }

    #[test]
    fn texts_of_addresses_and_ranges() {
        let why = |errors: Vec<FieldError>| errors.first().map(|e| e.detail.clone());
        for (text, expected) in [
            ("10.0.0.1", None),
            ("2001:0db8::1", None),
            ("010.0.0.1", Some("must not have leading 0s")),
            (
                "::ffff:1.2.3.4",
                Some("must not be an IPv4-mapped IPv6 address"),
            ),
            (
                "1.2.3",
                Some("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
            ),
            (
                "",
                Some("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
            ),
        ] {
            assert_eq!(why(valid_ip(text, "ip")).as_deref(), expected, "{text}");
        }
        for (text, expected) in [
            ("10.0.0.0/8", None),
            ("0.0.0.0/0", None),
            ("::/0", None),
            ("10.0.0.1/32", None),
            (
                "10.0.0.1/8",
                Some("must not have bits set beyond the prefix length"),
            ),
            (
                "10.0.0.0/08",
                Some("must not have leading 0s in IP or prefix length"),
            ),
            (
                "010.0.0.0/8",
                Some("must not have leading 0s in IP or prefix length"),
            ),
            (
                "::ffff:1.2.3.0/120",
                Some("must not have an IPv4-mapped IPv6 address"),
            ),
            (
                "10.0.0.0",
                Some("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
            ),
            (
                "10.0.0.0/33",
                Some("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
            ),
        ] {
            assert_eq!(
                why(valid_range(text, "cidr")).as_deref(),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn ranges() {
        let within = |a: &str, b: &str| holds(range(a).unwrap(), range(b).unwrap());
        assert!(within("10.0.0.0/8", "10.1.0.0/16"));
        assert!(!within("10.0.0.0/8", "11.0.0.0/16"));
        assert!(!within("10.0.0.0/8", "10.0.0.0/8"));
        assert!(within("0.0.0.0/0", "10.0.0.0/8"));
        assert!(!within("::/0", "10.0.0.0/8"));
        assert!(within("2001:db8::/32", "2001:db8:1::/48"));
        for text in ["10.0.0.0", "10.0.0.0/33", "x/8", "::/129", "10.0.0.0/-1"] {
            assert_eq!(range(text), None, "{text}");
        }
    }
}
