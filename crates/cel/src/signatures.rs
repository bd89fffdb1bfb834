//! What the functions take and give: a line each, read once.
//!
//! A line is a name, the types of the arguments and that of the result; a leading dot marks methods, whose first
//! type is the target's. Capital letters stand for any one type.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use crate::types::{Bindings, Type};

/// One way to call a function.
#[derive(Debug)]
pub struct Signature {
    /// Whether it is a method: then the first argument is the target.
    pub method: bool,
    /// Types of the arguments.
    pub args: Vec<Type>,
    /// Type of the result.
    pub result: Type,
}

/// The ways to call the function of that name.
pub fn of(name: &str) -> &'static [Signature] {
    static ALL: OnceLock<HashMap<&str, Vec<Signature>>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let mut all: HashMap<&str, Vec<Signature>> = HashMap::new();
        for line in LINES.lines() {
            let mut words = line.split_whitespace();
            let Some(name) = words.next() else { continue };
            let mut types: Vec<Type> = words.filter_map(parse).collect();
            let Some(result) = types.pop() else { continue };
            let method = name.strip_prefix('.');
            all.entry(method.unwrap_or(name))
                .or_default()
                .push(Signature {
                    method: method.is_some(),
                    args: types,
                    result,
                });
        }
        all
    });
    all.get(name).map_or(&[], Vec::as_slice)
}

/// The ways to call a function with arguments of these types, the target's first; with what the parameters stand for.
pub fn fitting(
    name: &str,
    method: bool,
    given: &[Type],
) -> impl Iterator<Item = (&'static Signature, Bindings)> {
    of(name).iter().filter_map(move |signature| {
        let mut bindings = Bindings::default();
        let mut pairs = signature.args.iter().zip(given);
        let fits = signature.method == method
            && signature.args.len() == given.len()
            && pairs.all(|(wanted, given)| bindings.accept(wanted, given));
        fits.then_some((signature, bindings))
    })
}

fn parse(word: &str) -> Option<Type> {
    let inner = |prefix: &str| word.strip_prefix(prefix)?.strip_suffix('>');
    if let Some(item) = inner("list<") {
        return Some(Type::List(Arc::new(parse(item)?)));
    }
    if let Some(item) = inner("optional<") {
        return Some(Type::Optional(Arc::new(parse(item)?)));
    }
    if let Some((key, value)) = inner("map<").and_then(|i| i.split_once(',')) {
        return Some(Type::Map(Arc::new(parse(key)?), Arc::new(parse(value)?)));
    }
    Some(match word {
        "dyn" => Type::Dyn,
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "type" => Type::Type,
        "quantity" => Type::Opaque("kubernetes.Quantity"),
        "url" => Type::Opaque("kubernetes.URL"),
        "ip" => Type::Opaque("net.IP"),
        "cidr" => Type::Opaque("net.CIDR"),
        "semver" => Type::Opaque("kubernetes.Semver"),
        "format" => Type::Opaque("kubernetes.NamedFormat"),
        letter => Type::Parameter(letter.chars().next().filter(char::is_ascii_uppercase)?),
    })
}

const LINES: &str = include_str!("signatures.txt");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_can_be_read() {
        for line in LINES.lines().filter(|l| !l.is_empty()) {
            let words = line.split_whitespace().count() - 1;
            let types = line.split_whitespace().skip(1).filter_map(parse).count();
            assert_eq!(words, types, "{line}");
        }
        assert_eq!(of("contains").len(), 1);
    }
}
