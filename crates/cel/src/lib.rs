//! The Common Expression Language, with the libraries that upstream adds to it.
//!
//! ```text
//! text -> lexer -> parser (macros) -> check (types) -> Program -> eval (values, at a cost)
//! ```
//!
//! Expressions come from clients: parsing is bounded in length and depth, and a run pays for every step from
//! a budget, so that none can hold the server.

mod ast;
mod check;
mod cost;
pub mod device;
mod error;
mod eval;
mod functions;
mod lexer;
mod parser;
pub mod pattern;
mod semver;
mod signatures;
mod types;
mod value;

use ast::{Expr, Kind};
pub use cost::Bounds;
use error::Fault;
pub use error::{CompileError, EvalError};
pub use functions::{parse_duration, parse_timestamp};
pub use parser::RESERVED;
pub use types::{Fields, Type};
pub use value::{List, Listing, Map, Value};

/// An expression ready to run.
#[derive(Debug, Clone)]
pub struct Program {
    expr: Expr,
    /// The type of its value.
    pub result: Type,
}

impl Program {
    /// Compiles an expression over variables of these types.
    ///
    /// # Errors
    /// Everything that is wrong with it, as upstream's compiler shows it.
    pub fn compile(text: &str, variables: &[(&str, Type)]) -> Result<Self, CompileError> {
        let fault = |fault: Fault| CompileError::of(&[fault], text);
        let mut expr = parser::parse(text).map_err(fault)?;
        let faults = check::check(&mut expr, variables);
        if faults.is_empty() {
            let result = expr.result.clone();
            Ok(Self { expr, result })
        } else {
            Err(CompileError::of(&faults, text))
        }
    }

    /// Whether the expression mentions a variable.
    pub fn uses(&self, name: &str) -> bool {
        uses(&self.expr, name)
    }

    /// The most that a run can cost over variables within these bounds, as upstream estimates it before it lets
    /// anybody write such an expression. With the name of a variable, nothing is known of others.
    pub fn max_cost(&self, variable: Option<&str>, bounds: &Bounds) -> u64 {
        cost::most(&self.expr, variable, bounds)
    }

    /// The value of the expression with these variables. What it costs is taken from the budget.
    ///
    /// # Errors
    /// When it fails, or costs more than there is.
    pub fn run(&self, variables: &[(&str, Value)], budget: &mut u64) -> Result<Value, EvalError> {
        eval::Machine::new(variables, budget).eval(&self.expr)
    }
}

fn uses(expr: &Expr, name: &str) -> bool {
    let any = |all: &[&Expr]| all.iter().any(|e| uses(e, name));
    match &expr.kind {
        Kind::Literal(_) => false,
        Kind::Name(n) => n == name,
        Kind::Select { operand, .. } | Kind::Has { operand, .. } => uses(operand, name),
        Kind::Index { operand, index, .. } => any(&[operand, index]),
        Kind::Call { target, args, .. } => {
            target.as_ref().is_some_and(|t| uses(t, name)) || args.iter().any(|a| uses(a, name))
        }
        Kind::And(a, b) | Kind::Or(a, b) => any(&[a, b]),
        Kind::If(a, b, c) => any(&[a, b, c]),
        Kind::List(items) => items.iter().any(|(_, e)| uses(e, name)),
        Kind::Map(entries) => entries.iter().any(|(_, k, v)| any(&[k, v])),
        Kind::Loop(parts) => {
            let bound = parts.first == name || parts.second.as_deref() == Some(name);
            uses(&parts.range, name)
                || (!bound
                    && (uses(&parts.body, name)
                        || parts.filter.as_ref().is_some_and(|f| uses(f, name))))
        }
    }
}

#[cfg(test)]
mod tests;
