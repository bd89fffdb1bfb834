//! Addresses and names of hosts in objects, with upstream's messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::{FieldError, names};

/// An address of a given family.
pub(crate) fn of_family(text: &str, v6: bool, at: &str) -> Vec<FieldError> {
    let good = if v6 {
        text.parse::<Ipv6Addr>().is_ok()
    } else {
        text.parse::<Ipv4Addr>().is_ok()
    };
    if good {
        return Vec::new();
    }
    let why = if v6 {
        "must be a valid IPv6 address"
    } else {
        "must be a valid IPv4 address"
    };
    vec![FieldError::invalid(at, text, why)]
}

/// An address that something outside of its host can be reached at.
pub(crate) fn of_endpoint(text: &str, at: &str) -> Vec<FieldError> {
    let Ok(ip) = text.parse::<IpAddr>() else {
        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        return vec![FieldError::invalid(at, text, why)];
    };
    not_special(ip)
        .map(|why| FieldError::invalid(at, text, why))
        .into_iter()
        .collect()
}

fn not_special(ip: IpAddr) -> Option<&'static str> {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    let group = match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    };
    if ip.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if ip.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if local {
        Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    } else if group {
        Some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
    } else {
        None
    }
}

/// A name of a host with a domain.
pub(crate) fn qualified_host(text: &str, at: &str) -> Vec<FieldError> {
    if text.is_empty() {
        return vec![FieldError::required(at, "")];
    }
    let bare = text.strip_suffix('.').unwrap_or(text);
    let why = names::dns1123_subdomain(bare);
    if !why.is_empty() {
        return crate::check::named(why, at, text);
    }
    if bare.contains('.') {
        return Vec::new();
    }
    let why = "should be a domain with at least two segments separated by dots";
    vec![FieldError::invalid(at, text, why)]
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
    if range(text).is_some() {
        return Vec::new();
    }
    let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    vec![FieldError::invalid(at, text, why)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let why = |text| of_endpoint(text, "ip").first().map(|e| e.detail.clone());
        for (text, begin) in [
            ("10.0.0.1", None),
            ("2001:db8::1", None),
            ("10.0.0", Some("must be a valid IP address")),
            ("0.0.0.0", Some("may not be unspecified")),
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
        assert!(of_family("10.0.0.1", false, "a").is_empty());
        assert!(!of_family("::1", false, "a").is_empty());
        assert!(of_family("::1", true, "a").is_empty());
        assert!(qualified_host("a.example.com.", "h").is_empty());
        assert_eq!(qualified_host("a", "h").len(), 1);
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
