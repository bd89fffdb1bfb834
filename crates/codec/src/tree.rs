//! JSON and YAML to trees, keeping what parsers usually lose: which keys occurred twice, and where.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// Deepest nesting of a body, as upstream bounds it.
pub const MAX_DEPTH: usize = 10_000;

/// Nesting that a recursive walk can take on an ordinary thread's stack.
const SAFE_DEPTH: usize = 128;

/// Most nodes that aliases of YAML may stand for: what multiplies further is an attack.
const MAX_ALIASED: usize = 100_000;

/// A key that its map has already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicate {
    /// Path of the field.
    pub path: String,
    /// In YAML: the line of the repetition, and the key.
    pub line: Option<(u64, String)>,
}

/// What is wrong with keys seen twice, in upstream's words, for which every parser has its own.
pub fn repeated(duplicates: &[Duplicate]) -> Vec<String> {
    let lines: Vec<String> = duplicates
        .iter()
        .filter_map(|d| d.line.as_ref())
        .map(|(line, key)| format!("\n  line {line}: key {key:?} already set in map"))
        .collect();
    if !lines.is_empty() {
        return vec![format!("yaml: unmarshal errors:{}", lines.concat())];
    }
    duplicates
        .iter()
        .map(|d| format!("duplicate field {:?}", d.path))
        .collect()
}

/// Where the parser is, and the keys seen twice.
#[derive(Default)]
struct Trace {
    path: Vec<Step>,
    duplicates: Vec<Duplicate>,
    /// Whether keys know their lines.
    lines: bool,
    /// Where each key comes among all, if that is asked for.
    places: Option<HashMap<String, usize>>,
}

enum Step {
    Key(String),
    Index(usize),
}

impl Trace {
    fn enter(&mut self, key: &str) {
        self.path.push(Step::Key(key.to_owned()));
        let path = self.places.is_some().then(|| self.text());
        if let (Some(places), Some(path)) = (&mut self.places, path) {
            let place = places.len();
            places.entry(path).or_insert(place);
        }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for step in &self.path {
            match step {
                Step::Key(key) => {
                    if !out.is_empty() {
                        out.push('.');
                    }
                    out.push_str(key);
                }
                Step::Index(index) => out.push_str(&format!("[{index}]")),
            }
        }
        out
    }
}

/// Parses JSON; the second part lists duplicate keys. The last of them wins.
pub fn from_json(bytes: &[u8]) -> Result<(Value, Vec<Duplicate>), serde_json::Error> {
    // Few bodies have any, and only for those it pays to know where each key is.
    let repeats = Cell::new(false);
    let plain = Plain {
        depth: 0,
        repeats: &repeats,
    };
    let value = whole(bytes, plain)?;
    if !repeats.get() {
        return Ok((value, Vec::new()));
    }
    let trace = RefCell::new(Trace::default());
    let value = whole(bytes, Seed(&trace))?;
    Ok((value, trace.into_inner().duplicates))
}

/// Where each field stands in a body that could be parsed, by its path: the first has the lowest number.
pub fn places(bytes: &[u8]) -> HashMap<String, usize> {
    let trace = RefCell::new(Trace {
        places: Some(HashMap::new()),
        ..Trace::default()
    });
    // What cannot be read a second time either is in no order.
    let _ = whole(bytes, Seed(&trace));
    trace.into_inner().places.unwrap_or_default()
}

fn whole<'de, S: DeserializeSeed<'de>>(
    bytes: &'de [u8],
    seed: S,
) -> Result<S::Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// What both visitors of values make of what has no parts.
macro_rules! scalars {
    () => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any JSON value")
        }

        fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
            Ok(v.into())
        }

        fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
            Ok(v.into())
        }

        fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
            Ok(v.into())
        }

        fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
            Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
        }

        fn visit_str<E>(self, v: &str) -> Result<Value, E> {
            Ok(v.into())
        }

        fn visit_string<E>(self, v: String) -> Result<Value, E> {
            Ok(v.into())
        }

        fn visit_none<E>(self) -> Result<Value, E> {
            Ok(Value::Null)
        }

        fn visit_unit<E>(self) -> Result<Value, E> {
            Ok(Value::Null)
        }
    };
}

/// Parses without knowing where it is, and only notices whether a key occurs twice.
#[derive(Clone, Copy)]
struct Plain<'a> {
    depth: usize,
    repeats: &'a Cell<bool>,
}

