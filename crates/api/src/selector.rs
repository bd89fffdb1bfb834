//! Label and field selectors: parsed once, matched many times.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use crate::names;

/// Why a selector makes no sense, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// One test of a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Requirement {
    /// The label has one of the values.
    In(String, BTreeSet<String>),
    /// The label is absent or has none of the values.
    NotIn(String, BTreeSet<String>),
    /// The label is present.
    Exists(String),
    /// The label is absent.
    NotExists(String),
    /// The label is an integer above the value.
    Greater(String, i64),
    /// The label is an integer below the value.
    Less(String, i64),
}

impl Requirement {
    /// The label tested.
    pub fn key(&self) -> &str {
        match self {
            Self::In(key, _)
            | Self::NotIn(key, _)
            | Self::Exists(key)
            | Self::NotExists(key)
            | Self::Greater(key, _)
            | Self::Less(key, _) => key,
        }
    }

    fn matches<'a>(&self, get: &impl Fn(&str) -> Option<&'a str>) -> bool {
        let number = |key: &str| get(key).and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::In(key, values) => get(key).is_some_and(|v| values.contains(v)),
            Self::NotIn(key, values) => !get(key).is_some_and(|v| values.contains(v)),
            Self::Exists(key) => get(key).is_some(),
            Self::NotExists(key) => get(key).is_none(),
            Self::Greater(key, bound) => number(key).is_some_and(|n| n > *bound),
            Self::Less(key, bound) => number(key).is_some_and(|n| n < *bound),
        }
    }
}

/// A conjunction of label requirements. The default matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Matches no object: what an absent selector means to most controllers.
    pub fn nothing() -> Self {
        Self {
            requirements: Vec::new(),
            nothing: true,
        }
    }

    /// Whether every object matches.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// The requirements, all of which must hold.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Parses the query form: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser {
            tokens: lex(text),
            at: 0,
        };
        Ok(Self {
            requirements: parser.parse()?,
            nothing: false,
        })
    }

    /// From a map of labels that must all be equal.
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let equal =
            |(k, v): (&str, &str)| Requirement::In(k.to_owned(), BTreeSet::from([v.to_owned()]));
        Self {
            requirements: labels.into_iter().map(equal).collect(),
            nothing: false,
        }
    }

    /// From a `metav1.LabelSelector` (null or absent: nothing; empty: everything).
    pub fn from_value(selector: &Value) -> Result<Self, SelectorError> {
        let Some(object) = selector.as_object() else {
            return Ok(Self::nothing());
        };
        let mut requirements = Vec::new();
        if let Some(labels) = object.get("matchLabels").and_then(Value::as_object) {
            let pairs = labels
                .iter()
                .filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)));
            requirements.extend(Self::from_map(pairs).requirements);
        }
        for expression in crate::meta::list_at(selector, &["matchExpressions"]) {
            let key = crate::meta::str_at(expression, &["key"]).to_owned();
            let values = crate::meta::list_at(expression, &["values"])
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect();
            requirements.push(match crate::meta::str_at(expression, &["operator"]) {
                "In" => Requirement::In(key, values),
                "NotIn" => Requirement::NotIn(key, values),
                "Exists" => Requirement::Exists(key),
                "DoesNotExist" => Requirement::NotExists(key),
                other => {
                    return Err(SelectorError(format!(
                        "{other:?} is not a valid label selector operator"
                    )));
                }
            });
        }
        requirements.sort_by(|a, b| a.key().cmp(b.key()));
        Ok(Self {
            requirements,
            nothing: false,
        })
    }

    /// Whether labels given by a lookup match.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(&get))
    }

    /// Whether a JSON map of labels (or null) matches.
    pub fn matches(&self, labels: &Value) -> bool {
        self.matches_with(|key| labels.get(key).and_then(Value::as_str))
    }

    /// Whether an object's `metadata.labels` match.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches_with(|key| crate::meta::label(object, key))
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match requirement {
                Requirement::In(key, values) if values.len() == 1 => {
                    write!(f, "{key}={}", join(values))?
                }
                Requirement::In(key, values) => write!(f, "{key} in ({})", join(values))?,
                Requirement::NotIn(key, values) if values.len() == 1 => {
                    write!(f, "{key}!={}", join(values))?
                }
                Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", join(values))?,
                Requirement::Exists(key) => write!(f, "{key}")?,
                Requirement::NotExists(key) => write!(f, "!{key}")?,
                Requirement::Greater(key, bound) => write!(f, "{key}>{bound}")?,
                Requirement::Less(key, bound) => write!(f, "{key}<{bound}")?,
            }
        }
        Ok(())
    }
}

fn join(values: &BTreeSet<String>) -> String {
    values
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(",")
}

