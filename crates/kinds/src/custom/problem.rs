//! What is wrong with a value, in the words of upstream's schema validator.

use api::FieldError;
use serde_json::Value;

/// What a broken check is shown as.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Show {
    /// A value is missing.
    Required,
    /// One of these was wanted.
    OneOf(Vec<Value>),
    /// At most so many bytes were wanted.
    TooLong(i64),
    /// At most so many were wanted, and so many there are.
    TooMany(i64, i64),
    /// Another type was wanted.
    Type,
    /// The message says it.
    Plain,
}

/// One broken check.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Problem {
    /// Path of the value; `None` for what is said about several values.
    pub name: Option<String>,
    /// The value.
    pub value: Value,
    /// How it is shown.
    pub show: Show,
    /// The words; also what tells problems apart.
    pub message: String,
}

impl Problem {
    /// A problem of one value.
    pub fn new(name: &str, value: Value, show: Show, message: String) -> Self {
        Self {
            name: Some(name.to_owned()),
            value,
            show,
            message,
        }
    }

    /// A problem of several values.
    pub fn composite(message: String) -> Self {
        Self {
            name: None,
            value: Value::Null,
            show: Show::Plain,
            message,
        }
    }

    /// As a field error below `base`.
    pub fn into_field_error(self, base: Option<&str>) -> FieldError {
        let relative = self
            .name
            .as_deref()
            .map(|n| n.strip_prefix('.').unwrap_or(n))
            .filter(|n| !n.is_empty());
        let path = match (base, relative) {
            (None, None) => "<nil>".to_owned(),
            (Some(base), None) => base.to_owned(),
            (None, Some(name)) => name.to_owned(),
            (Some(base), Some(name)) => format!("{base}.{name}"),
        };
        let value = if self.value.is_null() {
            Value::String(String::new())
        } else {
            self.value
        };
        let count = |n: i64| usize::try_from(n).unwrap_or_default();
        match self.show {
            Show::Required => FieldError::required(path, ""),
            Show::OneOf(allowed) => {
                let allowed: Vec<String> = allowed.iter().map(api::jsonpath::text).collect();
                let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
                FieldError::not_supported(path, value, &allowed)
            }
            Show::TooLong(max) => FieldError::too_long(path, count(max)),
            Show::TooMany(actual, max) => FieldError::too_many(path, count(actual), count(max)),
            Show::Type => FieldError::type_invalid(path, value, self.message),
            Show::Plain => FieldError::invalid(path, value, self.message),
        }
    }
}

/// A number as Go prints it.
pub(super) fn number(value: f64) -> String {
    const LARGE: f64 = 1e21;
    const SMALL: f64 = 1e-4;
    let size = value.abs();
    if size != 0.0 && !(SMALL..LARGE).contains(&size) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(rest) => ('-', rest),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{value}")
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_as_go_prints_them() {
        for (value, text) in [
            (1.0, "1"),
            (1.5, "1.5"),
            (0.0, "0"),
            (1e21, "1e+21"),
            (1e20, "100000000000000000000"),
            (0.00001, "1e-05"),
            (-2.5, "-2.5"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
