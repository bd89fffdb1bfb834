//! One step of a path into an object: a field, a list item by key or value, or an index.
//!
//! The text forms are upstream's: `f:name`, `k:{"name":"x"}`, `v:"x"` and `i:0` in stored field sets,
//! `.name`, `[name="x"]`, `[="x"]` and `[0]` in messages.

use std::cmp::Ordering;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// One step of a path.
#[derive(Debug, Clone)]
pub enum PathElement {
    /// A field of a struct, or a key of a map.
    Field(Box<str>),
    /// The item of a list of type map whose key fields (sorted by name) have these values.
    Key(Box<[(Box<str>, Value)]>),
    /// The item of a list of type set that has this value.
    Value(Value),
    /// An item of a list by its position: never made here, but read and kept.
    Index(i64),
}

/// Why a stored step cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathElementError {
    /// Its kind is none of the known ones: such steps are left out, as upstream does.
    #[error("unknown path element type")]
    Unknown,
    /// It is malformed.
    #[error("{0}")]
    Malformed(String),
}

impl PathElement {
    /// A field of that name.
    pub fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When the text is no step.
    pub fn parse(text: &str) -> Result<Self, PathElementError> {
        let malformed = |why: String| PathElementError::Malformed(why);
        let Some((kind, rest)) = text.split_at_checked(2) else {
            return Err(malformed("key must be 2 characters long:".to_owned()));
        };
        if !kind.ends_with(':') {
            return Err(malformed(format!("missing colon: {text}")));
        }
        match kind {
            "f:" => Ok(Self::field(rest)),
            "v:" => serde_json::from_str(rest)
                .map(Self::Value)
                .map_err(|e| malformed(e.to_string())),
            "k:" => {
                let Fields(mut fields) =
                    serde_json::from_str(rest).map_err(|e| malformed(e.to_string()))?;
                fields.sort_by(|a, b| a.0.cmp(&b.0));
                Ok(Self::Key(fields.into()))
            }
            "i:" => rest
                .parse()
                .map(Self::Index)
                .map_err(|_| malformed(format!("strconv.Atoi: parsing {rest:?}: invalid syntax"))),
            _ => Err(PathElementError::Unknown),
        }
    }

    /// The stored form.
    pub fn stored(&self) -> String {
        match self {
            // By far the most: formatting costs several times as much.
            Self::Field(name) => ["f:", name].concat(),
            Self::Key(fields) => {
                let mut out = String::from("k:{");
                for (i, (name, value)) in fields.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    out.push_str(&Value::from(&**name).to_string());
                    out.push(':');
                    out.push_str(&value.to_string());
                }
                out.push('}');
                out
            }
            Self::Value(value) => format!("v:{value}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }
}

/// Key fields as they are written, without the cost of a map.
struct Fields(Vec<(Box<str>, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::with_capacity(2);
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(fields) => {
                f.write_str("[")?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    let comma = if i > 0 { "," } else { "" };
                    write!(f, "{comma}{name}={value}")?;
                }
                f.write_str("]")
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => compare_keys(a, b),
            (Self::Value(a), Self::Value(b)) => compare_values(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for PathElement {}

fn compare_keys(a: &[(Box<str>, Value)], b: &[(Box<str>, Value)]) -> Ordering {
    for ((an, av), (bn, bv)) in a.iter().zip(b) {
        let order = an.cmp(bn).then_with(|| compare_values(av, bv));
        if order != Ordering::Equal {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

/// A total order of JSON values, numbers first: integers and floats compare by what they are worth.
pub fn compare_values(a: &Value, b: &Value) -> Ordering {
    fn rank(v: &Value) -> u8 {
        match v {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        }
    }
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => match (x.as_i64(), y.as_i64()) {
            (Some(x), Some(y)) => x.cmp(&y),
            _ => x
                .as_f64()
                .unwrap_or_default()
                .total_cmp(&y.as_f64().unwrap_or_default()),
        },
        (Value::String(x), Value::String(y)) => x.cmp(y),
        (Value::Bool(x), Value::Bool(y)) => x.cmp(y),
        (Value::Array(x), Value::Array(y)) => x
            .iter()
            .zip(y)
            .map(|(x, y)| compare_values(x, y))
            .find(|o| *o != Ordering::Equal)
            .unwrap_or_else(|| x.len().cmp(&y.len())),
        (Value::Object(_), Value::Object(_)) => a.to_string().cmp(&b.to_string()),
        _ => rank(a).cmp(&rank(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts() {
        for (stored, message) in [
            ("f:a.b/c", ".a.b/c"),
            (
                r#"k:{"containerPort":80,"protocol":"TCP"}"#,
                r#"[containerPort=80,protocol="TCP"]"#,
            ),
            (r#"v:"x""#, r#"[="x"]"#),
            ("v:1", "[=1]"),
            ("i:3", "[3]"),
        ] {
            let element = PathElement::parse(stored).unwrap();
            assert_eq!(element.stored(), stored);
            assert_eq!(element.to_string(), message);
        }
        assert_eq!(
            PathElement::parse(r#"k:{"b":1,"a":2}"#).unwrap().stored(),
            r#"k:{"a":2,"b":1}"#
        );
        assert_eq!(PathElement::parse("x:1"), Err(PathElementError::Unknown));
        for bad in ["", "f", "fx", "v:{", "k:[]", "i:x", "é"] {
            assert!(
                matches!(PathElement::parse(bad), Err(PathElementError::Malformed(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn order() {
        let sorted = [
            r#"f:a"#,
            r#"f:b"#,
            r#"k:{"a":1}"#,
            r#"k:{"a":"1"}"#,
            "v:1",
            "v:1.5",
            r#"v:"a""#,
            "v:true",
            "i:0",
            "i:1",
        ];
        let elements: Vec<PathElement> = sorted
            .iter()
            .map(|s| PathElement::parse(s).unwrap())
            .collect();
        assert!(elements.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(compare_values(&json!(1), &json!(1.0)), Ordering::Equal);
    }
}
