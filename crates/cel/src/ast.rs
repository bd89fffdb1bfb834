//! What an expression is once it is parsed.

use crate::types::Type;
use crate::value::Value;

/// An expression and where it begins, in characters.
#[derive(Debug, Clone)]
pub struct Expr {
    /// Offset of the character that errors point at.
    pub at: usize,
    /// What it is.
    pub kind: Kind,
    /// The type of its value: anything until it is checked.
    pub result: Type,
}

impl Expr {
    /// An expression that is not checked yet.
    pub fn new(at: usize, kind: Kind) -> Self {
        Self {
            at,
            kind,
            result: Type::Dyn,
        }
    }
}

/// Kinds of expressions.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A literal.
    Literal(Value),
    /// A variable, or the name of a type.
    Name(String),
    /// `operand.field`, or `operand.?field`.
    Select {
        /// The object.
        operand: Box<Expr>,
        /// The field.
        field: String,
        /// Whether the result is optional.
        optional: bool,
    },
    /// `has(operand.field)`.
    Has {
        /// The object.
        operand: Box<Expr>,
        /// The field.
        field: String,
    },
    /// `operand[index]`, or `operand[?index]`.
    Index {
        /// List or map.
        operand: Box<Expr>,
        /// Position or key.
        index: Box<Expr>,
        /// Whether the result is optional.
        optional: bool,
    },
    /// A function, or a method of the target; operators are functions with names such as `_+_`.
    Call {
        /// What the method is called on.
        target: Option<Box<Expr>>,
        /// Name, with its namespace.
        name: String,
        /// Arguments.
        args: Vec<Expr>,
    },
    /// `a && b`.
    And(Box<Expr>, Box<Expr>),
    /// `a || b`.
    Or(Box<Expr>, Box<Expr>),
    /// `a ? b : c`.
    If(Box<Expr>, Box<Expr>, Box<Expr>),
    /// Items of a list; the flag marks those that are optional.
    List(Vec<(bool, Expr)>),
    /// Entries of a map; the flag marks those that are optional.
    Map(Vec<(bool, Expr, Expr)>),
    /// A macro that runs over a list or map, or binds a variable.
    Loop(Box<Loop>),
}

/// What a macro makes of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// Whether the body holds for all.
    All,
    /// Whether it holds for any.
    Exists,
    /// Whether it holds for exactly one.
    ExistsOne,
    /// The items for which it holds.
    Filter,
    /// A list of what the body makes.
    Map,
    /// A map of what the body makes of values.
    MapValues,
    /// A map of the entries that the body makes.
    MapEntries,
    /// The body, with the range as a variable.
    Bind,
    /// The body made optional, with the value of an optional range; nothing if it has none.
    OptMap,
    /// The same for a body that is optional itself.
    OptFlatMap,
}

/// A macro with its parts.
#[derive(Debug, Clone)]
pub struct Loop {
    /// What comes out.
    pub make: Make,
    /// What is run over.
    pub range: Expr,
    /// The variable for the item, or the key of a map.
    pub first: String,
    /// A second variable: then the first one is the index or key, and this one the item or value.
    pub second: Option<String>,
    /// Items for which this does not hold are left out.
    pub filter: Option<Expr>,
    /// What is computed for each.
    pub body: Expr,
}
