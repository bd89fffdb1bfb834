//! Values that expressions compute with.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use api::Quantity;
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use crate::semver::Version;

/// A value. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Value {
    /// null
    Null,
    /// true or false
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// A floating point number.
    Double(f64),
    /// A string.
    String(Arc<str>),
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// A list.
    List(Arc<List>),
    /// A map, or an object whose fields are its keys.
    Map(Arc<Map>),
    /// A map, and what it has under a key that it does not have.
    Defaulting(Arc<(Map, Value)>),
    /// A point in time.
    Timestamp(Timestamp),
    /// A span of time.
    Duration(SignedDuration),
    /// The name of a type.
    Type(Arc<str>),
    /// A value that may be absent.
    Optional(Option<Arc<Value>>),
    /// A resource quantity.
    Quantity(Arc<Quantity>),
    /// A URL.
    Url(Arc<str>),
    /// An IP address.
    Ip(IpAddr),
    /// A range of addresses.
    Cidr(IpNet),
    /// A semantic version.
    Semver(Arc<Version>),
    /// A named format that strings can be checked against.
    Format(&'static str),
}

/// How a list treats order and repetition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Listing {
    /// Order matters.
    #[default]
    Plain,
    /// Items differ, and their order does not matter.
    Set,
    /// Items are told apart by these fields, and their order does not matter.
    Keyed(Vec<Arc<str>>),
}

/// A list of values.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// The items.
    pub items: Vec<Value>,
    /// What kind of list it is.
    pub listing: Listing,
}

/// Keys and values, in order; maps are small, and objects have few fields.
#[derive(Debug, Clone, Default)]
pub struct Map(pub Vec<(Value, Value)>);

impl Map {
    /// The value under a key.
    pub fn get(&self, key: &Value) -> Option<&Value> {
        let found = self.0.iter().find(|(k, _)| k.equals(key));
        found.map(|(_, v)| v)
    }

    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&Value> {
        let is = |k: &Value| matches!(k, Value::String(s) if &**s == name);
        self.0.iter().find(|(k, _)| is(k)).map(|(_, v)| v)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}

impl From<Vec<Value>> for Value {
    fn from(items: Vec<Value>) -> Self {
        Self::List(Arc::new(List {
            items,
            listing: Listing::Plain,
        }))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl Value {
    /// A map of string keys.
    pub fn object(fields: impl IntoIterator<Item = (String, Value)>) -> Self {
        let fields = fields.into_iter().map(|(k, v)| (Value::from(k), v));
        Self::Map(Arc::new(Map(fields.collect())))
    }

    /// JSON without any schema: numbers are integers if they are whole as written.
    pub fn from_json(json: &serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(b) => Self::Bool(*b),
            serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Self::Int(n),
                (None, Some(n)) => Self::Uint(n),
                (None, None) => Self::Double(n.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(s) => Self::from(s.as_str()),
            serde_json::Value::Array(items) => {
                items.iter().map(Self::from_json).collect::<Vec<_>>().into()
            }
            serde_json::Value::Object(map) => {
                Self::object(map.iter().map(|(k, v)| (k.clone(), Self::from_json(v))))
            }
        }
    }

    /// A semantic version, if the text is one.
    pub fn semver(text: &str) -> Option<Self> {
        Version::parse(text, false).map(|v| Self::Semver(Arc::new(v)))
    }

    /// The name of the value's type.
    pub fn type_name(&self) -> &str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(_) | Self::Defaulting(_) => "map",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Type(_) => "type",
            Self::Optional(_) => "optional_type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Url(_) => "kubernetes.URL",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
        }
    }

    /// About how large the value is: items, characters or bytes; 1 for anything else.
    pub fn size(&self) -> u64 {
        let size = match self {
            Self::String(s) => s.len(),
            Self::Bytes(b) => b.len(),
            Self::List(l) => l.items.len(),
            Self::Map(m) => m.0.len(),
            Self::Defaulting(m) => m.0.0.len(),
            _ => 1,
        };
        size as u64
    }

