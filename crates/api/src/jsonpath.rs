//! The paths that clients and definitions of custom resources write: `.spec.ports[?(@.name=="x")].port`.
//!
//! This is the dialect of kubectl without its template words (`range`, `end`): fields, quoted fields, indexes,
//! slices, unions, wildcards, filters and recursive descent. Missing keys are no error; they find nothing.

use serde_json::Value;

/// Longest path in bytes, and deepest nesting of filters: paths come from clients.
const MAX_LENGTH: usize = 4096;
/// Most values that one step of a path leads to: descents after descents multiply what they find.
const MAX_FOUND: usize = 10_000;

/// A parsed path.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>, i64),
    Wildcard,
    Descend,
    Union(Vec<Step>),
    Filter(Box<Filter>),
}

#[derive(Debug, Clone, PartialEq)]
struct Filter {
    left: Operand,
    test: Option<(Test, Operand)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Test {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    /// A path from the item, or from the root.
    Path(JsonPath),
    Literal(Value),
}

/// Why a text is no path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PathError(String);

impl JsonPath {
    /// Parses a path, with or without a leading `$`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.len() > MAX_LENGTH {
            return Err(PathError("path is too long".to_owned()));
        }
        let mut parser = Parser { rest: text };
        parser.skip("$");
        parser.skip("@");
        let path = parser.path()?;
        if parser.rest.is_empty() {
            Ok(path)
        } else {
            Err(PathError(format!("unexpected {:?}", parser.rest)))
        }
    }

    /// Every value the path leads to; of very many, the first.
    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        self.0.iter().fold(vec![root], |at, step| {
            let mut next = Vec::new();
            for value in at {
                step.walk(value, &mut next);
                if next.len() >= MAX_FOUND {
                    next.truncate(MAX_FOUND);
                    break;
                }
            }
            next
        })
    }
}

/// A value as text: strings as they are, all else as JSON.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

impl Step {
    fn walk<'a>(&self, value: &'a Value, out: &mut Vec<&'a Value>) {
        match self {
            Self::Field(name) => out.extend(value.get(name)),
            Self::Index(index) => out.extend(
                value
                    .as_array()
                    .and_then(|items| items.get(position(*index, items.len())?)),
            ),
            Self::Slice(from, to, step) => slice(value, (*from, *to, *step), out),
            Self::Wildcard => out.extend(children(value)),
            Self::Descend => descend(value, out),
            Self::Union(steps) => steps.iter().for_each(|s| s.walk(value, out)),
            Self::Filter(filter) => {
                out.extend(children(value).filter(|item| filter.matches(item)));
            }
        }
    }
}

fn position(index: i64, length: usize) -> Option<usize> {
    if index < 0 {
        length.checked_sub(usize::try_from(index.unsigned_abs()).ok()?)
    } else {
        usize::try_from(index).ok()
    }
}

fn slice<'a>(value: &'a Value, bounds: (Option<i64>, Option<i64>, i64), out: &mut Vec<&'a Value>) {
    let Some(items) = value.as_array() else {
        return;
    };
    let (from, to, step) = bounds;
    let Some(step) = usize::try_from(step).ok().filter(|s| *s > 0) else {
        return;
    };
    let at = |index: Option<i64>, otherwise: usize| match index {
        None => otherwise,
        Some(i) => position(i, items.len()).unwrap_or(0).min(items.len()),
    };
    let (from, to) = (at(from, 0), at(to, items.len()));
    if from < to {
        out.extend(items[from..to].iter().step_by(step));
    }
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => Box::new(std::iter::empty()),
    }
}

fn descend<'a>(value: &'a Value, out: &mut Vec<&'a Value>) {
    out.push(value);
    children(value).for_each(|v| descend(v, out));
}

impl Filter {
    fn matches(&self, item: &Value) -> bool {
        let left = self.left.values(item);
        let Some((test, right)) = &self.test else {
            return !left.is_empty();
        };
        match (left.as_slice(), right.values(item).as_slice()) {
            ([left], [right]) => test.holds(left, right),
            _ => false,
        }
    }
}

impl Operand {
    fn values<'a>(&'a self, item: &'a Value) -> Vec<&'a Value> {
        match self {
            Self::Path(path) => path.find(item),
            Self::Literal(value) => vec![value],
        }
    }
}

