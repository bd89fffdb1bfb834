//! Strings: the language's own functions, upstream's string library, and regular expressions.

use super::{Answer, fail, int, text};
use crate::error::EvalError;
use crate::eval::{Machine, Outcome};
use crate::value::Value;

/// Longest string that `format` and `replace` make, in bytes.
const MADE_MAX: usize = 1 << 20;

pub(super) fn call(machine: &mut Machine<'_>, name: &str, method: bool, args: &[Value]) -> Answer {
    let (first, rest) = args.split_first()?;
    let subject = first.as_str()?;
    if !method && name != "matches" && name != "strings.quote" {
        return None;
    }
    let word = |i: usize| rest.get(i).and_then(Value::as_str);
    let yes = |holds: bool| Some(Ok(Value::Bool(holds)));
    match (name, rest.len()) {
        ("contains", 1) => yes(subject.contains(word(0)?)),
        ("startsWith", 1) => yes(subject.starts_with(word(0)?)),
        ("endsWith", 1) => yes(subject.ends_with(word(0)?)),
        ("matches", 1) => {
            let found = machine.regex(word(0)?);
            Some(found.map(|regex| Value::Bool(regex.is_match(subject))))
        }
        ("find", 1) => {
            let found = machine.regex(word(0)?);
            Some(found.map(|regex| {
                let found = regex.find(subject).map(|m| m.as_str());
                Value::from(found.unwrap_or_default())
            }))
        }
        ("findAll", 1 | 2) => {
            let most = match rest.get(1) {
                None => usize::MAX,
                Some(Value::Int(n)) => usize::try_from(*n).unwrap_or(usize::MAX),
                Some(_) => return None,
            };
            let found = machine.regex(word(0)?);
            Some(found.map(|regex| {
                let all = regex.find_iter(subject).take(most);
                all.map(|m| Value::from(m.as_str()))
                    .collect::<Vec<_>>()
                    .into()
            }))
        }
        ("lowerAscii", 0) => Some(Ok(subject.to_ascii_lowercase().into())),
        ("upperAscii", 0) => Some(Ok(subject.to_ascii_uppercase().into())),
        ("trim", 0) => Some(Ok(subject.trim().into())),
        ("reverse", 0) => Some(Ok(subject.chars().rev().collect::<String>().into())),
        ("strings.quote", 0) => Some(Ok(format!("{subject:?}").into())),
        ("charAt", 1) => Some(char_at(subject, rest)?),
        ("indexOf" | "lastIndexOf", 1 | 2) => Some(index_of(name, subject, rest)?),
        ("substring", 1 | 2) => Some(substring(subject, rest)?),
        ("replace", 2 | 3) => Some(replace(machine, subject, rest)?),
        ("split", 1 | 2) => Some(split(subject, rest)?),
        ("format", 1) => match rest {
            [Value::List(list)] => Some(printf(subject, &list.items)),
            _ => None,
        },
        _ => None,
    }
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(n) => Some(*n),
        _ => None,
    }
}

fn char_at(subject: &str, rest: &[Value]) -> Option<Outcome> {
    let index = number(rest.first()?)?;
    let length = subject.chars().count();
    let at = usize::try_from(index).ok().filter(|at| *at <= length);
    Some(match at {
        Some(at) => Ok(subject.chars().skip(at).take(1).collect::<String>().into()),
        None => fail(format!("index out of range: {index}")),
    })
}

fn index_of(name: &str, subject: &str, rest: &[Value]) -> Option<Outcome> {
    let wanted: Vec<char> = rest.first()?.as_str()?.chars().collect();
    let chars: Vec<char> = subject.chars().collect();
    let last = name == "lastIndexOf";
    let start = match rest.get(1) {
        None if last => chars.len(),
        None => 0,
        Some(value) => {
            let index = number(value)?;
            match usize::try_from(index).ok().filter(|i| *i <= chars.len()) {
                Some(index) => index,
                None => return Some(fail(format!("index out of range: {index}"))),
            }
        }
    };
    let fits = |at: &usize| chars[*at..].starts_with(&wanted);
    let most = chars.len().checked_sub(wanted.len());
    let found = match most {
        None => None,
        Some(most) if last => (0..=most.min(start)).rev().find(fits),
        Some(most) => (start..=most).find(fits),
    };
    Some(Ok(found.map_or(Value::Int(-1), int)))
}

fn substring(subject: &str, rest: &[Value]) -> Option<Outcome> {
    let length = subject.chars().count();
    let bound = |value: &Value| {
        let n = number(value)?;
        Some((n, usize::try_from(n).ok().filter(|n| *n <= length)))
    };
    let (given, from) = bound(rest.first()?)?;
    let Some(from) = from else {
        return Some(fail(format!("index out of range: {given}")));
    };
    let to = match rest.get(1) {
        None => length,
        Some(value) => match bound(value)? {
            (_, Some(to)) if to >= from => to,
            (given, Some(_)) => {
                let why = format!("invalid substring range. start: {from}, end: {given}");
                return Some(fail(why));
            }
            (given, None) => return Some(fail(format!("index out of range: {given}"))),
        },
    };
    let part: String = subject.chars().skip(from).take(to - from).collect();
    Some(Ok(part.into()))
}