    /// Equality as expressions mean it: numbers by value, whatever their type.
    pub fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::String(a), Self::String(b)) | (Self::Url(a), Self::Url(b)) => a == b,
            (Self::Type(a), Self::Type(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::List(a), Self::List(b)) => a.equals(b),
            (Self::Map(a), Self::Map(b)) => {
                a.0.len() == b.0.len()
                    && a.0
                        .iter()
                        .all(|(k, v)| b.get(k).is_some_and(|other| v.equals(other)))
            }
            (Self::Optional(a), Self::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (None, None) => true,
                _ => false,
            },
            (Self::Ip(a), Self::Ip(b)) => a.to_canonical() == b.to_canonical(),
            (Self::Cidr(a), Self::Cidr(b)) => a == b,
            (Self::Format(a), Self::Format(b)) => a == b,
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }

    /// The order of two values, if they have one.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::String(a), Self::String(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            (Self::Quantity(a), Self::Quantity(b)) => Some(a.cmp(b)),
            (Self::Semver(a), Self::Semver(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Uint(a), Self::Uint(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Uint(a), Self::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (a, b) => a.as_double()?.partial_cmp(&b.as_double()?),
        }
    }

    /// Whether it has keys.
    pub(crate) fn is_map(&self) -> bool {
        matches!(self, Self::Map(_) | Self::Defaulting(_))
    }

    /// A number as a floating point one.
    #[expect(
        clippy::cast_precision_loss,
        reason = "as the language compares numbers"
    )]
    pub fn as_double(&self) -> Option<f64> {
        match self {
            Self::Int(n) => Some(*n as f64),
            Self::Uint(n) => Some(*n as f64),
            Self::Double(n) => Some(*n),
            _ => None,
        }
    }

    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(s) => Some(s),
            _ => None,
        }
    }

    /// Whether the value is what an absent one would be: empty, zero, false or null.
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(b) => !b,
            Self::Int(n) => *n == 0,
            Self::Uint(n) => *n == 0,
            Self::Double(n) => n.abs() == 0.0,
            Self::String(s) => s.is_empty(),
            Self::Bytes(b) => b.is_empty(),
            Self::List(l) => l.items.is_empty(),
            Self::Map(m) => m.0.is_empty(),
            Self::Defaulting(m) => m.0.0.is_empty(),
            Self::Duration(d) => d.is_zero(),
            Self::Optional(o) => o.is_none(),
            _ => false,
        }
    }
}

impl List {
    fn equals(&self, other: &Self) -> bool {
        if self.items.len() != other.items.len() {
            return false;
        }
        if self.listing == Listing::Plain || other.listing == Listing::Plain {
            let mut pairs = self.items.iter().zip(&other.items);
            return pairs.all(|(a, b)| a.equals(b));
        }
        let has = |item: &Value| other.items.iter().any(|o| o.equals(item));
        self.items.iter().all(has)
    }

    /// Both lists as one: sets and keyed lists keep what is the same once, the other list's in case of doubt.
    pub fn concat(&self, other: &Self) -> Self {
        let mut items = self.items.clone();
        match &self.listing {
            Listing::Plain => items.extend(other.items.iter().cloned()),
            Listing::Set => {
                for item in &other.items {
                    if !items.iter().any(|i| i.equals(item)) {
                        items.push(item.clone());
                    }
                }
            }
            Listing::Keyed(keys) => {
                for item in &other.items {
                    match items.iter_mut().find(|i| same_keys(i, item, keys)) {
                        Some(old) => *old = item.clone(),
                        None => items.push(item.clone()),
                    }
                }
            }
        }
        Self {
            items,
            listing: self.listing.clone(),
        }
    }
}

fn same_keys(a: &Value, b: &Value, keys: &[Arc<str>]) -> bool {
    let (Value::Map(a), Value::Map(b)) = (a, b) else {
        return false;
    };
    keys.iter().all(|key| match (a.field(key), b.field(key)) {
        (Some(a), Some(b)) => a.equals(b),
        (None, None) => true,
        _ => false,
    })
}