impl Test {
    fn holds(self, left: &Value, right: &Value) -> bool {
        let order = match (left, right) {
            (Value::Number(a), Value::Number(b)) => a
                .as_f64()
                .zip(b.as_f64())
                .and_then(|(a, b)| a.partial_cmp(&b)),
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            _ => None,
        };
        let Some(order) = order else {
            return self == Self::NotEqual;
        };
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip(&mut self, prefix: &str) -> bool {
        match self.rest.strip_prefix(prefix) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn path(&mut self) -> Result<JsonPath, PathError> {
        let mut steps = Vec::new();
        // A path may begin with a bare field, as in filters: `?(name == 1)` is none, `a.b` is one.
        if self
            .rest
            .starts_with(|c: char| c.is_alphanumeric() || c == '_')
        {
            steps.push(Step::Field(self.field()));
        }
        loop {
            if self.skip("..") {
                steps.push(Step::Descend);
                if !self.rest.starts_with('[') {
                    self.named(&mut steps);
                }
            } else if self.skip(".") {
                if !self.rest.starts_with('[') {
                    self.named(&mut steps);
                }
            } else if self.skip("[") {
                steps.push(self.bracket()?);
            } else {
                return Ok(JsonPath(steps));
            }
        }
    }

    fn named(&mut self, steps: &mut Vec<Step>) {
        if self.skip("*") {
            steps.push(Step::Wildcard);
            return;
        }
        let field = self.field();
        if !field.is_empty() {
            steps.push(Step::Field(field));
        }
    }

    /// A field's name; a backslash takes the next character as it is.
    fn field(&mut self) -> String {
        let mut out = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => out.extend(chars.next().map(|(_, c)| c)),
                '.' | ',' | '[' | ']' | '(' | ')' | '$' | '@' | '{' | '}' | '=' | '!' | '<'
                | '>' | '*' => {
                    self.rest = &self.rest[at..];
                    return out;
                }
                c if c.is_whitespace() => {
                    self.rest = &self.rest[at..];
                    return out;
                }
                c => out.push(c),
            }
        }
        self.rest = "";
        out
    }

    /// What is between brackets, the opening one being read.
    fn bracket(&mut self) -> Result<Step, PathError> {
        self.spaces();
        if self.skip("?(") {
            let filter = self.filter()?;
            self.spaces();
            if !self.skip(")") {
                return Err(PathError("unterminated filter".to_owned()));
            }
            return self.closed(Step::Filter(Box::new(filter)));
        }
        let mut steps = vec![self.selector()?];
        self.spaces();
        while self.skip(",") {
            self.spaces();
            steps.push(self.selector()?);
            self.spaces();
        }
        match steps.pop() {
            Some(one) if steps.is_empty() => self.closed(one),
            Some(last) => {
                steps.push(last);
                self.closed(Step::Union(steps))
            }
            None => Err(PathError("empty brackets".to_owned())),
        }
    }

    fn closed(&mut self, step: Step) -> Result<Step, PathError> {
        self.spaces();
        if self.skip("]") {
            Ok(step)
        } else {
            Err(PathError("unterminated array".to_owned()))
        }
    }