fn replace(machine: &mut Machine<'_>, subject: &str, rest: &[Value]) -> Option<Outcome> {
    let (old, new) = (rest.first()?.as_str()?, rest.get(1)?.as_str()?);
    let most = match rest.get(2) {
        None => usize::MAX,
        Some(value) => usize::try_from(number(value)?).unwrap_or(usize::MAX),
    };
    let times = if old.is_empty() {
        subject.chars().count() + 1
    } else {
        subject.matches(old).count()
    };
    let length = subject
        .len()
        .saturating_add(new.len().saturating_mul(times.min(most)));
    if length > MADE_MAX {
        return Some(fail("the replaced string is too long"));
    }
    if let Err(error) = machine.pay(length as u64 / 10) {
        return Some(Err(error));
    }
    Some(Ok(subject.replacen(old, new, most).into()))
}

fn split(subject: &str, rest: &[Value]) -> Option<Outcome> {
    let separator = rest.first()?.as_str()?;
    let most = match rest.get(1) {
        None => usize::MAX,
        Some(value) => match number(value)? {
            0 => return Some(Ok(Vec::new().into())),
            n => usize::try_from(n).unwrap_or(usize::MAX),
        },
    };
    let parts: Vec<Value> = if separator.is_empty() {
        let mut chars: Vec<String> = subject.chars().map(String::from).collect();
        if chars.len() > most {
            let tail = chars.split_off(most - 1).concat();
            chars.push(tail);
        }
        chars.into_iter().map(Value::from).collect()
    } else {
        subject.splitn(most, separator).map(Value::from).collect()
    };
    Some(Ok(parts.into()))
}

/// `"%s of %d".format([a, b])`.
///
/// # Errors
/// When a clause is unknown or does not fit its argument, or arguments are too few.
pub(super) fn printf(pattern: &str, args: &[Value]) -> Outcome {
    let mut out = String::new();
    let mut args = args.iter();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(d) = chars.peek().filter(|c| c.is_ascii_digit()) {
                digits.push(*d);
                chars.next();
            }
            precision = Some(digits.parse::<usize>().unwrap_or(0).min(100));
        }
        let clause = chars
            .next()
            .ok_or_else(|| EvalError::failed("unexpected end of string"))?;
        if clause == '%' {
            out.push('%');
            continue;
        }
        let arg = args
            .next()
            .ok_or_else(|| EvalError::failed("index out of range: too few arguments"))?;
        out.push_str(&clause_text(clause, arg, precision)?);
        if out.len() > MADE_MAX {
            return fail("the formatted string is too long");
        }
    }
    Ok(out.into())
}

fn clause_text(clause: char, arg: &Value, precision: Option<usize>) -> Result<String, EvalError> {
    let precision = precision.unwrap_or(6);
    let whole = match arg {
        Value::Int(n) => Some(i128::from(*n)),
        Value::Uint(n) => Some(i128::from(*n)),
        Value::Bool(b) if clause == 'b' => Some(i128::from(*b)),
        _ => None,
    };
    Ok(match (clause, arg, whole) {
        ('s', value, _) => text(value),
        ('d', _, Some(n)) => n.to_string(),
        ('d', Value::Double(n), _) => n.to_string(),
        ('f', value, _) => match value.as_double() {
            Some(n) => format!("{n:.precision$}"),
            None => return unfit(clause, arg),
        },
        ('e', value, _) => match value.as_double() {
            Some(n) => exponent(&format!("{n:.precision$e}")),
            None => return unfit(clause, arg),
        },
        ('b', _, Some(n)) => signed(n, format!("{:b}", n.unsigned_abs())),
        ('o', _, Some(n)) => signed(n, format!("{:o}", n.unsigned_abs())),
        ('x', _, Some(n)) => signed(n, format!("{:x}", n.unsigned_abs())),
        ('X', _, Some(n)) => signed(n, format!("{:X}", n.unsigned_abs())),
        ('x', Value::String(s), _) => s.bytes().map(|b| format!("{b:02x}")).collect(),
        ('X', Value::String(s), _) => s.bytes().map(|b| format!("{b:02X}")).collect(),
        ('x', Value::Bytes(s), _) => s.iter().map(|b| format!("{b:02x}")).collect(),
        ('X', Value::Bytes(s), _) => s.iter().map(|b| format!("{b:02X}")).collect(),
        ('d' | 'b' | 'o' | 'x' | 'X', ..) => return unfit(clause, arg),
        _ => return fail(format!("unrecognized formatting clause {clause:?}")),
    })
}

fn unfit(clause: char, arg: &Value) -> Result<String, EvalError> {
    fail(format!(
        "error during formatting: clause %{clause} cannot be used on {}",
        arg.type_name()
    ))
}

fn signed(n: i128, digits: String) -> String {
    if n < 0 { format!("-{digits}") } else { digits }
}

/// Two digits and a sign in the exponent.
fn exponent(text: &str) -> String {
    let (mantissa, power) = text.split_once('e').unwrap_or((text, "0"));
    let (sign, power) = match power.strip_prefix('-') {
        Some(power) => ('-', power),
        None => ('+', power),
    };
    format!("{mantissa}e{sign}{power:0>2}")
}
