//! What calls cost, and how large their results are.

use super::span::{PER_CHARACTER, PER_REGEX_CHARACTER, Span, scaled};
use super::{CALL, Estimate, LIST};
use crate::ast::{Expr, Kind};
use crate::signatures::{self, Signature};
use crate::types::Type;
use crate::value::Value;

/// Bytes of an address of either family.
const ADDRESS: Span = Span { min: 4, max: 16 };
/// The longest pattern behind a named format, in characters.
const FORMAT_PATTERN: f64 = 128.0;
/// The longest name of a format, in characters.
const FORMAT_NAME: u64 = 64;

/// An argument or target of a call.
pub struct Arg<'a> {
    /// What it is.
    pub expr: &'a Expr,
    /// What is known of it.
    pub found: Estimate<'a>,
    /// The size of its items, if it is a list that came from somewhere.
    pub item: Option<Span>,
}

impl Arg<'_> {
    fn size(&self) -> Span {
        self.found.size()
    }

    /// The type and size of the items, if it is known to have any.
    fn items(&self) -> Option<(&Type, Span)> {
        let of = match &self.expr.result {
            Type::List(item) => item,
            Type::Map(key, _) => key,
            Type::Optional(inner) => inner,
            _ => return None,
        };
        Some((of, self.item.unwrap_or(Span::UNKNOWN)))
    }

    fn number(&self) -> Option<u64> {
        match self.expr.kind {
            #[expect(
                clippy::cast_sign_loss,
                reason = "upstream takes none below zero for all"
            )]
            Kind::Literal(Value::Int(n)) => Some(n as u64),
            _ => None,
        }
    }
}

/// The price of a call without its arguments, and the size of its result where the call tells.
pub struct Price {
    /// At most.
    pub cost: u64,
    /// Of the result.
    pub size: Option<Span>,
}

fn costs(cost: u64) -> Price {
    Price { cost, size: None }
}

fn sized(cost: u64, size: Span) -> Price {
    Price {
        cost,
        size: Some(size),
    }
}

/// The price of a call. What can be called in several ways costs what the dearest that fits does.
pub fn price(name: &str, target: Option<&Arg<'_>>, args: &[Arg<'_>]) -> Price {
    if let Some(price) = library(name, target, args) {
        return price;
    }
    if let "_<_" | "_<=_" | "_>_" | "_>=_" = name {
        return costs(comparison(args));
    }
    let given: Vec<Type> = target
        .into_iter()
        .chain(args)
        .map(|a| a.expr.result.clone())
        .collect();
    signatures::fitting(name, target.is_some(), &given)
        .map(|(signature, _)| language(name, signature, target, args))
        .reduce(|a, b| Price {
            cost: a.cost.max(b.cost),
            size: match (a.size, b.size) {
                (Some(a), Some(b)) => Some(a.or(b)),
                (a, b) => a.or(b),
            },
        })
        .unwrap_or(costs(CALL))
}

/// Two values are compared as far as the smaller one goes.
fn compared(a: &Arg<'_>, b: &Arg<'_>) -> u64 {
    scaled(a.size().max.min(b.size().max), PER_CHARACTER)
}