/// Tokens: words, and the operators `=`, `==`, `!=`, `!`, `,`, `(`, `)`, `<`, `>`.
fn lex(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_whitespace() || "=!(),<>".contains(c) {
            if !word.is_empty() {
                tokens.push(std::mem::take(&mut word));
            }
            if c.is_whitespace() {
                continue;
            }
            let mut operator = c.to_string();
            if matches!(c, '=' | '!') && chars.peek() == Some(&'=') {
                operator.push('=');
                chars.next();
            }
            tokens.push(operator);
        } else {
            word.push(c);
        }
    }
    if !word.is_empty() {
        tokens.push(word);
    }
    tokens
}

struct Parser {
    tokens: Vec<String>,
    at: usize,
}

fn is_word(token: &str) -> bool {
    !token.is_empty() && !token.contains(['=', '!', '(', ')', ',', '<', '>'])
}

impl Parser {
    fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", String::as_str)
    }

    fn next(&mut self) -> String {
        let token = self.peek().to_owned();
        self.at += 1;
        token
    }

    fn fail<T>(&self, found: &str, expected: &str) -> Result<T, SelectorError> {
        Err(SelectorError(format!(
            "unable to parse requirement: found '{found}', expected: {expected}"
        )))
    }

    fn parse(&mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut out = Vec::new();
        if self.tokens.is_empty() {
            return Ok(out);
        }
        loop {
            out.push(self.requirement()?);
            match self.next().as_str() {
                "" => return Ok(out),
                "," => {
                    let next = self.peek();
                    if !is_word(next) && next != "!" {
                        let next = next.to_owned();
                        return Err(SelectorError(format!(
                            "found '{next}', expected: identifier after ','"
                        )));
                    }
                }
                other => {
                    return Err(SelectorError(format!(
                        "found '{other}', expected: ',' or 'end of string'"
                    )));
                }
            }
        }
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        let token = self.next();
        if !is_word(&token) {
            return self.fail(&token, "!, identifier, or 'end of string'");
        }
        let errors = names::qualified_name(&token);
        if errors.is_empty() {
            Ok(token)
        } else {
            let detail = errors.join("; ");
            Err(SelectorError(format!(
                "unable to parse requirement: <nil>: Invalid value: {token:?}: {detail}"
            )))
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        if self.peek() == "!" {
            self.next();
            return Ok(Requirement::NotExists(self.key()?));
        }
        let key = self.key()?;
        if matches!(self.peek(), "" | ",") {
            return Ok(Requirement::Exists(key));
        }
        let operator = self.next();
        match operator.as_str() {
            "=" | "==" => Ok(Requirement::In(
                key.clone(),
                BTreeSet::from([self.value(&key)?]),
            )),
            "!=" => Ok(Requirement::NotIn(
                key.clone(),
                BTreeSet::from([self.value(&key)?]),
            )),
            "in" => Ok(Requirement::In(key.clone(), self.values(&key)?)),
            "notin" => Ok(Requirement::NotIn(key.clone(), self.values(&key)?)),
            ">" | "<" => {
                let value = self.value(&key)?;
                let bound = value.parse().map_err(|_| {
                    SelectorError(format!("unable to parse requirement: values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"))
                })?;
                Ok(if operator == ">" {
                    Requirement::Greater(key, bound)
                } else {
                    Requirement::Less(key, bound)
                })
            }
            other => self.fail(other, "in, notin, =, ==, !=, gt, lt"),
        }
    }

    fn value(&mut self, key: &str) -> Result<String, SelectorError> {
        if matches!(self.peek(), "" | ",") {
            return Ok(String::new());
        }
        let token = self.next();
        if !is_word(&token) {
            return self.fail(&token, "identifier");
        }
        check_value(key, token)
    }

    fn values(&mut self, key: &str) -> Result<BTreeSet<String>, SelectorError> {
        let open = self.next();
        if open != "(" {
            return self.fail(&open, "'('");
        }
        let mut out = BTreeSet::new();
        let mut pending = true;
        loop {
            let token = self.next();
            match token.as_str() {
                ")" => {
                    if pending {
                        out.insert(String::new());
                    }
                    return Ok(out);
                }
                "," => {
                    if pending {
                        out.insert(String::new());
                    }
                    pending = true;
                }
                word if is_word(word) && pending => {
                    out.insert(check_value(key, token)?);
                    pending = false;
                }
                other => return self.fail(other, "',' or ')'"),
            }
        }
    }
}

fn check_value(key: &str, value: String) -> Result<String, SelectorError> {
    let errors = names::label_value(&value);
    if errors.is_empty() {
        return Ok(value);
    }
    Err(SelectorError(format!(
        "unable to parse requirement: values[0][{key}]: Invalid value: {value:?}: {}",
        errors.join("; ")
    )))
}

/// One test of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRequirement {
    /// The field label, such as `status.phase`.
    pub field: String,
    /// The value compared with; absent fields count as empty.
    pub value: String,
    /// True for `=` and `==`, false for `!=`.
    pub equal: bool,
}

