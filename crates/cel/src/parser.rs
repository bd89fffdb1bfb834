//! Tokens to an expression. Macros are recognized here, so that nothing behind knows their names.

use crate::ast::{Expr, Kind, Loop, Make};
use crate::error::Fault;
use crate::lexer::{Spot, Token, tokens};
use crate::value::Value;

/// Deepest nesting of an expression: a recursive walk must fit an ordinary stack.
const MAX_DEPTH: usize = 100;
/// Longest expression, in characters.
const MAX_LENGTH: usize = 100_000;

/// Words that cannot be names, besides those that mean something.
pub const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];
/// Names that functions are kept under.
const NAMESPACES: [&str; 9] = [
    "base64",
    "format",
    "jsonpatch",
    "lists",
    "math",
    "optional",
    "sets",
    "strings",
    "cel",
];

/// Parses an expression.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse(text: &str) -> Result<Expr, Fault> {
    if text.chars().count() > MAX_LENGTH {
        return Err(Fault::new(0, "expression code point size exceeds limit"));
    }
    let mut parser = Parser {
        spots: tokens(text)?,
        next: 0,
        depth: 0,
    };
    let expr = parser.expr()?;
    match parser.peek() {
        Token::End => Ok(expr),
        _ => Err(parser.unexpected()),
    }
}

struct Parser {
    spots: Vec<Spot>,
    next: usize,
    depth: usize,
}

fn call(at: usize, name: &str, args: Vec<Expr>) -> Expr {
    Expr::new(
        at,
        Kind::Call {
            target: None,
            name: name.to_owned(),
            args,
        },
    )
}

impl Parser {
    fn peek(&self) -> &Token {
        self.spots.get(self.next).map_or(&Token::End, |s| &s.token)
    }

    fn at(&self) -> usize {
        self.spots.get(self.next).map_or(0, |s| s.at)
    }

