//! Types of expressions, as far as they are known before they run.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A type.
#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    /// Anything: what is known only when the expression runs.
    Dyn,
    /// null
    Null,
    /// true or false
    Bool,
    /// A signed integer.
    Int,
    /// An unsigned integer.
    Uint,
    /// A floating point number.
    Double,
    /// A string.
    String,
    /// Bytes.
    Bytes,
    /// A point in time.
    Timestamp,
    /// A span of time.
    Duration,
    /// A type itself.
    Type,
    /// A list.
    List(Arc<Type>),
    /// A map.
    Map(Arc<Type>, Arc<Type>),
    /// A value that may be absent.
    Optional(Arc<Type>),
    /// An object with fields.
    Object(Arc<Fields>),
    /// A type of a library.
    Opaque(&'static str),
    /// Stands for any one type in a signature.
    Parameter(char),
}

/// The fields of an object.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fields {
    /// What messages call the type.
    pub name: String,
    /// Fields by the names that expressions use.
    pub fields: BTreeMap<String, Type>,
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::Type => f.write_str("type"),
            Self::List(item) => write!(f, "list({item})"),
            Self::Map(key, value) => write!(f, "map({key}, {value})"),
            Self::Optional(inner) => write!(f, "optional_type({inner})"),
            Self::Object(fields) => f.write_str(&fields.name),
            Self::Opaque(name) => f.write_str(name),
            Self::Parameter(name) => write!(f, "{name}"),
        }
    }
}

/// What parameters of a signature stand for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bindings(Vec<(char, Type)>);

impl Bindings {
    /// Whether a value of type `given` can be where `wanted` is asked for.
    pub fn accept(&mut self, wanted: &Type, given: &Type) -> bool {
        match (wanted, given) {
            (Type::Parameter(name), _) => self.bind(*name, given),
            (Type::Dyn, _) | (_, Type::Dyn) => true,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => {
                self.accept(a, b)
            }
            (Type::Map(ak, av), Type::Map(bk, bv)) => self.accept(ak, bk) && self.accept(av, bv),
            // Objects, points and spans of time and values of libraries may be null.
            (
                Type::Object(_)
                | Type::Timestamp
                | Type::Duration
                | Type::Opaque(_)
                | Type::Optional(_),
                Type::Null,
            )
            | (
                Type::Null,
                Type::Object(_)
                | Type::Timestamp
                | Type::Duration
                | Type::Opaque(_)
                | Type::Optional(_),
            ) => true,
            (a, b) => a == b,
        }
    }

    fn bind(&mut self, name: char, given: &Type) -> bool {
        let Some(at) = self.0.iter().position(|(n, _)| *n == name) else {
            self.0.push((name, given.clone()));
            return true;
        };
        let bound = self.0[at].1.clone();
        if !self.accept(&bound, given) {
            return false;
        }
        // What is known of either is known of both.
        if matches!(bound, Type::Dyn | Type::Null) && *given != Type::Null {
            self.0[at].1 = if bound == Type::Dyn {
                Type::Dyn
            } else {
                given.clone()
            };
        }
        true
    }

    /// A type with what its parameters stand for.
    pub fn resolve(&self, of: &Type) -> Type {
        match of {
            Type::Parameter(name) => self
                .0
                .iter()
                .find(|(n, _)| n == name)
                .map_or(Type::Dyn, |(_, t)| t.clone()),
            Type::List(item) => Type::List(Arc::new(self.resolve(item))),
            Type::Optional(inner) => Type::Optional(Arc::new(self.resolve(inner))),
            Type::Map(key, value) => {
                Type::Map(Arc::new(self.resolve(key)), Arc::new(self.resolve(value)))
            }
            other => other.clone(),
        }
    }
}

/// The type of values that are of either type; `None` if there is none but any.
pub(crate) fn join(a: &Type, b: &Type) -> Option<Type> {
    if a == b {
        return Some(a.clone());
    }
    if *a == Type::Dyn || *b == Type::Dyn {
        return Some(Type::Dyn);
    }
    let wider = if *a == Type::Null { b } else { a };
    match (a, b) {
        (Type::List(x), Type::List(y)) => Some(Type::List(Arc::new(join(x, y)?))),
        (Type::Optional(x), Type::Optional(y)) => Some(Type::Optional(Arc::new(join(x, y)?))),
        (Type::Map(xk, xv), Type::Map(yk, yv)) => {
            Some(Type::Map(Arc::new(join(xk, yk)?), Arc::new(join(xv, yv)?)))
        }
        _ => Bindings::default().accept(a, b).then(|| wider.clone()),
    }
}