fn comparison(args: &[Arg<'_>]) -> u64 {
    let [a, b] = args else { return CALL };
    match (&a.expr.result, &b.expr.result) {
        (Type::String | Type::Bytes, _) | (_, Type::String | Type::Bytes)
            if a.expr.result == b.expr.result =>
        {
            compared(a, b)
        }
        (Type::Dyn, Type::Dyn | Type::String | Type::Bytes)
        | (Type::String | Type::Bytes, Type::Dyn) => compared(a, b).max(CALL),
        _ => CALL,
    }
}

/// Functions of the language itself, and of the libraries that come with it, by the way they are called.
fn language(
    name: &str,
    signature: &Signature,
    target: Option<&Arg<'_>>,
    args: &[Arg<'_>],
) -> Price {
    let first = signature.args.first();
    match (name, target, args) {
        ("_==_" | "_!=_", _, [a, b]) => costs(compared(a, b)),
        ("_+_", _, [a, b]) => {
            let size = a.size().plus(b.size());
            match first {
                Some(Type::String | Type::Bytes) => sized(size.cost(PER_CHARACTER), size),
                Some(Type::List(_)) => sized(CALL, size),
                _ => costs(CALL),
            }
        }
        ("@in", _, [_, of]) if matches!(signature.args.get(1), Some(Type::List(_))) => {
            costs(of.size().cost(1.0))
        }
        ("bytes", _, [text]) if first == Some(&Type::String) => {
            let size = text.size();
            let most = Span {
                min: size.min,
                max: size.max.saturating_mul(4),
            };
            sized(size.cost(PER_CHARACTER), most)
        }
        ("string", _, [bytes]) if first == Some(&Type::Bytes) => {
            let size = bytes.size();
            let most = Span {
                min: size.min / 4,
                max: size.max,
            };
            sized(size.cost(PER_CHARACTER), most)
        }
        ("strings.quote", _, [text]) => {
            let size = text.size();
            let most = size.times(Span { min: 1, max: 2 }).plus(Span::exactly(2));
            sized(size.cost(PER_CHARACTER), most)
        }
        ("format", Some(text), _) => costs(text.size().cost(PER_CHARACTER)),
        ("startsWith" | "endsWith", Some(_), [part]) => costs(part.size().cost(PER_CHARACTER)),
        ("contains", Some(text), [part]) => {
            let steps = text.size().cost(PER_CHARACTER);
            costs(steps.saturating_mul(part.size().cost(PER_CHARACTER)))
        }
        ("matches", Some(text), [regex]) => costs(matched(text, regex)),
        _ => costs(CALL),
    }
}

/// An empty text costs something too, since the regular expression may be dear.
fn matched(text: &Arg<'_>, regex: &Arg<'_>) -> u64 {
    let steps = text.size().plus(Span::exactly(1)).cost(PER_CHARACTER);
    steps.saturating_mul(regex.size().cost(PER_REGEX_CHARACTER))
}

/// Functions that are priced by their names alone.
fn library(name: &str, target: Option<&Arg<'_>>, args: &[Arg<'_>]) -> Option<Price> {
    if let Some(price) = lists(name, target, args) {
        return Some(price);
    }
    let over = |arg: &Arg<'_>| {
        let size = arg.size();
        sized(size.cost(PER_CHARACTER), size)
    };
    Some(match (name, target, args) {
        ("url" | "jsonpatch.escapeKey", None, [text]) => over(text),
        ("lowerAscii" | "upperAscii" | "substring" | "trim", Some(text), _) => over(text),
        ("replace", Some(text), [from, to, ..]) => {
            let size = replaced(text.size(), from.size(), to.size());
            sized(text.size().cost(2.0 * PER_CHARACTER), size)
        }
        ("split", Some(text), [_, limit @ ..]) => {
            let most = limit.first().and_then(Arg::number);
            let most = most.unwrap_or(text.size().max);
            sized(text.size().cost(2.0 * PER_CHARACTER), Span::up_to(most))
        }
        ("find" | "findAll", Some(text), [regex, ..]) => {
            sized(matched(text, regex), Span::up_to(text.size().max))
        }
        ("ip", Some(_), _) => costs(CALL),
        (
            "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver",
            None,
            [text, ..],
        ) => costs(text.size().cost(PER_CHARACTER)),
        ("ip.isCanonical", None, [text]) => costs(text.size().cost(2.0 * PER_CHARACTER)),
        ("containsIP", Some(_), [other]) => costs(contained(other, 0)),
        ("containsCIDR", Some(_), [other]) => {
            costs(contained(other, ADDRESS.cost(PER_CHARACTER) + CALL))
        }
        ("validate", Some(_), [text]) => {
            let steps = text.size().cost(PER_CHARACTER);
            costs(scaled(steps, FORMAT_PATTERN * PER_REGEX_CHARACTER))
        }
        ("_==_", None, [a, b]) if a.expr.result == b.expr.result => {
            let Type::Opaque(kind) = a.expr.result else {
                return None;
            };
            let most = match kind {
                "kubernetes.NamedFormat" => scaled(FORMAT_NAME, PER_CHARACTER),
                "kubernetes.URL" => scaled(b.found.size.map_or(1, |s| s.max), PER_CHARACTER),
                _ => CALL,
            };
            costs(most)
        }
        _ => return None,
    })
}