/// A conjunction of field requirements. The default matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Parses `a=b,c!=d`; a backslash escapes `\`, `,` and `=`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for part in split_terms(text) {
            if part.is_empty() {
                continue;
            }
            requirements.push(field_requirement(&part).ok_or_else(|| {
                SelectorError(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                ))
            })?);
        }
        Ok(Self { requirements })
    }

    /// The requirements, all of which must hold.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// Whether every object matches.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value that the field must equal, if the selector says so: lets `metadata.name=x` be a lookup.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|r| r.equal && r.field == field)
            .map(|r| r.value.as_str())
    }

    /// Whether fields given by a lookup match; the lookup answers empty for what is absent.
    pub fn matches_with<S: AsRef<str>>(&self, get: impl Fn(&str) -> S) -> bool {
        self.requirements
            .iter()
            .all(|r| (get(&r.field).as_ref() == r.value) == r.equal)
    }
}

fn split_terms(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        let last = parts.len() - 1;
        if c == ',' && !escaped {
            parts.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        parts[last].push(c);
    }
    parts
}

fn field_requirement(part: &str) -> Option<FieldRequirement> {
    let at = part
        .char_indices()
        .find(|&(i, c)| c == '=' || part[i..].starts_with("!="))
        .map(|(i, _)| i)?;
    let (field, rest) = part.split_at(at);
    let (equal, raw) = if let Some(v) = rest.strip_prefix("!=") {
        (false, v)
    } else {
        (
            true,
            rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?,
        )
    };
    Some(FieldRequirement {
        field: field.trim().to_owned(),
        value: unescape(raw)?,
        equal,
    })
}

fn unescape(raw: &str) -> Option<String> {
    let mut out = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(chars.next().filter(|n| matches!(n, '\\' | ',' | '='))?),
            '=' => return None,
            other => out.push(other),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn label_selectors() {
        let labels = json!({"app": "web", "tier": "front", "n": "5", "empty": ""});
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app!=web", false),
            ("app = web , tier=front", true),
            ("app in (web, db)", true),
            ("app notin (web)", false),
            ("zone notin (a)", true),
            ("zone!=a", true),
            ("app", true),
            ("!app", false),
            ("!zone", true),
            ("zone", false),
            ("n>4", true),
            ("n<4", false),
            ("empty=", true),
            ("app=web,tier in (front,back),!zone", true),
            ("empty in ()", true),
        ] {
            assert_eq!(
                LabelSelector::parse(text).unwrap().matches(&labels),
                expected,
                "{text}"
            );
        }
        for bad in [
            "app=web,",
            "=",
            "a b",
            "app in web",
            "app in (a",
            "a=b=c",
            "-a=b",
            "app=b!",
            "n>x",
            ",a",
        ] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
        assert!(!LabelSelector::nothing().matches(&labels));
    }

    #[test]
    fn from_objects() {
        let s = LabelSelector::from_value(&json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["d"]}]})).unwrap();
        assert!(s.matches(&json!({"a": "b"})) && !s.matches(&json!({"a": "b", "c": "d"})));
        assert_eq!(s.to_string(), "a=b,c!=d");
        assert!(
            !LabelSelector::from_value(&Value::Null)
                .unwrap()
                .matches(&json!({}))
        );
        assert!(
            LabelSelector::from_value(&json!({}))
                .unwrap()
                .matches(&Value::Null)
        );
    }

    #[test]
    fn field_selectors() {
        let get = |f: &str| {
            if f == "status.phase" {
                "Running".to_owned()
            } else {
                String::new()
            }
        };
        for (text, expected) in [
            ("", true),
            ("status.phase=Running", true),
            ("status.phase!=Running", false),
            ("status.phase==Running,spec.nodeName=", true),
        ] {
            assert_eq!(
                FieldSelector::parse(text).unwrap().matches_with(get),
                expected,
                "{text}"
            );
        }
        assert_eq!(
            FieldSelector::parse("metadata.name=a")
                .unwrap()
                .exact("metadata.name"),
            Some("a")
        );
        assert_eq!(
            FieldSelector::parse(r"a=b\,c\=d").unwrap().exact("a"),
            Some("b,c=d")
        );
        assert!(FieldSelector::parse("abc").is_err());
        assert!(FieldSelector::parse("a=b=c").is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(s in "[a-z=!(), <>\\\\]{0,30}") {
            let _ = LabelSelector::parse(&s);
            let _ = FieldSelector::parse(&s);
        }

        #[test]
        fn printing_parses_back(keys in proptest::collection::vec("[a-z]{1,5}", 0..4)) {
            let text = keys.iter().map(|k| format!("{k} in (x,y)")).collect::<Vec<_>>().join(",");
            let s = LabelSelector::parse(&text).unwrap();
            prop_assert_eq!(LabelSelector::parse(&s.to_string()).unwrap(), s);
        }
    }
}
