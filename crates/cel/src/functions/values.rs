//! Values of any type: conversions to text and bytes, optionals, quantities, versions and named formats.

use std::sync::Arc;

use api::{Quantity, names};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::SignedDuration;

use super::{Answer, fail};
use crate::eval::Outcome;
use crate::semver::Version;
use crate::value::{Map, Value};

pub(super) fn call(name: &str, args: &[Value]) -> Answer {
    plain(name, args)
        .or_else(|| optional(name, args))
        .or_else(|| quantity(name, args))
        .or_else(|| semver(name, args))
        .or_else(|| format(name, args))
}

fn plain(name: &str, args: &[Value]) -> Answer {
    Some(match (name, args) {
        ("dyn", [value]) => Ok(value.clone()),
        ("type", [value]) => Ok(Value::Type(value.type_name().into())),
        ("string", [Value::Bytes(bytes)]) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.into()),
            Err(_) => fail("invalid UTF-8 in bytes, cannot convert to string"),
        },
        ("string", [value]) if !matches!(value, Value::List(_) | Value::Map(_) | Value::Null) => {
            Ok(text(value).into())
        }
        ("bytes", [Value::String(s)]) => Ok(Value::Bytes(s.as_bytes().into())),
        ("bytes", [Value::Bytes(b)]) => Ok(Value::Bytes(b.clone())),
        ("bool", [Value::Bool(b)]) => Ok(Value::Bool(*b)),
        ("bool", [Value::String(s)]) => match &**s {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Value::Bool(false)),
            other => fail(format!(
                "strconv.ParseBool: parsing {other:?}: invalid syntax"
            )),
        },
        ("base64.encode", [Value::Bytes(bytes)]) => Ok(STANDARD.encode(bytes).into()),
        ("base64.decode", [Value::String(s)]) => match STANDARD.decode(s.as_bytes()) {
            Ok(bytes) => Ok(Value::Bytes(bytes.into())),
            Err(e) => fail(e.to_string()),
        },
        ("jsonpatch.escapeKey", [Value::String(s)]) => {
            Ok(s.replace('~', "~0").replace('/', "~1").into())
        }
        _ => return None,
    })
}

fn optional(name: &str, args: &[Value]) -> Answer {
    let some = |value: &Value| Value::Optional(Some(Arc::new(value.clone())));
    Some(Ok(match (name, args) {
        ("optional.of", [value]) => some(value),
        ("optional.none", []) => Value::Optional(None),
        ("optional.ofNonZeroValue", [value]) if value.is_zero() => Value::Optional(None),
        ("optional.ofNonZeroValue", [value]) => some(value),
        ("hasValue", [Value::Optional(inner)]) => Value::Bool(inner.is_some()),
        ("value", [Value::Optional(inner)]) => match inner {
            Some(inner) => (**inner).clone(),
            None => return Some(fail("optional.none() dereference")),
        },
        ("orValue", [Value::Optional(inner), other]) => match inner {
            Some(inner) => (**inner).clone(),
            None => other.clone(),
        },
        ("or", [Value::Optional(inner), other @ Value::Optional(_)]) => match inner {
            Some(_) => args[0].clone(),
            None => other.clone(),
        },
        _ => return None,
    }))
}

fn quantity(name: &str, args: &[Value]) -> Answer {
    let parse = |text: &str| text.parse::<Quantity>();
    match (name, args) {
        ("isQuantity", [Value::String(s)]) => return Some(Ok(parse(s).is_ok().into())),
        ("quantity", [Value::String(s)]) => {
            return Some(match parse(s) {
                Ok(q) => Ok(Value::Quantity(Arc::new(q))),
                Err(e) => fail(e.to_string()),
            });
        }
        _ => {}
    }
    let Some((Value::Quantity(a), rest)) = args.split_first() else {
        return None;
    };
    let order = |b: &Quantity| i64::from(a.as_ref().cmp(b) as i8);
    Some(Ok(match (name, rest) {
        ("sign", []) if a.is_zero() => Value::Int(0),
        ("sign", []) => Value::Int(if a.is_negative() { -1 } else { 1 }),
        ("isInteger", []) => Value::Bool(a.is_integer()),
        ("asInteger", []) if !a.is_integer() => {
            return Some(fail("cannot convert value to integer"));
        }
        ("asInteger", []) => Value::Int(a.value()),
        ("asApproximateFloat", []) => Value::Double(a.as_f64()),
        ("isGreaterThan", [Value::Quantity(b)]) => Value::Bool(order(b) > 0),
        ("isLessThan", [Value::Quantity(b)]) => Value::Bool(order(b) < 0),
        ("compareTo", [Value::Quantity(b)]) => Value::Int(order(b)),
        ("add" | "sub", [other]) => {
            let other = match other {
                Value::Quantity(b) => **b,
                Value::Int(n) => n.to_string().parse().ok()?,
                _ => return None,
            };
            let a = **a;
            let made = if name == "add" { a + other } else { a - other };
            Value::Quantity(Arc::new(made))
        }
        _ => return None,
    }))
}