    fn selector(&mut self) -> Result<Step, PathError> {
        if self.skip("*") {
            return Ok(Step::Wildcard);
        }
        if self.rest.starts_with(['\'', '"']) {
            return self.quoted().map(Step::Field);
        }
        let end = self
            .rest
            .find([',', ']'])
            .ok_or_else(|| PathError("unterminated array".to_owned()))?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        let number = |part: &str| match part.trim() {
            "" => Ok(None),
            digits => digits
                .parse::<i64>()
                .map(Some)
                .map_err(|_| PathError(format!("invalid array index {text}"))),
        };
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            [one] => number(one)?
                .map(Step::Index)
                .ok_or_else(|| PathError("invalid array index".to_owned())),
            [from, to] => Ok(Step::Slice(number(from)?, number(to)?, 1)),
            [from, to, step] => Ok(Step::Slice(
                number(from)?,
                number(to)?,
                number(step)?.unwrap_or(1),
            )),
            _ => Err(PathError(format!("invalid array index {text}"))),
        }
    }

    fn quoted(&mut self) -> Result<String, PathError> {
        let unterminated = || PathError("unterminated quoted string".to_owned());
        let mut chars = self.rest.char_indices();
        let (_, quote) = chars.next().ok_or_else(unterminated)?;
        let mut out = String::new();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => out.extend(chars.next().map(|(_, c)| c)),
                c if c == quote => {
                    self.rest = &self.rest[at + c.len_utf8()..];
                    return Ok(out);
                }
                c => out.push(c),
            }
        }
        Err(unterminated())
    }

    fn filter(&mut self) -> Result<Filter, PathError> {
        self.spaces();
        let left = self.operand()?;
        self.spaces();
        let tests = [
            ("==", Test::Equal),
            ("!=", Test::NotEqual),
            ("<=", Test::LessOrEqual),
            (">=", Test::GreaterOrEqual),
            ("<", Test::Less),
            (">", Test::Greater),
        ];
        let Some((_, test)) = tests.into_iter().find(|(sign, _)| self.skip(sign)) else {
            return Ok(Filter { left, test: None });
        };
        self.spaces();
        let right = self.operand()?;
        Ok(Filter {
            left,
            test: Some((test, right)),
        })
    }

    fn operand(&mut self) -> Result<Operand, PathError> {
        if self.rest.starts_with(['\'', '"']) {
            return Ok(Operand::Literal(self.quoted()?.into()));
        }
        if self.rest.starts_with(['@', '$', '.']) {
            self.rest = self.rest.trim_start_matches(['@', '$']);
            return self.path().map(Operand::Path);
        }
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || "=!<>)".contains(c))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        serde_json::from_str(word)
            .map(Operand::Literal)
            .map_err(|_| PathError(format!("unrecognized {word:?} in filter")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn descents_do_not_multiply_without_end() {
        let object = (0..20).fold(json!(1), |inner, _| json!({"a": [inner, 2]}));
        for path in ["..".repeat(1000) + "*", "..*".repeat(300)] {
            if let Ok(path) = JsonPath::parse(&path) {
                assert!(path.find(&object).len() <= MAX_FOUND);
            }
        }
    }

    #[test]
    fn paths_find_values() {
        let object = json!({
            "metadata": {"labels": {"a.b/c": "x"}, "creationTimestamp": "t"},
            "status": {"conditions": [{"type": "Ready", "status": "True", "n": 1}, {"type": "Other", "status": "False", "n": 2}]},
        });
        for (path, want) in [
            (".metadata.creationTimestamp", json!(["t"])),
            ("$.metadata.creationTimestamp", json!(["t"])),
            ("metadata.creationTimestamp", json!(["t"])),
            (".metadata.labels.a\\.b/c", json!(["x"])),
            (".metadata.labels['a.b/c']", json!(["x"])),
            (".status.conditions[0].type", json!(["Ready"])),
            (".status.conditions[-1].type", json!(["Other"])),
            (".status.conditions[*].type", json!(["Ready", "Other"])),
            (".status.conditions[0:1].type", json!(["Ready"])),
            (".status.conditions[0,1].type", json!(["Ready", "Other"])),
            (
                ".status.conditions[?(@.type==\"Ready\")].status",
                json!(["True"]),
            ),
            (
                ".status.conditions[?(@.type=='Other')].status",
                json!(["False"]),
            ),
            (".status.conditions[?(@.n > 1)].type", json!(["Other"])),
            (".status.conditions[?(@.missing)].type", json!([])),
            ("..type", json!(["Ready", "Other"])),
            (".nothing.here", json!([])),
        ] {
            let found = JsonPath::parse(path).unwrap();
            let found: Vec<Value> = found.find(&object).into_iter().cloned().collect();
            assert_eq!(Value::Array(found), want, "{path}");
        }
        for path in [".a[", ".a['x", ".a[?(@.b==1]", ".a[x]", "{.a}"] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[.$@*\\[\\]()?=!<>'\"a0-9:,\\\\ é-]{0,40}") {
            if let Ok(path) = JsonPath::parse(&text) {
                path.find(&json!({"a": [1, {"a": 2}]}));
            }
        }
    }
}