impl Plain<'_> {
    fn inner(self) -> Self {
        Self {
            depth: self.depth + 1,
            ..self
        }
    }
}

impl<'de> DeserializeSeed<'de> for Plain<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.depth > SAFE_DEPTH {
            return Err(D::Error::custom("exceeded max depth"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Plain<'_> {
    type Value = Value;

    scalars!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(value) = seq.next_element_seed(self.inner())? {
            out.push(value);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key_seed(KeySeed)? {
            if out
                .insert(key, map.next_value_seed(self.inner())?)
                .is_some()
            {
                self.repeats.set(true);
            }
        }
        Ok(Value::Object(out))
    }
}

/// Parses YAML as kubectl reads it (YAML 1.1 booleans, octal numbers and merge keys).
pub fn from_yaml(text: &str) -> Result<(Value, Vec<Duplicate>), String> {
    let trace = RefCell::new(Trace {
        lines: true,
        ..Trace::default()
    });
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_ALIASED },
    };
    let value = serde_saphyr::with_deserializer_from_str_with_options(text, options, |d| {
        Seed(&trace).deserialize(d)
    })
    .map_err(|e| e.to_string())?;
    Ok((value, trace.into_inner().duplicates))
}

struct Seed<'a>(&'a RefCell<Trace>);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.0.borrow().path.len() > SAFE_DEPTH {
            return Err(D::Error::custom("exceeded max depth"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    scalars!();

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Seed(self.0).deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            self.0.borrow_mut().path.push(Step::Index(out.len()));
            let next = seq.next_element_seed(Seed(self.0))?;
            self.0.borrow_mut().path.pop();
            match next {
                Some(value) => out.push(value),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        let lines = self.0.borrow().lines;
        loop {
            let (key, line) = if lines {
                let Some(key) = map.next_key::<Spanned<Key>>()? else {
                    break;
                };
                (key.value.0, Some(key.referenced.line()))
            } else {
                let Some(key) = map.next_key_seed(KeySeed)? else {
                    break;
                };
                (key, None)
            };
            self.0.borrow_mut().enter(&key);
            let value = map.next_value_seed(Seed(self.0))?;
            let mut trace = self.0.borrow_mut();
            if out.insert(key.clone(), value).is_some() {
                let path = trace.text();
                let line = line.map(|line| (line, key));
                trace.duplicates.push(Duplicate { path, line });
            }
            trace.path.pop();
        }
        Ok(Value::Object(out))
    }
}

/// A key that can tell where it is.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        KeySeed.deserialize(deserializer).map(Self)
    }
}

/// Keys of YAML maps may be numbers or booleans; in JSON they are strings.
struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, v: &str) -> Result<String, E> {
        Ok(v.to_owned())
    }

    fn visit_string<E>(self, v: String) -> Result<String, E> {
        Ok(v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn duplicates_have_paths() {
        let (value, duplicates) = from_json(br#"{"a":1,"a":2,"b":{"c":[{"d":1,"d":3}]}}"#).unwrap();
        assert_eq!(value, json!({"a": 2, "b": {"c": [{"d": 3}]}}));
        let paths: Vec<&str> = duplicates.iter().map(|d| d.path.as_str()).collect();
        assert_eq!(paths, ["a", "b.c[0].d"]);
        assert_eq!(repeated(&duplicates)[1], "duplicate field \"b.c[0].d\"");
        assert!(from_json(b"{} x").is_err());
        assert!(from_json("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn yaml() {
        let text =
            "a: 0644\nb: yes\nc: \"yes\"\nd: 1e3\ne: [x, 2]\nf: ~\ng: |\n  l1\n  l2\na: 5\n1: x\n";
        let (value, duplicates) = from_yaml(text).unwrap();
        assert_eq!(
            value,
            json!({"a": 5, "b": true, "c": "yes", "d": 1000.0, "e": ["x", 2], "f": null, "g": "l1\nl2\n", "1": "x"})
        );
        assert_eq!(
            repeated(&duplicates),
            ["yaml: unmarshal errors:\n  line 10: key \"a\" already set in map"]
        );
        assert_eq!(from_yaml("mode: 0644").unwrap().0, json!({"mode": 420}));
        assert!(from_yaml("a: [").is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(s in ".{0,60}") {
            let _ = from_json(s.as_bytes());
            let _ = from_yaml(&s);
        }
    }
}