fn semver(name: &str, args: &[Value]) -> Answer {
    let lenient = matches!(args.get(1), Some(Value::Bool(true)));
    match (name, args) {
        ("isSemver", [Value::String(s)] | [Value::String(s), Value::Bool(_)]) => {
            return Some(Ok(Version::parse(s, lenient).is_some().into()));
        }
        ("semver", [Value::String(s)] | [Value::String(s), Value::Bool(_)]) => {
            return Some(match Version::parse(s, lenient) {
                Some(version) => Ok(Value::Semver(Arc::new(version))),
                None => fail(format!("invalid semantic version {s:?}")),
            });
        }
        _ => {}
    }
    let Some((Value::Semver(a), rest)) = args.split_first() else {
        return None;
    };
    let number = |i: usize| Value::Int(i64::try_from(a.numbers[i]).unwrap_or(i64::MAX));
    Some(Ok(match (name, rest) {
        ("major", []) => number(0),
        ("minor", []) => number(1),
        ("patch", []) => number(2),
        ("isLessThan", [Value::Semver(b)]) => Value::Bool(a < b),
        ("isGreaterThan", [Value::Semver(b)]) => Value::Bool(a > b),
        ("compareTo", [Value::Semver(b)]) => Value::Int(i64::from(a.cmp(b) as i8)),
        _ => return None,
    }))
}

/// Formats that strings can be checked against, by name.
const FORMATS: [&str; 12] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
];

fn format(name: &str, args: &[Value]) -> Answer {
    let named = |name: &str| {
        let known = FORMATS.iter().find(|f| **f == name);
        let datetime = (name == "datetime").then_some(&"datetime");
        known.or(datetime).map(|f| Value::Format(f))
    };
    if let (Some(name), []) = (name.strip_prefix("format."), args) {
        return named(name).map(Ok);
    }
    match (name, args) {
        ("format.named", [Value::String(s)]) => Some(Ok(Value::Optional(named(s).map(Arc::new)))),
        ("validate", [Value::Format(format), Value::String(s)]) => Some(validate(format, s)),
        _ => None,
    }
}

/// Nothing if the string is of the format, otherwise what is wrong with it.
fn validate(format: &str, text: &str) -> Outcome {
    let masked = format!("{}a", text.strip_suffix('-').unwrap_or(text));
    let shaped = |pattern: &str, why: &str| {
        let fits = crate::pattern::compile(pattern).is_ok_and(|r| r.is_match(text));
        if fits {
            Vec::new()
        } else {
            vec![why.to_owned()]
        }
    };
    let wrong = match format {
        "dns1123Label" => names::dns1123_label(text),
        "dns1123Subdomain" => names::dns1123_subdomain(text),
        "dns1035Label" => names::dns1035_label(text),
        "qualifiedName" => names::qualified_name(text),
        "dns1123LabelPrefix" => names::dns1123_label(&masked),
        "dns1123SubdomainPrefix" => names::dns1123_subdomain(&masked),
        "dns1035LabelPrefix" => names::dns1035_label(&masked),
        "labelValue" => names::label_value(text),
        "uuid" => shaped(
            "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$",
            "does not match the UUID format",
        ),
        "byte" if STANDARD.decode(text).is_err() => vec!["invalid base64".to_owned()],
        "date" => shaped(r"^\d{4}-\d{2}-\d{2}$", "invalid date"),
        "datetime" if super::parse_timestamp(text).is_none() => vec!["invalid datetime".to_owned()],
        "uri" => shaped("^([a-zA-Z][a-zA-Z0-9+.-]*:|/)[^ ]*$", "invalid URI"),
        _ => Vec::new(),
    };
    if wrong.is_empty() {
        return Ok(Value::Optional(None));
    }
    let wrong: Vec<Value> = wrong.into_iter().map(Value::from).collect();
    Ok(Value::Optional(Some(Arc::new(wrong.into()))))
}

/// A value as text, as `string()` and `%s` write it.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Uint(n) => n.to_string(),
        Value::Double(n) => double(*n),
        Value::String(s) | Value::Url(s) | Value::Type(s) => (**s).to_owned(),
        Value::Bytes(b) => String::from_utf8_lossy(b).into_owned(),
        Value::List(list) => {
            let items: Vec<String> = list.items.iter().map(text).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(map) => entries(map),
        Value::Defaulting(map) => entries(&map.0),
        Value::Timestamp(t) => t.to_string(),
        Value::Duration(d) => format!("{}s", double(seconds(*d))),
        Value::Optional(None) => "optional.none()".to_owned(),
        Value::Optional(Some(inner)) => format!("optional({})", text(inner)),
        Value::Quantity(q) => q.to_string(),
        Value::Ip(ip) => ip.to_string(),
        Value::Cidr(cidr) => cidr.to_string(),
        Value::Semver(v) => format!("{}.{}.{}", v.numbers[0], v.numbers[1], v.numbers[2]),
        Value::Format(name) => (*name).to_owned(),
    }
}

fn entries(map: &Map) -> String {
    let entries = map.0.iter();
    let mut shown: Vec<String> = entries
        .map(|(k, v)| format!("{}: {}", text(k), text(v)))
        .collect();
    shown.sort();
    format!("{{{}}}", shown.join(", "))
}

fn seconds(span: SignedDuration) -> f64 {
    span.as_secs_f64()
}

/// A float as Go writes it in its shortest form.
fn double(n: f64) -> String {
    if n.is_nan() {
        return "NaN".to_owned();
    }
    if n.is_infinite() {
        return if n > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let size = n.abs();
    if size != 0.0 && !(1e-4..1e21).contains(&size) {
        let text = format!("{n:e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, power) = match power.strip_prefix('-') {
            Some(power) => ('-', power),
            None => ('+', power),
        };
        return format!("{digits}e{sign}{power:0>2}");
    }
    n.to_string()
}