/// An address compared with a network; one that is written as text is read first.
fn contained(other: &Arg<'_>, more: u64) -> u64 {
    let read = match other.expr.result {
        Type::String => other.size().cost(PER_CHARACTER),
        // It may be text.
        Type::Dyn => other.size().cost(PER_CHARACTER),
        _ => 0,
    };
    let both = ADDRESS.plus(ADDRESS).cost(PER_CHARACTER);
    both.saturating_add(more).saturating_add(read)
}

fn lists(name: &str, target: Option<&Arg<'_>>, args: &[Arg<'_>]) -> Option<Price> {
    let made = |each: f64, size: Span| {
        let cost = size.cost(each).saturating_add(CALL).saturating_add(LIST);
        sized(cost, size)
    };
    Some(match (name, target, args) {
        (
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes",
            Some(list),
            _,
        ) => {
            let count = list.size().max;
            costs(match list.items() {
                Some((Type::String | Type::Bytes, item)) => {
                    count.saturating_mul(item.cost(PER_CHARACTER).saturating_add(1))
                }
                Some(_) => count,
                None if name == "includes" => count,
                None => scaled(count, PER_CHARACTER),
            })
        }
        ("join", Some(list), _) => {
            let count = list.size();
            let items = list
                .items()
                .map_or(Span::exactly(0), |(_, i)| count.times(i));
            let size = match args.first() {
                None => items,
                Some(separator) => items.plus(separator.size().times(Span {
                    min: count.min.saturating_sub(1),
                    max: count.max.saturating_sub(1),
                })),
            };
            sized(size.cost(PER_CHARACTER), size)
        }
        ("sets.contains" | "sets.intersects", None, [a, b]) => {
            costs(a.size().times(b.size()).cost(1.0).saturating_add(CALL))
        }
        ("sets.equivalent", None, [a, b]) => {
            costs(a.size().times(b.size()).cost(2.0).saturating_add(CALL))
        }
        ("slice", Some(list), [start, end]) => {
            let start = start.number().unwrap_or(0);
            let end = end.number().unwrap_or(list.size().max);
            made(1.0, Span::exactly(end.wrapping_sub(start)))
        }
        ("lists.range", None, [count]) => {
            made(1.0, Span::exactly(count.number().unwrap_or(u64::MAX)))
        }
        ("reverse", Some(list), []) if matches!(list.expr.result, Type::List(_)) => {
            made(1.0, list.size())
        }
        ("flatten", Some(list), depth) => {
            let depth = depth.first().map_or(1, |d| d.number().unwrap_or(u64::MAX));
            #[expect(clippy::cast_precision_loss, reason = "a factor, not a count")]
            let each = depth as f64;
            made(each, list.size())
        }
        ("distinct", Some(list), []) => made(2.0, list.size().times(list.size())),
        ("sort", Some(list), []) => {
            let text = matches!(list.items(), Some((Type::String | Type::Bytes, _)));
            let each = if text { 2.0 + PER_CHARACTER } else { 2.0 };
            made(each, list.size().times(list.size()))
        }
        _ => return None,
    })
}

/// The size of a text in which every part of one size was replaced by one of another.
fn replaced(text: Span, from: Span, to: Span) -> Span {
    let (max_count, max_kept) = if from.min == 0 {
        // Nothing is found around every character.
        (text.max.saturating_add(1), text.max)
    } else if to.max <= from.min {
        (0, text.max)
    } else {
        (text.max.div_ceil(from.min), 0)
    };
    let (min_count, min_kept) = if from.max == 0 {
        (text.min.saturating_add(1), text.min)
    } else if from.max <= to.min {
        (0, text.min)
    } else {
        (text.min.div_ceil(from.max), 0)
    };
    Span {
        min: min_count.saturating_mul(to.min).saturating_add(min_kept),
        max: max_count.saturating_mul(to.max).saturating_add(max_kept),
    }
}