    fn advance(&mut self) -> Token {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Token::Sign(s) if *s == sign);
        if found {
            self.next += 1;
        }
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), Fault> {
        if self.sign(sign) {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    fn unexpected(&self) -> Fault {
        let what = match self.peek() {
            Token::End => "<EOF>".to_owned(),
            Token::Word(w) | Token::Quoted(w) => w.clone(),
            Token::Sign(s) => (*s).to_owned(),
            Token::Int(n) | Token::Uint(n) => n.to_string(),
            Token::Double(n) => n.to_string(),
            Token::Text(t) => format!("{t:?}"),
            Token::Bytes(_) => "bytes".to_owned(),
        };
        Fault::new(
            self.at(),
            format!("Syntax error: mismatched input '{what}'"),
        )
    }

    fn expr(&mut self) -> Result<Expr, Fault> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Fault::new(self.at(), "expression recursion limit exceeded"));
        }
        let test = self.or()?;
        let at = self.at();
        let expr = if self.sign("?") {
            let yes = self.or()?;
            self.expect(":")?;
            let no = self.expr()?;
            let kind = Kind::If(Box::new(test), Box::new(yes), Box::new(no));
            Expr::new(at, kind)
        } else {
            test
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn or(&mut self) -> Result<Expr, Fault> {
        let mut left = self.and()?;
        loop {
            let at = self.at();
            if !self.sign("||") {
                return Ok(left);
            }
            let kind = Kind::Or(Box::new(left), Box::new(self.and()?));
            left = Expr::new(at, kind);
        }
    }

    fn and(&mut self) -> Result<Expr, Fault> {
        let mut left = self.relation()?;
        loop {
            let at = self.at();
            if !self.sign("&&") {
                return Ok(left);
            }
            let kind = Kind::And(Box::new(left), Box::new(self.relation()?));
            left = Expr::new(at, kind);
        }
    }

    fn relation(&mut self) -> Result<Expr, Fault> {
        let mut left = self.sum()?;
        loop {
            let at = self.at();
            let name = match self.peek() {
                Token::Sign(s @ ("==" | "!=" | "<" | "<=" | ">" | ">=")) => format!("_{s}_"),
                Token::Word(w) if w == "in" => "@in".to_owned(),
                _ => return Ok(left),
            };
            self.next += 1;
            let right = self.sum()?;
            left = call(at, &name, vec![left, right]);
        }
    }

    fn sum(&mut self) -> Result<Expr, Fault> {
        self.operators(&["+", "-"], Self::product)
    }

    fn product(&mut self) -> Result<Expr, Fault> {
        self.operators(&["*", "/", "%"], Self::unary)
    }

    fn operators(
        &mut self,
        signs: &[&str],
        part: fn(&mut Self) -> Result<Expr, Fault>,
    ) -> Result<Expr, Fault> {
        let mut left = part(self)?;
        loop {
            let at = self.at();
            let name = match self.peek() {
                Token::Sign(s) if signs.contains(s) => format!("_{s}_"),
                _ => return Ok(left),
            };
            self.next += 1;
            let right = part(self)?;
            left = call(at, &name, vec![left, right]);
        }
    }

    fn unary(&mut self) -> Result<Expr, Fault> {
        let at = self.at();
        if self.sign("!") {
            return Ok(call(at, "!_", vec![self.nested_unary()?]));
        }
        if !self.sign("-") {
            return self.member();
        }
        // The smallest integer has no positive counterpart.
        let literal = match self.peek() {
            Token::Int(n) => 0i64.checked_sub_unsigned(*n).map(Value::Int),
            Token::Double(n) => Some(Value::Double(-n)),
            _ => None,
        };
        if let Some(value) = literal {
            self.next += 1;
            let kind = Kind::Literal(value);
            return self.members(Expr::new(at, kind));
        }
        Ok(call(at, "-_", vec![self.nested_unary()?]))
    }

    fn nested_unary(&mut self) -> Result<Expr, Fault> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Fault::new(self.at(), "expression recursion limit exceeded"));
        }
        let inner = self.unary();
        self.depth -= 1;
        inner
    }

    fn member(&mut self) -> Result<Expr, Fault> {
        let primary = self.primary()?;
        self.members(primary)
    }

    fn members(&mut self, mut operand: Expr) -> Result<Expr, Fault> {
        let mut links = 0;
        loop {
            links += 1;
            if links > MAX_DEPTH {
                return Err(Fault::new(self.at(), "expression recursion limit exceeded"));
            }
            let at = self.at();
            let optional = self.sign(".?");
            if optional || self.sign(".") {
                operand = self.dotted(operand, at, optional)?;
            } else if matches!(self.peek(), Token::Sign("[" | "[?")) {
                let optional = self.advance() == Token::Sign("[?");
                let index = Box::new(self.expr()?);
                self.expect("]")?;
                let kind = Kind::Index {
                    operand: Box::new(operand),
                    index,
                    optional,
                };
                operand = Expr::new(at, kind);
            } else {
                return Ok(operand);
            }
        }
    }

    fn dotted(&mut self, operand: Expr, at: usize, optional: bool) -> Result<Expr, Fault> {
        let field = match self.peek().clone() {
            Token::Word(w) if !is_keyword(&w) => w,
            Token::Quoted(name) => name,
            _ => return Err(self.unexpected()),
        };
        self.next += 1;
        let open = self.at();
        if !optional && self.sign("(") {
            let args = self.list(")")?;
            return method(operand, field, args, open);
        }
        let kind = Kind::Select {
            operand: Box::new(operand),
            field,
            optional,
        };
        Ok(Expr::new(at, kind))
    }

    /// Expressions with commas between them, up to and with the closing sign.
    fn list(&mut self, close: &str) -> Result<Vec<Expr>, Fault> {
        let mut out = Vec::new();
        while !self.sign(close) {
            out.push(self.expr()?);
            if !self.sign(",") {
                self.expect(close)?;
                break;
            }
        }
        Ok(out)
    }

    fn primary(&mut self) -> Result<Expr, Fault> {
        let at = self.at();
        let literal = |value| Ok(Expr::new(at, Kind::Literal(value)));
        match self.advance() {
            Token::Int(n) => match i64::try_from(n) {
                Ok(n) => literal(Value::Int(n)),
                Err(_) => Err(Fault::new(at, "invalid int literal")),
            },
            Token::Uint(n) => literal(Value::Uint(n)),
            Token::Double(n) => literal(Value::Double(n)),
            Token::Text(text) => literal(Value::from(text)),
            Token::Bytes(bytes) => literal(Value::Bytes(bytes.into())),
            Token::Word(word) => match word.as_str() {
                "true" => literal(Value::Bool(true)),
                "false" => literal(Value::Bool(false)),
                "null" => literal(Value::Null),
                _ => self.name(word, at),
            },
            Token::Sign(".") => match self.advance() {
                Token::Word(word) => self.name(word, at),
                _ => {
                    self.next -= 1;
                    Err(self.unexpected())
                }
            },
            Token::Sign("(") => {
                let inner = self.expr()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("[") => self.items(at),
            Token::Sign("[?") => {
                self.next -= 1;
                self.items_from_optional(at)
            }
            Token::Sign("{") => self.entries(at),
            _ => {
                self.next -= 1;
                Err(self.unexpected())
            }
        }
    }

    fn name(&mut self, word: String, at: usize) -> Result<Expr, Fault> {
        if RESERVED.contains(&word.as_str()) || word == "in" {
            let why = format!("Syntax error: reserved identifier: {word}");
            return Err(Fault::new(at, why));
        }
        let open = self.at();
        if self.sign("(") {
            let args = self.list(")")?;
            return function(word, args, open, at);
        }
        Ok(Expr::new(at, Kind::Name(word)))
    }

    fn items_from_optional(&mut self, at: usize) -> Result<Expr, Fault> {
        self.next += 1;
        let first = self.expr()?;
        let mut out = vec![(true, first)];
        if self.sign(",") {
            self.more_items(&mut out)?;
        } else {
            self.expect("]")?;
        }
        Ok(Expr::new(at, Kind::List(out)))
    }

    fn items(&mut self, at: usize) -> Result<Expr, Fault> {
        let mut out = Vec::new();
        self.more_items(&mut out)?;
        Ok(Expr::new(at, Kind::List(out)))
    }

    fn more_items(&mut self, out: &mut Vec<(bool, Expr)>) -> Result<(), Fault> {
        while !self.sign("]") {
            let optional = self.sign("?");
            out.push((optional, self.expr()?));
            if !self.sign(",") {
                return self.expect("]");
            }
        }
        Ok(())
    }

    fn entries(&mut self, at: usize) -> Result<Expr, Fault> {
        let mut out = Vec::new();
        while !self.sign("}") {
            let optional = self.sign("?");
            let key = self.expr()?;
            self.expect(":")?;
            out.push((optional, key, self.expr()?));
            if !self.sign(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(Expr::new(at, Kind::Map(out)))
    }
}

fn is_keyword(word: &str) -> bool {
    matches!(word, "true" | "false" | "null" | "in")
}

fn function(name: String, mut args: Vec<Expr>, open: usize, at: usize) -> Result<Expr, Fault> {
    if name != "has" {
        return Ok(call(open, &name, args));
    }
    match (args.pop(), args.is_empty()) {
        (
            Some(Expr {
                kind: Kind::Select { operand, field, .. },
                ..
            }),
            true,
        ) => Ok(Expr::new(open, Kind::Has { operand, field })),
        _ => Err(Fault::new(at, "invalid argument to has() macro")),
    }
}

fn method(operand: Expr, name: String, args: Vec<Expr>, open: usize) -> Result<Expr, Fault> {
    if let Kind::Name(namespace) = &operand.kind {
        if namespace == "cel" && name == "bind" {
            return bind(args, open);
        }
        let of_ip = namespace == "ip" && name == "isCanonical";
        if NAMESPACES.contains(&namespace.as_str()) || of_ip {
            return Ok(call(open, &format!("{namespace}.{name}"), args));
        }
    }
    if let Some(make) = macro_of(&name, args.len()) {
        return expand(make, operand, args, open);
    }
    Ok(Expr::new(
        open,
        Kind::Call {
            target: Some(Box::new(operand)),
            name,
            args,
        },
    ))
}

/// The macro of that name and number of arguments: what it makes, and whether it has two variables.
fn macro_of(name: &str, args: usize) -> Option<(Make, bool)> {
    Some(match (name, args) {
        ("all", 2) => (Make::All, false),
        ("exists", 2) => (Make::Exists, false),
        ("exists_one" | "existsOne", 2) => (Make::ExistsOne, false),
        ("filter", 2) => (Make::Filter, false),
        ("map", 2 | 3) => (Make::Map, false),
        ("all", 3) => (Make::All, true),
        ("exists", 3) => (Make::Exists, true),
        ("exists_one" | "existsOne", 3) => (Make::ExistsOne, true),
        ("transformList", 3 | 4) => (Make::Map, true),
        ("transformMap", 3 | 4) => (Make::MapValues, true),
        ("transformMapEntry", 3 | 4) => (Make::MapEntries, true),
        ("optMap", 2) => (Make::OptMap, false),
        ("optFlatMap", 2) => (Make::OptFlatMap, false),
        _ => return None,
    })
}

fn variable(expr: Expr) -> Result<String, Fault> {
    match expr.kind {
        Kind::Name(name) => Ok(name),
        _ => Err(Fault::new(expr.at, "argument must be a simple name")),
    }
}

fn expand(
    (make, two): (Make, bool),
    range: Expr,
    args: Vec<Expr>,
    open: usize,
) -> Result<Expr, Fault> {
    let missing = || Fault::new(open, "missing argument");
    let mut args = args.into_iter();
    let first = variable(args.next().ok_or_else(missing)?)?;
    let second = if two {
        Some(variable(args.next().ok_or_else(missing)?)?)
    } else {
        None
    };
    let body = args.next().ok_or_else(missing)?;
    let (filter, body) = match args.next() {
        Some(last) => (Some(body), last),
        None => (None, body),
    };
    let parts = Loop {
        make,
        range,
        first,
        second,
        filter,
        body,
    };
    Ok(Expr::new(open, Kind::Loop(Box::new(parts))))
}

fn bind(args: Vec<Expr>, open: usize) -> Result<Expr, Fault> {
    let [name, value, body] = <[Expr; 3]>::try_from(args)
        .map_err(|_| Fault::new(open, "cel.bind() takes a name, a value and an expression"))?;
    let parts = Loop {
        make: Make::Bind,
        range: value,
        first: variable(name)?,
        second: None,
        filter: None,
        body,
    };
    Ok(Expr::new(open, Kind::Loop(Box::new(parts))))
}
