//! Addresses, ranges of addresses, and URLs.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Answer, fail};
use crate::value::{Map, Value};

pub(super) fn call(name: &str, args: &[Value]) -> Answer {
    made(name, args)
        .or_else(|| of_ip(name, args))
        .or_else(|| of_cidr(name, args))
        .or_else(|| of_url(name, args))
}

/// Addresses without zones and without IPv4 inside of IPv6, as upstream takes them.
fn address(text: &str) -> Result<IpAddr, String> {
    if text.contains('%') {
        return Err(format!(
            "IP address {text:?} with zone value is not allowed"
        ));
    }
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
        }
        Ok(ip) => Ok(ip),
        Err(_) => Err(format!(
            "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
        )),
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let failed = || {
        format!(
            "network address parse error during conversion from string: invalid CIDR address: {text}"
        )
    };
    let (base, _) = text.split_once('/').ok_or_else(failed)?;
    address(base)?;
    text.parse().map_err(|_| failed())
}

fn made(name: &str, args: &[Value]) -> Answer {
    let [Value::String(text)] = args else {
        return None;
    };
    let yes = |holds: bool| Some(Ok(Value::Bool(holds)));
    match name {
        "ip" => Some(address(text).map(Value::Ip).or_else(fail)),
        "isIP" => yes(address(text).is_ok()),
        "ip.isCanonical" => Some(match address(text) {
            Ok(ip) => Ok(Value::Bool(ip.to_string() == **text)),
            Err(why) => fail(why),
        }),
        "cidr" => Some(network(text).map(Value::Cidr).or_else(fail)),
        "isCIDR" => yes(network(text).is_ok()),
        "url" => Some(if parts(text).is_some() {
            Ok(Value::Url(text.clone()))
        } else {
            fail(format!(
                "URL parse error during conversion from string: parse {text:?}: invalid URI for request"
            ))
        }),
        "isURL" => yes(parts(text).is_some()),
        _ => None,
    }
}

fn of_ip(name: &str, args: &[Value]) -> Answer {
    let [Value::Ip(ip)] = args else {
        return None;
    };
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let link_local_multicast = match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    Some(Ok(match name {
        "family" => Value::Int(if ip.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Value::Bool(ip.is_unspecified()),
        "isLoopback" => Value::Bool(ip.is_loopback()),
        "isLinkLocalMulticast" => Value::Bool(link_local_multicast),
        "isLinkLocalUnicast" => Value::Bool(link_local),
        "isGlobalUnicast" => Value::Bool(
            !ip.is_unspecified()
                && !ip.is_loopback()
                && !ip.is_multicast()
                && !link_local
                && !broadcast,
        ),
        _ => return None,
    }))
}

fn of_cidr(name: &str, args: &[Value]) -> Answer {
    let Some((Value::Cidr(cidr), rest)) = args.split_first() else {
        return None;
    };
    let yes = |holds: bool| Some(Ok(Value::Bool(holds)));
    match (name, rest) {
        ("ip", []) => Some(Ok(Value::Ip(cidr.addr()))),
        ("prefixLength", []) => Some(Ok(Value::Int(cidr.prefix_len().into()))),
        ("masked", []) => Some(Ok(Value::Cidr(cidr.trunc()))),
        ("containsIP", [Value::Ip(ip)]) => yes(cidr.contains(ip)),
        ("containsIP", [Value::String(text)]) => Some(match address(text) {
            Ok(ip) => Ok(Value::Bool(cidr.contains(&ip))),
            Err(why) => fail(why),
        }),
        ("containsCIDR", [Value::Cidr(other)]) => yes(cidr.contains(other)),
        ("containsCIDR", [Value::String(text)]) => Some(match network(text) {
            Ok(other) => Ok(Value::Bool(cidr.contains(&other))),
            Err(why) => fail(why),
        }),
        _ => None,
    }
}

/// The parts of an absolute URL, or of a path.
struct Parts<'a> {
    scheme: &'a str,
    host: &'a str,
    path: &'a str,
    query: &'a str,
}

fn parts(text: &str) -> Option<Parts<'_>> {
    let bad = |c: char| c.is_control() || c == ' ';
    if text.is_empty() || text.contains(bad) {
        return None;
    }
    let (rest, query) = text.split_once('?').unwrap_or((text, ""));
    if rest.starts_with('/') {
        return Some(Parts {
            scheme: "",
            host: "",
            path: rest,
            query,
        });
    }
    let (scheme, rest) = rest.split_once(':')?;
    let letter = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(letter) {
        return None;
    }
    let Some(rest) = rest.strip_prefix("//") else {
        return Some(Parts {
            scheme,
            host: "",
            path: rest,
            query,
        });
    };
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let port = host
        .rsplit_once(':')
        .filter(|_| !host.ends_with(']'))
        .map(|(_, port)| port);
    if port.is_some_and(|p| !p.bytes().all(|b| b.is_ascii_digit())) {
        return None;
    }
    Some(Parts {
        scheme,
        host,
        path,
        query,
    })
}

fn of_url(name: &str, args: &[Value]) -> Answer {
    let [Value::Url(text)] = args else {
        return None;
    };
    let parts = parts(text)?;
    let bare = |host: &str| {
        host.trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned()
    };
    let (hostname, port) = match parts.host.rsplit_once(':') {
        Some((host, port)) if !parts.host.ends_with(']') => (bare(host), port),
        _ => (bare(parts.host), ""),
    };
    Some(Ok(match name {
        "getScheme" => parts.scheme.into(),
        "getHost" => parts.host.into(),
        "getHostname" => hostname.into(),
        "getPort" => port.into(),
        "getEscapedPath" => parts.path.into(),
        "getQuery" => query(parts.query),
        _ => return None,
    }))
}

fn query(text: &str) -> Value {
    let mut map = Map::default();
    for pair in text.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (Value::from(decode(key)), Value::from(decode(value)));
        let mut values = match map.get(&key) {
            Some(Value::List(list)) => list.items.clone(),
            _ => Vec::new(),
        };
        values.push(value);
        map.0.retain(|(k, _)| !k.equals(&key));
        map.0.push((key, values.into()));
    }
    Value::Map(std::sync::Arc::new(map))
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], code) {
            (_, Some(code)) => {
                out.push(code);
                at += 3;
                continue;
            }
            (b'+', None) => out.push(b' '),
            (byte, None) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}
